//! The cards, and every constant that a prediction rests on: measured, documented or assumed, and by whom.

use crate::constants::{self, MeasuredConstant};
use anyhow::{Result, ensure};
use std::fmt;
use std::sync::LazyLock;

/// The origin of a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// By our own bundle
    Measured,
    /// By the vendor
    Documented,
    /// By us, for want of either; also what others published and was not looked up
    Assumed,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured",
            Self::Documented => "documented",
            Self::Assumed => "assumed",
        })
    }
}

/// One figure with its source.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    pub value: f64,
    pub mark: Mark,
    pub source: &'static str,
}

const fn documented(value: f64, source: &'static str) -> Constant {
    Constant { value, mark: Mark::Documented, source }
}
const fn assumed(value: f64, source: &'static str) -> Constant {
    Constant { value, mark: Mark::Assumed, source }
}

/// The constants that the cards of one architecture share. Cycles are those of the multiprocessor's clock.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// Name of the cards' architecture
    pub name: &'static str,
    /// Architecture of the machine code that runs there
    pub code: &'static str,
    /// Cycles from one floating-point instruction of a scheduler to the next
    pub float_interval: Constant,
    pub integer_multiply_interval: Constant,
    pub integer_interval: Constant,
    pub special_interval: Constant,
    /// Bytes of shared memory a cycle: one wavefront
    pub shared_bytes: Constant,
    /// Cycles from a scheduler's one memory instruction to its next
    pub memory_interval: Constant,
    pub shared_latency: Constant,
    pub matrix_load_latency: Constant,
    pub l2_latency: Constant,
    pub dram_latency: Constant,
    /// Bytes from the L2 a cycle and multiprocessor
    pub l2_bytes: Constant,
    /// Cycles that a branch elsewhere takes beside its own
    pub branch_penalty: Constant,
    /// Cycles from the last warp's arrival until all go on
    pub barrier_latency: Constant,
    pub max_threads: Constant,
    pub max_blocks: Constant,
    /// Shared memory of a multiprocessor that blocks get, their kilobyte for the system included
    pub shared_memory: Constant,
}

/// One card.
#[derive(Clone, Debug)]
pub struct Card {
    pub name: &'static str,
    /// Its name in records, or a part of that
    pub in_records: &'static str,
    pub architecture: &'static Architecture,
    pub multiprocessors: Constant,
    /// Clock under a load of the tensor cores, in GHz
    pub clock: Constant,
    /// Cycles from a scheduler's one HMMA.16816 (bf16, sums in f32) to its next
    pub matrix_interval: Constant,
    /// GB/s
    pub dram: Constant,
    /// Share of that bandwidth that a plain copy reaches
    pub copy_share: Constant,
    pub l2_megabytes: Constant,
    /// GiB
    pub memory: Constant,
    /// TFLOP/s of a library's dense bf16 product, for dequantize + cuBLASLt
    pub library_tflops: Constant,
}

/// Bytes of a wavefront: 32 banks of 4.
const WAVEFRONT_BYTES: f64 = 128.0;

impl Card {
    pub fn hz(&self) -> f64 {
        self.clock.value * 1e9
    }

    /// FLOP/s of the tensor cores by `mma.sync`, at the sustained clock.
    pub fn matrix_flops(&self) -> f64 {
        self.multiprocessors.value * 4.0 * 2.0 * 2048.0 / self.matrix_interval.value * self.hz()
    }

    /// Bytes a second of a plain copy.
    pub fn copy_bandwidth(&self) -> f64 {
        self.dram.value * 1e9 * self.copy_share.value
    }

