//! The code that computes linear layers on a GPU: what the settings ask for, and what the GPU has.

use crate::backend::run_shape::LinearRows;
use crate::config::{LinearKernels, gpu_named};
use crate::error::{Context, Result};
use crate::report::{thousands, warning};
use qlora_kernels::device::{Device, DeviceInfo, KERNELS, Kernels};
use qlora_kernels::ops::cublaslt::CublasLt;
use qlora_kernels::ops::dispatch::{Card, FEW_TOKENS, MANY_TOKENS, Row};

/// Arithmetic of a run on a GPU by the fused kernels alone
pub const FUSED: &str = "bf16 by the fused kernels of a GPU";

/// Rows of the kernels' dispatch table for a GPU.
#[derive(Clone, Debug, Default)]
pub struct Linear {
    rows: LinearRows,
    /// Version of cuBLASLt, whose code is on the GPU
    library: Option<String>,
    /// Name of an opened GPU: the library's choices follow from its multiprocessors too
    gpu: Option<String>,
}

fn forced(wanted: LinearKernels) -> Option<Row> {
    match wanted {
        LinearKernels::Auto => None,
        LinearKernels::Fused => Some(Row::Fused),
        LinearKernels::Dequantize => Some(Row::Dequantize),
    }
}

impl Linear {
    /// Those of an opened GPU. Where cuBLASLt may be used, its code is loaded now: before anybody asks how much of the
    /// GPU's memory is free. Refused: `dequantize` without the library.
    pub fn on(device: &Device, wanted: LinearKernels) -> Result<Self> {
        let DeviceInfo { gpu, compute_capability, .. } = device.info()?;
        // The library is looked for only where it is of use.
        let would = Card { compute_capability, has_cublaslt: true };
        let is_of_use = LinearRows { card: would, forced: None }.may_dequantize(usize::MAX);
        let card = Card { compute_capability, has_cublaslt: is_of_use && CublasLt::is_present() };
        let rows = LinearRows { card, forced: forced(wanted) };
        let mut linear = Self { rows, library: None, gpu: Some(gpu) };
        if !linear.may_dequantize() {
            return Ok(linear);
        }
        match (CublasLt::load(device), wanted) {
            (Ok(version), _) => linear.library = Some(version),
            (Err(error), LinearKernels::Auto) => {
                warning!("linear layers: fused, as cuBLASLt cannot be used: {error}");
                linear.rows.card.has_cublaslt = false;
            }
            (error, _) => {
                error.usage_context(|| {
                    "`linear`: dequantize needs cuBLASLt, which comes with CUDA's libraries; use auto or fused"
                        .to_owned()
                })?;
            }
        }
        Ok(linear)
    }

    /// Those of a plan: of a GPU of this name, which is not there; without a name, those of the GPU of this number if
    /// it is here.
    pub fn of_plan(gpu: Option<&str>, here: usize, wanted: LinearKernels) -> Self {
        let opened = || Device::open_at(here).ok().and_then(|device| Self::on(&device, wanted).ok());
        match gpu {
            None if KERNELS == Kernels::Cuda => opened().unwrap_or_else(|| Self::planned(None, wanted)),
            gpu => Self::planned(gpu, wanted),
        }
    }

    /// Those of a GPU of this name, which is not there; of one without a name: as `wanted`, else the fused kernels.
    fn planned(gpu: Option<&str>, wanted: LinearKernels) -> Self {
        let is_hopper = gpu.and_then(gpu_named).is_some_and(|(name, _)| name.starts_with('H'));
        let card = if is_hopper { Card { compute_capability: (9, 0), has_cublaslt: true } } else { Card::default() };
        Self { rows: LinearRows { card, forced: forced(wanted) }, ..Self::default() }
    }

    pub fn fused() -> Self {
        Self { rows: LinearRows { card: Card::default(), forced: Some(Row::Fused) }, ..Self::default() }
    }

    pub fn rows(&self) -> LinearRows {
        self.rows
    }

    /// True if batches may be long enough for weights to be dequantized.
    pub fn may_dequantize(&self) -> bool {
        self.rows.may_dequantize(usize::MAX)
    }

    /// True if weights may be dequantized though nobody asked for it.
    pub fn was_chosen(&self) -> bool {
        self.may_dequantize() && self.rows.forced.is_none()
    }

    /// True if nobody asked for one of the rows.
    pub fn is_left_open(&self) -> bool {
        self.rows.forced.is_none()
    }

    /// Tokens of the shortest batch for which weights may be dequantized.
    fn fewest_tokens(&self) -> String {
        let fewest = if self.was_chosen() { MANY_TOKENS } else { FEW_TOKENS + 1 };
        thousands(fewest as u64)
    }

    /// Arithmetic of a run, with what decides the order of its sums.
    pub fn arithmetic(&self) -> String {
        if !self.may_dequantize() {
            return FUSED.to_owned();
        }
        let version = self.library.as_deref().unwrap_or("of any version");
        let (row, gpu) = (Row::Dequantize, self.gpu.as_deref().unwrap_or("any GPU"));
        let fewest = self.fewest_tokens();
        format!("bf16, linear layers by {row} {version} on {gpu} for batches of {fewest} tokens and more")
    }
}

impl std::fmt::Display for Linear {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if !self.may_dequantize() {
            return write!(f, "{}", Row::Fused);
        }
        let version = self.library.as_deref().map_or(String::new(), |version| format!(" {version}"));
        let (row, fewest) = (Row::Dequantize, self.fewest_tokens());
        write!(f, "{row}{version} for batches of {fewest} tokens and more, else fused")
    }
}

#[cfg(test)]
mod tests;
