//! Waiting that ends: for the device, as long as all ranks are there.

use super::calls::Others;
use crate::error::{CudaError, Result};
use std::time::{Duration, Instant};

/// A sum of gradients is often over by then: no sleep is as short.
const BUSY: Duration = Duration::from_millis(2);
/// Between two looks afterwards
const PAUSE: Duration = Duration::from_micros(200);

/// Waits until `is_done`. Failed: it fails, a rank is gone, or `what` takes longer than the ranks have for it.
pub(super) fn until(
    what: &str,
    others: &mut dyn Others,
    mut is_done: impl FnMut(&mut dyn Others) -> Result<bool>,
) -> Result<()> {
    let (begun, patience) = (Instant::now(), others.patience());
    while !is_done(&mut *others)? {
        others.check()?;
        let waited = begun.elapsed();
        if waited > patience {
            let seconds = patience.as_secs_f64();
            return Err(CudaError::Device(format!(
                "NCCL: {what} is not done after {seconds} s: a rank hangs, or the way between the GPUs is cut"
            )));
        }
        match waited < BUSY {
            true => std::thread::yield_now(),
            false => std::thread::sleep(PAUSE),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
