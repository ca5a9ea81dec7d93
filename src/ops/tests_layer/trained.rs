//! Refusals of the operations behind trained magnitudes, norms and tables.

use super::{M, Memory};
use crate::sys;
use std::ptr::{null, null_mut};

#[test]
fn squares_of_rows_refuse() {
    let mut memory = Memory::new();
    let nf4 = sys::qk_nf4 {
        struct_size: size_of::<sys::qk_nf4>() as u32,
        layout: sys::QK_ABSMAX_ROW_MAJOR,
        n: 3,
        k: 64,
        block_size: 64,
        reserved: 0,
        codes: memory.at(0),
        absmax_codes: null(),
        absmax: memory.at(1),
        nested_absmax: null(),
        nested_map: null(),
        offset: null(),
    };
    let valid = sys::qk_row_squares_args {
        struct_size: size_of::<sys::qk_row_squares_args>() as u32,
        reserved: 0,
        n: 3,
        k: 64,
        nf4: &raw const nf4,
        dense: null(),
        squares: memory.at(2),
    };
    type Args = sys::qk_row_squares_args;
    refuses!(memory, valid, |args| sys::qk_row_squares(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.n = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.n = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.k = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.k = i64::MAX => QK_ERROR_SHAPE,
        |a: &mut Args| a.n = 2 => QK_ERROR_SHAPE,
        |a: &mut Args| a.nf4 = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dense = a.squares.cast_const().cast() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.squares = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.squares = a.squares.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| (a.nf4, a.dense) = (null(), a.squares.wrapping_byte_add(8).cast_const().cast()) => QK_ERROR_ALIGNMENT,
    });
    let (short, blocks) = (sys::qk_nf4 { k: 32, ..nf4 }, sys::qk_nf4 { block_size: 48, ..nf4 });
    let cases = [(&raw const short, sys::QK_ERROR_SHAPE), (&raw const blocks, sys::QK_ERROR_BLOCK_SIZE)];
    for (nf4, expected) in cases {
        let args = sys::qk_row_squares_args { nf4, ..valid };
        // SAFETY: refused before anything but the structs is read.
        assert_eq!(unsafe { sys::qk_row_squares(&args, null_mut()) }, expected);
    }
    assert!(memory.is_untouched());
}

