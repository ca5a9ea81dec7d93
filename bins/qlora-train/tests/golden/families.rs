//! Families of models on tiny random checkpoints, beside transformers and PEFT, and what their config.json may say.

use super::{Cut, Tensors, json, spec, tensors, workspace};
use qlora_train::arch::{Activation, Arch, Multipliers, NormWeight, Projection, QkNorm, Rope, RopeScaling};
use qlora_train::backend::cpu::Cpu;
use qlora_train::backend::{Batch, Quantization};
use qlora_train::base::Checkpoint;
use qlora_train::data::{MicroBatch, Row};
use qlora_train::lora::LoraSpec;
use qlora_train::model::{Llama, ModelSpec};
use serde_json::Value;
use std::path::Path;

/// f32 against f32 on a tiny random model: logits of the base, and the loss and every gradient of a LoRA step, with all
/// documents in one batch.
#[track_caller]
fn follows_transformers_and_peft(family: &str) {
    let [logits, loss, gradients] = apart_from_transformers_and_peft(family, |_| ());
    println!("{family}: logits within {logits:.1e}, loss {loss:.1e}, gradients {gradients:.1e}");
    assert!(logits <= 1e-5, "logits {logits}");
    assert!(loss <= 1e-5, "loss {loss}");
    assert!(gradients <= 1e-4, "gradients {gradients}");
}

/// The documents of a family's golden files: one, or several that are packed into one row.
pub(super) fn documents(expected: &Tensors) -> Vec<Row> {
    let tokens = expected["input_ids"].len();
    let lengths =
        expected.get("documents").map_or(vec![tokens], |lengths| lengths.iter().map(|&n| n as usize).collect());
    let mut start = 0;
    let document = |len: usize| {
        let range = start..start + len;
        start += len;
        Row {
            input_ids: expected["input_ids"][range.clone()].iter().map(|&id| id as u32).collect(),
            labels: expected["labels"][range].iter().map(|&id| id as i32).collect(),
            weights: Vec::new(),
            file: 0,
            line: 0,
            task: None,
        }
    };
    lengths.into_iter().map(document).collect()
}

/// The largest difference over the largest value.
pub(super) fn worst(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    ours.iter().zip(theirs).fold(0.0f64, |a, (&x, y)| a.max((f64::from(x) - y).abs())) / largest
}

/// The base of a family's golden files, with terms of their rank on every projection where `lora` has values.
pub(super) fn model(checkpoint: &Checkpoint, spec: &ModelSpec, lora: Tensors) -> (Cpu, Llama<Cpu>) {
    let mut spec = spec.clone();
    if !lora.is_empty() {
        let all: Vec<Projection> = spec.arch.names.all().collect();
        spec.lora = LoraSpec::uniform(&spec.arch, &all, 3, 6.0, 0.0);
        spec.trainable = true;
    }
    let mut cpu = Cpu::new(spec.run_shape());
    let model = Llama::build(&mut cpu, &mut Cut { checkpoint, lora }, spec, &mut |_| ()).unwrap();
    (cpu, model)
}

/// The logits of every token of the documents.
pub(super) fn logits(checkpoint: &Checkpoint, spec: &ModelSpec, micro: &MicroBatch) -> Vec<f32> {
    let (mut cpu, model) = model(checkpoint, spec, Tensors::new());
    let all: Vec<usize> = (0..micro.tokens()).collect();
    model.logits(&mut cpu, &Batch::from(micro), &all).unwrap().concat()
}

/// The values of A and B that a family's golden files begin with.
pub(super) fn values(expected: &Tensors) -> Tensors {
    expected.iter().filter_map(|(name, values)| Some((name.strip_prefix("value.")?.into(), values.clone()))).collect()
}

