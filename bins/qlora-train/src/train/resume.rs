//! The checkpoint that a run goes on from.

use super::checkpoints;
use super::identity::Identity;
use super::owned::read_run;
use super::snapshot::Snapshot;
use crate::adapter::ADAPTER_MODEL;
use crate::bail_usage;
use crate::config::{Resume, Settings};
use crate::error::Result;
use crate::files::shell::quoted;
use crate::report::status;
use std::path::Path;

/// The checkpoint that the settings ask for, its files checked. None: the run begins at its first step. Refused: a
/// checkpoint that cannot be resumed, and a run that would start over although it could go on.
pub fn choose(settings: &Settings, output: &Path, identity: &Identity) -> Result<Option<Snapshot>> {
    let found = checkpoints::list(output)?;
    match &settings.resume_from_checkpoint {
        Resume::No => match found.last() {
            None => Ok(None),
            Some((step, path)) => bail_usage!(
                "{}: holds this run, stopped at step {step} or later ({}): `--resume-from-checkpoint` goes on with it; \
                 to start over, choose another output_dir or remove its checkpoints",
                output.display(),
                path.display()
            ),
        },
        Resume::From(dir) => Snapshot::open(dir, identity).map(Some),
        Resume::Latest => {
            let Some((_, newest)) = found.last() else {
                check_not_lost(output, identity)?;
                status!("{}: no checkpoint to resume from: starting at the first step", output.display());
                return Ok(None);
            };
            let hint = || match found.iter().rev().nth(1) {
                Some((_, before)) => format!("the one before is `--resume-from-checkpoint {}`", before.display()),
                None => "there is no earlier one: remove it to start over".to_owned(),
            };
            Snapshot::open(newest, identity).map(Some).map_err(|error| error.usage_hint(hint))
        }
    }
}

/// Refuses to begin a run in the place of a shorter one that is finished and left no checkpoint to go on from.
fn check_not_lost(output: &Path, identity: &Identity) -> Result<()> {
    let Some(run) = read_run(output)? else { return Ok(()) };
    let recorded = run.get("identity").cloned().unwrap_or_default();
    let differs = serde_json::from_value(recorded).is_ok_and(|recorded| identity.difference(&recorded).is_some());
    if differs && run.get("finished").is_some() && output.join(ADAPTER_MODEL).is_file() {
        bail_usage!(
            "{}: holds a finished run without a checkpoint to go on from, and starting over would replace its adapter; \
             {}",
            output.display(),
            begin_with(output)
        );
    }
    Ok(())
}

/// Advice for training on from a finished run without a checkpoint.
pub(super) fn begin_with(output: &Path) -> String {
    format!(
        "`--init-adapter {}` with another output_dir begins a new run with its weights",
        quoted(&output.display().to_string())
    )
}
