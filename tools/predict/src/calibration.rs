//! Measurements of a calibration's micro-kernels beside the constants that predictions rest on without them, and the
//! constants that follow from it.

use crate::cards::{Architecture, Card, Mark, WRITTEN};
use crate::constants::MeasuredConstant;
use anyhow::{Context, Result, ensure};
use records::calibration::{Calibration, Cycles};
use std::fmt::Write;

/// Bytes that a warp loads or copies with 16 a lane.
const WARP_BYTES: f64 = 32.0 * 16.0;
/// Cycles that the simulator adds to the latency of an LDS, for its way to the banks and its wavefront.
const LDS_BESIDE: f64 = 1.0;
/// Cycles that the simulator adds to the latency of an LDSM of four matrices, with its four wavefronts.
const LDSM_BESIDE: f64 = 4.0;
/// Cycles that it adds to a copy and to the wait for it: the way to the banks, and the wait's own stall.
const COPY_BESIDE: f64 = 4.0 + 4.0;
/// The stall of a branch in the machine code, which comes on top of the penalty.
pub const BRANCH_STALL: f64 = 5.0;
/// Between the first and the last of two warps of a scheduler that arrive.
const BARRIER_BESIDE: f64 = 1.0;

/// A measured value beside what predictions take where nothing has been measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    pub what: &'static str,
    /// The constant that it is: the card or architecture, and the field. None: it follows from several.
    pub constant: Option<(&'static str, &'static str)>,
    pub taken: f64,
    pub mark: Mark,
    pub measured: f64,
}

impl Beside {
    /// Measured over taken.
    pub fn ratio(&self) -> f64 {
        self.measured / self.taken
    }
}

/// A calibration beside the constants of its card.
#[derive(Debug)]
pub struct Calibrated<'a> {
    pub calibration: &'a Calibration,
    pub rows: Vec<Beside>,
}

/// The architecture of a calibration's GPU, and the card where it is one of those that are predicted.
fn of_record(calibration: &Calibration) -> Result<(&'static Architecture, Option<&'static Card>)> {
    let (name, gpu) = (calibration.architecture(), &calibration.gpu);
    let known = WRITTEN.iter().map(|card| card.architecture).find(|architecture| architecture.name == name);
    let architecture = known.with_context(|| {
        let names: Vec<&str> = WRITTEN.iter().map(|card| card.architecture.name).collect();
        format!(
            "the calibration is of {gpu} with compute capability {}, expected that of an architecture that is predicted: {}",
            calibration.compute_capability,
            names.join(", ")
        )
    })?;
    let card = WRITTEN.iter().find(|card| gpu.contains(card.in_records));
    if let Some(card) = card {
        let expected = card.architecture.name;
        ensure!(
            expected == name,
            "the calibration is of {gpu}, which is {expected}, and its compute capability is {}: take the file as the \
             bundle wrote it",
            calibration.compute_capability
        );
    }
    Ok((architecture, card))
}

