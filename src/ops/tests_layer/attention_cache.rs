//! Attention over a KV cache, and the logits of a few tokens.

use super::{M, Memory};
use crate::sys;
use std::ptr::{null, null_mut};

#[test]
fn attention_over_a_cache_refuses() {
    let mut memory = Memory::new();
    let valid = sys::qk_attention_cache_args {
        struct_size: size_of::<sys::qk_attention_cache_args>() as u32,
        head_dim: 64,
        heads: 2,
        kv_heads: 1,
        m: M,
        documents: 1,
        cu_seqlens: memory.at(0),
        starts: memory.at(1),
        positions: memory.at(2),
        max_seqlen: 4,
        rows: 4,
        qkv: memory.at(3),
        ldqkv: 256,
        cache: memory.at(8),
        out: memory.at(12),
        window: 0,
        soft_cap: 0.0,
        reserved: 0,
        ldout: 0,
    };
    type Args = sys::qk_attention_cache_args;
    let workspace = memory.at(16);
    // A tile of 16 queries: 64 sums, a maximum and a normalizer each. Two of them: 6 queries, and one more document.
    let bytes = 16 * 66 * 4;
    macro_rules! both_refuse {
        ({ $($spoil:expr => $error:ident,)* }) => {
            refuses!(memory, valid, |args| sys::qk_attention_cache_append(args, null_mut()), { $($spoil => $error,)* });
            refuses!(memory, valid, |args| sys::qk_attention_cache(args, workspace, bytes, null_mut()), { $($spoil => $error,)* });
        };
    }
    both_refuse!({
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.head_dim = 80 => QK_ERROR_HEAD_DIM,
        |a: &mut Args| a.heads = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.kv_heads = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.heads = 65536 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.heads, a.kv_heads) = (3, 2) => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = (1 << 31) - 1024 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.heads, a.ldqkv, a.m) = (64, 66 * 64, 1 << 25) => QK_ERROR_SHAPE,
        |a: &mut Args| a.documents = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.documents = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.max_seqlen = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.max_seqlen = 65_535 * 128 + 1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.rows = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.rows = 1 << 32 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldqkv = 255 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldqkv = 260 => QK_ERROR_SHAPE,
        |a: &mut Args| a.window = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.soft_cap = -1.0 => QK_ERROR_VALUE,
        |a: &mut Args| a.soft_cap = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.qkv = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.cache = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.cu_seqlens = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.starts = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.positions = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.qkv = a.qkv.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.cache = a.cache.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.cu_seqlens = a.cu_seqlens.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.starts = a.starts.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.positions = a.positions.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
    refuses!(memory, valid, |args| sys::qk_attention_cache(args, workspace, bytes, null_mut()), {
        |a: &mut Args| a.out = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.out = a.out.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.ldout = 127 => QK_ERROR_SHAPE,
        |a: &mut Args| a.documents = 2 => QK_ERROR_WORKSPACE,
        |a: &mut Args| a.max_seqlen = 129 => QK_ERROR_WORKSPACE,
        |a: &mut Args| a.m = 8 => QK_ERROR_WORKSPACE,
    });
    let mut found = 0usize;
    let valid = &raw const valid;
    // SAFETY: refused, or only the struct and `found` are touched.
    unsafe {
        assert_eq!(sys::qk_attention_cache(valid, null_mut(), bytes, null_mut()), sys::QK_ERROR_WORKSPACE);
        let shifted = workspace.wrapping_byte_add(4);
        assert_eq!(sys::qk_attention_cache(valid, shifted, bytes, null_mut()), sys::QK_ERROR_ALIGNMENT);
        assert_eq!(sys::qk_attention_cache_workspace_size(valid, null_mut()), sys::QK_ERROR_NULL_POINTER);
        assert_eq!((sys::qk_attention_cache_workspace_size(valid, &mut found), found), (sys::QK_OK, bytes));
    }
    assert!(memory.is_untouched());
}

#[test]
fn logits_refuse() {
    let mut memory = Memory::new();
    let (tokens, outputs) = ([0u32, 2], [memory.at::<f32>(4), memory.at(5)]);
    let valid = sys::qk_logits_args {
        struct_size: size_of::<sys::qk_logits_args>() as u32,
        num_tokens: 2,
        m: M,
        h: 8,
        vocab: 4,
        hidden: memory.at(0),
        head: memory.at(1),
        tokens: tokens.as_ptr(),
        logits: outputs.as_ptr(),
    };
    static BEYOND: [u32; 2] = [0, M as u32];
    type Args = sys::qk_logits_args;
    refuses!(memory, valid, |args| sys::qk_logits(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.num_tokens = 65_536 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.hidden = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.head = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.tokens = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.logits = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.tokens = BEYOND.as_ptr() => QK_ERROR_VALUE,
        |a: &mut Args| a.hidden = a.hidden.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.head = a.head.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
    });
    for (outputs, error) in [
        ([outputs[0], null_mut()], sys::QK_ERROR_NULL_POINTER),
        ([outputs[0], outputs[1].wrapping_byte_add(2)], sys::QK_ERROR_ALIGNMENT),
    ] {
        let args = sys::qk_logits_args { logits: outputs.as_ptr(), ..valid };
        // SAFETY: the call must refuse before it reads device memory.
        assert_eq!(unsafe { sys::qk_logits(&args, null_mut()) }, error);
        assert!(memory.is_untouched());
    }
}
