//! The whole layer, as a training step calls it: forward, dX, dA and dB of two segments with dropout, each gradient
//! against finite differences of the f64 reference's forward pass. The reference's loss is affine in every single
//! element, so that differences have no truncation error; what is left are the kernels' own roundings, bounded from the
//! reference's terms.

use half::bf16;
use lab::device::{Tally, device, set_schedule, to_bf16, weights};
use lab::low_rank::factors;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::ops::linear::{Dropout, Input, Lora, Segment, Weight, lora_columns};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::linear_dx::InputGradient;
use qlora_kernels::ops::lora_gradients::{ForwardInputs, PairGradient, lora_gradients, workspace_bytes};
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::ops::{linear_dx, linear_forward, lora_down, lora_dy_b};
use qlora_kernels::reference::{self, LoraTerm};
use qlora_kernels::rng::RngStream;
use qlora_kernels::weights::Nf4Weight;

const STEP: f64 = 1.0 / 2048.0;

#[derive(Clone)]
struct Part {
    n: usize,
    r: usize,
    scale: f32,
    nf4: Nf4Matrix,
    a: Vec<bf16>,
    b: Vec<bf16>,
    /// The loss is Σ dy · y.
    dy: Vec<bf16>,
}

#[derive(Clone)]
struct Layer {
    m: usize,
    k: usize,
    dense: bool,
    x: Vec<bf16>,
    forward: Dropout<'static>,
    backward: Dropout<'static>,
    parts: Vec<Part>,
}

/// The kernels' results of one part, in f64.
struct Gradients {
    dx: Vec<f64>,
    y: Vec<Vec<f64>>,
    da: Vec<Vec<f64>>,
    db: Vec<Vec<f64>>,
}

fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| x.abs()).collect()
}

