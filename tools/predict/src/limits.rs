//! The limit of a loop, and what slows it: from its steps alone, beside the simulated cycles.

use crate::cards::Card;
use crate::machine::access::SECTOR;
use crate::machine::class::Class;
use crate::machine::walk::Step;
use crate::simulator::{self, Memory, Run};
use std::fmt;

/// The limit of a loop's speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Tensor,
    Issue,
    Shared,
    Memory,
    /// No unit is busy: warps wait for each other, for results, for what is on its way
    Latency,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tensor => "tensor cores",
            Self::Issue => "issue slots",
            Self::Shared => "shared memory",
            Self::Memory => "memory",
            Self::Latency => "latency",
        })
    }
}

/// Cycles that each unit needs at least for one round of the loop by all warps of a multiprocessor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bounds {
    pub tensor: f64,
    pub issue: f64,
    pub shared: f64,
    pub memory: f64,
}

impl Bounds {
    pub fn of(steps: &[Step], card: &Card, memory: Memory, warps: usize) -> Self {
        let warps = warps as f64;
        let sum = |of: &dyn Fn(&Step) -> f64| steps.iter().map(of).sum::<f64>();
        let multiply_adds = sum(&|step| match step.class {
            Class::Matrix { multiply_adds } => f64::from(multiply_adds),
            _ => 0.0,
        });
        let bytes = sum(&|step| f64::from(step.sectors * SECTOR));
        Self {
            tensor: multiply_adds / 2048.0 * card.matrix_interval.value * warps / 4.0,
            issue: steps.len() as f64 * warps / 4.0,
            shared: sum(&|step| f64::from(step.wavefronts)) * warps * card.architecture.wavefront_cycles(),
            memory: bytes * warps / memory.bytes_per_cycle,
        }
    }

    pub fn largest(&self) -> (Limit, f64) {
        let all = [
            (Limit::Tensor, self.tensor),
            (Limit::Issue, self.issue),
            (Limit::Shared, self.shared),
            (Limit::Memory, self.memory),
        ];
        all.into_iter().fold((Limit::Latency, 0.0), |most, bound| if bound.1 > most.1 { bound } else { most })
    }
}

/// A unit that is busy for less than this share of the time is not what limits.
const BUSY: f64 = 0.7;

/// One round of a loop on one card.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub run: Run,
    pub bounds: Bounds,
    pub limit: Limit,
}

impl Round {
    pub fn of(steps: &[Step], card: &Card, memory: Memory, warps: usize, blocks: usize) -> Self {
        let run = simulator::steady(steps, card, memory, warps, blocks);
        let bounds = Bounds::of(steps, card, memory, warps * blocks);
        let (unit, cycles) = bounds.largest();
        let limit = if cycles >= BUSY * run.cycles { unit } else { Limit::Latency };
        Self { run, bounds, limit }
    }

    /// Share of the tensor cores' time.
    pub fn tensor_share(&self) -> f64 {
        self.bounds.tensor / self.run.cycles
    }
}

/// Avoidable costs of a round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slowdowns {
    /// Accesses of shared memory that take more wavefronts than they need: their number, and the extra wavefronts
    pub conflicts: (usize, u32),
    /// Accesses of global memory that use less than half of their sectors: their number, and the used share of their
    /// bytes
    pub uncoalesced: (usize, f64),
    /// Branches that jump, beside the loop's own
    pub branches: usize,
    /// Loads that are each waited for before the next begins
    pub serialized: usize,
}

/// Less of a sector than this is of use: too little.
const LEAST_USEFUL: f64 = 0.5;

impl Slowdowns {
    pub fn of(steps: &[Step]) -> Self {
        let mut found = Self::default();
        let (mut bytes, mut useful) = (0.0, 0.0);
        for step in steps.iter().filter(|step| step.is_known) {
            if step.wavefronts > step.ideal_wavefronts {
                found.conflicts.0 += 1;
                found.conflicts.1 += step.wavefronts - step.ideal_wavefronts;
            }
            let moved = f64::from(step.touched_sectors * SECTOR);
            if moved * LEAST_USEFUL > f64::from(step.useful_bytes) && step.touched_sectors > 1 {
                found.uncoalesced.0 += 1;
                bytes += moved;
                useful += f64::from(step.useful_bytes);
            }
        }
        found.uncoalesced.1 = if bytes > 0.0 { useful / bytes } else { 1.0 };
        found.branches = steps.iter().filter(|step| step.jumps).count().saturating_sub(1);
        found.serialized = serialized(steps);
        found
    }

    /// In words, each with its figure; nothing where there is nothing.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.conflicts.0 > 0 {
            lines.push(format!(
                "{} accesses with bank conflicts, {} wavefronts on top",
                self.conflicts.0, self.conflicts.1
            ));
        }
        if self.uncoalesced.0 > 0 {
            lines.push(format!(
                "{} accesses of scattered sectors, {:.0}% of their bytes of use",
                self.uncoalesced.0,
                100.0 * self.uncoalesced.1
            ));
        }
        if self.branches > 0 {
            lines.push(format!("{} branches that jump", self.branches));
        }
        if self.serialized > 1 {
            lines.push(format!("{} loads, each waited for before the next", self.serialized));
        }
        lines
    }
}

/// Loads of global memory into registers whose result something waits for before the next load begins.
fn serialized(steps: &[Step]) -> usize {
    let mut pending = None;
    let mut count = 0;
    for step in steps {
        if let Some(barrier) = pending {
            if step.control.wait >> barrier & 1 == 1 {
                count += 1;
                pending = None;
            } else if matches!(step.class, Class::GlobalLoad { .. }) {
                pending = None;
            }
        }
        if let (Class::GlobalLoad { .. }, Some(barrier)) = (step.class, step.control.write_barrier) {
            pending = Some(barrier);
        }
    }
    count
}
