//! Generated from cuda/include/qlora_kernels.h by bindgen (options: --allowlist-item "[qQ][kK]_.*" --no-prepend-enum-name
//! --rust-edition 2024 --merge-extern-blocks, then rustfmt). Do not edit.

#![allow(non_camel_case_types, unsafe_code, missing_docs)]

pub const QK_ABI_VERSION: u32 = 3;
pub const QK_ABI_REVISION: u32 = 9;
pub const QK_MAX_STRUCT_SIZE: u32 = 4096;
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
pub const QK_ERROR_VALUE: qk_status = -10;
pub const QK_ERROR_HEAD_DIM: qk_status = -11;
pub const QK_ERROR_OVERLAP: qk_status = -12;
pub const QK_ERROR_RESERVED: qk_status = -13;
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
    pub nested_map: *const f32,
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
    ["Offset of field: qk_nf4::nested_map"][::std::mem::offset_of!(qk_nf4, nested_map) - 64usize];
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
    pub scales: *const f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_lora"][::std::mem::size_of::<qk_lora>() - 48usize];
    ["Alignment of qk_lora"][::std::mem::align_of::<qk_lora>() - 8usize];
    ["Offset of field: qk_lora::struct_size"][::std::mem::offset_of!(qk_lora, struct_size) - 0usize];
    ["Offset of field: qk_lora::r"][::std::mem::offset_of!(qk_lora, r) - 4usize];
    ["Offset of field: qk_lora::scale"][::std::mem::offset_of!(qk_lora, scale) - 8usize];
    ["Offset of field: qk_lora::num_adapters"][::std::mem::offset_of!(qk_lora, num_adapters) - 12usize];
    ["Offset of field: qk_lora::a"][::std::mem::offset_of!(qk_lora, a) - 16usize];
    ["Offset of field: qk_lora::b"][::std::mem::offset_of!(qk_lora, b) - 24usize];
    ["Offset of field: qk_lora::adapter_index"][::std::mem::offset_of!(qk_lora, adapter_index) - 32usize];
    ["Offset of field: qk_lora::scales"][::std::mem::offset_of!(qk_lora, scales) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_dropout {
    pub struct_size: u32,
    pub p: f32,
    pub seed: u64,
    pub dropout_id: u32,
    pub dropout_step: u32,
    pub first_token: i64,
    pub step_on_device: *const u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_dropout"][::std::mem::size_of::<qk_dropout>() - 40usize];
    ["Alignment of qk_dropout"][::std::mem::align_of::<qk_dropout>() - 8usize];
    ["Offset of field: qk_dropout::struct_size"][::std::mem::offset_of!(qk_dropout, struct_size) - 0usize];
    ["Offset of field: qk_dropout::p"][::std::mem::offset_of!(qk_dropout, p) - 4usize];
    ["Offset of field: qk_dropout::seed"][::std::mem::offset_of!(qk_dropout, seed) - 8usize];
    ["Offset of field: qk_dropout::dropout_id"][::std::mem::offset_of!(qk_dropout, dropout_id) - 16usize];
    ["Offset of field: qk_dropout::dropout_step"][::std::mem::offset_of!(qk_dropout, dropout_step) - 20usize];
    ["Offset of field: qk_dropout::first_token"][::std::mem::offset_of!(qk_dropout, first_token) - 24usize];
    ["Offset of field: qk_dropout::step_on_device"][::std::mem::offset_of!(qk_dropout, step_on_device) - 32usize];
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
pub struct qk_linear_args {
    pub struct_size: u32,
    pub num_segments: u32,
    pub m: i64,
    pub k: i64,
    pub x: *const ::std::os::raw::c_void,
    pub ldx: i64,
    pub segments: *const qk_segment,
    pub s: *const ::std::os::raw::c_void,
    pub dropout: *const qk_dropout,
    pub lds: i64,
    pub room: *mut ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_linear_args"][::std::mem::size_of::<qk_linear_args>() - 80usize];
    ["Alignment of qk_linear_args"][::std::mem::align_of::<qk_linear_args>() - 8usize];
    ["Offset of field: qk_linear_args::struct_size"][::std::mem::offset_of!(qk_linear_args, struct_size) - 0usize];
    ["Offset of field: qk_linear_args::num_segments"][::std::mem::offset_of!(qk_linear_args, num_segments) - 4usize];
    ["Offset of field: qk_linear_args::m"][::std::mem::offset_of!(qk_linear_args, m) - 8usize];
    ["Offset of field: qk_linear_args::k"][::std::mem::offset_of!(qk_linear_args, k) - 16usize];
    ["Offset of field: qk_linear_args::x"][::std::mem::offset_of!(qk_linear_args, x) - 24usize];
    ["Offset of field: qk_linear_args::ldx"][::std::mem::offset_of!(qk_linear_args, ldx) - 32usize];
    ["Offset of field: qk_linear_args::segments"][::std::mem::offset_of!(qk_linear_args, segments) - 40usize];
    ["Offset of field: qk_linear_args::s"][::std::mem::offset_of!(qk_linear_args, s) - 48usize];
    ["Offset of field: qk_linear_args::dropout"][::std::mem::offset_of!(qk_linear_args, dropout) - 56usize];
    ["Offset of field: qk_linear_args::lds"][::std::mem::offset_of!(qk_linear_args, lds) - 64usize];
    ["Offset of field: qk_linear_args::room"][::std::mem::offset_of!(qk_linear_args, room) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_segment_backward {
    pub struct_size: u32,
    pub reserved: u32,
    pub n: i64,
    pub nf4: *const qk_nf4,
    pub dense: *const ::std::os::raw::c_void,
    pub lora: *const qk_lora,
    pub dy: *const ::std::os::raw::c_void,
    pub lddy: i64,
    pub da: *mut f32,
    pub db: *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_segment_backward"][::std::mem::size_of::<qk_segment_backward>() - 72usize];
    ["Alignment of qk_segment_backward"][::std::mem::align_of::<qk_segment_backward>() - 8usize];
    ["Offset of field: qk_segment_backward::struct_size"]
        [::std::mem::offset_of!(qk_segment_backward, struct_size) - 0usize];
    ["Offset of field: qk_segment_backward::reserved"][::std::mem::offset_of!(qk_segment_backward, reserved) - 4usize];
    ["Offset of field: qk_segment_backward::n"][::std::mem::offset_of!(qk_segment_backward, n) - 8usize];
    ["Offset of field: qk_segment_backward::nf4"][::std::mem::offset_of!(qk_segment_backward, nf4) - 16usize];
    ["Offset of field: qk_segment_backward::dense"][::std::mem::offset_of!(qk_segment_backward, dense) - 24usize];
    ["Offset of field: qk_segment_backward::lora"][::std::mem::offset_of!(qk_segment_backward, lora) - 32usize];
    ["Offset of field: qk_segment_backward::dy"][::std::mem::offset_of!(qk_segment_backward, dy) - 40usize];
    ["Offset of field: qk_segment_backward::lddy"][::std::mem::offset_of!(qk_segment_backward, lddy) - 48usize];
    ["Offset of field: qk_segment_backward::da"][::std::mem::offset_of!(qk_segment_backward, da) - 56usize];
    ["Offset of field: qk_segment_backward::db"][::std::mem::offset_of!(qk_segment_backward, db) - 64usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_linear_backward_args {
    pub struct_size: u32,
    pub num_segments: u32,
    pub m: i64,
    pub k: i64,
    pub x: *const ::std::os::raw::c_void,
    pub ldx: i64,
    pub dx: *mut ::std::os::raw::c_void,
    pub lddx: i64,
    pub accumulate: u32,
    pub reserved: u32,
    pub segments: *const qk_segment_backward,
    pub s: *const ::std::os::raw::c_void,
    pub t: *const ::std::os::raw::c_void,
    pub dropout: *const qk_dropout,
    pub lds: i64,
    pub ldt: i64,
    pub room: *mut ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_linear_backward_args"][::std::mem::size_of::<qk_linear_backward_args>() - 120usize];
    ["Alignment of qk_linear_backward_args"][::std::mem::align_of::<qk_linear_backward_args>() - 8usize];
    ["Offset of field: qk_linear_backward_args::struct_size"]
        [::std::mem::offset_of!(qk_linear_backward_args, struct_size) - 0usize];
    ["Offset of field: qk_linear_backward_args::num_segments"]
        [::std::mem::offset_of!(qk_linear_backward_args, num_segments) - 4usize];
    ["Offset of field: qk_linear_backward_args::m"][::std::mem::offset_of!(qk_linear_backward_args, m) - 8usize];
    ["Offset of field: qk_linear_backward_args::k"][::std::mem::offset_of!(qk_linear_backward_args, k) - 16usize];
    ["Offset of field: qk_linear_backward_args::x"][::std::mem::offset_of!(qk_linear_backward_args, x) - 24usize];
    ["Offset of field: qk_linear_backward_args::ldx"][::std::mem::offset_of!(qk_linear_backward_args, ldx) - 32usize];
    ["Offset of field: qk_linear_backward_args::dx"][::std::mem::offset_of!(qk_linear_backward_args, dx) - 40usize];
    ["Offset of field: qk_linear_backward_args::lddx"][::std::mem::offset_of!(qk_linear_backward_args, lddx) - 48usize];
    ["Offset of field: qk_linear_backward_args::accumulate"]
        [::std::mem::offset_of!(qk_linear_backward_args, accumulate) - 56usize];
    ["Offset of field: qk_linear_backward_args::reserved"]
        [::std::mem::offset_of!(qk_linear_backward_args, reserved) - 60usize];
    ["Offset of field: qk_linear_backward_args::segments"]
        [::std::mem::offset_of!(qk_linear_backward_args, segments) - 64usize];
    ["Offset of field: qk_linear_backward_args::s"][::std::mem::offset_of!(qk_linear_backward_args, s) - 72usize];
    ["Offset of field: qk_linear_backward_args::t"][::std::mem::offset_of!(qk_linear_backward_args, t) - 80usize];
    ["Offset of field: qk_linear_backward_args::dropout"]
        [::std::mem::offset_of!(qk_linear_backward_args, dropout) - 88usize];
    ["Offset of field: qk_linear_backward_args::lds"][::std::mem::offset_of!(qk_linear_backward_args, lds) - 96usize];
    ["Offset of field: qk_linear_backward_args::ldt"][::std::mem::offset_of!(qk_linear_backward_args, ldt) - 104usize];
    ["Offset of field: qk_linear_backward_args::room"]
        [::std::mem::offset_of!(qk_linear_backward_args, room) - 112usize];
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
    pub nested_map: *const f32,
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
    ["Offset of field: qk_nf4_quantize_args::nested_map"]
        [::std::mem::offset_of!(qk_nf4_quantize_args, nested_map) - 32usize];
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
pub struct qk_adamw_args {
    pub struct_size: u32,
    pub num_tensors: u32,
    pub tensors: *const qk_adamw_tensor,
    pub table: *const ::std::os::raw::c_void,
    pub rates: *const qk_adamw_rate,
    pub num_rates: u32,
    pub reserved: u32,
    pub gradient_state: *const qk_gradient_state,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_adamw_args"][::std::mem::size_of::<qk_adamw_args>() - 48usize];
    ["Alignment of qk_adamw_args"][::std::mem::align_of::<qk_adamw_args>() - 8usize];
    ["Offset of field: qk_adamw_args::struct_size"][::std::mem::offset_of!(qk_adamw_args, struct_size) - 0usize];
    ["Offset of field: qk_adamw_args::num_tensors"][::std::mem::offset_of!(qk_adamw_args, num_tensors) - 4usize];
    ["Offset of field: qk_adamw_args::tensors"][::std::mem::offset_of!(qk_adamw_args, tensors) - 8usize];
    ["Offset of field: qk_adamw_args::table"][::std::mem::offset_of!(qk_adamw_args, table) - 16usize];
    ["Offset of field: qk_adamw_args::rates"][::std::mem::offset_of!(qk_adamw_args, rates) - 24usize];
    ["Offset of field: qk_adamw_args::num_rates"][::std::mem::offset_of!(qk_adamw_args, num_rates) - 32usize];
    ["Offset of field: qk_adamw_args::reserved"][::std::mem::offset_of!(qk_adamw_args, reserved) - 36usize];
    ["Offset of field: qk_adamw_args::gradient_state"][::std::mem::offset_of!(qk_adamw_args, gradient_state) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_product {
    pub struct_size: u32,
    pub reserved: u32,
    pub n: i64,
    pub k: i64,
    pub x: *const ::std::os::raw::c_void,
    pub ldx: i64,
    pub w: *const ::std::os::raw::c_void,
    pub ldw: i64,
    pub bias: *const ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_product"][::std::mem::size_of::<qk_product>() - 64usize];
    ["Alignment of qk_product"][::std::mem::align_of::<qk_product>() - 8usize];
    ["Offset of field: qk_product::struct_size"][::std::mem::offset_of!(qk_product, struct_size) - 0usize];
    ["Offset of field: qk_product::reserved"][::std::mem::offset_of!(qk_product, reserved) - 4usize];
    ["Offset of field: qk_product::n"][::std::mem::offset_of!(qk_product, n) - 8usize];
    ["Offset of field: qk_product::k"][::std::mem::offset_of!(qk_product, k) - 16usize];
    ["Offset of field: qk_product::x"][::std::mem::offset_of!(qk_product, x) - 24usize];
    ["Offset of field: qk_product::ldx"][::std::mem::offset_of!(qk_product, ldx) - 32usize];
    ["Offset of field: qk_product::w"][::std::mem::offset_of!(qk_product, w) - 40usize];
    ["Offset of field: qk_product::ldw"][::std::mem::offset_of!(qk_product, ldw) - 48usize];
    ["Offset of field: qk_product::bias"][::std::mem::offset_of!(qk_product, bias) - 56usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_row_squares_args {
    pub struct_size: u32,
    pub reserved: u32,
    pub n: i64,
    pub k: i64,
    pub nf4: *const qk_nf4,
    pub dense: *const ::std::os::raw::c_void,
    pub squares: *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_row_squares_args"][::std::mem::size_of::<qk_row_squares_args>() - 48usize];
    ["Alignment of qk_row_squares_args"][::std::mem::align_of::<qk_row_squares_args>() - 8usize];
    ["Offset of field: qk_row_squares_args::struct_size"]
        [::std::mem::offset_of!(qk_row_squares_args, struct_size) - 0usize];
    ["Offset of field: qk_row_squares_args::reserved"][::std::mem::offset_of!(qk_row_squares_args, reserved) - 4usize];
    ["Offset of field: qk_row_squares_args::n"][::std::mem::offset_of!(qk_row_squares_args, n) - 8usize];
    ["Offset of field: qk_row_squares_args::k"][::std::mem::offset_of!(qk_row_squares_args, k) - 16usize];
    ["Offset of field: qk_row_squares_args::nf4"][::std::mem::offset_of!(qk_row_squares_args, nf4) - 24usize];
    ["Offset of field: qk_row_squares_args::dense"][::std::mem::offset_of!(qk_row_squares_args, dense) - 32usize];
    ["Offset of field: qk_row_squares_args::squares"][::std::mem::offset_of!(qk_row_squares_args, squares) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_magnitude_norms_args {
    pub struct_size: u32,
    pub r: u32,
    pub n: i64,
    pub z: *const ::std::os::raw::c_void,
    pub b: *const ::std::os::raw::c_void,
    pub squares: *const f32,
    pub norms: *mut f32,
    pub scale: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_magnitude_norms_args"][::std::mem::size_of::<qk_magnitude_norms_args>() - 56usize];
    ["Alignment of qk_magnitude_norms_args"][::std::mem::align_of::<qk_magnitude_norms_args>() - 8usize];
    ["Offset of field: qk_magnitude_norms_args::struct_size"]
        [::std::mem::offset_of!(qk_magnitude_norms_args, struct_size) - 0usize];
    ["Offset of field: qk_magnitude_norms_args::r"][::std::mem::offset_of!(qk_magnitude_norms_args, r) - 4usize];
    ["Offset of field: qk_magnitude_norms_args::n"][::std::mem::offset_of!(qk_magnitude_norms_args, n) - 8usize];
    ["Offset of field: qk_magnitude_norms_args::z"][::std::mem::offset_of!(qk_magnitude_norms_args, z) - 16usize];
    ["Offset of field: qk_magnitude_norms_args::b"][::std::mem::offset_of!(qk_magnitude_norms_args, b) - 24usize];
    ["Offset of field: qk_magnitude_norms_args::squares"]
        [::std::mem::offset_of!(qk_magnitude_norms_args, squares) - 32usize];
    ["Offset of field: qk_magnitude_norms_args::norms"]
        [::std::mem::offset_of!(qk_magnitude_norms_args, norms) - 40usize];
    ["Offset of field: qk_magnitude_norms_args::scale"]
        [::std::mem::offset_of!(qk_magnitude_norms_args, scale) - 48usize];
    ["Offset of field: qk_magnitude_norms_args::reserved"]
        [::std::mem::offset_of!(qk_magnitude_norms_args, reserved) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_magnitude_args {
    pub struct_size: u32,
    pub reserved: u32,
    pub m: i64,
    pub n: i64,
    pub magnitude: *const f32,
    pub norms: *const f32,
    pub bias: *const ::std::os::raw::c_void,
    pub y: *mut ::std::os::raw::c_void,
    pub ldy: i64,
    pub dy: *const ::std::os::raw::c_void,
    pub lddy: i64,
    pub dmagnitude: *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_magnitude_args"][::std::mem::size_of::<qk_magnitude_args>() - 88usize];
    ["Alignment of qk_magnitude_args"][::std::mem::align_of::<qk_magnitude_args>() - 8usize];
    ["Offset of field: qk_magnitude_args::struct_size"]
        [::std::mem::offset_of!(qk_magnitude_args, struct_size) - 0usize];
    ["Offset of field: qk_magnitude_args::reserved"][::std::mem::offset_of!(qk_magnitude_args, reserved) - 4usize];
    ["Offset of field: qk_magnitude_args::m"][::std::mem::offset_of!(qk_magnitude_args, m) - 8usize];
    ["Offset of field: qk_magnitude_args::n"][::std::mem::offset_of!(qk_magnitude_args, n) - 16usize];
    ["Offset of field: qk_magnitude_args::magnitude"][::std::mem::offset_of!(qk_magnitude_args, magnitude) - 24usize];
    ["Offset of field: qk_magnitude_args::norms"][::std::mem::offset_of!(qk_magnitude_args, norms) - 32usize];
    ["Offset of field: qk_magnitude_args::bias"][::std::mem::offset_of!(qk_magnitude_args, bias) - 40usize];
    ["Offset of field: qk_magnitude_args::y"][::std::mem::offset_of!(qk_magnitude_args, y) - 48usize];
    ["Offset of field: qk_magnitude_args::ldy"][::std::mem::offset_of!(qk_magnitude_args, ldy) - 56usize];
    ["Offset of field: qk_magnitude_args::dy"][::std::mem::offset_of!(qk_magnitude_args, dy) - 64usize];
    ["Offset of field: qk_magnitude_args::lddy"][::std::mem::offset_of!(qk_magnitude_args, lddy) - 72usize];
    ["Offset of field: qk_magnitude_args::dmagnitude"][::std::mem::offset_of!(qk_magnitude_args, dmagnitude) - 80usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_embedding_args {
    pub struct_size: u32,
    pub reserved: u32,
    pub m: i64,
    pub h: i64,
    pub vocab: i64,
    pub ids: *const u32,
    pub table: *const ::std::os::raw::c_void,
    pub out: *mut ::std::os::raw::c_void,
    pub scale: f32,
    pub reserved2: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_embedding_args"][::std::mem::size_of::<qk_embedding_args>() - 64usize];
    ["Alignment of qk_embedding_args"][::std::mem::align_of::<qk_embedding_args>() - 8usize];
    ["Offset of field: qk_embedding_args::struct_size"]
        [::std::mem::offset_of!(qk_embedding_args, struct_size) - 0usize];
    ["Offset of field: qk_embedding_args::reserved"][::std::mem::offset_of!(qk_embedding_args, reserved) - 4usize];
    ["Offset of field: qk_embedding_args::m"][::std::mem::offset_of!(qk_embedding_args, m) - 8usize];
    ["Offset of field: qk_embedding_args::h"][::std::mem::offset_of!(qk_embedding_args, h) - 16usize];
    ["Offset of field: qk_embedding_args::vocab"][::std::mem::offset_of!(qk_embedding_args, vocab) - 24usize];
    ["Offset of field: qk_embedding_args::ids"][::std::mem::offset_of!(qk_embedding_args, ids) - 32usize];
    ["Offset of field: qk_embedding_args::table"][::std::mem::offset_of!(qk_embedding_args, table) - 40usize];
    ["Offset of field: qk_embedding_args::out"][::std::mem::offset_of!(qk_embedding_args, out) - 48usize];
    ["Offset of field: qk_embedding_args::scale"][::std::mem::offset_of!(qk_embedding_args, scale) - 56usize];
    ["Offset of field: qk_embedding_args::reserved2"][::std::mem::offset_of!(qk_embedding_args, reserved2) - 60usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_embedding_backward_args {
    pub struct_size: u32,
    pub reserved: u32,
    pub m: i64,
    pub h: i64,
    pub vocab: i64,
    pub ids: *const u32,
    pub dout: *const ::std::os::raw::c_void,
    pub dtable: *mut f32,
    pub scale: f32,
    pub reserved2: u32,
    pub rows: *const u32,
    pub num_rows: i64,
    pub lddout: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_embedding_backward_args"][::std::mem::size_of::<qk_embedding_backward_args>() - 88usize];
    ["Alignment of qk_embedding_backward_args"][::std::mem::align_of::<qk_embedding_backward_args>() - 8usize];
    ["Offset of field: qk_embedding_backward_args::struct_size"]
        [::std::mem::offset_of!(qk_embedding_backward_args, struct_size) - 0usize];
    ["Offset of field: qk_embedding_backward_args::reserved"]
        [::std::mem::offset_of!(qk_embedding_backward_args, reserved) - 4usize];
    ["Offset of field: qk_embedding_backward_args::m"][::std::mem::offset_of!(qk_embedding_backward_args, m) - 8usize];
    ["Offset of field: qk_embedding_backward_args::h"][::std::mem::offset_of!(qk_embedding_backward_args, h) - 16usize];
    ["Offset of field: qk_embedding_backward_args::vocab"]
        [::std::mem::offset_of!(qk_embedding_backward_args, vocab) - 24usize];
    ["Offset of field: qk_embedding_backward_args::ids"]
        [::std::mem::offset_of!(qk_embedding_backward_args, ids) - 32usize];
    ["Offset of field: qk_embedding_backward_args::dout"]
        [::std::mem::offset_of!(qk_embedding_backward_args, dout) - 40usize];
    ["Offset of field: qk_embedding_backward_args::dtable"]
        [::std::mem::offset_of!(qk_embedding_backward_args, dtable) - 48usize];
    ["Offset of field: qk_embedding_backward_args::scale"]
        [::std::mem::offset_of!(qk_embedding_backward_args, scale) - 56usize];
    ["Offset of field: qk_embedding_backward_args::reserved2"]
        [::std::mem::offset_of!(qk_embedding_backward_args, reserved2) - 60usize];
    ["Offset of field: qk_embedding_backward_args::rows"]
        [::std::mem::offset_of!(qk_embedding_backward_args, rows) - 64usize];
    ["Offset of field: qk_embedding_backward_args::num_rows"]
        [::std::mem::offset_of!(qk_embedding_backward_args, num_rows) - 72usize];
    ["Offset of field: qk_embedding_backward_args::lddout"]
        [::std::mem::offset_of!(qk_embedding_backward_args, lddout) - 80usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_replace_rows_args {
    pub struct_size: u32,
    pub reserved: u32,
    pub h: i64,
    pub vocab: i64,
    pub num_rows: i64,
    pub rows: *const u32,
    pub values: *const ::std::os::raw::c_void,
    pub table: *mut ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_replace_rows_args"][::std::mem::size_of::<qk_replace_rows_args>() - 56usize];
    ["Alignment of qk_replace_rows_args"][::std::mem::align_of::<qk_replace_rows_args>() - 8usize];
    ["Offset of field: qk_replace_rows_args::struct_size"]
        [::std::mem::offset_of!(qk_replace_rows_args, struct_size) - 0usize];
    ["Offset of field: qk_replace_rows_args::reserved"]
        [::std::mem::offset_of!(qk_replace_rows_args, reserved) - 4usize];
    ["Offset of field: qk_replace_rows_args::h"][::std::mem::offset_of!(qk_replace_rows_args, h) - 8usize];
    ["Offset of field: qk_replace_rows_args::vocab"][::std::mem::offset_of!(qk_replace_rows_args, vocab) - 16usize];
    ["Offset of field: qk_replace_rows_args::num_rows"]
        [::std::mem::offset_of!(qk_replace_rows_args, num_rows) - 24usize];
    ["Offset of field: qk_replace_rows_args::rows"][::std::mem::offset_of!(qk_replace_rows_args, rows) - 32usize];
    ["Offset of field: qk_replace_rows_args::values"][::std::mem::offset_of!(qk_replace_rows_args, values) - 40usize];
    ["Offset of field: qk_replace_rows_args::table"][::std::mem::offset_of!(qk_replace_rows_args, table) - 48usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_rms_norm_args {
    pub struct_size: u32,
    pub eps: f32,
    pub m: i64,
    pub h: i64,
    pub x: *const ::std::os::raw::c_void,
    pub delta: *const ::std::os::raw::c_void,
    pub weight: *const f32,
    pub sum: *mut ::std::os::raw::c_void,
    pub y: *mut ::std::os::raw::c_void,
    pub residual: *const ::std::os::raw::c_void,
    pub ldy: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_rms_norm_args"][::std::mem::size_of::<qk_rms_norm_args>() - 80usize];
    ["Alignment of qk_rms_norm_args"][::std::mem::align_of::<qk_rms_norm_args>() - 8usize];
    ["Offset of field: qk_rms_norm_args::struct_size"][::std::mem::offset_of!(qk_rms_norm_args, struct_size) - 0usize];
    ["Offset of field: qk_rms_norm_args::eps"][::std::mem::offset_of!(qk_rms_norm_args, eps) - 4usize];
    ["Offset of field: qk_rms_norm_args::m"][::std::mem::offset_of!(qk_rms_norm_args, m) - 8usize];
    ["Offset of field: qk_rms_norm_args::h"][::std::mem::offset_of!(qk_rms_norm_args, h) - 16usize];
    ["Offset of field: qk_rms_norm_args::x"][::std::mem::offset_of!(qk_rms_norm_args, x) - 24usize];
    ["Offset of field: qk_rms_norm_args::delta"][::std::mem::offset_of!(qk_rms_norm_args, delta) - 32usize];
    ["Offset of field: qk_rms_norm_args::weight"][::std::mem::offset_of!(qk_rms_norm_args, weight) - 40usize];
    ["Offset of field: qk_rms_norm_args::sum"][::std::mem::offset_of!(qk_rms_norm_args, sum) - 48usize];
    ["Offset of field: qk_rms_norm_args::y"][::std::mem::offset_of!(qk_rms_norm_args, y) - 56usize];
    ["Offset of field: qk_rms_norm_args::residual"][::std::mem::offset_of!(qk_rms_norm_args, residual) - 64usize];
    ["Offset of field: qk_rms_norm_args::ldy"][::std::mem::offset_of!(qk_rms_norm_args, ldy) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_rms_norm_backward_args {
    pub struct_size: u32,
    pub eps: f32,
    pub m: i64,
    pub h: i64,
    pub dy: *const ::std::os::raw::c_void,
    pub x: *const ::std::os::raw::c_void,
    pub weight: *const f32,
    pub dx: *mut ::std::os::raw::c_void,
    pub accumulate: u32,
    pub reserved: u32,
    pub lddy: i64,
    pub lddx: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_rms_norm_backward_args"][::std::mem::size_of::<qk_rms_norm_backward_args>() - 80usize];
    ["Alignment of qk_rms_norm_backward_args"][::std::mem::align_of::<qk_rms_norm_backward_args>() - 8usize];
    ["Offset of field: qk_rms_norm_backward_args::struct_size"]
        [::std::mem::offset_of!(qk_rms_norm_backward_args, struct_size) - 0usize];
    ["Offset of field: qk_rms_norm_backward_args::eps"]
        [::std::mem::offset_of!(qk_rms_norm_backward_args, eps) - 4usize];
    ["Offset of field: qk_rms_norm_backward_args::m"][::std::mem::offset_of!(qk_rms_norm_backward_args, m) - 8usize];
    ["Offset of field: qk_rms_norm_backward_args::h"][::std::mem::offset_of!(qk_rms_norm_backward_args, h) - 16usize];
    ["Offset of field: qk_rms_norm_backward_args::dy"][::std::mem::offset_of!(qk_rms_norm_backward_args, dy) - 24usize];
    ["Offset of field: qk_rms_norm_backward_args::x"][::std::mem::offset_of!(qk_rms_norm_backward_args, x) - 32usize];
    ["Offset of field: qk_rms_norm_backward_args::weight"]
        [::std::mem::offset_of!(qk_rms_norm_backward_args, weight) - 40usize];
    ["Offset of field: qk_rms_norm_backward_args::dx"][::std::mem::offset_of!(qk_rms_norm_backward_args, dx) - 48usize];
    ["Offset of field: qk_rms_norm_backward_args::accumulate"]
        [::std::mem::offset_of!(qk_rms_norm_backward_args, accumulate) - 56usize];
    ["Offset of field: qk_rms_norm_backward_args::reserved"]
        [::std::mem::offset_of!(qk_rms_norm_backward_args, reserved) - 60usize];
    ["Offset of field: qk_rms_norm_backward_args::lddy"]
        [::std::mem::offset_of!(qk_rms_norm_backward_args, lddy) - 64usize];
    ["Offset of field: qk_rms_norm_backward_args::lddx"]
        [::std::mem::offset_of!(qk_rms_norm_backward_args, lddx) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_norm_gradient_args {
    pub struct_size: u32,
    pub eps: f32,
    pub m: i64,
    pub parts: i64,
    pub width: i64,
    pub ld: i64,
    pub column: i64,
    pub dy: *const ::std::os::raw::c_void,
    pub x: *const ::std::os::raw::c_void,
    pub dweight: *mut f32,
    pub lddy: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_norm_gradient_args"][::std::mem::size_of::<qk_norm_gradient_args>() - 80usize];
    ["Alignment of qk_norm_gradient_args"][::std::mem::align_of::<qk_norm_gradient_args>() - 8usize];
    ["Offset of field: qk_norm_gradient_args::struct_size"]
        [::std::mem::offset_of!(qk_norm_gradient_args, struct_size) - 0usize];
    ["Offset of field: qk_norm_gradient_args::eps"][::std::mem::offset_of!(qk_norm_gradient_args, eps) - 4usize];
    ["Offset of field: qk_norm_gradient_args::m"][::std::mem::offset_of!(qk_norm_gradient_args, m) - 8usize];
    ["Offset of field: qk_norm_gradient_args::parts"][::std::mem::offset_of!(qk_norm_gradient_args, parts) - 16usize];
    ["Offset of field: qk_norm_gradient_args::width"][::std::mem::offset_of!(qk_norm_gradient_args, width) - 24usize];
    ["Offset of field: qk_norm_gradient_args::ld"][::std::mem::offset_of!(qk_norm_gradient_args, ld) - 32usize];
    ["Offset of field: qk_norm_gradient_args::column"][::std::mem::offset_of!(qk_norm_gradient_args, column) - 40usize];
    ["Offset of field: qk_norm_gradient_args::dy"][::std::mem::offset_of!(qk_norm_gradient_args, dy) - 48usize];
    ["Offset of field: qk_norm_gradient_args::x"][::std::mem::offset_of!(qk_norm_gradient_args, x) - 56usize];
    ["Offset of field: qk_norm_gradient_args::dweight"]
        [::std::mem::offset_of!(qk_norm_gradient_args, dweight) - 64usize];
    ["Offset of field: qk_norm_gradient_args::lddy"][::std::mem::offset_of!(qk_norm_gradient_args, lddy) - 72usize];
};
pub const QK_ROTATION_NONE: qk_rotation = 0;
pub const QK_ROTATION_AFTER_NORM: qk_rotation = 1;
pub const QK_ROTATION_BEFORE_NORM: qk_rotation = 2;
pub type qk_rotation = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_head_norm_args {
    pub struct_size: u32,
    pub head_dim: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub eps: f32,
    pub reserved: u32,
    pub m: i64,
    pub ldx: i64,
    pub ldy: i64,
    pub x: *const ::std::os::raw::c_void,
    pub q_weight: *const f32,
    pub k_weight: *const f32,
    pub dy: *const ::std::os::raw::c_void,
    pub y: *mut ::std::os::raw::c_void,
    pub whole_width: u32,
    pub reserved2: u32,
    pub rotation: u32,
    pub rotary_dim: u32,
    pub positions: *const u32,
    pub cosines: *const f32,
    pub sines: *const f32,
    pub table_positions: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_head_norm_args"][::std::mem::size_of::<qk_head_norm_args>() - 136usize];
    ["Alignment of qk_head_norm_args"][::std::mem::align_of::<qk_head_norm_args>() - 8usize];
    ["Offset of field: qk_head_norm_args::struct_size"]
        [::std::mem::offset_of!(qk_head_norm_args, struct_size) - 0usize];
    ["Offset of field: qk_head_norm_args::head_dim"][::std::mem::offset_of!(qk_head_norm_args, head_dim) - 4usize];
    ["Offset of field: qk_head_norm_args::heads"][::std::mem::offset_of!(qk_head_norm_args, heads) - 8usize];
    ["Offset of field: qk_head_norm_args::kv_heads"][::std::mem::offset_of!(qk_head_norm_args, kv_heads) - 12usize];
    ["Offset of field: qk_head_norm_args::eps"][::std::mem::offset_of!(qk_head_norm_args, eps) - 16usize];
    ["Offset of field: qk_head_norm_args::reserved"][::std::mem::offset_of!(qk_head_norm_args, reserved) - 20usize];
    ["Offset of field: qk_head_norm_args::m"][::std::mem::offset_of!(qk_head_norm_args, m) - 24usize];
    ["Offset of field: qk_head_norm_args::ldx"][::std::mem::offset_of!(qk_head_norm_args, ldx) - 32usize];
    ["Offset of field: qk_head_norm_args::ldy"][::std::mem::offset_of!(qk_head_norm_args, ldy) - 40usize];
    ["Offset of field: qk_head_norm_args::x"][::std::mem::offset_of!(qk_head_norm_args, x) - 48usize];
    ["Offset of field: qk_head_norm_args::q_weight"][::std::mem::offset_of!(qk_head_norm_args, q_weight) - 56usize];
    ["Offset of field: qk_head_norm_args::k_weight"][::std::mem::offset_of!(qk_head_norm_args, k_weight) - 64usize];
    ["Offset of field: qk_head_norm_args::dy"][::std::mem::offset_of!(qk_head_norm_args, dy) - 72usize];
    ["Offset of field: qk_head_norm_args::y"][::std::mem::offset_of!(qk_head_norm_args, y) - 80usize];
    ["Offset of field: qk_head_norm_args::whole_width"]
        [::std::mem::offset_of!(qk_head_norm_args, whole_width) - 88usize];
    ["Offset of field: qk_head_norm_args::reserved2"][::std::mem::offset_of!(qk_head_norm_args, reserved2) - 92usize];
    ["Offset of field: qk_head_norm_args::rotation"][::std::mem::offset_of!(qk_head_norm_args, rotation) - 96usize];
    ["Offset of field: qk_head_norm_args::rotary_dim"]
        [::std::mem::offset_of!(qk_head_norm_args, rotary_dim) - 100usize];
    ["Offset of field: qk_head_norm_args::positions"][::std::mem::offset_of!(qk_head_norm_args, positions) - 104usize];
    ["Offset of field: qk_head_norm_args::cosines"][::std::mem::offset_of!(qk_head_norm_args, cosines) - 112usize];
    ["Offset of field: qk_head_norm_args::sines"][::std::mem::offset_of!(qk_head_norm_args, sines) - 120usize];
    ["Offset of field: qk_head_norm_args::table_positions"]
        [::std::mem::offset_of!(qk_head_norm_args, table_positions) - 128usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_rope_args {
    pub struct_size: u32,
    pub head_dim: u32,
    pub heads: u32,
    pub inverse: u32,
    pub m: i64,
    pub ldx: i64,
    pub x: *mut ::std::os::raw::c_void,
    pub positions: *const u32,
    pub cosines: *const f32,
    pub sines: *const f32,
    pub table_positions: i64,
    pub rotary_dim: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_rope_args"][::std::mem::size_of::<qk_rope_args>() - 80usize];
    ["Alignment of qk_rope_args"][::std::mem::align_of::<qk_rope_args>() - 8usize];
    ["Offset of field: qk_rope_args::struct_size"][::std::mem::offset_of!(qk_rope_args, struct_size) - 0usize];
    ["Offset of field: qk_rope_args::head_dim"][::std::mem::offset_of!(qk_rope_args, head_dim) - 4usize];
    ["Offset of field: qk_rope_args::heads"][::std::mem::offset_of!(qk_rope_args, heads) - 8usize];
    ["Offset of field: qk_rope_args::inverse"][::std::mem::offset_of!(qk_rope_args, inverse) - 12usize];
    ["Offset of field: qk_rope_args::m"][::std::mem::offset_of!(qk_rope_args, m) - 16usize];
    ["Offset of field: qk_rope_args::ldx"][::std::mem::offset_of!(qk_rope_args, ldx) - 24usize];
    ["Offset of field: qk_rope_args::x"][::std::mem::offset_of!(qk_rope_args, x) - 32usize];
    ["Offset of field: qk_rope_args::positions"][::std::mem::offset_of!(qk_rope_args, positions) - 40usize];
    ["Offset of field: qk_rope_args::cosines"][::std::mem::offset_of!(qk_rope_args, cosines) - 48usize];
    ["Offset of field: qk_rope_args::sines"][::std::mem::offset_of!(qk_rope_args, sines) - 56usize];
    ["Offset of field: qk_rope_args::table_positions"][::std::mem::offset_of!(qk_rope_args, table_positions) - 64usize];
    ["Offset of field: qk_rope_args::rotary_dim"][::std::mem::offset_of!(qk_rope_args, rotary_dim) - 72usize];
    ["Offset of field: qk_rope_args::reserved"][::std::mem::offset_of!(qk_rope_args, reserved) - 76usize];
};
pub const QK_SILU: qk_activation = 0;
pub const QK_GELU_TANH: qk_activation = 1;
pub type qk_activation = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_swiglu_args {
    pub struct_size: u32,
    pub reserved: u32,
    pub m: i64,
    pub i: i64,
    pub gate_up: *mut ::std::os::raw::c_void,
    pub out: *mut ::std::os::raw::c_void,
    pub dout: *const ::std::os::raw::c_void,
    pub activation: u32,
    pub reserved2: u32,
    pub ldgate_up: i64,
    pub ldout: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_swiglu_args"][::std::mem::size_of::<qk_swiglu_args>() - 72usize];
    ["Alignment of qk_swiglu_args"][::std::mem::align_of::<qk_swiglu_args>() - 8usize];
    ["Offset of field: qk_swiglu_args::struct_size"][::std::mem::offset_of!(qk_swiglu_args, struct_size) - 0usize];
    ["Offset of field: qk_swiglu_args::reserved"][::std::mem::offset_of!(qk_swiglu_args, reserved) - 4usize];
    ["Offset of field: qk_swiglu_args::m"][::std::mem::offset_of!(qk_swiglu_args, m) - 8usize];
    ["Offset of field: qk_swiglu_args::i"][::std::mem::offset_of!(qk_swiglu_args, i) - 16usize];
    ["Offset of field: qk_swiglu_args::gate_up"][::std::mem::offset_of!(qk_swiglu_args, gate_up) - 24usize];
    ["Offset of field: qk_swiglu_args::out"][::std::mem::offset_of!(qk_swiglu_args, out) - 32usize];
    ["Offset of field: qk_swiglu_args::dout"][::std::mem::offset_of!(qk_swiglu_args, dout) - 40usize];
    ["Offset of field: qk_swiglu_args::activation"][::std::mem::offset_of!(qk_swiglu_args, activation) - 48usize];
    ["Offset of field: qk_swiglu_args::reserved2"][::std::mem::offset_of!(qk_swiglu_args, reserved2) - 52usize];
    ["Offset of field: qk_swiglu_args::ldgate_up"][::std::mem::offset_of!(qk_swiglu_args, ldgate_up) - 56usize];
    ["Offset of field: qk_swiglu_args::ldout"][::std::mem::offset_of!(qk_swiglu_args, ldout) - 64usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_attention_args {
    pub struct_size: u32,
    pub head_dim: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub m: i64,
    pub documents: i64,
    pub cu_seqlens: *const u32,
    pub window: i64,
    pub qkv: *const ::std::os::raw::c_void,
    pub ldqkv: i64,
    pub out: *mut ::std::os::raw::c_void,
    pub lse: *mut f32,
    pub dout: *const ::std::os::raw::c_void,
    pub dqkv: *mut ::std::os::raw::c_void,
    pub soft_cap: f32,
    pub reserved: u32,
    pub ldout: i64,
    pub lddqkv: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_attention_args"][::std::mem::size_of::<qk_attention_args>() - 120usize];
    ["Alignment of qk_attention_args"][::std::mem::align_of::<qk_attention_args>() - 8usize];
    ["Offset of field: qk_attention_args::struct_size"]
        [::std::mem::offset_of!(qk_attention_args, struct_size) - 0usize];
    ["Offset of field: qk_attention_args::head_dim"][::std::mem::offset_of!(qk_attention_args, head_dim) - 4usize];
    ["Offset of field: qk_attention_args::heads"][::std::mem::offset_of!(qk_attention_args, heads) - 8usize];
    ["Offset of field: qk_attention_args::kv_heads"][::std::mem::offset_of!(qk_attention_args, kv_heads) - 12usize];
    ["Offset of field: qk_attention_args::m"][::std::mem::offset_of!(qk_attention_args, m) - 16usize];
    ["Offset of field: qk_attention_args::documents"][::std::mem::offset_of!(qk_attention_args, documents) - 24usize];
    ["Offset of field: qk_attention_args::cu_seqlens"][::std::mem::offset_of!(qk_attention_args, cu_seqlens) - 32usize];
    ["Offset of field: qk_attention_args::window"][::std::mem::offset_of!(qk_attention_args, window) - 40usize];
    ["Offset of field: qk_attention_args::qkv"][::std::mem::offset_of!(qk_attention_args, qkv) - 48usize];
    ["Offset of field: qk_attention_args::ldqkv"][::std::mem::offset_of!(qk_attention_args, ldqkv) - 56usize];
    ["Offset of field: qk_attention_args::out"][::std::mem::offset_of!(qk_attention_args, out) - 64usize];
    ["Offset of field: qk_attention_args::lse"][::std::mem::offset_of!(qk_attention_args, lse) - 72usize];
    ["Offset of field: qk_attention_args::dout"][::std::mem::offset_of!(qk_attention_args, dout) - 80usize];
    ["Offset of field: qk_attention_args::dqkv"][::std::mem::offset_of!(qk_attention_args, dqkv) - 88usize];
    ["Offset of field: qk_attention_args::soft_cap"][::std::mem::offset_of!(qk_attention_args, soft_cap) - 96usize];
    ["Offset of field: qk_attention_args::reserved"][::std::mem::offset_of!(qk_attention_args, reserved) - 100usize];
    ["Offset of field: qk_attention_args::ldout"][::std::mem::offset_of!(qk_attention_args, ldout) - 104usize];
    ["Offset of field: qk_attention_args::lddqkv"][::std::mem::offset_of!(qk_attention_args, lddqkv) - 112usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_attention_cache_args {
    pub struct_size: u32,
    pub head_dim: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub m: i64,
    pub documents: i64,
    pub cu_seqlens: *const u32,
    pub starts: *const u32,
    pub positions: *const u32,
    pub max_seqlen: i64,
    pub rows: i64,
    pub qkv: *const ::std::os::raw::c_void,
    pub ldqkv: i64,
    pub cache: *mut ::std::os::raw::c_void,
    pub out: *mut ::std::os::raw::c_void,
    pub window: i64,
    pub soft_cap: f32,
    pub reserved: u32,
    pub ldout: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_attention_cache_args"][::std::mem::size_of::<qk_attention_cache_args>() - 128usize];
    ["Alignment of qk_attention_cache_args"][::std::mem::align_of::<qk_attention_cache_args>() - 8usize];
    ["Offset of field: qk_attention_cache_args::struct_size"]
        [::std::mem::offset_of!(qk_attention_cache_args, struct_size) - 0usize];
    ["Offset of field: qk_attention_cache_args::head_dim"]
        [::std::mem::offset_of!(qk_attention_cache_args, head_dim) - 4usize];
    ["Offset of field: qk_attention_cache_args::heads"]
        [::std::mem::offset_of!(qk_attention_cache_args, heads) - 8usize];
    ["Offset of field: qk_attention_cache_args::kv_heads"]
        [::std::mem::offset_of!(qk_attention_cache_args, kv_heads) - 12usize];
    ["Offset of field: qk_attention_cache_args::m"][::std::mem::offset_of!(qk_attention_cache_args, m) - 16usize];
    ["Offset of field: qk_attention_cache_args::documents"]
        [::std::mem::offset_of!(qk_attention_cache_args, documents) - 24usize];
    ["Offset of field: qk_attention_cache_args::cu_seqlens"]
        [::std::mem::offset_of!(qk_attention_cache_args, cu_seqlens) - 32usize];
    ["Offset of field: qk_attention_cache_args::starts"]
        [::std::mem::offset_of!(qk_attention_cache_args, starts) - 40usize];
    ["Offset of field: qk_attention_cache_args::positions"]
        [::std::mem::offset_of!(qk_attention_cache_args, positions) - 48usize];
    ["Offset of field: qk_attention_cache_args::max_seqlen"]
        [::std::mem::offset_of!(qk_attention_cache_args, max_seqlen) - 56usize];
    ["Offset of field: qk_attention_cache_args::rows"][::std::mem::offset_of!(qk_attention_cache_args, rows) - 64usize];
    ["Offset of field: qk_attention_cache_args::qkv"][::std::mem::offset_of!(qk_attention_cache_args, qkv) - 72usize];
    ["Offset of field: qk_attention_cache_args::ldqkv"]
        [::std::mem::offset_of!(qk_attention_cache_args, ldqkv) - 80usize];
    ["Offset of field: qk_attention_cache_args::cache"]
        [::std::mem::offset_of!(qk_attention_cache_args, cache) - 88usize];
    ["Offset of field: qk_attention_cache_args::out"][::std::mem::offset_of!(qk_attention_cache_args, out) - 96usize];
    ["Offset of field: qk_attention_cache_args::window"]
        [::std::mem::offset_of!(qk_attention_cache_args, window) - 104usize];
    ["Offset of field: qk_attention_cache_args::soft_cap"]
        [::std::mem::offset_of!(qk_attention_cache_args, soft_cap) - 112usize];
    ["Offset of field: qk_attention_cache_args::reserved"]
        [::std::mem::offset_of!(qk_attention_cache_args, reserved) - 116usize];
    ["Offset of field: qk_attention_cache_args::ldout"]
        [::std::mem::offset_of!(qk_attention_cache_args, ldout) - 120usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_logits_args {
    pub struct_size: u32,
    pub num_tokens: u32,
    pub m: i64,
    pub h: i64,
    pub vocab: i64,
    pub hidden: *const ::std::os::raw::c_void,
    pub head: *const ::std::os::raw::c_void,
    pub tokens: *const u32,
    pub logits: *const *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_logits_args"][::std::mem::size_of::<qk_logits_args>() - 64usize];
    ["Alignment of qk_logits_args"][::std::mem::align_of::<qk_logits_args>() - 8usize];
    ["Offset of field: qk_logits_args::struct_size"][::std::mem::offset_of!(qk_logits_args, struct_size) - 0usize];
    ["Offset of field: qk_logits_args::num_tokens"][::std::mem::offset_of!(qk_logits_args, num_tokens) - 4usize];
    ["Offset of field: qk_logits_args::m"][::std::mem::offset_of!(qk_logits_args, m) - 8usize];
    ["Offset of field: qk_logits_args::h"][::std::mem::offset_of!(qk_logits_args, h) - 16usize];
    ["Offset of field: qk_logits_args::vocab"][::std::mem::offset_of!(qk_logits_args, vocab) - 24usize];
    ["Offset of field: qk_logits_args::hidden"][::std::mem::offset_of!(qk_logits_args, hidden) - 32usize];
    ["Offset of field: qk_logits_args::head"][::std::mem::offset_of!(qk_logits_args, head) - 40usize];
    ["Offset of field: qk_logits_args::tokens"][::std::mem::offset_of!(qk_logits_args, tokens) - 48usize];
    ["Offset of field: qk_logits_args::logits"][::std::mem::offset_of!(qk_logits_args, logits) - 56usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_loss_state {
    pub sum: f64,
    pub row: i32,
    pub supervised: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_loss_state"][::std::mem::size_of::<qk_loss_state>() - 16usize];
    ["Alignment of qk_loss_state"][::std::mem::align_of::<qk_loss_state>() - 8usize];
    ["Offset of field: qk_loss_state::sum"][::std::mem::offset_of!(qk_loss_state, sum) - 0usize];
    ["Offset of field: qk_loss_state::row"][::std::mem::offset_of!(qk_loss_state, row) - 8usize];
    ["Offset of field: qk_loss_state::supervised"][::std::mem::offset_of!(qk_loss_state, supervised) - 12usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qk_cross_entropy_args {
    pub struct_size: u32,
    pub gradient_scale: f32,
    pub m: i64,
    pub h: i64,
    pub vocab: i64,
    pub supervised: i64,
    pub chunk: i64,
    pub hidden: *const ::std::os::raw::c_void,
    pub head: *const ::std::os::raw::c_void,
    pub targets: *const i32,
    pub losses: *mut f32,
    pub state: *mut qk_loss_state,
    pub dhidden: *mut ::std::os::raw::c_void,
    pub weights: *const f32,
    pub soft_cap: f32,
    pub reserved: u32,
    pub dhead: *mut f32,
    pub head_rows: *const u32,
    pub num_head_rows: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qk_cross_entropy_args"][::std::mem::size_of::<qk_cross_entropy_args>() - 136usize];
    ["Alignment of qk_cross_entropy_args"][::std::mem::align_of::<qk_cross_entropy_args>() - 8usize];
    ["Offset of field: qk_cross_entropy_args::struct_size"]
        [::std::mem::offset_of!(qk_cross_entropy_args, struct_size) - 0usize];
    ["Offset of field: qk_cross_entropy_args::gradient_scale"]
        [::std::mem::offset_of!(qk_cross_entropy_args, gradient_scale) - 4usize];
    ["Offset of field: qk_cross_entropy_args::m"][::std::mem::offset_of!(qk_cross_entropy_args, m) - 8usize];
    ["Offset of field: qk_cross_entropy_args::h"][::std::mem::offset_of!(qk_cross_entropy_args, h) - 16usize];
    ["Offset of field: qk_cross_entropy_args::vocab"][::std::mem::offset_of!(qk_cross_entropy_args, vocab) - 24usize];
    ["Offset of field: qk_cross_entropy_args::supervised"]
        [::std::mem::offset_of!(qk_cross_entropy_args, supervised) - 32usize];
    ["Offset of field: qk_cross_entropy_args::chunk"][::std::mem::offset_of!(qk_cross_entropy_args, chunk) - 40usize];
    ["Offset of field: qk_cross_entropy_args::hidden"][::std::mem::offset_of!(qk_cross_entropy_args, hidden) - 48usize];
    ["Offset of field: qk_cross_entropy_args::head"][::std::mem::offset_of!(qk_cross_entropy_args, head) - 56usize];
    ["Offset of field: qk_cross_entropy_args::targets"]
        [::std::mem::offset_of!(qk_cross_entropy_args, targets) - 64usize];
    ["Offset of field: qk_cross_entropy_args::losses"][::std::mem::offset_of!(qk_cross_entropy_args, losses) - 72usize];
    ["Offset of field: qk_cross_entropy_args::state"][::std::mem::offset_of!(qk_cross_entropy_args, state) - 80usize];
    ["Offset of field: qk_cross_entropy_args::dhidden"]
        [::std::mem::offset_of!(qk_cross_entropy_args, dhidden) - 88usize];
    ["Offset of field: qk_cross_entropy_args::weights"]
        [::std::mem::offset_of!(qk_cross_entropy_args, weights) - 96usize];
    ["Offset of field: qk_cross_entropy_args::soft_cap"]
        [::std::mem::offset_of!(qk_cross_entropy_args, soft_cap) - 104usize];
    ["Offset of field: qk_cross_entropy_args::reserved"]
        [::std::mem::offset_of!(qk_cross_entropy_args, reserved) - 108usize];
    ["Offset of field: qk_cross_entropy_args::dhead"][::std::mem::offset_of!(qk_cross_entropy_args, dhead) - 112usize];
    ["Offset of field: qk_cross_entropy_args::head_rows"]
        [::std::mem::offset_of!(qk_cross_entropy_args, head_rows) - 120usize];
    ["Offset of field: qk_cross_entropy_args::num_head_rows"]
        [::std::mem::offset_of!(qk_cross_entropy_args, num_head_rows) - 128usize];
};
unsafe extern "C" {
    pub fn qk_abi_version() -> u32;
    pub fn qk_abi_revision() -> u32;
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
    pub fn qk_lora_columns(linear: *const qk_linear_args, columns: *mut i64) -> ::std::os::raw::c_int;
    pub fn qk_lora_down(
        linear: *const qk_linear_args,
        s: *mut ::std::os::raw::c_void,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_forward_workspace_size(linear: *const qk_linear_args, bytes: *mut usize) -> ::std::os::raw::c_int;
    pub fn qk_linear_forward_path(linear: *const qk_linear_args, path: *mut u32) -> ::std::os::raw::c_int;
    pub fn qk_linear_forward_choice(
        linear: *const qk_linear_args,
        text: *mut ::std::os::raw::c_char,
        size: usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_forward(
        linear: *const qk_linear_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_forward_dense(
        linear: *const qk_linear_args,
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
    pub fn qk_gradient_norm_workspace_size(adamw: *const qk_adamw_args, bytes: *mut usize) -> ::std::os::raw::c_int;
    pub fn qk_gradient_norm(
        adamw: *const qk_adamw_args,
        max_norm: f64,
        state: *mut qk_gradient_state,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_adamw_update(adamw: *const qk_adamw_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_lora_dy_b(
        backward: *const qk_linear_backward_args,
        t: *mut ::std::os::raw::c_void,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_dx_workspace_size(
        backward: *const qk_linear_backward_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_dx_path(backward: *const qk_linear_backward_args, path: *mut u32) -> ::std::os::raw::c_int;
    pub fn qk_linear_dx_choice(
        backward: *const qk_linear_backward_args,
        text: *mut ::std::os::raw::c_char,
        size: usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_dx(
        backward: *const qk_linear_backward_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_dx_dense(
        backward: *const qk_linear_backward_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_lora_gradients(
        backward: *const qk_linear_backward_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_lora_gradients_workspace_size(
        backward: *const qk_linear_backward_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_product_workspace_size(linear: *const qk_linear_args, bytes: *mut usize) -> ::std::os::raw::c_int;
    pub fn qk_linear_product(
        linear: *const qk_linear_args,
        product: *mut qk_product,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_dx_product_workspace_size(
        backward: *const qk_linear_backward_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_linear_dx_product(
        backward: *const qk_linear_backward_args,
        product: *mut qk_product,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_row_squares(args: *const qk_row_squares_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_magnitude_norms(args: *const qk_magnitude_norms_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_magnitude(args: *const qk_magnitude_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_magnitude_backward_workspace_size(
        args: *const qk_magnitude_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_magnitude_backward(
        args: *const qk_magnitude_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_embedding(args: *const qk_embedding_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_embedding_backward(args: *const qk_embedding_backward_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_replace_rows(args: *const qk_replace_rows_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_rms_norm(args: *const qk_rms_norm_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_rms_norm_backward(args: *const qk_rms_norm_backward_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_norm_gradient_workspace_size(
        args: *const qk_norm_gradient_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_norm_gradient(
        args: *const qk_norm_gradient_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_head_norm(args: *const qk_head_norm_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_rope(args: *const qk_rope_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_swiglu(args: *const qk_swiglu_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_swiglu_backward(args: *const qk_swiglu_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_attention(args: *const qk_attention_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_attention_backward_workspace_size(
        args: *const qk_attention_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_attention_backward(
        args: *const qk_attention_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_attention_cache_append(args: *const qk_attention_cache_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_attention_cache_workspace_size(
        args: *const qk_attention_cache_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_attention_cache(
        args: *const qk_attention_cache_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
    pub fn qk_logits(args: *const qk_logits_args, stream: qk_stream) -> ::std::os::raw::c_int;
    pub fn qk_cross_entropy_workspace_size(
        args: *const qk_cross_entropy_args,
        bytes: *mut usize,
    ) -> ::std::os::raw::c_int;
    pub fn qk_cross_entropy(
        args: *const qk_cross_entropy_args,
        workspace: *mut ::std::os::raw::c_void,
        workspace_bytes: usize,
        stream: qk_stream,
    ) -> ::std::os::raw::c_int;
}
