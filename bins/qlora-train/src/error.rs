//! One error type for the whole trainer, split by what the process must do with it: exit with 2 (the input was
//! refused before any work), with 1 (the work failed), or with 129 / 130 / 143 (interrupted).

use std::fmt::Display;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong usage, configuration or input: nothing was done and nothing was written. Exit status 2.
    /// The message names the file, the key or tensor, what was found, what was expected and what to do.
    #[error("{0}")]
    Refused(String),
    /// The work began and could not be finished. Exit status 1.
    #[error("{0}")]
    Failed(String),
    /// SIGHUP (1), SIGINT (2) or SIGTERM (15), after a checkpoint was written, or with nothing left behind. Exit status
    /// 128 + signal.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
}

impl Error {
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Refused(_) => 2,
            Error::Failed(_) => 1,
            Error::Interrupted(signal) => 128 + *signal as u8,
        }
    }
}

/// `Err(Error::Refused(format!(…)))`
#[macro_export]
macro_rules! refuse {
    ($($arg:tt)*) => { return Err($crate::error::Error::Refused(format!($($arg)*))) };
}

/// Attaches what was being done to an error that came from elsewhere.
pub trait Context<T> {
    /// The input is at fault: `{what}: {cause}`, exit status 2.
    fn or_refuse(self, what: impl FnOnce() -> String) -> Result<T>;
    /// The work failed: `{what}: {cause}`, exit status 1.
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn or_refuse(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::Refused(format!("{}: {cause}", what())))
    }
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::Failed(format!("{}: {cause}", what())))
    }
}