/// How far logits, loss and gradients are from a family's golden files, if the model is `changed`.
fn apart_from_transformers_and_peft(family: &str, changed: fn(&mut Arch)) -> [f64; 3] {
    let checkpoint = Checkpoint::open(&workspace().join("tests/golden").join(family)).unwrap();
    let expected = tensors(&format!("{family}/expected.safetensors"));
    let micro = MicroBatch::new(&documents(&expected));
    let mut spec = spec(&checkpoint, checkpoint.arch().num_layers, Quantization::None, micro.tokens());
    changed(&mut spec.arch);
    let logits = worst(&logits(&checkpoint, &spec, &micro), &expected["logits"]);

    let (mut cpu, mut model) = model(&checkpoint, &spec, values(&expected));
    let supervised = expected["labels"].iter().filter(|&&label| label >= 0.0).count() as f64;
    let loss =
        model.forward_backward(&mut cpu, &Batch::from(&micro), 0, (1.0 / supervised) as f32).unwrap() / supervised;
    let loss = (loss / expected["loss"][0] - 1.0).abs();
    let params = model.params_mut();
    assert_eq!(params.len(), expected.keys().filter(|name| name.starts_with("gradient.")).count());
    let gradients = params
        .into_iter()
        .map(|(id, param)| worst(param.gradient(), &expected[&format!("gradient.{}", id.peft_key())]));
    [logits, loss, gradients.fold(0.0, f64::max)]
}

/// With large biases on q, k and v.
#[test]
fn a_qwen2_follows_transformers_and_peft() {
    follows_transformers_and_peft("qwen2");
}

/// Heads of another width than hidden size / heads, normalized with a weight for queries and one for keys.
#[test]
fn a_qwen3_follows_transformers_and_peft() {
    follows_transformers_and_peft("qwen3");
}

/// A window on every layer, documents that are longer and shorter than it.
#[test]
fn a_mistral_follows_transformers_and_peft() {
    follows_transformers_and_peft("mistral");
}

/// A window on the second of two layers.
#[test]
fn a_qwen3_with_a_window_follows_transformers_and_peft() {
    follows_transformers_and_peft("qwen3-window");
}

/// Another window than the files' is seen: none, one key more, one less, or another layer's.
#[test]
fn the_golden_files_see_another_window() {
    type Change = fn(&mut Arch);
    let changes: [(&str, Change); 6] = [
        ("mistral", |arch| arch.layers[0].window = None),
        ("mistral", |arch| arch.layers[0].window = Some(7)),
        ("mistral", |arch| arch.layers[0].window = Some(5)),
        ("qwen3-window", |arch| arch.layers[1].window = None),
        ("qwen3-window", |arch| arch.layers[1].window = Some(6)),
        ("qwen3-window", |arch| arch.layers.swap(0, 1)),
    ];
    for (family, change) in changes {
        let apart = apart_from_transformers_and_peft(family, change);
        assert!(apart.iter().all(|apart| *apart > 1e-3), "{family}: {apart:?}");
    }
}

/// A layer whose queries and keys are not rotated, and two documents.
#[test]
fn a_smollm3_follows_transformers_and_peft() {
    follows_transformers_and_peft("smollm3");
}

/// A window on the layer that is not rotated.
#[test]
fn a_smollm3_with_a_window_follows_transformers_and_peft() {
    follows_transformers_and_peft("smollm3-window");
}

/// All four multipliers, and two documents.
#[test]
fn a_granite_follows_transformers_and_peft() {
    follows_transformers_and_peft("granite");
}

/// Gate and up in one tensor, and all four multipliers.
#[test]
fn a_dense_granite_4_follows_transformers_and_peft() {
    follows_transformers_and_peft("granitemoehybrid");
}

/// YaRN up to the trained context, and two documents.
#[test]
fn a_ministral_3_follows_transformers_and_peft() {
    follows_transformers_and_peft("ministral3");
}

/// Text models inside larger ones, whose logits for text are those of the larger; of what reads images, the files hold
/// one tensor.
#[test]
fn text_models_inside_larger_ones_follow_transformers() {
    for (name, family) in
        [("gemma3", "gemma3_text"), ("mistral3", "mistral"), ("qwen2_5_vl", "qwen2"), ("qwen3_vl", "qwen3")]
    {
        let checkpoint = Checkpoint::open(&workspace().join("tests/golden/wrapped").join(name)).unwrap();
        let arch = checkpoint.arch();
        assert!(arch.family.model_type == family && arch.wrapper.is_some(), "{name}");
        let note = checkpoint.notes().concat();
        assert!(
            note.contains("text model") && note.contains(arch.family.architecture) && note.contains(" 1 tensor"),
            "{note}"
        );
        let mut expected = tensors(&format!("wrapped/{name}/expected.safetensors"));
        expected.insert("labels".to_owned(), vec![-100.0; expected["input_ids"].len()]);
        let micro = MicroBatch::new(&documents(&expected));
        let spec = spec(&checkpoint, arch.num_layers, Quantization::None, micro.tokens());
        let apart = worst(&logits(&checkpoint, &spec, &micro), &expected["logits"]);
        println!("{name}: logits within {apart:.1e}");
        assert!(apart <= 1e-5, "{name}: logits {apart}");
    }
}

