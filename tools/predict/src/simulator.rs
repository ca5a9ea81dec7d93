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
    /// The reason for which its next instruction cannot issue before `until`
    why: Hindrance,
    /// Infinite while it waits for the other warps of its block
    until: f64,
    /// Time at which each of the six barriers has fallen.
    barriers: [f64; 6],
    /// True for barriers that wait for memory.
    of_memory: [bool; 6],
    is_done: bool,
    block: usize,
    /// Time at which the copies that are in no group yet have arrived.
    open_group: f64,
    groups: Vec<f64>,
}

/// A scheduler, and the first time at which one of its warps may issue.
#[derive(Clone, Copy)]
struct Scheduler {
    /// The place among its warps of the one that issued last
    last: usize,
    warps: usize,
    /// Warps that are not done
    active: usize,
    why: Hindrance,
    until: f64,
}

#[derive(Clone)]
struct Multiprocessor<'a> {
    policy: Policy,
    clock: f64,
    /// Cycles of the schedulers
    stalls: Stalls,
    schedulers: [Scheduler; 4],
    /// Steps of the warp that has made the most
    furthest: usize,
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

#[derive(Clone, Copy, PartialEq)]
enum Hindrance {
    Barrier,
    Memory,
    Copies,
    Matrices,
    Other,
}

impl<'a> Multiprocessor<'a> {
    /// At the beginning of `rounds` rounds of these steps by `blocks` blocks at once.
    fn new(
        steps: &'a [Step],
        card: &'a Card,
        memory: Memory,
        [warps, blocks, rounds]: [usize; 3],
        policy: Policy,
    ) -> Self {
        let warp = |index: usize| Warp {
            at: 0,
            round: 0,
            ready: 0.0,
            why: Hindrance::Other,
            until: 0.0,
            barriers: [0.0; 6],
            of_memory: [false; 6],
            is_done: steps.is_empty(),
            block: index / warps,
            open_group: 0.0,
            groups: Vec::new(),
        };
        let scheduler = |first: usize| {
            let warps = (warps * blocks).saturating_sub(first).div_ceil(4);
            let active = if steps.is_empty() { 0 } else { warps };
            Scheduler { last: 0, warps, active, why: Hindrance::Other, until: 0.0 }
        };
        Self {
            policy,
            clock: 0.0,
            stalls: Stalls::default(),
            schedulers: std::array::from_fn(scheduler),
            furthest: 0,
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
        }
    }

    fn run(mut self) -> Run {
        while self.schedulers.iter().any(|scheduler| scheduler.active > 0) {
            self.cycle();
        }
        let Stalls { issued, barrier, memory, copies, matrices, other } = self.stalls;
        let all = issued + barrier + memory + copies + matrices + other;
        let share = |part: f64| if all > 0.0 { part / all } else { 0.0 };
        Run {
            cycles: self.clock,
            stalls: Stalls {
                issued: share(issued),
                barrier: share(barrier),
                memory: share(memory),
                copies: share(copies),
                matrices: share(matrices),
                other: share(other),
            },
        }
    }

    /// One cycle, and those after it in which nothing happens.
    fn cycle(&mut self) {
        let mut any = false;
        for scheduler in 0..4 {
            if self.schedulers[scheduler].active == 0 {
                continue;
            }
            if let Some(place) = self.choose(scheduler) {
                self.schedulers[scheduler].last = place;
                self.issue(4 * place + scheduler, scheduler, self.clock);
                self.stalls.issued += 1.0;
                any = true;
                continue;
            }
            let stalls = &mut self.stalls;
            *match self.schedulers[scheduler].why {
                Hindrance::Barrier => &mut stalls.barrier,
                Hindrance::Memory => &mut stalls.memory,
                Hindrance::Copies => &mut stalls.copies,
                Hindrance::Matrices => &mut stalls.matrices,
                Hindrance::Other => &mut stalls.other,
            } += 1.0;
        }
        let next = self.clock + 1.0;
        let soonest = if any { next } else { self.soonest(next) };
        // Nothing happens until then: skip that time, and count it by its reason.
        if soonest > next && soonest.is_finite() {
            let skipped = soonest.ceil() - next;
            self.stalls.memory += skipped * 4.0;
            self.clock = soonest.ceil();
        } else {
            self.clock = next;
        }
    }

