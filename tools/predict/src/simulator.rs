//! One multiprocessor, cycle by cycle: warps on four schedulers, which obey the control codes of the machine code, the
//! units that instructions keep busy, the banks of shared memory, and a share of the L2 and of DRAM.
//!
//! Not modeled: the instruction cache, register banks, the L1 as a cache, clocks that fall.

use crate::cards::{Architecture, Card};
use crate::machine::access::SECTOR;
use crate::machine::class::Class;
use crate::machine::walk::Step;

/// The choice among warps that could issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// The one that issued last; if it cannot, the oldest
    GreedyThenOldest,
    /// The next one in turn
    RoundRobin,
}

/// A multiprocessor's share of the L2 and of DRAM while it runs the blocks.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes a cycle that reach this multiprocessor
    pub bytes_per_cycle: f64,
    /// Cycles from a request to its first bytes
    pub latency: f64,
}

impl Memory {
    /// Memory where `from_dram` of all reads come from DRAM and `busy` multiprocessors are at work.
    pub fn of(card: &Card, from_dram: f64, busy: f64) -> Self {
        let architecture = card.architecture;
        let dram = card.copy_bandwidth() / card.hz() / busy.min(card.multiprocessors.value);
        let l2 = architecture.l2_bytes.value;
        let bytes_per_cycle = if from_dram > 0.0 { l2.min(dram / from_dram) } else { l2 };
        let (near, far) = (architecture.l2_latency.value, architecture.dram_latency.value);
        Self { bytes_per_cycle, latency: near + (far - near) * from_dram.min(1.0) }
    }

    /// To two or three digits: shapes that hardly differ share a simulation.
    pub fn rounded(self) -> Self {
        let step = 2.0_f64.powf(self.bytes_per_cycle.log2().floor() - 5.0);
        Self {
            bytes_per_cycle: (self.bytes_per_cycle / step).round() * step,
            latency: (self.latency / 20.0).round() * 20.0,
        }
    }
}

/// Reasons for which no warp of a scheduler could issue, and the share that issued.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    pub issued: f64,
    pub barrier: f64,
    /// For results of shared or global memory
    pub memory: f64,
    /// For copies to shared memory
    pub copies: f64,
    pub matrices: f64,
    pub other: f64,
}

/// A simulated run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub cycles: f64,
    /// Shares of the schedulers' cycles
    pub stalls: Stalls,
}

#[derive(Clone)]
struct Warp {
    at: usize,
    round: usize,
    ready: f64,
    /// Time at which each of the six barriers has fallen.
    barriers: [f64; 6],
    /// True for barriers that wait for memory.
    of_memory: [bool; 6],
    waits_in_block: bool,
    is_done: bool,
    block: usize,
    /// Time at which the copies that are in no group yet have arrived.
    open_group: f64,
    groups: Vec<f64>,
}

struct Multiprocessor<'a> {
    steps: &'a [Step],
    card: &'a Card,
    architecture: &'a Architecture,
    memory: Memory,
    warps: Vec<Warp>,
    arrived: Vec<usize>,
    warps_of_block: usize,
    rounds: usize,
    matrix: [f64; 4],
    float: [f64; 4],
    /// The half of the floating-point lanes that multiplies integers
    multiplier: [f64; 4],
    integer: [f64; 4],
    special: [f64; 4],
    queue: [f64; 4],
    /// Time at which the banks are free again; `global`: the path from the L2.
    banks: f64,
    global: f64,
}

/// Cycles of banks' work that may be queued before the next memory instruction has to wait.
const QUEUE_CYCLES: f64 = 30.0;

