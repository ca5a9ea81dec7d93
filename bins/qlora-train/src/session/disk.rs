//! Disk space: checkpoints of a run against the free space of their file system.

use crate::adapter::tokenizer_bytes;
use crate::bail_usage;
use crate::config::{Every, Settings};
use crate::error::{Context, Result};
use crate::files::units::format_bytes;
use crate::model::ModelSpec;
use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Header entries and rounding to blocks: of the names of PEFT's tensors and the optimizer's, at most.
const TENSOR_OVERHEAD: u64 = 1 << 10;
/// Settings, model card, sums, and the records of the run.
const OVERHEAD: u64 = 64 << 10;
/// One step in `log_history`, as it is written with indentation.
const LOG_ENTRY: u64 = 384;

/// Disk space of a run. Tensors are counted to the byte, the records of a run generously.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// Bytes of one checkpoint, less the log in it
    pub checkpoint_bytes: u64,
    /// More bytes in one that was written within a step
    pub gradient_bytes: u64,
    /// The result, beside the checkpoints.
    pub adapter_bytes: u64,
    /// The log of the whole run, once in every checkpoint and twice beside them.
    pub log_bytes: u64,
    /// Checkpoints that there are at once and are still to be written, the one that is being written included; at least
    /// 1, for an interruption.
    pub checkpoints: u64,
}

impl DiskPlan {
    /// Plan of a run of `steps` steps, `steps_per_epoch` to an epoch, whose output directory holds `existing`
    /// checkpoints; `base` is the directory that tokenizer files are copied from.
    pub fn new(
        settings: &Settings,
        spec: &ModelSpec,
        base: &Path,
        steps: u64,
        steps_per_epoch: u64,
        existing: u64,
    ) -> Self {
        let (mut values, mut states, mut tensors) = (0u64, 0u64, 0u64);
        for len in spec.lora.lengths(&spec.arch) {
            values += 4 * len as u64;
            states += spec.states.bytes(len);
            tensors += 1;
        }
        let log = LOG_ENTRY.saturating_mul(
            settings.logging_steps.times(steps, steps_per_epoch)
                + settings.eval_steps.times(steps, steps_per_epoch)
                + 2,
        );
        let files = tokenizer_bytes(base) + TENSOR_OVERHEAD * tensors + OVERHEAD;
        // The adapter's file holds the values folded where rsLoRA or AdaLoRA is used, what terms on a changed base
        // began with, and one tensor for each end of a tied one.
        let begun = if spec.lora.init.changes_base() { values } else { 0 };
        let copies = if spec.lora.rslora || spec.lora.adalora.is_some() || begun > 0 { 2 } else { 1 };
        let importance = spec.lora.importance_bytes(&spec.arch);
        let arch = &spec.arch;
        let twice = spec.lora.whole.iter().filter(|module| spec.lora.shares_embedding(arch, module)).count();
        let again = begun + 4 * (twice * arch.vocab_size * arch.hidden_size) as u64;
        Self {
            checkpoint_bytes: values * copies + again + states + importance + files,
            gradient_bytes: values,
            adapter_bytes: values + again + files,
            log_bytes: log,
            checkpoints: checkpoints(settings, steps, steps_per_epoch).saturating_sub(existing).max(1),
        }
    }

    /// Bytes of one checkpoint at the beginning of the run, and of the adapter.
    pub fn least_bytes(&self) -> u64 {
        self.checkpoint_bytes + self.gradient_bytes + self.adapter_bytes
    }

    /// Bytes of everything that may be there at once.
    pub fn most_bytes(&self) -> u64 {
        let checkpoints = (self.checkpoint_bytes.saturating_add(self.log_bytes)).saturating_mul(self.checkpoints);
        let others = (self.gradient_bytes + self.adapter_bytes).saturating_add(self.log_bytes.saturating_mul(2));
        checkpoints.saturating_add(others)
    }

    /// A warning where not all that is to be kept has room. Refused: not even one checkpoint and the adapter have.
    pub fn check(&self, free: u64, output: &Path) -> Result<Option<String>> {
        let (shown, free_shown, one) = (output.display(), format_bytes(free), format_bytes(self.checkpoint_bytes));
        if free < self.least_bytes() {
            bail_usage!(
                "{shown}: {free_shown} are free on its file system, expected {} for the adapter and one checkpoint \
                 ({one}): make room, or choose another output_dir",
                format_bytes(self.least_bytes())
            );
        }
        Ok((free < self.most_bytes()).then(|| {
            format!(
                "{shown}: {free_shown} are free on its file system; the run may come to take {}: {} checkpoints of {one}, \
                 the adapter, and the log in each. A lower save_total_limit or a larger save_steps needs less",
                format_bytes(self.most_bytes()),
                self.checkpoints
            )
        }))
    }
}

/// Checkpoints of a run that are there at once, the one that is being written included.
fn checkpoints(settings: &Settings, steps: u64, steps_per_epoch: u64) -> u64 {
    let times = |every: Every| every.times(steps, steps_per_epoch);
    // Every evaluation may be the best so far, the one at the end too.
    let keeps_best =
        settings.eval_steps != Every::Never && (settings.load_best_model_at_end || settings.save_steps != Every::Never);
    let best = if keeps_best { times(settings.eval_steps) + 1 } else { 0 };
    let written = times(settings.save_steps).saturating_add(best);
    match settings.save_total_limit.0 {
        Some(kept) => written.min(kept as u64 + 1 + u64::from(keeps_best)),
        None => written,
    }
}

/// Refuses a place where nothing can be written, and the root of the file system, among whose files no run belongs.
/// Nothing is written. `setting` names the place.
pub fn check_writable(dir: &Path, setting: &str) -> Result<()> {
    // The directory itself, or the nearest one above that is there already.
    let Some(existing) = dir.ancestors().map(or_here).find(|path| path.symlink_metadata().is_ok()) else {
        bail_usage!("{}: found no directory above it, expected one that it can be made in ({setting})", dir.display());
    };
    if !existing.is_dir() {
        bail_usage!(
            "{}: found something that is not a directory, expected one ({setting}): choose another",
            existing.display()
        );
    }
    if dir.canonicalize().is_ok_and(|whole| whole.parent().is_none()) {
        bail_usage!(
            "{}: is the root of the file system ({setting}): choose a directory for this run alone",
            dir.display()
        );
    }
    // A file without a name: it never appears in the directory.
    tempfile::tempfile_in(existing)
        .usage_context(|| format!("{}: cannot be written ({setting}): choose another", existing.display()))?;
    Ok(())
}

/// True if both paths, or the nearest directories above them that are there, are on one file system.
pub fn is_one_file_system(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| path.ancestors().map(or_here).find_map(|path| metadata(path).ok()).map(|of| of.dev());
    device(one).is_some_and(|found| device(other) == Some(found))
}

/// "" stands for the working directory.
pub(super) fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Bytes that this user may still write in the file system of `dir`, or of the nearest directory above it that is there
/// already. None where that cannot be told. Quotas are not known.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let existing = dir.ancestors().map(or_here).find(|path| path.is_dir())?;
    let status = rustix::fs::statvfs(existing).ok()?;
    // Some network file systems have nothing to say.
    (status.f_blocks > 0).then(|| status.f_bavail.saturating_mul(status.f_frsize))
}
