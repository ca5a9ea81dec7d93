use crate::runs::{HYPER, micro_batches};
use crate::sources::{ROOM, config, memory, on_device, spec};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_train::arch::{Arch, Projection};
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Batch, Optimizer, Quantization};
use qlora_train::comm::SingleProcess;
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType, WeightSource};
use qlora_train::lora::{LoraTerm, ParamId, ParamKind};
use qlora_train::model::optimizer_step::optimizer_step;
use qlora_train::model::{Llama, ModelSpec, Source};
use trainer_lab::model::{Documents, Memory};

/// The random model with one tensor in another form.
struct Changed {
    memory: Memory,
    name: &'static str,
    to: fn(HostTensor) -> WeightSource,
}

impl Source for Changed {
    fn stored(&self, name: &str) -> StoredType {
        self.memory.stored(name)
    }
    fn resident_as(&self, name: &str) -> Option<Quantization> {
        let dense = matches!((self.to)(self.memory.tensor(name)), WeightSource::Tensor(_));
        (name == self.name && dense).then_some(Quantization::None)
    }
    fn read(&mut self, name: &str) -> Result<HostTensor> {
        Ok(self.read_weight(name)?.into_tensor())
    }
    fn read_weight(&mut self, name: &str) -> Result<WeightSource> {
        let tensor = self.memory.tensor(name);
        Ok(if name == self.name { (self.to)(tensor) } else { WeightSource::Tensor(tensor) })
    }
    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>> {
        self.memory.lora(id, len, columns)
    }
}

fn refused(spec: &ModelSpec, source: &mut dyn Source) -> String {
    let built = Cuda::new(0, spec.run_shape(), &spec.arch, ROOM)
        .and_then(|mut cuda| Llama::build(&mut cuda, source, spec.clone(), &mut |_| ()).map(|_| ()));
    match built {
        Err(error) if error.is_usage() => error.to_string(),
        Err(other) => panic!("expected a refusal, found {other:?}"),
        Ok(()) => panic!("expected a refusal"),
    }
}

