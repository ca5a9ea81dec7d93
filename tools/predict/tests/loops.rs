//! Loops whose limit is known, written by hand as machine code: the predictor has to find the limit, its cycles, and
//! each slowdown that is planted.

use kernel_inspect::sass::{self, Code};
use predict::calibration::{calibrated, constants};
use predict::cards::{Card, WRITTEN, with_measured};
use predict::limits::{Limit, Round, Slowdowns};
use predict::machine::walk::{MainLoop, Walk, walk};
use predict::simulator::Memory;
use records::calibration::{Calibration, Cycles};
use std::fmt::Write;

/// An instruction with its orders to the scheduler: stall, write barrier, barriers to wait for.
struct Line(&'static str, u64, Option<u64>, u64);

/// A kernel whose loop is `body` and whose last line jumps back.
fn code(before: &[Line], body: &[Line]) -> Code {
    let mut text = "\tcode for sm_80\n\t\tFunction : planted\n".to_owned();
    let mut address = 0;
    let mut line = |instruction: &str, stall: u64, write: Option<u64>, wait: u64| {
        let control = stall << 41 | 1 << 45 | write.unwrap_or(7) << 46 | 7 << 49 | wait << 52;
        let _ = writeln!(text, "        /*{address:04x}*/   {instruction} ;   /* 0x0000000000000000 */");
        let _ = writeln!(text, "                                              /* 0x{control:016x} */");
        address += 16;
    };
    before.iter().for_each(|Line(instruction, stall, write, wait)| line(instruction, *stall, *write, *wait));
    let start = 16 * before.len();
    body.iter().for_each(|Line(instruction, stall, write, wait)| line(instruction, *stall, *write, *wait));
    line(&format!("@P6 BRA 0x{start:x}"), 1, None, 0);
    line("EXIT", 1, None, 0);
    sass::parse(&text).remove(0)
}

const LANE: Line = Line("S2R R0, SR_TID.X", 1, None, 0);
const MATRIX: &str = "HMMA.16816.F32.BF16 R4, R8, R12, R4";

fn repeated(line: fn() -> Line, times: usize) -> Vec<Line> {
    (0..times).map(|_| line()).collect()
}

fn plenty() -> Memory {
    Memory { bytes_per_cycle: 1e6, latency: 100.0 }
}

/// The A6000 without measured constants, which change the cycles of loops.
fn a6000() -> &'static Card {
    WRITTEN.iter().find(|card| card.name == "A6000").unwrap()
}

fn round_of(before: &[Line], body: &[Line], memory: Memory) -> (Round, Walk) {
    let walk = walk(&code(before, body), 256, MainLoop::Matrices);
    (Round::of(walk.round(), a6000(), memory, 8, 1), walk)
}

/// An A6000 of which a calibration measured these cycles.
fn measured_as(cycles: Cycles) -> Card {
    let calibration = Calibration {
        date: "2025-01-31 23:59".to_owned(),
        gpu: "NVIDIA RTX A6000".to_owned(),
        compute_capability: "8.6".to_owned(),
        multiprocessors: 84,
        clock_ghz: 1.6,
        driver: None,
        cuda: "13.0".to_owned(),
        nvcc: "13.0.88".to_owned(),
        cycles,
    };
    let measured = constants(&calibrated(&calibration).unwrap());
    let cards = with_measured(&WRITTEN, &measured).unwrap();
    cards.into_iter().find(|card| card.name == "A6000").unwrap()
}

const CYCLES: Cycles = Cycles {
    hmma: 17.0,
    lds_32: 2.0,
    lds_32_one_scheduler: 4.0,
    lds_128: 8.0,
    lds_latency: 24.0,
    ldsm: 8.0,
    ldsm_latency: 36.0,
    ldgsts: 10.0,
    ldgsts_latency: 268.0,
    branch: 20.0,
    barrier: 26.0,
};

/// Within a hundredth, and a cycle for the loop's end.
#[track_caller]
fn takes(round: &Round, cycles: f64) {
    let found = round.run.cycles;
    assert!((found - cycles).abs() <= 0.01 * cycles + 1.0, "{found} cycles, expected {cycles}");
}

#[test]
fn matrix_instructions_alone_take_their_interval() {
    let body = repeated(|| Line(MATRIX, 1, None, 0), 32);
    let (round, walk) = round_of(&[], &body, plenty());
    assert_eq!(walk.round().len(), 33);
    // 32 of two warps on each scheduler, 16 cycles each.
    takes(&round, 32.0 * 2.0 * 16.0);
    assert_eq!(round.limit, Limit::Tensor);
    assert!(round.tensor_share() > 0.98);
}

