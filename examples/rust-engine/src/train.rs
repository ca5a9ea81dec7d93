//! Training steps of one layer: forward, squared error, gradients of X, A and B, and LoRA+ AdamW, all but the error by
//! the kernels. The target is the same layer with another pair, the teacher's, so a pair that learns can reach it.

use crate::checks::{Worst, column, products, values};
use crate::memory::{Engine, Memory, Slice};
use crate::shape::{K, N, R, SCALE};
use half::bf16;
use qlora_kernels::ops::{linear_dx, linear_forward};
use qlora_kernels::ops::linear_dx::InputGradient;
use qlora_kernels::ops::adamw::{self, GradientState, States, Tensor, Tensors};
use qlora_kernels::ops::linear::{Input, Lora, Segment, Weight};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::lora_gradients::{self, ForwardInputs, PairGradient};
use qlora_kernels::ops::nf4;
use qlora_kernels::optim::AdamW;
use std::error::Error;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const STEPS: u64 = 30;
const M: usize = 24;
const RATE_A: f64 = 1e-3;
/// LoRA+: B learns faster than A.
const RATIO: f64 = 16.0;
/// The loss has to fall to less than a tenth.
const FALL: f64 = 10.0;

/// A tensor in bf16, as the layer reads it, with an f32 master copy, a gradient and both moments.
struct Trainable {
    working: Slice<bf16>,
    value: Slice<f32>,
    gradient: Slice<f32>,
    m: Slice<f32>,
    v: Slice<f32>,
}

impl Trainable {
    fn new(engine: &Engine, values: &[bf16]) -> Result<Self> {
        let master: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
        let zeros = || engine.upload(&vec![0f32; values.len()]);
        let (gradient, m, v) = (zeros()?, zeros()?, zeros()?);
        Ok(Self { working: engine.upload(values)?, value: engine.upload(&master)?, gradient, m, v })
    }

    fn tensor(&mut self, rate: usize) -> Tensor<'_> {
        Tensor {
            value: self.value.view_mut(),
            working: Some(self.working.view_mut()),
            gradient: self.gradient.view(),
            states: States::F32 { m: self.m.view_mut(), v: self.v.view_mut() },
            rate,
        }
    }
}

fn rates(step: u64) -> Vec<f32> {
    let settings =
        |learning_rate| AdamW { learning_rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, step };
    adamw::rates(&[settings(RATE_A), settings(RATE_A * RATIO)])
}

/// The layer that is trained, and what a step leaves in it.
struct Layer<'a> {
    engine: &'a Engine,
    weight: nf4::Weight<'a>,
    x: Slice<bf16>,
    s: Slice<bf16>,
    t: Slice<bf16>,
    y: Slice<bf16>,
    dy: Slice<bf16>,
    dx: Slice<bf16>,
}

impl Layer<'_> {
    /// Y, and S beside it.
    fn forward(&mut self, a: &Slice<bf16>, b: &Slice<bf16>) -> Result<Vec<bf16>> {
        let lora = Lora { r: R, scale: SCALE, a: a.view(), b: b.view(), adapters: None };
        let weight = Weight::Nf4(self.weight);
        let mut segments = [Segment { n: N, weight, lora: Some(lora), bias: None, y: self.y.view_mut(), ldy: N }];
        let input = Input { m: M, k: K, x: self.x.view(), ldx: K, s: None, dropout: None };
        linear_forward(&input, &mut segments, self.s.view_mut(), self.engine.stream())?;
        self.engine.download(&self.y)
    }

    /// dX, for a layer below if there were one, and the gradients of A and B, which are added to.
    fn backward(&mut self, a: &mut Trainable, b: &mut Trainable) -> Result<()> {
        let stream = self.engine.stream();
        let lora = Lora { r: R, scale: SCALE, a: a.working.view(), b: b.working.view(), adapters: None };
        let weight = Weight::Nf4(self.weight);
        let segments = [SegmentBackward { n: N, weight, lora: Some(lora), dy: self.dy.view(), lddy: N }];
        let backward = Backward { m: M, k: K, t: None, dropout: None };
        let gradient = InputGradient { dx: self.dx.view_mut(), lddx: K, accumulate: false };
        // The workspace is T itself: given its room, the call computes it.
        linear_dx(&backward, &segments, gradient, self.t.view_mut(), stream)?;

        let backward = Backward { t: Some(self.t.view().into()), ..backward };
        let inputs = ForwardInputs { x: self.x.view(), ldx: K, s: self.s.view().into() };
        let mut gradients = [PairGradient { da: Some(a.gradient.view_mut()), db: Some(b.gradient.view_mut()) }];
        let bytes = lora_gradients::workspace_bytes(&backward, &segments, &inputs, &mut gradients)?;
        // An engine keeps this from step to step. It may be none.
        let mut workspace = self.engine.upload(&vec![0u8; bytes.max(1)])?;
        lora_gradients::lora_gradients(&backward, &segments, &inputs, &mut gradients, workspace.view_mut(), stream)?;
        // The download waits for the work before the workspace is freed.
        self.engine.download(&self.t).map(drop)
    }

    /// The largest error of T, dX, dA and dB as a share of its bound. `w`: the weight as bf16 `[N, K]`.
    fn worst_error(&self, w: &[bf16], a: &Trainable, b: &Trainable) -> Result<f64> {
        let [x, s, t, dy, dx] =
            [&self.x, &self.s, &self.t, &self.dy, &self.dx].map(|slice| self.engine.download(slice));
        let (x, s, t, dy, dx) = (x?, s?, t?, dy?, dx?);
        let (da, db) = (self.engine.download(&a.gradient)?, self.engine.download(&b.gradient)?);
        let (a, b) = (self.engine.download(&a.working)?, self.engine.download(&b.working)?);
        let mut worst = Worst::default();
        for row in 0..M {
            let (dy, t) = (&dy[row * N..][..N], &t[row * R..][..R]);
            for r in 0..R {
                worst.compare_bf16(t[r], products(dy, column(&b, R, r), SCALE));
            }
            for k in 0..K {
                let terms = products(dy, column(w, K, k), 1.0).chain(products(t, column(&a, K, k), 1.0));
                worst.compare_bf16(dx[row * K + k], terms);
            }
        }
        for r in 0..R {
            for k in 0..K {
                worst.compare_f32(da[r * K + k], products(column(&t, R, r), column(&x, K, k), 1.0));
            }
            for n in 0..N {
                worst.compare_f32(db[n * R + r], products(column(&dy, N, n), column(&s, R, r), 1.0));
            }
        }
        Ok(worst.0)
    }
}

