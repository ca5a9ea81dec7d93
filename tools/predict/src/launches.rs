//! Launches, and how long they take on a card: blocks of the real grid, each with the rounds of
//! its main loop, placed on the multiprocessors one after another.

use crate::cards::{BLOCK_START, Card, LAUNCH_GAP, LAUNCH_RAMP};
use crate::limits::{Limit, Round, Slowdowns};
use crate::machine::access::SECTOR;
use crate::machine::class::Class;
use crate::machine::walk::{MainLoop, Step, Walk, walk};
use crate::schedule::{self, Makespan};
use crate::simulator::{self, Memory};
use anyhow::{Context, Result};
use kernel_inspect::names::readable;
use kernel_inspect::resources::Resources;
use kernel_inspect::sass::Code;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A kernel in machine code, with what it takes of a multiprocessor.
pub struct Kernel {
    pub name: String,
    pub code: String,
    pub registers: u32,
    pub static_shared: u32,
    walks: RefCell<HashMap<(u32, MainLoop), Rc<Walk>>>,
    source: Code,
}

impl Kernel {
    pub fn new(code: Code, resources: &Resources) -> Self {
        Self {
            name: readable(&code.name),
            code: code.arch.clone(),
            registers: resources.registers,
            static_shared: resources.shared,
            walks: RefCell::default(),
            source: code,
        }
    }

    /// Instructions of one warp, in order, for a block of this many threads.
    pub fn walk(&self, threads: u32, main: MainLoop) -> Rc<Walk> {
        let mut walks = self.walks.borrow_mut();
        Rc::clone(walks.entry((threads, main)).or_insert_with(|| Rc::new(walk(&self.source, threads, main))))
    }
}

/// All kernels of all architectures, and their simulations so far.
pub struct Kernels {
    all: Vec<Kernel>,
    simulated: RefCell<HashMap<Setting, Rc<Simulated>>>,
}

/// The inputs of a simulation: kernel, card, threads, blocks at once, memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Setting {
    kernel: String,
    card: &'static str,
    threads: u32,
    main: MainLoop,
    held: usize,
    memory: [u64; 2],
}

/// A kernel on a multiprocessor.
struct Simulated {
    /// One round of its main loop, where it has one
    round: Option<Round>,
    /// Cycles of a whole block with one round
    frame: f64,
}

impl Kernels {
    pub fn new(code: Vec<Code>, resources: &[Resources]) -> Result<Self> {
        let kernel = |code: Code| {
            let found = resources.iter().find(|found| found.arch == code.arch && found.name == code.name);
            let found = found.with_context(|| format!("no resources of {} for {}", code.name, code.arch))?;
            Ok(Kernel::new(code, found))
        };
        Ok(Self { all: code.into_iter().map(kernel).collect::<Result<_>>()?, simulated: RefCell::default() })
    }

    fn simulated(
        &self,
        kernel: &Kernel,
        card: &Card,
        threads: u32,
        main: MainLoop,
        held: usize,
        memory: Memory,
    ) -> Rc<Simulated> {
        let setting = Setting {
            kernel: kernel.name.clone(),
            card: card.name,
            threads,
            main,
            held,
            memory: [memory.bytes_per_cycle.to_bits(), memory.latency.to_bits()],
        };
        if let Some(found) = self.simulated.borrow().get(&setting) {
            return Rc::clone(found);
        }
        let (walk, warps) = (kernel.walk(threads, main), threads.div_ceil(32) as usize);
        let round = walk.round.is_some().then(|| Round::of(walk.round(), card, memory, warps, held));
        let frame = simulator::once(&walk.once(), card, memory, warps, held).cycles + BLOCK_START.value;
        let made = Rc::new(Simulated { round, frame });
        self.simulated.borrow_mut().insert(setting, Rc::clone(&made));
        made
    }