/// Biases on q, k and v, heads of another width than hidden size / heads, and two documents.
#[test]
fn a_seed_oss_follows_transformers_and_peft() {
    follows_transformers_and_peft("seed_oss");
}

/// Norms of what branches give, and of all queries and all keys; two documents.
#[test]
fn an_olmo2_follows_transformers_and_peft() {
    follows_transformers_and_peft("olmo2");
}

/// A window on the first of two layers, and a rotation that is scaled on the second alone.
#[test]
fn an_olmo3_follows_transformers_and_peft() {
    follows_transformers_and_peft("olmo3");
}

/// Fused projections, whose terms are those of the fused tensors, and heads that are rotated in part; two documents.
#[test]
fn a_phi3_follows_transformers_and_peft() {
    follows_transformers_and_peft("phi3");
}

/// LongRoPE beyond the trained context, and a window.
#[test]
fn a_phi3_with_long_rotary_positions_follows_transformers_and_peft() {
    follows_transformers_and_peft("phi3-long");
}

/// Norms around both branches that multiply by 1 + w, gelu, a scaled embedding, scores with a scale of their own, and
/// a window with its own rotation.
#[test]
fn a_gemma3_follows_transformers_and_peft() {
    follows_transformers_and_peft("gemma3");
}

/// Norms in another place or of another width than the files' are seen, and the other layer's rotation.
#[test]
fn the_golden_files_see_other_norms_and_rotations() {
    type Change = fn(&mut Arch);
    let changes: [(&str, Change); 10] = [
        ("phi3", |arch| arch.layers[0].rope.as_mut().unwrap().partial = 1.0),
        ("phi3-long", |arch| arch.layers[0].rope.as_mut().unwrap().scaling = RopeScaling::Default),
        ("phi3-long", |arch| match &mut arch.layers[0].rope.as_mut().unwrap().scaling {
            RopeScaling::LongRope { original_max_position_embeddings, .. } => *original_max_position_embeddings = 64,
            _ => unreachable!(),
        }),
        ("gemma3", |arch| arch.norm.weight = NormWeight::Plain),
        ("gemma3", |arch| arch.activation = Activation::Silu),
        ("gemma3", |arch| arch.multipliers.attention = None),
        ("gemma3", |arch| arch.multipliers.embedding = 1.0),
        ("olmo3", |arch| arch.layers[1].rope = arch.layers[0].rope.clone()),
        ("olmo3", |arch| arch.layers[0].rope = arch.layers[1].rope.clone()),
        ("olmo2", |arch| arch.norm.weight = NormWeight::OnePlus),
    ];
    for (family, change) in changes {
        let apart = apart_from_transformers_and_peft(family, change);
        assert!(apart.iter().all(|apart| *apart > 1e-4), "{family}: {apart:?}");
    }
}

/// Each of these values of a key of the family's config.json is refused, and the error names the key.
#[track_caller]
fn refused_by_key(config: &serde_json::Map<String, Value>, cases: &[(&str, Value)]) {
    for (key, value) in cases {
        let mut config = config.clone();
        config.insert((*key).into(), value.clone());
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{key}: {error}");
    }
}

