//! SIGINT, SIGTERM and SIGHUP: the first asks the work to stop in good order, the second ends the process at once.

use crate::error::{Context, Error, Result};
use crate::files::shell::quoted;
use crate::report::status;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Words for people at the first signal; none: it ends the process at once.
static ANSWER: Mutex<Option<&'static str>> = Mutex::new(None);

/// A request to stop, if there was one.
#[derive(Clone, Debug)]
pub struct Interruption(Arc<AtomicI32>);

impl Interruption {
    /// Watches for signals from now on, for the whole process; `answer` is printed at the first signal, in place of
    /// that of an earlier watch. A SIGHUP that the process was started to ignore, as by nohup, stays ignored.
    pub fn watch(answer: &'static str) -> Result<Self> {
        static RECEIVED: OnceLock<Arc<AtomicI32>> = OnceLock::new();
        set_answer(Some(answer));
        if let Some(received) = RECEIVED.get() {
            return Ok(Self(received.clone()));
        }
        let hang_up = (!ignored(SIGHUP)).then_some(SIGHUP);
        let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hang_up))
            .context(|| "signals cannot be watched".to_owned())?;
        let received = RECEIVED.get_or_init(Arc::default).clone();
        let flag = received.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    let answer = *ANSWER.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(answer) = answer.filter(|_| flag.swap(signal, Ordering::SeqCst) == 0) else {
                        signal_hook::low_level::exit(128 + signal)
                    };
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                    status!("{name}: {answer}; a second one leaves at once");
                }
            })
            .context(|| "the thread that watches for signals cannot be started".to_owned())?;
        Ok(Self(received))
    }

    /// From now on a signal ends the process at once, until it is watched for again. Interrupted: one came before.
    pub fn end(self) -> Result<()> {
        set_answer(None);
        self.signal().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
    }

    /// The signal that asked for it.
    pub fn signal(&self) -> Option<i32> {
        Some(self.0.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
    }
}

fn set_answer(answer: Option<&'static str>) {
    *ANSWER.lock().unwrap_or_else(PoisonError::into_inner) = answer;
}

/// True if the process ignores a signal; false where that cannot be told.
fn ignored(signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    ignored_in(&status, signal)
}

/// `SigIgn` is a mask in hexadecimal, its lowest bit signal 1.
fn ignored_in(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The command that continues this process's run.
pub fn resume_command() -> String {
    let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    resumed(&arguments)
}

fn resumed(arguments: &[String]) -> String {
    const FLAGS: [&str; 4] = [
        "--resume-from-checkpoint",
        "--resume_from_checkpoint",
        "--auto-resume-from-checkpoints",
        "--auto_resume_from_checkpoints",
    ];
    let mut words: Vec<String> = Vec::new();
    let mut arguments = arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        if FLAGS.contains(&argument.as_str()) {
            // Its value, if it has one.
            arguments.next_if(|value| !value.starts_with("--"));
        } else if !FLAGS.iter().any(|flag| argument.starts_with(&format!("{flag}="))) {
            words.push(quoted(argument));
        }
    }
    words.push("--resume-from-checkpoint".to_owned());
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_the_process() {
        let status = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001004\nSigCgt:\t0000000000000000\n";
        assert!(ignored_in(status, 3) && ignored_in(status, 13));
        assert!(!ignored_in(status, SIGHUP) && !ignored_in(status, SIGTERM) && !ignored_in("", SIGHUP));
    }

    #[test]
    fn the_command_to_resume_is_the_one_given_with_the_flag_once() {
        let of = |line: &str| resumed(&line.split('|').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("q|train|a.yaml"), "q train a.yaml --resume-from-checkpoint");
        assert_eq!(of("q|train|--resume-from-checkpoint|--json"), "q train --json --resume-from-checkpoint");
        assert_eq!(of("q|train|--resume_from_checkpoint|out/c|--json"), "q train --json --resume-from-checkpoint");
        assert_eq!(of("q|train|--resume-from-checkpoint=true|--data|x"), "q train --data x --resume-from-checkpoint");
        assert_eq!(of("q|--data|it's a file"), r"q --data 'it'\''s a file' --resume-from-checkpoint");
    }
}
