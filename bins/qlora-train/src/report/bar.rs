//! Progress on standard error: a bar where it is a terminal, plain lines where it is not.

use super::console::{self, Verbosity, status};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Seconds between two plain lines where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

pub struct Bars {
    bar: ProgressBar,
    what: &'static str,
    plain: bool,
    total: u64,
    /// Done before this process
    from: u64,
    /// Plain lines end with one for all of it.
    ends: bool,
    last: Instant,
    start: Instant,
}

impl Bars {
    pub fn new(what: &'static str, total: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain || !console::says(Verbosity::Normal) {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
        } else {
            console::BARS.add(ProgressBar::new(total))
        };
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} {elapsed}<{eta}")
            .expect("the template is well-formed")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_prefix(what);
        let now = Instant::now();
        Self { bar, what, plain, total, from: 0, ends: false, last: now, start: now }
    }

    /// [`new`](Self::new) for work of which an earlier process did `from`: the time left follows from this process's
    /// speed.
    pub fn resumed(what: &'static str, total: u64, from: u64) -> Self {
        let bars = Self::new(what, total);
        bars.bar.set_position(from);
        bars.bar.reset_eta();
        Self { from, ends: true, ..bars }
    }

    /// Sets the position; `message` is shown beside it.
    pub fn set(&mut self, position: u64, message: String) {
        self.bar.set_position(position);
        if self.plain {
            let due = self.last.elapsed() >= PLAIN_INTERVAL || (position == self.total && self.ends);
            if due && position > 0 {
                // Work that was too short for a line before its end needs none there either.
                self.ends = true;
                self.last = Instant::now();
                let elapsed = self.start.elapsed();
                let left = time_left(elapsed, self.from, position, self.total);
                let gap = if message.is_empty() { "" } else { " " };
                let (what, total) = (self.what, self.total);
                status!("{what} {position}/{total}{gap}{message} {}<{}", duration(elapsed), duration(left));
            }
        } else {
            self.bar.set_message(message);
        }
    }

    /// Sets the position and shows the speed so far; the total has `bytes` bytes, spread about evenly.
    pub fn set_read(&mut self, position: u64, bytes: u64) {
        self.set(position, speed(bytes as f64 * position as f64 / self.total.max(1) as f64, self.start.elapsed()));
    }

    /// Clears the bar; the result is printed in a line of its own.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// "2.41 GB/s"
fn speed(bytes: f64, elapsed: Duration) -> String {
    format!("{:.2} GB/s", bytes / elapsed.as_secs_f64().max(1e-9) / 1e9)
}

/// The time left, by the speed since `from`.
fn time_left(elapsed: Duration, from: u64, position: u64, total: u64) -> Duration {
    let done = position.saturating_sub(from).max(1);
    elapsed.mul_f64(total.saturating_sub(position) as f64 / done as f64)
}

/// "42s", "3m07s", "2h05m".
pub(crate) fn duration(d: Duration) -> String {
    let seconds = d.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests;
