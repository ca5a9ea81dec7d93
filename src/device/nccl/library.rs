//! The library itself, found by the names that its packages give it: cudarc looks for `libnccl.so` alone, which only
//! packages for developers have.

use super::calls::{Calls, Handle, ID_BYTES, MISSING};
use crate::error::{CudaError, Result};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

// Values of nccl.h, alike in all versions from 2.14 on.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;
const MAGIC: c_uint = 0xcafe_beef;
/// Integers of a configuration that are left to the library.
const UNDEFINED: c_int = c_int::MIN;
/// 2.14.0, the first version with communicators that do not block.
const OLDEST: c_int = 21400;

/// Time in which a communicator with nothing to do has to end.
const LAST_CALLS: Duration = Duration::from_secs(10);

/// `ncclUniqueId`
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId {
    internal: [u8; ID_BYTES],
}

/// `ncclConfig_t` of version 2.14: later ones have more, which the library takes as undefined for a configuration that
/// says this version.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    /// Fields of later versions, in the last bytes of the size.
    rest: c_int,
}

struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank_config: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int,
    comm_get_async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    comm_finalize: unsafe extern "C" fn(Handle) -> c_int,
    comm_abort: unsafe extern "C" fn(Handle) -> c_int,
    comm_destroy: unsafe extern "C" fn(Handle) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Handle) -> *const c_char,
}

/// The functions of the library, which stays loaded: it has threads of its own.
pub struct Library(&'static Functions);

fn functions() -> std::result::Result<Functions, String> {
    // SAFETY: NCCL's initializers need nothing of the program.
    let library = NAMES.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok());
    let library: &'static libloading::Library = Box::leak(Box::new(library.ok_or(MISSING)?));
    macro_rules! function {
        ($name:literal) => {{
            // SAFETY: the type is that of the function of this name in nccl.h.
            let found = unsafe { library.get($name) };
            *found.map_err(|error| format!("NCCL has no {}: {error}; version 2.14 or later is needed", $name))?
        }};
    }
    Ok(Functions {
        get_version: function!("ncclGetVersion"),
        get_unique_id: function!("ncclGetUniqueId"),
        comm_init_rank_config: function!("ncclCommInitRankConfig"),
        comm_get_async_error: function!("ncclCommGetAsyncError"),
        all_reduce: function!("ncclAllReduce"),
        group_start: function!("ncclGroupStart"),
        group_end: function!("ncclGroupEnd"),
        comm_finalize: function!("ncclCommFinalize"),
        comm_abort: function!("ncclCommAbort"),
        comm_destroy: function!("ncclCommDestroy"),
        get_error_string: function!("ncclGetErrorString"),
        get_last_error: function!("ncclGetLastError"),
    })
}

fn version_text(version: c_int) -> String {
    let (major, rest) = if version < 10000 { (1000, 100) } else { (10000, 100) };
    format!("{}.{}.{}", version / major, version % major / rest, version % rest)
}

/// A text of the library; empty where it has none.
fn text(address: *const c_char) -> String {
    if address.is_null() {
        return String::new();
    }
    // SAFETY: the library's texts end with a zero, and stay as they are until its next call in this thread.
    unsafe { CStr::from_ptr(address) }.to_string_lossy().trim().to_owned()
}

impl Library {
    fn number(&self) -> Result<c_int> {
        let mut version = 0;
        // SAFETY: writes one integer.
        let status = unsafe { (self.0.get_version)(&mut version) };
        self.check("its version", status, null_mut())?;
        Ok(version)
    }

    /// An error unless a call's status is that of one that is done or under way. `comm` may be null.
    fn check(&self, what: &str, status: c_int, comm: Handle) -> Result<()> {
        if [SUCCESS, IN_PROGRESS].contains(&status) {
            return Ok(());
        }
        // SAFETY: any number and any communicator, none included, may be asked about.
        let texts = unsafe { [(self.0.get_error_string)(status), (self.0.get_last_error)(comm)] };
        let [name, last] = texts.map(text);
        let last = if last.is_empty() { last } else { format!(" ({last})") };
        Err(CudaError::Device(format!("NCCL: {what}: {name}{last}; NCCL_DEBUG=WARN says more")))
    }
}

