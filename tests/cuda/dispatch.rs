//! The rows of the dispatch table. Dequantise + cuBLASLt is only there on a GPU with that library; elsewhere it is a named error.

use crate::device::{Tally, device};
use crate::dispatched::Dispatched;
use crate::linear_operation::{Linear, Part, Values};
use crate::operation::verify;
use qlora_kernels::cuda::cublaslt::CublasLt;
use qlora_kernels::cuda::dispatch::Dispatch;

fn layers() -> Vec<Linear> {
    let part = |n, r, bias, pad| Part { n, r, bias, pad };
    let layer = |m, k, dense, parts| Linear {
        m,
        k,
        pad_x: 8,
        block_size: 64,
        dense,
        transposed: true,
        double_quant: true,
        values: Values::Ragged,
        given_s: true,
        adapters: 0,
        parts,
        seed: 7,
    };
    vec![
        layer(40, 128, false, vec![part(96, 16, true, 0), part(32, 0, false, 8), part(64, 8, false, 0)]),
        layer(3, 192, false, vec![part(64, 16, false, 0)]),
        layer(70, 64, true, vec![part(128, 24, true, 0)]),
    ]
}

fn check(dispatch: Dispatch<'_>, name: &'static str) {
    let (device, tally) = (device(), Tally::new(name, 1));
    for linear in layers() {
        verify(&device, &Dispatched { linear, dispatch }, 1, 1).unwrap();
        tally.case();
    }
}

#[test]
fn the_default_row_is_the_fused_kernels() {
    assert!(matches!(Dispatch::default(), Dispatch::Fused));
    check(Dispatch::default(), "dispatch, fused");
}

#[test]
fn dequantise_and_cublaslt_is_within_its_roundings_or_a_named_error() {
    match CublasLt::open() {
        Ok(library) => check(Dispatch::DequantizeCublasLt(&library), "dispatch, dequantise + cuBLASLt"),
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("cuBLASLt"), "a GPU was opened before: {error}");
            println!("not checked: {error}");
        }
    }
}
