//! Rows of single tokens that are trained beside the adapters, against tables that are trained whole.

use qlora_train::arch::{Arch, Projection};
use qlora_train::backend::cpu::{Cpu, Isa, Precision};
use qlora_train::backend::{Memory as _, Optimizer, Quantization};
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::{LoraSpec, ParamId};
use qlora_train::model::{Llama, ModelSpec, Source};
use std::collections::BTreeMap;
use trainer_lab::model::{Documents, Memory};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16(Isa::SCALAR)];
const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";
/// Neighbors, the last of the vocabulary, and one of their own.
const TOKENS: [u32; 4] = [3, 40, 41, 95];

fn arch(tied: bool) -> Arch {
    Arch { tie_word_embeddings: tied, ..tiny_arch() }
}

fn spec(arch: Arch, lora: LoraSpec, trainable: bool) -> ModelSpec {
    let terms = LoraSpec::uniform(&arch, &[Projection::Q], 3, 2.1, 0.0).terms;
    ModelSpec { trainable, seed: 11, ..ModelSpec::new(LoraSpec { terms, ..lora }, arch, Quantization::None, 300) }
}

fn of_modules(modules: &[(&str, &[u32])]) -> LoraSpec {
    let tokens = modules.iter().map(|(module, tokens)| ((*module).to_owned(), tokens.to_vec())).collect();
    LoraSpec { tokens, ..LoraSpec::default() }
}

fn whole(modules: &[&str]) -> LoraSpec {
    LoraSpec { whole: modules.iter().map(|module| (*module).to_owned()).collect(), ..LoraSpec::default() }
}

/// Loss and gradients of one micro-batch, by the names of the tensors, and the bytes that were held.
type Found = (f64, BTreeMap<String, (Vec<usize>, Vec<f32>)>, u64);

fn step(cpu: &mut Cpu, spec: &ModelSpec) -> Found {
    let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 4));
    let mut model = Llama::build(cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
    // More supervised tokens than a chunk of the loss has.
    let documents = Documents::random(&[290, 10], spec.arch.vocab_size, 2).weighted(3);
    let loss = model.forward_backward(cpu, &documents.batch(), 5, 0.125).unwrap();
    let params = model.params();
    let gradients = params.into_iter().map(|(id, shape, param)| (id.to_string(), (shape, param.gradient().to_vec())));
    (loss, gradients.collect(), cpu.bytes())
}

fn found(precision: Precision, spec: &ModelSpec) -> Found {
    step(&mut Cpu::with_precision(spec.run_shape(), precision), spec)
}

/// The rows of a table of 64 columns.
fn rows(table: &[f32], tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|&token| &table[token as usize * 64..][..64]).copied().collect()
}

/// The gradient of a row is that of the row of a table that is trained whole, where the output layer is the embedding
/// and where it is another table with other tokens; nothing else changes. Each sums up the same products, 256 tokens at
/// a time: 1e-5 of the largest is 170 roundings of 2⁻²⁴.
#[test]
fn gradients_of_rows_are_those_of_a_whole_table() {
    let others = [7u32, 90];
    for (tied, precision) in [false, true].into_iter().flat_map(|tied| PRECISIONS.map(|of| (tied, of))) {
        let mut modules = vec![(EMBEDDING, &TOKENS[..])];
        if !tied {
            modules.push((HEAD, &others[..]));
        }
        let of_rows = found(precision, &spec(arch(tied), of_modules(&modules), true));
        let of_whole = found(precision, &spec(arch(tied), whole(&[EMBEDDING, HEAD]), true));
        assert_eq!(of_rows.0, of_whole.0, "tied: {tied}, {precision:?}");
        for (module, tokens) in &modules {
            let (shape, gradient) = &of_rows.1[&ParamId::tokens(*module).to_string()];
            assert_eq!(shape, &[tokens.len(), 64]);
            let expected = rows(&of_whole.1[&ParamId::whole(*module).to_string()].1, tokens);
            let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let apart = gradient.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(
                largest > 0.0 && apart <= 1e-5 * largest,
                "tied: {tied}, {precision:?}, {module}: {apart} {largest}"
            );
        }
        let of_terms = |found: &Found| -> Vec<Vec<f32>> {
            let terms = found.1.iter().filter(|(name, _)| name.contains("lora_"));
            terms.map(|(_, (_, gradient))| gradient.clone()).collect()
        };
        assert!(of_terms(&of_rows) == of_terms(&of_whole) && of_rows.1.len() == 4 + modules.len());
    }
}

