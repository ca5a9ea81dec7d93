//! Rotation angles on the device.

use qlora_kernels::device::Buffer;
use qlora_kernels::ops::RopeTable;

/// Rotation angles of every position.
pub struct Rope {
    pub positions: usize,
    pub half: usize,
    pub cosines: Buffer<f32>,
    pub sines: Buffer<f32>,
}

impl Rope {
    pub fn table(&self) -> RopeTable<'_> {
        RopeTable { half: self.half, cosines: self.cosines.view(), sines: self.sines.view() }
    }
}
