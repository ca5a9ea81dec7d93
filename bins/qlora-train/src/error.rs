//! The error type of the trainer. Its [`Kind`] decides the exit status.
//!
//! `Display` is the whole sentence that a user reads, from the failed action down to its cause; the causes are also
//! there as [`source`](std::error::Error::source).

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error: one of ours, of a library, or a sentence.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong usage, configuration or input: nothing was done and nothing was written.
    /// The message names the file, the key or tensor, what was found, what was expected and what to do.
    #[error("{0}")]
    Refused(String),
    /// [`Refused`](Self::Refused) with a message of several lines.
    #[error("{}", .0.join("\n"))]
    RefusedLines(Vec<String>),
    /// The work began and could not be finished.
    #[error("{0}")]
    Failed(String),
    /// SIGHUP (1), SIGINT (2) or SIGTERM (15), after a checkpoint was written, or with nothing left behind.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// An error from below, and what was being done.
    #[error("{context}: {source}")]
    Context { kind: Kind, context: String, source: Cause },
    /// An error, and what may be done about it.
    #[error("{source}; {hint}")]
    Hint { source: Box<Error>, hint: String },
}

/// Consequence of an error for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Refused before any work
    Usage,
    /// Failed on the way
    Failure,
    /// Ended by this signal
    Signal(i32),
}

impl Kind {
    /// 2, 1, or 128 + signal.
    pub fn exit_status(self) -> u8 {
        match self {
            Kind::Usage => 2,
            Kind::Failure => 1,
            Kind::Signal(signal) => 128 + signal as u8,
        }
    }
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Error::Refused(_) | Error::RefusedLines(_) => Kind::Usage,
            Error::Failed(_) => Kind::Failure,
            Error::Interrupted(signal) => Kind::Signal(*signal),
            Error::Context { kind, .. } => *kind,
            Error::Hint { source, .. } => source.kind(),
        }
    }

    pub fn exit_status(&self) -> u8 {
        self.kind().exit_status()
    }

    /// True if the input is at fault, so that nothing was done.
    pub fn is_usage(&self) -> bool {
        self.kind() == Kind::Usage
    }

    /// The lines of the message. A line break within one belongs to a quoted text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = match self {
            Error::RefusedLines(lines) => lines.clone(),
            Error::Context { source, .. } => match source.downcast_ref::<Error>() {
                Some(error) => error.lines(),
                None => return vec![self.to_string()],
            },
            Error::Hint { source, .. } => source.lines(),
            _ => return vec![self.to_string()],
        };
        match self {
            Error::Context { context, .. } => lines[0] = format!("{context}: {}", lines[0]),
            Error::Hint { hint, .. } => *lines.last_mut().expect("a message has a line") += &format!("; {hint}"),
            _ => {}
        }
        lines
    }

    /// Adds what may be done about a fault of the input; other errors stay as they are.
    pub fn usage_hint(self, hint: impl FnOnce() -> String) -> Self {
        if self.is_usage() { Error::Hint { source: Box::new(self), hint: hint() } } else { self }
    }
}

/// `Err(Error::Refused(format!(…)))`
#[macro_export]
macro_rules! bail_usage {
    ($($arg:tt)*) => { return Err($crate::error::Error::Refused(format!($($arg)*))) };
}

/// Adds the failed action to an error.
pub trait Context<T>: Sized {
    /// `{what}: {cause}`. An error of ours keeps its kind; one of a library is a failure.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
    /// `{what}: {cause}`, and the input is at fault.
    fn usage_context(self, what: impl FnOnce() -> String) -> Result<T>;
    /// `{what}: {cause}`, and the work failed, even where the cause would be a fault of the input.
    fn failure_context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Cause>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| {
            let source = cause.into();
            let kind = source.downcast_ref::<Error>().map_or(Kind::Failure, Error::kind);
            Error::Context { kind, context: what(), source }
        })
    }
    fn usage_context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::Context { kind: Kind::Usage, context: what(), source: cause.into() })
    }
    fn failure_context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::Context { kind: Kind::Failure, context: what(), source: cause.into() })
    }
}

#[cfg(test)]
mod tests;
