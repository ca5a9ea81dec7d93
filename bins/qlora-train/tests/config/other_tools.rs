//! Keys of other trainers whose meaning goes by the model, the files or the tool that they are of.

use std::path::{Path, PathBuf};

use qlora_train::config::*;

#[track_caller]
fn noting(text: &str) -> (Settings, Vec<String>) {
    Settings::from_yaml_noting(text, "cfg.yaml", &[]).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = Settings::from_yaml(text, "cfg.yaml", &[]).expect_err(text).to_string();
    words.iter().for_each(|word| assert!(error.contains(word), "{text}\n{error}\nlacks {word}"));
}

fn with_flag(text: &str, name: &str, value: &str) -> Result<Settings, String> {
    Settings::from_yaml(text, "cfg.yaml", &[(name.to_owned(), value.to_owned())]).map_err(|error| error.to_string())
}

/// A directory with a model's small files: 30 layers, two added tokens.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"num_hidden_layers": 30}"#).unwrap();
    let tokens = r#"{"added_tokens": [{"id": 1, "content": "<|im_start|>"}, {"id": 2, "content": "<|im_end|>"}]}"#;
    std::fs::write(dir.path().join("tokenizer.json"), tokens).unwrap();
    dir
}

/// Styles of Axolotl that write other prompts than `alpaca` does.
#[test]
fn only_the_style_that_the_alpaca_template_writes_is_taken_as_alpaca() {
    for same in ["alpaca", "alpaca:instruct", "alpaca_instruct", "alpaca_instruct.load"] {
        let (settings, _) = noting(&format!("datasets: [{{path: a.jsonl, type: '{same}'}}]"));
        assert_eq!(settings.chat_template.as_deref(), Some("alpaca"), "{same}");
    }
    for (other, instead) in [
        ("alpaca_chat.load_qa", "`prompt_column: question`"),
        ("alpaca_chat.load_concise", "a template file"),
        ("alpaca_chat.load_no_prompt", "a template file"),
        ("alpaca_chat.load_camel_ai", "`prompt_column: message_1`"),
        ("alpaca_instruct.load_no_prompt", "system message"),
        ("alpaca_w_system.load_instruct", "rows that have none"),
        ("alpaca_w_system.load_open_orca", "`### Human:`"),
        ("alpaca_w_system.load_open_orca_chatml", "`chat_template: chatml`"),
        ("alpaca:chat", "a template file"),
        ("alpaca:chatml", "`chat_template: chatml`"),
        ("context_qa.load_v2", "context and question"),
        ("input_output", "the form of the rows"),
    ] {
        let file = format!("datasets:\n  - path: a.jsonl\n    type: '{other}'\n");
        refused(&file, &["line 3: `datasets`", &format!("`type: {other}`"), instead]);
    }
}

#[test]
fn columns_of_a_type_are_told_to_be_written_by_the_chat_template() {
    let (settings, notes) = noting("datasets: [{path: a.jsonl, type: {field_instruction: q, field_output: a}}]");
    assert_eq!(settings.prompt_completion, PromptCompletion::Auto);
    assert!(notes.iter().any(|note| note.contains("`prompt_completion: text`")), "{notes:?}");
    let text = "prompt_completion: text\ndatasets: [{path: a.jsonl, type: {field_instruction: q}}]";
    assert_eq!(noting(text).0.prompt_completion, PromptCompletion::Text, "what is said outright wins");
    // Formats that are how rows are written anyway.
    let named = "field_instruction: q, field_output: a, field_input: c, no_input_format: '{instruction}'";
    let text = format!("datasets: [{{path: a.jsonl, type: {{{named}, format: \"{{instruction}}\\n\\n{{input}}\"}}}}]");
    assert_eq!(noting(&text).0.input_column.as_deref(), Some("c"));
}

#[test]
fn a_path_beside_files_is_one_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().display();
    std::fs::write(dir.path().join("a.jsonl"), "").unwrap();
    std::fs::write(dir.path().join("b.jsonl"), "").unwrap();
    let of = |set: &str, list: &str| {
        let settings = noting(&format!("{list}: [{{{set}, ds_type: json, split: train}}]")).0;
        if list == "datasets" { settings.data } else { settings.val_data }
    };
    for list in ["datasets", "test_datasets"] {
        assert_eq!(of("path: s/v.jsonl, data_files: [s/v.jsonl]", list), [PathBuf::from("s/v.jsonl")]);
        assert_eq!(of("path: ./s/v.jsonl, data_files: s/v.jsonl", list), [PathBuf::from("s/v.jsonl")]);
        let both = [dir.path().join("a.jsonl"), dir.path().join("b.jsonl")];
        assert_eq!(of(&format!("path: {folder}, data_files: [a.jsonl, {folder}/b.jsonl]"), list), both);
    }
    refused("datasets: [{path: a.jsonl, data_files: [b.jsonl]}]", &["`path` and `data_files`"]);
    let of_rows = "datasets:\n  - path: a.jsonl\n    split: train[:5]\n";
    refused(of_rows, &["line 3", "`split: train[:5]`", "`data_rows: [\":1000\"]`"]);
}

