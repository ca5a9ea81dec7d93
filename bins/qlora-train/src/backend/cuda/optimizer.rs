//! Trainable tensors: the norm of their gradients and AdamW, each one launch over all of them.

use super::load::rounded;
use super::operands::{CudaParam, StateMemory, Training};
use super::{Cuda, zeros};
use crate::backend::{OptimizerState, ParamUpdate, StateFormat};
use crate::error::Result;
use crate::refuse;
use qlora_kernels::cuda::adamw::{self, GradientState, RATE_LEN, STATE_LEN, States, Tensor, Tensors};
use qlora_kernels::cuda::{Buffer, Device};

/// What the optimiser needs beside the tensors. It is made for a set of tensors when they are first used together.
pub struct OptimizerMemory {
    /// Number of the next tensor.
    next_id: u64,
    /// The tensors that the following are of, in order.
    ids: Vec<u64>,
    table: Buffer<u64>,
    /// A rate for each tensor.
    rates: Buffer<f32>,
    workspace: Buffer<u64>,
    state: Buffer<u64>,
}

impl OptimizerMemory {
    pub fn new(device: &Device, held: &mut u64) -> Result<Self> {
        let what = "the optimiser";
        Ok(Self {
            next_id: 0,
            ids: Vec::new(),
            table: zeros(device, held, what, 0)?,
            rates: zeros(device, held, what, 0)?,
            workspace: zeros(device, held, what, 0)?,
            state: zeros(device, held, what, STATE_LEN)?,
        })
    }

    fn bytes(&self) -> u64 {
        8 * (self.table.len() + self.workspace.len()) as u64 + 4 * self.rates.len() as u64
    }
}

/// Every tensor has a rate of its own, so that a changed rate changes no table.
fn tensors<'a>(params: Vec<&'a mut CudaParam>) -> Result<Tensors<'a>> {
    let mut described = Vec::with_capacity(params.len());
    for (rate, param) in params.into_iter().enumerate() {
        let training = param.training.as_mut().expect("only trained tensors are updated");
        let states = match &mut training.states {
            StateMemory::F32 { m, v } => States::F32 { m: m.view_mut(), v: v.view_mut() },
            StateMemory::Blockwise8 { m, m_absmax, v, v_absmax } => States::Blockwise8 {
                m: m.view_mut(),
                m_absmax: m_absmax.view_mut(),
                v: v.view_mut(),
                v_absmax: v_absmax.view_mut(),
            },
        };
        described.push(Tensor {
            value: param.value.view_mut(),
            working: Some(param.working.view_mut()),
            gradient: training.gradient.view(),
            states,
            rate,
        });
    }
    Ok(Tensors::new(described)?)
}

impl Cuda {
    pub(super) fn new_param(&mut self, values: &[f32], states: Option<StateFormat>) -> Result<CudaParam> {
        let what = "the low-rank terms";
        let value = self.upload(what, values)?;
        let working = self.upload(what, &rounded(values))?;
        let training = match states {
            None => None,
            Some(format) => {
                let states = format.zeros(values.len());
                Some(Training { gradient: self.zeros(what, values.len())?, states: self.upload_states(&states)? })
            }
        };
        self.optimizer.next_id += 1;
        Ok(CudaParam { id: self.optimizer.next_id, value, working, training })
    }

