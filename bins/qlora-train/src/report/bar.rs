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
        Self { bar, what, plain, total, last: now, start: now }
    }

    /// `position` of the total is done; `message` is what is worth knowing about it.
    pub fn set(&mut self, position: u64, message: String) {
        self.bar.set_position(position);
        if self.plain {
            let due = self.last.elapsed() >= PLAIN_INTERVAL || position == self.total;
            if due && position > 0 {
                self.last = Instant::now();
                let elapsed = self.start.elapsed();
                let left = elapsed.mul_f64((self.total - position.min(self.total)) as f64 / position as f64);
                let gap = if message.is_empty() { "" } else { " " };
                let (what, total) = (self.what, self.total);
                status!("{what} {position}/{total}{gap}{message} {}<{}", duration(elapsed), duration(left));
            }
        } else {
            self.bar.set_message(message);
        }
    }

    /// Leaves the last state on the screen.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}

/// "42s", "3m07s", "2h05m".
fn duration(d: Duration) -> String {
    let seconds = d.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let of = |s| duration(Duration::from_secs(s));
        assert_eq!([of(0), of(59), of(60), of(187), of(7500)], ["0s", "59s", "1m00s", "3m07s", "2h05m"]);
    }
}
