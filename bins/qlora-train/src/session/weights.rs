//! The values of a model: the frozen base from a checkpoint, the low-rank terms from an adapter or freshly drawn.

use super::host;
use super::loading::LoadTimes;
use super::plan::stored_in;
use crate::adapter::{Adapter, LoraPair, TokenRows, WholeModule};
use crate::arch::Arch;
use crate::backend::Quantization;
use crate::base::{
    BaseFingerprint, Checkpoint, DigestsAhead, Fingerprint, Nf4OnDisk, Rewrite, RowsOnDisk, TensorDigest,
};
use crate::comm::Communicator;
use crate::config::InitLora;
use crate::data::{return_large_pieces, trim_heap};
use crate::error::{Error, Result};
use crate::files::tensor::{HostTensor, StoredType, TensorData, WeightSource};
use crate::lora::adalora;
use crate::lora::start::{self, Factors};
use crate::lora::{LoraSpec, ParamId, ParamKind};
use crate::model::Source;
use qlora_kernels::rng::RngStream;
use std::collections::BTreeMap;
use std::time::Instant;

/// Keeps the streams of initial values apart from those of shuffling.
const INIT_DOMAIN: u64 = 1 << 32;
/// Domain of a B that does not begin with zeros
const INIT_B_DOMAIN: u64 = 4 << 32;
/// The largest value of a weight whose directions are looked for: squares of sums over its rows stay finite in f32.
const LARGEST: f32 = 1e12;

/// Terms that begin with directions of the weights.
struct Starts {
    lora: LoraSpec,
    /// By module
    made: BTreeMap<String, Factors>,
}

impl Starts {
    /// The weight less what its term begins with, in the type that it is stored in.
    fn residual(&mut self, arch: &Arch, seed: u64, name: &str, tensor: HostTensor) -> Result<HostTensor> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let (Some((r, scale)), Some((layer, projection))) = (self.lora.of(module), arch.find(module)) else {
            return Ok(tensor);
        };
        let (n, k) = projection.shape(arch);
        let (stored, shape, mut values) = (tensor.stored_type(), tensor.shape.clone(), tensor.into_f32());
        // Squares of sums over a row have to be f32 numbers.
        let outside = values.iter().find(|x| x.is_nan() || x.abs() > LARGEST);
        if let (Some(found), true) = (outside, self.lora.init != InitLora::Random) {
            crate::bail_usage!(
                "{name}: found a value of {found:e}, expected at most {LARGEST:e} for init_lora_weights: {}; use true \
                 instead",
                self.lora.init.name()
            );
        }
        let stream = RngStream::new(seed, INIT_DOMAIN + (layer * 16 + projection.number()) as u64);
        if let Some(factors) = start::factors(self.lora.init, &values, [n, k], r, scale, stream) {
            start::add_product(&mut values, k, &factors.b, r, &factors.a, -scale);
            self.made.insert(module.to_owned(), factors);
        }
        Ok(HostTensor::from_f32(shape, values, stored))
    }
}

/// `'w`: what changes the weights, and the other processes.
pub struct CheckpointSource<'a, 'w> {
    checkpoint: &'a Checkpoint,
    fingerprint: Fingerprint,
    /// Threads that hash tensors before they are read, if there are any
    ahead: Option<DigestsAhead>,
    times: LoadTimes,
    adapter: BTreeMap<String, LoraPair<'a>>,
    /// Weights of whole modules that an adapter holds, by module
    whole: BTreeMap<String, WholeModule<'a>>,
    /// Adapters of which each row takes one, in place of `adapter`
    by_row: Vec<BTreeMap<String, LoraPair<'a>>>,
    /// Rows of single tokens that an adapter holds, by module
    tokens: BTreeMap<String, TokenRows>,
    /// A rewrite of the tensors as they are read, if there is one.
    rewrite: Option<&'w mut dyn Rewrite>,
    /// Processes that wait for each other when they have read all, if they do
    others: Option<&'w mut dyn Communicator>,
    /// Terms that begin with directions of the weights, if these do
    starts: Option<Starts>,
    /// New terms are those of AdaLoRA
    adalora: bool,
    /// The output layer or the embedding stays in its file
    has_table_on_disk: bool,
    /// Frobenius norms of linear weights by module, where they are asked for
    norms: Option<BTreeMap<String, f64>>,
    seed: u64,
}

