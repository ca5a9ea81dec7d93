use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;
use qlora_train::adapter::metadata::BASE_NAME;
use qlora_train::adapter::{
    ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, AdapterConfig, TargetModules, copy_tokenizer_files,
};
use qlora_train::arch::Projection;
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::lora::{LoraSpec, LoraTerm, ParamId};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::{adapter, base, fingerprint, module_lists, provenance};

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_saved_is_loaded(
        r in 1..9usize, alpha in prop_oneof![(1..64u32).prop_map(f64::from), 0.1..64.0], modules in module_lists(),
        seed: u64, layers in prop::option::of(Just(vec![0, 1])),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = adapter(r, alpha, &modules, seed);
        saved.config.layers_to_transform = layers;
        saved.save(dir.path()).unwrap();
        let loaded = Adapter::load(dir.path()).unwrap();
        prop_assert_eq!(&loaded, &saved);
        prop_assert_eq!(loaded.lora_pairs().unwrap().len(), 2 * modules.len());

        let again = tempfile::tempdir().unwrap();
        saved.save(again.path()).unwrap();
        for name in [ADAPTER_MODEL, ADAPTER_CONFIG, "README.md"] {
            let bytes = |dir: &Path| fs::read(dir.join(name)).unwrap();
            prop_assert!(bytes(dir.path()) == bytes(again.path()), "{} differs between two saves", name);
        }
    }
}

#[test]
fn the_config_has_pefts_keys_sorted_and_indented_by_two() {
    let dir = tempfile::tempdir().unwrap();
    adapter(8, 16.0, &[Projection::V, Projection::Q], 1).save(dir.path()).unwrap();
    let text = fs::read_to_string(dir.path().join(ADAPTER_CONFIG)).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "alpha_pattern": {}, "base_model_name_or_path": "org/tiny-llama", "bias": "none", "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null,
        "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": null, "peft_type": "LORA",
        "peft_version": "0.21.2", "r": 8, "rank_pattern": {}, "revision": "0123abc",
        "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": false
    });
    assert_eq!(config, expected);
    let keys: Vec<&str> = config.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(keys.is_sorted(), "{keys:?}");
    assert!(text.starts_with("{\n  \"alpha_pattern\": {},\n  \"base_model_name_or_path\""), "{text}");
}

#[test]
fn the_tensors_have_pefts_names_and_the_metadata_says_what_it_was_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    adapter(8, 16.0, &[Projection::Down], 1).save(dir.path()).unwrap();
    let bytes = fs::read(dir.path().join(ADAPTER_MODEL)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.tensors().into_iter().map(|(name, view)| (name, view.dtype(), view.shape().to_vec())).collect();
    tensors.sort();
    let prefix = "base_model.model.model.layers";
    let expected = [
        (format!("{prefix}.0.mlp.down_proj.lora_A.weight"), Dtype::F32, vec![8, 128]),
        (format!("{prefix}.0.mlp.down_proj.lora_B.weight"), Dtype::F32, vec![64, 8]),
        (format!("{prefix}.1.mlp.down_proj.lora_A.weight"), Dtype::F32, vec![8, 128]),
        (format!("{prefix}.1.mlp.down_proj.lora_B.weight"), Dtype::F32, vec![64, 8]),
    ];
    assert_eq!(tensors, expected);
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata: BTreeMap<_, _> = header.metadata().clone().unwrap().into_iter().collect();
    let fingerprint = fingerprint("ab");
    let template = "cd".repeat(32);
    let expected = [
        ("format", "pt"),
        ("qlora.base_fingerprint", &fingerprint.whole[..]),
        ("qlora.base_name", "org/tiny-llama"),
        ("qlora.base_revision", "0123abc"),
        ("qlora.base_unquantized_fingerprint", &fingerprint.unquantized[..]),
        ("qlora.chat_template_sha256", &template[..]),
        ("qlora.quantization", r#"{"quant_type":"nf4","block_size":64,"double_quant":false}"#),
    ];
    assert!(metadata.iter().map(|(key, value)| (&key[..], &value[..])).eq(expected), "{metadata:?}");
}

#[test]
fn the_card_has_the_front_matter_of_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let mut saved = adapter(8, 16.0, &[Projection::Q], 1);
    saved.save(dir.path()).unwrap();
    let card = fs::read_to_string(dir.path().join("README.md")).unwrap();
    let front = "---\nbase_model: org/tiny-llama\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n\
                 - base_model:adapter:org/tiny-llama\n- lora\n- transformers\n---\n";
    assert!(card.starts_with(front), "{card}");
    assert!(card.contains(&"ab".repeat(32)) && card.contains("nf4, block 64"), "{card}");
    // A local base is no id of the hub, which would reject the card, even where its path looks like one.
    saved.config.base_model_name_or_path = Some("models/my-model".into());
    saved.metadata.insert(BASE_NAME.into(), "my-model".into());
    saved.save(dir.path()).unwrap();
    let card = fs::read_to_string(dir.path().join("README.md")).unwrap();
    assert!(card.starts_with("---\nlibrary_name: peft\n") && card.contains("| Base | models/my-model |"), "{card}");
    // Somebody else's card is theirs.
    fs::write(dir.path().join("README.md"), "# mine\n").unwrap();
    saved.save(dir.path()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("README.md")).unwrap(), "# mine\n");
}

