use super::*;

/// One of two ranks, whose end the other may have heard of.
struct OfTwo {
    is_gone: bool,
}

impl Communicator for OfTwo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        2
    }

    fn on_this_machine(&self) -> (usize, usize) {
        (0, 2)
    }

    fn all_reduce_sum(&mut self, _gradients: &mut [f32], _totals: &mut [f64]) -> Result<()> {
        Err(Error::Failed("rank 1 has no sum".to_owned()))
    }

    fn check(&self) -> Result<()> {
        if self.is_gone { Err(Error::Failed("rank 1 is gone".to_owned())) } else { Ok(()) }
    }

    fn all_gather(&mut self, _what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec(); 2])
    }

    fn broadcast(&mut self, _what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        Ok(own)
    }
}

#[test]
fn an_error_of_a_gpu_is_that_of_the_rank_that_it_follows_from() {
    let of_gpu = || Err::<(), Error>(Error::Failed("NCCL: remote process exited".to_owned()));
    let explained = |is_gone: bool, result: Result<()>| {
        Watched::new(&mut OfTwo { is_gone }).explain(result).map_err(|error| error.to_string())
    };
    assert_eq!(explained(true, of_gpu()), Err("rank 1 is gone".to_owned()));
    assert_eq!(explained(false, of_gpu()), Err("NCCL: remote process exited".to_owned()));
    // A result that is there counts.
    assert_eq!(explained(true, Ok(())), Ok(()));
    let mut comm = OfTwo { is_gone: true };
    let mut watched = Watched::new(&mut comm);
    assert!(watched.sum(&mut [1.0]).is_err());
    assert_eq!(watched.explain(of_gpu()).unwrap_err().to_string(), "rank 1 has no sum");
}
