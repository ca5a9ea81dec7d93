//! The path of a warp through a kernel. Branches are followed where the launch decides them. The main loop runs twice,
//! so that its second round stands for all others; a loop of unknown length runs one round.

use super::access;
use super::class::Class;
use super::lanes::{Mask, Predicate};
use super::operand::{self, Parsed};
use super::registers::Registers;
use kernel_inspect::sass::{Code, Control};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// An instruction that the warp executes.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its place in [`Code::instructions`].
    pub index: usize,
    pub class: Class,
    pub control: Control,
    /// Cycles of the banks of shared memory.
    pub wavefronts: u32,
    /// Cycles of an access without conflicts.
    pub ideal_wavefronts: u32,
    /// Sectors of global memory that the access touches.
    pub touched_sectors: u32,
    /// Sectors from beyond the L1: not what the warp has just loaded.
    pub sectors: u32,
    /// Bytes of them that the warp asked for.
    pub useful_bytes: u32,
    /// True if the addresses are known; otherwise an access without conflicts is assumed.
    pub is_known: bool,
    /// A branch that goes elsewhere.
    pub jumps: bool,
    /// A branch whose condition is not known: the code that it skips decides.
    pub is_guessed: bool,
}

/// The steps of one warp.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    pub steps: Vec<Step>,
    /// One round of the main loop in them.
    pub round: Option<Range<usize>>,
}

impl Walk {
    pub fn round(&self) -> &[Step] {
        self.round.clone().map_or(&[], |round| &self.steps[round])
    }

    /// A warp's steps before and after its rounds, with a first round, for which nothing was prefetched.
    pub fn once(&self) -> Vec<Step> {
        match &self.round {
            Some(round) => [&self.steps[..round.start], &self.steps[round.end..]].concat(),
            None => self.steps.clone(),
        }
    }
}

/// Steps at most: a longer walk has gone astray.
const MOST_STEPS: usize = 60_000;
/// Sectors of the L1 that are a warp's own: of 32 KB, a warp's share where 8 run.
const L1_SECTORS: usize = 128;
/// Instructions from a call to what it names, where it is a jump.
const NEAR: usize = 4;
/// Rounds at most of a loop of known length.
const MOST_ROUNDS: usize = 16;
/// Rounds at most of a loop that moves nothing: a search in the arguments.
const MOST_IDLE_ROUNDS: usize = 2;

struct Walker<'a> {
    code: &'a Code,
    parsed: Vec<Parsed<'a>>,
    classes: Vec<Class>,
    by_address: HashMap<u64, usize>,
    main: Option<Range<usize>>,
    registers: Registers,
    rounds: HashMap<usize, usize>,
    calls: Vec<usize>,
    /// The sectors that the warp has touched last.
    in_l1: VecDeque<u32>,
}

/// The loop whose rounds are a kernel's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MainLoop {
    /// The one with the most matrix instructions, if there is one
    Matrices,
    /// The one that moves the most: of a grid that strides over its work
    Moves,
}

/// The widest of the loops with the most accesses of global memory.
fn loop_of_moves(code: &Code, classes: &[Class]) -> Option<Range<usize>> {
    let moves = |class: &&Class| matches!(class, Class::GlobalLoad { .. } | Class::GlobalStore { .. });
    let count = |span: &Range<usize>| classes[span.clone()].iter().filter(moves).count();
    code.loops().filter(|span| count(span) > 0).max_by_key(|span| (count(span), span.len()))
}

/// The walk of the first warp of a block of `threads` threads.
pub fn walk(code: &Code, threads: u32, main: MainLoop) -> Walk {
    let parsed: Vec<Parsed> = code.instructions.iter().map(|instruction| operand::parse(&instruction.text)).collect();
    let classes: Vec<Class> = parsed.iter().map(|parsed| Class::of(parsed.opcode, &parsed.operands)).collect();
    let by_address = code.instructions.iter().enumerate().map(|(index, found)| (found.address, index)).collect();
    let main = match main {
        MainLoop::Matrices => code.main_loop_span(),
        MainLoop::Moves => loop_of_moves(code, &classes),
    };
    let walker = Walker {
        code,
        parsed,
        classes,
        by_address,
        main,
        registers: Registers::new(threads),
        rounds: HashMap::new(),
        calls: Vec::new(),
        in_l1: VecDeque::new(),
    };
    walker.run()
}

