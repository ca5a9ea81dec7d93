//! The CUDA driver, through cudarc.

use super::driver::{DeviceInfo, Driver, MemInfo, Queue};
use crate::error::{CudaError, Result};
use cudarc::driver::{CudaContext, result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// The oldest driver that has every function of this build, as `cuDriverGetVersion` counts.
const DRIVER_VERSION: i32 = 13000;

/// A GPU: its primary context, two streams for kernels, two for copies and one for sums. None of them waits for another
/// by itself, nor for the default stream, on which nothing is queued: calls that would use it are not made.
pub struct Gpu {
    context: Arc<CudaContext>,
    compute: sys::CUstream,
    side: sys::CUstream,
    to_device: sys::CUstream,
    to_host: sys::CUstream,
    sums: sys::CUstream,
}

pub struct Event {
    context: Arc<CudaContext>,
    event: sys::CUevent,
}

/// Work that was recorded, ready to be launched.
pub struct Graph {
    context: Arc<CudaContext>,
    graph: sys::CUgraphExec,
}

/// One allocation.
pub struct Slab {
    context: Arc<CudaContext>,
    address: sys::CUdeviceptr,
    bytes: u64,
}

fn failed(what: &str) -> impl FnOnce(result::DriverError) -> CudaError {
    move |error| CudaError::driver(what, error.0 as i32, format!("{error:?}"))
}

/// The primary context of a GPU. An error, not a panic, where there is no driver, an old one, no such GPU or one that
/// is too old.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    Gpu::cuda_version()?;
    let unusable = |error| CudaError::Device(format!("GPU {ordinal} cannot be used: {error:?}"));
    let context = CudaContext::new(ordinal).map_err(unusable)?;
    check_capability(ordinal, context.compute_capability().map_err(unusable)?)?;
    Ok(context)
}

/// The kernels need the tensor cores and asynchronous copies of sm_80.
fn check_capability(ordinal: usize, (major, minor): (i32, i32)) -> Result<()> {
    if major >= 8 {
        return Ok(());
    }
    Err(CudaError::Device(format!("GPU {ordinal} is of sm_{major}{minor}; the kernels need sm_80 or newer (Ampere)")))
}

fn check_driver(version: Option<i32>) -> Result<String> {
    let name = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let found = match version {
        Some(version @ DRIVER_VERSION..) => return Ok(name(version)),
        Some(version) => format!("the NVIDIA driver supports CUDA {}", name(version)),
        None => "the NVIDIA driver does not tell its version".into(),
    };
    Err(CudaError::Device(format!("{found}; this build needs 13.0 (driver 580 or newer)")))
}

/// Frees device memory after all work of the context, of whatever stream: `cuMemFree` does not promise to wait for
/// streams that do not wait for the default one. An error here would repeat one that a call has returned.
///
/// # Safety
///
/// The memory was allocated in the context that is bound, and is freed once.
unsafe fn free_after_all(address: sys::CUdeviceptr) {
    let _ = result::ctx::synchronize();
    // SAFETY: the caller's promise.
    let _ = unsafe { result::free_sync(address) };
}

impl Gpu {
    fn stream(&self, queue: Queue) -> sys::CUstream {
        match queue {
            Queue::Compute => self.compute,
            Queue::Side => self.side,
            Queue::ToDevice => self.to_device,
            Queue::ToHost => self.to_host,
            Queue::Sums => self.sums,
        }
    }
}

impl Driver for Gpu {
    type Event = Event;
    type Slab = Slab;
    type Graph = Graph;

