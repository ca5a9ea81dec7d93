//! The optimizer as an [`Operation`]: two updates with clipping, against the plain Rust references bit for bit.

use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::adamw::{GradientState, STATE_LEN, States, Tensor, Tensors, rates};
use qlora_kernels::optim::AdamW;
use qlora_kernels::optim8bit::{BLOCK_SIZE, adamw_blockwise};
use qlora_kernels::reference::adamw;
use qlora_kernels::rng;

pub const UPDATES: u64 = 2;

#[derive(Clone, Debug)]
pub struct Described {
    pub n: usize,
    /// Index into [`OptimizerStep::rates`]
    pub rate: usize,
    pub blockwise: bool,
    pub working: bool,
}

#[derive(Clone, Debug)]
pub struct OptimizerStep {
    pub tensors: Vec<Described>,
    /// (rate, decay) of the tensors
    pub rates: Vec<(f64, f64)>,
    pub max_norm: f64,
    pub seed: u64,
    /// (tensor, element, value): gradients that are not finite
    pub bad: Vec<(usize, usize, f32)>,
}

/// Values and gradients of each tensor; one gradient serves both updates.
pub type Inputs = Vec<(Vec<f32>, Vec<f32>)>;

pub enum DeviceStates {
    F32 { m: Buffer<f32>, v: Buffer<f32> },
    Blockwise8 { m: Buffer<u8>, m_absmax: Buffer<f32>, v: Buffer<u8>, v_absmax: Buffer<f32> },
}

pub struct DeviceTensor {
    value: Buffer<f32>,
    working: Option<Buffer<bf16>>,
    gradient: Buffer<f32>,
    states: DeviceStates,
}

pub struct Buffers {
    pub tensors: Vec<DeviceTensor>,
    pub table: Option<Buffer<u64>>,
    pub rates: Vec<Buffer<f32>>,
    pub state: Buffer<u64>,
    pub workspace: Buffer<u64>,
}

/// Bits of value, working copy, and the parts of the states.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    pub state: [u64; STATE_LEN],
    pub tensors: Vec<Vec<Vec<u32>>>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn widen(codes: &[u8]) -> Vec<u32> {
    codes.iter().map(|&code| code.into()).collect()
}

fn working_bits(value: &[f32]) -> Vec<u32> {
    value.iter().map(|&x| bf16::from_f32(x).to_bits().into()).collect()
}

impl OptimizerStep {
    fn settings(&self, step: u64) -> Vec<AdamW> {
        let setting = |&(learning_rate, weight_decay): &(f64, f64)| AdamW {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay,
            step,
        };
        self.rates.iter().map(setting).collect()
    }

    pub fn views<'a>(&self, tensors: &'a mut [DeviceTensor]) -> Result<Tensors<'a>> {
        let view = |(described, tensor): (&Described, &'a mut DeviceTensor)| Tensor {
            value: tensor.value.view_mut(),
            working: tensor.working.as_mut().map(Buffer::view_mut),
            gradient: tensor.gradient.view(),
            states: match &mut tensor.states {
                DeviceStates::F32 { m, v } => States::F32 { m: m.view_mut(), v: v.view_mut() },
                DeviceStates::Blockwise8 { m, m_absmax, v, v_absmax } => States::Blockwise8 {
                    m: m.view_mut(),
                    m_absmax: m_absmax.view_mut(),
                    v: v.view_mut(),
                    v_absmax: v_absmax.view_mut(),
                },
            },
            rate: described.rate,
        };
        Tensors::new(self.tensors.iter().zip(tensors).map(view).collect())
    }

    /// The norm in another order of summation.
    fn norm(&self, inputs: &Inputs) -> f64 {
        inputs.iter().flat_map(|(_, g)| g).map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
    }

    fn expected(&self, inputs: &Inputs, scale: f32) -> Vec<Vec<Vec<u32>>> {
        let update = |(described, (value, gradient)): (&Described, &(Vec<f32>, Vec<f32>))| {
            let (n, blocks) = (described.n, described.n.div_ceil(BLOCK_SIZE));
            let mut value = value.clone();
            let skipped = !self.bad.is_empty();
            let settings = |step| self.settings(step)[described.rate];
            let states = if described.blockwise {
                let (mut m, mut v) = (vec![0u8; n], vec![0u8; n]);
                let (mut m_absmax, mut v_absmax) = (vec![0.0; blocks], vec![0.0; blocks]);
                for step in (1..=UPDATES).filter(|_| !skipped) {
                    let (a, b) = (&mut m_absmax, &mut v_absmax);
                    adamw_blockwise(&settings(step), scale, gradient, &mut value, &mut m, a, &mut v, b);
                }
                vec![widen(&m), bits(&m_absmax), widen(&v), bits(&v_absmax)]
            } else {
                let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
                for step in (1..=UPDATES).filter(|_| !skipped) {
                    adamw(&settings(step), scale, gradient, &mut value, &mut m, &mut v);
                }
                vec![bits(&m), bits(&v)]
            };
            let mut parts = vec![bits(&value)];
            if described.working {
                // Poisoned, and left alone where nothing is updated.
                parts.push(if skipped { vec![0x7FFF; n] } else { working_bits(&value) });
            }
            parts.extend(states);
            parts
        };
        self.tensors.iter().zip(inputs).map(update).collect()
    }
}

impl Operation for OptimizerStep {
    type Inputs = Inputs;
    type Buffers = Buffers;
    type Output = Updated;

    fn name(&self) -> String {
        "AdamW and gradient norm".into()
    }

    fn shape(&self) -> String {
        let elements: usize = self.tensors.iter().map(|t| t.n).sum();
        format!("{} tensors, {elements} elements", self.tensors.len())
    }

