//! Twenty steps of adapter methods beside those of PEFT, which computed in f32 (`tests/golden/methods_files.py
//! --heads-of-64`): the CPU backend gives its numbers, and the device those that bf16 explains.
//!
//! Two things tell how far bf16 is from f32. Moved models, as in `training.rs`, have errors at random. PEFT itself in
//! bf16 has those that follow from the model and the rows: a gradient of B that is nearly zero rounds to the other sign
//! in every program that rounds there, and Adam goes the other way. How far PEFT in bf16 is from PEFT in f32 stands in
//! the golden file. Both explain distances, independently of each other.

use crate::runs::{Apart, Trained, largest, train_each};
use crate::sources::{Moved, on_device};
use crate::training::Bounds;
use lab::device::Tally;
use qlora_train::arch::Projection;
use qlora_train::backend::cpu::Cpu;
use qlora_train::backend::{Backend, Batch, Quantization};
use qlora_train::base::Checkpoint;
use qlora_train::config::Settings;
use qlora_train::data::{MicroBatch, Row};
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::start::add_product;
use qlora_train::lora::{ParamId, ParamKind};
use qlora_train::model::optimizer_step::Hyperparameters;
use qlora_train::model::{ModelSpec, Source};
use qlora_train::session::model_spec::{model_spec, of_steps};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use tempfile::TempDir;

/// A file of `tests/golden/methods`; it goes with the test to a machine that has no sources.
macro_rules! bytes {
    ($name:literal) => {
        include_bytes!(concat!("../../../../tests/golden/methods/", $name)).as_slice()
    };
    ($name:literal, $end:literal) => {
        bytes!("heads_of_64/", $name, $end)
    };
    ($folder:literal, $name:literal, $end:literal) => {
        include_bytes!(concat!("../../../../tests/golden/methods/", $folder, $name, $end)).as_slice()
    };
}

/// PEFT's run with a method: the description and the tensors.
macro_rules! golden {
    ($method:literal) => {
        Golden::new(bytes!($method, ".json"), bytes!($method, ".safetensors"))
    };
}

const STEPS: usize = 20;
/// Rows of a step: two micro-batches in PEFT, two documents of one here. The loss is divided by the tokens of both.
const ROWS: usize = 2;
/// Tokens of both, and of one, at most.
const TOKENS: [usize; 2] = [40, 24];
/// ‖found − expected‖ / ‖expected‖ where the cosine is 0.9999: √(2 · (1 − 0.9999)).
const ALIKE: f64 = 0.0141;

type Tensors = BTreeMap<String, Vec<f32>>;

struct Golden {
    record: Value,
    settings: Settings,
    spec: ModelSpec,
    checkpoint: Checkpoint,
    rows: Vec<Row>,
    /// PEFT's tensors before the first step and after the last, by its keys
    initial: Tensors,
    last: Tensors,
    /// The base's files
    _dir: TempDir,
}

fn numbers(of: &Value) -> Vec<f64> {
    of.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Tensors of one moment.
fn of_moment(file: &SafeTensors, moment: &str) -> Tensors {
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        if let Some(key) = name.strip_prefix(moment) {
            tensors.insert(key.to_owned(), values(view.data()));
        }
    }
    tensors
}

fn rows() -> Vec<Row> {
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers = |key: &str| row[key].as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i32);
        let (input_ids, labels) = (numbers("input_ids").map(|id| id as u32).collect(), numbers("labels").collect());
        Row { input_ids, labels, weights: Vec::new(), file: 0, line: 0, task: None }
    };
    std::str::from_utf8(bytes!("rows.jsonl")).unwrap().lines().map(row).collect()
}