#[test]
fn a_count_of_layers_is_those_at_the_end_of_the_model() {
    let dir = model();
    let head = format!("model: {}\n", dir.path().display());
    let layers = |text: &str| noting(&format!("{head}{text}")).0.layers_to_transform.0;
    assert_eq!(layers("num_layers: 16"), (14..30).collect::<Vec<_>>());
    assert_eq!(layers("lora_layers: 1"), [29]);
    for all in ["-1", "30", "99", "0", "all", "null"] {
        assert!(layers(&format!("num_layers: {all}")).is_empty(), "{all}");
    }
    let (_, notes) = noting(&format!("{head}num_layers: 16"));
    assert_eq!(notes, ["cfg.yaml line 2: `num_layers`: the last 16 of 30 layers get adapters"]);
    let text = format!("{head}num_layers: 16\n");
    assert!(with_flag(&text, "num_layers", "false").unwrap().layers_to_transform.0.is_empty());
    assert_eq!(with_flag(&text, "num_layers", "2").unwrap().layers_to_transform.0, [28, 29]);
    assert_eq!(with_flag(&text, "layers_to_transform", "5").unwrap().layers_to_transform.0, [5]);
    refused(&format!("{text}layers_to_transform: [5]"), &["line 2: `num_layers`", "line 3", "keep one of them"]);
    refused(&format!("{head}num_layers: some"), &["line 2: `num_layers`", "or -1 for all"]);
    // A model that is not here yet
    let unknown = "model: no/such-model\nnum_layers: 16\n";
    refused(unknown, &["line 2: `num_layers`", "`layers_to_transform`", "`--num-layers false`"]);
    with_flag(unknown, "num_layers", "false").unwrap();
}

#[test]
fn a_fine_tune_type_is_lora_or_dora() {
    assert!(!noting("fine_tune_type: lora").0.use_dora);
    assert!(noting("fine_tune_type: dora").0.use_dora);
    refused("fine_tune_type: full", &["`fine_tune_type`", "lora or dora"]);
    refused("fine_tune_type: dora\nuse_dora: false", &["line 2", "keep one of them"]);
}

#[test]
fn the_checkpointing_of_unsloth_is_read_as_true_and_told() {
    for key in ["gradient_checkpointing", "use_gradient_checkpointing"] {
        let (settings, notes) = noting(&format!("{key}: unsloth"));
        assert_eq!(settings.gradient_checkpointing, Checkpointing::On);
        let told = format!("cfg.yaml line 1: `{key}`: `unsloth` is read as `true`");
        assert!(notes.len() == 1 && notes[0].starts_with(&told), "{notes:?}");
    }
    let seeds = noting("random_state: 3407\nseed: 3407").0;
    assert_eq!(seeds.seed, 3407);
    assert_eq!(noting("training: {random_seed: 7}").0.seed, 7);
}

/// Nothing adds tokens; a list of those that the tokenizer has asks for nothing.
#[test]
fn tokens_that_the_tokenizer_has_are_no_request() {
    let dir = model();
    let head = format!("model: {}\n", dir.path().display());
    for key in ["tokens", "eot_tokens"] {
        let (settings, notes) = noting(&format!("{head}{key}: ['<|im_start|>', '<|im_end|>']"));
        assert!(settings.model.is_some() && notes.is_empty(), "{notes:?}");
        let missing = format!("{head}{key}: ['<|im_end|>', '<|x|>']");
        let flag = format!("--{} false", key.replace('_', "-"));
        refused(&missing, &[&format!("line 2: `{key}`"), "found `<|x|>`", "tokenizer.json", &flag]);
        with_flag(&missing, key, "false").unwrap();
        refused(&format!("model: no/such-model\n{key}: [a]"), &[&format!("line 2: `{key}`"), "no directory", &flag]);
    }
}

#[test]
fn the_text_of_a_template_is_no_file() {
    let text = "chat_template: jinja\nchat_template_jinja: \"{% for m in messages %}{{ m.content }}{% endfor %}\"\n";
    refused(text, &["line 2: `chat_template_jinja`", "text of a template", "write the text into one"]);
    refused("chat_template: '{{ messages[0].content }}'", &["line 1: `chat_template`", "text of a template"]);
    assert!(with_flag(text, "chat_template", "chatml").is_ok());
    assert_eq!(noting("chat_template_jinja: mine.jinja").0.chat_template.as_deref(), Some("mine.jinja"));
}

