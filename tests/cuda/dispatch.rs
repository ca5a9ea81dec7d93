//! The rows of the dispatch table. In the emulation a product on the host stands in place of cuBLASLt; on a GPU without
//! that library its row is a named error.

use half::bf16;
use lab::device::{Tally, cases, device};
use lab::dispatched::Dispatched;
use lab::dispatched_dx::DispatchedDx;
use lab::linear::{Linear, Part, Values};
use lab::linear_dx::LinearDx;
use lab::operation::{Operation, run, verify};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use qlora_kernels::device::{Device, View};
use qlora_kernels::ops::cublaslt::CublasLt;
use qlora_kernels::ops::dispatch::{self, Dispatch, Workspace};
use qlora_kernels::ops::linear::{Dropout, Input};
use qlora_kernels::ops::linear_backward::Backward;
use qlora_kernels::ops::linear_dx::InputGradient;
use qlora_kernels::ops::linear_product::Product;
use qlora_kernels::ops::{linear_dx_product, linear_product, lora_down, lora_dy_b};

const SCHEDULES: u64 = 2;

fn part(n: usize, r: usize, bias: bool, pad: usize) -> Part {
    Part { n, r, bias, pad }
}

fn layer(m: usize, k: usize, dense: bool, parts: Vec<Part>) -> Linear {
    Linear { pad_x: 8, dense, given_s: true, seed: 7, ..Linear::new(m, k, parts) }
}

fn layers() -> Vec<Linear> {
    vec![
        layer(40, 128, false, vec![part(96, 16, true, 0), part(32, 0, false, 8), part(64, 8, false, 0)]),
        layer(3, 192, false, vec![part(64, 16, false, 8)]),
        layer(70, 64, true, vec![part(128, 24, true, 0)]),
        // Without a low-rank term; W as it is, and two segments of it.
        layer(9, 64, true, vec![part(16, 0, false, 0)]),
        layer(9, 64, false, vec![part(16, 0, true, 0), part(24, 0, false, 8)]),
        // Blocks that straddle rows, ranks between the multiples of 8, rows that begin anywhere.
        Linear { block_size: 32, ..layer(33, 200, false, vec![part(24, 5, true, 3), part(8, 12, false, 1)]) },
        Linear { pad_x: 0, ..layer(20, 77, false, vec![part(19, 3, false, 0), part(5, 16, true, 2)]) },
        Linear { pad_x: 0, ..layer(20, 77, true, vec![part(19, 3, false, 0), part(5, 16, true, 2)]) },
        // More columns than one block of the copy, and than one of the dequantization.
        layer(2, 4160, false, vec![part(3, 8, false, 0)]),
    ]
}

fn dispatched<'a>(linear: &Linear, dispatch: Dispatch<'a>) -> Dispatched<'a> {
    Dispatched { linear: linear.clone(), dispatch, side_by_side: false }
}

/// None on a GPU without the library.
pub fn library() -> Option<CublasLt> {
    match CublasLt::open() {
        Ok(library) => Some(library),
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("cuBLASLt"), "a GPU was opened before: {error}");
            println!("not checked: {error}");
            None
        }
    }
}

fn check_layer(device: &Device, linear: &Linear, dispatch: Dispatch<'_>, seed: u64) -> Result<(), String> {
    verify(device, &dispatched(linear, dispatch), seed, SCHEDULES)?;
    for accumulate in [false, true] {
        let dx = LinearDx { linear: linear.clone(), accumulate, dropout: None };
        verify(device, &DispatchedDx { dx, dispatch }, seed, SCHEDULES)?;
    }
    Ok(())
}

fn check(dispatch: Dispatch<'_>, name: &'static str) {
    let (device, tally) = (device(), Tally::new(name, SCHEDULES));
    for linear in layers() {
        check_layer(&device, &linear, dispatch, 1).unwrap();
        tally.case();
    }
}

