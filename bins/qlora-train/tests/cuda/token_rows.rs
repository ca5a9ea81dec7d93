//! Rows of single tokens that are trained, against the CPU backend: as other runs are, by what rounding to bf16
//! explains (`training.rs`), and as commands.

use crate::commands::Directory;
use crate::methods::is_within_bounds;
use crate::planning::{planned, steps};
use crate::runs::{HYPER, Trained, micro_batches, short_micro_batches, train_short};
use crate::sources::{config, memory, on_device, small_config, spec, with_norms_around, with_soft_caps};
use lab::device::{Tally, set_schedule};
use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Batch, Memory as _, Optimizer, Quantization, Residency, StateFormat};
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::{ParamId, ParamKind};
use qlora_train::model::optimizer_step::{Hyperparameters, optimizer_step};
use qlora_train::model::{Activations, Llama, ModelSpec, Source};
use trainer_lab::model::{Documents, Memory};

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// Three tokens of the first document of a step, and one that no document has.
fn tokens(arch: &Arch) -> Vec<u32> {
    let documents = micro_batches(arch.vocab_size);
    let used: Vec<u32> = documents.iter().flat_map(|documents| documents.batch().input_ids.to_vec()).collect();
    let mut tokens: Vec<u32> = (0..arch.vocab_size as u32).filter(|token| !used.contains(token)).take(1).collect();
    for &token in &used {
        if tokens.len() < 4 && !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    assert_eq!(tokens.len(), 4);
    tokens.sort_unstable();
    tokens
}

/// Rows of these modules beside the low-rank terms; the output layer has those of two of the tokens.
pub fn with_rows(arch: Arch, modules: &[&str]) -> ModelSpec {
    let tokens = tokens(&arch);
    let mut spec = spec(arch);
    for &module in modules {
        let own = if module == HEAD { tokens[1..3].to_vec() } else { tokens.clone() };
        spec.lora.tokens.insert(module.to_owned(), own);
    }
    spec
}

fn tied(arch: Arch) -> Arch {
    Arch { tie_word_embeddings: true, ..arch }
}

fn trained(spec: &ModelSpec, steps: u64) -> Trained {
    train_short(&mut on_device(spec), &mut memory(&spec.arch), spec, steps)
}

#[test]
fn rows_give_the_cpu_backends_losses_and_gradients() {
    let tally = Tally::new("training, rows of single tokens", 1);
    for (what, arch, modules, steps) in [
        ("rows of both tables", config(), &[EMBEDDING, HEAD][..], 2),
        ("rows of the embedding", config(), &[EMBEDDING][..], 1),
        ("rows of the output layer", config(), &[HEAD][..], 1),
        ("rows of tied tables", tied(config()), &[EMBEDDING][..], 2),
        ("rows of a scaled embedding", tied(with_norms_around(config())), &[EMBEDDING][..], 1),
        ("rows of an output layer with a soft cap", with_soft_caps(config()), &[HEAD][..], 1),
    ] {
        let spec = ModelSpec { activations: Vec::new(), ..with_rows(arch, modules) };
        let (expected, _) = is_within_bounds(what, &spec, steps);
        let gradients = expected.gradients.iter().filter(|(id, _)| id.kind() == ParamKind::Tokens);
        assert_eq!(gradients.count(), modules.len(), "{what}");
        tally.case();
    }
}

/// The first update is that of a table that is trained whole, bit for bit: the model is the same, and so is what is
/// summed for these rows. Rows of tokens that do not occur keep a gradient of zero in an embedding of its own.
#[test]
fn gradients_of_rows_have_the_bits_of_a_whole_table() {
    for (arch, modules) in [(config(), &[EMBEDDING, HEAD][..]), (tied(config()), &[EMBEDDING][..])] {
        let hidden = arch.hidden_size;
        let of_rows = with_rows(arch.clone(), modules);
        let mut of_whole = spec(arch.clone());
        of_whole.lora.whole = [EMBEDDING, HEAD].map(str::to_owned).into();
        let (found, expected) = (trained(&of_rows, 1), trained(&of_whole, 1));
        assert_eq!(found.losses, expected.losses);
        let gradient = |of: &[(ParamId, Vec<f32>)], id: ParamId| -> Vec<u32> {
            let (_, values) = of.iter().find(|(other, _)| *other == id).unwrap();
            values.iter().map(|x| x.to_bits()).collect()
        };
        for &module in modules {
            let own = gradient(&found.gradients, ParamId::tokens(module));
            let whole = gradient(&expected.gradients, ParamId::whole(module));
            let tokens = &of_rows.lora.tokens[module];
            for (token, own) in tokens.iter().zip(own.chunks_exact(hidden)) {
                assert!(own == &whole[*token as usize * hidden..][..hidden], "{module}: row {token}");
            }
            let zeros = own.chunks_exact(hidden).filter(|row| row.iter().all(|&bits| bits == 0)).count();
            assert_eq!(zeros, usize::from(module == EMBEDDING && !arch.tie_word_embeddings), "{module}");
        }
    }
}

/// Products read what the optimizer left, in a table on the device and in one in pinned host memory, and what is put
/// back after a snapshot; a frozen row stays what it was.
#[test]
fn products_read_the_rows_as_they_are_after_an_update() {
    for (arch, modules) in [(small_config(), &[EMBEDDING, HEAD][..]), (tied(small_config()), &[EMBEDDING][..])] {
        let spec = ModelSpec { activations: Vec::new(), ..with_rows(arch, modules) };
        let hyper = Hyperparameters { learning_rate_a: 0.1, learning_rate_b: 0.1, ..HYPER };
        let documents = short_micro_batches(spec.arch.vocab_size);
        let batches: Vec<Batch> = documents.iter().map(Documents::batch).collect();
        let build = || {
            let mut cuda = on_device(&spec);
            let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
            (cuda, model)
        };
        let (mut cuda, mut model) = build();
        let before = model.loss(&mut cuda, &batches[0]).unwrap();
        optimizer_step(&mut cuda, &mut model, &hyper, 0, 2, 1.0, &batches).unwrap();
        let after = model.loss(&mut cuda, &batches[0]).unwrap();
        assert_ne!(before.to_bits(), after.to_bits());
        let (mut other, mut put_back) = build();
        for ((_, from), (_, to)) in model.params_mut().into_iter().zip(put_back.params_mut()) {
            let state = cuda.optimizer_state(from).unwrap().unwrap();
            other.restore(to, cuda.param_values(from).unwrap(), state).unwrap();
        }
        let stale = put_back.loss(&mut other, &batches[0]).unwrap();
        put_back.refresh(&mut other).unwrap();
        assert_eq!(put_back.loss(&mut other, &batches[0]).unwrap().to_bits(), after.to_bits());
        assert_ne!(stale.to_bits(), after.to_bits());
        // A base that has these values, rounded as the table rounds them, is the same model.
        let untrained = ModelSpec { trainable: false, ..spec.clone() };
        let values = model.params().into_iter().map(|(id, _, param)| (id, cuda.param_values(param).unwrap()));
        let mut source = Adapted { memory: memory(&spec.arch), values: values.collect() };
        let mut evaluated = on_device(&untrained);
        let loaded = Llama::build(&mut evaluated, &mut source, untrained, &mut |_| ()).unwrap();
        assert_eq!(loaded.loss(&mut evaluated, &batches[0]).unwrap().to_bits(), after.to_bits());
    }
}

/// A base with the trained tensors of a run.
struct Adapted {
    memory: Memory,
    values: Vec<(ParamId, Vec<f32>)>,
}

impl Adapted {
    fn of(&self, id: &ParamId) -> Option<Vec<f32>> {
        self.values.iter().find(|(other, _)| other == id).map(|(_, values)| values.clone())
    }
}

impl Source for Adapted {
    fn stored(&self, name: &str) -> StoredType {
        self.memory.stored(name)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        self.memory.read(name)
    }

    fn token_rows(&mut self, module: &str) -> Option<Vec<f32>> {
        self.of(&ParamId::tokens(module))
    }

    fn lora(&mut self, id: &ParamId, _: usize, _: usize) -> Result<Vec<f32>> {
        Ok(self.of(id).unwrap())
    }
}

#[test]
fn every_schedule_and_place_gives_the_same_bits() {
    use Activations::{Keep, Offload, Recompute};
    let run = |seed, activations: &[Activations], residency: &[Residency]| {
        set_schedule(seed);
        let (activations, residency) = (activations.to_vec(), residency.to_vec());
        let spec = with_rows(Arch { num_layers: 2, ..small_config() }, &[EMBEDDING, HEAD]);
        trained(&ModelSpec { activations, residency, states: StateFormat::Blockwise8, ..spec }, 2)
    };
    let first = run(0, &[Recompute; 2], &[]);
    use Residency::{Device, Pinned};
    for (seed, activations, residency) in [
        (1, [Keep; 2], &[][..]),
        (7, [Offload, Recompute], &[][..]),
        (2, [Recompute; 2], &[Pinned; 2][..]),
        (3, [Keep; 2], &[Device, Pinned][..]),
    ] {
        assert!(first == run(seed, &activations, residency), "{activations:?} {residency:?}");
    }
}

#[test]
fn a_run_takes_what_was_planned() {
    for (arch, modules) in [
        (small_config(), &[EMBEDDING, HEAD][..]),
        (small_config(), &[EMBEDDING][..]),
        (tied(small_config()), &[EMBEDDING][..]),
    ] {
        for (states, quantization) in
            [(StateFormat::F32, Quantization::NF4), (StateFormat::Blockwise8, Quantization::None)]
        {
            let activations = vec![Activations::Keep; arch.num_layers];
            let spec = ModelSpec { activations, quantization, states, ..with_rows(arch.clone(), modules) };
            let bytes = planned(&spec);
            let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, bytes).unwrap();
            steps(&mut cuda, &spec);
            assert_eq!(cuda.bytes(), bytes, "{modules:?} {states:?}");
        }
    }
}

