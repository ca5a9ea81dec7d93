//! The C interface of a layer's other operations: every named error is reached and nothing is written on the way.

use super::refusals::{M, Memory};
use crate::sys;
use std::ptr::{null, null_mut};

mod attention_cache;
mod cross_entropy;
mod trained;

#[test]
fn the_embedding_refuses() {
    let mut memory = Memory::new();
    let valid = sys::qk_embedding_args {
        struct_size: size_of::<sys::qk_embedding_args>() as u32,
        reserved: 0,
        m: M,
        h: 8,
        vocab: 4,
        ids: memory.at(0),
        table: memory.at(1),
        out: memory.at(2),
        scale: 1.0,
        reserved2: 0,
    };
    type Args = sys::qk_embedding_args;
    refuses!(memory, valid, |args| sys::qk_embedding(args, null_mut()), {
        |a: &mut Args| a.struct_size -= 1 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.scale = f32::INFINITY => QK_ERROR_VALUE,
        |a: &mut Args| a.scale = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.reserved2 = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.ids = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.table = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.out = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.ids = a.ids.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.table = a.table.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.out = a.out.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
    });
}

/// Callers of the first version pass 56 bytes, after which anything may lie.
#[test]
fn an_embedding_struct_without_a_scale_copies_its_rows() {
    let row = |struct_size: u32| {
        let mut memory = Memory::new();
        // One row of two bf16 1.5; id 0.
        let mut values = vec![0.0f32; 4096];
        values[128] = f32::from_bits(0x3fc0_3fc0);
        memory.buffer = memory.device.upload(&values).unwrap();
        let args = sys::qk_embedding_args {
            struct_size,
            reserved: 0,
            m: 1,
            h: 2,
            vocab: 1,
            ids: memory.at(0),
            table: memory.at(1),
            out: memory.at(2),
            scale: 2.0,
            reserved2: 0,
        };
        // SAFETY: the operands lie in the buffer, 512 bytes apart.
        assert_eq!(unsafe { sys::qk_embedding(&raw const args, null_mut()) }, sys::QK_OK);
        memory.device.download(&memory.buffer).unwrap()[256].to_bits()
    };
    assert_eq!(row(56), 0x3fc0_3fc0);
    assert_eq!(row(size_of::<sys::qk_embedding_args>() as u32), 0x4040_4040);
}

#[test]
fn norms_refuse() {
    let mut memory = Memory::new();
    let valid = sys::qk_rms_norm_args {
        struct_size: size_of::<sys::qk_rms_norm_args>() as u32,
        eps: 1e-5,
        m: M,
        h: 8,
        x: memory.at(0),
        delta: memory.at(1),
        weight: memory.at(2),
        sum: memory.at(3),
        y: memory.at(4),
        residual: null(),
        ldy: 0,
    };
    type Args = sys::qk_rms_norm_args;
    refuses!(memory, valid, |args| sys::qk_rms_norm(args, null_mut()), {
        |a: &mut Args| a.struct_size = 0 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.eps = 0.0 => QK_ERROR_VALUE,
        |a: &mut Args| a.eps = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.x = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.weight = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.y = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.delta = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.sum = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.x = a.x.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.delta = a.delta.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.sum = a.sum.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.y = a.y.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.weight = a.weight.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.residual = a.x => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.ldy = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldy = -8 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.delta, a.sum, a.residual) = (null(), null_mut(), a.x.wrapping_byte_add(8)) => QK_ERROR_ALIGNMENT,
    });
}

