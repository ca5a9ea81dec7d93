use super::super::refusals::{M, Memory};
use super::*;
use crate::device::Device;
use std::ptr::{null, null_mut};

/// Over its input, as an engine that keeps nothing for a backward pass has it.
#[test]
fn the_norm_may_be_written_over_its_input() {
    let device = Device::open().expect("a device to test on");
    let shape = AttentionShape { heads: 3, kv_heads: 1, head_dim: 24, soft_cap: None };
    let values: Vec<bf16> = (0..7 * shape.qkv()).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();
    let (mut x, weight) = (device.upload(&values).unwrap(), device.upload(&[1.5f32; 24]).unwrap());
    let mut y = device.upload(&vec![bf16::NAN; values.len()]).unwrap();
    let input = |x| HeadNorm { shape, eps: 1e-5, x, q_weight: weight.view(), k_weight: weight.view(), rotation: None };
    head_norm(input(x.view()), y.view_mut(), device.stream()).unwrap();
    let (address, len, width) = (x.view_mut().address(), values.len(), shape.qkv() as i64);
    let args = sys::qk_head_norm_args {
        struct_size: struct_size::<sys::qk_head_norm_args>(),
        head_dim: 24,
        heads: 3,
        kv_heads: 1,
        eps: 1e-5,
        reserved: 0,
        m: len as i64 / width,
        ldx: width,
        ldy: width,
        x: address.cast_const().cast(),
        q_weight: weight.view().address(),
        k_weight: weight.view().address(),
        dy: null(),
        y: address.cast(),
        whole_width: 0,
        reserved2: 0,
        rotation: sys::QK_ROTATION_NONE,
        rotary_dim: 0,
        positions: null(),
        cosines: null(),
        sines: null(),
        table_positions: 0,
    };
    // SAFETY: buffers of the shape's lengths.
    assert_eq!(unsafe { sys::qk_head_norm(&args, device.stream().as_raw()) }, sys::QK_OK);
    let (x, y) = (device.download(&x).unwrap(), device.download(&y).unwrap());
    assert!(x != values && x.iter().map(|x| x.to_bits()).eq(y.iter().map(|y| y.to_bits())));
}

#[test]
fn norms_of_heads_refuse() {
    let mut memory = Memory::new();
    let valid = sys::qk_head_norm_args {
        struct_size: size_of::<sys::qk_head_norm_args>() as u32,
        head_dim: 8,
        heads: 2,
        kv_heads: 1,
        eps: 1e-5,
        reserved: 0,
        m: M,
        ldx: 32,
        ldy: 32,
        x: memory.at(0),
        q_weight: memory.at(1),
        k_weight: memory.at(2),
        dy: memory.at(3),
        y: memory.at(4),
        whole_width: 1,
        reserved2: 0,
        rotation: sys::QK_ROTATION_AFTER_NORM,
        rotary_dim: 8,
        positions: memory.at(5),
        cosines: memory.at(6),
        sines: memory.at(7),
        table_positions: 9,
    };
    type Args = sys::qk_head_norm_args;
    refuses!(memory, valid, |args| sys::qk_head_norm(args, null_mut()), {
        |a: &mut Args| a.struct_size -= 56 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.reserved2 = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.whole_width = 2 => QK_ERROR_VALUE,
        |a: &mut Args| a.head_dim = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.head_dim = 1025 => QK_ERROR_SHAPE,
        |a: &mut Args| a.heads = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.heads = 65536 => QK_ERROR_SHAPE,
        |a: &mut Args| a.kv_heads = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.kv_heads = 3 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| {
            (a.m, a.heads, a.ldx, a.ldy, a.whole_width) = ((1 << 31) - 1, 65535, 1 << 30, 1 << 30, 0)
        } => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldx = 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldy = 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.eps = 0.0 => QK_ERROR_VALUE,
        |a: &mut Args| a.eps = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.x = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.q_weight = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.k_weight = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.y = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.x = a.x.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dy = a.dy.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.y = a.y.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.rotation = 3 => QK_ERROR_VALUE,
        |a: &mut Args| (a.head_dim, a.rotary_dim) = (7, 6) => QK_ERROR_SHAPE,
        |a: &mut Args| a.rotary_dim = 10 => QK_ERROR_SHAPE,
        |a: &mut Args| a.rotary_dim = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.table_positions = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.positions = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.cosines = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.sines = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.positions = a.positions.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.cosines = a.cosines.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.sines = a.sines.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.q_weight = a.q_weight.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.k_weight = a.k_weight.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
}