    /// The kernel on a card whose name begins with `begins`. Of several (a plain one and one for adapters), the one
    /// that takes the fewest instructions is that of a plain run.
    pub fn find(&self, begins: &str, card: &Card) -> Result<&Kernel> {
        let of_name = |kernel: &&Kernel| kernel.code == card.architecture.code && is_named(&kernel.name, begins);
        let found = self.all.iter().filter(of_name).min_by_key(|kernel| kernel.source.instructions.len());
        found.with_context(|| format!("no kernel {begins}… for {}: was it renamed?", card.architecture.code))
    }
}

/// True if a kernel's name begins with a pattern, in which `*` is one argument of a template.
fn is_named(name: &str, pattern: &str) -> bool {
    let mut rest = name;
    for (index, part) in pattern.split('*').enumerate() {
        if index > 0 {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        }
        match rest.strip_prefix(part) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '<'))
}

/// One launch, by its kernel and its grid.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The beginning of the kernel's name
    pub kernel: String,
    pub threads: u32,
    pub shared: Shared,
    pub work: Work,
    /// Useful FLOPs, as the trainer counts them
    pub flops: f64,
    /// Bytes that have to come from and go to DRAM
    pub bytes: f64,
    /// Share of its loop's loads that the L2 does not hold
    pub from_dram: f64,
    /// Share of the loads in its code that it makes at this shape
    pub loads: f64,
    /// Its loop waits for DRAM, however small the share of its loads that come from there
    pub waits_for_dram: bool,
}

/// Dynamic shared memory of a block.
#[derive(Clone, Copy, Debug)]
pub enum Shared {
    Bytes(u32),
    /// Stages, as many as the third number of `Config` in the kernel's name
    Stages {
        tables: u32,
        stage: u32,
    },
}

impl Shared {
    fn bytes(self, kernel: &str) -> u32 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Stages { tables, stage } => {
                let numbers = kernel.split_once("Config<").map_or("", |(_, numbers)| numbers);
                let stages = numbers.split(", ").nth(2).and_then(|stages| stages.parse().ok()).unwrap_or(1);
                tables + stages * stage
            }
        }
    }
}

/// The work of a grid.
#[derive(Clone, Debug)]
pub enum Work {
    /// Multiply-adds of each block's main loop on the tensor cores, all warps together, in the grid's order
    Products(Vec<f64>),
    /// Moves bytes only
    Bytes { blocks: usize },
    /// Moves bytes only, by blocks that stride over all of them
    Strides { blocks: usize },
}

impl Work {
    fn blocks(&self) -> usize {
        match self {
            Self::Products(costs) => costs.len(),
            Self::Bytes { blocks } | Self::Strides { blocks } => *blocks,
        }
    }

    fn main_loop(&self) -> MainLoop {
        match self {
            Self::Strides { .. } => MainLoop::Moves,
            _ => MainLoop::Matrices,
        }
    }
}

/// A predicted launch.
#[derive(Clone, Debug)]
pub struct Prediction {
    pub seconds: f64,
    /// Share of all multiprocessors' time in which they have a block
    pub busy: f64,
    pub limit: Limit,
    /// Blocks that a multiprocessor holds at once
    pub resident: usize,
    /// Share of the tensor cores' time in the main loop
    pub tensor_share: Option<f64>,
    /// Instructions beside each HMMA in the main loop
    pub others_per_matrix: Option<f64>,
    pub slowdowns: Slowdowns,
}

/// Blocks of a kernel that a multiprocessor holds at once.
pub fn resident(kernel: &Kernel, launch: &Launch, card: &Card) -> usize {
    let architecture = card.architecture;
    // The system's kilobyte is in the static bytes from sm_90 on.
    let system = if kernel.static_shared >= 1024 { 0 } else { 1024 };
    let shared = (launch.shared.bytes(&kernel.name) + kernel.static_shared + system).next_multiple_of(128);
    let warps = launch.threads.div_ceil(32);
    // Registers are given out by the warp, 256 at a time, from the file of one of four schedulers.
    let by_registers = 65_536 / (kernel.registers * 32).next_multiple_of(256).max(1) / 4 * 4;
    let limits = [
        architecture.shared_memory.value as u32 / shared.max(1),
        architecture.max_threads.value as u32 / launch.threads,
        by_registers / warps,
        architecture.max_blocks.value as u32,
    ];
    limits.into_iter().min().unwrap_or(1).max(1) as usize
}

