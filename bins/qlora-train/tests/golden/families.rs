//! Families of models on tiny random checkpoints, beside transformers and PEFT.

use super::{Cut, Tensors, cosine, spec, tensors, workspace};
use qlora_train::arch::{Activation, Arch, NormWeight, Projection, QkNorm, RopeScaling};
use qlora_train::backend::cpu::Cpu;
use qlora_train::backend::{Batch, Quantization};
use qlora_train::base::Checkpoint;
use qlora_train::data::{MicroBatch, Row};
use qlora_train::lora::LoraSpec;
use qlora_train::model::{Llama, ModelSpec};

/// f32 against f32 on a tiny random model: logits of the base, and the loss and every gradient of a LoRA step, with all
/// documents in one batch.
#[track_caller]
fn follows_transformers_and_peft(family: &str) {
    let [logits, loss, gradients, angle] = apart_from_transformers_and_peft(family, |_| ());
    println!(
        "{family}: logits within {logits:.1e}, loss {loss:.1e}, gradients {gradients:.1e}, their cosines {angle:.1e} below 1"
    );
    assert!(logits <= 1e-5, "logits {logits}");
    assert!(loss <= 1e-5, "loss {loss}");
    assert!(gradients <= 1e-4, "gradients {gradients}");
    assert!(angle <= 1e-5, "cosine 1 - {angle}");
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

/// Distances of logits, loss and gradients from a family's golden files, and of the least cosine of a gradient from 1,
/// if the model is `changed`.
fn apart_from_transformers_and_peft(family: &str, changed: fn(&mut Arch)) -> [f64; 4] {
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
    let (mut gradients, mut angle) = (0.0f64, 0.0f64);
    for (id, param) in params {
        let theirs = &expected[&format!("gradient.{}", id.peft_key())];
        gradients = gradients.max(worst(param.gradient(), theirs));
        let ours: Vec<f64> = param.gradient().iter().map(|&x| f64::from(x)).collect();
        angle = angle.max(1.0 - cosine(ours.iter().zip(theirs).map(|(ours, theirs)| (ours, theirs, 0.0))));
    }
    [logits, loss, gradients, angle]
}

/// Frequencies that are scaled as in Llama 3.1, and two documents.
#[test]
fn a_llama_follows_transformers_and_peft() {
    follows_transformers_and_peft("llama");
}

/// Norms of queries and keys after their rotation, whose base is stretched, and two documents.
#[test]
fn a_hunyuan_follows_transformers_and_peft() {
    follows_transformers_and_peft("hunyuan_v1_dense");
}

/// With large biases on q, k and v, and two documents.
#[test]
fn a_qwen2_follows_transformers_and_peft() {
    follows_transformers_and_peft("qwen2");
}

/// Heads of another width than hidden size / heads, normalized with a weight for queries and one for keys; two
/// documents.
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
        assert!(apart[..3].iter().all(|apart| *apart > 1e-3) && apart[3] > 1e-5, "{family}: {apart:?}");
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
    for (name, family) in [
        ("gemma3", "gemma3_text"),
        ("mistral3", "mistral"),
        ("ministral3", "ministral3"),
        ("qwen2_5_vl", "qwen2"),
        ("qwen3_vl", "qwen3"),
    ] {
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

/// Soft caps of scores and logits, norms around both branches, a window on the first of two layers.
#[test]
fn a_gemma2_follows_transformers_and_peft() {
    follows_transformers_and_peft("gemma2");
}

/// Norms around both branches that multiply by 1 + w, gelu, a scaled embedding, scores with a scale of their own, and
/// a window with its own rotation.
#[test]
fn a_gemma3_follows_transformers_and_peft() {
    follows_transformers_and_peft("gemma3");
}

/// Norms in another place or of another width than the files' are seen, norms on the other side of the rotation, the
/// other layer's rotation, multipliers and soft caps.
#[test]
fn the_golden_files_see_other_norms_rotations_multipliers_and_caps() {
    type Change = fn(&mut Arch);
    let changes: [(&str, Change); 25] = [
        ("llama", |arch| arch.layers[0].rope.as_mut().unwrap().scaling = RopeScaling::Default),
        ("qwen3", |arch| arch.qk_norm = QkNorm::HeadRotated),
        ("gemma3", |arch| arch.qk_norm = QkNorm::HeadRotated),
        ("hunyuan_v1_dense", |arch| arch.qk_norm = QkNorm::Head),
        ("hunyuan_v1_dense", |arch| arch.layers[0].rope.as_mut().unwrap().theta = 100.0),
        ("granite", |arch| arch.multipliers.embedding = 1.0),
        ("granite", |arch| arch.multipliers.attention = None),
        ("granite", |arch| arch.multipliers.residual = 1.0),
        ("granite", |arch| arch.multipliers.logits_scaling = 1.0),
        ("granitemoehybrid", |arch| arch.multipliers.residual *= 1.01),
        ("gemma2", |arch| arch.attention_soft_cap = None),
        ("gemma2", |arch| arch.attention_soft_cap = arch.attention_soft_cap.map(|cap| 1.1 * cap)),
        ("gemma2", |arch| arch.logits_soft_cap = None),
        ("gemma2", |arch| arch.logits_soft_cap = arch.logits_soft_cap.map(|cap| 1.1 * cap)),
        ("gemma2", |arch| arch.layers.swap(0, 1)),
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
        let [logits, loss, gradients] = [0, 1, 2].map(|what| apart[what] > 1e-4);
        // The loss of Granite's few tokens, whose logits are nearly equal, may be the same by chance.
        assert!(logits && gradients && (loss || family.starts_with("granite")), "{family}: {apart:?}");
    }
}
