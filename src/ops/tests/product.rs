//! The operands of one product: refusals, and structs of other versions.

use super::*;
use crate::sys::{
    QK_ERROR_ALIGNMENT, QK_ERROR_NOT_BUILT, QK_ERROR_NULL_POINTER, QK_ERROR_RESERVED, QK_ERROR_SHAPE,
    QK_ERROR_STRUCT_SIZE, QK_ERROR_WORKSPACE, QK_OK,
};

/// Elements of the workspace: W with B, X with S, S.
const LEN: usize = N * (K + 16) + (M * (K + 16)).next_multiple_of(128) + 128;

fn unwritten() -> sys::qk_product {
    // SAFETY: a C struct of integers and pointers.
    sys::qk_product { struct_size: size::<sys::qk_product>(), ..unsafe { std::mem::zeroed() } }
}

/// The status of a call with one thing spoiled; nothing may have been written if it is an error.
fn spoiled(spoil: impl FnOnce(&mut Valid, &mut sys::qk_product, &mut usize)) -> i32 {
    let (mut valid, mut product) = (Valid::new(), unwritten());
    let mut workspace = valid.device.upload(&vec![bf16::ONE; LEN]).unwrap();
    let mut bytes = LEN * size_of::<bf16>();
    spoil(&mut valid, &mut product, &mut bytes);
    let address = workspace.view_mut().address().cast();
    // SAFETY: the structs are those of `Valid`, or spoiled so that the call must refuse them before it reads device
    // memory.
    let status = unsafe { sys::qk_linear_product(&valid.linear, &mut product, address, bytes, std::ptr::null_mut()) };
    let written = valid.device.download(&workspace).unwrap().iter().any(|&element| element != bf16::ONE);
    assert_eq!((written, !product.w.is_null()), (status == QK_OK, status == QK_OK), "status {status}");
    status
}

#[test]
fn what_one_product_cannot_be_made_of_is_refused() {
    assert_eq!(spoiled(|_, _, _| ()), QK_OK);
    assert_eq!(spoiled(|_, p, _| p.struct_size = 16), QK_ERROR_STRUCT_SIZE);
    assert_eq!(spoiled(|_, p, _| p.reserved = 1), QK_ERROR_RESERVED);
    assert_eq!(spoiled(|_, _, bytes| *bytes = 2 * LEN - 1), QK_ERROR_WORKSPACE);
    assert_eq!(spoiled(|v, _, _| v.linear.x = null()), QK_ERROR_NULL_POINTER);
    assert_eq!(spoiled(|v, _, _| v.linear.x = v.linear.x.wrapping_byte_add(8)), QK_ERROR_ALIGNMENT);
    assert_eq!(spoiled(|v, _, _| v.linear.k = 64), QK_ERROR_SHAPE, "the weight has another K");
    let several = spoiled(|v, _, _| v.lora.adapter_index = v.floats.view().address().cast());
    assert_eq!(several, QK_ERROR_NOT_BUILT);
    let (valid, mut bytes) = (Valid::new(), 0);
    // SAFETY: null is refused, and the query follows no device memory.
    unsafe {
        let (none, stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        assert_eq!(sys::qk_linear_product(&valid.linear, none, none.cast(), 0, stream), QK_ERROR_NULL_POINTER);
        assert_eq!(sys::qk_linear_product_workspace_size(&valid.linear, std::ptr::null_mut()), QK_ERROR_NULL_POINTER);
        assert_eq!(sys::qk_linear_product_workspace_size(&valid.linear, &mut bytes), QK_OK);
    }
    assert_eq!(bytes, 2 * LEN);
}

/// A caller whose struct has fields that the library does not know finds them as they were.
#[test]
fn a_longer_struct_is_written_as_far_as_the_library_knows_it() {
    #[repr(C)]
    struct Later {
        known: sys::qk_product,
        added: u64,
    }
    let mut later = Later { known: unwritten(), added: 7 };
    later.known.struct_size = size::<Later>();
    let valid = Valid::new();
    let mut workspace = valid.device.upload(&vec![bf16::ONE; LEN]).unwrap();
    let address = workspace.view_mut().address().cast();
    // SAFETY: the structs are those of `Valid`, and the workspace is as large as its query says.
    let status = unsafe {
        sys::qk_linear_product(&valid.linear, (&raw mut later).cast(), address, 2 * LEN, std::ptr::null_mut())
    };
    assert_eq!((status, later.added), (QK_OK, 7));
    let sys::qk_product { struct_size, n, k, ldx, ldw, .. } = later.known;
    assert_eq!((struct_size, [n, k, ldx, ldw]), (size::<Later>(), [24, 144, 144, 144]));
}

#[test]
fn dx_with_a_mask_on_its_low_rank_term_is_not_one_product() {
    let valid = Valid::new();
    let segment = sys::qk_segment_backward {
        struct_size: size::<sys::qk_segment_backward>(),
        n: N as i64,
        nf4: valid.segment.nf4,
        lora: valid.segment.lora,
        dy: valid.y.view().address().cast(),
        lddy: N as i64,
        // SAFETY: a C struct of integers and pointers.
        ..unsafe { std::mem::zeroed() }
    };
    let dropout = sys::qk_dropout {
        struct_size: size::<sys::qk_dropout>(),
        p: 0.5,
        seed: 1,
        dropout_id: 0,
        dropout_step: 0,
        first_token: 0,
        step_on_device: null(),
    };
    let backward = sys::qk_linear_backward_args {
        struct_size: size::<sys::qk_linear_backward_args>(),
        num_segments: 1,
        m: M as i64,
        k: K as i64,
        segments: &raw const segment,
        // SAFETY: as above.
        ..unsafe { std::mem::zeroed() }
    };
    let masked = sys::qk_linear_backward_args { dropout: &raw const dropout, ..backward };
    let unweighted = sys::qk_segment_backward { nf4: null(), ..segment };
    let without_weight = sys::qk_linear_backward_args { segments: &raw const unweighted, ..backward };
    let bytes_of = |backward: &sys::qk_linear_backward_args| {
        let mut bytes = 0;
        // SAFETY: valid structs, of which no device memory is followed.
        (unsafe { sys::qk_linear_dx_product_workspace_size(backward, &mut bytes) }, bytes)
    };
    assert_eq!(bytes_of(&masked).0, QK_ERROR_NOT_BUILT);
    assert_eq!(bytes_of(&without_weight).0, QK_ERROR_NULL_POINTER);
    // W with A, dY with T, T: each rounded up to 128 elements.
    assert_eq!(bytes_of(&backward), (QK_OK, 2 * ((N + 16) * K + 256 + 128)));
}
