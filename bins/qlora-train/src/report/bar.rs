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

    /// Like [`new`](Self::new), where `from` was done by an earlier process: the time left is told by what this one
    /// does.
    pub fn resumed(what: &'static str, total: u64, from: u64) -> Self {
        let bars = Self::new(what, total);
        bars.bar.set_position(from);
        bars.bar.reset_eta();
        Self { from, ends: true, ..bars }
    }

    /// `position` of the total is done; `message` is what is worth knowing about it.
    pub fn set(&mut self, position: u64, message: String) {
        self.bar.set_position(position);
        if self.plain {
            let due = self.last.elapsed() >= PLAIN_INTERVAL || (position == self.total && self.ends);
            if due && position > 0 {
                // What was short enough for no line before its end needs none there either.
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

    /// `position` of the total is read, which has so many bytes, about the same in each: with the speed so far.
    pub fn set_read(&mut self, position: u64, bytes: u64) {
        self.set(position, speed(bytes as f64 * position as f64 / self.total.max(1) as f64, self.start.elapsed()));
    }

    /// Leaves nothing on the screen: what came of it is said in a line.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// "2.41 GB/s"
fn speed(bytes: f64, elapsed: Duration) -> String {
    format!("{:.2} GB/s", bytes / elapsed.as_secs_f64().max(1e-9) / 1e9)
}

/// By what was done since `from`.
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
mod tests {
    use super::*;

    #[test]
    fn the_time_left_counts_what_this_process_did() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left(seconds(10), 0, 100, 300), seconds(20));
        assert_eq!(time_left(seconds(10), 300, 400, 1000), seconds(60));
        assert_eq!(time_left(seconds(10), 0, 300, 300), seconds(0));
    }

    /// Right after going on nothing is known of the speed; a step later it is that of this process.
    #[test]
    fn the_bar_of_a_resumed_run_tells_the_time_that_is_left() {
        let mut bars = Bars::resumed("training", 1000, 900);
        assert_eq!((bars.bar.position(), bars.bar.eta()), (900, Duration::ZERO));
        std::thread::sleep(Duration::from_millis(200));
        let before = bars.start.elapsed();
        bars.set(910, String::new());
        let left = bars.bar.eta();
        let after = bars.start.elapsed();
        // 90 steps at the speed of 10, and not at that of 910.
        let (least, most) = (before.mul_f64(8.5), after.mul_f64(12.0));
        assert!((least..most).contains(&left), "{left:?} of {least:?} to {most:?}");
    }

    #[test]
    fn the_speed_of_reading_is_in_gigabytes() {
        assert_eq!(speed(7.5e9, Duration::from_secs(3)), "2.50 GB/s");
        assert!(speed(0.0, Duration::ZERO).starts_with("0.00 "));
    }

    #[test]
    fn durations_are_short() {
        let of = |s| duration(Duration::from_secs(s));
        assert_eq!([of(0), of(59), of(60), of(187), of(7500)], ["0s", "59s", "1m00s", "3m07s", "2h05m"]);
    }
}