#[test]
fn a_qwen2_that_would_be_computed_otherwise_is_refused_by_key() {
    let Value::Object(config) = json("qwen2/config.json") else { panic!("config.json is no object") };
    let mut windowed = config.clone();
    windowed.insert("sliding_window".into(), Value::from(4096));
    let arch = Arch::from_json(Path::new("config.json"), &windowed).unwrap();
    assert_eq!(arch.biases, [Projection::Q, Projection::K, Projection::V].into());
    assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
    let cases = [
        ("use_sliding_window", Value::from(1)),
        ("use_mrope", Value::from(true)),
        // A window that no key turns on, and lists that are not of this model's layers.
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("layer_types", Value::from(vec!["full_attention"])),
        ("layer_types", Value::from(vec!["full_attention", "linear_attention"])),
        ("layer_types", Value::from("full_attention")),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["LlamaForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
}

#[test]
fn a_qwen3_that_would_be_computed_otherwise_is_refused_by_key() {
    let Value::Object(config) = json("qwen3/config.json") else { panic!("config.json is no object") };
    let read = |change: fn(&mut serde_json::Map<String, Value>)| {
        let mut config = config.clone();
        change(&mut config);
        Arch::from_json(Path::new("config.json"), &config).unwrap()
    };
    let arch = read(|_| ());
    assert!(arch.qk_norm == QkNorm::Head && arch.biases.is_empty() && arch.head_dim == 12);
    let biased = read(|config| _ = config.insert("attention_bias".into(), true.into()));
    assert_eq!(biased.biases, Projection::ATTENTION.into());
    assert_eq!(read(|config| _ = config.remove("head_dim")).head_dim, 128);
    for arch in [arch, biased] {
        assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
    }
    let cases = [
        ("use_sliding_window", Value::from("yes")),
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["Qwen2ForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
}

/// What transformers' Qwen2Config and Qwen3Config make of the keys of a window.
#[test]
fn layers_of_a_qwen_have_the_windows_that_its_keys_say() {
    let Value::Object(config) = json("qwen3-window/config.json") else { panic!("config.json is no object") };
    for model_type in ["qwen2", "qwen3"] {
        let read = |changes: &[(&str, Value)]| {
            let mut config = config.clone();
            config.insert("model_type".into(), model_type.into());
            config.insert("architectures".into(), Value::Null);
            config.insert("num_hidden_layers".into(), 4.into());
            config.remove("layer_types");
            config.extend(changes.iter().map(|(key, value)| ((*key).into(), value.clone())));
            let arch = Arch::from_json(Path::new("config.json"), &config).unwrap();
            assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
            assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json_v4("bfloat16")).unwrap(), arch);
            (0..4).map(|layer| arch.layer(layer).window).collect::<Vec<_>>()
        };
        let some = Some(5);
        assert_eq!(read(&[]), [None, some, some, some]);
        assert_eq!(read(&[("max_window_layers", 0.into())]), [some; 4]);
        assert_eq!(read(&[("max_window_layers", Value::Null)]), [None; 4]);
        assert_eq!(read(&[("sliding_window", Value::Null)]), [None; 4]);
        assert_eq!(read(&[("use_sliding_window", false.into())]), [None; 4]);
        let listed = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
        assert_eq!(read(&[("layer_types", listed.to_vec().into())]), [some, None, some, None]);
    }
    let cases = [
        ("sliding_window", Value::from(0)),
        ("sliding_window", Value::from(-4)),
        ("sliding_window", Value::from(2.5)),
        ("sliding_window", Value::from("4096")),
        ("sliding_window", Value::from(1u64 << 40)),
        ("max_window_layers", Value::from(-1)),
    ];
    refused_by_key(&config, &cases);
}

#[test]
fn a_mistral_has_the_window_that_its_config_says() {
    let Value::Object(config) = json("mistral/config.json") else { panic!("config.json is no object") };
    let read = |change: fn(&mut serde_json::Map<String, Value>)| {
        let mut config = config.clone();
        change(&mut config);
        let arch = Arch::from_json(Path::new("config.json"), &config).unwrap();
        assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
        assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json_v4("bfloat16")).unwrap(), arch);
        [0, 1].map(|layer| arch.layer(layer).window)
    };
    assert_eq!(read(|_| ()), [Some(6); 2]);
    assert_eq!(read(|config| _ = config.remove("sliding_window")), [Some(4096); 2]);
    assert_eq!(read(|config| _ = config.insert("sliding_window".into(), Value::Null)), [None; 2]);
    assert_eq!(
        read(|config| _ = config.insert("layer_types".into(), vec!["sliding_attention"; 2].into())),
        [Some(6); 2]
    );
    let cases = [
        ("sliding_window", Value::from(0)),
        ("sliding_window", Value::from(true)),
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("layer_types", Value::from(vec!["sliding_attention"])),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["MistralForSequenceClassification"])),
        ("head_dim", Value::from(7)),
    ];
    refused_by_key(&config, &cases);
    // Without any key it is MistralConfig(), the first Mistral 7B.
    let Value::Object(bare) = serde_json::json!({ "model_type": "mistral" }) else { unreachable!() };
    let arch = Arch::from_json(Path::new("config.json"), &bare).unwrap();
    assert_eq!((arch.num_parameters(), arch.layer(31).window), (Some(7_241_732_096), Some(4096)));
}