    /// The place of the warp that issues. Times at which a warp or a unit is free only move on while the warp waits, so
    /// that nothing of it is looked at before the one that was found first.
    fn choose(&mut self, index: usize) -> Option<usize> {
        let Scheduler { last, warps, until, .. } = self.schedulers[index];
        let clock = self.clock;
        if until > clock {
            return None;
        }
        let (mut why, mut until) = (Hindrance::Other, f64::INFINITY);
        for turn in 0..=warps {
            let place = match (self.policy, turn) {
                (Policy::GreedyThenOldest, 0) => last,
                (Policy::GreedyThenOldest, turn) => turn - 1,
                (Policy::RoundRobin, turn) => (last + 1 + turn) % warps,
            };
            let warp = 4 * place + index;
            if self.warps[warp].is_done {
                continue;
            }
            if self.warps[warp].until <= clock {
                let (hindrance, free) = self.hindrance(warp, index);
                if free <= clock {
                    return Some(place);
                }
                (self.warps[warp].why, self.warps[warp].until) = (hindrance, free);
            }
            if why == Hindrance::Other || why == Hindrance::Barrier {
                why = self.warps[warp].why;
            }
            until = until.min(self.warps[warp].until);
        }
        (self.schedulers[index].why, self.schedulers[index].until) = (why, until);
        None
    }

    /// The next moment at which something may change, where no warp can issue now. Of those up to `next` it is any.
    fn soonest(&mut self, next: f64) -> f64 {
        let mut soonest = f64::INFINITY;
        for warp in 0..self.warps.len() {
            if soonest <= next {
                break;
            }
            let Warp { ready, until, is_done, .. } = self.warps[warp];
            if !is_done && until < soonest {
                // A unit may have been taken since.
                let free = if ready > self.clock { ready } else { self.hindrance(warp, warp % 4).1 };
                self.warps[warp].until = free;
                soonest = soonest.min(free);
            }
        }
        soonest
    }

    /// The reason for which the next instruction of a warp that is ready cannot issue, and the time at which that may
    /// change: one that has passed where it can.
    fn hindrance(&self, warp: usize, scheduler: usize) -> (Hindrance, f64) {
        let (warp, clock) = (&self.warps[warp], self.clock);
        let step = &self.steps[warp.at];
        let mut wait = step.control.wait & 63;
        while wait != 0 {
            let barrier = wait.trailing_zeros() as usize;
            if warp.barriers[barrier] > clock {
                let why = if warp.of_memory[barrier] { Hindrance::Memory } else { Hindrance::Other };
                return (why, warp.barriers[barrier]);
            }
            wait &= wait - 1;
        }
        match step.class {
            Class::Matrix { .. } => (Hindrance::Matrices, self.matrix[scheduler]),
            Class::Float => (Hindrance::Other, self.float[scheduler]),
            Class::IntegerMultiply => (Hindrance::Other, self.float[scheduler].max(self.multiplier[scheduler])),
            Class::Integer => (Hindrance::Other, self.integer[scheduler]),
            Class::Special => (Hindrance::Other, self.special[scheduler]),
            Class::Shared { .. }
            | Class::MatrixLoad { .. }
            | Class::Shuffle
            | Class::GlobalLoad { .. }
            | Class::GlobalStore { .. }
            | Class::Copy { .. } => (Hindrance::Memory, self.queue[scheduler].max(self.banks - QUEUE_CYCLES)),
            Class::CopyWait { groups } => {
                let on_their_way = warp.groups.iter().rev().skip(groups as usize);
                (Hindrance::Copies, on_their_way.copied().fold(0.0, f64::max))
            }
            Class::Constant | Class::Barrier | Class::CopyGroup | Class::Control => (Hindrance::Other, 0.0),
        }
    }

