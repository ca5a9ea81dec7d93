//! The connected processes of a launch: over TCP, which needs no library, or over MPI.

use super::launch::{Launch, Way};
#[cfg(feature = "mpi")]
use super::mpi::{self, Mpi};
use super::{Communicator, Tcp, Timeouts};
use crate::error::{Error, Result};

/// One of several connected processes.
pub struct Joined(Kind);

enum Kind {
    Tcp(Tcp),
    #[cfg(feature = "mpi")]
    Mpi(Box<Mpi>),
}

impl Joined {
    /// Connects to the other processes of a launch. `build` identifies the program, which must be the same for all.
    /// Failed: they did not come, or do not fit together.
    pub fn join(launch: &Launch, build: &str, timeouts: Timeouts) -> Result<Self> {
        Ok(Self(match launch.way {
            Way::Tcp => Kind::Tcp(Tcp::join(launch, build, timeouts)?),
            #[cfg(feature = "mpi")]
            Way::Mpi => Kind::Mpi(Box::new(mpi::join(launch, build, timeouts)?)),
        }))
    }

    /// The operations of all ranks.
    pub fn comm(&mut self) -> &mut dyn Communicator {
        match &mut self.0 {
            Kind::Tcp(comm) => comm,
            #[cfg(feature = "mpi")]
            Kind::Mpi(comm) => comm.as_mut(),
        }
    }

    /// "TCP", or the library
    pub fn over(&self) -> String {
        match &self.0 {
            Kind::Tcp(_) => "TCP".to_owned(),
            #[cfg(feature = "mpi")]
            Kind::Mpi(_) => mpi::library(),
        }
    }

    /// Leaves the others: after success when all have arrived, after an error at once, with the reason.
    pub fn leave(self, error: Option<&Error>) -> Result<()> {
        match self.0 {
            Kind::Tcp(comm) => comm.leave(error),
            #[cfg(feature = "mpi")]
            Kind::Mpi(comm) => comm.leave(error),
        }
    }
}
