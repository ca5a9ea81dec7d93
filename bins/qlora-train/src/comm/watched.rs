//! The other ranks, as a GPU that adds up by itself hears of them.

use super::Communicator;
use crate::error::{Error, Result};
use qlora_kernels::CudaError;
use qlora_kernels::device::Others;
use std::time::Duration;

/// Time in which the end of another rank, by which a GPU's work fails here too, becomes known
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A communicator that is asked whether all ranks are there while GPUs add up.
pub struct Watched<'a> {
    comm: &'a mut dyn Communicator,
    /// Its error, which says more than that of the GPU that follows from it.
    failed: Option<Error>,
}

impl<'a> Watched<'a> {
    pub fn new(comm: &'a mut dyn Communicator) -> Self {
        Self { comm, failed: None }
    }

    /// The result of what was done meanwhile; where another rank was at fault, that rank's error: a GPU that loses
    /// another one does not know why.
    pub fn settled<T>(self, result: Result<T>) -> Result<T> {
        let Self { comm, failed } = self;
        result.map_err(|error| {
            let of_another = failed.or_else(|| {
                std::thread::sleep(LAST_WORDS);
                comm.check().err()
            });
            of_another.unwrap_or(error)
        })
    }

    fn told(&mut self, result: Result<()>) -> Result<(), CudaError> {
        result.map_err(|error| {
            let told = CudaError::Device(error.to_string());
            self.failed = Some(error);
            told
        })
    }
}

impl Others for Watched<'_> {
    fn check(&mut self) -> Result<(), CudaError> {
        let found = self.comm.check();
        self.told(found)
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), CudaError> {
        let summed = self.comm.all_reduce_sum(values, &mut []);
        self.told(summed)
    }

    fn patience(&self) -> Duration {
        self.comm.patience()
    }
}

#[cfg(test)]
mod tests {
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
        let settled = |is_gone: bool, result: Result<()>| {
            Watched::new(&mut OfTwo { is_gone }).settled(result).map_err(|error| error.to_string())
        };
        assert_eq!(settled(true, of_gpu()), Err("rank 1 is gone".to_owned()));
        assert_eq!(settled(false, of_gpu()), Err("NCCL: remote process exited".to_owned()));
        // What is done is done.
        assert_eq!(settled(true, Ok(())), Ok(()));
        let mut comm = OfTwo { is_gone: true };
        let mut watched = Watched::new(&mut comm);
        assert!(watched.sum(&mut [1.0]).is_err());
        assert_eq!(watched.settled(of_gpu()).unwrap_err().to_string(), "rank 1 has no sum");
    }
}
