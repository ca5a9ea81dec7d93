//! The C interface itself, below the checks of the Rust functions: every named error is reached, nothing is written on
//! the way, and structs lie as the header says.

mod abi;
mod gradients;
mod memory;
#[cfg(kernels = "emulated")]
mod not_pinned;
mod product;
#[cfg(kernels = "emulated")]
mod stream;
mod workspaces;

use super::{abi_version, linear_dx, status_name};
use crate::device::{Buffer, Device};
use crate::sys;
use half::bf16;
use std::ptr::null;

const M: usize = 4;
const K: usize = 128;
const N: usize = 24;
const R: usize = 12;

/// One valid NF4 + LoRA operand, whose structs a test spoils one field at a time.
struct Valid {
    device: Device,
    x: Buffer<bf16>,
    y: Buffer<bf16>,
    dense: Buffer<bf16>,
    workspace: Buffer<bf16>,
    floats: Buffer<f32>,
    nf4: sys::qk_nf4,
    lora: sys::qk_lora,
    segment: sys::qk_segment,
    linear: sys::qk_linear_args,
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

impl Valid {
    /// Boxed, and wired up last: the structs point to each other.
    fn new() -> Box<Self> {
        let device = Device::open().expect("a device to test on");
        let zeros = |len: usize| device.upload(&vec![bf16::ZERO; len]).unwrap();
        let (x, y, dense, workspace) = (zeros(M * K + 8), zeros(M * N + 8), zeros(N * K), zeros(M * 16 + 8));
        let floats = device.upload(&[0.0f32; 256]).unwrap();
        let at = |buffer: &Buffer<bf16>| buffer.view().address().cast::<std::ffi::c_void>();
        let f32s = floats.view().address();
        let nf4 = sys::qk_nf4 {
            struct_size: size::<sys::qk_nf4>(),
            layout: sys::QK_ABSMAX_ROW_MAJOR,
            n: N as i64,
            k: K as i64,
            block_size: 64,
            reserved: 0,
            codes: at(&dense).cast(),
            absmax_codes: at(&dense).cast(),
            absmax: null(),
            nested_absmax: f32s,
            nested_map: f32s,
            offset: f32s,
        };
        let lora = sys::qk_lora {
            struct_size: size::<sys::qk_lora>(),
            r: R as u32,
            scale: 1.0,
            num_adapters: 1,
            a: at(&dense),
            b: at(&dense),
            adapter_index: null(),
            scales: null(),
        };
        let segment = sys::qk_segment {
            struct_size: size::<sys::qk_segment>(),
            reserved: 0,
            n: N as i64,
            nf4: null(),
            dense: null(),
            lora: null(),
            bias: null(),
            y: at(&y).cast_mut(),
            ldy: N as i64,
        };
        let linear = sys::qk_linear_args {
            struct_size: size::<sys::qk_linear_args>(),
            num_segments: 1,
            m: M as i64,
            k: K as i64,
            x: at(&x),
            ldx: K as i64,
            segments: null(),
            s: null(),
            dropout: null(),
            lds: 0,
            room: std::ptr::null_mut(),
        };
        let mut valid = Box::new(Self { device, x, y, dense, workspace, floats, nf4, lora, segment, linear });
        valid.segment.nf4 = &raw const valid.nf4;
        valid.segment.lora = &raw const valid.lora;
        valid.linear.segments = &raw const valid.segment;
        valid
    }

    fn forward(&self, workspace: usize, bytes: usize) -> i32 {
        // SAFETY: the structs are those of `new`, or spoiled so that the call must refuse them before it reads device
        // memory.
        unsafe { sys::qk_linear_forward(&self.linear, workspace as *mut _, bytes, std::ptr::null_mut()) }
    }