#[test]
fn target_modules_may_be_one_regular_expression() {
    for pattern in [
        ".*q_proj",
        r"model.layers.[\d]+.(mlp|self_attn).(up|down|gate|q|k|v|o)_proj",
        r".*layers\.(0|1)\.self_attn\.q_proj",
        "layers.{1,2}.*q_proj",
    ] {
        let settings = noting(&format!("lora_target_modules: '{pattern}'")).0;
        assert_eq!(settings.lora_target_modules.pattern(), Some(pattern));
        assert_ne!(settings, Settings::default());
        assert_eq!(Settings::from_yaml(&settings.to_yaml().unwrap(), "again", &[]).unwrap(), settings);
        assert_ne!(settings.result_hash(), Settings::default().result_hash());
        assert_eq!(with_flag("", "lora_target_modules", pattern).unwrap(), settings);
    }
    for names in ["q_proj", "all-linear", "[q_proj, v_proj]", "'q_proj, v_proj'"] {
        assert_eq!(noting(&format!("lora_target_modules: {names}")).0.lora_target_modules.pattern(), None, "{names}");
    }
}

/// A run has one chat template, and these types ask for two.
#[test]
fn data_sets_of_axolotl_that_two_templates_write_are_refused() {
    let sets = |types: [&str; 2]| {
        format!("datasets: [{{path: a.jsonl, type: {}}}, {{path: b.jsonl, type: {}}}]", types[0], types[1])
    };
    for types in [["alpaca", "chat_template"], ["sharegpt", "alpaca"]] {
        refused(&sets(types), &["line 1: `datasets`", "ask for two chat templates", "--chat-template"]);
        refused(&(sets(types) + "\nchat_template: tokenizer_default"), &["ask for two chat templates"]);
        let (settings, _) = noting(&(sets(types) + "\nchat_template: chatml"));
        assert_eq!(settings.chat_template.as_deref(), Some("chatml"));
        assert_eq!(
            with_flag(&sets(types), "chat-template", "llama3").unwrap().chat_template.as_deref(),
            Some("llama3")
        );
    }
    assert_eq!(noting(&sets(["chat_template"; 2])).0.chat_template, None);
    assert_eq!(noting(&sets(["alpaca", "completion"])).0.chat_template.as_deref(), Some("alpaca"));
}

/// LLaMA-Factory's `dataset` is names of its dataset_info.json.
#[test]
fn names_of_data_sets_are_explained_by_the_file_of_llama_factory() {
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file);
    let info = r#"{"mine": {"file_name": "a.json", "num_samples": 5,
        "columns": {"prompt": "question", "response": "answer"}}, "pairs": {"file_name": "b.json", "ranking": true}}"#;
    std::fs::write(at("dataset_info.json"), info).unwrap();
    let head =
        |dir: &Path| format!("stage: sft\nfinetuning_type: lora\ncutoff_len: 99\ndataset_dir: {}\n", dir.display());
    let (settings, notes) = noting(&format!("{}dataset: mine,rows/b.jsonl\n", head(dir.path())));
    let told = "cfg.yaml line 5: `dataset`: `mine`: `num_samples: 5` are the first 5 rows here";
    assert!(notes.iter().any(|note| note.starts_with(told)), "{notes:?}");
    assert_eq!(settings.data, [at("a.json"), PathBuf::from("rows/b.jsonl")]);
    assert_eq!(settings.data_max_samples, OfEach(vec![5, 0]));
    assert_eq!(
        (settings.prompt_column.as_deref(), settings.completion_column.as_deref()),
        (Some("question"), Some("answer"))
    );
    assert_eq!(noting(&format!("{}eval_dataset: rows/v.jsonl\n", head(dir.path()))).0.val_data.len(), 1);
    let file = format!("{}dataset: mine,yours\n", head(dir.path()));
    refused(&file, &["line 5: `dataset`", "found `yours`", "dataset_info.json", "dataset: data/yours.json"]);
    assert_eq!(with_flag(&file, "data", "b.jsonl").unwrap().data, [PathBuf::from("b.jsonl")]);
    refused(&format!("{}dataset: pairs\n", head(dir.path())), &["line 5: `dataset`", "`pairs` holds preferences"]);
    refused(&format!("{}dataset: identity\n", head(Path::new("no/dir"))), &["line 5", "found `identity`"]);
    // In a file that is nobody's, a comma is part of a name.
    assert_eq!(noting("dataset: a,b.jsonl").0.data, [PathBuf::from("a,b.jsonl")]);
}

