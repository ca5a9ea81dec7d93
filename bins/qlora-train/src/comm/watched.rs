//! A watch on the other ranks while GPUs add up by themselves.

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

    /// The result of the work; if another rank was at fault, that rank's error, because a GPU that loses another one
    /// does not know the reason.
    pub fn explain<T>(self, result: Result<T>) -> Result<T> {
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
mod tests;