impl Layer {
    fn new(m: usize, k: usize, widths: &[(usize, usize)], dense: bool, seed: u64) -> Self {
        let mut stream = RngStream::new(seed, 5);
        let mut numbers =
            |len: usize| -> Vec<bf16> { to_bf16(&(0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect::<Vec<_>>()) };
        let part = |&(n, r): &(usize, usize)| {
            let options = Nf4Options { block_size: 64, double_quant: true };
            let nf4 = Nf4Matrix::quantize(&weights(n * k, seed), n, k, &options).unwrap();
            Part { n, r, scale: 1.5, nf4, a: numbers(r * k), b: numbers(n * r), dy: numbers(m * n) }
        };
        let parts = widths.iter().map(part).collect();
        let dropout =
            Dropout { p: 0.25, seed, dropout_id: 19, dropout_step: 7, first_token: 1000, step_on_device: None };
        Self { m, k, dense, x: numbers(m * k), forward: dropout, backward: dropout, parts }
    }

    /// One step on the device.
    fn run(&self) -> Gradients {
        let (device, m, k) = (device(), self.m, self.k);
        let stream = device.stream();
        let zeros = |len: usize| device.upload(&vec![bf16::ZERO; len]).unwrap();
        let floats = |len: usize| device.upload(&vec![0.0f32; len]).unwrap();
        let x = device.upload(&self.x).unwrap();
        let mut dx_buffer = zeros(m * k);
        let mut parts = Vec::new();
        for part in &self.parts {
            let upload = |values: &[bf16]| device.upload(values).unwrap();
            let weight = Nf4Weight::upload(&device, &part.nf4, Layout::RowMajor).unwrap();
            let inputs = [upload(&part.nf4.dequantize_bf16()), upload(&part.a), upload(&part.b), upload(&part.dy)];
            parts.push((weight, inputs, zeros(m * part.n), floats(part.r * k), floats(part.n * part.r)));
        }
        let (mut ahead, mut back, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
        for (part, (nf4, [dense, a, b, dy], y, da, db)) in self.parts.iter().zip(&mut parts) {
            let (n, r, scale) = (part.n, part.r, part.scale);
            let weight = if self.dense { Weight::Dense(dense.view()) } else { Weight::Nf4(nf4.view()) };
            let lora = Some(Lora { r, scale, a: a.view(), b: b.view(), adapters: None });
            ahead.push(Segment { n, weight, lora, bias: None, y: y.view_mut(), ldy: n });
            back.push(SegmentBackward { n, weight, lora, dy: dy.view(), lddy: n });
            gradients.push(PairGradient { da: Some(da.view_mut()), db: Some(db.view_mut()) });
        }
        let columns = lora_columns(&ahead);
        let (mut s, mut t, mut none) = (zeros(m * columns), zeros(m * columns), zeros(0));
        let input = Input { m, k, x: x.view(), ldx: k, s: None, dropout: Some(self.forward) };
        lora_down(&input, &mut ahead, s.view_mut(), stream).unwrap();
        linear_forward(&Input { s: Some(s.view().into()), ..input }, &mut ahead, none.view_mut(), stream).unwrap();
        let shared = Backward { m, k, t: None, dropout: Some(self.backward) };
        lora_dy_b(&shared, &back, t.view_mut(), stream).unwrap();
        let shared = Backward { t: Some(t.view().into()), ..shared };
        let gradient = InputGradient { dx: dx_buffer.view_mut(), lddx: k, accumulate: false };
        linear_dx(&shared, &back, gradient, none.view_mut(), stream).unwrap();
        let inputs = ForwardInputs { x: x.view(), ldx: k, s: s.view().into() };
        let bytes = workspace_bytes(&shared, &back, &inputs, &mut gradients).unwrap();
        let mut workspace = device.upload(&vec![0xffu8; bytes]).unwrap();
        lora_gradients(&shared, &back, &inputs, &mut gradients, workspace.view_mut(), stream).unwrap();
        let f64s = |buffer| device.download::<f32>(buffer).unwrap().into_iter().map(f64::from).collect();
        Gradients {
            dx: wide(&device.download(&dx_buffer).unwrap()),
            y: parts.iter().map(|part| wide(&device.download(&part.2).unwrap())).collect(),
            da: parts.iter().map(|part| f64s(&part.3)).collect(),
            db: parts.iter().map(|part| f64s(&part.4)).collect(),
        }
    }

    fn factors(&self) -> Vec<f64> {
        factors(self.forward, &(0..self.m).collect::<Vec<_>>(), self.k)
    }

    /// Y of one part and the loss's share, in f64.
    fn loss(&self, part: &Part, x: &[f64], a: &[f64], b: &[f64]) -> (Vec<f64>, f64) {
        let lora = LoraTerm { a, b, r: part.r, scale: f64::from(part.scale) };
        let (mut s, mut y) = (vec![0.0; self.m * part.r], vec![0.0; self.m * part.n]);
        reference::lora_down(x, Some(&self.factors()), &lora, &mut s, self.k);
        reference::linear(x, &wide(&part.nf4.dequantize_bf16()), None, Some((&s, &lora)), &mut y, part.n, self.k);
        let loss = y.iter().zip(&part.dy).map(|(y, dy)| y * dy.to_f64()).sum();
        (y, loss)
    }

    /// |found − difference quotient| of about `most` elements of x, against its bound.
    fn quotients(
        &self,
        what: &str,
        found: &[f64],
        at: &[f64],
        bounds: &[f64],
        // At least the rounding error of one loss.
        rounding: f64,
        loss: impl Fn(&[f64]) -> f64,
    ) -> Result<(), String> {
        let stride = (at.len() / 150).max(1);
        let mut moved = at.to_vec();
        for i in (0..at.len()).step_by(stride).chain([at.len() - 1]) {
            moved[i] = at[i] + STEP;
            let above = loss(&moved);
            moved[i] = at[i] - STEP;
            let below = loss(&moved);
            moved[i] = at[i];
            let quotient = (above - below) / (2.0 * STEP);
            let bound = bounds[i] + rounding / STEP;
            let error = (found[i] - quotient).abs();
            if error > bound {
                return Err(format!("{what}[{i}] is {}, by differences {quotient}: {error:e} > {bound:e}", found[i]));
            }
        }
        Ok(())
    }

    /// The gradients of `found` (of this layer, or of one with a fault) against those of this layer's loss.
    fn check(&self, found: &Gradients) -> Result<(), String> {
        let (m, k, x, factors) = (self.m, self.k, wide(&self.x), self.factors());
        let unit = 2f64.powi(-24);
        let half = 2f64.powi(-8);
        // A loss adds at most this many terms to each other, and its terms' magnitudes add up to `loss_size`.
        let depth = self.parts.iter().map(|part| m * part.n + k + part.r + 4).sum::<usize>() as f64;
        let mut loss_size = 0.0;
        let mut dx_bounds: Vec<f64> = found.dx.iter().map(|dx| half * dx.abs()).collect();
        for (i, part) in self.parts.iter().enumerate() {
            let Part { n, r, .. } = *part;
            let (a, b, w) = (wide(&part.a), wide(&part.b), wide(&part.nf4.dequantize_bf16()));
            let dy = wide(&part.dy);
            let lora = LoraTerm { a: &a, b: &b, r, scale: f64::from(part.scale) };
            let (mut s, mut t) = (vec![0.0; m * r], vec![0.0; m * r]);
            reference::lora_down(&x, Some(&factors), &lora, &mut s, k);
            reference::lora_dy_b(&dy, &lora, &mut t, n);
            // S and T are rounded to bf16; every sum rounds in f32, over magnitudes.
            let [x_size, a_size, b_size, w_size, dy_size] = [&x, &a, &b, &w, &dy].map(|values| absolute(values));
            let sizes = LoraTerm { a: &a_size, b: &b_size, ..lora };
            let (mut s_size, mut t_size) = (vec![0.0; m * r], vec![0.0; m * r]);
            reference::lora_down(&x_size, Some(&factors), &sizes, &mut s_size, k);
            reference::lora_dy_b(&dy_size, &sizes, &mut t_size, n);
            let terms = (n + k + m + r + 8) as f64;
            let rounded = |values: &[f64], sizes: &[f64]| -> Vec<f64> {
                values.iter().zip(sizes).map(|(value, size)| half * value.abs() + terms * unit * size).collect()
            };
            let (s_error, t_error) = (rounded(&s, &s_size), rounded(&t, &t_size));
            let add = |to: &mut [f64], s: &[f64], t: &[f64], factor: f64| {
                let (mut dx, mut da, mut db) = (vec![0.0; m * k], vec![0.0; r * k], vec![0.0; n * r]);
                let weight: &[f64] = if factor < 1.0 { &w_size } else { &vec![0.0; n * k] };
                reference::linear_dx(&dy_size, weight, Some((t, &sizes)), Some(&factors), &mut dx, n, k);
                reference::lora_gradients(&x_size, Some(&factors), &dy_size, s, t, &mut da, &mut db, n, k, r);
                to.iter_mut().zip(&dx).for_each(|(to, dx)| *to += factor * dx);
                [da, db].map(|values| values.into_iter().map(|value| factor * value).collect::<Vec<f64>>())
            };
            let [mut da_bounds, mut db_bounds] = add(&mut dx_bounds, &s_error, &t_error, 1.0);
            let sums = add(&mut dx_bounds, &s_size, &t_size, terms * unit);
            da_bounds.iter_mut().zip(&sums[0]).for_each(|(bound, sum)| *bound += sum);
            db_bounds.iter_mut().zip(&sums[1]).for_each(|(bound, sum)| *bound += sum);

            let (y, _) = self.loss(part, &x, &a, &b);
            let (mut low, mut high) = (vec![0.0; m * n], vec![0.0; m * n]);
            reference::linear(&x_size, &vec![0.0; n * k], None, Some((&s_error, &sizes)), &mut low, n, k);
            reference::linear(&x_size, &w_size, None, Some((&s_size, &sizes)), &mut high, n, k);
            loss_size += high.iter().zip(&dy_size).map(|(y, dy)| y * dy).sum::<f64>();
            let rounding = depth * 2f64.powi(-53) * loss_size;
            for (at, (&found, &y)) in found.y[i].iter().zip(&y).enumerate() {
                let bound = half * y.abs() + low[at] * (1.0 + half) + terms * unit * high[at];
                if (found - y).abs() > bound {
                    return Err(format!("Y[{at}] of segment {i} is {found}, expected {y}, bound {bound}"));
                }
            }
            self.quotients("dA", &found.da[i], &a, &da_bounds, rounding, |a| self.loss(part, &x, a, &b).1)?;
            self.quotients("dB", &found.db[i], &b, &db_bounds, rounding, |b| self.loss(part, &x, &a, b).1)?;
        }
        let loss = |x: &[f64]| self.parts.iter().map(|part| self.loss(part, x, &wide(&part.a), &wide(&part.b)).1).sum();
        let rounding = depth * 2f64.powi(-53) * loss_size;
        self.quotients("dX", &found.dx, &x, &dx_bounds, rounding, loss)
    }
}

#[test]
fn gradients_of_the_layer_are_those_of_its_loss() {
    let tally = Tally::new("gradients of a layer", 1);
    for (case, (m, k, dense)) in
        [(40, 64, false), (40, 64, true), (5, 128, false), (33, 75, false)].into_iter().enumerate()
    {
        let layer = Layer::new(m, k, &[(24, 6), (40, 9)], dense, case as u64 + 3);
        set_schedule(case as u64);
        layer.check(&layer.run()).unwrap_or_else(|what| panic!("M {m}, K {k}, dense {dense}: {what}"));
        tally.case();
    }
}

/// Faults of a step, brought about through its inputs, must not pass for the layer's gradients.
#[test]
fn faults_of_the_step_are_seen() {
    for (m, k) in [(40, 64), (33, 75)] {
        let layer = Layer::new(m, k, &[(24, 6), (40, 9)], false, 21);
        let seen = |what: &str, change: &dyn Fn(&mut Layer)| {
            let mut wrong = layer.clone();
            change(&mut wrong);
            assert!(layer.check(&wrong.run()).is_err(), "{what} is not seen: M {m}, K {k}");
        };
        layer.check(&layer.run()).expect("the right layer passes");
        seen("a mask that differs between forward and backward", &|layer| layer.backward.dropout_step += 1);
        seen("a mask that no pass shares with the reference", &|layer| {
            layer.forward.dropout_id += 1;
            layer.backward.dropout_id += 1;
        });
        seen("a scale applied twice", &|layer| layer.parts[1].scale *= layer.parts[1].scale);
        seen("a dropped N tail", &|layer| {
            let n = layer.parts[0].n;
            layer.parts[0].dy.chunks_mut(n).for_each(|row| row[n - 1] = bf16::ZERO);
        });
        seen("a dropped token", &|layer| {
            let n = layer.parts[1].n;
            layer.parts[1].dy[(m - 1) * n..].fill(bf16::ZERO);
        });
    }
}
