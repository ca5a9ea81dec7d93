//! Frozen weights in the host's memory.

use super::memory::Held;
use super::numa::Interleaved;
use super::operands::{CpuVector, CpuWeight, Dense};
use super::table::CpuTable;
use super::table_on_disk::TableOnDisk;
use super::{Cpu, Precision, bf16, linear, magnitude, streaming};
use crate::backend::{DiskTraffic, LinearGroup, Memory, Quantization, Residency, StateFormat, Weights};
use crate::bail_usage;
use crate::base::{Nf4OnDisk, RowsOnDisk};
use crate::error::{Error, Result};
use crate::files::tensor::{HostTensor, StoredType, WeightSource};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::rope::RopeTable;

/// The plan's line of their gradients.
const WHOLE_GRADIENTS: &str = "gradients of whole modules";
/// The plan's lines of the rows of single tokens and their gradients.
const TOKEN_ROWS: [&str; 2] = ["rows of single tokens", "gradients of rows of single tokens"];

/// The layer of these groups, if weights of it stay on disk.
fn layer_on_disk(groups: [&LinearGroup<Cpu>; 4]) -> Option<usize> {
    groups.into_iter().flat_map(|group| &group.segments).find_map(|segment| match &*segment.weight {
        CpuWeight::OnDisk(weight) => Some(weight.layer()),
        _ => None,
    })
}

impl Cpu {
    fn check_even(&self, name: &str, n: usize, k: usize) -> Result<()> {
        if self.precision != Precision::F32 && (!n.is_multiple_of(2) || !k.is_multiple_of(2)) {
            bail_usage!(
                "{name}: found {n} x {k}, expected even numbers of rows and columns for `compute: bf16`; use `compute: f32`"
            );
        }
        Ok(())
    }
}

impl Weights for Cpu {
    fn weight(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        stored: StoredType,
        read: &mut dyn FnMut() -> Result<WeightSource>,
    ) -> Result<Held<CpuWeight>> {
        let (line, planned) = match quantization {
            Quantization::Nf4 { block_size, double_quant } => {
                ("NF4 weights", Nf4Matrix::bytes_for(n, k, &Nf4Options { block_size, double_quant }))
            }
            Quantization::None => ("weights", n * k * stored.size()),
        };
        self.check_even(name, n, k)?;
        if self.is_dry_run() {
            return Ok(self.memory.hold(line, planned as u64, CpuWeight::Unread));
        }
        let spread = Interleaved::begin();
        let weight = CpuWeight::new(name, n, k, quantization, read()?)?;
        drop(spread);
        Ok(self.memory.hold(line, weight.bytes(), weight))
    }

    fn weight_on_disk(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        layer: usize,
        open: &mut dyn FnMut() -> Result<Nf4OnDisk>,
    ) -> Result<Held<CpuWeight>> {
        let Quantization::Nf4 { block_size, double_quant } = quantization else {
            return Err(Error::Failed(format!("{name}: only a weight in NF4 stays on disk")));
        };
        self.check_even(name, n, k)?;
        let bytes = Nf4Matrix::bytes_for(n, k, &Nf4Options { block_size, double_quant }) as u64;
        let weight = match self.is_dry_run() {
            true => CpuWeight::Unread,
            false => CpuWeight::OnDisk(self.streaming.add(layer, open()?)),
        };
        self.streaming.count(layer, bytes);
        Ok(self.memory.hold(streaming::LINE, 0, weight))
    }

    fn weights_read(&self) -> Option<DiskTraffic> {
        self.streaming.weights_read()
    }

    fn prefetch_weights(&mut self, groups: [&LinearGroup<Self>; 4]) -> Result<()> {
        layer_on_disk(groups).map_or(Ok(()), |layer| self.streaming.prefetch(layer))
    }

    fn wait_weights(&mut self, groups: [&LinearGroup<Self>; 4]) -> Result<()> {
        layer_on_disk(groups).map_or(Ok(()), |layer| self.streaming.wait(layer))
    }

