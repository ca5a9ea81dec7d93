//! Rows with room behind them: whatever reads or writes such rows gives the bits of dense ones, and leaves what lies
//! between as it was.

use crate::dispatch::library;
use half::bf16;
use lab::device::device;
use lab::linear::{Linear, Part};
use lab::linear_dx::LinearDx;
use lab::low_rank::{LowRank, LowRankPart};
use lab::operation::Operation;
use qlora_kernels::device::{Buffer, Device, View, ViewMut};
use qlora_kernels::ops::dispatch::{self, Dispatch, Workspace};
use qlora_kernels::ops::linear::Input;
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::linear_dx::InputGradient;
use qlora_kernels::ops::lora_gradients::{ForwardInputs, lora_gradients, workspace_bytes};
use qlora_kernels::ops::{
    Rows, RowsMut, linear_dx, linear_dx_product, linear_forward, linear_product, lora_down, lora_dy_b,
};
use qlora_kernels::rng::RngStream;

/// A number that spoils a result where it is read, and is missed where it is written over.
const POISON: bf16 = bf16::NAN;

pub fn numbers(len: usize, seed: u64) -> Vec<bf16> {
    let mut stream = RngStream::new(seed, 0);
    (0..len).map(|_| bf16::from_f32(2.0 * stream.uniform() - 1.0)).collect()
}

/// The rows of a dense matrix, `stride` apart.
pub fn apart(device: &Device, values: &[bf16], width: usize, stride: usize) -> Buffer<bf16> {
    let rows = values.chunks(width).flat_map(|row| [row, &vec![POISON; stride - width][..]].concat());
    device.upload(&rows.collect::<Vec<_>>()).unwrap()
}

pub fn poisoned(device: &Device, m: usize, stride: usize) -> Buffer<bf16> {
    device.upload(&vec![POISON; m * stride]).unwrap()
}

/// The bits of the rows, between which all is as it was.
pub fn bits(device: &Device, buffer: &Buffer<bf16>, width: usize, stride: usize) -> Vec<u16> {
    let all = device.download(buffer).unwrap();
    let of_row = |row: &[bf16]| {
        let (values, between) = row.split_at(width);
        assert!(between.iter().all(|x| x.to_bits() == POISON.to_bits()), "what lies between rows was written");
        values.iter().map(|x| x.to_bits()).collect::<Vec<u16>>()
    };
    all.chunks(stride).flat_map(of_row).collect()
}

/// Checks that `run`, with rows that are wider apart by each of `pads` elements, has the result of dense rows.
#[track_caller]
pub fn as_dense<T: PartialEq>(what: &str, pads: &[usize], run: impl Fn(usize) -> T) {
    let dense = run(0);
    for &pad in pads {
        assert!(run(pad) == dense, "{what}, {pad} elements between rows");
    }
}

fn part(n: usize, r: usize) -> Part {
    Part { n, r, bias: true, pad: 8 }
}

/// Every path: tensor cores, few tokens, shapes that no tile fits, bf16 weights, adapters by an index; ranks of one
/// tile and of several, and ranks with padding after them.
fn layers() -> Vec<Linear> {
    let parts = vec![part(96, 16), part(32, 0), part(64, 5)];
    let base = Linear { pad_x: 8, given_s: true, seed: 7, ..Linear::new(40, 128, parts) };
    vec![
        Linear { m: 3, ..base.clone() },
        Linear { k: 77, ..base.clone() },
        Linear { dense: true, ..base.clone() },
        Linear { adapters: 2, ..base.clone() },
        Linear { parts: vec![part(64, 40), part(24, 24)], ..base.clone() },
        base,
    ]
}

#[test]
fn s_of_any_stride_gives_the_same_outputs() {
    let device = device();
    for linear in layers() {
        let (inputs, columns) = (linear.inputs(), linear.columns());
        as_dense(&format!("{linear:?}"), &[8, 64], |pad| {
            let stride = columns + pad;
            let (mut buffers, mut s) = (linear.upload(&device, &inputs).unwrap(), poisoned(&device, linear.m, stride));
            let done = linear.with(&mut buffers, |input, segments, _, none| {
                lora_down(&input, segments, RowsMut::apart(s.view_mut(), stride), device.stream())?;
                let input = Input { s: Some(Rows::apart(s.view(), stride)), ..input };
                linear_forward(&input, segments, none.view_mut(), device.stream())
            });
            done.unwrap();
            (bits(&device, &s, columns, stride), linear.download(&device, &buffers).unwrap().y)
        });
    }
}

