//! What a command computes on: chosen here, and nowhere else.

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
#[cfg(any(feature = "cuda", feature = "emulation"))]
use crate::backend::cuda::Cuda;
use crate::config::{self, Settings};
use crate::error::Result;
use crate::model::ModelSpec;
use crate::report::say;

#[cfg(not(any(feature = "cuda", feature = "emulation")))]
const BUILD: &str = "cargo build --release --package qlora-train --features cuda";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// GPU of this number, or the emulation of one.
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    Cuda(usize),
}

/// A piece of work that is the same on every device.
pub trait OnDevice {
    type Output;
    /// `make` makes the backend, once it is known for what model.
    fn on<B: Backend>(self, make: impl FnOnce(&ModelSpec) -> Result<B>) -> Result<Self::Output>;
}

impl Device {
    /// The one that the settings name; without a name a GPU if there is one, which this build can use, else the CPU. Says which.
    /// Refused: a GPU that cannot be used.
    pub fn choose(settings: &Settings) -> Result<Self> {
        match settings.device {
            Some(config::Device::Cpu) => Self::cpu(""),
            Some(config::Device::Cuda(ordinal)) => Self::named(ordinal),
            None => Self::found(),
        }
    }

    fn cpu(why: &str) -> Result<Self> {
        say!("device: cpu, {} threads{why}", rayon::current_num_threads());
        Ok(Self::Cpu)
    }

    #[cfg(not(any(feature = "cuda", feature = "emulation")))]
    fn named(_ordinal: usize) -> Result<Self> {
        crate::refuse!(
            "`device`: found cuda, but this build works on the CPU only; expected cpu or auto, or a build with CUDA: `{BUILD}`"
        );
    }

    #[cfg(not(any(feature = "cuda", feature = "emulation")))]
    fn found() -> Result<Self> {
        // What NVIDIA's driver makes on Linux.
        match std::path::Path::new("/dev/nvidia0").exists() {
            true => Self::cpu(&format!("; this build cannot use the GPU of this machine, another can: `{BUILD}`")),
            false => Self::cpu(""),
        }
    }

    #[cfg(any(feature = "cuda", feature = "emulation"))]
    fn named(ordinal: usize) -> Result<Self> {
        use crate::error::Context;
        let device = qlora_kernels::cuda::Device::open_at(ordinal)
            .or_refuse(|| format!("`device`: found cuda:{ordinal}, expected cpu or a GPU that can be used"))?;
        say!("device: cuda:{ordinal}, {}", device.name());
        Ok(Self::Cuda(ordinal))
    }

    #[cfg(feature = "cuda")]
    fn found() -> Result<Self> {
        match qlora_kernels::cuda::Device::open_at(0) {
            Ok(_) => Self::named(0),
            Err(error) => Self::cpu(&format!(" ({error})")),
        }
    }

    /// An emulated GPU is for tests, which name it.
    #[cfg(all(feature = "emulation", not(feature = "cuda")))]
    fn found() -> Result<Self> {
        Self::cpu("")
    }

    pub fn run<W: OnDevice>(self, work: W) -> Result<W::Output> {
        match self {
            Self::Cpu => work.on(|spec| Ok(Cpu::new(spec.dims()))),
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(ordinal) => work.on(|spec| Cuda::new(ordinal, spec.dims(), &spec.config)),
        }
    }
}