/// A calibration beside what is written in `cards.rs`: never beside an earlier measurement, of which it may be the
/// source.
///
/// # Errors
///
/// It is of an architecture that is not predicted or not that of its card, a figure is none, or one is shorter than
/// what the simulator adds to its constant.
pub fn calibrated(calibration: &Calibration) -> Result<Calibrated<'_>> {
    calibration.check().map_err(anyhow::Error::msg)?;
    let (architecture, card) = of_record(calibration)?;
    let Cycles {
        hmma,
        lds_32,
        lds_32_one_scheduler,
        lds_128,
        lds_latency,
        ldsm,
        ldsm_latency,
        ldgsts,
        ldgsts_latency,
        branch,
        barrier,
    } = calibration.cycles;
    let of = architecture.name;
    let mut rows = Vec::new();
    if let Some(card) = card {
        rows.push(Beside {
            what: "HMMA.16816 interval",
            constant: Some((card.name, "matrix_interval")),
            taken: card.matrix_interval.value,
            mark: card.matrix_interval.mark,
            measured: hmma,
        });
        rows.push(Beside {
            what: "clock under tensor cores, GHz",
            constant: None,
            taken: card.clock.value,
            mark: card.clock.mark,
            measured: calibration.clock_ghz,
        });
    }
    let copy_bytes = WARP_BYTES / ldgsts;
    for (what, field, constant, measured) in [
        ("memory instruction interval", "memory_interval", architecture.memory_interval, lds_32_one_scheduler),
        ("shared memory, bytes a cycle", "shared_bytes", architecture.shared_bytes, WARP_BYTES / lds_128),
        ("LDS latency", "shared_latency", architecture.shared_latency, lds_latency - LDS_BESIDE),
        ("LDSM latency", "matrix_load_latency", architecture.matrix_load_latency, ldsm_latency - LDSM_BESIDE),
        ("L2, bytes a cycle and multiprocessor", "l2_bytes", architecture.l2_bytes, copy_bytes),
        ("L2 latency", "l2_latency", architecture.l2_latency, ldgsts_latency - ldgsts - COPY_BESIDE),
        ("branch penalty", "branch_penalty", architecture.branch_penalty, branch - BRANCH_STALL),
        ("barrier latency", "barrier_latency", architecture.barrier_latency, barrier - BARRIER_BESIDE),
    ] {
        ensure!(
            measured > 0.0,
            "the {what} of {} follows as {measured} from its calibration, expected a number above 0: measure again",
            calibration.gpu
        );
        let (taken, mark) = (constant.value, constant.mark);
        rows.push(Beside { what, constant: Some((of, field)), taken, mark, measured });
    }
    // The simulator's result from its constants for these two: the slower of the queues and the banks.
    let wavefront = architecture.wavefront_cycles();
    let queues = architecture.memory_interval.value / 4.0;
    for (what, wavefronts, measured) in
        [("LDS.32 on all schedulers, cycles", 1.0, lds_32), ("LDSM.4 on all schedulers, cycles", 4.0, ldsm)]
    {
        let taken = f64::max(wavefronts * wavefront, queues);
        rows.push(Beside { what, constant: None, taken, mark: architecture.shared_bytes.mark, measured });
    }
    Ok(Calibrated { calibration, rows })
}

/// The measured constants, with the record as their source.
pub fn constants(calibrated: &Calibrated<'_>) -> Vec<MeasuredConstant> {
    let Calibration { gpu, date, driver, .. } = calibrated.calibration;
    let driver = driver.as_deref().unwrap_or("?");
    let source = format!("{gpu}, driver {driver}, {date}");
    let constant = |row: &Beside| {
        let (of, constant) = row.constant?;
        let (of, constant, source) = (of.to_owned(), constant.to_owned(), source.clone());
        // Four digits: the rest is noise.
        Some(MeasuredConstant { of, constant, value: four_digits(row.measured), source })
    };
    calibrated.rows.iter().filter_map(constant).collect()
}

fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Calibrations as tables, one after the other.
pub fn tables(all: &[Calibrated<'_>]) -> String {
    if all.is_empty() {
        return "No GPU has been calibrated yet.\n".to_owned();
    }
    let mut text = String::new();
    for Calibrated { calibration, rows } in all {
        let Calibration { gpu, date, clock_ghz, driver, nvcc, .. } = calibration;
        let driver = driver.as_deref().unwrap_or("?");
        let _ = writeln!(text, "{gpu}, {clock_ghz:.2} GHz, driver {driver}, nvcc {nvcc}, {date}:\n");
        text.push_str("| constant | written | | measured | measured over written |\n|---|---|---|---|---|\n");
        for row in rows {
            let (what, taken, mark, measured) = (row.what, row.taken, row.mark, row.measured);
            let _ = writeln!(text, "| {what} | {taken:.2} | {mark} | {measured:.2} | {:.2} |", row.ratio());
        }
        text.push('\n');
    }
    // One line's end is enough at the end.
    text.truncate(text.trim_end().len());
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::with_measured;

    fn made() -> Calibration {
        Calibration {
            date: "2025-01-31 23:59".to_owned(),
            gpu: "NVIDIA RTX A6000".to_owned(),
            compute_capability: "8.6".to_owned(),
            multiprocessors: 84,
            clock_ghz: 1.6,
            driver: Some("580.65.06".to_owned()),
            cuda: "13.0".to_owned(),
            nvcc: "13.0.88".to_owned(),
            cycles: Cycles {
                hmma: 17.0,
                lds_32: 2.0,
                lds_32_one_scheduler: 4.0,
                lds_128: 4.0,
                lds_latency: 24.0,
                ldsm: 4.2,
                ldsm_latency: 33.0,
                ldgsts: 10.0,
                ldgsts_latency: 268.0,
                branch: 20.0,
                barrier: 26.0,
            },
        }
    }

    fn written(name: &str) -> &'static Card {
        WRITTEN.iter().find(|card| card.name == name).unwrap()
    }

    #[test]
    fn what_was_measured_stands_beside_what_is_taken_with_the_ratio() {
        let calibration = made();
        let found = calibrated(&calibration).unwrap();
        let ratio = |what: &str| {
            let row = found.rows.iter().find(|row| row.what == what).unwrap_or_else(|| panic!("{what}"));
            (row.measured, row.ratio())
        };
        let card = written("A6000");
        let architecture = card.architecture;
        for (what, measured, taken) in [
            ("HMMA.16816 interval", 17.0, card.matrix_interval.value),
            ("clock under tensor cores, GHz", 1.6, card.clock.value),
            ("memory instruction interval", 4.0, architecture.memory_interval.value),
            ("shared memory, bytes a cycle", 128.0, architecture.shared_bytes.value),
            ("LDS latency", 23.0, architecture.shared_latency.value),
            ("LDSM latency", 29.0, architecture.matrix_load_latency.value),
            ("L2, bytes a cycle and multiprocessor", 51.2, architecture.l2_bytes.value),
            ("L2 latency", 250.0, architecture.l2_latency.value),
            ("branch penalty", 15.0, architecture.branch_penalty.value),
            ("barrier latency", 25.0, architecture.barrier_latency.value),
        ] {
            assert_eq!(ratio(what), (measured, measured / taken), "{what}");
        }
        assert_eq!(ratio("LDSM.4 on all schedulers, cycles").0, 4.2);
        let text = tables(&[found]);
        let line = format!("| HMMA.16816 interval | {:.2} | ", card.matrix_interval.value);
        assert!(text.contains(&line), "{text}");
        assert!(text.starts_with("NVIDIA RTX A6000, 1.60 GHz, driver 580.65.06, nvcc 13.0.88, "), "{text}");
        assert!(text.ends_with("|\n") && tables(&[]).contains("No GPU"), "{text}");
    }

    #[test]
    fn constants_are_marked_measured_with_their_source() {
        let calibration = made();
        let constants = constants(&calibrated(&calibration).unwrap());
        assert_eq!(constants.len(), 9);
        let source = "NVIDIA RTX A6000, driver 580.65.06, 2025-01-31 23:59";
        assert!(constants.iter().all(|constant| constant.source == source));
        let cards = with_measured(&WRITTEN, &constants).unwrap();
        let of = |name: &str| cards.iter().find(|card| card.name == name).unwrap();
        assert_eq!((of("A6000").matrix_interval.value, of("A6000").matrix_interval.mark), (17.0, Mark::Measured));
        assert_eq!(of("A6000").architecture.l2_latency.value, 250.0);
        assert_eq!(of("A6000").architecture.l2_latency.source, source);
        // Another card of another architecture stays as it is.
        let before = written("L40S");
        assert_eq!(of("L40S").architecture.l2_latency.value, before.architecture.l2_latency.value);
        assert_eq!(four_digits(51.234_567), 51.23);
    }

    #[test]
    fn a_card_that_is_not_predicted_calibrates_its_architecture_alone() {
        let calibration = Calibration { gpu: "NVIDIA RTX A5000".to_owned(), ..made() };
        let constants = constants(&calibrated(&calibration).unwrap());
        assert_eq!(constants.len(), 8);
        assert!(constants.iter().all(|constant| constant.of == "sm_86"));
    }

    #[test]
    fn another_architecture_and_figures_that_are_none_are_refused() {
        let refused = |calibration: Calibration| format!("{:#}", calibrated(&calibration).unwrap_err());
        let error = refused(Calibration { compute_capability: "7.5".to_owned(), ..made() });
        assert!(error.contains("compute capability 7.5, expected") && error.contains("sm_80"), "{error}");
        let error = refused(Calibration { compute_capability: "9.0".to_owned(), ..made() });
        assert!(error.contains("which is sm_86, and its compute capability is 9.0"), "{error}");
        for (cycles, expected) in [(0.0, "cycles.hmma is 0"), (f64::NAN, "cycles.hmma is NaN")] {
            let error = refused(Calibration { cycles: Cycles { hmma: cycles, ..made().cycles }, ..made() });
            assert!(error.contains(expected), "{error}");
        }
        // Shorter than the branch's own stall.
        let error = refused(Calibration { cycles: Cycles { branch: 4.5, ..made().cycles }, ..made() });
        assert!(error.contains("the branch penalty of NVIDIA RTX A6000 follows as -0.5"), "{error}");
    }
}
