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
mod tests {
    use super::*;

    /// Ranks of which one is gone after so many looks.
    struct Leaving {
        looks: usize,
        patience: Duration,
    }

    impl Others for Leaving {
        fn check(&mut self) -> Result<()> {
            self.looks = self.looks.checked_sub(1).ok_or_else(|| CudaError::Device("rank 1 is gone".into()))?;
            Ok(())
        }

        fn sum(&mut self, _values: &mut [f32]) -> Result<()> {
            Ok(())
        }

        fn patience(&self) -> Duration {
            self.patience
        }
    }

    #[test]
    fn a_wait_ends_when_it_is_done_when_a_rank_is_gone_and_when_it_takes_too_long() {
        let long = Duration::from_secs(600);
        let mut calls = 0;
        let done = until("a sum", &mut Leaving { looks: 10, patience: long }, |_| {
            calls += 1;
            Ok(calls == 5)
        });
        assert_eq!((done, calls), (Ok(()), 5));
        let error = until("a sum", &mut Leaving { looks: 3, patience: long }, |_| Ok(false)).unwrap_err();
        assert_eq!(error.to_string(), "rank 1 is gone");
        let short = Duration::from_millis(20);
        let error = until("a sum", &mut Leaving { looks: usize::MAX, patience: short }, |_| Ok(false)).unwrap_err();
        assert!(error.to_string().starts_with("NCCL: a sum is not done after 0.02 s"), "{error}");
        let failed = || Err(CudaError::Device("unhandled system error".into()));
        let error = until("a sum", &mut Leaving { looks: 3, patience: long }, |_| failed()).unwrap_err();
        assert_eq!(error.to_string(), "unhandled system error");
    }
}