#[test]
fn t_of_any_stride_gives_the_same_dx() {
    let device = device();
    for linear in layers() {
        let columns = linear.columns();
        let dx = LinearDx { linear, accumulate: true, dropout: None };
        let inputs = dx.inputs();
        as_dense(&format!("{dx:?}"), &[8, 64], |pad| {
            let stride = columns + pad;
            let (mut buffers, mut t) = (dx.upload(&device, &inputs).unwrap(), poisoned(&device, dx.linear.m, stride));
            let done = dx.with(&mut buffers, |backward, segments, gradient, _, none| {
                lora_dy_b(&backward, segments, RowsMut::apart(t.view_mut(), stride), device.stream())?;
                let backward = Backward { t: Some(Rows::apart(t.view(), stride)), ..backward };
                linear_dx(&backward, segments, gradient, none.view_mut(), device.stream())
            });
            done.unwrap();
            (bits(&device, &t, columns, stride), dx.download(&device, &buffers).unwrap().dx)
        });
    }
}

/// S and T have strides of their own.
#[test]
fn s_and_t_of_any_strides_give_the_same_gradients() {
    let device = device();
    for (k, adapters, dropout) in [(128, 0, 0.0), (128, 0, 0.25), (128, 2, 0.0), (77, 0, 0.0)] {
        let parts = vec![LowRankPart { n: 64, r: 16, pad: 8 }, LowRankPart { n: 24, r: 5, pad: 0 }];
        let case = LowRank { m: 300, k, pad_x: 8, parts, adapters, dropout, exact: false, given_t: true, seed: 3 };
        let (inputs, columns) = (case.inputs(), case.columns());
        as_dense(&format!("{case:?}"), &[8, 64], |pad| {
            let (of_s, of_t) = (columns + pad, columns + 3 * pad);
            let (mut s, mut t) = (poisoned(&device, case.m, of_s), poisoned(&device, case.m, of_t));
            let mut buffers = case.upload(&device, &inputs).unwrap();
            let done = case.with(&mut buffers, |backward, segments, input, forward, gradients, _| {
                lora_down(input, forward, RowsMut::apart(s.view_mut(), of_s), device.stream())?;
                lora_dy_b(backward, segments, RowsMut::apart(t.view_mut(), of_t), device.stream())?;
                let backward = Backward { t: Some(Rows::apart(t.view(), of_t)), ..*backward };
                let inputs = ForwardInputs { x: input.x, ldx: input.ldx, s: Rows::apart(s.view(), of_s) };
                let bytes = workspace_bytes(&backward, segments, &inputs, gradients)?;
                let mut workspace = device.upload(&vec![0xffu8; bytes])?;
                lora_gradients(&backward, segments, &inputs, gradients, workspace.view_mut(), device.stream())
            });
            done.unwrap();
            let output = case.download(&device, &buffers).unwrap();
            (bits(&device, &s, columns, of_s), bits(&device, &t, columns, of_t), output.da, output.db)
        });
    }
}

fn shapes(linear: &Linear) -> Vec<(usize, usize)> {
    linear.parts.iter().map(|part| (part.n, part.r)).collect()
}

/// Memory that a test reads and writes at once, as a caller of the C interface has it.
fn raw<'a>(buffer: &mut Buffer<bf16>, first: usize) -> (View<'a, bf16>, ViewMut<'a, bf16>) {
    let (address, len) = (buffer.view_mut().address().wrapping_add(first), buffer.len() - first);
    // SAFETY: a part of the buffer, which outlives its use; the columns that are written are not those that are read.
    unsafe { (View::from_raw_parts(address, len), ViewMut::from_raw_parts(address, len)) }
}

