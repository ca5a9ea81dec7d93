//! The library itself: its handle, its products, and the algorithm that it chose for each.

use super::WORKSPACE_BYTES;
use super::gemm::Gemm;
use crate::device::{Buffer, Device, Stream};
use crate::error::{CudaError, Result};
use cudarc::cublaslt::{result, sys};
use half::bf16;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

/// Pointers at multiples of it are what the library expects most.
const MOST_ALIGNMENT: usize = 256;

/// Tokens for which the algorithm of a product is chosen. Every number of tokens takes it, so that no bit depends on
/// how a batch is cut.
const CHOSEN_AT: usize = 2048;

/// `CUBLAS_OP_T` of cublas_api.h, which the bindings of cuBLASLt alone do not have.
const TRANSPOSE: i32 = 1;

/// A handle of the library on a GPU, and the algorithm that it chose for every kind of product seen so far.
///
/// Calls share one workspace of the library: they belong on one stream at a time.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    own_workspace: RefCell<Buffer<u8>>,
    plans: RefCell<HashMap<Key, Plan>>,
}

/// The properties of a product that decide its algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    n: usize,
    k: usize,
    /// of x, w and y
    strides: [usize; 3],
    k_by_n: bool,
    accumulate: bool,
    bias: bool,
    /// of x, w, and y with the bias, whichever has less
    alignment: [usize; 3],
}

/// A kind of product.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    w: Layout,
    chosen: Chosen,
    of_tokens: HashMap<usize, OfTokens>,
}

/// An algorithm, and the bytes of workspace that it takes.
#[derive(Clone, Copy)]
struct Chosen {
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

/// The parts of a product that depend on the number of its tokens.
struct OfTokens {
    x: Layout,
    y: Layout,
    chosen: Chosen,
}

/// The layout of a matrix, in the library's column-major terms.
struct Layout(sys::cublasLtMatrixLayout_t);

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
    /// On the first GPU. An error, not a panic, where there is no GPU or no cuBLASLt.
    pub fn open() -> Result<Self> {
        Self::with_workspace(Device::open()?.zeros(WORKSPACE_BYTES)?)
    }

    /// On the GPU of the workspace, which is current in this thread and has [`WORKSPACE_BYTES`]. An error, not a panic,
    /// where there is no cuBLASLt.
    pub fn with_workspace(own_workspace: Buffer<u8>) -> Result<Self> {
        if own_workspace.len() < WORKSPACE_BYTES {
            let len = own_workspace.len();
            return Err(CudaError::Device(format!(
                "cuBLASLt: a workspace of {len} bytes, expected at least {WORKSPACE_BYTES}"
            )));
        }
        if !Self::is_present() {
            return Err(CudaError::Device(
                "no cuBLASLt: libcublasLt.so is not where the loader looks (LD_LIBRARY_PATH may name its directory)"
                    .into(),
            ));
        }
        let handle = result::create_handle().map_err(|error| failed("no handle", error))?;
        Ok(Self { handle, own_workspace: RefCell::new(own_workspace), plans: RefCell::default() })
    }

    /// True if the library is where the loader looks.
    pub fn is_present() -> bool {
        // cudarc panics where the library is missing: look first.
        // SAFETY: only tries to load the library.
        unsafe { sys::is_culib_present() }
    }

    /// Computes a small product of each kind, so that the library's code is on the GPU before its memory is shared out:
    /// it is loaded with the first product of its kind, and stays. Returns the library's version.
    pub fn load(device: &Device) -> Result<String> {
        const SIZE: usize = 1024;
        let library = Self::with_workspace(device.zeros(WORKSPACE_BYTES)?)?;
        let (factors, bias) = (device.zeros::<bf16>(SIZE * SIZE)?, device.zeros::<bf16>(SIZE)?);
        let mut product = device.zeros::<bf16>(SIZE * SIZE)?;
        let (m, n, k, ldx, ldw, ldy) = (SIZE, SIZE, SIZE, SIZE, SIZE, SIZE);
        for (k_by_n, accumulate, has_bias) in
            [(false, false, false), (false, false, true), (true, false, false), (true, true, false)]
        {
            let (x, w, y) = (factors.view(), factors.view(), product.view_mut());
            let bias = has_bias.then(|| bias.view());
            library.gemm(Gemm { m, n, k, x, ldx, w, ldw, k_by_n, bias, y, ldy, accumulate }, device.stream())?;
        }
        device.synchronize()?;
        Ok(library.version())
    }