    fn upload_states(&mut self, states: &OptimizerState) -> Result<StateMemory> {
        let what = "the optimiser's states";
        Ok(match states {
            OptimizerState::F32 { m, v } => StateMemory::F32 { m: self.upload(what, m)?, v: self.upload(what, v)? },
            OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax } => StateMemory::Blockwise8 {
                m: self.upload(what, m)?,
                m_absmax: self.upload(what, m_absmax)?,
                v: self.upload(what, v)?,
                v_absmax: self.upload(what, v_absmax)?,
            },
        })
    }

    pub(super) fn download_states(&self, states: &StateMemory) -> Result<OptimizerState> {
        let device = &self.device;
        Ok(match states {
            StateMemory::F32 { m, v } => OptimizerState::F32 { m: device.download(m)?, v: device.download(v)? },
            StateMemory::Blockwise8 { m, m_absmax, v, v_absmax } => OptimizerState::Blockwise8 {
                m: device.download(m)?,
                m_absmax: device.download(m_absmax)?,
                v: device.download(v)?,
                v_absmax: device.download(v_absmax)?,
            },
        })
    }

    pub(super) fn put_back(&mut self, param: &mut CudaParam, values: &[f32], state: &OptimizerState) -> Result<()> {
        let n = param.value.len();
        if values.len() != n {
            refuse!("found {} values, expected {n}", values.len());
        }
        let Some(training) = &mut param.training else {
            refuse!("found {}, expected none: the tensor is not trained", state.describe());
        };
        let own = training.states.shape();
        if !own.fits(state) {
            refuse!("found {}, expected {}", state.describe(), own.describe());
        }
        let device = &self.device;
        device.write(&mut param.value, values)?;
        device.write(&mut param.working, &rounded(values))?;
        match (&mut training.states, state) {
            (StateMemory::F32 { m, v }, OptimizerState::F32 { m: m2, v: v2 }) => {
                device.write(m, m2)?;
                device.write(v, v2)?;
            }
            (
                StateMemory::Blockwise8 { m, m_absmax, v, v_absmax },
                OptimizerState::Blockwise8 { m: m2, m_absmax: m_absmax2, v: v2, v_absmax: v_absmax2 },
            ) => {
                device.write(m, m2)?;
                device.write(m_absmax, m_absmax2)?;
                device.write(v, v2)?;
                device.write(v_absmax, v_absmax2)?;
            }
            _ => unreachable!("their kinds were compared"),
        }
        Ok(())
    }

    pub(super) fn put_gradient_back(&mut self, param: &mut CudaParam, values: &[f32]) -> Result<()> {
        let own = param.training.as_ref().map_or(0, |training| training.gradient.len());
        if values.len() != own {
            refuse!("found a gradient of {} values, expected {own}", values.len());
        }
        if let Some(training) = &mut param.training {
            self.device.write(&mut training.gradient, values)?;
        }
        Ok(())
    }

    /// Makes table and workspace those of these tensors; nothing is to do after the first step.
    fn prepare(&mut self, ids: Vec<u64>, tensors: &Tensors) -> Result<()> {
        if self.optimizer.ids == ids {
            return Ok(());
        }
        let what = "the optimiser";
        self.bytes -= self.optimizer.bytes();
        self.optimizer.ids.clear();
        self.optimizer.table = self.upload(what, &tensors.table()?)?;
        self.optimizer.rates = self.zeros(what, ids.len() * RATE_LEN)?;
        self.optimizer.workspace = self.zeros(what, tensors.workspace_len())?;
        self.optimizer.ids = ids;
        Ok(())
    }

    /// NaN or an infinity if a gradient is not finite.
    pub(super) fn norm(&mut self, params: Vec<&mut CudaParam>) -> Result<f64> {
        if params.is_empty() {
            return Ok(0.0);
        }
        let ids = params.iter().map(|param| param.id).collect();
        let tensors = tensors(params)?;
        self.prepare(ids, &tensors)?;
        let OptimizerMemory { table, rates, workspace, state, .. } = &mut self.optimizer;
        let stream = self.device.stream();
        tensors.gradient_norm(table.view(), rates.view(), 0.0, state.view_mut(), workspace.view_mut(), stream)?;
        let words = self.device.download(state)?;
        Ok(GradientState::from_words([words[0], words[1]]).norm)
    }

    pub(super) fn update(&mut self, updates: Vec<ParamUpdate<'_, CudaParam>>, gradient_scale: f32) -> Result<()> {
        if updates.is_empty() {
            return Ok(());
        }
        let settings: Vec<_> = updates.iter().map(|update| update.settings).collect();
        let params: Vec<_> = updates.into_iter().map(|update| update.param).collect();
        let ids = params.iter().map(|param| param.id).collect();
        let mut tensors = tensors(params)?;
        self.prepare(ids, &tensors)?;
        let OptimizerMemory { table, rates, state, .. } = &mut self.optimizer;
        self.device.write(rates, &adamw::rates(&settings))?;
        let chosen = GradientState { norm: 0.0, scale: gradient_scale, not_finite: None };
        self.device.write(state, &chosen.to_words())?;
        let stream = self.device.stream();
        Ok(tensors.update(table.view(), rates.view(), Some(state.view()), stream)?)
    }
}
