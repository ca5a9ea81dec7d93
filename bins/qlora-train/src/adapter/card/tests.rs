//! Cards as a whole, of adapters whose texts are plain and of those whose texts are hostile.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, json};

use super::*;
use crate::hub::{DataSetFile, has_fields};

const COMMIT: &str = "0e9e39f249a16976918f6564b8830bc894c89659";

fn adapter(base: &str, revision: Option<&str>) -> Adapter {
    let config = AdapterConfig {
        base_model_name_or_path: Some(base.to_owned()),
        revision: revision.map(str::to_owned),
        r: 32,
        lora_alpha: 64.0,
        lora_dropout: 0.05,
        target_modules: TargetModules::Names(["q_proj", "v_proj"].map(str::to_owned).into()),
        use_rslora: false,
        use_dora: false,
        rank_pattern: IndexMap::new(),
        alpha_pattern: IndexMap::new(),
        layers_to_transform: None,
        wrapped: false,
        exclude_modules: None,
        modules_to_save: Vec::new(),
        ensure_weight_tying: false,
        trainable_token_indices: BTreeMap::new(),
    };
    let stored = [
        (metadata::BASE_NAME, base.to_owned()),
        (metadata::BASE_FINGERPRINT, "ab".repeat(32)),
        (metadata::QUANTIZATION, r#"{"quant_type":"nf4","block_size":64,"double_quant":false}"#.to_owned()),
        (metadata::CHAT_TEMPLATE_SHA256, "cd".repeat(32)),
    ];
    let metadata = stored.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Adapter { config, tensors: BTreeMap::new(), metadata }
}

fn license(id: &str, name: Option<&str>, link: Option<&str>) -> License {
    License { id: id.to_owned(), name: name.map(str::to_owned), link: link.map(str::to_owned) }
}

fn training() -> Training {
    let origin = DataSetFile { id: "org/rows".into(), commit: COMMIT.into(), file: "data/train-0.jsonl".into() };
    let settings = json!({
        "model": "org/tiny-llama",
        "revision": COMMIT,
        "data": [format!("org/rows@{COMMIT}:data/train-0.jsonl"), "path/to/rows-2"],
        "lora_r": 32,
        "learning_rate": 0.01,
        "max_steps": 30,
    });
    Training {
        version: "0.1.0".into(),
        steps: 1030,
        of_steps: None,
        epochs: 2.5,
        parameters: 8192,
        train_loss: 1.234_567,
        logged: None,
        eval_loss: Some(0.5),
        lowest: Some((1000, 0.4)),
        rows: 1200,
        validation_rows: 3,
        tokens: 123_456,
        learned_tokens: 45_678,
        files: vec![
            TrainedFile { sha256: "01".repeat(32), origin: Some(origin) },
            TrainedFile { sha256: "23".repeat(32), origin: None },
        ],
        validation_files: vec![TrainedFile { sha256: "45".repeat(32), origin: None }],
        tokens_hash: "67".repeat(32),
        arithmetic: Some("f32".into()),
        date: None,
        sums: None,
        settings: settings.as_object().cloned().unwrap_or_default(),
        license: Some(license("llama3.1", None, None)),
        tokenizer: true,
        gguf: true,
        curve: true,
    }
}

/// The fields of a card, read as YAML.
fn fields(card: &str) -> Map<String, Value> {
    assert_eq!(has_fields(card), Ok(true), "{card}");
    let yaml = card.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap();
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

#[test]
fn a_card_is_this_page() {
    let card = model_card(&adapter("org/tiny-llama", Some(COMMIT)), Some(&training()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/adapter/card/snapshot.md");
    if std::env::var_os("QLORA_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &card).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(card == expected, "run this test with QLORA_UPDATE_DOCS=1 to write it anew; now:\n{card}");
}

#[test]
fn a_checkpoint_is_told_by_its_step() {
    let checkpoint = Training { of_steps: Some(4000), logged: Some((1028, 1.5)), eval_loss: None, ..training() };
    let adapter = adapter("org/tiny-llama", Some(COMMIT));
    let card = model_card(&adapter, Some(&checkpoint));
    for line in [
        "# LoRA adapter: checkpoint after step 1,030 of 4,000\n",
        "| Optimizer steps | 1,030 of 4,000 (2.5 epochs) |\n",
        "| Training loss, last in the log | 1.5000 at step 1,028 |\n",
        "| Training loss, mean of the run | 1.2346 |\n",
        "| Lowest validation loss | 0.4000 at step 1,000 |\n",
        "qlora-train train settings.yaml --output-dir adapter --save-steps 1030 --save-total-limit 0\n```\n",
        "\nThe adapter is then in `adapter/checkpoint-1030`.\n",
    ] {
        assert!(card.contains(line), "{line}: {card}");
    }
    assert!(!card.contains("| Validation loss |"), "{card}");
    // Before the first step nothing was saved by steps.
    let card = model_card(&adapter, Some(&Training { steps: 0, ..checkpoint }));
    assert!(card.contains("settings.yaml --output-dir adapter\n") && !card.contains("is then in"), "{card}");
}

#[test]
fn the_fields_are_those_that_the_hub_knows() {
    let card = model_card(&adapter("org/tiny-llama", Some(COMMIT)), Some(&training()));
    let expected = json!({
        "base_model": "org/tiny-llama",
        "datasets": ["org/rows"],
        "library_name": "peft",
        "license": "llama3.1",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:org/tiny-llama", "lora", "transformers"],
    });
    assert_eq!(Value::Object(fields(&card)), expected);
    // Nothing is invented.
    let mut unknown = training();
    (unknown.license, unknown.files) = (None, Vec::new());
    let card = model_card(&adapter("/models/tiny", None), Some(&unknown));
    let names: Vec<String> = fields(&card).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["library_name", "pipeline_tag", "tags"]);
    assert!(!card.contains("License"), "{card}");
}

#[test]
fn the_text_of_a_license_is_linked_where_it_is() {
    let of = |link: Option<&str>, base: &str, revision: Option<&str>| {
        let license = Some(license("other", Some("their-terms"), link));
        let card = model_card(&adapter(base, revision), Some(&Training { license, ..training() }));
        assert!(card.contains("| License of the base | their-terms |"), "{card}");
        let fields = fields(&card);
        assert_eq!((&fields["license"], &fields["license_name"]), (&json!("other"), &json!("their-terms")));
        fields.get("license_link").and_then(Value::as_str).map(str::to_owned)
    };
    let web = "https://example.com/terms?x=1#y";
    assert_eq!(of(Some(web), "org/tiny", None).as_deref(), Some(web));
    let at_commit = format!("https://huggingface.co/org/tiny/blob/{COMMIT}/LICENSE.md");
    assert_eq!(of(Some("LICENSE.md"), "org/tiny", Some(COMMIT)), Some(at_commit));
    let of_main = "https://huggingface.co/org/tiny/blob/main/LICENSE";
    assert_eq!(of(Some("LICENSE"), "org/tiny", Some("refs/pr/1")).as_deref(), Some(of_main));
    for (link, base) in [
        (None, "org/tiny"),
        (Some("LICENSE"), "/models/tiny"),
        (Some("../LICENSE"), "org/tiny"),
        (Some("javascript:alert(1)"), "org/tiny"),
        (Some("http://example.com"), "org/tiny"),
    ] {
        assert_eq!(of(link, base, None), None, "{link:?} {base}");
    }
}

#[test]
fn no_text_breaks_the_page_or_its_fields() {
    let hostile =
        "x\n---\n# Heading\n\n| a | b |\n<script>alert(1)</script> [x](y) \u{202e}\u{ffff}\u{1b}[31m `c` \"q\": 'r'";
    let mut adapter = adapter(hostile, Some(hostile));
    adapter.config.target_modules = TargetModules::Pattern(hostile.into());
    adapter.config.modules_to_save = vec![hostile.into()];
    adapter.config.rank_pattern.insert(hostile.into(), 3);
    adapter.metadata.insert(metadata::CHAT_TEMPLATE_SHA256.into(), hostile.into());
    let origin = DataSetFile { id: "org/rows".into(), commit: COMMIT.into(), file: hostile.into() };
    let settings = json!({"model": hostile, "answer_match": "```\n```` x", "eos_token": "---"});
    let card = model_card(
        &adapter,
        Some(&Training {
            version: hostile.into(),
            arithmetic: Some(hostile.into()),
            date: Some(hostile.into()),
            sums: Some(hostile.into()),
            files: vec![TrainedFile { sha256: hostile.into(), origin: Some(origin) }],
            license: Some(license("other", Some(hostile), Some(hostile))),
            settings: settings.as_object().cloned().unwrap_or_default(),
            ..training()
        }),
    );
    let fields = fields(&card);
    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["datasets", "library_name", "license", "license_name", "pipeline_tag", "tags"]);
    // Outside of code every line is one that is written here.
    let mut fence: Option<String> = None;
    for line in card.split_once("\n---\n").unwrap().1.lines() {
        match &fence {
            Some(open) if line == open => fence = None,
            Some(_) => {}
            None if line.starts_with("```") => fence = Some(line.chars().take_while(|c| *c == '`').collect()),
            None => {
                assert!(line != "---" && !line.starts_with("# Heading"), "{card}");
                assert!(!line.contains("<script") || line.contains("\\<script"), "{line}");
            }
        }
    }
    assert_eq!(fence, None, "{card}");
    assert_eq!(card.lines().filter(|line| line.starts_with("# ")).collect::<Vec<_>>(), ["# LoRA adapter"]);
    assert!(!card.contains(['\u{202e}', '\u{1b}', '\u{ffff}']), "{card}");
    // A YAML reader gets the settings back as they were.
    let yaml = card.split("yaml\n").nth(1).unwrap().split("\n`````\n").next().unwrap();
    let read: Map<String, Value> = serde_saphyr::from_str(yaml).unwrap();
    assert_eq!(read["answer_match"], "```\n```` x");
}

#[test]
fn the_commands_are_those_that_serve_the_adapter() {
    let plain = adapter("org/tiny-llama", Some(COMMIT));
    let card = model_card(&plain, None);
    let vllm = format!("vllm serve org/tiny-llama --revision {COMMIT} --enable-lora --max-lora-rank 32");
    for line in [
        format!("{vllm} --lora-modules adapter=ADAPTER"),
        "qlora-train export gguf --adapter ADAPTER --output-dir gguf --type q4_k_m".to_owned(),
        format!("AutoModelForCausalLM.from_pretrained(\"org/tiny-llama\", revision=\"{COMMIT}\")"),
        "AutoTokenizer.from_pretrained(\"org/tiny-llama\")".to_owned(),
    ] {
        assert!(card.contains(&line), "{line}: {card}");
    }
    let tokenizer_of = |name: &str| format!("AutoTokenizer.from_pretrained(\"{name}\")");
    let expected = card.replace(&tokenizer_of("org/tiny-llama"), &tokenizer_of("ADAPTER"));
    assert_eq!(plain_card(&plain, true), expected);
    let mut dora = adapter("/models/tiny", None);
    (dora.config.use_dora, dora.config.wrapped) = (true, true);
    let card = model_card(&dora, Some(&Training { gguf: false, ..training() }));
    for line in [
        "vLLM, which does not serve magnitudes (DoRA), so that the adapter is merged into its base first:",
        "qlora-train merge --model BASE --adapter ADAPTER --output-dir merged\nvllm serve merged",
        "AutoModelForImageTextToText.from_pretrained(\"BASE\")",
        "AutoTokenizer.from_pretrained(\"ADAPTER\")",
    ] {
        assert!(card.contains(line), "{line}: {card}");
    }
    assert!(!card.contains("ollama") && !card.contains("--enable-lora"), "{card}");
}