#[test]
fn what_issues_every_cycle_is_bound_by_issue_slots() {
    // Two warps a scheduler, alternating between the two pipes, which take an instruction every cycle or two.
    let mut body = vec![Line(MATRIX, 1, None, 0)];
    for _ in 0..100 {
        body.push(Line("FFMA R20, R21, R22, R23", 1, None, 0));
        body.push(Line("IADD3 R24, R25, R26, RZ", 1, None, 0));
    }
    let (round, _) = round_of(&[], &body, plenty());
    assert_eq!(round.limit, Limit::Issue);
    // A jump costs beside its slot.
    assert!((404.0..440.0).contains(&round.run.cycles), "{}", round.run.cycles);
}

#[test]
fn loads_of_shared_memory_are_bound_by_its_banks() {
    let before = [LANE, Line("SHF.L.U32 R1, R0, 0x4, RZ", 1, None, 0)];
    let mut body = repeated(|| Line("LDS.128 R32, [R1]", 1, Some(0), 0), 32);
    body.push(Line(MATRIX, 1, None, 1));
    let (round, _) = round_of(&before, &body, plenty());
    // Four wavefronts each, eight warps.
    assert_eq!((round.limit, round.bounds.shared), (Limit::Shared, 32.0 * 4.0 * 8.0));
    assert!(round.run.cycles < 1.1 * round.bounds.shared, "{}", round.run.cycles);
}

#[test]
fn copies_that_come_slower_than_they_are_used_are_bound_by_memory() {
    let before = [LANE, Line("SHF.L.U32 R1, R0, 0x4, RZ", 1, None, 0)];
    let mut body = vec![Line("DEPBAR.LE SB0, 0x1", 1, None, 0)];
    body.extend(repeated(|| Line("LDGSTS.E.BYPASS.128 [R1], [R1.64]", 1, None, 0), 4));
    body.push(Line("LDGDEPBAR", 1, None, 0));
    body.push(Line(MATRIX, 1, None, 0));
    let memory = Memory { bytes_per_cycle: 8.0, latency: 400.0 };
    let (round, _) = round_of(&before, &body, memory);
    // 512 bytes a copy.
    takes(&round, 4.0 * 512.0 * 8.0 / 8.0);
    assert_eq!(round.limit, Limit::Memory);
}

#[test]
fn one_load_after_the_other_takes_a_latency_each() {
    let before = [LANE, Line("SHF.L.U32 R1, R0, 0x2, RZ", 1, None, 0)];
    let mut body = Vec::new();
    for _ in 0..4 {
        body.push(Line("LDG.E R32, [R1.64]", 1, Some(0), 0));
        body.push(Line("IADD3 R1, R32, R1, RZ", 1, None, 1));
    }
    body.push(Line(MATRIX, 1, None, 0));
    let memory = Memory { bytes_per_cycle: 1e6, latency: 500.0 };
    let (round, walk) = round_of(&before, &body, memory);
    assert_eq!(round.limit, Limit::Latency);
    assert!((4.0 * 500.0..4.0 * 540.0).contains(&round.run.cycles), "{}", round.run.cycles);
    assert!(round.run.stalls.memory > 0.9);
    // Each load is reported as waited for; with all four under way at once there is nothing to report.
    assert_eq!(Slowdowns::of(walk.round()).serialized, 4);
    let mut together: Vec<Line> = repeated(|| Line("LDG.E R32, [R1.64]", 1, Some(0), 0), 4);
    together.push(Line("IADD3 R2, R32, R1, RZ", 1, None, 1));
    together.push(Line(MATRIX, 1, None, 0));
    let (faster, walk) = round_of(&before, &together, memory);
    assert_eq!(Slowdowns::of(walk.round()).serialized, 1);
    assert!(faster.run.cycles < 0.3 * round.run.cycles);
}

#[test]
fn a_bank_conflict_is_reported_and_costs_its_wavefronts() {
    let slow = |shift: &'static str| {
        let before = [LANE, Line(shift, 1, None, 0)];
        let mut body = repeated(|| Line("LDS R32, [R1+0x40]", 1, Some(0), 0), 16);
        body.push(Line(MATRIX, 1, None, 1));
        round_of(&before, &body, plenty())
    };
    let (plain, walk) = slow("IMAD.SHL.U32 R1, R0, 0x4, RZ");
    assert_eq!(Slowdowns::of(walk.round()), Slowdowns { uncoalesced: (0, 1.0), ..Slowdowns::default() });
    // Every lane 32 bytes from the next: eight in each of four banks.
    let (conflicting, walk) = slow("IMAD.SHL.U32 R1, R0, 0x20, RZ");
    let found = Slowdowns::of(walk.round());
    assert_eq!(found.conflicts, (16, 16 * 7));
    assert!(found.lines()[0].contains("16 accesses with bank conflicts, 112 wavefronts on top"));
    assert_eq!(conflicting.limit, Limit::Shared);
    assert!(conflicting.run.cycles > 5.0 * plain.run.cycles);
}