#[test]
fn norms_of_magnitudes_refuse() {
    let mut memory = Memory::new();
    let valid = sys::qk_magnitude_norms_args {
        struct_size: size_of::<sys::qk_magnitude_norms_args>() as u32,
        r: 2,
        n: 3,
        z: memory.at(0),
        b: memory.at(1),
        squares: memory.at(2),
        norms: memory.at(3),
        scale: 1.0,
        reserved: 0,
    };
    type Args = sys::qk_magnitude_norms_args;
    refuses!(memory, valid, |args| sys::qk_magnitude_norms(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.r = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.r = 257 => QK_ERROR_SHAPE,
        |a: &mut Args| a.n = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.n = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.scale = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.scale = f32::INFINITY => QK_ERROR_VALUE,
        |a: &mut Args| a.z = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.b = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.squares = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.norms = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.z = a.z.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.b = a.b.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.squares = a.squares.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.norms = a.norms.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
}

#[test]
fn magnitudes_refuse() {
    let mut memory = Memory::new();
    let backward = sys::qk_magnitude_args {
        struct_size: size_of::<sys::qk_magnitude_args>() as u32,
        reserved: 0,
        m: M,
        n: 8,
        magnitude: memory.at(0),
        norms: memory.at(1),
        bias: memory.at(2),
        y: memory.at(3),
        ldy: 8,
        dy: memory.at(4),
        lddy: 8,
        dmagnitude: memory.at(5),
    };
    let forward = sys::qk_magnitude_args { dy: null(), dmagnitude: null_mut(), ..backward };
    type Args = sys::qk_magnitude_args;
    refuses!(memory, forward, |args| sys::qk_magnitude(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.n = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.m, a.n, a.ldy) = ((1 << 31) - 1, (1 << 31) - 1, 1 << 31) => QK_ERROR_SHAPE,
        |a: &mut Args| a.ldy = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.y = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.magnitude = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.norms = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| (a.magnitude, a.norms) = (null(), null()) => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dy = a.y => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dmagnitude = a.y.cast() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.y = a.y.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.magnitude = a.magnitude.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.norms = a.norms.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.bias = a.bias.wrapping_byte_add(1) => QK_ERROR_ALIGNMENT,
    });
    // One chunk of 256 tokens, 8 columns.
    let (workspace, needed) = (memory.at(6), 8 * 4);
    refuses!(memory, backward, |args| sys::qk_magnitude_backward(args, workspace, needed, null_mut()), {
        |a: &mut Args| a.dy = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| (a.magnitude, a.norms) = (null(), null()) => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.lddy = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.dy = a.dy.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dmagnitude = a.dmagnitude.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.m = 257 => QK_ERROR_WORKSPACE,
    });
    let mut bytes = usize::MAX;
    // SAFETY: refused, or only the structs and `bytes` are touched.
    unsafe {
        let call = |workspace, bytes| sys::qk_magnitude_backward(&raw const backward, workspace, bytes, null_mut());
        assert_eq!(call(null_mut(), needed), sys::QK_ERROR_WORKSPACE);
        assert_eq!(call(workspace, needed - 1), sys::QK_ERROR_WORKSPACE);
        assert_eq!(call(workspace.wrapping_byte_add(8), needed), sys::QK_ERROR_ALIGNMENT);
        let size = sys::qk_magnitude_backward_workspace_size;
        assert_eq!(size(&raw const backward, null_mut()), sys::QK_ERROR_NULL_POINTER);
        assert_eq!((size(&raw const backward, &mut bytes), bytes), (sys::QK_OK, needed));
        assert_eq!((size(&raw const forward, &mut bytes), bytes), (sys::QK_OK, 0), "no gradient of magnitudes");
    }
    assert!(memory.is_untouched());
}

#[test]
fn gradients_of_weights_of_norms_refuse() {
    let mut memory = Memory::new();
    let valid = sys::qk_norm_gradient_args {
        struct_size: size_of::<sys::qk_norm_gradient_args>() as u32,
        eps: 1e-5,
        m: M,
        parts: 2,
        width: 8,
        ld: 24,
        column: 8,
        dy: memory.at(0),
        x: memory.at(1),
        dweight: memory.at(2),
        lddy: 0,
    };
    // Two parts of three rows, and one chunk of 8 columns.
    let (workspace, needed) = (memory.at(3), (6 + 8) * 4);
    type Args = sys::qk_norm_gradient_args;
    refuses!(memory, valid, |args| sys::qk_norm_gradient(args, workspace, needed, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.eps = 0.0 => QK_ERROR_VALUE,
        |a: &mut Args| a.eps = f32::NAN => QK_ERROR_VALUE,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.parts = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.parts = 65536 => QK_ERROR_SHAPE,
        |a: &mut Args| a.width = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.width = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.column = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.ld = 23 => QK_ERROR_SHAPE,
        |a: &mut Args| a.lddy = 23 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.m, a.parts, a.ld) = ((1 << 31) - 1, 65535, 1 << 40) => QK_ERROR_SHAPE,
        |a: &mut Args| a.dy = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.x = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dweight = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dy = a.dy.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.x = a.x.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dweight = a.dweight.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.m = 4 => QK_ERROR_WORKSPACE,
    });
    let mut bytes = usize::MAX;
    // SAFETY: refused, or only the structs and `bytes` are touched.
    unsafe {
        let call = |workspace, bytes| sys::qk_norm_gradient(&raw const valid, workspace, bytes, null_mut());
        assert_eq!(call(null_mut(), needed), sys::QK_ERROR_WORKSPACE);
        assert_eq!(call(workspace.wrapping_byte_add(8), needed), sys::QK_ERROR_ALIGNMENT);
        let size = sys::qk_norm_gradient_workspace_size;
        assert_eq!(size(&raw const valid, null_mut()), sys::QK_ERROR_NULL_POINTER);
        assert_eq!((size(&raw const valid, &mut bytes), bytes), (sys::QK_OK, needed));
    }
    assert!(memory.is_untouched());
}