impl Calls for Library {
    fn load() -> Result<Self> {
        static FUNCTIONS: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
        let library = match FUNCTIONS.get_or_init(functions) {
            Ok(functions) => Self(functions),
            Err(problem) => return Err(CudaError::Device(problem.clone())),
        };
        let version = library.number()?;
        if version < OLDEST {
            let found = version_text(version);
            return Err(CudaError::Device(format!("NCCL is of version {found}; 2.14 or later is needed")));
        }
        Ok(library)
    }

    fn version(&self) -> Result<String> {
        self.number().map(version_text)
    }

    fn unique_id(&self) -> Result<[u8; ID_BYTES]> {
        let mut id = UniqueId { internal: [0; ID_BYTES] };
        // SAFETY: writes as many bytes.
        let status = unsafe { (self.0.get_unique_id)(&mut id) };
        self.check("the name of a group", status, null_mut())?;
        Ok(id.internal)
    }

    fn init_rank(&self, id: &[u8; ID_BYTES], rank: usize, world_size: usize) -> Result<Handle> {
        let mut comm: Handle = null_mut();
        let (id, version) = (UniqueId { internal: *id }, OLDEST as c_uint);
        let mut config = Config { size: size_of::<Config>(), magic: MAGIC, version, blocking: 0, rest: UNDEFINED };
        // SAFETY: the configuration is read before the return; the handle is written before it, although the
        // communicator is made afterwards.
        let status =
            unsafe { (self.0.comm_init_rank_config)(&mut comm, world_size as c_int, id, rank as c_int, &mut config) };
        self.check("joining the other GPUs", status, null_mut())?;
        if comm.is_null() {
            return Err(CudaError::Device("NCCL: joining the other GPUs: there is no communicator".into()));
        }
        Ok(comm)
    }

    unsafe fn is_call_done(&self, comm: Handle) -> Result<bool> {
        let mut found = SUCCESS;
        // SAFETY: the caller's promise; writes one integer.
        let status = unsafe { (self.0.comm_get_async_error)(comm, &mut found) };
        self.check("its state", status, comm)?;
        self.check("work on the GPUs", found, comm)?;
        Ok(found == SUCCESS)
    }

    unsafe fn all_reduce(&self, comm: Handle, arrays: &[(*mut f32, usize)], stream: *mut c_void) -> Result<()> {
        const WHAT: &str = "a sum of gradients";
        // SAFETY: takes nothing.
        self.check(WHAT, unsafe { (self.0.group_start)() }, null_mut())?;
        let one = |&(address, len): &(*mut f32, usize)| {
            // SAFETY: the caller's promise; in place, as the library allows.
            let status = unsafe {
                (self.0.all_reduce)(address.cast_const().cast(), address.cast(), len, FLOAT32, SUM, comm, stream)
            };
            self.check(WHAT, status, comm)
        };
        let queued = arrays.iter().try_for_each(one);
        // SAFETY: takes nothing. A group that was begun is ended, whatever became of it.
        let ended = self.check(WHAT, unsafe { (self.0.group_end)() }, comm);
        queued.and(ended)
    }

    unsafe fn abort(&self, comm: Handle) {
        // SAFETY: the caller's promise. An error has no one to go to: the process ends by another.
        let _ = unsafe { (self.0.comm_abort)(comm) };
    }

    unsafe fn destroy(&self, comm: Handle) {
        let begun = Instant::now();
        // SAFETY: the caller's promise. A rank that is gone must not keep this one: what does not end is aborted.
        unsafe {
            let mut is_ended = [SUCCESS, IN_PROGRESS].contains(&(self.0.comm_finalize)(comm));
            while is_ended && !matches!(self.is_call_done(comm), Ok(true)) {
                is_ended = begun.elapsed() < LAST_CALLS;
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = if is_ended { (self.0.comm_destroy)(comm) } else { (self.0.comm_abort)(comm) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null;

    #[test]
    fn versions_are_told_as_the_library_counts_them() {
        assert_eq!([2708, 21403, 22707].map(version_text), ["2.7.8", "2.14.3", "2.27.7"]);
        assert_eq!((size_of::<Config>(), size_of::<UniqueId>()), (24, 128));
        assert_eq!(text(null()), "");
    }
}
