//! The library itself: its handle, its products, and the algorithm that it chose for each.

use crate::device::{Buffer, Device, Stream, View, ViewMut};
use crate::error::{CudaError, Result};
use crate::ops::check::Operation;
use cudarc::cublaslt::{result, sys};
use half::bf16;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

/// The library may use this much of a workspace of its own, as NVIDIA recommends for Hopper.
const OWN_WORKSPACE: usize = 32 << 20;
/// Pointers at multiples of it are what the library expects most.
pub(super) const MOST_ALIGNMENT: usize = 256;

/// `CUBLAS_OP_T` of cublas_api.h, which the bindings of cuBLASLt alone do not have.
const TRANSPOSE: i32 = 1;

/// A handle of the library on the first GPU, and the algorithm that it chose for every shape seen so far.
///
/// Calls share one workspace of the library: they belong on one stream at a time.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    own_workspace: RefCell<Buffer<u8>>,
    plans: RefCell<HashMap<Key, Plan>>,
}

/// `y = x · wᵀ (+ y) (+ bias)`, or `x · w`; f32 sums, rounded once.
#[derive(Debug)]
pub struct Gemm<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// `[m, k]`, rows `ldx` apart
    pub x: View<'a, bf16>,
    pub ldx: usize,
    /// `[n, k]`, or `[k, n]`
    pub w: View<'a, bf16>,
    /// w is `[k, n]`: the product is `x · w`.
    pub k_by_n: bool,
    /// `[n]`
    pub bias: Option<View<'a, bf16>>,
    /// `[m, n]`, rows `ldy` apart
    pub y: ViewMut<'a, bf16>,
    pub ldy: usize,
    /// Adds to what y holds.
    pub accumulate: bool,
}

/// What the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 5],
    k_by_n: bool,
    accumulate: bool,
    bias: bool,
    /// of x, w and y
    alignment: [usize; 3],
}

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

fn failed(what: &str, error: result::CublasError) -> CudaError {
    CudaError::Device(format!("cuBLASLt: {what}: {:?}", error.0))
}

fn alignment(address: usize) -> usize {
    MOST_ALIGNMENT.min(1 << address.trailing_zeros().min(8))
}

impl std::fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CublasLt({} plans)", self.plans.borrow().len())
    }
}

