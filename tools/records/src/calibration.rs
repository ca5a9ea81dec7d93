//! A file of `benches/records/calibration/`: cycles of single instructions on one GPU, as
//! `benches/calibration/calibrate.cu` writes it.

use crate::folder::json_files_if_there;
use crate::format::{check_run, file_name, positive};
use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// UTC, for example "2025-01-31 23:59"
    pub date: String,
    pub gpu: String,
    /// For example "8.6"
    pub compute_capability: String,
    pub multiprocessors: usize,
    /// Clock of the multiprocessors while all tensor cores work
    pub clock_ghz: f64,
    pub driver: Option<String>,
    /// Version that the driver supports, for example "13.0"
    pub cuda: String,
    /// Version of the compiler, for example "13.0.88"
    pub nvcc: String,
    pub cycles: Cycles,
}

/// Cycles of one instruction of a warp, by the name of the micro-kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cycles {
    /// From one HMMA.16816 of a scheduler to its next
    pub hmma: f64,
    /// From one LDS of 4 bytes a lane to the next, on all four schedulers
    pub lds_32: f64,
    /// From one LDS of 4 bytes a lane to the next, on one scheduler alone
    pub lds_32_one_scheduler: f64,
    /// From one LDS of 16 bytes a lane to the next, on all four schedulers
    pub lds_128: f64,
    /// Until the result of an LDS can be the next one's address
    pub lds_latency: f64,
    /// From one LDSM of four matrices to the next, on all four schedulers
    pub ldsm: f64,
    /// Until the result of an LDSM can be the next one's address
    pub ldsm_latency: f64,
    /// From one LDGSTS of 16 bytes a lane, from the L2, to the next, with all multiprocessors at work
    pub ldgsts: f64,
    /// Until an LDGSTS has been waited for, alone
    pub ldgsts_latency: f64,
    /// From one branch that is taken to the next
    pub branch: f64,
    /// From one barrier of eight warps to the next
    pub barrier: f64,
}

impl Cycles {
    /// All of them with their names.
    pub fn all(&self) -> [(&'static str, f64); 11] {
        [
            ("hmma", self.hmma),
            ("lds_32", self.lds_32),
            ("lds_32_one_scheduler", self.lds_32_one_scheduler),
            ("lds_128", self.lds_128),
            ("lds_latency", self.lds_latency),
            ("ldsm", self.ldsm),
            ("ldsm_latency", self.ldsm_latency),
            ("ldgsts", self.ldgsts),
            ("ldgsts_latency", self.ldgsts_latency),
            ("branch", self.branch),
            ("barrier", self.barrier),
        ]
    }
}

impl Calibration {
    /// The name of its file.
    pub fn file_name(&self) -> String {
        file_name(&self.date, &self.gpu)
    }

    /// The architecture of its GPU: `sm_86`.
    pub fn architecture(&self) -> String {
        format!("sm_{}", self.compute_capability.replace('.', ""))
    }

    /// An error that says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        check_run(&self.date, &self.gpu)?;
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let parts = self.compute_capability.split_once('.');
        if !parts.is_some_and(|(major, minor)| is_number(major) && is_number(minor)) {
            return Err(format!("compute_capability is {:?}, expected for example \"8.6\"", self.compute_capability));
        }
        if self.multiprocessors == 0 {
            return Err("multiprocessors is 0, expected a number above 0".to_owned());
        }
        positive("clock_ghz", self.clock_ghz)?;
        self.cycles.all().into_iter().try_for_each(|(name, cycles)| positive(&format!("cycles.{name}"), cycles))
    }

    /// The calibration in a file, checked.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no calibration, or has a figure that is none; the error names it.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let found: Self = serde_json::from_str(&text).with_context(|| {
            format!("{shown} is not a calibration: expected a file that the bundle's stage `calibrate` wrote")
        })?;
        found.check().map_err(|problem| anyhow!("{shown}: {problem}"))?;
        Ok(found)
    }
}

/// All calibrations of a folder, oldest first; none where there is no folder.
pub fn read(dir: &Path) -> Result<Vec<Calibration>> {
    let mut all = Vec::new();
    for path in json_files_if_there(dir)? {
        let found = Calibration::read(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let expected = found.file_name();
        ensure!(name == expected, "{}: by its date and GPU it is {expected}", path.display());
        all.push(found);
    }
    all.sort_by(|a, b| (&a.date, &a.gpu).cmp(&(&b.date, &b.gpu)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as the program writes it.
    const WRITTEN: &str = r#"{
  "date": "2025-01-31 23:59",
  "gpu": "NVIDIA RTX A6000",
  "compute_capability": "8.6",
  "multiprocessors": 84,
  "clock_ghz": 1.71,
  "driver": "580.65.06",
  "cuda": "13.0",
  "nvcc": "13.0.88",
  "cycles": {
    "hmma": 16.02,
    "lds_32": 1.98,
    "lds_32_one_scheduler": 2.01,
    "lds_128": 4.03,
    "lds_latency": 23.1,
    "ldsm": 4.01,
    "ldsm_latency": 29.5,
    "ldgsts": 11.2,
    "ldgsts_latency": 251.4,
    "branch": 17.6,
    "barrier": 21.3
  }
}
"#;

    fn written(name: &str, text: &str) -> Result<Vec<Calibration>> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        read(dir.path())
    }

    #[test]
    fn a_file_of_the_program_is_read_and_named_by_its_date_and_gpu() {
        let found = written("2025-01-31-2359-nvidia-rtx-a6000.json", WRITTEN).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].architecture().as_str(), found[0].cycles.ldgsts), ("sm_86", 11.2));
        assert_eq!(found[0].cycles.all()[10], ("barrier", 21.3));
        let error = written("other.json", WRITTEN).unwrap_err().to_string();
        assert!(error.contains("it is 2025-01-31-2359-nvidia-rtx-a6000.json"), "{error}");
        assert!(read(Path::new("no such folder")).unwrap().is_empty());
    }

    #[test]
    fn figures_that_are_none_are_refused_by_their_names() {
        for (figure, value, expected) in [
            ("\"hmma\": 16.02", "\"hmma\": 0", "cycles.hmma is 0, expected a number above 0"),
            ("\"barrier\": 21.3", "\"barrier\": -1.5", "cycles.barrier is -1.5"),
            ("\"branch\": 17.6", "\"branch\": nan", "is not a calibration"),
            ("\"branch\": 17.6", "\"branch\": null", "is not a calibration"),
            ("\"branch\": 17.6", "\"jump\": 17.6", "is not a calibration"),
            ("\"clock_ghz\": 1.71", "\"clock_ghz\": 0.0", "clock_ghz is 0"),
            ("\"8.6\"", "\"sm_86\"", "compute_capability is \"sm_86\", expected for example \"8.6\""),
            ("84", "0", "multiprocessors is 0"),
            ("NVIDIA RTX A6000", "emulation", "expected the name of a GPU"),
            ("2025-01-31 23:59", "today", "date is \"today\""),
        ] {
            assert!(WRITTEN.contains(figure), "{figure}");
            let error = format!("{:#}", written("any.json", &WRITTEN.replace(figure, value)).unwrap_err());
            assert!(error.contains(expected) && error.contains("any.json"), "{expected}: {error}");
        }
        // JSON has no NaN; a value that was computed may be one.
        let mut found: Calibration = serde_json::from_str(WRITTEN).unwrap();
        found.cycles.lds_128 = f64::NAN;
        assert_eq!(found.check().unwrap_err(), "cycles.lds_128 is NaN, expected a number above 0");
    }
}