impl Golden {
    fn new(description: &[u8], tensors: &[u8]) -> Self {
        let record: Value = serde_json::from_slice(description).unwrap();
        let (config, weights) = match record["base"].as_str().unwrap() {
            "methods/heads_of_64/llama" => (bytes!("llama", "/config.json"), bytes!("llama", "/model.safetensors")),
            "methods/heads_of_64/qwen2" => (bytes!("qwen2", "/config.json"), bytes!("qwen2", "/model.safetensors")),
            "methods/heads_of_64/qwen3" => (bytes!("qwen3", "/config.json"), bytes!("qwen3", "/model.safetensors")),
            other => panic!("{other}"),
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let settings = Settings::from_yaml(&record["settings"].to_string(), "golden", &[]).unwrap();
        let spec = model_spec(&settings, &checkpoint, TOKENS[0], TOKENS[1]).unwrap();
        let spec = of_steps(spec, STEPS as u64).unwrap();
        let file = SafeTensors::deserialize(tensors).unwrap();
        let (initial, last) = (of_moment(&file, "initial."), of_moment(&file, "final."));
        Self { record, settings, spec, checkpoint, rows: rows(), initial, last, _dir: dir }
    }

    /// Trains a model of `spec` as PEFT did.
    fn train<B: Backend>(&self, backend: &mut B, source: &mut dyn Source, spec: &ModelSpec) -> Trained {
        let hyper = Hyperparameters::of(&self.settings);
        let row = |at: usize| &self.rows[at % self.rows.len()];
        let of_step = |step: usize| MicroBatch::new([row(ROWS * step), row(ROWS * step + 1)]);
        let micro_batches: Vec<MicroBatch> = (0..STEPS).map(of_step).collect();
        let batches: Vec<Batch> = micro_batches.iter().map(Batch::from).collect();
        let steps: Vec<&[Batch]> = batches.chunks(1).collect();
        // PEFT's gradients are not in the file.
        Trained { gradients: Vec::new(), ..train_each(backend, source, spec, &hyper, &steps) }
    }

    /// On the CPU in f32, as it is, or with the values of a seed.
    fn train_moved(&self, seed: Option<u64>, spec: &ModelSpec) -> Trained {
        let mut source = Moved::of(Start(self), Quantization::None, seed);
        self.train(&mut Cpu::new(spec.run_shape()), &mut source, spec)
    }

    /// The change of a tensor in PEFT's steps. Its rows of single tokens are in the order in which they were given,
    /// ours in the order of the ids.
    fn moved(&self, id: &ParamId) -> Vec<f32> {
        let key = id.peft_key();
        let both = self.last[&key].iter().zip(&self.initial[&key]);
        let moved: Vec<f32> = both.map(|(last, initial)| last - initial).collect();
        if id.kind() != ParamKind::Tokens {
            return moved;
        }
        let given = &self.record["settings"]["trainable_token_indices"];
        let given = given.as_object().map_or(given, |of| &of[id.module().rsplit('.').next().unwrap()]);
        let given: Vec<u64> = given.as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
        let tokens = &self.spec.lora.tokens[id.module()];
        let width = moved.len() / tokens.len();
        let mut ordered = Vec::with_capacity(moved.len());
        for token in tokens {
            let at = given.iter().position(|other| *other == u64::from(*token)).unwrap();
            ordered.extend_from_slice(&moved[at * width..][..width]);
        }
        ordered
    }

    /// PEFT's run, of the tensors that a run of ours has.
    fn expected(&self, ours: &Trained) -> Trained {
        // One tensor of the model is two of PEFT's.
        let (lora, arch) = (&self.spec.lora, &self.spec.arch);
        let twice = arch.tie_word_embeddings && lora.whole.contains(arch.names.head_module());
        assert_eq!(ours.moved.len() + usize::from(twice), self.last.len());
        Trained {
            losses: numbers(&self.record["losses"]),
            norms: numbers(&self.record["grad_norms"]),
            gradients: Vec::new(),
            moved: ours.moved.iter().map(|(id, _)| (id.clone(), self.moved(id))).collect(),
        }
    }

    /// The distance of PEFT in bf16 from its run in f32.
    fn in_bf16(&self, expected: &Trained) -> Apart {
        let bf16 = &self.record["bf16"];
        let (losses, norms) = (numbers(&bf16["losses"]), numbers(&bf16["grad_norms"]));
        let moved = |(id, _): &(ParamId, Vec<f32>)| bf16["moved"][id.peft_key()].as_f64().unwrap();
        Apart {
            moved: expected.moved.iter().map(moved).collect(),
            moved_in_all: bf16["moved_in_all"].as_f64().unwrap(),
            ..Apart::of(&Trained { losses, norms, ..expected.clone() }, expected)
        }
    }

    /// PEFT's run, which the CPU backend repeats in f32, and the bounds of one in bf16.
    fn bounds(&self, method: &str) -> (Trained, Bounds) {
        let same = self.train_moved(None, &self.spec);
        let expected = self.expected(&same);
        let apart = Apart::of(&same, &expected);
        let relative: Vec<f64> = apart.losses.iter().zip(&expected.losses).map(|(apart, loss)| apart / loss).collect();
        // The base less what terms begin with is rounded, where the last bit of a product is one of a weight.
        let bound = if self.spec.lora.init.changes_base() { 1e-3 } else { 1e-5 };
        println!("{method} in f32: losses within {:.1e}, tensors {:.1e}", largest(&relative), largest(&apart.moved));
        assert!(largest(&relative) <= bound && largest(&apart.moved) <= ALIKE, "{method}: {apart:?}");
        let moved = |seed| Apart::of(&self.train_moved(Some(seed), &self.spec), &expected);
        let bounds = Bounds::of_moved(&expected, &moved).beside(&self.in_bf16(&expected));
        (expected, bounds)
    }
}

/// The base, less what terms begin with where they do, and PEFT's terms before the first step.
struct Start<'a>(&'a Golden);

