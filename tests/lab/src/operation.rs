//! One description per operation of the kernels. It serves the check against the reference and the timing: what is
//! measured is what was tested.

use super::device::set_schedule;
use qlora_kernels::Result;
use qlora_kernels::device::{Device, Stream};
use std::fmt::Debug;

pub trait Operation: Clone + Debug {
    /// In host memory, a pure function of the description.
    type Inputs;
    /// In device memory, outputs poisoned.
    type Buffers;
    type Output: PartialEq + Debug;

    fn name(&self) -> String;
    fn shape(&self) -> String;
    /// Multiplications and additions that the result needs; the kernel may make more.
    fn flops(&self) -> f64;
    /// Bytes of device memory that the operation must read and write at least, each once.
    fn bytes(&self) -> f64;
    fn inputs(&self) -> Self::Inputs;
    fn upload(&self, device: &Device, inputs: &Self::Inputs) -> Result<Self::Buffers>;
    /// Queues the operation once.
    fn launch(&self, buffers: &mut Self::Buffers, stream: Stream) -> Result<()>;
    fn download(&self, device: &Device, buffers: &Self::Buffers) -> Result<Self::Output>;
    /// Compares about `most` outputs (all of a smaller operation) with the reference. An error says which differ, by
    /// how much, and the bound.
    fn check(&self, inputs: &Self::Inputs, output: &Self::Output, most: usize) -> std::result::Result<(), String>;
}

/// Runs once on fresh buffers.
pub fn run<O: Operation>(device: &Device, operation: &O, inputs: &O::Inputs) -> O::Output {
    let mut buffers = operation.upload(device, inputs).unwrap();
    operation.launch(&mut buffers, device.stream()).unwrap();
    operation.download(device, &buffers).unwrap()
}

/// Every output against the reference, and equal bits under every schedule.
pub fn verify<O: Operation>(
    device: &Device,
    operation: &O,
    seed: u64,
    schedules: u64,
) -> std::result::Result<O::Output, String> {
    let inputs = operation.inputs();
    set_schedule(seed);
    let output = run(device, operation, &inputs);
    operation.check(&inputs, &output, usize::MAX)?;
    for schedule in 1..schedules {
        set_schedule(seed ^ schedule);
        if run(device, operation, &inputs) != output {
            return Err(format!("schedule {} changed the result", seed ^ schedule));
        }
    }
    Ok(output)
}

/// Sets of operands, of `bytes` each, that take three times an L2 of `l2_bytes` together: with them in turn no launch
/// finds its operands in the cache.
pub fn sets(l2_bytes: usize, bytes: usize) -> usize {
    (3 * l2_bytes).div_ceil(bytes.max(1)).clamp(1, 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_buffers_fill_three_times_the_cache() {
        assert_eq!(sets(50, 50), 3);
        assert_eq!(sets(50, 149), 2);
        assert_eq!(sets(50, 1000), 1);
        assert_eq!(sets(50 << 20, 10), 256, "tiny operands: as many as are worth their memory");
        assert_eq!(sets(0, 0), 1);
    }
}
