//! The machine code of kernels as `cuobjdump -sass` lists it: matrix instructions, asynchronous copies, local memory,
//! loops.

use std::ops::Range;

/// One kernel of one architecture.
#[derive(Debug)]
pub struct Code {
    /// `sm_80` and so on.
    pub arch: String,
    /// Mangled.
    pub name: String,
    pub instructions: Vec<Instruction>,
}

#[derive(Clone, Debug)]
pub struct Instruction {
    pub address: u64,
    /// The whole of it, with its guard: `@!P1 IADD3 R0, R1, 0x1, RZ`.
    pub text: String,
    /// Up to the first dot: `HMMA` of `HMMA.16816.F32.BF16`.
    pub opcode: String,
    /// The target of a branch.
    pub target: Option<u64>,
    pub control: Control,
}

/// The compiler's orders to the scheduler, in the upper bits of an instruction's encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Cycles until the warp's next instruction may issue.
    pub stall: u8,
    /// A hint that another warp should issue next.
    pub yields: bool,
    /// The barrier that falls when the result is there.
    pub write_barrier: Option<u8>,
    /// The barrier that falls when the operands have been read.
    pub read_barrier: Option<u8>,
    /// The barriers that have to have fallen, a bit each.
    pub wait: u8,
}

impl Control {
    /// The part of the second 64-bit word of an encoding.
    fn of(word: u64) -> Self {
        let barrier = |shift: u32| Some((word >> shift & 7) as u8).filter(|&number| number != 7);
        Self {
            stall: (word >> 41 & 15) as u8,
            // The bit is clear where the compiler asks for a yield.
            yields: word >> 45 & 1 == 0,
            write_barrier: barrier(46),
            read_barrier: barrier(49),
            wait: (word >> 52 & 63) as u8,
        }
    }
}

/// Instructions counted over a kernel or a loop, NOPs not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub instructions: usize,
    /// Matrix instructions.
    pub hmma: usize,
    /// Copies from global to shared memory that do not wait.
    pub ldgsts: usize,
    /// Loads and stores of local memory: spilled registers and arrays that are not in registers.
    pub local: usize,
}

impl Counts {
    /// Instructions beside each matrix instruction.
    pub fn others_per_hmma(&self) -> Option<f64> {
        (self.hmma > 0).then(|| (self.instructions - self.hmma) as f64 / self.hmma as f64)
    }
}

impl Code {
    pub fn counts(&self) -> Counts {
        self.count(0..self.instructions.len())
    }

    /// The loop that has the most matrix instructions: the innermost such, and of several apart the first, since a
    /// kernel's K loop precedes that over the ranks.
    pub fn main_loop(&self) -> Option<Counts> {
        self.main_loop_span().map(|span| self.count(span))
    }

    /// The range of [`Self::main_loop`] in the instructions.
    pub fn main_loop_span(&self) -> Option<Range<usize>> {
        let loops: Vec<(Range<usize>, Counts)> = self.loops().map(|span| (span.clone(), self.count(span))).collect();
        let most = loops.iter().map(|(_, counts)| counts.hmma).max().filter(|&most| most > 0)?;
        let full: Vec<_> = loops.iter().filter(|(_, counts)| counts.hmma == most).collect();
        let contains_another = |outer: &Range<usize>| {
            full.iter().any(|(inner, _)| inner != outer && outer.start <= inner.start && inner.end <= outer.end)
        };
        full.iter()
            .filter(|(span, _)| !contains_another(span))
            .min_by_key(|(span, _)| span.start)
            .map(|(span, _)| span.clone())
    }

    /// From the target of each backward branch to the branch.
    pub fn loops(&self) -> impl Iterator<Item = Range<usize>> {
        self.instructions.iter().enumerate().filter_map(|(index, branch)| {
            let target = branch.target.filter(|&target| target < branch.address)?;
            let start = self.instructions.binary_search_by_key(&target, |instruction| instruction.address).ok()?;
            Some(start..index + 1)
        })
    }

    pub fn count(&self, span: Range<usize>) -> Counts {
        let mut counts = Counts::default();
        for instruction in &self.instructions[span] {
            counts.instructions += usize::from(instruction.opcode != "NOP");
            match instruction.opcode.as_str() {
                "HMMA" => counts.hmma += 1,
                "LDGSTS" => counts.ldgsts += 1,
                "LDL" | "STL" => counts.local += 1,
                _ => {}
            }
        }
        counts
    }
}

/// All kernels of a listing, in its order.
pub fn parse(listing: &str) -> Vec<Code> {
    let mut arch = "";
    let mut kernels: Vec<Code> = Vec::new();
    for line in listing.lines().map(str::trim_ascii) {
        if let Some(found) = line.strip_prefix("code for ") {
            arch = found;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            kernels.push(Code { arch: arch.to_owned(), name: name.to_owned(), instructions: Vec::new() });
        } else if let Some(kernel) = kernels.last_mut() {
            if let Some(instruction) = instruction(line) {
                kernel.instructions.push(instruction);
            } else if let (Some(last), Some(word)) = (kernel.instructions.last_mut(), encoding(line)) {
                last.control = Control::of(word);
            }
        }
    }
    kernels
}

