//! Failpoints of a test build.
//!
//! The variable `QLORA_FAULT` is read once:
//!
//! | value | does |
//! |---|---|
//! | `trace` | prints the name of every place that the process passes, `fault point NAME`, on standard error |
//! | `NAME:N` | ends the process with SIGKILL when it passes the place for the Nth time (1 is the first); a write is
//! torn in half |
//! | `NAME:N:full`, `NAME:N:read-only` | the Nth write there fails, and all later ones, as on a full or read-only disk
//! |
//! | `NAME:N:short`, `NAME:N:interrupted` | the Nth write there takes half of the bytes, or none with EINTR |
//! | `NAME:N:pause:MS` | says so and waits that many milliseconds there |
//! | `NAME:N:wait` | says so and waits there until its standard input ends |
//!
//! `any` means every place. Places are a file's `write/…`, `synced/…`, `renamed/…`, the stages of a checkpoint and of
//! its removal, `micro-batch`, `step` and `evaluation` between them, `sum` within one over several processes,
//! `weights`, each layer that a process writes for others of its machine, and `tensor`, each of a model that is
//! quantized.

use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The errors "No space left on device" and "Read-only file system"
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

pub const VARIABLE: &str = "QLORA_FAULT";

enum Fault {
    Trace,
    At { place: String, nth: u64, action: Action, passed: AtomicU64 },
}

#[derive(Clone, Copy)]
enum Action {
    Kill,
    Full,
    ReadOnly,
    Short,
    Interrupted,
    /// milliseconds
    Pause(u64),
    Wait,
}

static FAULT: OnceLock<Option<Fault>> = OnceLock::new();

fn fault() -> Option<&'static Fault> {
    FAULT.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?)).as_ref()
}

fn parse(text: &str) -> Option<Fault> {
    if text == "trace" {
        return Some(Fault::Trace);
    }
    let mut parts = text.split(':');
    let (place, nth) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
    let action = match parts.next() {
        None => Action::Kill,
        Some("full") => Action::Full,
        Some("read-only") => Action::ReadOnly,
        Some("short") => Action::Short,
        Some("interrupted") => Action::Interrupted,
        Some("pause") => Action::Pause(parts.next()?.parse().ok()?),
        Some("wait") => Action::Wait,
        Some(_) => return None,
    };
    Some(Fault::At { place, nth, action, passed: AtomicU64::new(0) })
}

fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The action at this place now, if any.
fn pass(stage: &str, what: &str) -> Option<Action> {
    let name = if what.is_empty() { stage.to_owned() } else { format!("{stage}/{what}") };
    match fault()? {
        Fault::Trace => {
            say(&format!("fault point {name}"));
            None
        }
        Fault::At { place, nth, action, passed } => {
            if place != "any" && *place != name {
                return None;
            }
            let count = passed.fetch_add(1, Ordering::Relaxed) + 1;
            let lasting = matches!(action, Action::Full | Action::ReadOnly);
            (count == *nth || (lasting && count > *nth)).then_some(*action)
        }
    }
}

fn act(action: Action) -> io::Result<()> {
    match action {
        Action::Kill => {
            let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
            Ok(())
        }
        Action::Full => Err(io::Error::from_raw_os_error(ENOSPC)),
        Action::ReadOnly => Err(io::Error::from_raw_os_error(EROFS)),
        Action::Interrupted => Err(io::ErrorKind::Interrupted.into()),
        // Only a write can be short.
        Action::Short => Ok(()),
        Action::Pause(milliseconds) => {
            say("fault point reached");
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        }
        Action::Wait => {
            say("fault point reached");
            io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
        }
    }
}

/// A place named `stage/what`, or `stage` alone.
pub(crate) fn point(stage: &str, what: &str) -> io::Result<()> {
    if fault().is_none() {
        return Ok(());
    }
    pass(stage, what).map_or(Ok(()), act)
}

/// A place between writes, where only the process can end.
pub(crate) fn moment(stage: &str) {
    let _ = point(stage, "");
}

/// `file.write(bytes)`, which may write only a half.
pub(crate) fn write(mut file: &File, what: &str, bytes: &[u8]) -> io::Result<usize> {
    if fault().is_some()
        && let Some(action) = pass("write", what)
    {
        if matches!(action, Action::Short) {
            return file.write(&bytes[..bytes.len().div_ceil(2)]);
        }
        if !matches!(action, Action::Pause(_) | Action::Wait | Action::Interrupted) {
            file.write_all(&bytes[..bytes.len() / 2])?;
        }
        act(action)?;
    }
    file.write(bytes)
}
