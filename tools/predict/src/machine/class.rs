//! Instructions by the unit that they keep busy.

/// The unit that an instruction keeps busy, with its amount of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// Tensor cores: multiply-adds of the warp.
    Matrix {
        multiply_adds: u32,
    },
    /// Floating-point multiply-adds and their like.
    Float,
    /// Integer multiply-adds, which run where floating-point ones do, at half their rate.
    IntegerMultiply,
    /// Logic, comparisons, shifts, integer sums, conversions between floating-point formats.
    Integer,
    /// Functions and conversions that a quarter-width unit makes.
    Special,
    /// Loads and stores of shared memory, of `bytes` bytes a lane.
    Shared {
        bytes: u32,
        is_load: bool,
    },
    /// Fragments from shared memory, of `matrices` 8×8 matrices.
    MatrixLoad {
        matrices: u32,
    },
    /// Registers exchanged between lanes.
    Shuffle,
    /// Loads from global memory into registers.
    GlobalLoad {
        bytes: u32,
    },
    GlobalStore {
        bytes: u32,
    },
    /// Copies from global to shared memory that do not wait.
    Copy {
        bytes: u32,
    },
    /// Constants whose place is computed, special registers.
    Constant,
    /// The block's barrier.
    Barrier,
    /// The copies so far become a group.
    CopyGroup,
    /// Waits until at most `groups` groups are on their way.
    CopyWait {
        groups: u32,
    },
    Control,
}

impl Class {
    /// By the opcode with all its suffixes: `LDGSTS.E.BYPASS.LTC128B.128`.
    pub fn of(opcode: &str, operands: &[&str]) -> Self {
        let mut dots = opcode.split('.');
        let name = dots.next().unwrap_or_default();
        let has = |suffix: &str| opcode.split('.').any(|part| part == suffix);
        let bytes = if has("128") {
            16
        } else if has("64") {
            8
        } else if has("U8") || has("S8") {
            1
        } else if has("U16") || has("S16") {
            2
        } else {
            4
        };
        match name {
            "HMMA" => Self::Matrix { multiply_adds: if has("1688") { 1024 } else { 2048 } },
            "FFMA" | "FMUL" | "FADD" | "HFMA2" | "HMUL2" | "HADD2" | "FFMA2" | "FMUL2" | "FADD2" => Self::Float,
            "IMAD" => Self::IntegerMultiply,
            "MUFU" | "I2F" | "F2I" | "I2FP" | "F2F" | "POPC" | "FLO" | "BREV" | "DADD" | "DMUL" | "DFMA" => {
                Self::Special
            }
            "LDS" => Self::Shared { bytes, is_load: true },
            "STS" => Self::Shared { bytes, is_load: false },
            "LDSM" => Self::MatrixLoad {
                matrices: if has("4") {
                    4
                } else if has("2") {
                    2
                } else {
                    1
                },
            },
            "SHFL" => Self::Shuffle,
            "LDG" | "LD" | "LDL" => Self::GlobalLoad { bytes },
            "STG" | "ST" | "STL" | "RED" => Self::GlobalStore { bytes },
            "LDGSTS" => Self::Copy { bytes },
            "LDC" | "LDCU" | "S2R" | "S2UR" | "CS2R" | "R2UR" => Self::Constant,
            "BAR" => Self::Barrier,
            "LDGDEPBAR" => Self::CopyGroup,
            "DEPBAR" => match operands.get(1).and_then(|groups| super::operand::immediate(groups)) {
                Some(groups) => Self::CopyWait { groups },
                None => Self::CopyWait { groups: 0 },
            },
            "BRA" | "BRX" | "JMP" | "CALL" | "RET" | "EXIT" | "BSSY" | "BSYNC" | "NOP" | "WARPSYNC" | "YIELD"
            | "BREAK" | "BMOV" | "MEMBAR" | "ERRBAR" | "CCTL" | "ACQBULK" | "ENDCOLLECTIVE" => Self::Control,
            _ => Self::Integer,
        }
    }

    /// True for instructions that move or compute a kernel's data; code without one handles a special case.
    pub fn is_work(self) -> bool {
        !matches!(
            self,
            Self::Float | Self::IntegerMultiply | Self::Integer | Self::Constant | Self::Control | Self::CopyGroup
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_told_apart_by_their_opcodes() {
        let cases: [(&str, Class); 12] = [
            ("HMMA.16816.F32.BF16", Class::Matrix { multiply_adds: 2048 }),
            ("HMMA.1688.F32.BF16", Class::Matrix { multiply_adds: 1024 }),
            ("LDS.128", Class::Shared { bytes: 16, is_load: true }),
            ("STS.U16", Class::Shared { bytes: 2, is_load: false }),
            ("LDSM.16.MT88.4", Class::MatrixLoad { matrices: 4 }),
            ("LDGSTS.E.BYPASS.LTC128B.128", Class::Copy { bytes: 16 }),
            ("LDG.E.U8.CONSTANT", Class::GlobalLoad { bytes: 1 }),
            ("IMAD.WIDE.U32", Class::IntegerMultiply),
            ("F2FP.BF16.PACK_AB", Class::Integer),
            ("MUFU.EX2", Class::Special),
            ("BAR.SYNC", Class::Barrier),
            ("BRA.U", Class::Control),
        ];
        for (opcode, class) in cases {
            assert_eq!(Class::of(opcode, &[]), class, "{opcode}");
        }
        assert_eq!(Class::of("DEPBAR.LE", &["SB0", "0x1"]), Class::CopyWait { groups: 1 });
    }
}