    pub fn constants(&self) -> [(&'static str, &Constant); 8] {
        [
            ("multiprocessors", &self.multiprocessors),
            ("sustained clock, GHz", &self.clock),
            ("HMMA.16816 interval, cycles", &self.matrix_interval),
            ("memory bandwidth, GB/s", &self.dram),
            ("share of it that a copy reaches", &self.copy_share),
            ("L2, MB", &self.l2_megabytes),
            ("memory, GiB", &self.memory),
            ("a library's bf16 product, TFLOP/s", &self.library_tflops),
        ]
    }
}

impl Architecture {
    /// Cycles of a wavefront of all 32 banks.
    pub fn wavefront_cycles(&self) -> f64 {
        WAVEFRONT_BYTES / self.shared_bytes.value
    }

    pub fn constants(&self) -> [(&'static str, &Constant); 16] {
        [
            ("FFMA interval", &self.float_interval),
            ("IMAD interval", &self.integer_multiply_interval),
            ("integer and logic interval", &self.integer_interval),
            ("MUFU interval", &self.special_interval),
            ("shared memory, bytes a cycle", &self.shared_bytes),
            ("memory instruction interval", &self.memory_interval),
            ("LDS latency", &self.shared_latency),
            ("LDSM latency", &self.matrix_load_latency),
            ("L2 latency", &self.l2_latency),
            ("DRAM latency", &self.dram_latency),
            ("L2, bytes a cycle and multiprocessor", &self.l2_bytes),
            ("branch penalty", &self.branch_penalty),
            ("barrier latency", &self.barrier_latency),
            ("threads of a multiprocessor", &self.max_threads),
            ("blocks of a multiprocessor", &self.max_blocks),
            ("shared memory of a multiprocessor, bytes", &self.shared_memory),
        ]
    }
}

/// Cycles of a launch beside its blocks, and what the host's queue leaves between two kernels, in seconds.
pub const LAUNCH_GAP: Constant = assumed(1.0e-6, "between two kernels of one stream, queued ahead");
/// Seconds from a kernel's start to its first block, and from its last block to its end.
pub const LAUNCH_RAMP: Constant = assumed(2.0e-6, "filling and draining a grid");
/// Clock cycles from a block's end to the next one's first instruction.
pub const BLOCK_START: Constant = assumed(300.0, "a block's start on a multiprocessor that has room");

const GUIDE: &str = "CUDA C++ Programming Guide, throughput of native arithmetic instructions";
const FEATURES: &str = "CUDA C++ Programming Guide, technical specifications by compute capability";
const A100_PAPER: &str = "NVIDIA A100 architecture whitepaper";
const GA102_PAPER: &str = "NVIDIA GA102 architecture whitepaper";
const ADA_PAPER: &str = "NVIDIA Ada GPU architecture whitepaper";
const H100_PAPER: &str = "NVIDIA H100 architecture whitepaper";
const BLACKWELL_PAPER: &str = "NVIDIA RTX Blackwell architecture whitepaper";
const AMPERE_STUDY: &str =
    "about as Abdelkhalik et al., Demystifying the Nvidia Ampere Architecture, 2022; not looked up";
const HOPPER_STUDY: &str =
    "about as Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, 2024; not looked up";

const SM_80: Architecture = Architecture {
    name: "sm_80",
    code: "sm_80",
    float_interval: documented(2.0, GUIDE),
    integer_multiply_interval: documented(2.0, GUIDE),
    integer_interval: documented(2.0, GUIDE),
    special_interval: documented(8.0, GUIDE),
    shared_bytes: documented(128.0, "CUDA C++ Programming Guide, 32 banks of 4 bytes"),
    memory_interval: assumed(2.0, "16 lanes of addresses a cycle"),
    shared_latency: assumed(23.0, AMPERE_STUDY),
    matrix_load_latency: assumed(26.0, AMPERE_STUDY),
    l2_latency: assumed(200.0, AMPERE_STUDY),
    dram_latency: assumed(470.0, AMPERE_STUDY),
    l2_bytes: documented(47.0, A100_PAPER),
    branch_penalty: assumed(10.0, "a jump empties the warp's instruction buffer"),
    barrier_latency: assumed(20.0, "from the last arrival"),
    max_threads: documented(2048.0, FEATURES),
    max_blocks: documented(32.0, FEATURES),
    shared_memory: documented(164.0 * 1024.0, FEATURES),
};

const SM_86: Architecture = Architecture {
    name: "sm_86",
    float_interval: documented(1.0, GUIDE),
    l2_latency: assumed(230.0, "as on an A100, further away at a higher clock"),
    dram_latency: assumed(520.0, "as on an A100, at a higher clock"),
    l2_bytes: assumed(48.0, "as on an A100"),
    max_threads: documented(1536.0, FEATURES),
    max_blocks: documented(16.0, FEATURES),
    shared_memory: documented(100.0 * 1024.0, FEATURES),
    ..SM_80
};

const SM_89: Architecture = Architecture {
    name: "sm_89",
    l2_latency: assumed(270.0, "a larger L2 at a higher clock than GA102's"),
    dram_latency: assumed(600.0, "GA102's at a higher clock"),
    max_blocks: documented(24.0, FEATURES),
    ..SM_86
};

const SM_90: Architecture = Architecture {
    name: "sm_90",
    code: "sm_90",
    float_interval: documented(1.0, GUIDE),
    shared_latency: assumed(29.0, HOPPER_STUDY),
    matrix_load_latency: assumed(32.0, HOPPER_STUDY),
    l2_latency: assumed(262.0, HOPPER_STUDY),
    dram_latency: assumed(660.0, HOPPER_STUDY),
    l2_bytes: assumed(42.0, "about 9.5 TB/s over 132 multiprocessors at 1.7 GHz"),
    max_threads: documented(2048.0, FEATURES),
    shared_memory: documented(228.0 * 1024.0, FEATURES),
    ..SM_80
};

const SM_120: Architecture = Architecture {
    name: "sm_120",
    code: "sm_120",
    integer_multiply_interval: assumed(1.0, "whitepaper: integer rate doubled over Ada's"),
    l2_latency: assumed(300.0, "a larger L2 than Ada's"),
    dram_latency: assumed(650.0, "GDDR7 at Ada's clocks"),
    ..SM_89
};

const COPY: &str = "a plain copy's share on cards that published such figures";

/// All cards as they are written here, whatever has been measured.
pub static WRITTEN: [Card; 6] = [
    Card {
        name: "A100",
        in_records: "A100",
        architecture: &SM_80,
        multiprocessors: documented(108.0, A100_PAPER),
        clock: documented(1.41, A100_PAPER),
        matrix_interval: documented(8.0, A100_PAPER),
        dram: documented(2039.0, "NVIDIA A100 80GB data sheet"),
        copy_share: assumed(0.88, COPY),
        l2_megabytes: documented(40.0, A100_PAPER),
        memory: documented(80.0, "NVIDIA A100 80GB data sheet"),
        library_tflops: assumed(250.0, "80% of 312"),
    },
    Card {
        name: "A6000",
        in_records: "RTX A6000",
        architecture: &SM_86,
        multiprocessors: documented(84.0, GA102_PAPER),
        clock: assumed(1.60, "300 W hold it below its boost of 1.80"),
        matrix_interval: documented(16.0, GA102_PAPER),
        dram: documented(768.0, GA102_PAPER),
        copy_share: assumed(0.88, COPY),
        l2_megabytes: documented(6.0, GA102_PAPER),
        memory: documented(44.4, "48 GB with ECC"),
        library_tflops: assumed(118.0, "86% of the tensor cores at 1.60 GHz"),
    },
    Card {
        name: "L40S",
        in_records: "L40S",
        architecture: &SM_89,
        multiprocessors: documented(142.0, "NVIDIA L40S data sheet"),
        clock: assumed(2.20, "350 W hold it below its boost of 2.52"),
        matrix_interval: documented(16.0, ADA_PAPER),
        dram: documented(864.0, "NVIDIA L40S data sheet"),
        copy_share: assumed(0.88, COPY),
        l2_megabytes: documented(96.0, ADA_PAPER),
        memory: documented(44.4, "48 GB with ECC"),
        library_tflops: assumed(250.0, "78% of the tensor cores at 2.20 GHz"),
    },
    Card {
        name: "4090",
        in_records: "RTX 4090",
        architecture: &SM_89,
        multiprocessors: documented(128.0, ADA_PAPER),
        clock: assumed(2.52, "its boost; 450 W hold it"),
        // 165.2 TFLOP/s at 2.52 GHz with sums in f32: half of an L40S.
        matrix_interval: documented(32.0, ADA_PAPER),
        dram: documented(1008.0, ADA_PAPER),
        copy_share: assumed(0.90, COPY),
        l2_megabytes: documented(72.0, ADA_PAPER),
        memory: documented(24.0, ADA_PAPER),
        library_tflops: assumed(155.0, "94% of 165"),
    },
    Card {
        name: "H100",
        in_records: "H100",
        architecture: &SM_90,
        multiprocessors: documented(132.0, H100_PAPER),
        clock: assumed(1.70, "700 W hold it below its boost of 1.98"),
        // 62.5% of wgmma's rate, which is 4 cycles.
        matrix_interval: assumed(6.4, HOPPER_STUDY),
        dram: documented(3350.0, H100_PAPER),
        copy_share: assumed(0.88, COPY),
        l2_megabytes: documented(50.0, H100_PAPER),
        memory: documented(80.0, H100_PAPER),
        library_tflops: assumed(690.0, "cuBLAS, bf16, M ≥ 2048, as published by several"),
    },
    Card {
        name: "5090",
        in_records: "RTX 5090",
        architecture: &SM_120,
        multiprocessors: documented(170.0, BLACKWELL_PAPER),
        clock: assumed(2.41, "its boost; 575 W hold it"),
        // 209.5 TFLOP/s at 2.41 GHz with sums in f32.
        matrix_interval: documented(32.0, BLACKWELL_PAPER),
        dram: documented(1792.0, BLACKWELL_PAPER),
        copy_share: assumed(0.90, COPY),
        l2_megabytes: documented(96.0, BLACKWELL_PAPER),
        memory: documented(32.0, BLACKWELL_PAPER),
        library_tflops: assumed(195.0, "93% of 209"),
    },
];

/// All cards, with what has been measured in place of what is written in [`WRITTEN`].
pub static CARDS: LazyLock<[Card; 6]> = LazyLock::new(|| {
    let measured = constants::parse(constants::MEASURED).and_then(|measured| with_measured(&WRITTEN, &measured));
    measured.unwrap_or_else(|error| panic!("{}: {error:#}", constants::FILE))
});

impl Card {
    /// The constant of this name that a calibration measures.
    fn measurable(&mut self, name: &str) -> Option<&mut Constant> {
        (name == "matrix_interval").then_some(&mut self.matrix_interval)
    }
}

impl Architecture {
    /// The constant of this name that a calibration measures.
    fn measurable(&mut self, name: &str) -> Option<&mut Constant> {
        Some(match name {
            "shared_bytes" => &mut self.shared_bytes,
            "memory_interval" => &mut self.memory_interval,
            "shared_latency" => &mut self.shared_latency,
            "matrix_load_latency" => &mut self.matrix_load_latency,
            "l2_latency" => &mut self.l2_latency,
            "l2_bytes" => &mut self.l2_bytes,
            "branch_penalty" => &mut self.branch_penalty,
            "barrier_latency" => &mut self.barrier_latency,
            _ => return None,
        })
    }
}

/// These cards with measured constants.
///
/// # Errors
///
/// A constant is of no card and no architecture here, or none that a calibration measures.
pub fn with_measured(cards: &[Card; 6], measured: &[MeasuredConstant]) -> Result<[Card; 6]> {
    let mut cards = cards.clone();
    for MeasuredConstant { of, constant, value, source } in measured {
        // Cards live as long as the program, and so does what they refer to.
        let found = Constant { value: *value, mark: Mark::Measured, source: source.clone().leak() };
        let mut is_known = false;
        for card in &mut cards {
            let mut architecture = card.architecture.clone();
            if architecture.name == of.as_str()
                && let Some(place) = architecture.measurable(constant)
            {
                *place = found;
                card.architecture = Box::leak(Box::new(architecture));
                is_known = true;
            } else if card.name == of.as_str()
                && let Some(place) = card.measurable(constant)
            {
                *place = found;
                is_known = true;
            }
        }
        ensure!(is_known, "{of} has no constant {constant} that is measured");
    }
    Ok(cards)
}

/// Cards that are predicted beside their own records alone: the H100's chip with more and faster memory.
pub static OTHERS: LazyLock<[Card; 1]> = LazyLock::new(|| {
    const SHEET: &str = "NVIDIA H200 data sheet";
    let h100 = card("H100").expect("the H100 is one of the cards").clone();
    let (dram, memory) = (documented(4800.0, SHEET), documented(140.0, SHEET));
    [Card { name: "H200", in_records: "H200", dram, memory, ..h100 }]
});

/// The card of this name.
pub fn card(name: &str) -> Option<&'static Card> {
    CARDS.iter().find(|card| card.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensor_cores_of_a_card_give_what_its_vendor_says_at_its_boost() {
        // (card, boost in GHz, TFLOP/s dense bf16 with sums in f32)
        for (name, boost, tflops) in [
            ("A100", 1.41, 312.0),
            ("A6000", 1.80, 154.8),
            ("L40S", 2.52, 362.0),
            ("4090", 2.52, 165.2),
            ("5090", 2.41, 209.5),
        ] {
            let card = card(name).unwrap();
            let at_boost = card.matrix_flops() / card.clock.value * boost / 1e12;
            assert!((at_boost / tflops - 1.0).abs() < 0.02, "{name}: {at_boost:.1} of {tflops}");
        }
        assert!(card("H100").unwrap().matrix_flops() < 0.63 * 989e12);
    }

    #[test]
    fn a_measured_constant_takes_the_place_of_the_assumed_one() {
        let measured = |of: &str, constant: &str, value| MeasuredConstant {
            of: of.to_owned(),
            constant: constant.to_owned(),
            value,
            source: "a record".to_owned(),
        };
        let entries = [measured("sm_89", "branch_penalty", 14.5), measured("4090", "matrix_interval", 32.25)];
        let cards = with_measured(&WRITTEN, &entries).unwrap();
        for (card, written) in cards.iter().zip(&WRITTEN) {
            let (found, before) = (card.architecture.branch_penalty, written.architecture.branch_penalty);
            match card.architecture.name {
                "sm_89" => {
                    assert_eq!((found.value, found.mark, found.source), (14.5, Mark::Measured, "a record"));
                }
                _ => assert_eq!((found.value, found.mark), (before.value, before.mark), "{}", card.name),
            }
            let (found, before) = (card.matrix_interval, written.matrix_interval);
            match card.name {
                "4090" => assert_eq!((found.value, found.mark), (32.25, Mark::Measured)),
                _ => assert_eq!((found.value, found.mark), (before.value, before.mark), "{}", card.name),
            }
        }
        for (of, constant) in [("sm_75", "branch_penalty"), ("sm_89", "matrix_interval"), ("4090", "dram")] {
            let error = with_measured(&WRITTEN, &[measured(of, constant, 1.0)]).unwrap_err().to_string();
            assert_eq!(error, format!("{of} has no constant {constant} that is measured"));
        }
    }

    #[test]
    fn every_constant_has_a_source_and_is_above_zero() {
        for card in CARDS.iter() {
            for (what, constant) in card.constants().iter().chain(&card.architecture.constants()) {
                assert!(constant.value > 0.0 && !constant.source.is_empty(), "{} {what}", card.name);
            }
        }
    }
}