#[test]
fn the_default_row_is_the_fused_kernels() {
    assert!(matches!(Dispatch::default(), Dispatch::Fused));
    check(Dispatch::default(), "dispatch, fused");
}

#[test]
fn one_product_computes_all_segments_as_the_fused_kernels_do() {
    let Some(library) = library() else { return };
    let dispatch = Dispatch::DequantizeCublasLt(&library);
    check(dispatch, "dispatch, dequantize + cuBLASLt");
    refuses_what_it_has_not(dispatch);
    // Sums that are exact are so in any order: the same bits.
    let device = device();
    for linear in layers() {
        let linear = Linear { values: Values::Exact, ..linear };
        check_layer(&device, &linear, dispatch, 2).unwrap();
        let of = |dispatch| dispatched(&linear, dispatch);
        let inputs = of(dispatch).inputs();
        assert_eq!(run(&device, &of(dispatch), &inputs), run(&device, &of(Dispatch::Fused), &inputs), "{linear:?}");
    }
}

#[test]
fn one_product_computes_layers_of_any_shape() {
    let Some(library) = library() else { return };
    let (device, tally) = (device(), Tally::new("dispatch, any shape", SCHEDULES));
    let parts = (1usize..40, 0usize..20, any::<bool>(), 0usize..9).prop_map(|(n, r, bias, pad)| part(n, r, bias, pad));
    let shapes = (
        1usize..24,
        prop_oneof![1usize..100, (1usize..5).prop_map(|k| 64 * k)],
        proptest::collection::vec(parts, 1..=4),
    );
    let kinds = (5u32..9, any::<bool>(), any::<bool>(), any::<bool>(), 0usize..9, any::<u64>());
    type Case = ((usize, usize, Vec<Part>), (u32, bool, bool, bool, usize, u64));
    let case = |((m, k, parts), (log, dense, transposed, double_quant, pad_x, seed)): Case| {
        let of_kind =
            Linear { block_size: 1 << log, transposed, double_quant, pad_x, seed, ..layer(m, k, dense, parts) };
        let checked = check_layer(&device, &of_kind, Dispatch::DequantizeCublasLt(&library), seed);
        tally.case();
        checked.map_err(TestCaseError::fail)
    };
    let config = Config { cases: cases(24), failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&(shapes, kinds), case).unwrap();
}

/// Places of a product's operands in the workspace, in elements.
struct Places {
    shape: [usize; 4],
    x: usize,
    w: usize,
    bias: Option<usize>,
}

impl Places {
    fn of(product: &Product<'_>, workspace: *const bf16) -> Self {
        let of = |view: View<'_, bf16>| (view.address() as usize - workspace as usize) / size_of::<bf16>();
        let Product { n, k, ldx, ldw, .. } = *product;
        Self { shape: [n, k, ldx, ldw], x: of(product.x), w: of(product.w), bias: product.bias.map(of) }
    }
}