impl Launch {
    /// The memory that its loop loads from.
    fn memory(&self, card: &Card) -> Memory {
        let mut memory = Memory::of(card, self.from_dram, self.work.blocks() as f64);
        memory.bytes_per_cycle /= self.loads;
        if self.waits_for_dram {
            memory.latency = card.architecture.dram_latency.value;
        }
        memory.rounded()
    }
}

/// Cycles of a block by its multiply-adds, beside others that run as many rounds; none without a matrix instruction in
/// its loop.
fn cost_of(simulated: &Simulated, walk: &Walk, warps: usize) -> Option<impl Fn(f64) -> f64 + use<>> {
    let of_round: f64 = walk.round().iter().map(|step| multiply_adds(step.class)).sum::<f64>() * warps as f64;
    let (frame, round) = (simulated.frame, simulated.round.filter(|_| of_round > 0.0)?);
    // Each place runs its share of the multiprocessor's rounds.
    Some(move |products: f64| frame + (products / of_round - 1.0).max(0.0) * round.run.cycles)
}

/// Cycles of the first block of a launch of products, with `held` blocks on a multiprocessor at once.
///
/// # Errors
///
/// There is no such kernel, or no matrix instruction in a loop of it.
pub fn block_cycles(kernels: &Kernels, launch: &Launch, card: &Card, held: usize) -> Result<f64> {
    let kernel = kernels.find(&launch.kernel, card)?;
    let (main, warps) = (launch.work.main_loop(), launch.threads.div_ceil(32) as usize);
    let simulated = kernels.simulated(kernel, card, launch.threads, main, held, launch.memory(card));
    let products = match &launch.work {
        Work::Products(costs) => costs.first().copied().unwrap_or_default(),
        Work::Bytes { .. } | Work::Strides { .. } => 0.0,
    };
    let cost = cost_of(&simulated, &kernel.walk(launch.threads, main), warps);
    Ok(cost.with_context(|| no_products(kernel))?(products))
}

fn no_products(kernel: &Kernel) -> String {
    format!("{} on {}: no loop with a matrix instruction", kernel.name, kernel.code)
}

/// The time of a launch on a card, with its limit.
pub fn predict(kernels: &Kernels, launch: &Launch, card: &Card) -> Result<Prediction> {
    let kernel = kernels.find(&launch.kernel, card)?;
    let main = launch.work.main_loop();
    let walk = kernel.walk(launch.threads, main);
    let warps = launch.threads.div_ceil(32) as usize;
    let places = card.multiprocessors.value as usize;
    let round_steps = walk.round();
    let slowdowns = Slowdowns::of(if round_steps.is_empty() { &walk.steps } else { round_steps });
    // A grid may leave multiprocessors with fewer blocks than there is room for.
    let held = resident(kernel, launch, card).min(launch.work.blocks().div_ceil(places)).max(1);
    let simulated = kernels.simulated(kernel, card, launch.threads, main, held, launch.memory(card));
    let moved = launch.bytes / card.copy_bandwidth();
    let overhead = LAUNCH_RAMP.value + LAUNCH_GAP.value;
    match &launch.work {
        Work::Products(costs) => {
            let cost = cost_of(&simulated, &walk, warps).zip(simulated.round);
            let (cost, round) = cost.with_context(|| no_products(kernel))?;
            let Makespan { end, busy } = schedule::list(costs.iter().map(|&products| cost(products)), places * held);
            let computed = end / card.hz();
            let matrices = round_steps.iter().filter(|step| multiply_adds(step.class) > 0.0).count();
            Ok(Prediction {
                seconds: computed.max(moved) + overhead,
                busy,
                limit: if moved > computed { Limit::Memory } else { round.limit },
                resident: held,
                tensor_share: Some(round.tensor_share()),
                others_per_matrix: Some(round_steps.len() as f64 / matrices as f64 - 1.0),
                slowdowns,
            })
        }
        Work::Bytes { blocks } | Work::Strides { blocks } => {
            // The walk is of stand-in shapes: what counts is how fast it moves its bytes.
            let (steps, cycles, once) = match simulated.round {
                Some(round) => (round_steps, round.run.cycles, simulated.frame / card.hz()),
                None => (&walk.steps[..], simulated.frame, 0.0),
            };
            // Words whose place is not known are what such a kernel moves, not those of a table.
            let sectors = |step: &Step| if step.is_known { step.sectors } else { step.touched_sectors };
            let of_steps = steps.iter().map(|step| f64::from(sectors(step) * SECTOR)).sum::<f64>();
            let rate = of_steps * (warps * held) as f64 / cycles;
            let by_rate = launch.bytes / (rate * places.min(*blocks) as f64 * card.hz()) + once;
            Ok(Prediction {
                seconds: by_rate.max(moved) + overhead,
                busy: schedule::equal(*blocks, 1.0, places * held).busy,
                limit: if moved >= 0.7 * by_rate { Limit::Memory } else { Limit::Latency },
                resident: held,
                tensor_share: None,
                others_per_matrix: None,
                slowdowns,
            })
        }
    }
}

