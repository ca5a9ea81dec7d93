//! Trainable tensors: the norm of their gradients and AdamW, each one launch over all of them.

use super::Cuda;
use super::memory::{DeviceMemory, StagedBuffer, fetch};
use super::operands::{CudaParam, StateMemory, Training};
use super::optimizer_memory::{OptimizerMemory, TABLES};
use super::optimizer_pieces;
use super::paged_states::PagedStates;
use super::weights::rounded;
use crate::backend::{Optimizer, OptimizerState, ParamUpdate, StateFormat};
use crate::bail_usage;
use crate::error::{Error, Result};
use qlora_kernels::device::{Buffer, Others, RoundTrip};
use qlora_kernels::ops::adamw::{self, GradientState, RATE_LEN, States, Tensor, Tensors};
use qlora_kernels::optim8bit::BLOCK_SIZE;

/// The plan's lines.
const PARAMS: &str = "LoRA A and B";
const GRADIENTS: &str = "LoRA gradients";
const STATES: &str = "AdamW states";
const READING: &str = "gradients on their way to other processes";

/// Values of gradients that are copied to the host, and back, at a time.
const PIECE: usize = 1 << 19;
/// Pinned host memory that gradients go through, where the host adds them up over processes.
pub const READING_BYTES: u64 = 4 * RoundTrip::pinned_len(PIECE) as u64;

/// Every tensor has a rate of its own, so that a changed rate changes no table.
fn tensors<'a>(params: &'a mut [&mut CudaParam]) -> Result<Tensors<'a>> {
    let mut described = Vec::with_capacity(params.len());
    for (rate, param) in params.iter_mut().enumerate() {
        let param = &mut **param;
        let training = param.training.as_mut().expect("only trained tensors are updated");
        let states = match &mut training.states {
            StateMemory::F32 { m, v } => States::F32 { m: m.view_mut(), v: v.view_mut() },
            StateMemory::Blockwise8 { m, m_absmax, v, v_absmax } => States::Blockwise8 {
                m: m.view_mut(),
                m_absmax: m_absmax.view_mut(),
                v: v.view_mut(),
                v_absmax: v_absmax.view_mut(),
            },
            StateMemory::Paged(_) => States::Elsewhere,
        };
        described.push(Tensor {
            value: param.value.as_mut().map(Buffer::view_mut).unwrap_or_default(),
            working: Some(param.working.view_mut()),
            gradient: training.gradient.view(),
            states,
            rate,
        });
    }
    Ok(Tensors::new(described)?)
}

impl Cuda {
    /// Gradients on their way through the host's memory.
    fn reading(&mut self) -> Result<&mut RoundTrip> {
        self.reading.as_mut().ok_or_else(|| Error::Failed("no gradient is on its way to the host".to_owned()))
    }