    fn flops(&self) -> f64 {
        0.0
    }

    /// The gradient is read for the norm, too.
    fn bytes(&self) -> f64 {
        let of = |t: &Described| t.n * (4 + 12 + if t.working { 2 } else { 0 } + if t.blockwise { 4 } else { 16 });
        self.tensors.iter().map(of).sum::<usize>() as f64
    }

    /// Gradients of many magnitudes, some of them 0.
    fn inputs(&self) -> Inputs {
        let mut stream = rng::RngStream::new(self.seed, 3);
        let mut inputs: Inputs = Vec::new();
        for tensor in &self.tensors {
            let value = (0..tensor.n).map(|_| stream.uniform() - 0.5).collect();
            let mut gradient = || match stream.below(16) {
                0 => 0.0,
                e => (stream.uniform() - 0.5) * (-(e as f32)).exp2(),
            };
            inputs.push((value, (0..tensor.n).map(|_| gradient()).collect()));
        }
        for &(tensor, element, value) in &self.bad {
            inputs[tensor].1[element] = value;
        }
        inputs
    }

    fn upload(&self, device: &Device, inputs: &Inputs) -> Result<Buffers> {
        let upload = |(described, (value, gradient)): (&Described, &(Vec<f32>, Vec<f32>))| {
            let (n, blocks) = (described.n, described.n.div_ceil(BLOCK_SIZE));
            let floats = |len: usize| device.upload(&vec![0.0f32; len]);
            let codes = || device.upload(&vec![0u8; n]);
            Ok(DeviceTensor {
                value: device.upload(value)?,
                working: match described.working {
                    true => Some(device.upload(&vec![bf16::from_bits(0x7FFF); n])?),
                    false => None,
                },
                gradient: device.upload(gradient)?,
                states: if described.blockwise {
                    let (m, v) = (codes()?, codes()?);
                    DeviceStates::Blockwise8 { m, m_absmax: floats(blocks)?, v, v_absmax: floats(blocks)? }
                } else {
                    DeviceStates::F32 { m: floats(n)?, v: floats(n)? }
                },
            })
        };
        let mut tensors = self.tensors.iter().zip(inputs).map(upload).collect::<Result<Vec<_>>>()?;
        let views = self.views(&mut tensors)?;
        let (table, workspace) = (views.table()?, views.workspace_len());
        let rates = (1..=UPDATES).map(|step| device.upload(&rates(&self.settings(step)))).collect::<Result<_>>()?;
        Ok(Buffers {
            tensors,
            table: Some(device.upload(&table)?),
            rates,
            state: device.upload(&[u64::MAX; STATE_LEN])?,
            workspace: device.upload(&vec![u64::MAX; workspace])?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let Buffers { tensors, table, rates, state, workspace } = buffers;
        let table = table.as_ref().expect("uploaded").view();
        let mut tensors = self.views(tensors)?;
        let norm = (state.view_mut(), workspace.view_mut());
        tensors.gradient_norm(table, rates[0].view(), self.max_norm, norm.0, norm.1, stream)?;
        for rates in rates {
            tensors.update(table, rates.view(), Some(state.view()), stream)?;
        }
        Ok(())
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Updated> {
        let tensor = |tensor: &DeviceTensor| {
            let mut parts = vec![bits(&device.download(&tensor.value)?)];
            if let Some(working) = &tensor.working {
                parts.push(device.download(working)?.iter().map(|x| x.to_bits().into()).collect());
            }
            match &tensor.states {
                DeviceStates::F32 { m, v } => {
                    parts.extend([bits(&device.download(m)?), bits(&device.download(v)?)]);
                }
                DeviceStates::Blockwise8 { m, m_absmax, v, v_absmax } => parts.extend([
                    widen(&device.download(m)?),
                    bits(&device.download(m_absmax)?),
                    widen(&device.download(v)?),
                    bits(&device.download(v_absmax)?),
                ]),
            }
            Ok(parts)
        };
        let state = device.download(&buffers.state)?;
        Ok(Updated {
            state: [state[0], state[1]],
            tensors: buffers.tensors.iter().map(tensor).collect::<Result<Vec<_>>>()?,
        })
    }

    /// All of it. The norm is an f64 sum of n squares in another order: within n roundings. Given its scale, everything
    /// else is exact.
    fn check(&self, inputs: &Inputs, output: &Updated, _: usize) -> std::result::Result<(), String> {
        let found = GradientState::from_words(output.state);
        let first = self.bad.iter().map(|bad| bad.0).min();
        if found.not_finite != first {
            return Err(format!("named tensor {:?}, expected {first:?}", found.not_finite));
        }
        if first.is_none() {
            let (norm, n) = (self.norm(inputs), inputs.iter().map(|(g, _)| g.len()).sum::<usize>() as f64);
            if (found.norm - norm).abs() > n * f64::EPSILON * norm {
                return Err(format!("norm {}, expected {norm}", found.norm));
            }
            let factor = self.max_norm / (found.norm + 1e-6);
            let scale = if self.max_norm > 0.0 && factor < 1.0 { factor as f32 } else { 1.0 };
            if found.scale != scale {
                return Err(format!("scale {}, expected {scale}", found.scale));
            }
        }
        let expected = self.expected(inputs, found.scale);
        for (t, (found, expected)) in output.tensors.iter().zip(&expected).enumerate() {
            for (part, (found, expected)) in found.iter().zip(expected).enumerate() {
                if let Some(i) = (0..expected.len().max(found.len())).find(|&i| found.get(i) != expected.get(i)) {
                    let (found, expected) = (found.get(i), expected.get(i));
                    return Err(format!("tensor {t}, part {part}, element {i}: {found:x?}, expected {expected:x?}"));
                }
            }
        }
        Ok(())
    }
}