impl<'a, 'w> CheckpointSource<'a, 'w> {
    /// Low-rank terms that `adapter` does not hold are drawn: A Kaiming-uniform with a = √5, B zero.
    pub fn new(checkpoint: &'a Checkpoint, adapter: BTreeMap<String, LoraPair<'a>>, seed: u64) -> Self {
        // The heaps of threads that read pieces would keep them, and trimming does not reach the ends of these heaps.
        return_large_pieces();
        let fingerprint = Fingerprint::new(checkpoint);
        let (whole, tokens, rewrite, starts, norms) = (BTreeMap::new(), BTreeMap::new(), None, None, None);
        let (by_row, adalora, others) = (Vec::new(), false, None);
        let (ahead, times) = (None, LoadTimes::default());
        Self {
            checkpoint,
            fingerprint,
            ahead,
            times,
            adapter,
            whole,
            by_row,
            tokens,
            rewrite,
            others,
            starts,
            adalora,
            has_table_on_disk: false,
            norms,
            seed,
        }
    }

    /// With the terms, the whole modules and the rows of single tokens of an adapter, or new ones.
    pub fn with_adapter(checkpoint: &'a Checkpoint, adapter: Option<&'a Adapter>, seed: u64) -> Result<Self> {
        let Some(adapter) = adapter else { return Ok(Self::new(checkpoint, BTreeMap::new(), seed)) };
        let (whole, tokens) = (adapter.whole_modules()?, adapter.token_rows()?);
        Ok(Self { whole, tokens, ..Self::new(checkpoint, adapter.lora_pairs()?, seed) })
    }

    /// With the terms of adapters of which each row takes one.
    pub fn with_adapters_of_rows(
        checkpoint: &'a Checkpoint,
        adapters: impl IntoIterator<Item = &'a Adapter>,
        seed: u64,
    ) -> Result<Self> {
        let by_row = adapters.into_iter().map(Adapter::lora_pairs).collect::<Result<_>>()?;
        Ok(Self { by_row, ..Self::new(checkpoint, BTreeMap::new(), seed) })
    }

    /// With tensors that are changed on their way: each is as [`Checkpoint::dense_type`] says.
    pub fn rewritten(self, rewrite: Option<&'w mut dyn Rewrite>) -> Self {
        Self { rewrite, ..self }
    }

    /// With threads that hash the base's tensors ahead of the reading, all of which are then to be read. They are as
    /// far ahead as a fourth of what is free now holds.
    pub fn hashing_ahead(self) -> Result<Self> {
        let room = || host::free_bytes() / 4;
        let ahead = DigestsAhead::begin(self.checkpoint, rayon::current_num_threads(), room)?;
        Ok(Self { ahead: Some(ahead), ..self })
    }

    /// With other processes, which use weights when all have read them.
    pub fn waiting_for(self, others: &'w mut dyn Communicator) -> Self {
        Self { others: Some(others), ..self }
    }

    /// Measures the norm of every linear weight that is read.
    pub fn measuring(self) -> Self {
        Self { norms: Some(BTreeMap::new()), ..self }
    }

    /// With terms of `lora` that begin as it says, on a base without them.
    pub fn beginning(self, lora: &LoraSpec) -> Self {
        let starts = lora.init.changes_base().then(|| Starts { lora: lora.clone(), made: BTreeMap::new() });
        Self { starts, adalora: lora.adalora.is_some(), ..self }
    }

    /// The first values of terms that the base was changed by; empty where it was not.
    pub fn take_starts(&mut self) -> BTreeMap<String, Factors> {
        self.starts.take().map(|starts| starts.made).unwrap_or_default()
    }

    /// Norms of the linear weights that were read, by module; those that stay on disk have none.
    pub fn take_norms(&mut self) -> BTreeMap<String, f64> {
        self.norms.take().unwrap_or_default()
    }

    /// Note for users on the time that reading the base took, once that is done.
    pub fn loading_note(&self) -> String {
        self.times.note(self.checkpoint.stored_bytes(), self.ahead.as_ref())
    }

    /// The base's fingerprint, once the model has read every tensor.
    pub fn finish(self) -> Result<BaseFingerprint> {
        self.ahead.map_or(Ok(()), DigestsAhead::finish)?;
        // Threads read pieces, which their heaps would keep beside all that is planned.
        trim_heap();
        if self.has_table_on_disk {
            return_large_pieces();
        }
        self.fingerprint.finish()
    }

    /// True if a thread has hashed the tensor: its digest is then part of the fingerprint.
    fn is_hashed(&mut self, name: &str) -> Result<bool> {
        let Some(ahead) = &self.ahead else { return Ok(false) };
        let Some(digest) = self.times.waiting(|| ahead.take(name)) else { return Ok(false) };
        self.fingerprint.add(digest?)?;
        Ok(true)
    }

    /// The result of `read` for a tensor that is hashed already; otherwise that of `hash`, which also gives its digest.
    fn read_hashed<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Checkpoint) -> Result<T>,
        hash: impl FnOnce(&Checkpoint) -> Result<(T, TensorDigest)>,
    ) -> Result<T> {
        let checkpoint = self.checkpoint;
        if self.is_hashed(name)? {
            return self.times.reading(|| read(checkpoint));
        }
        let (read, digest) = self.times.reading(|| hash(checkpoint))?;
        self.fingerprint.add(digest)?;
        Ok(read)
    }
}