#[test]
fn saving_leaves_no_temporary_files_and_ordinary_permissions() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    let saved = adapter(4, 8.0, &[Projection::Q], 1);
    saved.save(&out).unwrap();
    saved.save(&out).unwrap();
    assert_eq!(names(&out), ["README.md", ADAPTER_CONFIG, ADAPTER_MODEL]);
    fs::write(dir.path().join("plain"), "x").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&out.join(ADAPTER_MODEL)), mode(&dir.path().join("plain")), "as any new file");
}

#[test]
fn an_adapter_that_cannot_be_saved_leaves_the_earlier_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    let good = adapter(4, 8.0, &[Projection::Q], 1);
    good.save(dir.path()).unwrap();
    let before = fs::read(dir.path().join(ADAPTER_MODEL)).unwrap();
    let mut bad = adapter(4, 8.0, &[Projection::Q], 2);
    bad.tensors.values_mut().next().unwrap().1[65] = f32::NAN;
    for use_rslora in [false, true] {
        bad.config.use_rslora = use_rslora;
        let error = bad.save(dir.path()).unwrap_err();
        assert_eq!(error.exit_status(), 1);
        let text = error.to_string();
        for word in ["not written", "layers.0.self_attn.q_proj.lora_A.weight", "NaN at row 1, column 1"] {
            assert!(text.contains(word), "{text}");
        }
    }
    assert_eq!(fs::read(dir.path().join(ADAPTER_MODEL)).unwrap(), before);
    assert_eq!(names(dir.path()), ["README.md", ADAPTER_CONFIG, ADAPTER_MODEL]);

    // A name that is taken by a directory: the rename fails, the temporary files go.
    let taken = tempfile::tempdir().unwrap();
    fs::create_dir(taken.path().join(ADAPTER_MODEL)).unwrap();
    let error = good.save(taken.path()).unwrap_err();
    assert_eq!(error.exit_status(), 1);
    assert_eq!(names(taken.path()), [ADAPTER_MODEL]);
    // A file where the directory should be.
    assert_eq!(good.save(&dir.path().join("README.md")).unwrap_err().exit_status(), 1);
}

#[test]
fn sixteen_bit_adapters_are_widened_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = adapter(4, 8.0, &[Projection::Q], 1);
    expected.save(dir.path()).unwrap();
    for dtype in [Dtype::BF16, Dtype::F16] {
        let mut stored = BTreeMap::new();
        for (name, (shape, values)) in &mut expected.tensors {
            let mut bytes = Vec::new();
            for value in values {
                let (two, rounded) = match dtype {
                    Dtype::BF16 => (bf16::from_f32(*value).to_le_bytes(), bf16::from_f32(*value).to_f32()),
                    _ => (f16::from_f32(*value).to_le_bytes(), f16::from_f32(*value).to_f32()),
                };
                bytes.extend(two);
                *value = rounded;
            }
            stored.insert(name.clone(), (shape.clone(), bytes));
        }
        let views = stored.iter().map(|(name, (s, b))| (name, TensorView::new(dtype, s.clone(), b).unwrap()));
        fs::write(dir.path().join(ADAPTER_MODEL), safetensors::serialize(views, None).unwrap()).unwrap();
        let loaded = Adapter::load(dir.path()).unwrap();
        assert_eq!(loaded.tensors, expected.tensors);
        assert_eq!(loaded.base_fingerprint(), None);
    }
}