    /// The library's version, for example "13.0.2".
    pub fn version(&self) -> String {
        // SAFETY: takes nothing, returns a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100)
    }

    /// The algorithm of every kind of product so far, in words.
    pub fn algorithms(&self) -> Vec<String> {
        let plans = self.plans.borrow();
        let words = |(key, plan): (&Key, &Plan)| {
            let product = if key.k_by_n { "dX" } else { "forward" };
            format!("{product}, N {}, K {}: {}", key.n, key.k, plan.chosen.in_words())
        };
        let mut algorithms: Vec<String> = plans.iter().map(words).collect();
        algorithms.sort();
        algorithms.dedup();
        algorithms
    }

    /// Queues the product, after checks of every length and stride.
    pub fn gemm(&self, gemm: Gemm<'_>, stream: Stream) -> Result<()> {
        let operation = gemm.check()?;
        let Gemm { m, n, k, x, ldx, w, ldw, k_by_n, bias, y, ldy, accumulate } = gemm;
        if m == 0 {
            return Ok(());
        }
        let bias = bias.map(|bias| bias.address());
        // The addend of y is read as y is written: no algorithm may expect more of its alignment.
        let beside_y = bias.map_or(MOST_ALIGNMENT, |bias| alignment(bias as usize));
        let of_y = alignment(y.address() as usize).min(beside_y);
        let alignment = [alignment(x.address() as usize), alignment(w.address() as usize), of_y];
        let key = Key { n, k, strides: [ldx, ldw, ldy], k_by_n, accumulate, bias: bias.is_some(), alignment };
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Plan::new(self.handle, &key, bias)?),
        };
        if let Some(bias) = bias {
            set_bias(plan.description, bias)?;
        }
        plan.prepare(self.handle, &key, m)?;
        let OfTokens { x: x_layout, y: y_layout, chosen } = &plan.of_tokens[&m];
        let (one, beta) = (1f32, if accumulate { 1f32 } else { 0.0 });
        let mut own_workspace = self.own_workspace.borrow_mut();
        // SAFETY: every length was checked against the shape that the layouts were made for; alpha and beta are read
        // before the return.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                w.address().cast(),
                plan.w.0,
                x.address().cast(),
                x_layout.0,
                y.address().cast_const().cast(),
                y_layout.0,
                y.address().cast(),
                y_layout.0,
                &chosen.algorithm,
                own_workspace.view_mut().address().cast(),
                chosen.workspace,
                stream.as_raw().cast(),
            )
        }
        .map_err(|error| failed(&operation.shape, error))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: made in `with_workspace`, destroyed once. An error here has no one to go to.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Layout {
    fn new(rows: usize, columns: usize, stride: usize) -> Result<Self> {
        let kind = sys::cudaDataType::CUDA_R_16BF;
        let layout = result::create_matrix_layout(kind, rows as u64, columns as u64, stride as i64);
        Ok(Self(layout.map_err(|error| failed("the layout of a matrix", error))?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl Chosen {
    /// "algorithm 66, tile 21, stages 36, split 1 by scheme 0, ..."
    fn in_words(&self) -> String {
        use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
        let of = |(name, attribute, bytes): &(&str, Attribute, usize)| {
            let (mut value, mut written) = (0u64, 0);
            // SAFETY: the algorithm is one that the library gave, and the value has room for 8 bytes.
            let status = unsafe {
                sys::cublasLtMatmulAlgoConfigGetAttribute(
                    &self.algorithm,
                    *attribute,
                    (&raw mut value).cast(),
                    *bytes,
                    &mut written,
                )
            };
            status.result().map_or_else(|_| format!("{name} ?"), |()| format!("{name} {value}"))
        };
        let parts = [
            ("algorithm", Attribute::CUBLASLT_ALGO_CONFIG_ID, 4),
            ("tile", Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID, 4),
            ("stages", Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID, 4),
            ("split", Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 4),
            ("scheme", Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 4),
            ("order", Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4),
            ("option", Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4),
            ("inner", Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, 2),
            ("cluster", Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2),
        ];
        parts.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

/// Sets an attribute of a product.
fn set<T: Copy>(
    description: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    let value: *const T = value;
    // SAFETY: the description lives; the library copies the value.
    unsafe { result::set_matmul_desc_attribute(description, attribute, value.cast(), size_of::<T>()) }
        .map_err(|error| failed("an attribute of a product", error))
}

/// Makes `bias` what a product adds.
fn set_bias(description: sys::cublasLtMatmulDesc_t, bias: *const bf16) -> Result<()> {
    set(description, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)
}

impl Plan {
    /// In the library's column-major terms: D [N, M] = op(A) · B with A = W, [K, N] transposed or [N, K], and B = X [K,
    /// M]. `bias` is that of the first call: the library's choice may ask for one where a product adds one.
    fn new(handle: sys::cublasLtHandle_t, key: &Key, bias: Option<*const bf16>) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let ldw = key.strides[1];
        let w = if key.k_by_n { Layout::new(key.n, key.k, ldw)? } else { Layout::new(key.k, key.n, ldw)? };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)
            .map_err(|error| failed("the description of a product", error))?;
        // SAFETY: an array of integers; it is written before it is used.
        let algorithm = unsafe { std::mem::zeroed() };
        // From here on `plan` destroys what was made.
        let mut plan = Self { description, w, chosen: Chosen { algorithm, workspace: 0 }, of_tokens: HashMap::new() };
        if !key.k_by_n {
            set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSE)?;
        }
        if let Some(bias) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set_bias(description, bias)?;
        }
        let (x, y) = key.layouts(CHOSEN_AT)?;
        plan.chosen = plan.choose(handle, key, CHOSEN_AT, &x, &y)?;
        Ok(plan)
    }

    /// Prepares a product over m tokens: with the plan's algorithm, or, where that does not serve this number, with the
    /// one that the library chooses for it.
    fn prepare(&mut self, handle: sys::cublasLtHandle_t, key: &Key, m: usize) -> Result<()> {
        if self.of_tokens.contains_key(&m) {
            return Ok(());
        }
        let (x, y) = key.layouts(m)?;
        let algorithm = self.chosen.algorithm;
        // SAFETY: integers; they are written before they are read, where the call succeeds.
        let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: all were made above or in `new`, and live.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(handle, self.description, self.w.0, x.0, y.0, y.0, &algorithm, &mut found)
        };
        let chosen = match status.result() {
            Ok(()) if found.workspaceSize <= WORKSPACE_BYTES => Chosen { algorithm, workspace: found.workspaceSize },
            _ => self.choose(handle, key, m, &x, &y)?,
        };
        self.of_tokens.insert(m, OfTokens { x, y, chosen });
        Ok(())
    }

    /// The library's first choice. None whose sums over K are split between blocks: their order would be another
    /// question.
    fn choose(&self, handle: sys::cublasLtHandle_t, key: &Key, m: usize, x: &Layout, y: &Layout) -> Result<Chosen> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let shape = format!("M {m}, N {}, K {}", key.n, key.k);
        let failed = |error| failed(&shape, error);
        let preference = result::create_matmul_pref().map_err(failed)?;
        let [x_alignment, w_alignment, y_alignment] = key.alignment.map(|alignment| alignment as u32);
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: `preference` lives; `value` has `bytes` bytes.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }.map_err(failed)
        };
        let own_workspace = WORKSPACE_BYTES as u64;
        let bytes = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let found = set(bytes, (&raw const own_workspace).cast(), size_of::<u64>()).and_then(|()| {
            for (attribute, value) in [
                // CUBLASLT_REDUCTION_SCHEME_NONE
                (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 0),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w_alignment),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_alignment),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y_alignment),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y_alignment),
            ] {
                set(attribute, (&raw const value).cast(), size_of::<u32>())?;
            }
            let (description, w) = (self.description, self.w.0);
            // SAFETY: all were made before and live.
            unsafe { result::get_matmul_algo_heuristic(handle, description, w, x.0, y.0, y.0, preference) }
                .map_err(failed)
        });
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        let found = found?;
        Ok(Chosen { algorithm: found.algo, workspace: found.workspaceSize })
    }
}

impl Key {
    /// Those of x and y for m tokens.
    fn layouts(&self, m: usize) -> Result<(Layout, Layout)> {
        let [ldx, _, ldy] = self.strides;
        Ok((Layout::new(self.k, m, ldx)?, Layout::new(self.n, m, ldy)?))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
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
