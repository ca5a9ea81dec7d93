//! Refusals of the functions of the low-rank path: every status that they have, and nothing written.

use super::{K, M, N, R, Valid, size};
use crate::sys::{
    self, QK_ERROR_ALIGNMENT, QK_ERROR_NULL_POINTER, QK_ERROR_SHAPE, QK_ERROR_STRUCT_SIZE, QK_ERROR_VALUE,
    QK_ERROR_WORKSPACE, QK_OK,
};
use half::bf16;
use std::ptr::{null, null_mut};

/// A call's structs, and the workspace that it is given.
struct Call<'a> {
    valid: &'a mut Valid,
    segment: &'a mut sys::qk_segment_backward,
    backward: &'a mut sys::qk_linear_backward_args,
    dropout: &'a mut sys::qk_dropout,
    workspace: usize,
    bytes: usize,
}

/// The status of a gradient call with one thing spoiled; nothing may have been written.
fn spoiled(spoil: impl FnOnce(&mut Call<'_>)) -> i32 {
    let mut valid = Valid::new();
    // No sum is zero, so that a call that is not refused changes every element.
    valid.dense = valid.device.upload(&[bf16::ONE; N * K]).unwrap();
    valid.lora.b = valid.dense.view().address().cast();
    let ones = valid.device.upload(&[bf16::ONE; M * K + 8]).unwrap();
    let at = |offset: usize| ones.view().address().wrapping_add(offset).cast::<std::ffi::c_void>();
    let (da, db) = (valid.device.upload(&[0.5f32; R * K]).unwrap(), valid.device.upload(&[0.5f32; N * R]).unwrap());
    let mut segment = sys::qk_segment_backward {
        struct_size: size::<sys::qk_segment_backward>(),
        reserved: 0,
        n: N as i64,
        nf4: null(),
        dense: null(),
        lora: &raw const valid.lora,
        dy: at(0),
        lddy: N as i64,
        da: da.view().address().cast_mut(),
        db: db.view().address().cast_mut(),
    };
    let mut dropout = sys::qk_dropout {
        struct_size: size::<sys::qk_dropout>(),
        p: 0.0,
        seed: 1,
        dropout_id: 2,
        dropout_step: 3,
        first_token: 0,
        step_on_device: null(),
    };
    let mut backward = sys::qk_linear_backward_args {
        struct_size: size::<sys::qk_linear_backward_args>(),
        num_segments: 1,
        m: M as i64,
        k: K as i64,
        x: at(0),
        ldx: K as i64,
        dx: null_mut(),
        lddx: 0,
        accumulate: 0,
        reserved: 0,
        segments: &raw const segment,
        s: at(0),
        t: null(),
        dropout: &raw const dropout,
        lds: 0,
        ldt: 0,
        room: null_mut(),
    };
    let workspace = valid.workspace();
    let mut call = Call {
        valid: &mut valid,
        segment: &mut segment,
        backward: &mut backward,
        dropout: &mut dropout,
        workspace,
        bytes: M * 16 * 2,
    };
    spoil(&mut call);
    let (workspace, bytes) = (call.workspace as *mut _, call.bytes);
    // SAFETY: the structs are valid, or spoiled so that the call must refuse them before it reads device memory.
    let status = unsafe { sys::qk_lora_gradients(&backward, workspace, bytes, null_mut()) };
    let same = |values: Vec<f32>| values.iter().all(|&value| value == 0.5);
    let kept = [valid.device.download(&da).unwrap(), valid.device.download(&db).unwrap()].map(same);
    assert_eq!(kept, [status != QK_OK; 2], "status {status}");
    status
}

#[test]
fn gradients_refuse_what_they_cannot_take() {
    assert_eq!(spoiled(|_| ()), QK_OK);
    assert_eq!(spoiled(|c| c.backward.struct_size = 4), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled(|c| c.segment.struct_size = 4), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled(|c| c.valid.lora.struct_size = 4), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled(|c| c.dropout.struct_size = 4), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled(|c| c.backward.x = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled(|c| c.backward.s = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled(|c| c.backward.segments = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled(|c| c.segment.dy = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled(|c| c.segment.lora = null()), QK_ERROR_NULL_POINTER, "gradients of no pair");
    assert_eq!(spoiled(|c| c.valid.lora.b = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled(|c| c.backward.ldx = K as i64 - 1), QK_ERROR_SHAPE);
    assert_eq!(spoiled(|c| c.segment.lddy = N as i64 - 1), QK_ERROR_SHAPE);
    assert_eq!(spoiled(|c| c.valid.lora.r = 257), QK_ERROR_SHAPE);
    assert_eq!(spoiled(|c| c.valid.lora.num_adapters = 2), QK_ERROR_SHAPE, "several adapters without an index");
    assert_eq!(spoiled(|c| c.backward.m = 1 << 31), QK_ERROR_SHAPE);
    assert_eq!(spoiled(|c| c.backward.s = c.backward.s.wrapping_byte_add(8)), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled(|c| c.segment.da = c.segment.da.wrapping_byte_add(2)), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled(|c| c.segment.db = c.segment.db.wrapping_byte_add(2)), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled(|c| c.workspace += 8), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled(|c| c.bytes -= 1), QK_ERROR_WORKSPACE);
    assert_eq!(spoiled(|c| c.workspace = 0), QK_ERROR_WORKSPACE);
    assert_eq!(spoiled(|c| c.dropout.p = 1.0), QK_ERROR_VALUE);
    assert_eq!(spoiled(|c| c.dropout.first_token = -1), QK_ERROR_VALUE);
    // SAFETY: refused before anything is read.
    unsafe {
        assert_eq!(sys::qk_lora_gradients(null(), null_mut(), 0, null_mut()), QK_ERROR_NULL_POINTER);
        assert_eq!(sys::qk_lora_gradients_workspace_size(null(), &mut 0), QK_ERROR_NULL_POINTER);
    }
}

#[test]
fn t_refuses_what_it_cannot_take() {
    let status = |spoil: &dyn Fn(&mut Call<'_>, &mut usize)| {
        let mut status = 1;
        // The gradient call that follows runs or is refused as it may: its T is its own.
        spoiled(|call| {
            let mut t = call.workspace;
            spoil(call, &mut t);
            // SAFETY: as in `spoiled`.
            status = unsafe { sys::qk_lora_dy_b(&*call.backward, t as *mut _, null_mut()) };
        });
        status
    };
    assert_eq!(status(&|_, _| ()), QK_OK);
    assert_eq!(status(&|_, t| *t = 0), QK_ERROR_NULL_POINTER);
    assert_eq!(status(&|_, t| *t += 8), QK_ERROR_ALIGNMENT);
    assert_eq!(status(&|c, _| c.segment.dy = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(status(&|c, _| c.segment.n = 0), QK_ERROR_SHAPE);
    assert_eq!(status(&|c, _| c.backward.struct_size = 1), QK_ERROR_STRUCT_SIZE);
    assert_eq!(status(&|c, _| c.dropout.p = -1.0), QK_ERROR_VALUE);
}
