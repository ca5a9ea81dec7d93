//! `--device` of the commands that use no GPU.

use crate::bail_usage;
use crate::config::{Device, Settings};
use crate::error::Result;
use clap::Args;

#[derive(Args)]
pub(super) struct CpuOnly {
    /// Device to compute on: auto or cpu; the command uses no GPU
    #[arg(long)]
    device: Option<String>,
}

impl CpuOnly {
    /// Refused: a GPU, and a text that names no device.
    pub fn check(&self, command: &str) -> Result<()> {
        check_cpu_only(self.device.as_deref(), &format!("`{command}`"))
    }
}

/// Refuses a device other than the CPU, on which alone `what` works.
pub(super) fn check_cpu_only(device: Option<&str>, what: &str) -> Result<()> {
    let Some(device) = device else { return Ok(()) };
    let given = [("device".to_owned(), device.to_owned())];
    if let Some(Device::Cuda(_)) = Settings::load(None, &given)?.device {
        bail_usage!(
            "`--device`: found `{device}`, but {what} works on the CPU only: give cpu or auto, or leave it out"
        );
    }
    Ok(())
}
