//! What a command computes on: chosen here, and nowhere else.

use super::plan::host_budget;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
#[cfg(any(feature = "cuda", feature = "emulation"))]
use crate::backend::cuda::Cuda;
use crate::backend::observed::Observed;
use crate::config::{self, Settings};
use crate::error::Result;
use crate::model::ModelSpec;
use crate::report::status;

#[cfg(not(any(feature = "cuda", feature = "emulation")))]
const BUILD: &str = "cargo build --release --package qlora-train --features cuda";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// GPU of this number, or the emulation of one.
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    Cuda(usize),
}

/// What a run may hold, beside what is held before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// In all
    pub limit: u64,
    /// Before the run begins
    pub held: u64,
    pub held_name: &'static str,
    /// Of the host's memory, beside a GPU
    pub host_limit: u64,
}

#[cfg(any(feature = "cuda", feature = "emulation"))]
impl Budget {
    /// What the driver takes later: the kernels' code, which it loads at their first launch, and their stacks.
    const LATER: u64 = 128 << 20;
    /// A context on a GPU that cannot be asked: 0.5 GiB is more than those of sm_80 to sm_120 are known to take.
    const CONTEXT: u64 = 512 << 20;

    /// On a GPU where a context was just made. Other processes count as held, as their memory is not to be had either.
    fn of_gpu(capacity: qlora_kernels::cuda::Capacity, limit: Option<u64>, host_limit: u64) -> Self {
        let held = (capacity.total - capacity.free).saturating_add(Self::LATER);
        let limit = limit.map_or(capacity.total, |limit| limit.min(capacity.total));
        Self { limit, held, held_name: "CUDA context, and what else is on the GPU", host_limit }
    }

    fn of_another_gpu(limit: u64, host_limit: u64) -> Self {
        Self { limit, held: Self::CONTEXT + Self::LATER, held_name: "CUDA context (assumed)", host_limit }
    }
}

/// A piece of work that is the same on every device.
pub trait OnDevice {
    type Output;
    /// `make` makes the backend, once it is known for what model, with the bytes that were planned for it.
    fn on<B: Backend>(self, make: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Self::Output>;
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
        status!("device: cpu, {} threads{why}", rayon::current_num_threads());
        Ok(Self::Cpu)
    }

    #[cfg(not(any(feature = "cuda", feature = "emulation")))]
    fn named(_ordinal: usize) -> Result<Self> {
        crate::refuse!(
            "`device: cuda`: this build has no CUDA support; rebuild it with `{BUILD}`, or use `--device cpu`"
        );
    }

    #[cfg(not(any(feature = "cuda", feature = "emulation")))]
    fn found() -> Result<Self> {
        // What NVIDIA's driver makes on Linux.
        match std::path::Path::new("/dev/nvidia0").exists() {
            true => Self::cpu(&format!(
                "; this machine has a GPU, but this build has no CUDA support: rebuild it with `{BUILD}`"
            )),
            false => Self::cpu(""),
        }
    }

    #[cfg(any(feature = "cuda", feature = "emulation"))]
    fn named(ordinal: usize) -> Result<Self> {
        use crate::error::Context;
        let device = qlora_kernels::cuda::Device::open_at(ordinal)
            .or_refuse(|| format!("`device`: cuda:{ordinal} cannot be used; use another GPU or `--device cpu`"))?;
        status!("device: cuda:{ordinal}, {}", device.name());
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
            Self::Cpu => work.on(|spec, _| Ok(Observed::new(Cpu::new(spec.dims())))),
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(ordinal) => {
                work.on(|spec, bytes| Cuda::new(ordinal, spec.dims(), &spec.config, bytes).map(Observed::new))
            }
        }
    }

    /// What memory a run on it is short of first.
    pub fn place(self) -> &'static str {
        match self {
            Self::Cpu => "host memory",
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(_) => "GPU memory",
        }
    }

    /// The setting that limits it.
    pub fn memory_setting(self) -> &'static str {
        match self {
            Self::Cpu => "host_memory",
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(_) => "device_memory",
        }
    }

    /// What a run on this machine may hold.
    pub fn budget(self, settings: &Settings) -> Result<Budget> {
        match self {
            Self::Cpu => {
                let limit = host_budget(settings.host_memory.map(|bytes| bytes.0));
                Ok(Budget { limit, held: 0, held_name: "", host_limit: 0 })
            }
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(ordinal) => {
                let capacity = qlora_kernels::cuda::Device::open_at(ordinal)?.capacity()?;
                let host_limit = host_budget(settings.host_memory.map(|bytes| bytes.0));
                Ok(Budget::of_gpu(capacity, settings.device_memory.map(|bytes| bytes.0), host_limit))
            }
        }
    }

    /// Bytes of the GPU that are taken now, by this process and others; none on the CPU.
    pub fn taken_bytes(self) -> Result<Option<u64>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(ordinal) => {
                let capacity = qlora_kernels::cuda::Device::open_at(ordinal)?.capacity()?;
                Ok(Some(capacity.total - capacity.free))
            }
        }
    }

    /// The GPU's name; none on the CPU.
    pub fn gpu(self) -> Result<Option<String>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(ordinal) => Ok(Some(qlora_kernels::cuda::Device::open_at(ordinal)?.name())),
        }
    }

    /// The same for a plan: sizes that the settings give may be those of another machine.
    pub fn budget_of_plan(self, settings: &Settings) -> Result<Budget> {
        match self {
            Self::Cpu => {
                let limit = settings.host_memory.map_or_else(|| host_budget(None), |bytes| bytes.0);
                Ok(Budget { limit, held: 0, held_name: "", host_limit: 0 })
            }
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Self::Cuda(_) => match settings.device_memory {
                Some(limit) => {
                    let host_limit = settings.host_memory.map_or_else(|| host_budget(None), |bytes| bytes.0);
                    Ok(Budget::of_another_gpu(limit.0, host_limit))
                }
                None => self.budget(settings),
            },
        }
    }

    /// As [`choose`](Self::choose), for a plan: with the size of its memory given, a GPU need not be there.
    pub fn choose_for_plan(settings: &Settings) -> Result<Self> {
        match settings.device {
            #[cfg(any(feature = "cuda", feature = "emulation"))]
            Some(config::Device::Cuda(ordinal)) if settings.device_memory.is_some() => Ok(Self::Cuda(ordinal)),
            _ => Self::choose(settings),
        }
    }
}