    fn issue(&mut self, index: usize, scheduler: usize, clock: f64) {
        let architecture = self.architecture;
        let step = &self.steps[self.warps[index].at];
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
        (warp.why, warp.until) = (Hindrance::Other, warp.ready);
        warp.at += 1;
        self.furthest = self.furthest.max(warp.round * self.steps.len() + warp.at);
        if warp.at == self.steps.len() {
            (warp.at, warp.round) = (0, warp.round + 1);
            warp.is_done = warp.round >= self.rounds;
            self.schedulers[scheduler].active -= usize::from(warp.is_done);
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
        (self.warps[index].why, self.warps[index].until) = (Hindrance::Barrier, f64::INFINITY);
        if self.arrived[block] == self.warps_of_block {
            self.arrived[block] = 0;
            let goes_on = clock + self.architecture.barrier_latency.value;
            for warp in self.warps.iter_mut().filter(|warp| warp.block == block && warp.until.is_infinite()) {
                warp.ready = warp.ready.max(goes_on);
                (warp.why, warp.until) = (Hindrance::Other, warp.ready);
            }
            self.schedulers.iter_mut().for_each(|scheduler| scheduler.until = 0.0);
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
        let mut all = Multiprocessor::new(steps, card, memory, [warps, blocks, ALL], policy);
        // Fewer rounds are the same until the first warp is done with them.
        while all.furthest + 1 < WARM * steps.len() {
            all.cycle();
        }
        let warm = Multiprocessor { rounds: WARM, ..all.clone() };
        let (warm, all) = (warm.run(), all.run());
        sum.cycles += (all.cycles - warm.cycles) / (ALL - WARM) as f64 / POLICIES.len() as f64;
        sum.stalls = all.stalls;
    }
    sum
}

/// Cycles of these steps, once, by `blocks` blocks at once.
pub fn once(steps: &[Step], card: &Card, memory: Memory, warps: usize, blocks: usize) -> Run {
    let runs = POLICIES.map(|policy| Multiprocessor::new(steps, card, memory, [warps, blocks, 1], policy).run());
    Run { cycles: (runs[0].cycles + runs[1].cycles) / 2.0, stalls: runs[1].stalls }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::card;
    use kernel_inspect::sass::Control;

    #[test]
    fn rounds_that_two_runs_share_are_as_if_each_had_begun_anew() {
        let step = |class| Step {
            index: 0,
            class,
            control: Control { stall: 2, ..Control::default() },
            wavefronts: 1,
            ideal_wavefronts: 1,
            touched_sectors: 4,
            sectors: 4,
            useful_bytes: 128,
            is_known: true,
            jumps: false,
            is_guessed: false,
        };
        let classes = [
            Class::Matrix { multiply_adds: 2048 },
            Class::Float,
            Class::Shared { bytes: 4, is_load: true },
            Class::GlobalLoad { bytes: 4 },
        ];
        let (card, memory) = (card("A6000").unwrap(), Memory { bytes_per_cycle: 7.3, latency: 300.0 });
        let (long, one) = (classes.map(step), [step(Class::Float)]);
        for steps in [&long[..], &one] {
            for (warps, blocks) in [(1, 1), (5, 3), (8, 2)] {
                let of_policy = |policy| {
                    let of = |rounds| Multiprocessor::new(steps, card, memory, [warps, blocks, rounds], policy);
                    (of(ALL).run().cycles - of(WARM).run().cycles) / (ALL - WARM) as f64 / 2.0
                };
                let wanted: f64 = POLICIES.into_iter().map(of_policy).sum();
                assert_eq!(steady(steps, card, memory, warps, blocks).cycles, wanted, "{warps} by {blocks}");
            }
        }
    }
}