    fn open(ordinal: usize) -> Result<Self> {
        let context = context(ordinal)?;
        context.bind_to_thread().map_err(failed("the context cannot be bound"))?;
        // Blocks of kernels on the side wait for those of a lower number, which the driver takes as near as it has it.
        let stream = |priority| {
            result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, priority)
                .map_err(failed("a stream cannot be made"))
        };
        let (compute, sums) = (stream(-1)?, stream(-1)?);
        let (side, to_device, to_host) = (stream(0)?, stream(0)?, stream(0)?);
        Ok(Self { context, compute, side, to_device, to_host, sums })
    }

    fn cuda_version() -> Result<String> {
        // cudarc panics where the library or a symbol of it is missing: look first.
        // SAFETY: only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::Device("no NVIDIA driver: libcuda.so is not on this machine".into()));
        }
        let mut version = 0;
        // SAFETY: may be called before the driver is initialized; writes one integer.
        let status = unsafe { sys::cuDriverGetVersion(&mut version) };
        check_driver((status == sys::CUresult::CUDA_SUCCESS).then_some(version))
    }

    fn name(&self) -> String {
        self.context.name().unwrap_or_else(|error| format!("a GPU without a name ({error:?})"))
    }

    fn identity(&self) -> Result<String> {
        let id = self.context.uuid().map_err(failed("the device's UUID"))?;
        Ok(id.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect())
    }

    fn info(&self) -> Result<DeviceInfo> {
        use sys::CUdevice_attribute_enum as Attribute;
        let attribute = |attribute| {
            let value = self.context.attribute(attribute).map_err(failed("an attribute of the device"))?;
            usize::try_from(value).map_err(|_| CudaError::Device(format!("the device has an attribute of {value}")))
        };
        Ok(DeviceInfo {
            gpu: self.context.name().map_err(failed("the device's name"))?,
            cuda: Self::cuda_version()?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            memory_bytes: self.context.total_mem().map_err(failed("the device's memory"))?,
        })
    }

    fn mem_info(&self) -> Result<MemInfo> {
        let (free, total) = result::mem_get_info().map_err(failed("the device's memory"))?;
        Ok(MemInfo { free: free as u64, total: total as u64 })
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("the context cannot be bound"))
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: a stream of this context.
        unsafe { result::stream::synchronize(self.compute) }.map_err(failed("waiting for the device"))
    }

    fn alloc(&self, bytes: usize) -> Result<*mut u8> {
        // SAFETY: the caller bound the context; at least one byte is asked for.
        let address =
            unsafe { result::malloc_sync(bytes.max(1)) }.map_err(failed(&format!("{bytes} bytes of device memory")))?;
        Ok(address as *mut u8)
    }

    unsafe fn free(&self, address: *mut u8, _bytes: usize) {
        // SAFETY: `alloc` gave it, as the caller promises.
        unsafe { free_after_all(address as sys::CUdeviceptr) };
    }

    fn slab(&self, bytes: u64, _fixed: bool) -> Result<Slab> {
        let len = usize::try_from(bytes).map_err(|_| CudaError::Device(format!("{bytes} bytes are too many")))?;
        Ok(Slab { address: self.alloc(len)? as sys::CUdeviceptr, context: self.context.clone(), bytes })
    }

    fn part(&self, slab: &Slab, offset: u64, bytes: usize) -> Result<*mut u8> {
        assert!(offset + bytes as u64 <= slab.bytes, "an arena's part lies within it");
        Ok((slab.address + offset) as *mut u8)
    }

    unsafe fn free_part(&self, _slab: &Slab, _address: *mut u8, _bytes: usize) {}

    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        // SAFETY: the caller bound the context; at least one byte is asked for.
        let address = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(failed(&format!("{bytes} bytes of pinned host memory")))?
            .cast::<u8>();
        // SAFETY: as many bytes as were just allocated.
        unsafe { std::ptr::write_bytes(address, 0, bytes) };
        Ok(address)
    }

    unsafe fn free_pinned(&self, address: *mut u8, _bytes: usize) {
        // SAFETY: `alloc_pinned` gave it, as the caller promises. An error here has no one to go to.
        let _ = unsafe { result::free_host(address.cast()) };
    }

    fn pins_read_only(&self) -> Result<bool> {
        use sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED as READ_ONLY;
        let found = self.context.attribute(READ_ONLY).map_err(failed("an attribute of the device"))?;
        Ok(found != 0)
    }

    unsafe fn pin(&self, address: *mut u8, bytes: usize, read_only: bool) -> Result<()> {
        let flags = if read_only { sys::CU_MEMHOSTREGISTER_READ_ONLY } else { 0 };
        // SAFETY: memory that stays mapped, as the caller promises; the caller bound the context.
        unsafe { sys::cuMemHostRegister_v2(address.cast(), bytes, flags) }
            .result()
            .map_err(failed(&format!("{bytes} bytes of host memory cannot be pinned")))
    }

    unsafe fn unpin(&self, address: *mut u8) {
        // SAFETY: `pin` had it, as the caller promises. An error here has no one to go to.
        let _ = unsafe { sys::cuMemHostUnregister(address.cast()) };
    }

    unsafe fn clear(&self, address: *mut u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(address as sys::CUdeviceptr, 0, bytes, self.compute) }
            .map_err(failed("clearing device memory"))
    }

    unsafe fn write(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        // `cuMemcpyHtoD` would be ordered by the default stream alone.
        // SAFETY: the caller's promise; `from` is borrowed until the copy is done, which is waited for even where
        // queuing it failed.
        let queued = unsafe { result::memcpy_htod_async(to as sys::CUdeviceptr, from, self.compute) };
        let done = self.synchronize();
        queued.map_err(failed("copy to the device")).and(done)
    }

    unsafe fn read(&self, to: *mut u8, from: *const u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // `cuMemcpyDtoH` would be ordered by the default stream alone.
        // SAFETY: the caller's promise; `to` is there until the copy is done, which is waited for.
        let queued = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from as sys::CUdeviceptr, bytes, self.compute) };
        let done = self.synchronize();
        queued.result().map_err(failed("copy from the device")).and(done)
    }

    unsafe fn copy(&self, queue: Queue, to: *mut u8, from: *const u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.stream(queue);
        let (to_device, from_device) = (to as sys::CUdeviceptr, from as sys::CUdeviceptr);
        // SAFETY: the caller's promise: memory of `bytes` that nothing else uses before the copy is done.
        unsafe {
            match queue {
                Queue::Compute => result::memcpy_dtod_async(to_device, from_device, bytes, stream)
                    .map_err(failed("copy on the device")),
                Queue::ToDevice => {
                    result::memcpy_htod_async(to_device, std::slice::from_raw_parts(from, bytes), stream)
                        .map_err(failed("copy to the device"))
                }
                Queue::ToHost => {
                    result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(to, bytes), from_device, stream)
                        .map_err(failed("copy from the device"))
                }
                Queue::Side | Queue::Sums => Err(CudaError::Device(format!("the queue {queue:?} has no copies"))),
            }
        }
    }

    fn raw(&self, queue: Queue) -> *mut c_void {
        self.stream(queue).cast()
    }

    fn event(&self, timed: bool) -> Result<Event> {
        let flags = match timed {
            true => sys::CUevent_flags_enum::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING,
        };
        let event = result::event::create(flags).map_err(failed("an event cannot be made"))?;
        Ok(Event { context: self.context.clone(), event })
    }

    fn record(&self, event: &mut Event, queue: Queue) -> Result<()> {
        // SAFETY: an event and a stream of this context.
        unsafe { result::event::record(event.event, self.stream(queue)) }.map_err(failed("an event cannot be recorded"))
    }

    fn queue_waits(&self, queue: Queue, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: an event and a stream of this context.
        unsafe { result::stream::wait_event(self.stream(queue), event.event, flags) }
            .map_err(failed("a stream cannot wait for another"))
    }

    fn is_done(&self, event: &Event) -> Result<bool> {
        // SAFETY: an event of this context.
        match unsafe { result::event::query(event.event) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(failed("the work on the GPU")(error)),
        }
    }

    fn host_waits(&self, event: &Event) -> Result<()> {
        // SAFETY: an event of this context.
        unsafe { result::event::synchronize(event.event) }.map_err(failed("the work on the GPU"))
    }

    fn elapsed(&self, start: &Event, end: &Event) -> Result<f64> {
        // SAFETY: two events of this context.
        let milliseconds = unsafe { result::event::elapsed(start.event, end.event) };
        milliseconds.map(|ms| f64::from(ms) / 1e3).map_err(failed("the time between two events"))
    }

    fn begin_capture(&self) -> Result<()> {
        // Calls of other threads, such as those of a library, are left alone.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of this context.
        unsafe { result::stream::begin_capture(self.compute, mode) }.map_err(failed("a stream cannot be recorded"))
    }

    fn end_capture(&self) -> Result<(Graph, usize)> {
        // SAFETY: a stream of this context. The graph that it gives is used until it is destroyed, once, below.
        unsafe {
            let graph =
                result::stream::end_capture(self.compute).map_err(failed("what was asked for was not recorded"))?;
            let (mut nodes, none) = (0, std::ptr::null::<sys::CUgraphNode>().cast_mut());
            let counted = sys::cuGraphGetNodes(graph, none, &mut nodes).result();
            let mut ready = std::mem::MaybeUninit::uninit();
            let made = sys::cuGraphInstantiateWithFlags(ready.as_mut_ptr(), graph, 0).result();
            let destroyed = result::graph::destroy(graph);
            counted.and(made).map_err(failed("a graph cannot be made"))?;
            let graph = Graph { context: self.context.clone(), graph: ready.assume_init() };
            destroyed.map_err(failed("a graph cannot be freed"))?;
            Ok((graph, nodes))
        }
    }

    unsafe fn launch(&self, graph: &Graph) -> Result<()> {
        // SAFETY: a graph and a stream of this context; its memory is as the caller promises.
        unsafe { result::graph::launch(graph.graph, self.compute) }.map_err(failed("a graph cannot be launched"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `open`, destroyed once; work that is queued on them still runs. An error here has no one
            // to go to.
            let _ = [self.compute, self.side, self.to_device, self.to_host, self.sums]
                .map(|stream| unsafe { result::stream::destroy(stream) });
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `event`, destroyed once. An error here has no one to go to.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `end_capture`, destroyed once; the driver frees one that runs when it is done. An error
            // here has no one to go to.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated in `slab`, freed once.
            unsafe { free_after_all(self.address) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_an_error_that_names_both_versions() {
        assert_eq!(check_driver(Some(13000)), Ok("13.0".to_owned()));
        assert_eq!(check_driver(Some(13020)), Ok("13.2".to_owned()));
        let error = check_driver(Some(12080)).unwrap_err().to_string();
        assert!(error.contains("12.8") && error.contains("13.0") && error.contains("580"), "{error}");
        assert!(check_driver(None).is_err());
    }

    #[test]
    fn an_old_gpu_is_an_error_that_names_what_is_needed() {
        assert!(check_capability(0, (8, 0)).is_ok() && check_capability(0, (12, 1)).is_ok());
        let error = check_capability(3, (7, 5)).unwrap_err().to_string();
        assert!(error.contains("GPU 3") && error.contains("sm_75") && error.contains("sm_80"), "{error}");
    }
}