#[test]
fn what_the_kernels_do_not_compute_is_refused_when_the_model_is_loaded() {
    let names = |spec: &ModelSpec, source: &mut dyn Source, parts: &[&str]| {
        let text = refused(spec, source);
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    let shape = |config: Arch, parts: &[&str]| names(&spec(config.clone()), &mut memory(&config), parts);
    shape(Arch { head_dim: 16, ..config() }, &["head_dim", "found 16", "64, 96, 128 or 256", "--device cpu"]);
    shape(Arch { intermediate_size: 100, ..config() }, &["intermediate_size", "found 100", "multiple of 8"]);
    shape(Arch { hidden_size: 190, ..config() }, &["hidden_size", "found 190"]);

    let mut ranks = spec(config());
    ranks.lora.terms.insert(ranks.arch.module(1, Projection::O), LoraTerm::lora(300, 300.0));
    names(&ranks, &mut memory(&config()), &["layers.1.self_attn.o_proj", "rank of 300", "at most 256"]);

    let name = "model.layers.0.self_attn.k_proj.weight";
    let changed = |to| Changed { memory: memory(&config()), name, to };
    names(&spec(config()), &mut changed(WeightSource::Tensor), &["layers.0.self_attn", "2 are held in NF4", "16 bits"]);
    let own_values = |tensor: HostTensor| {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let options = Nf4Options { block_size: 64, double_quant: false };
        let matrix = Nf4Matrix::quantize(&tensor.to_f32(), rows, cols, &options).unwrap();
        let (codes, absmax) = (matrix.codes().to_vec(), matrix.absmax().clone());
        let code = matrix.code().map(|value| value * 0.5);
        WeightSource::Nf4(Nf4Matrix::from_parts(rows, cols, 64, code, codes, absmax).unwrap())
    };
    names(&spec(config()), &mut changed(own_values), &[name, "quant_map", "original 16-bit model"]);

    let Err(error) = Cuda::new(99, spec(config()).run_shape(), &config(), ROOM) else { panic!("there is no GPU 99") };
    let text = error.to_string();
    assert!(error.is_usage(), "{text}");
    assert!(text.contains("`device`") && text.contains("99"), "{text}");
}

fn built(source: &mut dyn Source) -> (Cuda, Llama<Cuda>) {
    let spec = spec(config());
    let mut cuda = on_device(&spec);
    let model = Llama::build(&mut cuda, source, spec, &mut |_| ()).unwrap();
    (cuda, model)
}

#[test]
fn a_loss_that_is_not_finite_ends_the_step_with_its_place_and_updates_nothing() {
    // Logits beyond f32.
    let huge = |tensor: HostTensor| {
        let values = tensor.to_f32().into_iter().map(|x| x.signum() * 3e38).collect();
        WeightSource::Tensor(HostTensor::from_f32(tensor.shape, values, StoredType::Bf16))
    };
    let mut source = Changed { memory: memory(&config()), name: "lm_head.weight", to: huge };
    let (mut cuda, mut model) = built(&mut source);
    let before = model.param_values(&cuda).unwrap();
    let documents = micro_batches(config().vocab_size);
    let batches: Vec<Batch> = documents.iter().map(Documents::batch).collect();
    let error = optimizer_step(&mut cuda, &mut model, &HYPER, 0, 2, 1.0, &batches).unwrap_err();
    assert_eq!(error.exit_status(), 1);
    let text = error.to_string();
    let words = [
        "step 1: the loss of micro-batch 1",
        "after the last layer",
        "the gradient of the loss",
        "row 0 (position 0 of row 0",
    ];
    assert!(words.iter().chain(&["nothing was updated", "learning_rate"]).all(|word| text.contains(word)), "{text}");
    assert!(before == model.param_values(&cuda).unwrap());
}

/// A micro-batch that is finite is not blamed for what an earlier one left in the gradients.
#[test]
fn the_micro_batch_that_overflows_is_the_one_that_is_named() {
    // Only the rows of the first micro-batch hold this token, whose embedding is far out of proportion.
    let (first, second) = ([210u32; 4], [1u32, 2, 3, 4]);
    let steep = |tensor: HostTensor| {
        let mut values = tensor.to_f32();
        values.iter_mut().skip(210 * 192).for_each(|value| *value = f32::INFINITY);
        WeightSource::Tensor(HostTensor::from_f32(tensor.shape, values, StoredType::Bf16))
    };
    let mut source = Changed { memory: memory(&config()), name: "model.embed_tokens.weight", to: steep };
    let (mut cuda, mut model) = built(&mut source);
    let batch = |input_ids| Batch {
        input_ids,
        positions: &[0, 1, 2, 3],
        boundaries: &[0, 4],
        targets: &[1, 2, 3, -100],
        weights: None,
        adapters: None,
    };
    let batches = [batch(&first), batch(&second)];
    // The first one's loss counts as finite, and its gradients not.
    for (_, param) in model.params_mut() {
        let gradient = cuda.gradient(param).unwrap();
        cuda.restore_gradient(param, vec![f32::NAN; gradient.len()]).unwrap();
    }
    let update = qlora_train::model::optimizer_step::update::<Cuda>;
    let text = update(&mut cuda, &mut model, &SingleProcess, &HYPER, 0, 2, 1.0, &batches, 1.0).unwrap_err().to_string();
    assert!(text.contains("in micro-batch 1, ") && text.contains("operation embedding"), "{text}");
    for (_, param) in model.params_mut() {
        let gradient = cuda.gradient(param).unwrap();
        cuda.restore_gradient(param, vec![f32::NAN; gradient.len()]).unwrap();
    }
    let text =
        update(&mut cuda, &mut model, &SingleProcess, &HYPER, 0, 2, 1.0, &batches[1..], 1.0).unwrap_err().to_string();
    assert!(text.contains("gradient norm") && !text.contains("in micro-batch"), "{text}");
}

/// The layer, the tensor and the row where the first value that is not finite appears, forward and backward.
#[test]
fn the_first_value_that_is_not_finite_is_named() {
    let documents = micro_batches(config().vocab_size);
    let batches: Vec<Batch> = documents.iter().map(Documents::batch).collect();
    let infinite = |tensor: HostTensor| {
        let mut values = tensor.to_f32();
        values[3] = f32::INFINITY;
        WeightSource::Tensor(HostTensor::from_f32(tensor.shape, values, StoredType::Bf16))
    };
    // One row of the embedding is read where its token first stands.
    let token = documents[0].batch().input_ids[40];
    let first = documents[0].batch().input_ids.iter().position(|&id| id == token).unwrap();
    let row_of_token = |tensor: HostTensor| {
        let (mut values, token) = (tensor.to_f32(), Documents::random(&[37, 20, 6, 1], 211, 1).batch().input_ids[40]);
        values[token as usize * 192 + 7] = f32::NAN;
        WeightSource::Tensor(HostTensor::from_f32(tensor.shape, values, StoredType::Bf16))
    };
    let row = format!("operation embedding: the residual stream, row {first} (");
    for (name, to, words) in [
        (
            "model.embed_tokens.weight",
            row_of_token as fn(HostTensor) -> WeightSource,
            ["before the first layer", &row, "column 7"],
        ),
        (
            "model.layers.1.input_layernorm.weight",
            infinite,
            ["in layer 1 (model.layers.1), operation norm", "the norm of the residual stream, row 0", "column 3"],
        ),
        ("model.norm.weight", infinite, ["after the last layer, operation norm", "row 0", "column 3"]),
    ] {
        let mut source = Changed { memory: memory(&config()), name, to };
        let (mut cuda, mut model) = built(&mut source);
        let text = optimizer_step(&mut cuda, &mut model, &HYPER, 0, 2, 1.0, &batches).unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{name}: {text}");
    }
    // Only in the backward pass: a steep loss, and a B whose A is zero, so that the forward pass is as without it.
    let steep = |tensor: HostTensor| {
        let values = tensor.to_f32().into_iter().map(|x| x * 1e30).collect();
        WeightSource::Tensor(HostTensor::from_f32(tensor.shape, values, StoredType::Bf16))
    };
    let mut source = Changed { memory: memory(&config()), name: "lm_head.weight", to: steep };
    let (mut cuda, mut model) = built(&mut source);
    for (id, param) in model.params_mut() {
        if id.module() == "model.layers.1.mlp.down_proj" {
            let state = cuda.optimizer_state(param).unwrap().unwrap();
            let values = cuda.param_values(param).unwrap();
            let to = if id.kind() == ParamKind::LoraA { 0.0 } else { 1e16 };
            cuda.restore(param, vec![to; values.len()], state).unwrap();
        }
    }
    let text = optimizer_step(&mut cuda, &mut model, &HYPER, 0, 2, 1.0, &batches).unwrap_err().to_string();
    let words = ["the gradient norm is", "in layer 1 (model.layers.1), operation LoRA dY·B", "dY·B of down_proj, row "];
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn a_gradient_that_is_not_finite_ends_the_step_and_updates_nothing() {
    let (mut cuda, mut model) = built(&mut memory(&config()));
    let before = model.param_values(&cuda).unwrap();
    for (index, (_, param)) in model.params_mut().into_iter().enumerate() {
        let mut gradient = cuda.gradient(param).unwrap();
        gradient[0] = if index == 3 { f32::INFINITY } else { 1.0 };
        cuda.restore_gradient(param, gradient).unwrap();
    }
    let documents = micro_batches(config().vocab_size);
    let batches: Vec<Batch> = documents.iter().map(Documents::batch).collect();
    let error = qlora_train::model::optimizer_step::update(
        &mut cuda,
        &mut model,
        &SingleProcess,
        &HYPER,
        0,
        2,
        1.0,
        &batches,
        1.0,
    )
    .unwrap_err();
    assert!(error.to_string().contains("gradient norm"), "{error}");
    assert!(before == model.param_values(&cuda).unwrap());
}

#[test]
fn a_batch_that_does_not_fit_the_run_is_refused() {
    let (mut cuda, model) = built(&mut memory(&config()));
    let long = Documents::random(&[40, 40], config().vocab_size, 1);
    assert!(model.loss(&mut cuda, &long.batch()).unwrap_err().to_string().contains("80 tokens"));
    let row = Documents::random(&[51], config().vocab_size, 1);
    assert!(model.loss(&mut cuda, &row.batch()).unwrap_err().to_string().contains("position 50"));
    let ids = Documents::random(&[10], 100_000, 1);
    assert!(model.loss(&mut cuda, &ids.batch()).unwrap_err().to_string().contains("vocabulary of 211"));
    let targets = [1, 2, 250, -100];
    let batch = Batch {
        input_ids: &[0; 4],
        positions: &[0, 1, 2, 3],
        boundaries: &[0, 4],
        targets: &targets,
        weights: None,
        adapters: None,
    };
    assert!(model.loss(&mut cuda, &batch).unwrap_err().to_string().contains("token id 250"));
}
