//! SIGINT and SIGTERM: the first asks a run to save and stop, the second ends the process at once.

use crate::error::{Context, Result};
use crate::report::say;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

/// Whether the run was asked to stop.
#[derive(Clone, Debug)]
pub struct Interruption(Arc<AtomicI32>);

impl Interruption {
    /// From now on, for the whole process.
    pub fn watch() -> Result<Self> {
        static RECEIVED: OnceLock<Arc<AtomicI32>> = OnceLock::new();
        if let Some(received) = RECEIVED.get() {
            return Ok(Self(received.clone()));
        }
        let mut signals = Signals::new([SIGINT, SIGTERM]).or_fail(|| "signals cannot be watched".to_owned())?;
        let received = RECEIVED.get_or_init(Arc::default).clone();
        let flag = received.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    if flag.swap(signal, Ordering::SeqCst) != 0 {
                        signal_hook::low_level::exit(128 + signal);
                    }
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                    say!("{name}: saving and stopping after the current micro-batch; a second one leaves at once");
                }
            })
            .or_fail(|| "the thread that watches for signals cannot be started".to_owned())?;
        Ok(Self(received))
    }

    /// The signal that asked for it.
    pub fn signal(&self) -> Option<i32> {
        Some(self.0.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
    }
}

/// The command that goes on with this process's run.
pub fn resume_command() -> String {
    let arguments: Vec<String> = std::env::args().collect();
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

/// As a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
