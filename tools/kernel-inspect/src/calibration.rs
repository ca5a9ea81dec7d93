//! The micro-kernels of `benches/calibration` in machine code: the loop of each has to hold the instructions that its
//! figure is divided by, and little else.

use anyhow::{Context, Result};
use kernel_inspect::sass::{Code, Instruction};
use std::ops::Range;
use tools_support::cuda::ARCHS;

/// A micro-kernel.
pub struct MicroKernel {
    pub name: &'static str,
    /// The beginning of the timed instruction: `LDS.128`
    pub timed: &'static str,
    /// Instructions of a round: those of `calibrate.cu`
    pub count: usize,
    /// Other instructions that belong into a round, and how often
    pub with: &'static [(&'static str, usize)],
    /// Other instructions at most: the loop's own, and addresses
    pub others: usize,
}

const fn alone(name: &'static str, timed: &'static str, count: usize) -> MicroKernel {
    MicroKernel { name, timed, count, with: &[], others: 12 }
}

pub const MICRO_KERNELS: [MicroKernel; 10] = [
    alone("hmma", "HMMA.16816.F32.BF16", 64),
    alone("lds_32", "LDS", 32),
    alone("lds_128", "LDS.128", 16),
    alone("lds_latency", "LDS", 64),
    alone("ldsm", "LDSM.16.M88.4", 16),
    alone("ldsm_latency", "LDSM.16.M88.4", 64),
    // Addresses of 64 bits beside the copies: an instruction or two each, in slots that are free.
    MicroKernel {
        name: "ldgsts",
        timed: "LDGSTS.E.BYPASS.128",
        count: 16,
        with: &[("LDGDEPBAR", 1), ("DEPBAR.LE", 1)],
        others: 24,
    },
    MicroKernel {
        name: "ldgsts_latency",
        timed: "LDGSTS.E.BYPASS.128",
        count: 16,
        with: &[("LDGDEPBAR", 16), ("DEPBAR.LE", 16)],
        others: 24,
    },
    alone("branch", "BRA", 24),
    MicroKernel { others: 4, ..alone("barrier", "BAR.SYNC", 64) },
];

/// The stall of a branch that jumps, which `tools/predict` takes off its figure, and the most of the few that wait for
/// their condition.
const BRANCH_STALLS: [u8; 2] = [5, 12];

/// A round of the kernel's loop: of its innermost loops the one with most instructions, each branch forward taken. The
/// loop's own branch comes last.
fn round(code: &Code) -> Option<Vec<&Instruction>> {
    let loops: Vec<Range<usize>> = code.loops().collect();
    let contains_another = |span: &Range<usize>| {
        loops.iter().any(|inner| inner != span && span.start <= inner.start && inner.end <= span.end)
    };
    let innermost = loops.iter().filter(|&span| !contains_another(span));
    let span = innermost.max_by_key(|span| span.len())?.clone();
    let mut way = Vec::new();
    let mut at = span.start;
    while at < span.end {
        let instruction = &code.instructions[at];
        way.push(instruction);
        let ahead = instruction.target.filter(|&target| target > instruction.address);
        let place =
            ahead.and_then(|target| code.instructions[at..span.end].iter().position(|other| other.address == target));
        at += place.unwrap_or(1);
    }
    Some(way)
}

/// Opcode with its suffixes, without the guard; none where the instruction never executes or does nothing.
fn opcode(instruction: &Instruction) -> Option<&str> {
    let mut words = instruction.text.split_whitespace();
    let first = words.next()?;
    let (guard, opcode) = if first.starts_with('@') { (first, words.next()?) } else { ("", first) };
    (guard != "@!PT" && instruction.opcode != "NOP").then_some(opcode)
}