impl Walker<'_> {
    fn run(mut self) -> Walk {
        let mut walk = Walk::default();
        let mut starts = Vec::new();
        let mut at = 0;
        while at < self.parsed.len() && walk.steps.len() < MOST_STEPS {
            if self.main.as_ref().is_some_and(|main| main.start == at) {
                starts.push(walk.steps.len());
            }
            let guard = self.registers.guard(&self.parsed[at]);
            let mut step = self.step(at, guard);
            let next = self.next(at, guard, &mut step);
            if !self.leaves_out(at, guard) {
                self.registers.execute(&self.parsed[at]);
            }
            let left_main = self.main.as_ref().is_some_and(|main| main.contains(&at) && !main.contains(&next))
                && self.calls.is_empty();
            walk.steps.push(step);
            if left_main && starts.len() >= 2 && walk.round.is_none() {
                // A round like all others ends with the jump to the next.
                if let Some(last) = walk.steps.last_mut() {
                    last.jumps = true;
                }
                walk.round = Some(starts[1]..walk.steps.len());
            }
            at = next;
        }
        // A loop that is left before the end of its second round has had one whole round.
        if walk.round.is_none() && starts.len() >= 2 {
            walk.round = Some(starts[0]..starts[1]);
        }
        walk
    }

    /// An instruction with this guard does nothing.
    fn leaves_out(&self, at: usize, guard: Predicate) -> bool {
        let never = matches!(self.parsed[at].guard, Some(("PT" | "UPT", true)));
        never || guard.is_some_and(|guard| guard.bits == 0 && !guard.supposed)
    }

    fn step(&mut self, at: usize, guard: Predicate) -> Step {
        let instruction = &self.code.instructions[at];
        let mut step = Step {
            index: at,
            class: self.classes[at],
            control: instruction.control,
            wavefronts: 0,
            ideal_wavefronts: 0,
            touched_sectors: 0,
            sectors: 0,
            useful_bytes: 0,
            is_known: true,
            jumps: false,
            is_guessed: false,
        };
        if self.leaves_out(at, guard) {
            step.class = Class::Control;
            return step;
        }
        let active = guard.map_or(u32::MAX, |mask| if mask.supposed { u32::MAX } else { mask.bits });
        let in_brackets = self.parsed[at].operands.iter().filter(|text| text.ends_with(']'));
        let addresses: Vec<_> = in_brackets.map(|text| self.registers.address(text).map(|known| known.lanes)).collect();
        let address = |index: usize| addresses.get(index).copied().flatten();
        match step.class {
            Class::Shared { bytes, .. } => Self::shared(&mut step, address(0), active, bytes),
            Class::MatrixLoad { matrices } => {
                let rows = if matrices == 4 { u32::MAX } else { (1 << (8 * matrices)) - 1 };
                Self::shared(&mut step, address(0), active & rows, 16);
                step.ideal_wavefronts = matrices;
                if !step.is_known {
                    step.wavefronts = matrices;
                }
            }
            Class::Shuffle => (step.wavefronts, step.ideal_wavefronts) = (2, 2),
            Class::GlobalLoad { bytes } | Class::GlobalStore { bytes } => {
                self.global(&mut step, address(0), active, bytes);
            }
            Class::Copy { bytes } => {
                Self::shared(&mut step, address(0), active, bytes);
                self.global(&mut step, address(1), active, bytes);
            }
            _ => {}
        }
        step
    }

    fn shared(step: &mut Step, addresses: Option<super::lanes::Lanes>, active: u32, bytes: u32) {
        let lanes = active.count_ones();
        step.ideal_wavefronts = (access::ideal_wavefronts(bytes) * lanes).div_ceil(32).max(1);
        step.wavefronts = match addresses {
            Some(addresses) => access::wavefronts(&addresses, active, bytes),
            None => {
                step.is_known = false;
                step.ideal_wavefronts
            }
        };
    }

    fn global(&mut self, step: &mut Step, addresses: Option<super::lanes::Lanes>, active: u32, bytes: u32) {
        step.useful_bytes = active.count_ones() * bytes;
        step.touched_sectors = match addresses {
            Some(addresses) => {
                let sectors = access::sectors(&addresses, active, bytes);
                step.sectors = match step.class {
                    Class::GlobalLoad { .. } => sectors.iter().filter(|sector| !self.in_l1.contains(sector)).count(),
                    _ => sectors.len(),
                } as u32;
                for &sector in &sectors {
                    self.in_l1.push_back(sector);
                }
                let most = self.in_l1.len().saturating_sub(L1_SECTORS);
                self.in_l1.drain(..most);
                sectors.len() as u32
            }
            None => {
                step.is_known = false;
                let sectors = step.useful_bytes.div_ceil(access::SECTOR);
                // A word whose place is not known is one of a table, which the caches hold.
                let is_of_table = matches!(step.class, Class::GlobalLoad { bytes: 4 });
                step.sectors = if is_of_table { 0 } else { sectors };
                sectors
            }
        };
    }

    /// True in the lanes that take a branch, by its guard and the predicate that it may have beside that.
    fn condition(&self, at: usize, guard: Predicate) -> Predicate {
        let parsed = &self.parsed[at];
        let beside = parsed.operands.first().filter(|text| text.trim_start_matches('!').starts_with(['U', 'P']));
        match beside {
            Some(name) if parsed.operands.len() > 1 => {
                let (a, b) = (guard?, self.registers.predicate(name)?);
                Some(Mask { bits: a.bits & b.bits, supposed: a.supposed || b.supposed })
            }
            _ => guard,
        }
    }

    /// The index of the warp's next instruction.
    fn next(&mut self, at: usize, guard: Predicate, step: &mut Step) -> usize {
        let after = at + 1;
        let parsed = &self.parsed[at];
        let is_conditional = parsed.guard.is_some() || parsed.operands.len() > 1;
        let end = self.parsed.len();
        let opcode = parsed.opcode;
        match opcode.split('.').next().unwrap_or_default() {
            "EXIT" => match is_conditional {
                // Warps that have nothing to do are not looked at.
                true => after,
                false => end,
            },
            "CALL" => {
                let target = parsed.operands.last().and_then(|text| operand::immediate(text));
                match target.and_then(|target| self.by_address.get(&u64::from(target))) {
                    // Out of a loop, to what follows it: a call that never returns.
                    Some(&target) if target > at && target <= at + NEAR => {
                        step.jumps = self.skips(at, target, guard, step);
                        if step.jumps { target } else { after }
                    }
                    Some(&target) if self.calls.len() < 4 && !self.is_decided_against(at, guard) => {
                        self.calls.push(after);
                        step.jumps = true;
                        target
                    }
                    _ => after,
                }
            }
            "RET" => {
                step.jumps = true;
                self.calls.pop().unwrap_or(end)
            }
            "BRA" if opcode.contains(".DIV") => after,
            "BRA" => {
                let target = self.code.instructions[at].target.and_then(|target| self.by_address.get(&target)).copied();
                let Some(target) = target else { return after };
                let taken = if target <= at {
                    self.goes_round(at, target, guard)
                } else if is_conditional {
                    self.skips(at, target, guard, step)
                } else {
                    true
                };
                step.jumps = taken;
                if taken { target } else { after }
            }
            _ => after,
        }
    }

    fn is_decided_against(&self, at: usize, guard: Predicate) -> bool {
        self.condition(at, guard).is_some_and(|mask| mask.bits == 0)
    }

    /// True if a branch backward is taken once more.
    fn goes_round(&mut self, at: usize, target: usize, guard: Predicate) -> bool {
        let is_main = self.main.as_ref().is_some_and(|main| main.start == target && main.end == at + 1);
        let body = target..at + 1;
        let has = |of: fn(&Class) -> bool| self.classes[body.clone()].iter().any(of);
        let holds_matrices = has(|class| matches!(class, Class::Matrix { .. }));
        let most = match () {
            () if is_main => 2,
            () if holds_matrices => 1,
            () if has(|class| class.is_work()) => MOST_ROUNDS,
            () => MOST_IDLE_ROUNDS,
        };
        let known = self.condition(at, guard).map(|mask| mask.bits != 0);
        let rounds = self.rounds.entry(at).or_insert(1);
        let taken = if is_main { *rounds < most } else { known.unwrap_or(false) && *rounds < most };
        *rounds = if taken { *rounds + 1 } else { 1 };
        taken
    }

    /// True if a branch forward is taken. If its condition is not known, the code that it would skip runs where that
    /// holds work, and is skipped where it only handles a special case.
    fn skips(&self, at: usize, target: usize, guard: Predicate, step: &mut Step) -> bool {
        let in_main = |at: usize| self.main.as_ref().is_some_and(|main| main.contains(&at));
        // The main loop is left at its end alone.
        if in_main(at) && !in_main(target) && self.calls.is_empty() {
            let main = self.main.clone().unwrap_or_default();
            let rounds = self.rounds.get(&(main.end - 1)).copied().unwrap_or(1);
            let at_head = !self.classes[main.start..at].iter().any(is_product);
            return !at_head && rounds >= 2 && !self.classes[at + 1..main.end].iter().any(is_product);
        }
        // Arguments that stand in may leave nothing for it to do.
        if self.main.as_ref().is_some_and(|main| at < main.start && target >= main.end) {
            return false;
        }
        match self.condition(at, guard) {
            Some(mask) => mask.bits != 0,
            None => {
                step.is_guessed = true;
                !self.classes[at + 1..target].iter().any(|class| class.is_work())
            }
        }
    }
}

fn is_product(class: &Class) -> bool {
    matches!(class, Class::Matrix { .. })
}