#[test]
fn gradients_of_norms_refuse() {
    let mut memory = Memory::new();
    let valid = sys::qk_rms_norm_backward_args {
        struct_size: size_of::<sys::qk_rms_norm_backward_args>() as u32,
        eps: 1e-5,
        m: M,
        h: 8,
        dy: memory.at(0),
        x: memory.at(1),
        weight: memory.at(2),
        dx: memory.at(3),
        accumulate: 0,
        reserved: 0,
        lddy: 0,
        lddx: 8,
    };
    type Args = sys::qk_rms_norm_backward_args;
    refuses!(memory, valid, |args| sys::qk_rms_norm_backward(args, null_mut()), {
        |a: &mut Args| a.struct_size += 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.eps = -1.0 => QK_ERROR_VALUE,
        |a: &mut Args| a.h = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.accumulate = 2 => QK_ERROR_VALUE,
        |a: &mut Args| a.lddy = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.lddx = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.dy = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.x = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.weight = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dx = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dy = a.dy.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.x = a.x.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dx = a.dx.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.weight = a.weight.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
}

#[test]
fn rotary_embedding_refuses() {
    let mut memory = Memory::new();
    let valid = sys::qk_rope_args {
        struct_size: size_of::<sys::qk_rope_args>() as u32,
        head_dim: 8,
        heads: 2,
        inverse: 0,
        m: M,
        ldx: 16,
        x: memory.at(0),
        positions: memory.at(1),
        cosines: memory.at(2),
        sines: memory.at(3),
        table_positions: 4,
        rotary_dim: 6,
        reserved: 0,
    };
    type Args = sys::qk_rope_args;
    refuses!(memory, valid, |args| sys::qk_rope(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.rotary_dim = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.rotary_dim = 10 => QK_ERROR_SHAPE,
        |a: &mut Args| a.head_dim = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.head_dim = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.head_dim = 1026 => QK_ERROR_SHAPE,
        |a: &mut Args| a.heads = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.inverse = 2 => QK_ERROR_VALUE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.table_positions = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldx = 15 => QK_ERROR_SHAPE,
        |a: &mut Args| a.x = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.positions = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.cosines = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.sines = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.x = a.x.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.positions = a.positions.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.cosines = a.cosines.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.sines = a.sines.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
}

#[test]
fn swiglu_refuses() {
    let mut memory = Memory::new();
    let backward = sys::qk_swiglu_args {
        struct_size: size_of::<sys::qk_swiglu_args>() as u32,
        reserved: 0,
        m: M,
        i: 8,
        gate_up: memory.at(0),
        out: memory.at(1),
        dout: memory.at(2),
        activation: sys::QK_GELU_TANH,
        reserved2: 0,
        ldgate_up: 16,
        ldout: 0,
    };
    let forward = sys::qk_swiglu_args { dout: null(), ..backward };
    type Args = sys::qk_swiglu_args;
    refuses!(memory, forward, |args| sys::qk_swiglu(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved2 = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.activation = 2 => QK_ERROR_VALUE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.m, a.i) = ((1 << 31) - 1, (1 << 31) - 1) => QK_ERROR_SHAPE,
        |a: &mut Args| a.i = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldgate_up = 15 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldout = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.gate_up = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.out = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dout = a.out => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.gate_up = a.gate_up.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.out = a.out.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
    refuses!(memory, backward, |args| sys::qk_swiglu_backward(args, null_mut()), {
        |a: &mut Args| a.dout = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.gate_up = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dout = a.dout.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
}

#[test]
fn attention_refuses() {
    let mut memory = Memory::new();
    let valid = sys::qk_attention_args {
        struct_size: size_of::<sys::qk_attention_args>() as u32,
        head_dim: 64,
        heads: 2,
        kv_heads: 1,
        m: M,
        documents: 1,
        cu_seqlens: memory.at(0),
        window: 0,
        qkv: memory.at(1),
        ldqkv: 256,
        out: memory.at(8),
        lse: memory.at(16),
        dout: memory.at(17),
        dqkv: memory.at(20),
        soft_cap: 0.0,
        reserved: 0,
        ldout: 0,
        lddqkv: 256,
    };
    type Args = sys::qk_attention_args;
    refuses!(memory, valid, |args| sys::qk_attention(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.head_dim = 80 => QK_ERROR_HEAD_DIM,
        |a: &mut Args| a.heads = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.kv_heads = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.heads = 65536 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.heads, a.kv_heads) = (3, 2) => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.documents = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.window = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.soft_cap = -1.0 => QK_ERROR_VALUE,
        |a: &mut Args| a.soft_cap = f32::INFINITY => QK_ERROR_VALUE,
        |a: &mut Args| a.soft_cap = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.ldqkv = 255 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldqkv = 260 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldout = 120 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldout = 132 => QK_ERROR_SHAPE,
        |a: &mut Args| a.lddqkv = 255 => QK_ERROR_SHAPE,
        |a: &mut Args| a.lddqkv = 260 => QK_ERROR_SHAPE,
        |a: &mut Args| a.qkv = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.cu_seqlens = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.out = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.lse = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.qkv = a.qkv.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.out = a.out.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.lse = a.lse.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.cu_seqlens = a.cu_seqlens.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
    let workspace = memory.at(30);
    // 32 padded tokens by 2 heads, 8 bytes each; two splits' sums of 128 keys, dK and dV of 64.
    let needed = 32 * 2 * 8 + 2 * 128 * 2 * 64 * 4;
    refuses!(memory, valid, |args| sys::qk_attention_backward(args, workspace, needed, null_mut()), {
        |a: &mut Args| a.dout = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dqkv = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dout = a.dout.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dqkv = a.dqkv.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.m = 33 => QK_ERROR_WORKSPACE,
    });
    let mut bytes = 0usize;
    let backward = |workspace, bytes| {
        // SAFETY: refused before anything is touched.
        unsafe { sys::qk_attention_backward(&raw const valid, workspace, bytes, null_mut()) }
    };
    assert_eq!(backward(null_mut(), needed), sys::QK_ERROR_WORKSPACE);
    assert_eq!(backward(workspace, needed - 1), sys::QK_ERROR_WORKSPACE);
    assert_eq!(backward(workspace.wrapping_byte_add(4), needed), sys::QK_ERROR_ALIGNMENT);
    // SAFETY: only the struct and `bytes` are touched.
    unsafe {
        assert_eq!(sys::qk_attention_backward_workspace_size(&raw const valid, null_mut()), sys::QK_ERROR_NULL_POINTER);
        let status = sys::qk_attention_backward_workspace_size(&raw const valid, &mut bytes);
        assert_eq!((status, bytes), (sys::QK_OK, needed));
    }
    assert!(memory.is_untouched());
}