impl Source for Start<'_> {
    fn stored(&self, name: &str) -> StoredType {
        self.0.checkpoint.stored_type(name).unwrap()
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        let Golden { checkpoint, spec: ModelSpec { lora, .. }, initial, .. } = self.0;
        let tensor = checkpoint.read(name)?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let Some((r, scale)) = lora.of(module).filter(|_| lora.init.changes_base()) else { return Ok(tensor) };
        let [a, b] = [ParamId::a(module), ParamId::b(module)].map(|id| &initial[&id.peft_key()]);
        let (stored, shape, mut values) = (tensor.stored_type(), tensor.shape.clone(), tensor.into_f32());
        add_product(&mut values, shape[1], b, r, a, -scale);
        Ok(HostTensor::from_f32(shape, values, stored))
    }

    fn lora(&mut self, id: &ParamId, _: usize, _: usize) -> Result<Vec<f32>> {
        Ok(self.0.initial[&id.peft_key()].clone())
    }

    fn magnitude(&mut self, module: &str) -> Option<Vec<f32>> {
        Some(self.0.initial[&ParamId::magnitude(module).peft_key()].clone())
    }
}

#[track_caller]
fn follows_peft(method: &str, golden: Golden) {
    let tally = Tally::new("twenty steps beside PEFT", 1);
    let (expected, bounds) = golden.bounds(method);
    let found = golden.train(&mut on_device(&golden.spec), &mut Start(&golden), &golden.spec);
    bounds.check(method, &Apart::of(&found, &expected));
    tally.case();
}

#[test]
fn ranks_and_alphas_by_patterns_follow_peft() {
    follows_peft("patterns", golden!("patterns"));
}

#[test]
fn patterns_with_rslora_follow_peft() {
    follows_peft("patterns_rslora", golden!("patterns_rslora"));
}

#[test]
fn some_layers_follow_peft() {
    follows_peft("layers", golden!("layers"));
}

#[test]
fn whole_modules_of_a_tied_model_follow_peft() {
    follows_peft("whole_tied", golden!("whole_tied"));
}

#[test]
fn whole_modules_follow_peft() {
    follows_peft("whole", golden!("whole"));
}

#[test]
fn rows_of_tokens_of_a_tied_model_follow_peft() {
    follows_peft("tokens_tied", golden!("tokens_tied"));
}

#[test]
fn rows_of_tokens_of_embedding_and_output_layer_follow_peft() {
    follows_peft("tokens", golden!("tokens"));
}

#[test]
fn pissa_follows_peft() {
    follows_peft("pissa", golden!("pissa"));
}

#[test]
fn olora_follows_peft() {
    follows_peft("olora", golden!("olora"));
}

#[test]
fn dora_follows_peft() {
    follows_peft("dora", golden!("dora"));
}

#[test]
fn dora_of_layers_with_biases_follows_peft() {
    follows_peft("dora_biases", golden!("dora_biases"));
}

/// Three cuts on the way and a last one, which bf16 makes in other ranks only where two are nearly as important.
#[test]
fn adalora_follows_peft() {
    follows_peft("adalora", golden!("adalora"));
}

/// An alpha of its own that one term loses, a scale without its root, and the alpha of some magnitudes' terms are far
/// outside of the bounds, whatever computes them.
#[test]
fn the_bounds_see_another_scale() {
    type Change = fn(&mut ModelSpec);
    let lost_alpha: Change = |spec| {
        let module = spec.arch.module(0, Projection::Q);
        spec.lora.terms.entry(module).and_modify(|term| term.alpha /= 2.0);
    };
    let lost_root: Change = |spec| spec.lora.rslora = false;
    let halved: Change = |spec| {
        let values = spec.lora.terms.iter_mut().filter(|(module, _)| module.ends_with("v_proj"));
        values.for_each(|(_, term)| term.alpha /= 2.0);
    };
    for (method, golden, change) in [
        ("patterns", golden!("patterns"), lost_alpha),
        ("patterns_rslora", golden!("patterns_rslora"), lost_root),
        ("dora", golden!("dora"), halved),
    ] {
        let (expected, bounds) = golden.bounds(method);
        let mut spec = golden.spec.clone();
        change(&mut spec);
        let share = bounds.share(&Apart::of(&golden.train_moved(None, &spec), &expected));
        assert!(share > 2.0, "{method}: {share}");
    }
}