/// Cycles of `rounds` rounds of these steps by `blocks` blocks at once.
fn run(steps: &[Step], card: &Card, memory: Memory, warps: usize, blocks: usize, rounds: usize, policy: Policy) -> Run {
    let warp = |index: usize| Warp {
        at: 0,
        round: 0,
        ready: 0.0,
        barriers: [0.0; 6],
        of_memory: [false; 6],
        waits_in_block: false,
        is_done: steps.is_empty(),
        block: index / warps,
        open_group: 0.0,
        groups: Vec::new(),
    };
    let mut machine = Multiprocessor {
        steps,
        card,
        architecture: card.architecture,
        memory,
        warps: (0..warps * blocks).map(warp).collect(),
        arrived: vec![0; blocks],
        warps_of_block: warps,
        rounds,
        matrix: [0.0; 4],
        float: [0.0; 4],
        multiplier: [0.0; 4],
        integer: [0.0; 4],
        special: [0.0; 4],
        queue: [0.0; 4],
        banks: 0.0,
        global: 0.0,
    };
    machine.run(policy)
}

#[derive(Clone, Copy, PartialEq)]
enum Hindrance {
    Barrier,
    Memory,
    Copies,
    Matrices,
    Other,
}

impl Multiprocessor<'_> {
    fn run(&mut self, policy: Policy) -> Run {
        let mut stalls = Stalls::default();
        let mut last = [0_usize; 4];
        let mut clock = 0.0_f64;
        let lanes: [Vec<usize>; 4] = std::array::from_fn(|s| (s..self.warps.len()).step_by(4).collect());
        while self.warps.iter().any(|warp| !warp.is_done) {
            let mut any = false;
            // The next moment at which something may change.
            let mut soonest = f64::INFINITY;
            for scheduler in 0..4 {
                let mine = &lanes[scheduler];
                if mine.is_empty() || mine.iter().all(|&warp| self.warps[warp].is_done) {
                    continue;
                }
                let start = match policy {
                    Policy::GreedyThenOldest => None,
                    Policy::RoundRobin => Some((last[scheduler] + 1) % mine.len()),
                };
                let order = (0..=mine.len()).map(|turn| match (start, turn) {
                    (None, 0) => last[scheduler],
                    (None, turn) => turn - 1,
                    (Some(start), turn) => (start + turn) % mine.len(),
                });
                let mut why = Hindrance::Other;
                let mut chosen = None;
                for place in order {
                    let warp = mine[place];
                    if self.warps[warp].is_done {
                        continue;
                    }
                    match self.hindrance(warp, scheduler, clock) {
                        None => {
                            chosen = Some((place, warp));
                            break;
                        }
                        Some((hindrance, until)) => {
                            if why == Hindrance::Other || why == Hindrance::Barrier {
                                why = hindrance;
                            }
                            soonest = soonest.min(until);
                        }
                    }
                }
                match chosen {
                    Some((place, warp)) => {
                        last[scheduler] = place;
                        self.issue(warp, scheduler, clock);
                        stalls.issued += 1.0;
                        any = true;
                    }
                    None => match why {
                        Hindrance::Barrier => stalls.barrier += 1.0,
                        Hindrance::Memory => stalls.memory += 1.0,
                        Hindrance::Copies => stalls.copies += 1.0,
                        Hindrance::Matrices => stalls.matrices += 1.0,
                        Hindrance::Other => stalls.other += 1.0,
                    },
                }
            }
            let next = clock + 1.0;
            // Nothing happens until then: skip that time, and count it by its reason.
            if !any && soonest > next && soonest.is_finite() {
                let skipped = soonest.ceil() - next;
                stalls.memory += skipped * 4.0;
                clock = soonest.ceil();
            } else {
                clock = next;
            }
        }
        let all = stalls.issued + stalls.barrier + stalls.memory + stalls.copies + stalls.matrices + stalls.other;
        let share = |part: f64| if all > 0.0 { part / all } else { 0.0 };
        Run {
            cycles: clock,
            stalls: Stalls {
                issued: share(stalls.issued),
                barrier: share(stalls.barrier),
                memory: share(stalls.memory),
                copies: share(stalls.copies),
                matrices: share(stalls.matrices),
                other: share(stalls.other),
            },
        }
    }

    /// The reason for which the warp's next instruction cannot issue, and the time at which that may change.
    fn hindrance(&self, warp: usize, scheduler: usize, clock: f64) -> Option<(Hindrance, f64)> {
        let warp = &self.warps[warp];
        if warp.waits_in_block {
            return Some((Hindrance::Barrier, f64::INFINITY));
        }
        if warp.ready > clock {
            return Some((Hindrance::Other, warp.ready));
        }
        let step = &self.steps[warp.at];
        for barrier in 0..6 {
            if step.control.wait >> barrier & 1 == 1 && warp.barriers[barrier] > clock {
                let why = if warp.of_memory[barrier] { Hindrance::Memory } else { Hindrance::Other };
                return Some((why, warp.barriers[barrier]));
            }
        }
        let unit = |free: f64, why: Hindrance| (free > clock).then_some((why, free));
        match step.class {
            Class::Matrix { .. } => unit(self.matrix[scheduler], Hindrance::Matrices),
            Class::Float => unit(self.float[scheduler], Hindrance::Other),
            Class::IntegerMultiply => unit(self.float[scheduler].max(self.multiplier[scheduler]), Hindrance::Other),
            Class::Integer => unit(self.integer[scheduler], Hindrance::Other),
            Class::Special => unit(self.special[scheduler], Hindrance::Other),
            Class::Shared { .. }
            | Class::MatrixLoad { .. }
            | Class::Shuffle
            | Class::GlobalLoad { .. }
            | Class::GlobalStore { .. }
            | Class::Copy { .. } => unit(self.queue[scheduler].max(self.banks - QUEUE_CYCLES), Hindrance::Memory),
            Class::CopyWait { groups } => {
                let on_their_way = warp.groups.iter().rev().skip(groups as usize);
                let until = on_their_way.copied().fold(0.0, f64::max);
                unit(until, Hindrance::Copies)
            }
            Class::Constant | Class::Barrier | Class::CopyGroup | Class::Control => None,
        }
    }

    fn issue(&mut self, index: usize, scheduler: usize, clock: f64) {
        let architecture = self.architecture;
        let step = self.steps[self.warps[index].at];
        let jump = if step.jumps { architecture.branch_penalty.value } else { 0.0 };
        let (mut done, mut read) = (clock, clock + 4.0);
        let mut is_memory = false;
        match step.class {
            Class::Matrix { multiply_adds } => {
                let interval = self.card.matrix_interval.value * f64::from(multiply_adds) / 2048.0;
                // A fraction of a cycle is not lost while the unit is busy.
                let free = self.matrix[scheduler];
                self.matrix[scheduler] = if free > clock - 1.0 { free.max(0.0) + interval } else { clock + interval };
                done = self.matrix[scheduler] + interval;
            }
            Class::Float => self.float[scheduler] = clock + architecture.float_interval.value,
            Class::IntegerMultiply => {
                self.float[scheduler] = clock + architecture.float_interval.value;
                self.multiplier[scheduler] = clock + architecture.integer_multiply_interval.value;
            }
            Class::Integer => self.integer[scheduler] = clock + architecture.integer_interval.value,
            Class::Special => {
                self.special[scheduler] = clock + architecture.special_interval.value;
                done = clock + 20.0;
            }
            Class::Shared { .. } | Class::MatrixLoad { .. } | Class::Shuffle => {
                let start = self.in_banks(scheduler, clock, f64::from(step.wavefronts));
                read = start + 2.0;
                let latency = match step.class {
                    Class::MatrixLoad { .. } => architecture.matrix_load_latency.value,
                    Class::Shared { is_load: false, .. } => 10.0,
                    _ => architecture.shared_latency.value,
                };
                done = self.banks + latency - 4.0;
                is_memory = true;
            }
            Class::GlobalLoad { .. } | Class::GlobalStore { .. } | Class::Copy { .. } => {
                // Copies are written to shared memory through the same banks; loads pass through the L1 like them.
                let wavefronts = match step.class {
                    Class::Copy { .. } => f64::from(step.wavefronts),
                    _ => f64::from(step.touched_sectors.div_ceil(4)),
                };
                let start = self.in_banks(scheduler, clock, wavefronts);
                read = start + 4.0;
                let bytes = f64::from(step.sectors * SECTOR);
                self.global = self.global.max(start) + bytes / self.memory.bytes_per_cycle;
                let arrives = self.global.max(start) + self.memory.latency;
                if matches!(step.class, Class::Copy { .. }) {
                    let warp = &mut self.warps[index];
                    warp.open_group = warp.open_group.max(arrives);
                    done = read;
                } else {
                    done = if matches!(step.class, Class::GlobalStore { .. }) { read } else { arrives };
                }
                is_memory = true;
            }
            Class::Constant => done = clock + 30.0,
            Class::CopyGroup => {
                let warp = &mut self.warps[index];
                let group = std::mem::take(&mut warp.open_group);
                warp.groups.push(group);
            }
            Class::CopyWait { groups } => {
                let warp = &mut self.warps[index];
                let keep = warp.groups.len().min(groups as usize);
                warp.groups.drain(..warp.groups.len() - keep);
            }
            Class::Barrier | Class::Control => {}
        }
        let warp = &mut self.warps[index];
        warp.ready = clock + f64::from(step.control.stall.max(1)) + jump;
        if let Some(barrier) = step.control.write_barrier.filter(|barrier| *barrier < 6) {
            let barrier = usize::from(barrier);
            warp.barriers[barrier] = warp.barriers[barrier].max(done);
            warp.of_memory[barrier] = is_memory;
        }
        if let Some(barrier) = step.control.read_barrier.filter(|barrier| *barrier < 6) {
            let barrier = usize::from(barrier);
            warp.barriers[barrier] = warp.barriers[barrier].max(read);
            warp.of_memory[barrier] = is_memory;
        }
        warp.at += 1;
        if warp.at == self.steps.len() {
            (warp.at, warp.round) = (0, warp.round + 1);
            warp.is_done = warp.round == self.rounds;
        }
        if matches!(step.class, Class::Barrier) {
            self.arrive(index, clock);
        }
    }

    /// Time at which an access begins in the banks.
    fn in_banks(&mut self, scheduler: usize, clock: f64, wavefronts: f64) -> f64 {
        self.queue[scheduler] = clock + self.architecture.memory_interval.value;
        let start = self.banks.max(clock + 4.0);
        self.banks = start + wavefronts * self.architecture.wavefront_cycles();
        start
    }

    fn arrive(&mut self, index: usize, clock: f64) {
        let block = self.warps[index].block;
        self.arrived[block] += 1;
        self.warps[index].waits_in_block = true;
        if self.arrived[block] == self.warps_of_block {
            self.arrived[block] = 0;
            let goes_on = clock + self.architecture.barrier_latency.value;
            for warp in self.warps.iter_mut().filter(|warp| warp.block == block && warp.waits_in_block) {
                warp.waits_in_block = false;
                warp.ready = warp.ready.max(goes_on);
            }
        }
    }
}

const POLICIES: [Policy; 2] = [Policy::GreedyThenOldest, Policy::RoundRobin];
/// Rounds before those that are timed, and with them.
const WARM: usize = 4;
const ALL: usize = 12;

/// Cycles of one round of a loop in its steady state, by `blocks` blocks at once: the mean of both policies.
pub fn steady(steps: &[Step], card: &Card, memory: Memory, warps: usize, blocks: usize) -> Run {
    let mut sum = Run { cycles: 0.0, stalls: Stalls::default() };
    for policy in POLICIES {
        let warm = run(steps, card, memory, warps, blocks, WARM, policy);
        let all = run(steps, card, memory, warps, blocks, ALL, policy);
        sum.cycles += (all.cycles - warm.cycles) / (ALL - WARM) as f64 / POLICIES.len() as f64;
        sum.stalls = all.stalls;
    }
    sum
}

/// Cycles of these steps, once, by `blocks` blocks at once.
pub fn once(steps: &[Step], card: &Card, memory: Memory, warps: usize, blocks: usize) -> Run {
    let runs = POLICIES.map(|policy| run(steps, card, memory, warps, blocks, 1, policy));
    Run { cycles: (runs[0].cycles + runs[1].cycles) / 2.0, stalls: runs[1].stalls }
}
