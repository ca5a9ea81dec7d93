//! The rows of the dispatch table. Dequantize + cuBLASLt is only there on a GPU with that library; elsewhere it is a
//! named error.

use half::bf16;
use lab::device::{Tally, device};
use lab::dispatched::Dispatched;
use lab::dispatched_dx::DispatchedDx;
use lab::linear::{Linear, Part, Values};
use lab::linear_dx::LinearDx;
use lab::operation::{Operation, run, verify};
use qlora_kernels::device::Device;
use qlora_kernels::ops::cublaslt::CublasLt;
use qlora_kernels::ops::dispatch::Dispatch;
use qlora_kernels::ops::linear::Dropout;

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
        layer(3, 192, false, vec![part(64, 16, false, 8)]),
        layer(70, 64, true, vec![part(128, 24, true, 0)]),
    ]
}

fn check(dispatch: Dispatch<'_>, name: &'static str) {
    let (device, tally) = (device(), Tally::new(name, 1));
    for linear in layers() {
        verify(&device, &Dispatched { linear: linear.clone(), dispatch }, 1, 1).unwrap();
        tally.case();
        for accumulate in [false, true] {
            let dx = LinearDx { linear: linear.clone(), accumulate, dropout: None };
            verify(&device, &DispatchedDx { dx, dispatch }, 1, 1).unwrap();
            tally.case();
        }
    }
}

#[test]
fn the_default_row_is_the_fused_kernels() {
    assert!(matches!(Dispatch::default(), Dispatch::Fused));
    check(Dispatch::default(), "dispatch, fused");
}

#[test]
fn dequantize_and_cublaslt_is_within_its_roundings_or_a_named_error() {
    match CublasLt::open() {
        Ok(library) => {
            check(Dispatch::DequantizeCublasLt(&library), "dispatch, dequantize + cuBLASLt");
            refuses_what_it_has_not(Dispatch::DequantizeCublasLt(&library));
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("cuBLASLt"), "a GPU was opened before: {error}");
            println!("not checked: {error}");
        }
    }
}

/// The check of the other row allows for its roundings, which the fused kernels' result is well within, and for no
/// fault.
#[test]
fn a_fault_is_more_than_the_other_rows_roundings() {
    let (device, dispatch) = (device(), Dispatch::Fused);
    for linear in layers() {
        let forward = Dispatched { linear: linear.clone(), dispatch };
        let mut inputs = forward.inputs();
        let output = run(&device, &forward, &inputs);
        forward.check_rounded(&inputs, &output, usize::MAX).unwrap();
        inputs.parts[0].b.fill(bf16::ZERO);
        forward.check_rounded(&inputs, &output, usize::MAX).unwrap_err();
        let dx = DispatchedDx { dx: LinearDx { linear, accumulate: true, dropout: None }, dispatch };
        let mut inputs = dx.inputs();
        let output = run(&device, &dx, &inputs);
        dx.check_rounded(&inputs, &output, usize::MAX).unwrap();
        inputs.parts[0].a.fill(bf16::ZERO);
        dx.check_rounded(&inputs, &output, usize::MAX).unwrap_err();
    }
}

/// Adapters by an index, and dropout in dX.
fn refuses_what_it_has_not(dispatch: Dispatch<'_>) {
    let device = device();
    let linear = Linear { adapters: 2, ..layers().remove(1) };
    let dx = |adapters, dropout| {
        let linear = Linear { adapters, ..linear.clone() };
        DispatchedDx { dx: LinearDx { linear, accumulate: false, dropout }, dispatch }
    };
    fn refusal<O: Operation>(device: &Device, operation: &O) -> String {
        let mut buffers = operation.upload(device, &operation.inputs()).unwrap();
        operation.launch(&mut buffers, device.stream()).unwrap_err().to_string()
    }
    let dropout = Dropout { p: 0.5, seed: 1, dropout_id: 0, dropout_step: 0, first_token: 0 };
    assert!(refusal(&device, &Dispatched { linear: linear.clone(), dispatch }).contains("adapters"));
    assert!(refusal(&device, &dx(2, None)).contains("adapters"));
    assert!(refusal(&device, &dx(0, Some(dropout))).contains("dropout"));
}