/// Prints the losses and the largest error; true if all is well. `w`: the weight as bf16 `[N, K]`, for the checks.
pub fn train(engine: &Engine, weight: nf4::Weight<'_>, w: &[bf16]) -> Result<bool> {
    let empty = |columns: usize| engine.upload(&vec![bf16::NAN; M * columns]);
    let x = engine.upload(&values(M * K, 1.0, 11))?;
    let (s, t, y, dy, dx) = (empty(R)?, empty(R)?, empty(N)?, empty(N)?, empty(K)?);
    let mut layer = Layer { engine, weight, x, s, t, y, dy, dx };
    let teacher = (engine.upload(&values(R * K, 0.0625, 12))?, engine.upload(&values(N * R, 0.0625, 13))?);
    let target = layer.forward(&teacher.0, &teacher.1)?;

    // The pair that learns begins with B = 0.
    let mut a = Trainable::new(engine, &values(R * K, 0.0625, 14))?;
    let mut b = Trainable::new(engine, &[bf16::ZERO; N * R])?;
    let (table, words) = {
        let tensors = Tensors::new(vec![a.tensor(0), b.tensor(1)])?;
        (engine.upload(&tensors.table()?)?, tensors.workspace_len())
    };
    let mut state = engine.upload(&[0u64; adamw::STATE_LEN])?;
    let mut norm_workspace = engine.upload(&vec![0u64; words])?;
    let mut device_rates = engine.upload(&rates(1))?;

    let (mut losses, mut error) = (Vec::new(), 0.0);
    for step in 1..=STEPS {
        // The mean squared error and its gradient. An engine has a kernel for this; here it is the host's work.
        let y = layer.forward(&a.working, &b.working)?;
        let errors: Vec<f32> = y.iter().zip(&target).map(|(y, target)| y.to_f32() - target.to_f32()).collect();
        let dy: Vec<bf16> = errors.iter().map(|error| bf16::from_f32(2.0 * error / (M * N) as f32)).collect();
        let loss = errors.iter().map(|&error| f64::from(error).powi(2)).sum::<f64>() / (M * N) as f64;
        losses.push(loss);
        if step == 1 || step % 10 == 0 {
            println!("   rust-engine: step {step:2}, loss {loss:.6}");
        }
        engine.replace(&mut layer.dy, &dy)?;
        engine.replace(&mut a.gradient, &[0.0; R * K])?;
        engine.replace(&mut b.gradient, &[0.0; N * R])?;
        layer.backward(&mut a, &mut b)?;
        if step == STEPS {
            error = layer.worst_error(w, &a, &b)?; // B is not zero any more
        }

        engine.replace(&mut device_rates, &rates(step))?;
        let mut tensors = Tensors::new(vec![a.tensor(0), b.tensor(1)])?;
        let (table, rates, stream) = (table.view(), device_rates.view(), engine.stream());
        tensors.gradient_norm(table, rates, 1.0, state.view_mut(), norm_workspace.view_mut(), stream)?;
        tensors.update(table, rates, Some(state.view()), stream)?; // scales by what the norm says, on the device
    }

    let verdict = |good| if good { "ok" } else { "WRONG" };
    println!("{} rust-engine: T, dX, dA and dB: largest error {error:.3} of its bound", verdict(error <= 1.0));
    let words = engine.download(&state)?.try_into().map_err(|_| "the gradients' state has another length")?;
    if let Some(tensor) = GradientState::from_words(words).not_finite {
        return Err(format!("the gradient of tensor {tensor} is not finite").into());
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    let learned = last < first / FALL;
    println!("{} rust-engine: {STEPS} steps, loss {first:.6} to {last:.6}, 1/{FALL} of it asked for", verdict(learned));
    Ok(error <= 1.0 && learned)
}
