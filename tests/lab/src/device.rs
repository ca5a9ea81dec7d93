//! The device under test, its schedules, and counts for the output.

use half::bf16;
use qlora_kernels::device::Device;
use std::sync::atomic::{AtomicU64, Ordering};

pub fn device() -> Device {
    Device::open().expect("a device to test on")
}

/// The schedule of the emulation; nothing on a GPU, which has its own.
pub fn set_schedule(seed: u64) {
    qlora_kernels::device::emulation::set_schedule(seed);
}

/// Cases that a property runs: `most`, or PROPTEST_CASES if that is fewer (a sanitizer makes each many times slower).
pub fn cases(most: u32) -> u32 {
    let limit = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    limit.map_or(most, |limit: u32| limit.min(most))
}

/// Counts cases and prints them, with what they ran on, when the test ends.
pub struct Tally {
    name: &'static str,
    schedules: u64,
    cases: AtomicU64,
}

impl Tally {
    pub fn new(name: &'static str, schedules: u64) -> Self {
        Self { name, schedules, cases: AtomicU64::new(0) }
    }

    pub fn case(&self) {
        self.cases.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let cases = *self.cases.get_mut();
        let name = device().name();
        println!("{}: {cases} cases, {} schedules each, on {name}", self.name, self.schedules);
    }
}

/// Weights whose blocks differ in scale by powers of two, some of them all zero.
pub fn weights(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = qlora_kernels::rng::RngStream::new(seed, 1);
    let mut scale = 1.0;
    (0..len)
        .map(|i| {
            if i % 32 == 0 {
                scale = match stream.below(12) {
                    0 => 0.0,
                    e => (e as f32 - 6.0).exp2(),
                };
            }
            (stream.uniform() * 2.0 - 1.0) * scale
        })
        .collect()
}

pub fn to_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}