impl CublasLt {
    /// An error, not a panic, where there is no GPU or no cuBLASLt.
    pub fn open() -> Result<Self> {
        let device = Device::open()?;
        // cudarc panics where the library is missing: look first.
        // SAFETY: only tries to load the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::Device(
                "no cuBLASLt: libcublasLt.so is not where the loader looks (LD_LIBRARY_PATH may name its directory)"
                    .into(),
            ));
        }
        let own_workspace = RefCell::new(device.upload(&vec![0u8; OWN_WORKSPACE])?);
        let handle = result::create_handle().map_err(|error| failed("no handle", error))?;
        Ok(Self { handle, own_workspace, plans: RefCell::default() })
    }

    /// The library's version, for example "13.0.2".
    pub fn version(&self) -> String {
        // SAFETY: takes nothing, returns a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100)
    }

    pub fn gemm(&self, gemm: Gemm<'_>, stream: Stream) -> Result<()> {
        let Gemm { m, n, k, x, ldx, w, k_by_n, bias, y, ldy, accumulate } = gemm;
        let operation = Operation { name: "cublaslt_gemm", shape: format!("M {m}, N {n}, K {k}") };
        for (what, len, columns, stride) in [("x", x.len(), k, ldx), ("y", y.len(), n, ldy)] {
            let needed = m.saturating_sub(1).checked_mul(stride).and_then(|last| last.checked_add(columns));
            let fits = stride >= columns && (m == 0 || needed.is_some_and(|needed| len >= needed));
            operation.check(fits, || {
                format!("{what} has {len} elements, expected at least {m} rows of {columns}, {stride} apart")
            })?;
        }
        operation.length("w", w.len(), n.saturating_mul(k))?;
        if let Some(bias) = &bias {
            operation.length("bias", bias.len(), n)?;
        }
        if m == 0 {
            return Ok(());
        }
        operation.check(n > 0 && k > 0, || "N and K must be at least 1".into())?;
        let address = [x.address() as usize, w.address() as usize, y.address() as usize];
        let bias = bias.map(|bias| bias.address());
        let (shape, alignment) = ([m, n, k, ldx, ldy], address.map(alignment));
        let key = Key { shape, k_by_n, accumulate, bias: bias.is_some(), alignment };
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Plan::new(self.handle, &key)?),
        };
        if let Some(bias) = bias {
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, beta) = (1f32, if accumulate { 1f32 } else { 0.0 });
        let mut own_workspace = self.own_workspace.borrow_mut();
        // SAFETY: every length was checked against the shape that the plan was made for; alpha and beta are read before
        // the return.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                w.address().cast(),
                plan.w,
                x.address().cast(),
                plan.x,
                y.address().cast_const().cast(),
                plan.y,
                y.address().cast(),
                plan.y,
                &plan.algorithm,
                own_workspace.view_mut().address().cast(),
                plan.workspace,
                stream.as_raw().cast(),
            )
        }
        .map_err(|error| failed(&operation.shape, error))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: made in `open`, destroyed once. An error here has no one to go to.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    /// In the library's column-major terms: D [N, M] = op(A) · B with A = W, [K, N] transposed or [N, K], and B = X [K,
    /// M].
    fn new(handle: sys::cublasLtHandle_t, key: &Key) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let [m, n, k, ldx, ldy] = key.shape;
        let shape = format!("M {m}, N {n}, K {k}");
        let failed = |error| failed(&shape, error);
        let kind = sys::cudaDataType::CUDA_R_16BF;
        let layout = |rows: usize, columns: usize, stride: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, stride as i64).map_err(failed)
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F).map_err(failed)?;
        // From here on `plan` destroys what was made.
        let none = std::ptr::null_mut();
        // SAFETY: an array of integers; it is written before it is used.
        let algorithm = unsafe { std::mem::zeroed() };
        let mut plan = Self { description, w: none, x: none, y: none, algorithm, workspace: 0 };
        plan.w = if key.k_by_n { layout(n, k, n)? } else { layout(k, n, k)? };
        plan.x = layout(k, m, ldx)?;
        plan.y = layout(n, m, ldy)?;
        if !key.k_by_n {
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSE)?;
        }
        if key.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let preference = result::create_matmul_pref().map_err(failed)?;
        let [x, w, y] = key.alignment.map(|alignment| alignment as u32);
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: `preference` lives; `value` has `bytes` bytes.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }.map_err(failed)
        };
        let own_workspace = OWN_WORKSPACE as u64;
        let found = set(
            Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const own_workspace).cast(),
            size_of::<u64>(),
        )
        .and_then(|()| {
            for (attribute, bytes) in [
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y),
            ] {
                set(attribute, (&raw const bytes).cast(), size_of::<u32>())?;
            }
            let Self { description, w, x, y, .. } = plan;
            // SAFETY: all were made above and live.
            unsafe { result::get_matmul_algo_heuristic(handle, description, w, x, y, y, preference) }.map_err(failed)
        });
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        let found = found?;
        plan.algorithm = found.algo;
        plan.workspace = found.workspaceSize;
        Ok(plan)
    }

    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the description lives; the library copies the value.
        unsafe {
            let value: *const T = value;
            result::set_matmul_desc_attribute(self.description, attribute, value.cast(), size_of::<T>())
        }
        .map_err(|error| failed("an attribute of a product", error))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in [self.w, self.x, self.y] {
            if !layout.is_null() {
                // SAFETY: made in `new`, destroyed once.
                let _ = unsafe { result::destroy_matrix_layout(layout) };
            }
        }
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_desc(self.description) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_aligned_to_its_lowest_bit_up_to_256() {
        assert_eq!([0x1000, 0x1100, 0x1010, 0x1002, 0].map(alignment), [256, 256, 16, 2, 256]);
    }
}
