//! Layers' inputs in a scratch file, from the forward pass to the backward pass: places in the file, and a thread that
//! writes and reads one input at a time. The same for every device.

use super::{DiskTraffic, PlannedBuffer};
use crate::error::Result;
use crate::files::scratch::{BLOCK, ScratchFile};
use crate::files::worker::Worker;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Name of the memory that the thread has of its own beside a GPU, in the plan's lines.
pub const INPUTS_OF_THREAD: &str = "layers' inputs that a thread writes and reads";

/// The plan's line.
const NAME: &str = "layers' inputs on disk";

/// Memory that the thread has while it writes or reads.
pub trait Values: Send + 'static {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
}

struct Job<V> {
    values: V,
    bytes: usize,
    offset: u64,
    is_read: bool,
}

/// Values, the outcome and the seconds of a job.
type Done<V> = (V, Result<()>, f64);

/// The thread and its file.
struct Opened<V> {
    file: Arc<ScratchFile>,
    worker: Worker<Job<V>, Done<V>>,
}

impl<V: Values> Opened<V> {
    fn create(dir: &Path) -> Result<Self> {
        let file = Arc::new(ScratchFile::create(dir)?);
        let of_thread = file.clone();
        let work = move |Job { mut values, bytes, offset, is_read }: Job<V>| {
            let start = Instant::now();
            let done = match is_read {
                true => of_thread.read(&mut values.bytes_mut()[..bytes], offset),
                false => of_thread.write(&values.bytes()[..bytes], offset),
            };
            (values, done, start.elapsed().as_secs_f64())
        };
        Ok(Self { file, worker: Worker::start("layer-inputs", "writes layers' inputs to disk", work)? })
    }
}

/// A scratch file with places of one size. In a dry run they are only counted.
pub struct InputFile<V> {
    is_dry_run: bool,
    dir: PathBuf,
    opened: Option<Opened<V>>,
    /// Bytes of a place
    place_bytes: u64,
    places: u64,
    free: Vec<u64>,
    /// Bytes of the job that was begun and is not finished
    begun: Option<usize>,
    traffic: DiskTraffic,
}

impl<V: Values> InputFile<V> {
    /// In the directory of the system's temporary files, until another is set.
    pub fn new(is_dry_run: bool) -> Self {
        Self {
            is_dry_run,
            dir: std::env::temp_dir(),
            opened: None,
            place_bytes: 0,
            places: 0,
            free: Vec::new(),
            begun: None,
            traffic: DiskTraffic::default(),
        }
    }

    /// The file is made there when the first values are written.
    pub fn set_dir(&mut self, dir: &Path) {
        self.dir = dir.to_owned();
    }

    /// A place for `bytes` bytes, as all others are.
    pub fn place(&mut self, bytes: usize) -> Result<u64> {
        if let Some(place) = self.free.pop() {
            return Ok(place);
        }
        let bytes = (bytes as u64).next_multiple_of(BLOCK);
        assert!(self.places == 0 || bytes == self.place_bytes, "the inputs of all layers are of one size");
        self.place_bytes = bytes;
        let first = self.places * bytes;
        if !self.is_dry_run {
            self.opened()?.file.reserve(first..first + bytes)?;
        }
        self.places += 1;
        Ok(self.places - 1)
    }

    /// The place may be given to other values.
    pub fn free(&mut self, place: u64) {
        self.free.push(place);
    }

    /// Begins to write the first `bytes` bytes of `values` to a place.
    pub fn write(&mut self, place: u64, values: V, bytes: usize) -> Result<()> {
        self.begin(place, values, bytes, false)
    }

    /// Begins to read as many bytes from a place into `values`.
    pub fn read(&mut self, place: u64, values: V, bytes: usize) -> Result<()> {
        self.begin(place, values, bytes, true)
    }

    fn begin(&mut self, place: u64, values: V, bytes: usize, is_read: bool) -> Result<()> {
        assert!(self.begun.is_none(), "one input is written or read at a time");
        let job = Job { values, bytes, offset: place * self.place_bytes, is_read };
        self.opened()?.worker.send(job)?;
        self.begun = Some(bytes);
        Ok(())
    }

    /// Waits for the job that was begun, and gives back its values.
    ///
    /// # Panics
    ///
    /// If none was begun.
    pub fn finish(&mut self) -> Result<V> {
        let bytes = self.begun.take().expect("a job was begun");
        let start = Instant::now();
        let (values, done, seconds) = self.opened()?.worker.receive()?;
        self.traffic.waited += start.elapsed().as_secs_f64();
        self.traffic.seconds += seconds;
        self.traffic.bytes += bytes as u64;
        done.map(|()| values)
    }

    fn opened(&mut self) -> Result<&Opened<V>> {
        if self.opened.is_none() {
            self.opened = Some(Opened::create(&self.dir)?);
        }
        Ok(self.opened.as_ref().expect("it was opened"))
    }

    pub fn planned(&self) -> Vec<PlannedBuffer> {
        PlannedBuffer::lines([(NAME, self.places * self.place_bytes)].into_iter().filter(|line| line.1 > 0))
    }

    /// Bytes written and read; none where nothing was.
    pub fn traffic(&self) -> Option<DiskTraffic> {
        (self.traffic.bytes > 0).then_some(self.traffic)
    }
}

#[cfg(test)]
mod tests;