/// Rows take memory, and no table; a dry run tells how much.
#[test]
fn rows_take_the_memory_that_is_planned() {
    for (tied, precision) in [false, true].into_iter().flat_map(|tied| PRECISIONS.map(|of| (tied, of))) {
        let of = |lora: LoraSpec| {
            let spec = spec(arch(tied), lora, true);
            let held = found(precision, &spec).2;
            let mut dry = Cpu::dry_run_with_precision(spec.run_shape(), precision);
            assert_eq!(step(&mut dry, &spec).2, held, "tied: {tied}, {precision:?}");
            (held, dry.planned())
        };
        let (of_rows, planned) = of(of_modules(&[(EMBEDDING, &TOKENS[..])]));
        let line = |name: &str| planned.iter().find(|line| line.name == name).map(|line| line.bytes);
        assert_eq!(line("rows of single tokens"), Some(4 * 64 * 4));
        assert_eq!(line("gradients of rows of single tokens"), Some(4 * 64 * 4));
        let (of_whole, _) = of(whole(&[EMBEDDING, HEAD]));
        assert!(of_rows < of_whole, "{of_rows} {of_whole}");
    }
}

/// A base, and rows of it that are an adapter's.
struct WithRows {
    memory: Memory,
    rows: Vec<f32>,
    /// They are in the base's table
    in_base: bool,
}

impl Source for WithRows {
    fn stored(&self, name: &str) -> StoredType {
        self.memory.stored(name)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        let mut tensor = self.memory.read(name)?;
        if self.in_base && name == format!("{EMBEDDING}.weight") {
            tensor.replace_rows(64, &TOKENS, &self.rows);
        }
        Ok(tensor)
    }

    fn token_rows(&mut self, module: &str) -> Option<Vec<f32>> {
        (module == EMBEDDING).then(|| self.rows.clone())
    }

    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>> {
        self.memory.lora(id, len, columns)
    }
}

/// Rows of an adapter take the place of the base's, in the embedding and in the output layer that is one with it; taken
/// off again, the base is what it was.
#[test]
fn rows_of_an_adapter_are_those_of_a_base_that_has_them() {
    for precision in PRECISIONS {
        let documents = Documents::random(&[90, 7], 96, 2);
        let source = |in_base| {
            let synthetic = Synthetic { stored: StoredType::F32, ..Synthetic::new(arch(true), 4) };
            let rows = (0..4 * 64).map(|at| ((at * 37 % 101) as f32 - 50.0) / 64.0).collect();
            WithRows { memory: Memory::new(synthetic), rows, in_base }
        };
        let with_rows = spec(arch(true), of_modules(&[(EMBEDDING, &TOKENS[..])]), false);
        let plain = spec(arch(true), LoraSpec::default(), false);
        let loss = |spec: &ModelSpec, source: &mut WithRows, then: Option<&ModelSpec>| {
            let mut cpu = Cpu::with_precision(spec.run_shape(), precision);
            let mut model = Llama::build(&mut cpu, source, spec.clone(), &mut |_| ()).unwrap();
            if let Some(then) = then {
                model.replace_lora(&mut cpu, source, then.lora.clone()).unwrap();
            }
            model.loss(&mut cpu, &documents.batch()).unwrap()
        };
        let (own, base) = (loss(&with_rows, &mut source(false), None), loss(&plain, &mut source(false), None));
        assert_eq!(own, loss(&plain, &mut source(true), None), "{precision:?}");
        assert_ne!(own, base);
        assert_eq!(own, loss(&plain, &mut source(false), Some(&with_rows)));
        assert_eq!(base, loss(&with_rows, &mut source(false), Some(&plain)));
    }
}

/// Rows begin as the base's, and only they are there to be changed.
#[test]
fn rows_begin_with_those_of_the_base() {
    let spec = spec(arch(true), of_modules(&[(EMBEDDING, &TOKENS[..])]), true);
    let mut memory = Memory::new(Synthetic::new(arch(true), 4));
    let table = memory.tensor("model.embed_tokens.weight").to_f32();
    let mut cpu = Cpu::new(spec.run_shape());
    let model = Llama::build(&mut cpu, &mut memory, spec, &mut |_| ()).unwrap();
    let (id, shape, param) = model.params().pop().unwrap();
    assert_eq!((id, shape), (ParamId::tokens(EMBEDDING), vec![4, 64]));
    assert_eq!(cpu.param_values(param).unwrap(), rows(&table, &TOKENS));
    assert_eq!(model.spec().trained_parameters(), (2 * (3 * 64 + 64 * 3) + 4 * 64) as u64);
}
