//! Updates of tensors whose states, or states and master copies, wait in host memory: piece by piece.

use super::memory::DeviceMemory;
use super::operands::{CudaParam, StateMemory, Training};
use super::optimizer_memory::TABLES;
use super::paged_states::{PagedStates, Part};
use crate::error::Result;
use qlora_kernels::device::{Buffer, Stream, View};
use qlora_kernels::ops::adamw::{Tensor, Tensors, table_len};

/// The part of a tensor's states that is in this piece.
fn part_of(param: &CudaParam, piece: usize) -> Option<Part> {
    match &param.training {
        Some(Training { states: StateMemory::Paged(states), .. }) => states.part_in(piece),
        _ => None,
    }
}

/// The parts of tensors whose states are in this piece, with those in `slot`, in their order there. The rate of each is
/// that of its tensor.
fn parts_in<'a>(piece: usize, params: &'a mut [&mut CudaParam], slot: &'a mut Buffer<u8>) -> Vec<Tensor<'a>> {
    let mut found: Vec<(Part, usize, &'a mut CudaParam)> = Vec::new();
    for (rate, param) in params.iter_mut().enumerate() {
        if let Some(part) = part_of(param, piece) {
            found.push((part, rate, &mut **param));
        }
    }
    found.sort_by_key(|(part, ..)| part.range().0);
    let (mut rest, mut skipped) = (slot.view_mut(), 0);
    let mut parts = Vec::with_capacity(found.len());
    for (part, rate, param) in found {
        let (master, states, after) = part.views(rest, skipped);
        (rest, skipped) = (after, part.range().1);
        let training = param.training.as_ref().expect("only trained tensors have states");
        let value = match master {
            Some(master) => master,
            None => {
                let value = param.value.as_mut().expect("a master copy is here, or comes with the states");
                value.view_mut().skip(part.first).first(part.len)
            }
        };
        parts.push(Tensor {
            value,
            working: Some(param.working.view_mut().skip(part.first).first(part.len)),
            gradient: training.gradient.view().skip(part.first).first(part.len),
            states,
            rate,
        });
    }
    parts
}

/// Makes the table of each piece that of its part of these tensors.
pub fn prepare(memory: &DeviceMemory, paged: &mut PagedStates, params: &mut [&mut CudaParam]) -> Result<()> {
    paged.tables.clear();
    for piece in 0..paged.count() {
        let parts = params.iter().filter_map(|param| part_of(param, piece));
        let lengths: Vec<usize> = parts.map(|part| part.len).collect();
        let table = match memory.is_dry_run() || lengths.is_empty() {
            true => Vec::new(),
            false => Tensors::new(parts_in(piece, params, paged.on_device(piece).0))?.table()?,
        };
        paged.tables.push(memory.upload(TABLES, table_len(&lengths), Some(&table[..]))?);
    }
    Ok(())
}

/// One update of these tensors, of which the first piece is on its way: one piece is updated, while the one after it
/// comes and the one before it goes. Work that is queued next comes after all have gone.
pub fn update(
    paged: &mut PagedStates,
    params: &mut [&mut CudaParam],
    rates: View<'_, f32>,
    state: View<'_, u64>,
    stream: Stream,
) -> Result<()> {
    let count = paged.count();
    for piece in 0..count {
        if piece + 1 < count {
            if piece > 0 {
                paged.wait_offload(piece - 1)?;
            }
            paged.prefetch(piece + 1)?;
        }
        paged.wait(piece)?;
        let (slot, table) = paged.on_device(piece);
        let parts = parts_in(piece, params, slot);
        if let Some(table) = table.filter(|_| !parts.is_empty()) {
            Tensors::new(parts)?.update(table.view(), rates, Some(state), stream)?;
        }
        paged.offload(piece)?;
    }
    (count.saturating_sub(2)..count).try_for_each(|piece| paged.wait_offload(piece))
}
