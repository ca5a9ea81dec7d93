//! Refusals of the fused output layer and cross-entropy, and its gradient written over what it reads.

use super::{M, Memory};
use crate::sys;
use std::ptr::{null, null_mut};

fn args(memory: &mut Memory) -> sys::qk_cross_entropy_args {
    sys::qk_cross_entropy_args {
        struct_size: size_of::<sys::qk_cross_entropy_args>() as u32,
        gradient_scale: 1.0,
        m: M,
        h: 8,
        vocab: 4,
        supervised: 2,
        chunk: 2,
        hidden: memory.at(0),
        head: memory.at(1),
        targets: memory.at(2),
        losses: memory.at(3),
        state: memory.at(4),
        dhidden: memory.at(5),
        weights: null(),
        soft_cap: 0.0,
        reserved: 0,
        dhead: null_mut(),
        head_rows: null(),
        num_head_rows: 0,
    }
}

/// Each of its parts begins at a multiple of 256.
const BYTES: usize = 5 * 256;

#[test]
fn every_bad_operand_is_refused() {
    let mut memory = Memory::new();
    let valid = args(&mut memory);
    let workspace = memory.at(6);
    type Args = sys::qk_cross_entropy_args;
    refuses!(memory, valid, |args| sys::qk_cross_entropy(args, workspace, BYTES, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.supervised = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.supervised = M + 1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.chunk = 0 => QK_ERROR_SHAPE,
        // More blocks than a launch has.
        |a: &mut Args| (a.m, a.supervised, a.chunk, a.vocab) = (1 << 30, 1 << 30, 1 << 30, 1 << 30) => QK_ERROR_SHAPE,
        |a: &mut Args| a.gradient_scale = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.gradient_scale = f32::INFINITY => QK_ERROR_VALUE,
        |a: &mut Args| a.soft_cap = -1.0 => QK_ERROR_VALUE,
        |a: &mut Args| a.soft_cap = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.hidden = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.head = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.targets = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.losses = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.state = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.hidden = a.hidden.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.head = a.head.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dhidden = a.dhidden.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.targets = a.targets.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.weights = a.targets.wrapping_byte_add(2).cast() => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.losses = a.losses.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.state = a.state.wrapping_byte_add(4) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| (a.supervised, a.chunk) = (3, 3) => QK_ERROR_WORKSPACE,
        // Past the last of 3 rows of 8, less than that, and whatever else is written over something.
        |a: &mut Args| a.dhidden = a.hidden.wrapping_byte_add(32).cast_mut() => QK_ERROR_OVERLAP,
        |a: &mut Args| a.hidden = a.dhidden.wrapping_byte_add(32) => QK_ERROR_OVERLAP,
        |a: &mut Args| a.dhidden = a.head.cast_mut() => QK_ERROR_OVERLAP,
        |a: &mut Args| a.dhidden = a.losses.cast() => QK_ERROR_OVERLAP,
        |a: &mut Args| a.losses = a.targets.cast_mut().cast() => QK_ERROR_OVERLAP,
        |a: &mut Args| a.weights = a.losses => QK_ERROR_OVERLAP,
        |a: &mut Args| a.dhead = a.head.cast_mut().cast() => QK_ERROR_OVERLAP,
        |a: &mut Args| a.dhead = a.dhidden.wrapping_byte_add(16).cast() => QK_ERROR_OVERLAP,
        |a: &mut Args| (a.dhidden, a.dhead) = (null_mut(), a.dhidden.cast()) => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dhead = a.targets.wrapping_byte_add(2).cast_mut().cast() => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.losses = a.state.wrapping_byte_add(12).cast() => QK_ERROR_OVERLAP,
        |a: &mut Args| a.state = a.head.wrapping_byte_add(48).cast_mut().cast() => QK_ERROR_OVERLAP,
    });
    let mut bytes = 0usize;
    let size = sys::qk_cross_entropy_workspace_size;
    // SAFETY: refused, or only the struct and `bytes` are touched.
    unsafe {
        let call = |workspace, bytes| sys::qk_cross_entropy(&raw const valid, workspace, bytes, null_mut());
        assert_eq!(call(null_mut(), BYTES), sys::QK_ERROR_WORKSPACE);
        assert_eq!(call(workspace, BYTES - 1), sys::QK_ERROR_WORKSPACE);
        assert_eq!(call(workspace.wrapping_byte_add(8), BYTES), sys::QK_ERROR_ALIGNMENT);
        let into_losses = valid.losses.wrapping_byte_sub(BYTES - 256).cast();
        assert_eq!(call(into_losses, BYTES), sys::QK_ERROR_OVERLAP);
        assert_eq!(size(&raw const valid, null_mut()), sys::QK_ERROR_NULL_POINTER);
        assert_eq!(size(null(), &mut bytes), sys::QK_ERROR_NULL_POINTER);
        assert_eq!((size(&raw const valid, &mut bytes), bytes), (sys::QK_OK, BYTES));
        let plain = sys::qk_cross_entropy_args { dhidden: null_mut(), hidden: null(), ..valid };
        assert_eq!((size(&raw const plain, &mut bytes), bytes), (sys::QK_OK, BYTES - 256));
    }
    assert!(memory.is_untouched());
}

