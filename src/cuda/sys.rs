//! Generated from cuda/include/qlora_kernels.h by bindgen (options: --allowlist-item "[qQ][kK]_.*" --no-prepend-enum-name
//! --rust-edition 2024 --merge-extern-blocks, then rustfmt). Do not edit.

#![allow(non_camel_case_types, unsafe_code, missing_docs)]

pub const QK_ABI_VERSION: u32 = 1;
pub const QK_MAX_SEGMENTS: u32 = 4;
pub const QK_MAX_R: u32 = 256;
pub const QK_NESTED_BLOCK: u32 = 256;
pub const QK_STATE_BLOCK: u32 = 256;
pub const QK_ADAMW_CHUNK: u32 = 4096;
#[repr(C)]
#[derive(Debug)]
pub struct CUstream_st {
    _unused: [u8; 0],
}
pub type qk_stream = *mut CUstream_st;
pub const QK_OK: qk_status = 0;
pub const QK_ERROR_STRUCT_SIZE: qk_status = -1;
pub const QK_ERROR_NULL_POINTER: qk_status = -2;
pub const QK_ERROR_SHAPE: qk_status = -3;
pub const QK_ERROR_ALIGNMENT: qk_status = -4;
pub const QK_ERROR_LAYOUT: qk_status = -5;
pub const QK_ERROR_BLOCK_SIZE: qk_status = -6;
pub const QK_ERROR_WORKSPACE: qk_status = -7;
pub const QK_ERROR_NOT_BUILT: qk_status = -8;
pub const QK_ERROR_EMULATION: qk_status = -9;
pub type qk_status = ::std::os::raw::c_int;
pub const QK_BF16: qk_dtype = 0;
pub const QK_F32: qk_dtype = 1;
pub type qk_dtype = ::std::os::raw::c_uint;
pub const QK_ABSMAX_ROW_MAJOR: qk_layout = 0;
pub const QK_ABSMAX_TRANSPOSED: qk_layout = 1;
pub type qk_layout = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_nf4 {
    pub struct_size: u32,
    pub layout: u32,
    pub n: i64,
    pub k: i64,
    pub block_size: u32,
    pub reserved: u32,
    pub codes: *const u8,
    pub absmax_codes: *const u8,
    pub absmax: *const f32,
    pub nested_absmax: *const f32,
    pub nested_code: *const f32,
    pub offset: *const f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_nf4"][::std::mem::size_of::<qk_nf4>() - 80usize];
    ["Alignment of qk_nf4"][::std::mem::align_of::<qk_nf4>() - 8usize];
    ["Offset of field: qk_nf4::struct_size"][::std::mem::offset_of!(qk_nf4, struct_size) - 0usize];
    ["Offset of field: qk_nf4::layout"][::std::mem::offset_of!(qk_nf4, layout) - 4usize];
    ["Offset of field: qk_nf4::n"][::std::mem::offset_of!(qk_nf4, n) - 8usize];
    ["Offset of field: qk_nf4::k"][::std::mem::offset_of!(qk_nf4, k) - 16usize];
    ["Offset of field: qk_nf4::block_size"][::std::mem::offset_of!(qk_nf4, block_size) - 24usize];
    ["Offset of field: qk_nf4::reserved"][::std::mem::offset_of!(qk_nf4, reserved) - 28usize];
    ["Offset of field: qk_nf4::codes"][::std::mem::offset_of!(qk_nf4, codes) - 32usize];
    ["Offset of field: qk_nf4::absmax_codes"][::std::mem::offset_of!(qk_nf4, absmax_codes) - 40usize];
    ["Offset of field: qk_nf4::absmax"][::std::mem::offset_of!(qk_nf4, absmax) - 48usize];
    ["Offset of field: qk_nf4::nested_absmax"][::std::mem::offset_of!(qk_nf4, nested_absmax) - 56usize];
    ["Offset of field: qk_nf4::nested_code"][::std::mem::offset_of!(qk_nf4, nested_code) - 64usize];
    ["Offset of field: qk_nf4::offset"][::std::mem::offset_of!(qk_nf4, offset) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_lora {
    pub struct_size: u32,
    pub r: u32,
    pub scale: f32,
    pub num_adapters: u32,
    pub a: *const ::std::os::raw::c_void,
    pub b: *const ::std::os::raw::c_void,
    pub adapter_index: *const i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_lora"][::std::mem::size_of::<qk_lora>() - 40usize];
    ["Alignment of qk_lora"][::std::mem::align_of::<qk_lora>() - 8usize];
    ["Offset of field: qk_lora::struct_size"][::std::mem::offset_of!(qk_lora, struct_size) - 0usize];
    ["Offset of field: qk_lora::r"][::std::mem::offset_of!(qk_lora, r) - 4usize];
    ["Offset of field: qk_lora::scale"][::std::mem::offset_of!(qk_lora, scale) - 8usize];
    ["Offset of field: qk_lora::num_adapters"][::std::mem::offset_of!(qk_lora, num_adapters) - 12usize];
    ["Offset of field: qk_lora::a"][::std::mem::offset_of!(qk_lora, a) - 16usize];
    ["Offset of field: qk_lora::b"][::std::mem::offset_of!(qk_lora, b) - 24usize];
    ["Offset of field: qk_lora::adapter_index"][::std::mem::offset_of!(qk_lora, adapter_index) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_segment {
    pub struct_size: u32,
    pub reserved: u32,
    pub n: i64,
    pub nf4: *const qk_nf4,
    pub dense: *const ::std::os::raw::c_void,
    pub lora: *const qk_lora,
    pub bias: *const ::std::os::raw::c_void,
    pub y: *mut ::std::os::raw::c_void,
    pub ldy: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_segment"][::std::mem::size_of::<qk_segment>() - 64usize];
    ["Alignment of qk_segment"][::std::mem::align_of::<qk_segment>() - 8usize];
    ["Offset of field: qk_segment::struct_size"][::std::mem::offset_of!(qk_segment, struct_size) - 0usize];
    ["Offset of field: qk_segment::reserved"][::std::mem::offset_of!(qk_segment, reserved) - 4usize];
    ["Offset of field: qk_segment::n"][::std::mem::offset_of!(qk_segment, n) - 8usize];
    ["Offset of field: qk_segment::nf4"][::std::mem::offset_of!(qk_segment, nf4) - 16usize];
    ["Offset of field: qk_segment::dense"][::std::mem::offset_of!(qk_segment, dense) - 24usize];
    ["Offset of field: qk_segment::lora"][::std::mem::offset_of!(qk_segment, lora) - 32usize];
    ["Offset of field: qk_segment::bias"][::std::mem::offset_of!(qk_segment, bias) - 40usize];
    ["Offset of field: qk_segment::y"][::std::mem::offset_of!(qk_segment, y) - 48usize];
    ["Offset of field: qk_segment::ldy"][::std::mem::offset_of!(qk_segment, ldy) - 56usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_linear {
    pub struct_size: u32,
    pub num_segments: u32,
    pub m: i64,
    pub k: i64,
    pub x: *const ::std::os::raw::c_void,
    pub ldx: i64,
    pub segments: *const qk_segment,
    pub s: *const ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_linear"][::std::mem::size_of::<qk_linear>() - 56usize];
    ["Alignment of qk_linear"][::std::mem::align_of::<qk_linear>() - 8usize];
    ["Offset of field: qk_linear::struct_size"][::std::mem::offset_of!(qk_linear, struct_size) - 0usize];
    ["Offset of field: qk_linear::num_segments"][::std::mem::offset_of!(qk_linear, num_segments) - 4usize];
    ["Offset of field: qk_linear::m"][::std::mem::offset_of!(qk_linear, m) - 8usize];
    ["Offset of field: qk_linear::k"][::std::mem::offset_of!(qk_linear, k) - 16usize];
    ["Offset of field: qk_linear::x"][::std::mem::offset_of!(qk_linear, x) - 24usize];
    ["Offset of field: qk_linear::ldx"][::std::mem::offset_of!(qk_linear, ldx) - 32usize];
    ["Offset of field: qk_linear::segments"][::std::mem::offset_of!(qk_linear, segments) - 40usize];
    ["Offset of field: qk_linear::s"][::std::mem::offset_of!(qk_linear, s) - 48usize];
};
pub const QK_PATH_TENSOR_CORE: qk_path = 0;
pub const QK_PATH_SMALL_M: qk_path = 1;
pub const QK_PATH_GENERIC: qk_path = 2;
pub type qk_path = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_nf4_quantize_args {
    pub struct_size: u32,
    pub dtype: u32,
    pub count: i64,
    pub block_size: u32,
    pub reserved: u32,
    pub weight: *const ::std::os::raw::c_void,
    pub nested_code: *const f32,
    pub codes: *mut u8,
    pub absmax: *mut f32,
    pub absmax_codes: *mut u8,
    pub nested_absmax: *mut f32,
    pub offset: *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_nf4_quantize_args"][::std::mem::size_of::<qk_nf4_quantize_args>() - 80usize];
    ["Alignment of qk_nf4_quantize_args"][::std::mem::align_of::<qk_nf4_quantize_args>() - 8usize];
    ["Offset of field: qk_nf4_quantize_args::struct_size"]
        [::std::mem::offset_of!(qk_nf4_quantize_args, struct_size) - 0usize];
    ["Offset of field: qk_nf4_quantize_args::dtype"][::std::mem::offset_of!(qk_nf4_quantize_args, dtype) - 4usize];
    ["Offset of field: qk_nf4_quantize_args::count"][::std::mem::offset_of!(qk_nf4_quantize_args, count) - 8usize];
    ["Offset of field: qk_nf4_quantize_args::block_size"]
        [::std::mem::offset_of!(qk_nf4_quantize_args, block_size) - 16usize];
    ["Offset of field: qk_nf4_quantize_args::reserved"]
        [::std::mem::offset_of!(qk_nf4_quantize_args, reserved) - 20usize];
    ["Offset of field: qk_nf4_quantize_args::weight"][::std::mem::offset_of!(qk_nf4_quantize_args, weight) - 24usize];
    ["Offset of field: qk_nf4_quantize_args::nested_code"]
        [::std::mem::offset_of!(qk_nf4_quantize_args, nested_code) - 32usize];
    ["Offset of field: qk_nf4_quantize_args::codes"][::std::mem::offset_of!(qk_nf4_quantize_args, codes) - 40usize];
    ["Offset of field: qk_nf4_quantize_args::absmax"][::std::mem::offset_of!(qk_nf4_quantize_args, absmax) - 48usize];
    ["Offset of field: qk_nf4_quantize_args::absmax_codes"]
        [::std::mem::offset_of!(qk_nf4_quantize_args, absmax_codes) - 56usize];
    ["Offset of field: qk_nf4_quantize_args::nested_absmax"]
        [::std::mem::offset_of!(qk_nf4_quantize_args, nested_absmax) - 64usize];
    ["Offset of field: qk_nf4_quantize_args::offset"][::std::mem::offset_of!(qk_nf4_quantize_args, offset) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_adamw_tensor {
    pub struct_size: u32,
    pub rate: u32,
    pub n: i64,
    pub value: *mut f32,
    pub working: *mut ::std::os::raw::c_void,
    pub gradient: *const f32,
    pub m: *mut ::std::os::raw::c_void,
    pub v: *mut ::std::os::raw::c_void,
    pub m_absmax: *mut f32,
    pub v_absmax: *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_adamw_tensor"][::std::mem::size_of::<qk_adamw_tensor>() - 72usize];
    ["Alignment of qk_adamw_tensor"][::std::mem::align_of::<qk_adamw_tensor>() - 8usize];
    ["Offset of field: qk_adamw_tensor::struct_size"][::std::mem::offset_of!(qk_adamw_tensor, struct_size) - 0usize];
    ["Offset of field: qk_adamw_tensor::rate"][::std::mem::offset_of!(qk_adamw_tensor, rate) - 4usize];
    ["Offset of field: qk_adamw_tensor::n"][::std::mem::offset_of!(qk_adamw_tensor, n) - 8usize];
    ["Offset of field: qk_adamw_tensor::value"][::std::mem::offset_of!(qk_adamw_tensor, value) - 16usize];
    ["Offset of field: qk_adamw_tensor::working"][::std::mem::offset_of!(qk_adamw_tensor, working) - 24usize];
    ["Offset of field: qk_adamw_tensor::gradient"][::std::mem::offset_of!(qk_adamw_tensor, gradient) - 32usize];
    ["Offset of field: qk_adamw_tensor::m"][::std::mem::offset_of!(qk_adamw_tensor, m) - 40usize];
    ["Offset of field: qk_adamw_tensor::v"][::std::mem::offset_of!(qk_adamw_tensor, v) - 48usize];
    ["Offset of field: qk_adamw_tensor::m_absmax"][::std::mem::offset_of!(qk_adamw_tensor, m_absmax) - 56usize];
    ["Offset of field: qk_adamw_tensor::v_absmax"][::std::mem::offset_of!(qk_adamw_tensor, v_absmax) - 64usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_adamw_rate {
    pub decay: f32,
    pub step_size: f32,
    pub root: f32,
    pub beta1: f32,
    pub rest1: f32,
    pub beta2: f32,
    pub rest2: f32,
    pub epsilon: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_adamw_rate"][::std::mem::size_of::<qk_adamw_rate>() - 32usize];
    ["Alignment of qk_adamw_rate"][::std::mem::align_of::<qk_adamw_rate>() - 4usize];
    ["Offset of field: qk_adamw_rate::decay"][::std::mem::offset_of!(qk_adamw_rate, decay) - 0usize];
    ["Offset of field: qk_adamw_rate::step_size"][::std::mem::offset_of!(qk_adamw_rate, step_size) - 4usize];
    ["Offset of field: qk_adamw_rate::root"][::std::mem::offset_of!(qk_adamw_rate, root) - 8usize];
    ["Offset of field: qk_adamw_rate::beta1"][::std::mem::offset_of!(qk_adamw_rate, beta1) - 12usize];
    ["Offset of field: qk_adamw_rate::rest1"][::std::mem::offset_of!(qk_adamw_rate, rest1) - 16usize];
    ["Offset of field: qk_adamw_rate::beta2"][::std::mem::offset_of!(qk_adamw_rate, beta2) - 20usize];
    ["Offset of field: qk_adamw_rate::rest2"][::std::mem::offset_of!(qk_adamw_rate, rest2) - 24usize];
    ["Offset of field: qk_adamw_rate::epsilon"][::std::mem::offset_of!(qk_adamw_rate, epsilon) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_gradient_state {
    pub norm: f64,
    pub scale: f32,
    pub tensor: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_gradient_state"][::std::mem::size_of::<qk_gradient_state>() - 16usize];
    ["Alignment of qk_gradient_state"][::std::mem::align_of::<qk_gradient_state>() - 8usize];
    ["Offset of field: qk_gradient_state::norm"][::std::mem::offset_of!(qk_gradient_state, norm) - 0usize];
    ["Offset of field: qk_gradient_state::scale"][::std::mem::offset_of!(qk_gradient_state, scale) - 8usize];
    ["Offset of field: qk_gradient_state::tensor"][::std::mem::offset_of!(qk_gradient_state, tensor) - 12usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_adamw {
    pub struct_size: u32,
    pub num_tensors: u32,
    pub tensors: *const qk_adamw_tensor,
    pub table: *const ::std::os::raw::c_void,
    pub rates: *const qk_adamw_rate,
    pub num_rates: u32,
    pub reserved: u32,
    pub gradients: *const qk_gradient_state,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_adamw"][::std::mem::size_of::<qk_adamw>() - 48usize];
    ["Alignment of qk_adamw"][::std::mem::align_of::<qk_adamw>() - 8usize];
    ["Offset of field: qk_adamw::struct_size"][::std::mem::offset_of!(qk_adamw, struct_size) - 0usize];
    ["Offset of field: qk_adamw::num_tensors"][::std::mem::offset_of!(qk_adamw, num_tensors) - 4usize];
    ["Offset of field: qk_adamw::tensors"][::std::mem::offset_of!(qk_adamw, tensors) - 8usize];
    ["Offset of field: qk_adamw::table"][::std::mem::offset_of!(qk_adamw, table) - 16usize];
    ["Offset of field: qk_adamw::rates"][::std::mem::offset_of!(qk_adamw, rates) - 24usize];
    ["Offset of field: qk_adamw::num_rates"][::std::mem::offset_of!(qk_adamw, num_rates) - 32usize];
    ["Offset of field: qk_adamw::reserved"][::std::mem::offset_of!(qk_adamw, reserved) - 36usize];
    ["Offset of field: qk_adamw::gradients"][::std::mem::offset_of!(qk_adamw, gradients) - 40usize];
};
unsafe extern "C" {
    pub fn qk_abi_version() -> u32;
    pub fn qk_status_name(status: ::std::os::raw::c_int) -> *const ::std::os::raw::c_char;
    pub fn qk_nf4_quantize(args: *const qk_nf4_quantize_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_nf4_dequantize(
        weight: *const qk_nf4,
        out: *mut ::std::os::raw::c_void,
        dtype: u32,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_absmax_transpose(
        in_: *const u8,
        out: *mut u8,
        rows: i64,
        columns: i64,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_lora_columns(linear: *const qk_linear) -> i64;
    pub fn qk_lora_down(
        linear: *const qk_linear,
        s: *mut ::std::os::raw::c_void,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_workspace_size(linear: *const qk_linear, bytes: *mut usize) -> ::std::os::raw::c_int;
    pub fn qk_linear_path(linear: *const qk_linear) -> ::std::os::raw::c_int;
    pub fn qk_linear_forward(
        linear: *const qk_linear,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_forward_dense(
        linear: *const qk_linear,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_adamw_table_size(
        tensors: *const qk_adamw_tensor,
        num_tensors: u32,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_adamw_table(
        tensors: *const qk_adamw_tensor,
        num_tensors: u32,
        table: *mut ::std::os::raw::c_void,
        table_size: usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_adamw_rate_of(
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
        step: u64,
        rate: *mut qk_adamw_rate,
    ) -> ::std::os::raw::c_int;
    pub fn qk_gradient_norm_workspace_size(adamw: *const qk_adamw, bytes: *mut usize) -> ::std::os::raw::c_int;
    pub fn qk_gradient_norm(
        adamw: *const qk_adamw,
        max_norm: f64,
        state: *mut qk_gradient_state,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_adamw_update(adamw: *const qk_adamw, stream: qk_stream) -> ::std::os::raw::c_int;
}