#[test]
fn tokenizer_files_are_copied_and_nothing_else() {
    let (base, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = out.path().join("adapter");
    let wanted = ["chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];
    for name in wanted.iter().chain(&["config.json", "model.safetensors", "generation_config.json", "README.md"]) {
        fs::write(base.path().join(name), name).unwrap();
    }
    let mut copied = copy_tokenizer_files(base.path(), &out).unwrap();
    copied.sort();
    assert_eq!(copied, wanted);
    assert_eq!(names(&out), wanted);
    for name in wanted {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), name);
    }
    assert!(copy_tokenizer_files(&out, &out).unwrap().is_empty(), "onto itself");
    let empty = tempfile::tempdir().unwrap();
    assert!(copy_tokenizer_files(empty.path(), &out).unwrap().is_empty());
}

/// Every term reads back with the rank and alpha that it was given, whatever is the same and whatever differs.
fn reads_back(lora: &LoraSpec) -> AdapterConfig {
    let arch = tiny_arch();
    let mut adapter = Adapter::new(AdapterConfig::new(&base(), &arch, lora), &provenance());
    for (module, term) in &lora.terms {
        let (n, k) = arch.find(module).unwrap().1.shape(&arch);
        adapter.insert(&ParamId::a(module.as_str()), [term.r, k], vec![0.5; term.r * k]);
        adapter.insert(&ParamId::b(module.as_str()), [n, term.r], vec![0.25; n * term.r]);
    }
    let dir = tempfile::tempdir().unwrap();
    adapter.save(dir.path()).unwrap();
    let loaded = Adapter::load(dir.path()).unwrap();
    assert_eq!(loaded.lora_spec().unwrap(), *lora);
    assert_eq!(loaded.check_base(&arch, &fingerprint("ab"), &base(), false).unwrap(), [""; 0]);
    loaded.config
}

#[test]
fn ranks_and_alphas_that_differ_become_patterns() {
    let arch = tiny_arch();
    let mut lora = LoraSpec::uniform(&arch, &Projection::ALL, 4, 8.0, 0.0);
    let uniform = reads_back(&lora);
    assert!(uniform.rank_pattern.is_empty() && uniform.alpha_pattern.is_empty());
    let term = |lora: &mut LoraSpec, layer, projection, r, alpha| {
        lora.terms.insert(arch.module(layer, projection), LoraTerm::lora(r, alpha));
    };
    // In every layer, and in one.
    for layer in 0..arch.num_layers {
        term(&mut lora, layer, Projection::V, 2, 8.0);
    }
    term(&mut lora, 1, Projection::Up, 4, 3.5);
    let config = reads_back(&lora);
    assert_eq!((config.r, config.lora_alpha), (4, 8.0));
    assert_eq!(config.rank_pattern, [("v_proj".to_owned(), 2)].into());
    assert_eq!(config.alpha_pattern, [("model.layers.1.mlp.up_proj".to_owned(), 3.5)].into());
    // A term that some layers lack is named by its path.
    lora.terms.remove(&arch.module(0, Projection::Down));
    let TargetModules::Names(names) = reads_back(&lora).target_modules else { panic!("no names") };
    assert!(names.contains("model.layers.1.mlp.down_proj") && !names.contains("down_proj"), "{names:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_terms_read_back(
        terms in prop::collection::btree_map((0..2usize, 0..7usize), (1..4usize, 1..4u32), 1..14), dropout in 0.0..0.9f64,
    ) {
        let arch = tiny_arch();
        let terms = terms.into_iter().map(|((layer, projection), (r, alpha))| {
            (arch.module(layer, Projection::ALL[projection]), LoraTerm::lora(r, f64::from(alpha)))
        });
        reads_back(&LoraSpec { terms: terms.collect(), dropout, ..LoraSpec::default() });
    }
}