impl Source for CheckpointSource<'_, '_> {
    fn stored(&self, name: &str) -> StoredType {
        match self.rewrite {
            Some(_) => self.checkpoint.dense_type(name),
            None => stored_in(self.checkpoint)(name).dtype,
        }
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        let (read, hash) = (|of: &Checkpoint| of.read(name), |of: &Checkpoint| of.read_with_digest(name));
        let tensor = self.read_hashed(name, read, hash)?;
        self.checkpoint.check_finite(name, &tensor)?;
        match &mut self.rewrite {
            Some(rewrite) => rewrite.tensor(name, tensor, self.checkpoint.dense_type(name)),
            None => Ok(tensor),
        }
    }

    fn magnitude(&mut self, module: &str) -> Option<Vec<f32>> {
        self.adapter.get(module)?.magnitude.map(<[f32]>::to_vec)
    }

    fn whole(&mut self, name: &str) -> Result<HostTensor> {
        // The base's is part of its fingerprint, whatever takes its place.
        let base = self.checkpoint.stored_type(name).map(|_| self.read(name)).transpose()?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        match (self.whole.get(module), base) {
            (Some(own), _) => Ok(HostTensor { shape: own.shape.to_vec(), data: TensorData::F32(own.values.to_vec()) }),
            (None, Some(base)) => Ok(base),
            (None, None) => self.read(name),
        }
    }

    fn token_rows(&mut self, module: &str) -> Option<Vec<f32>> {
        self.tokens.get(module).map(|rows| rows.values.clone())
    }

    fn resident_as(&self, name: &str) -> Option<Quantization> {
        stored_in(self.checkpoint)(name).resident_as.filter(|_| self.rewrite.is_none())
    }

    fn read_weight(&mut self, name: &str) -> Result<WeightSource> {
        if self.rewrite.is_some() {
            return self.read(name).map(WeightSource::Tensor);
        }
        let hash = |of: &Checkpoint| of.read_weight_with_digest(name);
        let weight = self.read_hashed(name, |of: &Checkpoint| of.read_weight(name), hash)?;
        // The scales of NF4 were checked when its parts were put together.
        if let WeightSource::Tensor(tensor) = &weight {
            self.checkpoint.check_finite(name, tensor)?;
        }
        if let Some(norms) = &mut self.norms
            && let (Some(module), Some(norm)) = (name.strip_suffix(".weight"), weight.frobenius_norm())
        {
            norms.insert(module.to_owned(), norm);
        }
        match (&mut self.starts, weight) {
            (Some(starts), WeightSource::Tensor(tensor)) => {
                Ok(WeightSource::Tensor(starts.residual(self.checkpoint.arch(), self.seed, name, tensor)?))
            }
            (_, weight) => Ok(weight),
        }
    }

    /// Reads a weight in pieces; one that is rewritten, or begins a term, comes whole.
    fn read_in_pieces(&mut self, name: &str, take: &mut dyn FnMut(WeightSource) -> Result<()>) -> Result<()> {
        if self.rewrite.is_some() || self.starts.is_some() || self.checkpoint.is_nf4(name) {
            return take(self.read_weight(name)?);
        }
        let (checkpoint, is_measured) = (self.checkpoint, self.norms.is_some());
        let (mut first, mut squares) = (0, Vec::new());
        let is_hashed = self.is_hashed(name)?;
        let digest = self.times.reading_pieces(|elsewhere| {
            let take = &mut |piece: HostTensor| {
                let start = Instant::now();
                checkpoint.check_piece(name, first, &piece)?;
                first += piece.elements();
                if is_measured {
                    squares.extend(piece.squares());
                }
                let taken = take(WeightSource::Tensor(piece));
                *elsewhere += start.elapsed();
                taken
            };
            match is_hashed {
                true => checkpoint.read_pieces(name, take).map(|()| None),
                false => checkpoint.read_pieces_with_digest(name, take).map(Some),
            }
        })?;
        digest.map_or(Ok(()), |digest| self.fingerprint.add(digest))?;
        if let (Some(norms), Some(module)) = (&mut self.norms, name.strip_suffix(".weight")) {
            norms.insert(module.to_owned(), squares.into_iter().sum::<f64>().sqrt());
        }
        Ok(())
    }