#[test]
fn an_uncoalesced_load_is_reported() {
    let load = |shift: &'static str| {
        let before = [LANE, Line(shift, 1, None, 0)];
        let walk = walk(
            &code(&before, &[Line("LDG.E R32, [R1.64]", 1, Some(0), 0), Line(MATRIX, 1, None, 1)]),
            256,
            MainLoop::Matrices,
        );
        Slowdowns::of(walk.round())
    };
    assert_eq!(load("IMAD.SHL.U32 R1, R0, 0x4, RZ").uncoalesced, (0, 1.0));
    let scattered = load("IMAD.SHL.U32 R1, R0, 0x80, RZ");
    assert_eq!(scattered.uncoalesced, (1, 0.125));
    assert!(scattered.lines()[0].contains("12% of their bytes of use"), "{:?}", scattered.lines());
}

#[test]
fn a_branch_for_each_element_is_reported_and_costs_more_than_none() {
    let mut branching = vec![Line(MATRIX, 1, None, 0)];
    let mut straight = vec![Line(MATRIX, 1, None, 0)];
    // The condition of each is not known: it skips a comparison, which is no work.
    const BRANCHES: [&str; 8] = [
        "@!P4 BRA 0x30",
        "@!P4 BRA 0x50",
        "@!P4 BRA 0x70",
        "@!P4 BRA 0x90",
        "@!P4 BRA 0xb0",
        "@!P4 BRA 0xd0",
        "@!P4 BRA 0xf0",
        "@!P4 BRA 0x110",
    ];
    for branch in BRANCHES {
        branching.push(Line(branch, 1, None, 0));
        branching.push(Line("ISETP.GE.AND P5, PT, R30, R31, PT", 1, None, 0));
        straight.push(Line("FSEL R30, R30, R31, P4", 1, None, 0));
    }
    let (slow, walk) = round_of(&[], &branching, plenty());
    assert_eq!(Slowdowns::of(walk.round()).branches, 8);
    assert!(walk.round().iter().filter(|step| step.is_guessed).count() == 8);
    let (fast, walk) = round_of(&[], &straight, plenty());
    assert_eq!(Slowdowns::of(walk.round()).lines(), Vec::<String>::new());
    assert!(slow.run.cycles > 2.0 * fast.run.cycles, "{} {}", slow.run.cycles, fast.run.cycles);
}

#[test]
fn a_barrier_makes_all_warps_wait_for_the_last() {
    let barrier = || Line("BAR.SYNC 0x0", 5, None, 0);
    let (round, _) = round_of(&[], &[barrier(), barrier(), barrier(), Line(MATRIX, 1, None, 0)], plenty());
    let latency = a6000().architecture.barrier_latency.value;
    assert!(round.run.cycles >= 3.0 * latency, "{}", round.run.cycles);
    assert_eq!(round.limit, Limit::Latency);
    assert!(round.run.stalls.issued < 0.5);
}

#[test]
fn loops_of_known_length_run_so_often_and_others_once() {
    // Four rounds of a copy loop that starts at the thread's number, before the main loop.
    let before = [
        LANE,
        Line("IMAD.MOV.U32 R2, RZ, RZ, R0", 1, None, 0),
        Line("LDGSTS.E.BYPASS.128 [R2], [R2.64]", 1, None, 0),
        Line("IADD3 R2, R2, 0x100, RZ", 1, None, 0),
        Line("ISETP.GE.AND P0, PT, R2, 0x400, PT", 1, None, 0),
        Line("@!P0 BRA 0x20", 1, None, 0),
        // The condition of this one comes from memory.
        Line("LDG.E R9, [R2.64]", 1, Some(0), 0),
        Line("ISETP.NE.AND P1, PT, R9, RZ, PT", 1, None, 1),
        Line("@P1 BRA 0x60", 1, None, 0),
    ];
    let walk = walk(&code(&before, &[Line(MATRIX, 1, None, 0)]), 256, MainLoop::Matrices);
    let count = |index: usize| walk.steps.iter().filter(|step| step.index == index).count();
    assert_eq!((count(2), count(6)), (4, 1));
    // The main loop, twice.
    assert_eq!((count(9), walk.round().len()), (2, 2));
}