/// Each block of [X | S], [W | B], [dY | T] and [W ; A] is what it should be, and all between is zero.
#[test]
fn the_operands_of_one_product_are_the_blocks_side_by_side() {
    let device = device();
    let linear = layer(5, 64, false, vec![part(8, 3, true, 0), part(6, 0, false, 2), part(4, 10, false, 0)]);
    let (m, k, n, columns) = (5, 64, 18, 24);
    let poisoned = || device.upload(&vec![bf16::NAN; 1 << 14]).unwrap();
    let inputs = linear.inputs();
    let (mut buffers, mut workspace) = (linear.upload(&device, &inputs).unwrap(), poisoned());
    let places = linear.with(&mut buffers, |input, segments, s, _| {
        lora_down(&input, segments, s.view_mut(), device.stream())?;
        let input = Input { s: Some(s.view().into()), ..input };
        let scratch = workspace.view_mut();
        let (address, mut scratch) = (scratch.address().cast_const(), Workspace::from(scratch));
        Ok(Places::of(&linear_product(&input, segments, &mut scratch, device.stream())?, address))
    });
    let Places { shape, x, w, bias } = places.unwrap();
    assert_eq!(shape, [n, k + columns, k + columns, k + columns]);
    let (found, s) = (device.download(&workspace).unwrap(), linear.download(&device, &buffers).unwrap().s);
    for token in 0..m {
        let (of_x, of_s) = found[x + token * shape[2]..][..shape[1]].split_at(k);
        assert_eq!(of_x, &inputs.x[token * (k + linear.pad_x)..][..k], "token {token}");
        let of_s: Vec<u16> = of_s.iter().map(|s| s.to_bits()).collect();
        assert_eq!(of_s, s[token * columns..][..columns], "token {token}");
    }
    let mut row = 0;
    for (part, (host, column)) in linear.parts.iter().zip(inputs.parts.iter().zip([0, 8, 8])) {
        for i in 0..part.n {
            let (weight, low_rank) = found[w + row * shape[3]..][..shape[1]].split_at(k);
            assert!(weight.iter().zip(&host.weight[i * k..]).all(|(found, w)| found.to_f32() == *w), "row {row}");
            let mut expected = vec![bf16::ZERO; columns];
            expected[column..][..part.r].copy_from_slice(&host.b[i * part.r..][..part.r]);
            assert_eq!(low_rank, expected, "row {row}");
            row += 1;
        }
    }
    let (own, others) = found[bias.expect("a segment has one")..][..n].split_at(8);
    assert!(own == inputs.parts[0].bias && others.iter().all(|&bias| bias == bf16::ZERO));

    let dx = LinearDx { linear: linear.clone(), accumulate: false, dropout: None };
    let inputs = dx.inputs();
    let (mut buffers, mut workspace) = (dx.upload(&device, &inputs).unwrap(), poisoned());
    let places = dx.with(&mut buffers, |backward, segments, _, t, _| {
        lora_dy_b(&backward, segments, t.view_mut(), device.stream())?;
        let backward = Backward { t: Some(t.view().into()), ..backward };
        let scratch = workspace.view_mut();
        let (address, mut scratch) = (scratch.address().cast_const(), Workspace::from(scratch));
        Ok(Places::of(&linear_dx_product(&backward, segments, &mut scratch, device.stream())?, address))
    });
    let Places { shape, x, w, bias } = places.unwrap();
    assert_eq!((shape, bias), ([k, n + columns, 48, k], None));
    let (found, t) = (device.download(&workspace).unwrap(), dx.download(&device, &buffers).unwrap().t);
    for token in 0..m {
        let (of_dy, of_t) = found[x + token * shape[2]..][..shape[1]].split_at(n);
        let dy = linear.parts.iter().zip(&inputs.dy);
        let expected = dy.flat_map(|(part, dy)| dy[token * (part.n + part.pad)..][..part.n].to_vec());
        assert_eq!(of_dy, expected.collect::<Vec<_>>(), "token {token}");
        let of_t: Vec<u16> = of_t.iter().map(|t| t.to_bits()).collect();
        assert_eq!(of_t, t[token * columns..][..columns], "token {token}");
    }
    let row_of = |row: usize| &found[w + row * k..][..k];
    let weights: Vec<f32> = inputs.parts.iter().flat_map(|part| part.weight.iter().copied()).collect();
    for row in 0..n {
        assert!(row_of(row).iter().zip(&weights[row * k..]).all(|(found, w)| found.to_f32() == *w), "row {row}");
    }
    for (part, (host, first)) in linear.parts.iter().zip(inputs.parts.iter().zip([0, 8, 8])) {
        for rank in 0..part.r.next_multiple_of(8) {
            let expected = if rank < part.r { host.a[rank * k..][..k].to_vec() } else { vec![bf16::ZERO; k] };
            assert_eq!(row_of(n + first + rank), expected, "rank {rank}");
        }
    }
}

