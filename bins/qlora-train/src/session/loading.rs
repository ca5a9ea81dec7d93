//! Time that loading a base takes, by its parts.

use crate::base::DigestsAhead;
use crate::files::units::format_bytes;
use crate::report::count;
use std::time::{Duration, Instant};

/// Time since the first weight was asked for, and the reader's shares of it.
#[derive(Default)]
pub struct LoadTimes {
    begun: Option<Instant>,
    /// Waiting for a thread that hashes
    waiting: Duration,
    /// Reading, and hashing what no thread has begun with
    reading: Duration,
}

impl LoadTimes {
    /// Waits for the digest of a tensor that threads hash ahead.
    pub fn waiting<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        self.begun.get_or_insert(start);
        let waited = wait();
        self.waiting += start.elapsed();
        waited
    }

    /// Reads a tensor.
    pub fn reading<T>(&mut self, read: impl FnOnce() -> T) -> T {
        self.reading_pieces(|_| read())
    }

    /// Reads a tensor piece by piece; `read` counts the time in which somebody else has the pieces.
    pub fn reading_pieces<T>(&mut self, read: impl FnOnce(&mut Duration) -> T) -> T {
        let start = Instant::now();
        self.begun.get_or_insert(start);
        let mut elsewhere = Duration::ZERO;
        let done = read(&mut elsewhere);
        self.reading += start.elapsed().saturating_sub(elsewhere);
        done
    }

    /// Note for users on a base of `bytes` bytes that has just been loaded.
    pub fn note(&self, bytes: u64, ahead: Option<&DigestsAhead>) -> String {
        let hashing = ahead.map(|ahead| (ahead.threads(), ahead.buffer_bytes()));
        note(bytes, self.begun.map_or(Duration::ZERO, |begun| begun.elapsed()), self.waiting, self.reading, hashing)
    }
}

/// `hashing`: threads that hash ahead, and the bytes that they hold.
fn note(bytes: u64, all: Duration, waiting: Duration, reading: Duration, hashing: Option<(usize, u64)>) -> String {
    let [all, waiting, reading] = [all, waiting, reading].map(|time| time.as_secs_f64());
    let gigabytes = bytes as f64 / 1e9;
    let threads = match hashing {
        Some((threads @ 1.., bytes)) => {
            format!(" of {} with {} of buffers", count(threads as u64, "thread"), format_bytes(bytes))
        }
        _ => String::new(),
    };
    format!(
        "the base's weights: {gigabytes:.2} GB in {all:.1} s, {:.2} GB/s: {waiting:.1} s waiting for hashes{threads}, \
         {reading:.1} s reading, {:.1} s quantizing and putting them in their place",
        gigabytes / all.max(1e-9),
        (all - waiting - reading).max(0.0)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_splits_the_time_and_names_the_speed() {
        let seconds = Duration::from_secs_f64;
        let told = note(15_000_000_000, seconds(6.0), seconds(0.5), seconds(3.0), Some((8, 2 << 20)));
        assert_eq!(
            told,
            "the base's weights: 15.00 GB in 6.0 s, 2.50 GB/s: 0.5 s waiting for hashes of 8 threads with 2.0 MiB of \
             buffers, 3.0 s reading, 2.5 s quantizing and putting them in their place"
        );
        // A small base is hashed as it is read.
        let told = note(1000, seconds(0.1), Duration::ZERO, seconds(0.1), Some((0, 0)));
        assert!(told.contains(" 0.00 GB/s: 0.0 s waiting for hashes, 0.1 s reading, 0.0 s quantizing"), "{told}");
    }

    #[test]
    fn time_that_somebody_else_has_the_pieces_is_no_reading() {
        let mut times = LoadTimes::default();
        assert_eq!(times.reading(|| 5), 5);
        let before = times.reading;
        times.reading_pieces(|elsewhere| {
            std::thread::sleep(Duration::from_millis(30));
            *elsewhere += Duration::from_secs(1);
        });
        assert_eq!(times.reading, before);
        times.waiting(|| std::thread::sleep(Duration::from_millis(10)));
        assert!(times.waiting >= Duration::from_millis(10) && times.reading == before);
    }
}