#[test]
fn the_loop_of_a_grid_that_strides_is_the_widest_that_moves() {
    // A search in a table first, then a loop that loads and stores.
    let before = [
        Line("LDG.E R9, [R2.64]", 1, Some(0), 0),
        Line("ISETP.NE.AND P1, PT, R9, RZ, PT", 1, None, 1),
        Line("@P1 BRA 0x0", 1, None, 0),
        LANE,
        Line("IMAD.SHL.U32 R1, R0, 0x4, RZ", 1, None, 0),
    ];
    let body = [Line("LDG.E R32, [R1.64]", 1, Some(0), 0), Line("STG.E [R1.64], R32", 1, None, 1)];
    let walk = walk(&code(&before, &body), 256, MainLoop::Moves);
    let round: Vec<usize> = walk.round().iter().map(|step| step.index).collect();
    assert_eq!(round, [5, 6, 7]);
}

/// The constants that follow from a calibration give its cycles again, in the simulator, for the loops that it timed.
#[test]
fn the_constants_of_a_calibration_bring_back_its_cycles() {
    let card = measured_as(Cycles { lds_128: 4.0, ..CYCLES });
    let memory = Memory::of(&card, 0.0, 1.0);
    let before = [LANE, Line("SHF.L.U32 R1, R0, 0x4, RZ", 1, None, 0)];
    let cycles = |body: Vec<Line>, warps: usize| {
        // Something that the loop is found by.
        let body: Vec<Line> = body.into_iter().chain([Line(MATRIX, 1, None, 0)]).collect();
        let walk = walk(&code(&before, &body), 32 * warps as u32, MainLoop::Matrices);
        Round::of(walk.round(), &card, memory, warps, 1).run.cycles
    };
    let near = |what: &str, found: f64, expected: f64| {
        // The loop's own branch is in it.
        assert!((found - expected).abs() <= 0.01 * expected + 8.0, "{what}: {found}, expected {expected}");
    };
    let loads = repeated(|| Line("LDS R1, [R1]", 4, Some(0), 1), 64);
    near("LDS", cycles(loads, 1), 64.0 * CYCLES.lds_latency);
    let loads = repeated(|| Line("LDSM.16.M88.4 R4, [R4]", 4, Some(0), 1), 64);
    near("LDSM", cycles(loads, 1), 64.0 * CYCLES.ldsm_latency);
    let mut copies = Vec::new();
    for _ in 0..16 {
        copies.push(Line("LDGSTS.E.BYPASS.128 [R1], [R1.64]", 4, None, 0));
        copies.push(Line("LDGDEPBAR", 1, None, 0));
        copies.push(Line("DEPBAR.LE SB0, 0x0", 4, None, 0));
    }
    near("LDGSTS", cycles(copies, 1), 16.0 * CYCLES.ldgsts_latency);
    // Each to the next instruction, behind the two before the loop.
    let jump = |index: usize| Line(format!("BRA 0x{:x}", 16 * (index + 3)).leak(), 5, None, 0);
    near("branch", cycles((0..96).map(jump).collect(), 1), 96.0 * CYCLES.branch);
    let barriers = repeated(|| Line("BAR.SYNC 0x0", 6, None, 0), 256);
    near("barrier", cycles(barriers, 8), 256.0 * CYCLES.barrier);
    let matrices = repeated(|| Line(MATRIX, 1, None, 0), 63);
    near("HMMA", cycles(matrices, 8), 64.0 * 2.0 * CYCLES.hmma);
}

#[test]
fn shared_memory_that_was_measured_as_half_as_wide_takes_twice_as_long() {
    let before = [LANE, Line("SHF.L.U32 R1, R0, 0x4, RZ", 1, None, 0)];
    let mut body = repeated(|| Line("LDS.128 R32, [R1]", 1, Some(0), 0), 32);
    body.push(Line(MATRIX, 1, None, 1));
    let walk = walk(&code(&before, &body), 256, MainLoop::Matrices);
    let round = |lds_128: f64| {
        let card = measured_as(Cycles { lds_128, ..CYCLES });
        Round::of(walk.round(), &card, plenty(), 8, 1)
    };
    let (whole, half) = (round(4.0), round(8.0));
    assert_eq!((whole.bounds.shared, half.bounds.shared), (32.0 * 4.0 * 8.0, 2.0 * 32.0 * 4.0 * 8.0));
    assert!(half.run.cycles > 1.7 * whole.run.cycles, "{} {}", half.run.cycles, whole.run.cycles);
}