#[test]
fn files_of_ms_swift_and_unsloth_are_followed() {
    let swift = "model: x/y\ntrain_type: lora\ndataset: [a.jsonl]\nsplit_dataset_ratio: 0.01\nquant_bits: 4\n\
                 quant_method: bnb\nattn_impl: sdpa\nloss_scale: default\nmodel_author: swift\nmodel_name: robot\n";
    let (settings, notes) = noting(swift);
    assert_eq!((settings.val_set_size, settings.quantization), (ValSet::Share(0.01), Quantization::Nf4));
    assert_eq!(settings.model.as_deref(), Some("x/y"));
    assert!(notes.iter().any(|note| note.contains("`model_name`") && note.starts_with("without effect")), "{notes:?}");
    refused("system: 'You are a helpful assistant.'", &["`system`", "write it in the rows"]);
    refused("train_type: full", &["`train_type`", "lora or adalora"]);
    // For these keys, off has a meaning of its own.
    refused("use_chat_template: false", &["`use_chat_template`", "`prompt_completion: text`"]);
    refused("init_weights: false", &["`init_weights`", "`init_lora_weights`"]);
    refused("finetune_mlp_modules: false", &["`finetune_mlp_modules`", "`lora_target_modules`"]);
    let cut = "tuner_type: adalora\nlora_rank: 8\nadalora_init_r: 12\nadalora_target_r: 4\n";
    let (settings, notes) = noting(cut);
    assert_eq!((settings.use_adalora, settings.lora_r, settings.target_r), (true, 12, 4));
    let told = "cfg.yaml line 2: `lora_rank`: without effect here, as cfg.yaml line 3: `adalora_init_r` gives the rank";
    assert_eq!(notes, [told]);
    assert_eq!(with_flag(cut, "lora_r", "16").unwrap().lora_r, 16);
    assert_eq!(noting("lora_rank: 8\nadalora_init_r: 12").0.lora_r, 8, "it is a rank of AdaLoRA alone");
    refused("quant_method: hqq", &["`quant_method`", "`bnb` or `bitsandbytes`"]);
    let unsloth = "model: x/y\ndata: {dataset: a.jsonl, format_type: auto}\n\
                   training: {training_type: lora, random_seed: 3407, train_on_completions: false}\n\
                   lora: {lora_r: 8, vision_all_linear: false, use_loftq: false}\n\
                   logging: {enable_wandb: false, enable_tensorboard: true}\n";
    let (settings, notes) = noting(unsloth);
    assert_eq!((settings.lora_r, settings.seed, settings.report_to.tensorboard), (8, 3407, true));
    assert_eq!(settings.data, [PathBuf::from("a.jsonl")]);
    assert!(notes.iter().any(|note| note.contains("train_on_completions")), "{notes:?}");
}

/// One refusal, not one for each key.
#[test]
fn a_file_of_torchtune_is_told_to_be_one() {
    let file = "model:\n  _component_: torchtune.models.llama3_2.qlora_llama3_2_1b\n  lora_rank: 64\ntokenizer:\n  \
                path: tokenizer/x\nloss: {_component_: x}\ncompile: False\n";
    refused(file, &["line 2: `_component_` is a call of torchtune", "`lora_r`", "qlora-train init"]);
    let error = Settings::from_yaml(file, "cfg.yaml", &[]).unwrap_err().to_string();
    assert!(!error.contains("\nerror: "), "{error}");
}

#[test]
fn few_keys_tell_a_file_of_trl() {
    let (settings, notes) =
        noting("model_name_or_path: m\nuse_peft: true\ndataset_name: a.jsonl\nload_in_4bit: true\n");
    assert_eq!((settings.per_device_train_batch_size, settings.num_train_epochs), (8, 3.0));
    assert!(notes.iter().any(|note| note.contains("as in TRL") && note.contains("per_device_train_batch_size 8")));
    assert!(notes.iter().any(|note| note.contains("over answers")), "{notes:?}");
    assert_eq!(noting("model: m\nuse_peft: true\ndata: a.jsonl").0.per_device_train_batch_size, 1);
}

#[test]
fn answers_without_rows_to_ask_are_refused_by_the_key_that_asks() {
    let file = "base_model: m\ndatasets: [{path: a.jsonl}]\neval_table_size: 5\n";
    refused(file, &["cfg.yaml line 3: `eval_table_size`", "needs rows to ask", "3 | eval_table_size: 5"]);
    assert_eq!(noting(&format!("{file}val_set_size: 0.1\n")).0.eval_answers, 5);
    let flag = with_flag("data: a.jsonl", "eval_answers", "5").unwrap_err();
    assert!(flag.contains("`--eval-answers`") && flag.contains("needs rows to ask"), "{flag}");
}