fn multiply_adds(class: Class) -> f64 {
    match class {
        Class::Matrix { multiply_adds } => f64::from(multiply_adds),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_held_as_registers_threads_and_shared_memory_allow() {
        let held = |registers, threads, bytes, name: &str| {
            let code = Code { arch: "sm_80".into(), name: "k".into(), instructions: Vec::new() };
            let resources = Resources { arch: "sm_80".into(), name: "k".into(), registers, local: 0, shared: 0 };
            let launch = Launch { shared: Shared::Bytes(bytes), ..Launch::moving("k", threads, 1, 1.0) };
            resident(&Kernel::new(code, &resources), &launch, crate::cards::card(name).unwrap())
        };
        // 255 registers are given out as 256.
        assert_eq!(held(255, 256, 77_000, "A6000"), 1);
        assert_eq!((held(128, 128, 52_288, "A6000"), held(128, 128, 39_500, "A6000")), (1, 2));
        assert_eq!((held(32, 256, 0, "A6000"), held(32, 256, 0, "H100")), (6, 8));
        assert_eq!((held(16, 32, 0, "A6000"), held(16, 32, 0, "L40S")), (16, 24));
        // 120 registers are 3,840 a warp, of which each scheduler's 16,384 are four.
        assert_eq!(held(120, 32, 0, "A100"), 16);
        // A small tile of bf16 weights: 100 KiB hold one of 75,904 bytes, 164 two, 228 three, of which each scheduler
        // has a warp of 5,376 registers.
        let small_dense = ["A6000", "L40S", "4090", "5090", "A100", "H100"].map(|name| held(168, 128, 74_816, name));
        assert_eq!(small_dense, [1, 1, 1, 1, 2, 3]);
        // 40 registers of 8 warps: 12 warps a scheduler, 6 blocks; 42 are given out as 48: 10 warps, 5 blocks.
        assert_eq!((held(40, 256, 64, "A100"), held(42, 256, 64, "A100")), (6, 5));
    }

    #[test]
    fn stages_are_counted_by_the_kernels_name() {
        let shared = Shared::Stages { tables: 1088, stage: 12_800 };
        assert_eq!(shared.bytes("linear_dx<Config<64, 4, 4, false>>"), 52_288);
        assert_eq!(Shared::Bytes(7).bytes("lora_down"), 7);
    }

    #[test]
    fn kernels_are_found_by_the_beginning_of_their_names() {
        let name = "linear_forward<Config<128, 8, 3, false, true>>";
        assert!(is_named(name, "linear_forward<Config<128, 8, *, false"));
        assert!(!is_named(name, "linear_forward<Config<128, 8, *, true"));
        assert!(is_named("lora_down", "lora_down"));
        assert!(!is_named("lora_down_masked", "lora_down"));
        assert!(!is_named("attention<128>", "attention<12"));
    }
}