    /// Read once, for the fingerprint, a piece at a time: what is freed of a whole weight would stay in the heap.
    fn on_disk(&mut self, name: &str) -> Result<Nf4OnDisk> {
        let check = |of: &Checkpoint| of.check_weight(name);
        let hash = |of: &Checkpoint| of.check_weight_with_digest(name).map(|digest| ((), digest));
        self.read_hashed(name, check, hash)?;
        let on_disk = self.checkpoint.on_disk(name)?;
        on_disk.forget_pages();
        Ok(on_disk)
    }

    /// Read once, for the fingerprint and for values that are not finite, a piece at a time.
    fn rows_on_disk(&mut self, name: &str) -> Result<RowsOnDisk> {
        if self.rewrite.is_some() {
            return Err(Error::Failed(format!("{name}: is changed on its way, and is in no file as it is used")));
        }
        self.has_table_on_disk = true;
        let (checkpoint, mut first) = (self.checkpoint, 0);
        let mut check = |piece: HostTensor| -> Result<()> {
            checkpoint.check_piece(name, first, &piece)?;
            first += piece.elements();
            Ok(())
        };
        match self.is_hashed(name)? {
            true => checkpoint.read_pieces(name, &mut check)?,
            false => {
                let digest = checkpoint.read_pieces_with_digest(name, &mut check)?;
                self.fingerprint.add(digest)?;
            }
        }
        let rows = checkpoint.rows_on_disk(name)?;
        rows.forget_pages(0..rows.rows());
        Ok(rows)
    }

    fn all_read(&mut self) -> Result<()> {
        self.others.as_mut().map_or(Ok(()), |others| others.all_gather("weights in host memory", &[]).map(drop))
    }

    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>> {
        let made = self.starts.as_ref().and_then(|starts| starts.made.get(id.module()));
        if let Some(Factors { a, b }) = made {
            return Ok(if id.kind() == ParamKind::LoraB { b } else { a }.clone());
        }
        if !self.by_row.is_empty() {
            return Ok(one_after_the_other(&self.by_row, id, len, columns));
        }
        if let Some(pair) = self.adapter.get(id.module()) {
            return Ok(if id.kind() == ParamKind::LoraB { pair.b } else { pair.a }.to_vec());
        }
        Ok(match self.adalora {
            true => initial_adalora(self.checkpoint.arch(), self.seed, id, len),
            false => initial_lora(self.checkpoint.arch(), self.seed, id, len, columns),
        })
    }
}

/// A `[count, r, K]` or B `[count, N, r]` of several adapters: a term of a lower rank is padded with zeros, and one
/// that is not there is all zeros.
fn one_after_the_other(
    adapters: &[BTreeMap<String, LoraPair<'_>>],
    id: &ParamId,
    len: usize,
    columns: usize,
) -> Vec<f32> {
    let mut values = vec![0.0; len];
    for (values, pairs) in values.chunks_exact_mut(len / adapters.len()).zip(adapters) {
        let Some(pair) = pairs.get(id.module()) else { continue };
        if id.kind() == ParamKind::LoraB {
            let rows = values.chunks_exact_mut(columns).zip(pair.b.chunks_exact(pair.r));
            rows.for_each(|(to, from)| to[..pair.r].copy_from_slice(from));
        } else {
            values[..pair.a.len()].copy_from_slice(pair.a);
        }
    }
    values
}

/// Values of a tensor of a new adapter whose rows have `columns` values: B is zero, A Kaiming-uniform with a = √5,
/// whose bound √(6 / ((1 + a²)·fan_in)) is 1/√fan_in.
pub(crate) fn initial_lora(arch: &Arch, seed: u64, id: &ParamId, len: usize, columns: usize) -> Vec<f32> {
    if id.kind() != ParamKind::LoraA {
        return vec![0.0; len];
    }
    let bound = 1.0 / (columns as f32).sqrt();
    let mut stream = stream_of(arch, seed, INIT_DOMAIN, id);
    (0..len).map(|_| bound * (2.0 * stream.uniform() - 1.0)).collect()
}

/// Values of a tensor of a new adapter of AdaLoRA: E is zero, A and B are normal.
fn initial_adalora(arch: &Arch, seed: u64, id: &ParamId, len: usize) -> Vec<f32> {
    match id.kind() {
        ParamKind::LoraA => adalora::initial(stream_of(arch, seed, INIT_DOMAIN, id), len),
        ParamKind::LoraB => adalora::initial(stream_of(arch, seed, INIT_B_DOMAIN, id), len),
        _ => vec![0.0; len],
    }
}

/// The random numbers of a module's term.
fn stream_of(arch: &Arch, seed: u64, domain: u64, id: &ParamId) -> RngStream {
    let (layer, projection) = arch.find(id.module()).expect("the model asks for terms of its own projections");
    RngStream::new(seed, domain + (layer * 16 + projection.number()) as u64)
}

#[cfg(test)]
mod tests;