/// `/*00b0*/ @!P1 BRA 0x110 ; /* encoding */`; a line of encoding alone has a space after its first `/*`.
fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let text = rest.split("/*").next()?.trim().trim_end_matches(';').trim();
    let mut words = text.split_whitespace().skip_while(|word| word.starts_with('@'));
    let opcode = words.next()?.split('.').next()?.to_owned();
    let is_branch = ["BRA", "BRX", "JMP", "JMX"].contains(&opcode.as_str());
    let target =
        words.last().filter(|_| is_branch).and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    Some(Instruction { address, text: text.to_owned(), opcode, target, control: Control::default() })
}

/// `/* 0x000fe400078e00ff */`: the second word of the instruction above it.
fn encoding(line: &str) -> Option<u64> {
    let word = line.strip_prefix("/* 0x")?.strip_suffix("*/")?.trim();
    u64::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two loops with two matrix instructions each, the first of them inside another; a branch forward and the closing
    /// self-loop.
    const LISTING: &str = "
Fatbin elf code:
================
arch = sm_80

	code for sm_80
	.target	sm_80

		Function : _Z5firstv
	.headerflags	@\"EF_CUDA_SM80\"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;     /* 0x00000a00ff017624 */
                                                                               /* 0x000fe400078e00ff */
        /*0010*/                   LDGSTS.E.BYPASS.128 [R3], [R4.64] ;         /* 0x00000a00ff017624 */
        /*0020*/             @!PT LDS RZ, [RZ] ;                               /* 0x00000a00ff017624 */
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;        /* 0x00000a00ff017624 */
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;        /* 0x00000a00ff017624 */
        /*0050*/              @!P1 BRA 0x20 ;                                  /* 0x0000005000009947 */
        /*0060*/               @P0 BRA 0x10 ;                                  /* 0x0000005000009947 */
        /*0070*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;        /* 0x00000a00ff017624 */
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;        /* 0x00000a00ff017624 */
        /*0090*/                   BRA.U UP0, 0x70 ;                           /* 0x0000005000009947 */
        /*00a0*/              @!P1 BRA 0xb0 ;                                  /* 0x0000005000009947 */
        /*00b0*/                   EXIT ;                                      /* 0x000000000000794d */
        /*00c0*/                   BRA 0xc0 ;                                  /* 0xfffffff000007947 */
        /*00d0*/                   NOP ;                                       /* 0x0000000000007918 */
		..........

	code for sm_90
		Function : second
        /*0000*/                   STL.64 [R1], R2 ;                           /* 0x0000000000007918 */
        /*0010*/                   LDL R2, [R1+0x8] ;                          /* 0x0000000000007918 */
        /*0020*/                   BRA 0x0 ;                                   /* 0x0000000000007918 */
";

    #[test]
    fn instructions_are_counted_by_kernel_and_architecture() {
        let kernels = parse(LISTING);
        let names: Vec<_> = kernels.iter().map(|code| (code.arch.as_str(), code.name.as_str())).collect();
        assert_eq!(names, [("sm_80", "_Z5firstv"), ("sm_90", "second")]);
        assert_eq!(kernels[0].counts(), Counts { instructions: 13, hmma: 4, ldgsts: 1, local: 0 });
        assert_eq!(kernels[1].counts(), Counts { instructions: 3, hmma: 0, ldgsts: 0, local: 2 });
    }

    #[test]
    fn the_schedulers_part_of_an_encoding_is_read() {
        let control = parse(LISTING)[0].instructions[0].control;
        let expect = Control { stall: 2, yields: false, write_barrier: None, read_barrier: None, wait: 0 };
        assert_eq!(control, expect);
        let word = 9 << 41 | 2 << 46 | 5 << 49 | 0b10_0001 << 52;
        let expect = Control { stall: 9, yields: true, write_barrier: Some(2), read_barrier: Some(5), wait: 0b10_0001 };
        assert_eq!(Control::of(word), expect);
    }

    #[test]
    fn the_main_loop_is_the_innermost_and_first_of_those_with_the_most_matrix_instructions() {
        let kernels = parse(LISTING);
        let main = kernels[0].main_loop().unwrap();
        assert_eq!(main, Counts { instructions: 4, hmma: 2, ldgsts: 0, local: 0 });
        assert_eq!(main.others_per_hmma(), Some(1.0));
        assert_eq!(kernels[1].main_loop(), None);
        assert_eq!(kernels[1].counts().others_per_hmma(), None);
    }
}