/// Layers whose rows a library can read: strides of 16 bytes.
fn products() -> Vec<Linear> {
    layers().into_iter().filter(|linear| linear.adapters == 0 && linear.k.is_multiple_of(8)).collect()
}

/// X with room for S: S given elsewhere, S computed by the call, S behind X before. X is not copied, and the rest of
/// the room stays as it is.
#[test]
fn an_input_with_room_gives_the_outputs_of_one_that_is_copied() {
    let Some(library) = library() else { return };
    let (device, dispatch) = (device(), Dispatch::DequantizeCublasLt(&library));
    for linear in products() {
        let (m, k, columns) = (linear.m, linear.k, linear.columns());
        let linear = Linear { pad_x: columns + 8, ..linear };
        let (inputs, ldx) = (linear.inputs(), k + columns + 8);
        let of_x = |row: &[bf16]| row[..k].to_vec();
        let values: Vec<bf16> = inputs.x.chunks(ldx).flat_map(of_x).collect();
        let scratch = linear_product::workspace_len_of(m, k, &shapes(&linear), linear.dense, true, true);
        let run = |given: bool, behind: bool| {
            let (mut buffers, mut x) = (linear.upload(&device, &inputs).unwrap(), apart(&device, &values, k, ldx));
            let ((of_x, _), (of_s, to_s)) = (raw(&mut x, 0), raw(&mut x, k));
            let done = linear.with(&mut buffers, |input, segments, s, _| {
                let input = Input { x: of_x, ldx, ..input };
                lora_down(&input, segments, s.view_mut(), device.stream())?;
                let s: Rows<'_> = s.view().into();
                if behind {
                    lora_down(&input, segments, RowsMut::apart(to_s, ldx), device.stream())?;
                    let input = Input { s: Some(Rows::apart(of_s, ldx)), ..input };
                    let len = dispatch::workspace_len(dispatch, &input, segments);
                    assert_eq!(len, scratch, "weights and biases");
                    let mut workspace = poisoned(&device, 1, len);
                    return dispatch::forward(dispatch, &input, segments, workspace.view_mut(), device.stream());
                }
                let input = Input { s: given.then_some(s), ..input };
                let mut workspace = poisoned(&device, 1, scratch);
                let workspace = Workspace::with_room(workspace.view_mut());
                dispatch::forward(dispatch, &input, segments, workspace, device.stream())
            });
            done.unwrap();
            let lab::linear::Output { s, y } = linear.download(&device, &buffers).unwrap();
            let rows = bits(&device, &x, k + columns, ldx);
            for (token, row) in rows.chunks(k + columns).enumerate() {
                let x: Vec<u16> = values[token * k..][..k].iter().map(|x| x.to_bits()).collect();
                assert!(row[..k] == x && row[k..] == s[token * columns..][..columns], "token {token}");
            }
            y
        };
        let mut buffers = linear.upload(&device, &inputs).unwrap();
        let copied = linear.with(&mut buffers, |input, segments, s, _| {
            lora_down(&input, segments, s.view_mut(), device.stream())?;
            let input = Input { s: Some(s.view().into()), ..input };
            let mut workspace = poisoned(&device, 1, dispatch::workspace_len(dispatch, &input, segments));
            dispatch::forward(dispatch, &input, segments, workspace.view_mut(), device.stream())
        });
        copied.unwrap();
        let copied = linear.download(&device, &buffers).unwrap().y;
        for (given, behind) in [(true, false), (false, false), (true, true)] {
            assert!(run(given, behind) == copied, "{linear:?} {given} {behind}");
        }
    }
}