/// From settings to an adapter that is gone on with, and evaluated on the GPU and on the CPU.
#[test]
fn commands_take_rows_of_single_tokens() {
    let directory = Directory::small();
    let line = |out: &str, more: &str| {
        format!(
            "train --json --model model --data rows.jsonl --max-length 64 --lora-r 8 --learning-rate 3e-3 \
             --max-steps 4 --save-steps 2 --device cuda --trainable-token-indices embed_tokens=7,14,21,28,35 \
             --trainable-token-indices lm_head=14,28,42 --output-dir {out} {more}"
        )
    };
    directory.done(&line("rows", ""));
    directory.done(&line("again", "--resume-from-checkpoint rows/checkpoint-2"));
    let adapter = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("rows") == adapter("again"));
    let rows = Adapter::load(&directory.path("rows")).unwrap().token_rows().unwrap();
    let tokens = |module: &str| rows[module].tokens.clone();
    assert_eq!((tokens(EMBEDDING), tokens(HEAD)), (vec![7, 14, 21, 28, 35], vec![14, 28, 42]));
    let eval = |more: &str| {
        let line = format!("eval --json --model model --data rows.jsonl --max-length 64 {more}");
        directory.done(&line).0["loss"].as_f64().unwrap()
    };
    let [cuda, cpu] = ["cuda", "cpu --compute f32"].map(|device| eval(&format!("--adapter rows --device {device}")));
    assert!((cuda / cpu - 1.0).abs() < 1e-2, "{cuda} on the GPU, {cpu} on the CPU");
    assert!(cuda < eval("--device cuda"), "nothing was learned");
}