/// The architecture of a family's golden config.json after `change`, which its config.json written anew gives again.
#[track_caller]
fn read_changed(config: &serde_json::Map<String, Value>, change: &[(&str, Option<Value>)]) -> Arch {
    let mut config = config.clone();
    for (key, value) in change {
        match value {
            Some(value) => config.insert((*key).into(), value.clone()),
            None => config.remove(*key),
        };
    }
    let arch = Arch::from_json(Path::new("config.json"), &config).unwrap();
    for again in [arch.to_json("bfloat16"), arch.to_json_v4("bfloat16")] {
        assert_eq!(Arch::from_json(Path::new("config.json"), &again).unwrap(), arch);
    }
    arch
}

#[test]
fn a_smollm3_reads_which_layers_are_rotated_and_refuses_by_key() {
    let Value::Object(config) = json("smollm3/config.json") else { panic!("config.json is no object") };
    let rotated = |change: &[(&str, Option<Value>)]| {
        let arch = read_changed(&config, change);
        (0..arch.num_layers).map(|layer| usize::from(arch.layer(layer).rope.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(rotated(&[]), [1, 0]);
    let flags = |flags: &[u8]| Some(Value::from(flags.to_vec()));
    assert_eq!(rotated(&[("no_rope_layers", flags(&[0, 1, 1, 0]))]), [0, 1]);
    let layers = |n: usize| ("num_hidden_layers", Some(Value::from(n)));
    let without = [("no_rope_layers", None), ("layer_types", None), ("no_rope_layer_interval", None), layers(6)];
    assert_eq!(rotated(&without), [1, 1, 1, 0, 1, 1]);
    assert_eq!(rotated(&[("no_rope_layer_interval", Some(Value::from(u64::MAX))), ("no_rope_layers", None)]), [1, 1]);
    let defaults = [("rope_parameters", None), ("tie_word_embeddings", None), ("attention_bias", Some(true.into()))];
    let arch = read_changed(&config, &defaults);
    assert!(arch.rope().theta == 2e6 && arch.tie_word_embeddings && arch.biases == Projection::ATTENTION.into());
    let windows = |change: &[(&str, Option<Value>)]| {
        let used = [("use_sliding_window", Some(true.into())), ("sliding_window", Some(9.into()))];
        let arch = read_changed(&config, &[&used, change].concat());
        [0, 1].map(|layer| arch.layer(layer).window)
    };
    let kinds = |kinds: [&str; 2]| ("layer_types", Some(Value::from(kinds.to_vec())));
    assert_eq!(windows(&[("layer_types", None)]), [None, Some(9)]);
    assert_eq!(windows(&[kinds(["sliding_attention", "full_attention"])]), [Some(9), None]);
    assert_eq!(windows(&[("layer_types", None), ("sliding_window", Some(Value::Null))]), [None; 2]);
    let cases = [
        ("no_rope_layers", Value::from(vec![1])),
        ("no_rope_layers", Value::from(vec![1, 2])),
        ("no_rope_layers", Value::from("1")),
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("use_sliding_window", Value::from(1)),
        ("num_hidden_layers", Value::from(i32::MAX)),
        ("architectures", Value::from(vec!["LlamaForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
    let mut zero = config.clone();
    zero.remove("no_rope_layers");
    refused_by_key(&zero, &[("no_rope_layer_interval", Value::from(0))]);
    let mut none = config.clone();
    none.insert("no_rope_layers".into(), Value::from(vec![0, 0]));
    let error = Arch::from_json(Path::new("config.json"), &none).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("no layer with rotary positions"), "{error}");
}

#[test]
fn a_granite_reads_its_multipliers_and_refuses_by_key() {
    let Value::Object(config) = json("granite/config.json") else { panic!("config.json is no object") };
    let multipliers = |embedding, attention, residual, logits_scaling| Multipliers {
        embedding,
        attention: Some(attention),
        residual,
        logits_scaling,
        ..Multipliers::NONE
    };
    assert_eq!(read_changed(&config, &[]).multipliers, multipliers(12.0, 0.2, 0.22, 6.0));
    let keys = ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"];
    let arch = read_changed(&config, &keys.map(|key| (key, None)));
    // Not 1 / sqrt(head_dim): a config without the key has scores that are not scaled.
    assert_eq!(arch.multipliers, multipliers(1.0, 1.0, 1.0, 1.0));
    for key in keys {
        let values = [0.0, -1.0, 1e-50, 1e300].map(Value::from).into_iter().chain([Value::from("12")]);
        refused_by_key(&config, &values.map(|value| (key, value)).collect::<Vec<_>>());
    }
    // Each alone is a number of f32; what the model divides is none.
    refused_by_key(
        &config,
        &[("embedding_multiplier", Value::from(3e38)), ("residual_multiplier", Value::from(1e-30))],
    );
    let biased = read_changed(&config, &[("mlp_bias", Some(true.into()))]);
    assert_eq!(biased.biases, Projection::MLP.into());
}

/// Kinds of layers as IBM publishes them and as transformers 5 writes them; what is not dense is refused by its key.
#[test]
fn a_granite_4_is_read_where_it_is_dense() {
    let Value::Object(config) = json("granitemoehybrid/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert_eq!((arch.intermediate_size, arch.multipliers.residual), (56, 0.22));
    assert_eq!(arch.names.short_names(), "q_proj, k_proj, v_proj, o_proj, input_linear, output_linear");
    let published = Some(vec!["attention"; 2].into());
    assert_eq!(read_changed(&config, &[("layer_types", published), ("intermediate_size", Some(8192.into()))]), arch);
    let biased = read_changed(&config, &[("attention_bias", Some(true.into()))]);
    assert_eq!(biased.biases, Projection::ATTENTION.into());
    let cases = [
        ("num_local_experts", Value::from(8)),
        ("num_local_experts", Value::Null),
        ("layer_types", Value::from(vec!["mamba", "attention"])),
        ("layer_types", Value::from(vec!["attention"])),
        ("layer_types", Value::Null),
        ("position_embedding_type", Value::from("nope")),
        ("position_embedding_type", Value::Null),
        ("shared_intermediate_size", Value::from(0)),
        ("shared_intermediate_size", Value::from(u64::MAX >> 1)),
        ("hidden_act", Value::from("gelu")),
        ("attention_multiplier", Value::from(0)),
    ];
    refused_by_key(&config, &cases);
}

#[test]
fn a_ministral_3_has_rows_up_to_its_trained_context() {
    let Value::Object(config) = json("ministral3/config.json") else { panic!("config.json is no object") };
    assert_eq!(read_changed(&config, &[]).max_position_embeddings, 16);
    let bare = read_changed(&serde_json::Map::from_iter([("model_type".into(), "ministral3".into())]), &[]);
    assert_eq!((bare.max_position_embeddings, bare.head_dim, bare.rope().theta), (16_384, 128, 1e6));
    let mut still = config["rope_parameters"].clone();
    still["llama_4_scaling_beta"] = 0.into();
    let arch = read_changed(&config, &[("rope_parameters", Some(still.clone())), ("sliding_window", Some(4.into()))]);
    assert_eq!((arch.max_position_embeddings, arch.layer(1).window), (64, Some(4)));
    refused_by_key(&config, &[("rope_parameters", serde_json::json!({"rope_type": "default"}))]);
    // No other family's queries grow.
    let Value::Object(mut mistral) = json("mistral/config.json") else { panic!("config.json is no object") };
    mistral.insert("rope_parameters".into(), config["rope_parameters"].clone());
    let error = Arch::from_json(Path::new("config.json"), &mistral).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("`llama_4_scaling_beta`"), "{error}");
}

#[test]
fn a_seed_oss_reads_where_it_has_biases() {
    let Value::Object(config) = json("seed_oss/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[("attention_bias", None), ("head_dim", None)]);
    assert!(arch.biases == [Projection::Q, Projection::K, Projection::V].into() && arch.head_dim == 128);
    assert_eq!(read_changed(&config, &[("head_dim", Some(Value::Null))]).head_dim, 8);
    let change = ["attention_out_bias", "mlp_bias"].map(|key| (key, Some(true.into())));
    assert_eq!(read_changed(&config, &change).biases, Projection::ALL.into());
    refused_by_key(&config, &[("hidden_act", Value::from("gelu")), ("mlp_bias", Value::from(1))]);
}

#[test]
fn an_olmo_reads_its_norms_windows_and_rotations() {
    let Value::Object(config) = json("olmo2/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[("attention_bias", Some(true.into())), ("rope_parameters", None)]);
    assert!(arch.qk_norm == QkNorm::Width && arch.biases == Projection::ATTENTION.into() && arch.rope().theta == 1e4);
    let cases = [("layer_types", Value::from(vec!["sliding_attention"; 2])), ("sliding_window", Value::from(8))];
    refused_by_key(&config, &cases);

    let Value::Object(config) = json("olmo3/config.json") else { panic!("config.json is no object") };
    let windows = |change: &[(&str, Option<Value>)]| {
        let arch = read_changed(&config, change);
        (0..arch.num_layers).map(|layer| arch.layer(layer).window).collect::<Vec<_>>()
    };
    let some = Some(6);
    assert_eq!(windows(&[]), [some, None]);
    assert_eq!(
        windows(&[("layer_types", None), ("num_hidden_layers", Some(5.into()))]),
        [some, some, some, None, some]
    );
    assert_eq!(windows(&[("layer_types", None), ("sliding_window", None)]), [Some(4096); 2]);
    let arch = read_changed(&config, &[]);
    assert_eq!(arch.layer(0).rope, Some(Rope::new(500.0, RopeScaling::Default)));
    assert!(matches!(
        arch.layer(1).rope.as_ref().unwrap().scaling,
        RopeScaling::Yarn { factor: 4.0, attention_factor: 1.2, .. }
    ));
    // As published: one theta, and a scaling for layers that see everything.
    let published = [
        ("rope_parameters", None),
        ("rope_theta", Some(7e5.into())),
        ("rope_scaling", Some(serde_json::json!({"rope_type": "linear", "factor": 8.0}))),
    ];
    let arch = read_changed(&config, &published);
    assert_eq!(arch.layer(0).rope, Some(Rope::new(7e5, RopeScaling::Default)));
    assert_eq!(arch.layer(1).rope, Some(Rope::new(7e5, RopeScaling::Linear { factor: 8.0 })));
    assert_eq!(read_changed(&config, &published[..1]).rope().theta, 5e5);
    let cases = [
        ("sliding_window", Value::Null),
        ("layer_types", Value::from(vec!["sliding_attention"])),
        ("rope_scaling", serde_json::json!({"rope_type": "linear", "factor": 8.0})),
    ];
    refused_by_key(&config, &cases);
    for (key, parameters) in [
        ("factor", serde_json::json!({"full_attention": {"rope_type": "yarn", "factor": -1.0}})),
        ("rope_type", serde_json::json!({"sliding_attention": {}, "rope_type": "default"})),
        ("rope_theta", serde_json::json!({"sliding_attention": {"rope_theta": 0.0}})),
    ] {
        let mut config = config.clone();
        config.insert("rope_parameters".into(), parameters);
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{key}: {error}");
    }
}

#[test]
fn a_phi3_reads_its_rotation_and_refuses_by_key() {
    let Value::Object(config) = json("phi3/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert_eq!((arch.rope().partial, arch.rope().rotary_dim(8), arch.layer(0).window), (0.75, 6, None));
    assert_eq!(arch.names.short_names(), "qkv_proj, o_proj, gate_up_proj, down_proj");
    let window = read_changed(&config, &[("sliding_window", Some(2047.into()))]);
    assert_eq!(window.layer(1).window, Some(2047));
    // As Phi-3 mini 128k is published.
    let long = |factors: usize| serde_json::json!({"type": "su", "short_factor": vec![1.05; 4], "long_factor": vec![2.5; factors]});
    let published = |factors: usize| {
        [
            ("rope_parameters", None),
            ("rope_scaling", Some(long(factors))),
            ("max_position_embeddings", Some(131_072.into())),
            ("original_max_position_embeddings", Some(4096.into())),
            ("partial_rotary_factor", None),
        ]
    };
    let RopeScaling::LongRope { attention_factor, .. } = read_changed(&config, &published(4)).rope().scaling else {
        panic!("no LongRoPE")
    };
    assert_eq!(attention_factor, (1.0 + 32f64.ln() / 4096f64.ln()).sqrt());
    let mut wrong = config.clone();
    for (key, value) in published(3) {
        wrong.insert(key.into(), value.unwrap_or_default());
    }
    let error = Arch::from_json(Path::new("config.json"), &wrong).unwrap_err().to_string();
    assert!(error.contains("`long_factor`") && error.contains("found 3 numbers, expected 4"), "{error}");
    let cases = [
        ("sliding_window", Value::from(0)),
        ("attention_bias", Value::from(true)),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["LlamaForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
    for (key, value) in [
        ("partial_rotary_factor", serde_json::json!({"partial_rotary_factor": 1.5})),
        ("partial_rotary_factor", serde_json::json!({"partial_rotary_factor": 0.4})),
        ("short_factor", serde_json::json!({"rope_type": "longrope", "long_factor": [1, 1, 1]})),
        (
            "long_factor",
            serde_json::json!({"rope_type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 0, 1]}),
        ),
    ] {
        let mut config = config.clone();
        config.insert("rope_parameters".into(), value);
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{key}: {error}");
    }
    // Other families rotate whole heads.
    let Value::Object(llama) = serde_json::json!({"model_type": "llama"}) else { unreachable!() };
    refused_by_key(&llama, &[("partial_rotary_factor", Value::from(0.75))]);
}

#[test]
fn a_gemma3_reads_its_layers_and_scales_and_refuses_by_key() {
    let Value::Object(config) = json("gemma3/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert_eq!(arch.multipliers.attention, Some(24f64.powf(-0.5) as f32));
    assert!(arch.multipliers.embedding == 32f32.sqrt() && arch.multipliers.embedding_is_rounded);
    assert!(arch.norm.weight == NormWeight::OnePlus && arch.activation == Activation::GeluTanh);
    assert_eq!(arch.layer(0).rope, Some(Rope::new(500.0, RopeScaling::Default)));
    assert_eq!(arch.layer(1).rope, Some(Rope::new(10_000.0, RopeScaling::Linear { factor: 2.0 })));
    // As published: the keys of transformers v4, five layers of six with a window.
    let published = [
        ("rope_parameters", None),
        ("layer_types", None),
        ("query_pre_attn_scalar", Some(12.into())),
        ("rope_theta", Some(1e6.into())),
        ("rope_local_base_freq", Some(1e4.into())),
        ("sliding_window_pattern", Some(6.into())),
        ("num_hidden_layers", Some(7.into())),
    ];
    let arch = read_changed(&config, &published);
    let windows: Vec<bool> = (0..7).map(|layer| arch.layer(layer).window.is_some()).collect();
    assert_eq!(windows, [true, true, true, true, true, false, true]);
    assert_eq!(arch.multipliers.attention, None);
    assert_eq!([5, 6].map(|layer| arch.layer(layer).rope.as_ref().unwrap().theta), [1e6, 1e4]);
    let Value::Object(bare) = serde_json::json!({ "model_type": "gemma3_text" }) else { unreachable!() };
    let arch = read_changed(&bare, &[]);
    assert_eq!((arch.head_dim, arch.layer(0).window, arch.rope().theta), (256, Some(4096), 1e4));
    let cases = [
        ("hidden_activation", Value::from("gelu")),
        ("use_bidirectional_attention", Value::from(true)),
        ("query_pre_attn_scalar", Value::from(0)),
        ("attn_logit_softcapping", Value::from(-1)),
        ("sliding_window", Value::Null),
    ];
    refused_by_key(&config, &cases);
    refused_by_key(&bare, &[("sliding_window_pattern", Value::from(0)), ("rope_local_base_freq", Value::from(-1))]);
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        let mut config = config.clone();
        config.insert(key.into(), 30.into());
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("soft cap"), "{error}");
    }
}