    /// A trainable tensor; the plan's lines are those of its values and its gradient. One that operations read in f32
    /// keeps its master copy on the device.
    pub(super) fn trained(
        &mut self,
        [line, gradients]: [&'static str; 2],
        len: usize,
        states: Option<StateFormat>,
        is_read_in_f32: bool,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaParam> {
        let memory = &self.memory;
        let waits =
            states.is_some() && !is_read_in_f32 && self.optimizer.paged.as_ref().is_some_and(|paged| paged.has_masters);
        let values = memory.device().map(|_| init()).transpose()?;
        let in_bf16 = values.as_deref().map(rounded);
        let value = if waits { None } else { Some(memory.upload(line, len, values.as_deref())?) };
        let working = memory.upload(line, len, in_bf16.as_deref())?;
        let training = match states {
            None => None,
            Some(format) => {
                let gradient = memory.zeros(gradients, len)?;
                let states = match &mut self.optimizer.paged {
                    Some(paged) => {
                        let tensor = paged.add(memory, format, len, waits)?;
                        if let Some(values) = values.as_deref().filter(|_| waits) {
                            paged.write_master(&tensor, values)?;
                        }
                        StateMemory::Paged(tensor)
                    }
                    None => zero_states(memory, format, len)?,
                };
                Some(Training { gradient, states })
            }
        };
        self.optimizer.next_id += 1;
        Ok(CudaParam { id: self.optimizer.next_id, value, working, training })
    }

    /// Overwrites both copies of a tensor with values of its length.
    fn write_values(&mut self, param: &mut CudaParam, values: &[f32]) -> Result<()> {
        match (&mut param.value, &param.training, &mut self.optimizer.paged) {
            (Some(value), ..) => self.memory.write(value, values)?,
            (None, Some(Training { states: StateMemory::Paged(tensor), .. }), Some(paged)) => {
                paged.write_master(tensor, values)?;
            }
            _ => unreachable!("a master copy that is not here waits beside the states"),
        }
        self.memory.write(&mut param.working, &rounded(values))
    }
}

impl Optimizer for Cuda {
    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaParam> {
        self.trained([PARAMS, GRADIENTS], len, states, false, init)
    }

    fn param_in_f32(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaParam> {
        self.trained([PARAMS, GRADIENTS], len, states, true, init)
    }

    fn param_values(&self, param: &CudaParam) -> Result<Vec<f32>> {
        match (&param.value, &param.training, &self.optimizer.paged) {
            (Some(value), ..) => self.memory.download(value),
            (None, Some(Training { states: StateMemory::Paged(tensor), .. }), Some(paged)) => paged.read_master(tensor),
            _ => unreachable!("a master copy that is not here waits beside the states"),
        }
    }

    fn optimizer_state(&self, param: &CudaParam) -> Result<Option<OptimizerState>> {
        let paged = self.optimizer.paged.as_ref();
        param.training.as_ref().map(|training| download_states(&self.memory, paged, &training.states)).transpose()
    }

    fn restore(&mut self, param: &mut CudaParam, values: Vec<f32>, state: OptimizerState) -> Result<()> {
        check_values(&values, param.working.len())?;
        let Some(training) = &param.training else {
            bail_usage!("found {}, expected none: the tensor is not trained", state.describe());
        };
        let own = training.states.shape();
        if !own.fits(&state) {
            bail_usage!("found {}, expected {}", state.describe(), own.describe());
        }
        self.write_values(param, &values)?;
        let Some(training) = &mut param.training else { return Ok(()) };
        let device = &self.memory;
        if let (StateMemory::Paged(tensor), Some(paged)) = (&training.states, &mut self.optimizer.paged) {
            return paged.write(tensor, state);
        }
        match (&mut training.states, &state) {
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

    fn set_values(&mut self, param: &mut CudaParam, values: Vec<f32>) -> Result<()> {
        check_values(&values, param.working.len())?;
        self.write_values(param, &values)
    }

    fn set_operand(&mut self, param: &mut CudaParam, values: Vec<f32>) -> Result<()> {
        check_values(&values, param.working.len())?;
        self.memory.write(&mut param.working, &rounded(&values))
    }

    fn gradient(&self, param: &CudaParam) -> Result<Vec<f32>> {
        match &param.training {
            Some(training) => self.memory.download(&training.gradient),
            None => Ok(Vec::new()),
        }
    }

    fn restore_gradient(&mut self, param: &mut CudaParam, values: Vec<f32>) -> Result<()> {
        let own = param.training.as_ref().map_or(0, |training| training.gradient.len());
        if values.len() != own {
            bail_usage!("found a gradient of {} values, expected {own}", values.len());
        }
        if let Some(training) = &mut param.training {
            self.memory.write(&mut training.gradient, &values)?;
        }
        Ok(())
    }

    fn gradient_len(&self, param: &CudaParam) -> usize {
        param.training.as_ref().map_or(0, |training| training.gradient.len())
    }

    fn reads_beside(&self) -> bool {
        true
    }

    fn begin_reading(&mut self, params: Vec<&mut CudaParam>) -> Result<()> {
        if self.reading.is_none() {
            self.reading = self.memory.round_trip(READING, PIECE)?;
        }
        Ok(self.reading()?.begin(take_gradients(params))?)
    }

    fn read(&mut self, waits: bool) -> Result<Option<Vec<f32>>> {
        Ok(self.reading()?.values(waits)?)
    }

    fn put_back(&mut self, values: &[f32]) -> Result<()> {
        Ok(self.reading()?.put_back(values)?)
    }

    fn finish_reading(&mut self, params: Vec<&mut CudaParam>) -> Result<()> {
        let gradients = self.reading()?.finish()?;
        restore_gradients(params, gradients);
        Ok(())
    }

    fn abandon_reading(&mut self, params: Vec<&mut CudaParam>) {
        if let Some(reading) = &mut self.reading {
            restore_gradients(params, reading.abandon());
        }
    }

    fn adds_up(&self) -> bool {
        self.sums.is_some()
    }

    fn begin_sum(&mut self, params: Vec<&mut CudaParam>, others: &mut dyn Others) -> Result<()> {
        let Some(sums) = &mut self.sums else {
            return Err(Error::Failed("the GPU has met no others to add up with".to_owned()));
        };
        Ok(sums.begin(take_gradients(params), others)?)
    }

    fn finish_sums(&mut self, params: Vec<&mut CudaParam>, others: &mut dyn Others) -> Result<()> {
        let Some(sums) = &mut self.sums else { return Ok(()) };
        restore_gradients(params, sums.finish(others)?);
        Ok(())
    }

    fn abandon_sums(&mut self, params: Vec<&mut CudaParam>) {
        if let Some(sums) = &mut self.sums {
            restore_gradients(params, sums.abandon());
        }
    }

    /// Makes table and workspace those of these tensors; nothing is to do after the first step.
    fn prepare_update(&mut self, mut params: Vec<&mut CudaParam>) -> Result<()> {
        let ids: Vec<u64> = params.iter().map(|param| param.id).collect();
        if self.optimizer.ids == ids {
            return Ok(());
        }
        let (memory, optimizer) = (&self.memory, &mut self.optimizer);
        optimizer.ids.clear();
        let lengths: Vec<usize> = params.iter().map(|param| param.working.len()).collect();
        let table = memory.device().map(|_| tensors(&mut params)?.table().map_err(Error::from)).transpose()?;
        let table_len = adamw::table_len(&lengths);
        optimizer.table = memory.upload(TABLES, table_len, table.as_deref())?;
        optimizer.rates = StagedBuffer::new(memory, TABLES, ids.len() * RATE_LEN)?;
        optimizer.workspace = memory.alloc(TABLES, adamw::workspace_len(&lengths))?;
        if let Some(paged) = &mut optimizer.paged {
            optimizer_pieces::prepare(memory, paged, &mut params)?;
        }
        optimizer.ids = ids;
        Ok(())
    }

    fn clear_gradients(&mut self, params: Vec<&mut CudaParam>) -> Result<()> {
        if self.graphs.is_replaying() {
            return Ok(());
        }
        let mut training = params.into_iter().filter_map(|param| param.training.as_mut());
        training.try_for_each(|training| self.memory.clear(&mut training.gradient))
    }

    fn clip_and_update(&mut self, updates: Vec<ParamUpdate<'_, CudaParam>>, max_norm: f64) -> Result<f64> {
        let stream = self.memory.stream();
        let settings: Vec<_> = updates.iter().map(|update| update.settings).collect();
        let mut params: Vec<&mut CudaParam> = updates.into_iter().map(|update| update.param).collect();
        let OptimizerMemory { table, rates, workspace, state, readback, paged, .. } = &mut self.optimizer;
        rates.set(&adamw::rates(&settings))?;
        if let Some(paged) = paged.as_mut().filter(|paged| paged.count() > 0) {
            // Beside the norm.
            paged.prefetch(0)?;
        }
        let mut tensors = tensors(&mut params)?;
        let (norm, room) = (state.view_mut(), workspace.view_mut());
        tensors.gradient_norm(table.view(), rates.view(), max_norm, norm, room, stream)?;
        fetch(readback, state)?;
        match paged {
            None => tensors.update(table.view(), rates.view(), Some(state.view()), stream)?,
            Some(paged) => {
                drop(tensors);
                optimizer_pieces::update(paged, &mut params, rates.view(), state.view(), stream)?;
            }
        }
        let words = readback.as_mut().expect("it is there while running").wait()?;
        Ok(GradientState::from_words([words[0], words[1]]).norm)
    }
}

fn check_values(values: &[f32], expected: usize) -> Result<()> {
    if values.len() != expected {
        bail_usage!("found {} values, expected {expected}", values.len());
    }
    Ok(())
}

/// Takes the gradients of these tensors, which have none until [`restore_gradients`].
fn take_gradients(params: Vec<&mut CudaParam>) -> Vec<Buffer<f32>> {
    let training = params.into_iter().filter_map(|param| param.training.as_mut());
    training.map(|training| std::mem::take(&mut training.gradient)).collect()
}

/// Makes these the gradients of the first tensors, of which sums were begun.
fn restore_gradients(params: Vec<&mut CudaParam>, gradients: Vec<Buffer<f32>>) {
    let training = params.into_iter().filter_map(|param| param.training.as_mut());
    training.zip(gradients).for_each(|(training, gradient)| training.gradient = gradient);
}

fn download_states(device: &DeviceMemory, paged: Option<&PagedStates>, states: &StateMemory) -> Result<OptimizerState> {
    Ok(match states {
        StateMemory::F32 { m, v } => OptimizerState::F32 { m: device.download(m)?, v: device.download(v)? },
        StateMemory::Blockwise8 { m, m_absmax, v, v_absmax } => OptimizerState::Blockwise8 {
            m: device.download(m)?,
            m_absmax: device.download(m_absmax)?,
            v: device.download(v)?,
            v_absmax: device.download(v_absmax)?,
        },
        StateMemory::Paged(tensor) => paged.expect("states that wait in host memory have their pieces").read(tensor)?,
    })
}

/// Before the first update.
fn zero_states(memory: &DeviceMemory, format: StateFormat, len: usize) -> Result<StateMemory> {
    let absmax = || memory.zeros(STATES, len.div_ceil(BLOCK_SIZE));
    Ok(if format.is_blockwise(len) {
        StateMemory::Blockwise8 {
            m: memory.zeros(STATES, len)?,
            m_absmax: absmax()?,
            v: memory.zeros(STATES, len)?,
            v_absmax: absmax()?,
        }
    } else {
        StateMemory::F32 { m: memory.zeros(STATES, len)?, v: memory.zeros(STATES, len)? }
    })
}
