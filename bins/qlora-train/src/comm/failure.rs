//! The reason why the processes of a run end: the first fault of one of them, sent to all.

use crate::error::Error;
use serde::{Deserialize, Serialize};

/// The fault of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The rank at fault
    pub of: usize,
    /// A sentence that names it
    pub message: String,
    /// True if the input is at fault, so that nothing was done
    pub usage: bool,
}

impl Failure {
    pub fn new(of: usize, message: String) -> Self {
        Self { of, message, usage: false }
    }

    /// The error that ended the process `name`.
    pub fn of_error(of: usize, name: &str, error: &Error) -> Self {
        Self { of, message: format!("{name} ended the run: {error}"), usage: error.is_usage() }
    }

    pub fn error(&self) -> Error {
        match self.usage {
            true => Error::Refused(self.message.clone()),
            false => Error::Failed(self.message.clone()),
        }
    }
}
