//! The speed of copies between the host and a device.

use qlora_kernels::Result;
use qlora_kernels::device::{Device, EventTimer, OffloadSlot};

/// Bytes a second between pinned host memory and the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransferBandwidth {
    pub to_device: f64,
    pub from_device: f64,
}

impl TransferBandwidth {
    /// Copies `bytes` each way: the median of 7. An error too where that much memory cannot be pinned.
    pub fn measure(device: &Device, bytes: usize) -> Result<Self> {
        const REPEATS: usize = 7;
        let (mut slot, mut timer) = (OffloadSlot::<u8>::new(device, bytes)?, EventTimer::new(device)?);
        let mut buffer = device.zeros::<u8>(bytes)?;
        let (mut to_device, mut from_device) = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            device.synchronize()?;
            timer.record()?;
            slot.offload(buffer)?;
            slot.wait_offload()?;
            timer.record()?;
            from_device.extend(timer.elapsed()?);
            let room = device.zeros::<u8>(bytes)?;
            device.synchronize()?;
            timer.record()?;
            slot.prefetch(room)?;
            buffer = slot.wait_prefetch()?;
            timer.record()?;
            to_device.extend(timer.elapsed()?);
        }
        let speed = |seconds: &mut Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            bytes as f64 / seconds[REPEATS / 2]
        };
        Ok(Self { to_device: speed(&mut to_device), from_device: speed(&mut from_device) })
    }
}