/// True if an opcode is the timed one: `LDS.128` is no `LDS`, but `BAR.SYNC.DEFER_BLOCKING` is a `BAR.SYNC`.
fn is(opcode: &str, timed: &str) -> bool {
    let is_wider = timed == "LDS" && ["64", "128"].iter().any(|width| opcode.ends_with(&format!(".{width}")));
    opcode.strip_prefix(timed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && !is_wider
}

/// Instructions that keep busy what the micro-kernels time, or the memory: none belongs beside another.
const WEIGHTY: [&str; 12] =
    ["HMMA", "LDS", "STS", "LDSM", "LDG", "STG", "LDL", "STL", "LDGSTS", "BAR", "SHFL", "ATOMS"];

/// Faults of one micro-kernel of one architecture, in sentences.
fn faults(kernel: &MicroKernel, code: &Code) -> Vec<String> {
    let at = format!("{} for {}", kernel.name, code.arch);
    let Some(way) = round(code) else {
        return vec![format!("{at} has no loop: the compiler took it apart, so that its figure means nothing")];
    };
    // The last one closes the loop.
    let chain: Vec<(&str, &Instruction)> =
        way[..way.len() - 1].iter().filter_map(|&instruction| Some((opcode(instruction)?, instruction))).collect();
    let count = |name: &str| chain.iter().filter(|(opcode, _)| is(opcode, name)).count();
    let mut found = Vec::new();
    for &(name, wanted) in [(kernel.timed, kernel.count)].iter().chain(kernel.with) {
        let counted = count(name);
        if counted != wanted {
            found.push(format!("{at}: its loop holds {counted} {name}, expected {wanted}"));
        }
    }
    let known = |opcode: &str| is(opcode, kernel.timed) || kernel.with.iter().any(|(name, _)| is(opcode, name));
    let others: Vec<&str> = chain.iter().map(|(opcode, _)| *opcode).filter(|&opcode| !known(opcode)).collect();
    if others.len() > kernel.others {
        let (count, most) = (others.len(), kernel.others);
        found.push(format!("{at}: its loop holds {count} others, at most {most}: {}", others.join(" ")));
    }
    let weighty = others.iter().filter(|opcode| WEIGHTY.iter().any(|name| opcode.split('.').next() == Some(*name)));
    found.extend(weighty.map(|opcode| format!("{at}: its loop holds a {opcode}")));
    if kernel.timed == "BRA" {
        let stalls: Vec<u8> =
            chain.iter().filter(|(opcode, _)| is(opcode, "BRA")).map(|(_, branch)| branch.control.stall).collect();
        let [usual, most] = BRANCH_STALLS;
        let is_usual = 2 * stalls.iter().filter(|&&stall| stall == usual).count() >= stalls.len();
        if !is_usual || stalls.iter().any(|&stall| stall > most) {
            found.push(format!("{at}: branches stall {stalls:?} cycles, expected mostly {usual} and at most {most}"));
        }
    }
    found
}

/// Faults of all micro-kernels of all architectures; an error if one is missing.
pub fn findings(code: &[Code]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for kernel in &MICRO_KERNELS {
        for arch in ARCHS {
            let of_arch = code.iter().find(|code| code.arch == arch && code.name == kernel.name);
            let of_arch = of_arch.with_context(|| format!("calibrate.cu has no kernel {} for {arch}", kernel.name))?;
            found.extend(faults(kernel, of_arch));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_inspect::sass;

    /// A kernel whose loop is `body`, after one instruction.
    fn code(body: &[&str]) -> Code {
        let mut text =
            "\tcode for sm_80\n\t\tFunction : made\n/*0000*/ MOV R1, R2 ; /* 0x0000000000000000 */\n".to_owned();
        let lines = body.iter().copied().chain(["@P0 BRA 0x10", "EXIT"]);
        for (index, line) in lines.enumerate() {
            text += &format!(
                "/*{:04x}*/ {line} ; /* 0x0000000000000000 */\n/* 0x{:016x} */\n",
                16 * (index + 1),
                5_u64 << 41
            );
        }
        // The branch to itself after the end.
        let end = 16 * (body.len() + 3);
        text += &format!("/*{end:04x}*/ BRA 0x{end:x} ; /* 0x0000000000000000 */\n");
        sass::parse(&text).remove(0)
    }

    fn of(body: &[&str], timed: &'static str, count: usize) -> Vec<String> {
        faults(&alone("made", timed, count), &code(body))
    }

    #[test]
    fn a_loop_of_the_timed_instructions_and_little_else_has_no_fault() {
        let body = ["LDS R3, [R4]", "IADD3 R5, R5, 0x1, RZ", "LDS R6, [R4+0x80]", "@!PT LDS RZ, [RZ]", "NOP"];
        assert_eq!(of(&body, "LDS", 2), Vec::<String>::new());
        assert_eq!(of(&["BAR.SYNC.DEFER_BLOCKING 0x0"; 3], "BAR.SYNC", 3), Vec::<String>::new());
    }

    #[test]
    fn instructions_that_the_compiler_merged_or_added_are_found() {
        let body = ["LDS R3, [R4]", "LDS.128 R8, [R4]"];
        let found = of(&body, "LDS", 2);
        assert_eq!(found[0], "made for sm_80: its loop holds 1 LDS, expected 2");
        assert_eq!(found[1], "made for sm_80: its loop holds a LDS.128");
        let found = of(&["LDS.128 R8, [R4]", "STS [R4], R9"], "LDS.128", 1);
        assert_eq!(found, ["made for sm_80: its loop holds a STS"]);
        let body: Vec<&str> = ["HMMA.16816.F32.BF16 R4, R8, R2, R4"].into_iter().chain(["MOV R1, R2"; 13]).collect();
        let found = of(&body, "HMMA.16816.F32.BF16", 1);
        assert!(found.len() == 1 && found[0].contains("holds 13 others, at most 12: MOV MOV"), "{found:?}");
        let straight = Code { instructions: code(&[]).instructions[..1].to_vec(), ..code(&[]) };
        assert!(faults(&alone("made", "LDS", 1), &straight)[0].contains("has no loop"));
        let missing = findings(&[straight]).unwrap_err().to_string();
        assert_eq!(missing, "calibrate.cu has no kernel hmma for sm_80");
    }

    #[test]
    fn branches_forward_are_followed_and_their_stalls_are_known() {
        // 0x10 jumps to 0x30, which jumps to 0x50.
        let body = ["@P1 BRA 0x30", "STS [R4], R9", "@P2 BRA 0x50", "STS [R4], R9"];
        assert_eq!(of(&body, "BRA", 2), Vec::<String>::new());
        assert_eq!(of(&body, "BRA", 3), ["made for sm_80: its loop holds 2 BRA, expected 3"]);
        let mut slow = code(&body);
        slow.instructions.iter_mut().for_each(|instruction| instruction.control.stall = 9);
        let found = faults(&alone("made", "BRA", 2), &slow);
        assert_eq!(found, ["made for sm_80: branches stall [9, 9] cycles, expected mostly 5 and at most 12"]);
    }
}