/// 2 rows of 4, whose gradients have 64 bytes.
#[test]
fn bad_rows_of_the_output_layer_are_refused() {
    let mut memory = Memory::new();
    let valid = sys::qk_cross_entropy_args {
        dhead: memory.at(16),
        head_rows: memory.at(17),
        num_head_rows: 2,
        ..args(&mut memory)
    };
    // Logits of those rows, beside all else.
    let (workspace, needed) = (memory.at(6), BYTES + 256);
    type Args = sys::qk_cross_entropy_args;
    refuses!(memory, valid, |args| sys::qk_cross_entropy(args, workspace, needed, null_mut()), {
        |a: &mut Args| a.num_head_rows = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.num_head_rows = 5 => QK_ERROR_SHAPE,
        |a: &mut Args| a.num_head_rows = 0 => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.head_rows = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dhead = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.head_rows = a.head_rows.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| (a.supervised, a.chunk) = (3, 3) => QK_ERROR_WORKSPACE,
        |a: &mut Args| a.head_rows = a.dhead.wrapping_add(15).cast_const().cast() => QK_ERROR_OVERLAP,
        |a: &mut Args| a.head_rows = a.losses.cast_const().cast() => QK_ERROR_OVERLAP,
    });
    let mut bytes = 0usize;
    // SAFETY: refused, or only the struct and `bytes` are touched.
    unsafe {
        let call = |bytes| sys::qk_cross_entropy(&raw const valid, workspace, bytes, null_mut());
        assert_eq!(call(needed - 1), sys::QK_ERROR_WORKSPACE);
        let size = sys::qk_cross_entropy_workspace_size;
        assert_eq!((size(&raw const valid, &mut bytes), bytes), (sys::QK_OK, needed));
    }
    assert!(memory.is_untouched());
}

/// Callers of the first version pass 96 bytes, after which anything may lie.
#[test]
fn a_struct_without_weights_has_a_weight_of_one_each() {
    let loss = |struct_size: u32| {
        let mut memory = Memory::new();
        let mut args = args(&mut memory);
        // One row, whose target is 1: equal logits, so a loss of ln 4. Its weight is 0.5.
        let mut values = vec![1.0f32; 4096];
        (values[256], values[1024]) = (f32::from_bits(1), 0.5);
        memory.buffer = memory.device.upload(&values).unwrap();
        let workspace = memory.at(16);
        (args.struct_size, args.m, args.supervised, args.weights) = (struct_size, 1, 1, memory.at(8));
        (args.hidden, args.head, args.targets) = (memory.at(0), memory.at(1), memory.at(2));
        (args.losses, args.state, args.dhidden) = (memory.at(3), memory.at(4), null_mut());
        // SAFETY: the operands lie in the buffer, 512 bytes apart.
        let status = unsafe { sys::qk_cross_entropy(&raw const args, workspace, BYTES, null_mut()) };
        assert_eq!(status, sys::QK_OK);
        let values = memory.device.download(&memory.buffer).unwrap();
        f64::from_bits(u64::from(values[513].to_bits()) << 32 | u64::from(values[512].to_bits()))
    };
    let whole = size_of::<sys::qk_cross_entropy_args>() as u32;
    let (first, weighted) = (loss(96), loss(whole));
    assert!((first - 4f64.ln()).abs() < 1e-6, "{first}");
    assert_eq!(weighted, 0.5 * first);
}

#[test]
fn the_gradient_over_the_hidden_states_has_the_same_bits() {
    let gradient = |in_place: bool| {
        let mut memory = Memory::new();
        let mut args = args(&mut memory);
        // Rows without a target between those of two chunks; ones and their halves elsewhere.
        let bf16s = |x: f32, y: f32| f32::from_bits(x.to_bits() & 0xffff_0000 | y.to_bits() >> 16);
        let mut values = vec![1.0f32; 4096];
        (0..12).for_each(|i| values[i] = bf16s(i as f32 / 8.0, -0.5));
        (0..16).for_each(|i| values[128 + i] = bf16s(i as f32 / 4.0, 1.0 - i as f32 / 8.0));
        [2, -1, 3].iter().enumerate().for_each(|(i, &target)| values[256 + i] = f32::from_bits(target as u32));
        memory.buffer = memory.device.upload(&values).unwrap();
        let workspace = memory.at(6);
        (args.chunk, args.hidden, args.head) = (1, memory.at(0), memory.at(1));
        (args.targets, args.losses, args.state) = (memory.at(2), memory.at(3), memory.at(4));
        args.dhidden = if in_place { args.hidden.cast_mut() } else { memory.at(5) };
        // SAFETY: the operands lie in the buffer, 512 bytes apart, which is more than each has.
        let status = unsafe { sys::qk_cross_entropy(&raw const args, workspace, BYTES, null_mut()) };
        assert_eq!(status, sys::QK_OK);
        let values = memory.device.download(&memory.buffer).unwrap();
        let at = if in_place { 0 } else { 5 * 128 };
        values[at..at + 12].iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
    };
    let beside = gradient(false);
    assert!(beside[..4].iter().chain(&beside[8..]).all(|&bits| bits != 0) && beside[4..8] == [0; 4], "{beside:x?}");
    assert_eq!(gradient(true), beside);
}
