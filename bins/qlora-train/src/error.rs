//! The error type of the trainer. Its [`Kind`] is what the process does with it: the exit status.
//!
//! `Display` is the whole sentence that a user reads, from what was being done down to its cause; the causes are there
//! as [`source`](std::error::Error::source) too.

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error: one of ours, of a library, or a sentence.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong usage, configuration or input: nothing was done and nothing was written.
    /// The message names the file, the key or tensor, what was found, what was expected and what to do.
    #[error("{0}")]
    Refused(String),
    /// Like [`Refused`](Self::Refused), on several lines.
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

    /// The lines of the message. A line break within one is of a text that it quotes.
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
macro_rules! refuse {
    ($($arg:tt)*) => { return Err($crate::error::Error::Refused(format!($($arg)*))) };
}

/// Attaches what was being done to an error.
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
mod tests {
    use super::*;
    use std::error::Error as _;
    use std::io;

    #[test]
    fn an_error_keeps_its_kind_and_its_causes_under_every_context() {
        let refused = || Err::<(), _>(Error::Refused("key `r`: found 0".to_owned()));
        let interrupted = || Err::<(), _>(Error::Interrupted(15));
        let missing = || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound));
        let what = || "a/config.json".to_owned();
        for (error, status) in [
            (refused().context(what), 2),
            (refused().failure_context(what), 1),
            (interrupted().context(what), 143),
            (missing().context(what), 1),
            (missing().usage_context(what), 2),
            (missing().context(what).context(what), 1),
            (Err("a sentence").usage_context(what), 2),
        ] {
            let error = error.unwrap_err();
            assert_eq!(error.exit_status(), status, "{error}");
            assert!(error.to_string().starts_with("a/config.json: "), "{error}");
            assert!(error.source().is_some(), "{error}");
        }
        let error = missing().context(what).context(what).unwrap_err();
        let cause = error.source().and_then(|error| error.source()).unwrap();
        assert_eq!(cause.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn lines_of_a_message_are_its_own() {
        let lines = || Error::RefusedLines(vec!["run.yaml: `a\nb` is no key".to_owned(), " 1 | x: 2".to_owned()]);
        let told = Err::<(), _>(lines()).context(|| "settings".to_owned()).unwrap_err().usage_hint(|| "see".to_owned());
        assert_eq!(told.lines(), ["settings: run.yaml: `a\nb` is no key", " 1 | x: 2; see"]);
        assert_eq!(told.to_string(), told.lines().join("\n"));
        assert_eq!((lines().exit_status(), lines().lines().len()), (2, 2));
        assert_eq!(Error::Refused("a\nb".to_owned()).lines(), ["a\nb"]);
    }

    #[test]
    fn a_hint_is_for_faults_of_the_input() {
        let hint = || "choose another".to_owned();
        let refused = Error::Refused("out: is a file".to_owned()).usage_hint(hint);
        assert_eq!((refused.to_string().as_str(), refused.exit_status()), ("out: is a file; choose another", 2));
        let failed = Error::Failed("the disk is full".to_owned()).usage_hint(hint);
        assert_eq!((failed.to_string().as_str(), failed.exit_status()), ("the disk is full", 1));
    }
}