    fn workspace(&self) -> usize {
        self.workspace.view().address() as usize
    }
}

/// The status of a forward call with one thing spoiled; nothing may have been written.
fn spoiled(spoil: impl FnOnce(&mut Valid)) -> i32 {
    let mut valid = Valid::new();
    valid.y = valid.device.upload(&[bf16::ONE; M * N]).unwrap();
    valid.segment.y = valid.y.view_mut().address().cast();
    spoil(&mut valid);
    let status = valid.forward(valid.workspace(), M * 16 * 2);
    assert!(valid.device.download(&valid.y).unwrap().iter().all(|&y| y == bf16::ONE), "refused, and yet written");
    status
}

#[test]
fn a_valid_call_passes() {
    let valid = Valid::new();
    assert_eq!(valid.forward(valid.workspace(), M * 16 * 2), sys::QK_OK);
    let mut bytes = 0;
    // SAFETY: valid structs, one integer.
    assert_eq!(unsafe { sys::qk_linear_forward_workspace_size(&valid.linear, &mut bytes) }, sys::QK_OK);
    assert_eq!(bytes, M * 16 * 2);
    // SAFETY: valid structs.
    let columns = unsafe {
        let mut columns = 0;
        assert_eq!(sys::qk_lora_columns(&valid.linear, &mut columns), sys::QK_OK);
        assert_eq!(sys::qk_lora_columns(&valid.linear, std::ptr::null_mut()), sys::QK_ERROR_NULL_POINTER);
        columns
    };
    assert_eq!(columns, 16);
}

#[test]
fn unknown_struct_sizes_are_refused_at_every_level() {
    for size in [0, 4, 28, 4104, u32::MAX - 7] {
        let error = sys::QK_ERROR_STRUCT_SIZE;
        assert_eq!(spoiled(|v| v.linear.struct_size = size), error);
        assert_eq!(spoiled(|v| v.segment.struct_size = size), error);
        assert_eq!(spoiled(|v| v.nf4.struct_size = size), error);
        assert_eq!(spoiled(|v| v.lora.struct_size = size), error);
    }
}

#[test]
fn missing_and_contradicting_pointers_are_refused() {
    let error = sys::QK_ERROR_NULL_POINTER;
    assert_eq!(spoiled(|v| v.linear.x = null()), error);
    assert_eq!(spoiled(|v| v.linear.segments = null()), error);
    assert_eq!(spoiled(|v| v.segment.y = std::ptr::null_mut()), error);
    assert_eq!(spoiled(|v| v.segment.nf4 = null()), error);
    assert_eq!(spoiled(|v| v.segment.dense = v.dense.view().address().cast()), error, "two weights");
    assert_eq!(spoiled(|v| v.nf4.codes = null()), error);
    assert_eq!(spoiled(|v| v.nf4.absmax_codes = null()), error, "no absmax");
    assert_eq!(spoiled(|v| v.nf4.absmax = v.floats.view().address()), error, "two absmax");
    assert_eq!(spoiled(|v| v.nf4.nested_absmax = null()), error);
    assert_eq!(spoiled(|v| v.nf4.nested_map = null()), error);
    assert_eq!(spoiled(|v| v.nf4.offset = null()), error);
    assert_eq!(spoiled(|v| v.lora.a = null()), error);
    assert_eq!(spoiled(|v| v.lora.b = null()), error);
    // SAFETY: refused before anything is read.
    unsafe {
        assert_eq!(sys::qk_linear_forward(null(), std::ptr::null_mut(), 0, std::ptr::null_mut()), error);
        assert_eq!(sys::qk_nf4_quantize(null(), std::ptr::null_mut()), error);
        assert_eq!(sys::qk_nf4_dequantize(null(), std::ptr::null_mut(), 0, std::ptr::null_mut()), error);
        assert_eq!(sys::qk_absmax_transpose(null(), std::ptr::null_mut(), 1, 1, std::ptr::null_mut()), error);
        assert_eq!(sys::qk_linear_forward_workspace_size(&Valid::new().linear, std::ptr::null_mut()), error);
    }
}

#[test]
fn shapes_out_of_range_and_shapes_that_disagree_are_refused() {
    let error = sys::QK_ERROR_SHAPE;
    for count in [0, 5] {
        assert_eq!(spoiled(|v| v.linear.num_segments = count), error);
    }
    assert_eq!(spoiled(|v| v.linear.m = -1), error);
    assert_eq!(spoiled(|v| v.linear.m = 1 << 31), error);
    assert_eq!(spoiled(|v| v.linear.k = 0), error);
    assert_eq!(spoiled(|v| v.linear.k = 64), error, "the weight has another K");
    assert_eq!(spoiled(|v| v.linear.ldx = K as i64 - 1), error);
    for stride in [-16, 8, 20] {
        assert_eq!(spoiled(|v| v.linear.lds = stride), error, "S has 16 columns, a multiple of 8 apart");
    }
    let behind = |v: &Valid| v.linear.x.wrapping_byte_add(2 * K).cast_mut();
    for ldx in [K as i64, K as i64 + 8, K as i64 + 20] {
        assert_eq!(spoiled(|v| (v.linear.room, v.linear.ldx) = (behind(v), ldx)), error, "no room for 16 columns");
    }
    let beside = |v: &mut Valid| (v.linear.room, v.linear.ldx) = (behind(v).wrapping_byte_add(16), K as i64 + 24);
    assert_eq!(spoiled(beside), error, "the room begins behind X");
    let overlapping = |v: &mut Valid| {
        (v.linear.room, v.linear.s, v.linear.ldx) = (behind(v), behind(v).cast_const(), K as i64 + 16);
    };
    assert_eq!(spoiled(overlapping), error, "S in the room has the stride of X");
    assert_eq!(spoiled(|v| v.segment.n = 0), error);
    assert_eq!(spoiled(|v| v.segment.n = N as i64 - 8), error, "the weight has another N");
    assert_eq!(spoiled(|v| v.segment.ldy = N as i64 - 1), error);
    assert_eq!(spoiled(|v| v.nf4.n = 0), error);
    assert_eq!(spoiled(|v| v.nf4.n = i64::MAX), error);
    assert_eq!(spoiled(|v| v.lora.r = 0), error);
    assert_eq!(spoiled(|v| v.lora.r = 257), error);
    assert_eq!(spoiled(|v| v.lora.num_adapters = 0), error);
    assert_eq!(spoiled(|v| v.lora.num_adapters = 2), error, "several adapters without an index");
}

#[test]
fn misaligned_pointers_are_refused() {
    let error = sys::QK_ERROR_ALIGNMENT;
    assert_eq!(spoiled(|v| v.linear.x = v.linear.x.wrapping_byte_add(8)), error);
    assert_eq!(spoiled(|v| v.linear.s = v.linear.x.wrapping_byte_add(2)), error);
    assert_eq!(spoiled(|v| v.segment.y = v.segment.y.wrapping_byte_add(8)), error);
    assert_eq!(spoiled(|v| v.segment.bias = v.linear.x.wrapping_byte_add(1)), error);
    assert_eq!(spoiled(|v| v.nf4.codes = v.nf4.codes.wrapping_add(1)), error);
    assert_eq!(spoiled(|v| v.nf4.offset = v.nf4.offset.wrapping_byte_add(2)), error);
    assert_eq!(spoiled(|v| v.lora.a = v.lora.a.wrapping_byte_add(8)), error);
    assert_eq!(spoiled(|v| v.lora.b = v.lora.b.wrapping_byte_add(8)), error);
    assert_eq!(spoiled(|v| v.lora.adapter_index = v.linear.x.wrapping_byte_add(2).cast()), error);
    assert_eq!(spoiled(|v| v.lora.scales = v.linear.x.wrapping_byte_add(2).cast()), error);
    let valid = Valid::new();
    assert_eq!(valid.forward(valid.workspace() + 8, M * 16 * 2), error);
}

#[test]
fn layouts_block_sizes_features_and_workspaces_have_their_own_errors() {
    assert_eq!(spoiled(|v| v.nf4.layout = 2), sys::QK_ERROR_LAYOUT);
    let straddling = spoiled(|v| {
        v.nf4.layout = sys::QK_ABSMAX_TRANSPOSED;
        v.nf4.block_size = 256;
    });
    assert_eq!(straddling, sys::QK_ERROR_LAYOUT, "blocks that straddle rows have no transposed layout");
    for block_size in [0, 16, 48, 8192] {
        assert_eq!(spoiled(|v| v.nf4.block_size = block_size), sys::QK_ERROR_BLOCK_SIZE);
    }
    let valid = Valid::new();
    assert_eq!(valid.forward(valid.workspace(), M * 16 * 2 - 1), sys::QK_ERROR_WORKSPACE);
    assert_eq!(valid.forward(0, M * 16 * 2), sys::QK_ERROR_WORKSPACE);
    // SAFETY: a valid weight; the dtype is refused before the output is written.
    let status = unsafe { sys::qk_nf4_dequantize(&valid.nf4, valid.linear.x.cast_mut(), 7, std::ptr::null_mut()) };
    assert_eq!(status, sys::QK_ERROR_LAYOUT);
    assert_eq!(valid.x.view().len(), M * K + 8);
}

/// The status of a dX call with one thing spoiled; nothing may have been written.
fn spoiled_dx(spoil: impl FnOnce(&mut Valid, &mut sys::qk_segment_backward, &mut sys::qk_linear_backward_args)) -> i32 {
    let mut valid = Valid::new();
    let dx = valid.device.upload(&[bf16::ONE; M * K]).unwrap();
    let mut segment = sys::qk_segment_backward {
        struct_size: size::<sys::qk_segment_backward>(),
        reserved: 0,
        n: N as i64,
        nf4: valid.segment.nf4,
        dense: null(),
        lora: valid.segment.lora,
        dy: valid.y.view().address().cast(),
        lddy: N as i64,
        da: std::ptr::null_mut(),
        db: std::ptr::null_mut(),
    };
    let mut backward = sys::qk_linear_backward_args {
        struct_size: size::<sys::qk_linear_backward_args>(),
        num_segments: 1,
        m: M as i64,
        k: K as i64,
        x: null(),
        ldx: 0,
        dx: dx.view().address().cast_mut().cast(),
        lddx: K as i64,
        accumulate: 0,
        reserved: 0,
        segments: &raw const segment,
        s: null(),
        t: null(),
        dropout: null(),
        lds: 0,
        ldt: 0,
        room: std::ptr::null_mut(),
    };
    spoil(&mut valid, &mut segment, &mut backward);
    let workspace = valid.workspace() as *mut _;
    // SAFETY: the structs are valid, or spoiled so that the call must refuse them before it reads device memory.
    let status = unsafe { sys::qk_linear_dx(&backward, workspace, M * 16 * 2, std::ptr::null_mut()) };
    let written = valid.device.download(&dx).unwrap().iter().any(|&dx| dx != bf16::ONE);
    assert_eq!(written, status == sys::QK_OK, "status {status}");
    status
}

#[test]
fn dx_refuses_what_it_cannot_take() {
    use sys::{QK_ERROR_ALIGNMENT, QK_ERROR_NULL_POINTER, QK_ERROR_SHAPE, QK_ERROR_STRUCT_SIZE, QK_ERROR_VALUE};
    assert_eq!(spoiled_dx(|_, _, _| ()), sys::QK_OK);
    assert_eq!(spoiled_dx(|_, _, b| b.struct_size = 4), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled_dx(|_, s, _| s.struct_size = 4), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled_dx(|v, _, _| v.lora.struct_size = 4), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled_dx(|_, _, b| b.segments = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled_dx(|_, _, b| b.dx = std::ptr::null_mut()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled_dx(|_, s, _| s.dy = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled_dx(|_, s, _| s.nf4 = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled_dx(|v, s, _| s.dense = v.dense.view().address().cast()), QK_ERROR_NULL_POINTER, "two weights");
    assert_eq!(spoiled_dx(|_, _, b| b.num_segments = 5), QK_ERROR_SHAPE);
    assert_eq!(spoiled_dx(|_, _, b| b.m = -1), QK_ERROR_SHAPE);
    assert_eq!(spoiled_dx(|_, _, b| b.k = 64), QK_ERROR_SHAPE, "the weight has another K");
    assert_eq!(spoiled_dx(|_, _, b| b.lddx = K as i64 - 1), QK_ERROR_SHAPE);
    for stride in [-8, 8, 20] {
        assert_eq!(spoiled_dx(|_, _, b| b.lds = stride), QK_ERROR_SHAPE, "S has 16 columns, a multiple of 8 apart");
        assert_eq!(spoiled_dx(|_, _, b| b.ldt = stride), QK_ERROR_SHAPE, "and so has T");
    }
    let full = spoiled_dx(|_, s, b| b.room = s.dy.wrapping_byte_add(2 * N).cast_mut());
    assert_eq!(full, QK_ERROR_SHAPE, "rows have no more than their columns");
    assert_eq!(spoiled_dx(|_, s, _| s.lddy = N as i64 - 1), QK_ERROR_SHAPE);
    assert_eq!(spoiled_dx(|_, s, _| s.n = N as i64 - 8), QK_ERROR_SHAPE, "the weight has another N");
    assert_eq!(spoiled_dx(|_, _, b| b.dx = b.dx.wrapping_byte_add(8)), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled_dx(|_, s, _| s.dy = s.dy.wrapping_byte_add(8)), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled_dx(|_, _, b| b.t = b.dx.wrapping_byte_add(8)), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled_dx(|_, _, b| b.accumulate = 2), QK_ERROR_VALUE);
    let struct_size = size::<sys::qk_dropout>();
    let good = sys::qk_dropout {
        struct_size,
        p: 0.5,
        seed: 1,
        dropout_id: 2,
        dropout_step: 3,
        first_token: (1 << 32) - M as i64,
        step_on_device: null(),
    };
    let dropout = |dropout: sys::qk_dropout| spoiled_dx(|_, _, b| b.dropout = Box::leak(Box::new(dropout)));
    assert_eq!(dropout(good), sys::QK_OK);
    assert_eq!(dropout(sys::qk_dropout { struct_size: 4, ..good }), QK_ERROR_STRUCT_SIZE);
    for p in [-0.1, 1.0, f32::NAN] {
        assert_eq!(dropout(sys::qk_dropout { p, ..good }), QK_ERROR_VALUE);
    }
    let step_on_device = std::ptr::without_provenance(2);
    assert_eq!(dropout(sys::qk_dropout { step_on_device, ..good }), QK_ERROR_ALIGNMENT);
    for first_token in [-1, good.first_token + 1] {
        assert_eq!(dropout(sys::qk_dropout { first_token, ..good }), QK_ERROR_VALUE);
    }
}

/// The text that a choice prints into `size` bytes.
fn printed(size: usize, choice: impl FnOnce(*mut std::ffi::c_char, usize) -> i32) -> String {
    let mut text = [b'?'; 128];
    assert_eq!(choice(text.as_mut_ptr().cast(), size), sys::QK_OK);
    assert!(text[size..].iter().all(|&byte| byte == b'?'), "written past the end");
    let end = text.iter().position(|&byte| byte == 0).expect("a C string");
    String::from_utf8(text[..end].to_vec()).unwrap()
}

#[test]
fn choices_print_themselves() {
    let mut valid = Valid::new();
    let mut forward = |m: i64, n: i64, ldx: i64, size: usize| {
        (valid.linear.m, valid.linear.ldx) = (m, ldx);
        (valid.segment.n, valid.nf4.n, valid.segment.ldy) = (n, n, n);
        let linear = &raw const valid.linear;
        // SAFETY: valid structs, which nothing but the host reads; `size` bytes of text.
        printed(size, |text, size| unsafe { sys::qk_linear_forward_choice(linear, text, size) })
    };
    let k = K as i64;
    assert_eq!(forward(4, 24, k, 100), "few tokens, tiles of 16 tokens x 8 columns, NF4 weights");
    assert_eq!(forward(16, 4096, k, 100), "few tokens, tiles of 16 tokens x 32 columns, NF4 weights");
    assert_eq!(forward(17, 4096, k, 100), "tensor cores, tiles of 64 tokens x 128 columns, NF4 weights");
    assert_eq!(forward(4096, 4096, k, 100), "tensor cores, tiles of 128 tokens x 256 columns, NF4 weights");
    assert_eq!(forward(4, 24, k + 1, 100), "generic, NF4 weights");
    assert_eq!(forward(4, 24, k + 1, 8), "generic");
    // SAFETY: refused.
    let status = unsafe { sys::qk_linear_forward_choice(&valid.linear, std::ptr::null_mut(), 0) };
    assert_eq!(status, sys::QK_ERROR_NULL_POINTER);

    let mut lines = Vec::new();
    let k = 4096;
    for (m, p) in [(4, 0.0), (100_000, 0.0), (100_000, 0.5), (256, 0.0), (512, 0.0), (1024, 0.0), (1100, 0.0)] {
        let struct_size = size::<sys::qk_dropout>();
        let (first_token, step_on_device) = (0, null());
        let dropout =
            sys::qk_dropout { struct_size, p, seed: 1, dropout_id: 2, dropout_step: 3, first_token, step_on_device };
        // The call that follows is refused: there is no device memory for this many tokens.
        spoiled_dx(|valid, _, backward| {
            (backward.m, backward.dropout) = (m, &raw const dropout);
            (backward.k, backward.lddx, valid.nf4.k) = (k, k, k);
            // SAFETY: valid structs, which nothing but the host reads.
            let line = printed(100, |text, size| unsafe { sys::qk_linear_dx_choice(&*backward, text, size) });
            let multiprocessors = valid.device.info().unwrap().multiprocessors;
            let (_, resident) = linear_dx::blocks(m as usize, k as usize, multiprocessors);
            assert_eq!(line.contains("128 tokens x 256"), resident == 1, "{m} {p}: {line}");
            lines.push(line);
            backward.struct_size = 0;
        });
    }
    assert_eq!(
        lines[..3],
        [
            "tensor cores, tiles of 64 tokens x 128 columns, NF4 weights",
            "tensor cores, tiles of 128 tokens x 256 columns, NF4 weights",
            "tensor cores, tiles of 128 tokens x 256 columns, NF4 weights",
        ]
    );
}

#[test]
fn statuses_have_names() {
    let named = (-13..=0).map(status_name).collect::<Vec<_>>();
    assert!(named.iter().all(|name| name.starts_with("QK_")), "{named:?}");
    assert_eq!(status_name(sys::QK_ERROR_STRUCT_SIZE), "QK_ERROR_STRUCT_SIZE");
    for code in -100..=3 {
        // SAFETY: returns a static, NUL-terminated string for every argument.
        let named = unsafe { std::ffi::CStr::from_ptr(sys::qk_status_name(code)) };
        assert_eq!(status_name(code), named.to_str().unwrap());
    }
    assert_eq!([status_name(2), status_name(-1000)], ["cudaError", "unknown"]);
}

#[test]
fn the_library_is_of_the_header_it_was_built_with() {
    // SAFETY: returns an integer.
    let revision = unsafe { sys::qk_abi_revision() };
    assert_eq!((abi_version(), revision), (sys::QK_ABI_VERSION, sys::QK_ABI_REVISION));
}
