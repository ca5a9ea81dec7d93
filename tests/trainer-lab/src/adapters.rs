//! Several adapters on one random model, of which each document takes its own.

use crate::model::Memory;
use qlora_kernels::rng::RngStream;
use qlora_train::arch::{Arch, Projection};
use qlora_train::backend::{Backend, Batch, Quantization};
use qlora_train::base::synthetic::Synthetic;
use qlora_train::data::{MicroBatch, Row};
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::{LoraSpec, ParamId, ParamKind};
use qlora_train::model::{Llama, ModelSpec, Source};

/// Adapters of one model, each with the seed of its values.
pub struct Adapters {
    pub arch: Arch,
    pub specs: Vec<LoraSpec>,
    pub seeds: Vec<u64>,
}

impl Adapters {
    /// Three that differ in ranks, scales and layers.
    pub fn three(arch: Arch) -> Self {
        let all: Vec<Projection> = arch.names.all().collect();
        let some: Vec<Projection> = all.iter().copied().step_by(2).collect();
        let specs = vec![
            LoraSpec::uniform(&arch, &all, 3, 4.5, 0.0),
            LoraSpec::uniform(&arch, &some, 8, 4.0, 0.0),
            LoraSpec::uniform(&arch, &all[1..], 1, 2.5, 0.0),
        ];
        Self { arch, specs, seeds: vec![1, 2, 3] }
    }

    /// The model with all of them, or with one alone; -1 for the base.
    pub fn spec(&self, only: Option<i32>, tokens: usize) -> ModelSpec {
        let lora = match only.map(usize::try_from) {
            None => LoraSpec::of_rows(self.specs.clone()),
            Some(Ok(index)) => self.specs[index].clone(),
            Some(Err(_)) => LoraSpec::default(),
        };
        ModelSpec { seed: 11, ..ModelSpec::new(lora, self.arch.clone(), Quantization::NF4, tokens) }
    }

    /// A or B of an adapter, row-major; both differ from zero.
    fn values(&self, adapter: usize, id: &ParamId) -> Option<(usize, Vec<f32>)> {
        let term = self.specs[adapter].terms.get(id.module())?;
        let (layer, projection) = self.arch.find(id.module())?;
        let (n, k) = projection.shape(&self.arch);
        let len = term.r * if id.kind() == ParamKind::LoraB { n } else { k };
        let domain = 1 + (layer * 64 + projection.number() * 2 + id.kind() as usize) as u64;
        let mut stream = RngStream::new(self.seeds[adapter], domain);
        Some((term.r, (0..len).map(|_| 0.4 * (stream.uniform() - 0.5)).collect()))
    }

    fn source(&self, only: Option<i32>) -> OnMemory<'_> {
        OnMemory { memory: Memory::new(Synthetic::new(self.arch.clone(), 5)), adapters: self, only }
    }

    /// The model with all adapters, or with one alone; -1 for the base.
    pub fn model<B: Backend>(&self, backend: &mut B, only: Option<i32>, tokens: usize) -> Llama<B> {
        Llama::build(backend, &mut self.source(only), self.spec(only, tokens), &mut |_| ()).unwrap()
    }
}

/// Documents of random tokens, all of them learned.
pub fn documents(lengths: &[usize], vocab: usize, seed: u64) -> Vec<Row> {
    let mut stream = RngStream::new(seed, 1 << 42);
    let mut row = |&length: &usize| {
        let input_ids: Vec<u32> = (0..length).map(|_| stream.below(vocab as u32)).collect();
        let labels = input_ids.iter().map(|&id| id as i32).collect();
        Row { input_ids, labels, weights: Vec::new(), file: 0, line: 1, task: None }
    };
    lengths.iter().map(&mut row).collect()
}

/// Losses of the tokens of each document, in one batch; `adapters` names that of each document, where the model has
/// several.
pub fn losses<B: Backend>(b: &mut B, model: &Llama<B>, rows: &[Row], adapters: Option<&[i32]>) -> Vec<Vec<f64>> {
    let tokens = MicroBatch::new(rows);
    let of_tokens: Option<Vec<i32>> = adapters.map(|adapters| {
        rows.iter().zip(adapters).flat_map(|(row, &adapter)| std::iter::repeat_n(adapter, row.len())).collect()
    });
    let batch = Batch { adapters: of_tokens.as_deref(), ..Batch::from(&tokens) };
    let mut found = model.losses(b, &batch).unwrap().into_iter();
    rows.iter().map(|row| found.by_ref().take(row.supervised()).collect()).collect()
}

struct OnMemory<'a> {
    memory: Memory,
    adapters: &'a Adapters,
    only: Option<i32>,
}

impl Source for OnMemory<'_> {
    fn stored(&self, name: &str) -> StoredType {
        self.memory.stored(name)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        self.memory.read(name)
    }

    /// Several are one after the other, padded with zeros to the rank of all.
    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>> {
        let adapters = self.adapters;
        if let Some(only) = self.only {
            let (_, values) = adapters.values(only as usize, id).expect("the model asks for its own terms");
            assert_eq!(values.len(), len);
            return Ok(values);
        }
        let mut all = vec![0.0; len];
        for (index, part) in all.chunks_exact_mut(len / adapters.specs.len()).enumerate() {
            let Some((r, values)) = adapters.values(index, id) else { continue };
            let width = if id.kind() == ParamKind::LoraB { r } else { columns };
            for (to, from) in part.chunks_exact_mut(columns).zip(values.chunks_exact(width)) {
                to[..width].copy_from_slice(from);
            }
        }
        Ok(all)
    }
}