/// dY with room for T, likewise.
#[test]
fn gradients_with_room_give_the_dx_of_those_that_are_copied() {
    let Some(library) = library() else { return };
    let (device, dispatch) = (device(), Dispatch::DequantizeCublasLt(&library));
    for linear in products() {
        let (m, k, columns, parts) = (linear.m, linear.k, linear.columns(), shapes(&linear));
        let (dense, n) = (linear.dense, parts.iter().map(|(n, _)| n).sum::<usize>());
        let lddy = (n + columns).next_multiple_of(8) + 8;
        let dx = LinearDx { linear, accumulate: false, dropout: None };
        let inputs = dx.inputs();
        let mut values = Vec::new();
        for token in 0..m {
            for (part, dy) in dx.linear.parts.iter().zip(&inputs.dy) {
                values.extend_from_slice(&dy[token * (part.n + part.pad)..][..part.n]);
            }
        }
        let scratch = linear_dx_product::workspace_len_of(m, k, &parts, dense, true);
        let run = |place: Option<(bool, bool)>| {
            let (mut buffers, mut dy) = (dx.upload(&device, &inputs).unwrap(), apart(&device, &values, n, lddy));
            let ((of_dy, _), (of_t, to_t)) = (raw(&mut dy, 0), raw(&mut dy, n));
            let mut out = poisoned(&device, m, k);
            let done = dx.with(&mut buffers, |backward, segments, _, t, _| {
                let mut column = 0;
                let joined = segments.iter().map(|segment| {
                    let dy = of_dy.skip(column);
                    column += segment.n;
                    SegmentBackward { dy, lddy, ..*segment }
                });
                let joined: Vec<SegmentBackward<'_>> = joined.collect();
                lora_dy_b(&backward, &joined, t.view_mut(), device.stream())?;
                let gradient = InputGradient { dx: out.view_mut(), lddx: k, accumulate: false };
                let t: Rows<'_> = t.view().into();
                let (given, room) = match place {
                    Some((_, true)) => {
                        lora_dy_b(&backward, &joined, RowsMut::apart(to_t, lddy), device.stream())?;
                        (Some(Rows::apart(of_t, lddy)), false)
                    }
                    Some((given, false)) => (given.then_some(t), true),
                    None => (Some(t), false),
                };
                let backward = Backward { t: given, ..backward };
                let len = if room { scratch } else { dispatch::dx_workspace_len(dispatch, &backward, &joined) };
                assert!(place.is_none() || len == scratch, "weights alone");
                let mut workspace = poisoned(&device, 1, len);
                let workspace = workspace.view_mut();
                let workspace = if room { Workspace::with_room(workspace) } else { workspace.into() };
                dispatch::dx(dispatch, &backward, &joined, gradient, workspace, device.stream())
            });
            done.unwrap();
            if place.is_some() {
                let t = dx.download(&device, &buffers).unwrap().t;
                for (token, row) in bits(&device, &dy, n + columns, lddy).chunks(n + columns).enumerate() {
                    let dy: Vec<u16> = values[token * n..][..n].iter().map(|dy| dy.to_bits()).collect();
                    assert!(row[..n] == dy && row[n..] == t[token * columns..][..columns], "token {token}");
                }
            } else {
                bits(&device, &dy, n, lddy);
            }
            bits(&device, &out, k, k)
        };
        let copied = run(None);
        for place in [(true, false), (false, false), (true, true)] {
            assert!(run(Some(place)) == copied, "{:?} {place:?}", dx.linear);
        }
    }
}

/// Rooms that are too small, or of rows that a library cannot read.
#[test]
fn room_that_is_none_is_refused() {
    let Some(library) = library() else { return };
    let (device, dispatch) = (device(), Dispatch::DequantizeCublasLt(&library));
    let linear = products().pop().expect("a layer");
    let columns = linear.columns();
    for pad_x in [0, columns - 8, columns + 4] {
        let linear = Linear { pad_x, ..linear.clone() };
        let inputs = linear.inputs();
        let mut buffers = linear.upload(&device, &inputs).unwrap();
        let done = linear.with(&mut buffers, |input, segments, s, _| {
            lora_down(&input, segments, s.view_mut(), device.stream())?;
            let input = Input { s: Some(s.view().into()), ..input };
            let mut workspace = poisoned(&device, 1, dispatch::workspace_len(dispatch, &input, segments));
            let workspace = Workspace::with_room(workspace.view_mut());
            dispatch::forward(dispatch, &input, segments, workspace, device.stream())
        });
        let error = done.unwrap_err().to_string();
        assert!(error.contains("linear_product"), "{error}");
    }
}