/// Outputs that are columns of one matrix, as those of q, k and v are, and a low-rank term that the call computes
/// itself: the bits of outputs of their own and of a given S and T.
#[test]
fn outputs_side_by_side_and_a_low_rank_term_computed_inside_give_the_same_bits() {
    let Some(library) = library() else { return };
    let (device, dispatch) = (device(), Dispatch::DequantizeCublasLt(&library));
    let linear = layer(21, 128, false, vec![part(24, 8, true, 0), part(16, 5, false, 0), part(8, 0, true, 0)]);
    let (m, k, inputs) = (linear.m, linear.k, linear.inputs());
    let apart = run(&device, &dispatched(&linear, dispatch), &inputs);
    let together = Dispatched { side_by_side: true, ..dispatched(&linear, dispatch) };
    assert_eq!(verify(&device, &together, 1, SCHEDULES).unwrap(), apart);

    let mut buffers = linear.upload(&device, &inputs).unwrap();
    let inside = linear.with(&mut buffers, |input, segments, _, _| {
        let len = dispatch::workspace_len(dispatch, &input, segments);
        let mut workspace = device.upload(&vec![bf16::NAN; len])?;
        dispatch::forward(dispatch, &input, segments, workspace.view_mut(), device.stream())
    });
    inside.unwrap();
    assert_eq!(linear.download(&device, &buffers).unwrap().y, apart.y);

    let dx = LinearDx { linear, accumulate: false, dropout: None };
    let inputs = dx.inputs();
    let given = run(&device, &DispatchedDx { dx: dx.clone(), dispatch }, &inputs).dx;
    let mut buffers = dx.upload(&device, &inputs).unwrap();
    let mut inside = device.upload(&vec![bf16::NAN; m * k]).unwrap();
    dx.with(&mut buffers, |backward, segments, _, _, _| {
        let gradient = InputGradient { dx: inside.view_mut(), lddx: k, accumulate: false };
        let mut workspace =
            device.upload(&vec![bf16::NAN; dispatch::dx_workspace_len(dispatch, &backward, segments)])?;
        dispatch::dx(dispatch, &backward, segments, gradient, workspace.view_mut(), device.stream())
    })
    .unwrap();
    let found = device.download(&inside).unwrap();
    let pad = given.len() / m - k;
    for token in 0..m {
        let row: Vec<u16> = found[token * k..][..k].iter().map(|dx| dx.to_bits()).collect();
        assert_eq!(row, given[token * (k + pad)..][..k], "token {token}");
    }
}

/// A check that cannot fail would prove nothing.
#[test]
fn a_fault_is_more_than_the_other_rows_roundings() {
    let Some(library) = library() else { return };
    let (device, dispatch) = (device(), Dispatch::DequantizeCublasLt(&library));
    for linear in layers().into_iter().filter(|linear| linear.parts[0].r > 0) {
        let forward = dispatched(&linear, dispatch);
        let mut inputs = forward.inputs();
        let output = run(&device, &forward, &inputs);
        inputs.parts[0].b.fill(bf16::ZERO);
        forward.check(&inputs, &output, usize::MAX).unwrap_err();
        let dx = DispatchedDx { dx: LinearDx { linear, accumulate: true, dropout: None }, dispatch };
        let mut inputs = dx.inputs();
        let output = run(&device, &dx, &inputs);
        inputs.parts[0].a.fill(bf16::ZERO);
        dx.check(&inputs, &output, usize::MAX).unwrap_err();
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
    let dropout = Dropout { p: 0.5, seed: 1, dropout_id: 0, dropout_step: 0, first_token: 0, step_on_device: None };
    assert!(refusal(&device, &dispatched(&linear, dispatch)).contains("adapters"));
    assert!(refusal(&device, &dx(2, None)).contains("adapters"));
    assert!(refusal(&device, &dx(0, Some(dropout))).contains("dropout"));
}
