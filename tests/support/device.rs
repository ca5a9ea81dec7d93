//! What the tests of the kernels share: the device, NF4 weights in its memory, and counts for the output.

use half::bf16;
use qlora_kernels::cuda::nf4::absmax_transpose;
use qlora_kernels::cuda::nf4::{Absmax, Layout, Weight};
use qlora_kernels::cuda::{Buffer, Device};
use qlora_kernels::nf4::{self, Nf4Matrix};
use std::sync::atomic::{AtomicU64, Ordering};

pub fn device() -> Device {
    Device::open().expect("a device to test on")
}

/// The schedule of the emulation; nothing on a GPU, which has its own.
pub fn set_schedule(seed: u64) {
    #[cfg(feature = "emulation")]
    qlora_kernels::cuda::emulation::set_schedule(seed);
    let _ = seed;
}

/// How many cases a property runs: `most`, or PROPTEST_CASES if that is fewer (a sanitizer makes each many times slower).
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

/// An NF4 weight in device memory.
pub struct DeviceWeight {
    n: usize,
    k: usize,
    block_size: usize,
    layout: Layout,
    codes: Buffer<u8>,
    absmax: DeviceAbsmax,
}

enum DeviceAbsmax {
    F32(Buffer<f32>),
    DoubleQuantised { codes: Buffer<u8>, nested_absmax: Buffer<f32>, nested_map: Buffer<f32>, offset: Buffer<f32> },
}

impl DeviceWeight {
    /// Transposes the absmax codes on the device if `layout` says so.
    pub fn new(device: &Device, matrix: &Nf4Matrix, layout: Layout) -> Self {
        let absmax = match matrix.absmax() {
            nf4::Absmax::F32(absmax) => {
                let (n, blocks) = (matrix.rows(), matrix.cols() / matrix.block_size());
                let ordered = match layout {
                    Layout::RowMajor => absmax.clone(),
                    Layout::Transposed => (0..n * blocks).map(|i| absmax[i % n * blocks + i / n]).collect(),
                };
                DeviceAbsmax::F32(device.upload(&ordered).unwrap())
            }
            nf4::Absmax::DoubleQuantised { codes, nested_absmax, nested_map, offset, .. } => {
                let mut ordered = device.upload(codes).unwrap();
                if layout == Layout::Transposed {
                    let input = device.upload(codes).unwrap();
                    let (n, blocks) = (matrix.rows(), matrix.cols() / matrix.block_size());
                    absmax_transpose(input.view(), ordered.view_mut(), n, blocks, device.stream()).unwrap();
                }
                DeviceAbsmax::DoubleQuantised {
                    codes: ordered,
                    nested_absmax: device.upload(nested_absmax).unwrap(),
                    nested_map: device.upload(nested_map.as_slice()).unwrap(),
                    offset: device.upload(&[*offset]).unwrap(),
                }
            }
        };
        let codes = device.upload(matrix.codes()).unwrap();
        Self { n: matrix.rows(), k: matrix.cols(), block_size: matrix.block_size(), layout, codes, absmax }
    }

    pub fn weight(&self) -> Weight<'_> {
        let absmax = match &self.absmax {
            DeviceAbsmax::F32(absmax) => Absmax::F32(absmax.view()),
            DeviceAbsmax::DoubleQuantised { codes, nested_absmax, nested_map, offset } => Absmax::DoubleQuantised {
                codes: codes.view(),
                nested_absmax: nested_absmax.view(),
                nested_map: nested_map.view(),
                offset: offset.view(),
            },
        };
        let Self { n, k, block_size, layout, .. } = *self;
        Weight { n, k, block_size, layout, codes: self.codes.view(), absmax }
    }
}

/// Weights whose blocks differ in scale by powers of two, some of them all zero.
pub fn weights(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = qlora_kernels::philox::Stream::new(seed, 1);
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
