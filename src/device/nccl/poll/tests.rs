use super::*;

/// Ranks of which one is gone after some looks.
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
