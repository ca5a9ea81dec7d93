//! Events in the work of a device: order between its queues, and times.

use super::driver::{Driver, Queue};
#[cfg(kernels = "emulated")]
use super::emulation::{self, Forgotten};
use super::{Device, Implementation};
use crate::error::Result;
use std::rc::Rc;

/// A point in a queue of one device.
pub(super) struct Event {
    driver: Rc<Implementation>,
    event: <Implementation as Driver>::Event,
}

impl Event {
    /// Without a time, which costs something.
    pub fn new(driver: &Rc<Implementation>) -> Result<Self> {
        driver.bind()?;
        Ok(Self { event: driver.event(false)?, driver: driver.clone() })
    }

    pub fn record(&mut self, queue: Queue) -> Result<()> {
        self.driver.record(&mut self.event, queue)
    }

    /// Work that is put on `queue` from now on comes after the event.
    pub fn precedes(&self, queue: Queue) -> Result<()> {
        #[cfg(kernels = "emulated")]
        if emulation::is_forgotten(if queue == Queue::Compute { Forgotten::OfCompute } else { Forgotten::OfCopies }) {
            return Ok(());
        }
        self.driver.queue_waits(queue, &self.event)
    }

    pub fn is_done(&self) -> Result<bool> {
        self.driver.is_done(&self.event)
    }

    /// The host waits for the event.
    pub fn wait(&self) -> Result<()> {
        self.driver.host_waits(&self.event)
    }
}

/// Times the work of a device's stream, between events that are recorded in it.
pub struct EventTimer {
    driver: Rc<Implementation>,
    events: Vec<<Implementation as Driver>::Event>,
    recorded: usize,
}

impl EventTimer {
    /// A timer on the stream of `device`, with no event yet.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { driver: device.driver().clone(), events: Vec::new(), recorded: 0 })
    }

    /// Records an event after all work that is queued so far, without waiting for it.
    pub fn record(&mut self) -> Result<()> {
        self.driver.bind()?;
        if self.recorded == self.events.len() {
            self.events.push(self.driver.event(true)?);
        }
        self.driver.record(&mut self.events[self.recorded], Queue::Compute)?;
        self.recorded += 1;
        Ok(())
    }

    /// Seconds from each recorded event to the next; waits for the last, and starts again.
    pub fn elapsed(&mut self) -> Result<Vec<f64>> {
        self.driver.bind()?;
        let events = &self.events[..std::mem::take(&mut self.recorded)];
        if let Some(last) = events.last() {
            self.driver.host_waits(last)?;
        }
        events.windows(2).map(|pair| self.driver.elapsed(&pair[0], &pair[1])).collect()
    }
}