    fn table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        _residency: Residency,
        stored: StoredType,
        read: &mut dyn FnMut() -> Result<HostTensor>,
    ) -> Result<CpuTable> {
        if self.is_dry_run() {
            let bytes = (vocab * hidden * stored.size()) as u64;
            return Ok(CpuTable::Frozen(self.memory.hold(name, bytes, Dense::unread(vocab, hidden))));
        }
        let spread = Interleaved::begin();
        let table = Dense { tensor: read()?, cols: hidden };
        drop(spread);
        assert_eq!(table.rows(), vocab, "table");
        Ok(CpuTable::Frozen(self.memory.hold(name, table.bytes(), table)))
    }

    fn table_on_disk(
        &mut self,
        _name: &str,
        vocab: usize,
        hidden: usize,
        is_head: bool,
        stored: StoredType,
        open: &mut dyn FnMut() -> Result<RowsOnDisk>,
    ) -> Result<CpuTable> {
        let (memory, traffic) = (&self.memory, self.streaming.counted());
        let rows = if self.is_dry_run() { None } else { Some(open()?) };
        Ok(CpuTable::OnDisk(TableOnDisk::new(memory, rows, [vocab, hidden], is_head, stored, traffic)))
    }

    fn vector(
        &mut self,
        name: &'static str,
        len: usize,
        read: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CpuVector> {
        let data = if self.is_dry_run() { Vec::new() } else { read()? };
        assert!(self.is_dry_run() || data.len() == len, "{name}");
        Ok(CpuVector::Frozen(self.memory.hold(name, len as u64 * 4, data)))
    }

    fn trained_table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        states: StateFormat,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CpuTable> {
        let param = self.trained([name, WHOLE_GRADIENTS], vocab * hidden, Some(states), init)?;
        Ok(CpuTable::Trained { param, rows: vocab, cols: hidden })
    }

    fn table_with_rows(
        &mut self,
        name: &'static str,
        [vocab, hidden]: [usize; 2],
        _residency: Residency,
        stored: StoredType,
        tokens: &[u32],
        states: Option<StateFormat>,
        read: &mut dyn FnMut() -> Result<(HostTensor, Option<Vec<f32>>)>,
    ) -> Result<CpuTable> {
        let (dense, rows) = match self.is_dry_run() {
            true => {
                let bytes = (vocab * hidden * stored.size()) as u64;
                (self.memory.hold(name, bytes, Dense::unread(vocab, hidden)), Vec::new())
            }
            false => {
                let spread = Interleaved::begin();
                let (tensor, rows) = read()?;
                drop(spread);
                let rows = rows.unwrap_or_else(|| tensor.rows_f32(hidden, tokens));
                let table = Dense { tensor, cols: hidden };
                assert_eq!(table.rows(), vocab, "table");
                (self.memory.hold(name, table.bytes(), table), rows)
            }
        };
        let mut rows = Some(rows);
        let param =
            self.trained(TOKEN_ROWS, tokens.len() * hidden, states, &mut || Ok(rows.take().unwrap_or_default()))?;
        Ok(CpuTable::Rows { dense, tokens: tokens.to_vec(), param })
    }

    fn trained_vector(
        &mut self,
        name: &'static str,
        len: usize,
        states: StateFormat,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CpuVector> {
        self.trained([name, WHOLE_GRADIENTS], len, Some(states), init).map(|param| CpuVector::Trained(Box::new(param)))
    }

    fn row_squares(&mut self, name: &str, weight: &Held<CpuWeight>, n: usize, k: usize) -> Result<Vec<f32>> {
        if self.is_dry_run() { Ok(Vec::new()) } else { magnitude::row_squares(name, weight, n, k) }
    }

    fn refresh_magnitudes(&mut self, group: &mut LinearGroup<Self>) -> Result<()> {
        if !self.is_dry_run() {
            magnitude::refresh(group);
        }
        Ok(())
    }

    fn rope_table(&mut self, positions: usize, half: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<usize> {
        let dry_run = self.is_dry_run();
        let table = if dry_run { RopeTable { half, cos: Vec::new(), sin: Vec::new() } } else { make() };
        assert!(dry_run || table.cos.len() == positions * half, "rotation angles");
        let bytes = (positions * half * 8) as u64;
        self.ropes.push((positions, self.memory.hold("rotation angles", bytes, table)));
        Ok(self.ropes.len() - 1)
    }

    fn low_rank_columns(&self, group: &LinearGroup<Self>) -> usize {
        match self.precision {
            Precision::F32 => linear::columns(group),
            Precision::Bf16(_) => bf16::operands::low_rank_columns(group),
        }
    }

    fn positions(&self) -> usize {
        self.ropes.first().map_or(0, |rope| rope.0)
    }
}