#[test]
fn gradients_of_the_embedding_refuse() {
    let mut memory = Memory::new();
    let valid = sys::qk_embedding_backward_args {
        struct_size: size_of::<sys::qk_embedding_backward_args>() as u32,
        reserved: 0,
        m: M,
        h: 8,
        vocab: 4,
        ids: memory.at(0),
        dout: memory.at(1),
        dtable: memory.at(2),
        scale: 1.0,
        reserved2: 0,
        rows: null(),
        num_rows: 0,
        lddout: 0,
    };
    type Args = sys::qk_embedding_backward_args;
    refuses!(memory, valid, |args| sys::qk_embedding_backward(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.reserved2 = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.m = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.m = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| (a.m, a.h) = (1 << 30, 1 << 20) => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.lddout = 7 => QK_ERROR_SHAPE,
        |a: &mut Args| a.scale = f32::INFINITY => QK_ERROR_VALUE,
        |a: &mut Args| a.ids = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dout = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.dtable = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.ids = a.ids.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dout = a.dout.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.dtable = a.dtable.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
    let of_rows = sys::qk_embedding_backward_args { rows: memory.at(3), num_rows: 2, ..valid };
    refuses!(memory, of_rows, |args| sys::qk_embedding_backward(args, null_mut()), {
        |a: &mut Args| a.num_rows = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.num_rows = 5 => QK_ERROR_SHAPE,
        |a: &mut Args| a.num_rows = 0 => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.rows = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.rows = a.rows.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
    });
}

/// Callers of the first version pass 64 bytes, after which anything may lie: they get the gradients of all rows.
#[test]
fn a_struct_without_rows_has_all_of_them() {
    let gradient = |struct_size: usize| {
        let mut memory = Memory::new();
        // One token of id 1, a row of ones, and zeros before.
        let mut values = vec![0.0f32; 4096];
        values[0] = f32::from_bits(1);
        values[128..132].fill(f32::from_bits(0x3f80_3f80));
        memory.buffer = memory.device.upload(&values).unwrap();
        let args = sys::qk_embedding_backward_args {
            struct_size: struct_size as u32,
            reserved: 0,
            m: 1,
            h: 8,
            vocab: 2,
            ids: memory.at(0),
            dout: memory.at(1),
            dtable: memory.at(2),
            scale: 3.0,
            reserved2: 0,
            rows: if struct_size == 64 { std::ptr::without_provenance(2) } else { null() },
            num_rows: if struct_size == 64 { -1 } else { 0 },
            lddout: if struct_size == 64 { -1 } else { 0 },
        };
        // SAFETY: the operands lie in the buffer, 512 bytes apart, which is more than each has.
        assert_eq!(unsafe { sys::qk_embedding_backward(&raw const args, null_mut()) }, sys::QK_OK);
        memory.device.download(&memory.buffer).unwrap()[256..272].to_vec()
    };
    let first = gradient(64);
    assert_eq!(first, [[0.0; 8], [3.0; 8]].concat());
    assert_eq!(gradient(size_of::<sys::qk_embedding_backward_args>()), first);
}

#[test]
fn replaced_rows_refuse() {
    let mut memory = Memory::new();
    let valid = sys::qk_replace_rows_args {
        struct_size: size_of::<sys::qk_replace_rows_args>() as u32,
        reserved: 0,
        h: 8,
        vocab: 4,
        num_rows: 2,
        rows: memory.at(0),
        values: memory.at(1),
        table: memory.at(2),
    };
    type Args = sys::qk_replace_rows_args;
    refuses!(memory, valid, |args| sys::qk_replace_rows(args, null_mut()), {
        |a: &mut Args| a.struct_size = 4 => QK_ERROR_STRUCT_SIZE,
        |a: &mut Args| a.reserved = 1 => QK_ERROR_RESERVED,
        |a: &mut Args| a.h = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.h = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 0 => QK_ERROR_SHAPE,
        |a: &mut Args| a.vocab = 1 << 31 => QK_ERROR_SHAPE,
        |a: &mut Args| a.num_rows = -1 => QK_ERROR_SHAPE,
        |a: &mut Args| a.num_rows = 5 => QK_ERROR_SHAPE,
        |a: &mut Args| a.rows = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.values = null() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.table = null_mut() => QK_ERROR_NULL_POINTER,
        |a: &mut Args| a.rows = a.rows.wrapping_byte_add(2) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.values = a.values.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
        |a: &mut Args| a.table = a.table.wrapping_byte_add(8) => QK_ERROR_ALIGNMENT,
    });
}
