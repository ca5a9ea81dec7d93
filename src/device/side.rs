//! A second stream of kernels beside that of the device.

use super::driver::{Driver, Queue};
use super::event::Event;
use super::{Device, Implementation, Stream};
use crate::error::Result;
use std::rc::Rc;

/// Kernels that run while those of the device's stream leave multiprocessors idle.
///
/// ```text
/// the device's stream:  … ─▶ fork ─▶ work ────────────────▶ join ─▶ …
/// this one:                    └───▶ wait_fork ─▶ work ───────┘
/// ```
///
/// Between `fork` and `join` neither stream writes what the other one uses, and no memory that this one uses is given
/// back.
pub struct SideStream {
    driver: Rc<Implementation>,
    forked: Event,
    done: Event,
}

impl SideStream {
    /// A second stream of `device`.
    pub fn new(device: &Device) -> Result<Self> {
        let driver = device.driver().clone();
        let (forked, done) = (Event::new(&driver)?, Event::new(&driver)?);
        Ok(Self { driver, forked, done })
    }

    /// Marks what the device's stream has now, which this one will wait for.
    pub fn fork(&mut self) -> Result<()> {
        self.driver.bind()?;
        self.forked.record(Queue::Compute)
    }

    /// The stream. What is queued on it from now on follows what was marked, and nothing later.
    pub fn wait_fork(&mut self) -> Result<Stream> {
        self.driver.bind()?;
        self.forked.precedes(Queue::Side)?;
        // SAFETY: a stream of the context that was just made current; it lives as long as the device's buffers.
        Ok(unsafe { Stream::from_raw(self.driver.raw(Queue::Side).cast()) })
    }

    /// Makes work that is queued on the device's stream from now on follow the work of this one.
    pub fn join(&mut self) -> Result<()> {
        self.driver.bind()?;
        self.done.record(Queue::Side)?;
        self.done.precedes(Queue::Compute)
    }
}

#[cfg(all(test, kernels = "emulated"))]
mod tests {
    use super::*;
    use crate::device::{Buffer, emulation};

    /// On a device whose work is done when something waits for it.
    #[test]
    fn each_stream_follows_what_it_waits_for() {
        emulation::run_late(true);
        let device = Device::open().unwrap();
        emulation::run_late(false);
        let mut side = SideStream::new(&device).unwrap();
        for (number, host_waits) in [(1u32, false), (2, true), (3, true), (4, false)] {
            let from = device.upload(&[number; 4]).unwrap();
            let (through, to) = (device.upload(&[0u32; 4]).unwrap(), device.upload(&[0u32; 4]).unwrap());
            let copy = |queue, to: &Buffer<u32>, from: &Buffer<u32>| {
                // SAFETY: two buffers of 16 bytes, which stay until they are read below.
                unsafe { device.driver().copy(queue, to.address(), from.address(), 16) }.unwrap();
            };
            copy(Queue::Compute, &through, &from);
            side.fork().unwrap();
            side.wait_fork().unwrap();
            copy(Queue::Side, &to, &through);
            side.join().unwrap();
            if host_waits {
                side.done.wait().unwrap();
            }
            assert_eq!(device.download(&to).unwrap(), [number; 4]);
        }
    }
}
