//! The output directory as a run finds it: nothing, the run itself, finished or not, or another one that it replaces.

use super::identity::Identity;
use super::locked_dir::LockedDir;
use super::output_dir::{
    Found, check_names, check_output_dir, check_recorded_base, check_removable, check_room, holds_run, remove_run,
};
use super::owned::{Owned, recover, remove_temporary};
use super::record::RunSummary;
use super::resume;
use super::snapshot::Snapshot;
use crate::config::{Resume, Settings};
use crate::error::Result;
use crate::report::warning;
use crate::session::{Loaded, TrainingData};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// State of the output directory, as rank 0 finds it.
#[derive(Serialize, Deserialize)]
pub(super) enum Standing {
    Finished(RunSummary),
    Begins {
        /// The checkpoint that it goes on from
        saved: Option<Box<Snapshot>>,
        /// The directory holds another run, which this one replaces
        overwrites: bool,
    },
}

/// Looks at the output directory, on rank 0. Refused: it cannot be the run's.
pub(super) fn standing(
    settings: &Settings,
    output: &Path,
    identity: &Identity,
    locked: Option<&LockedDir>,
    loaded: &Loaded,
    data: &TrainingData,
) -> Result<Standing> {
    let resumes = settings.resume_from_checkpoint != Resume::No;
    // Another run that is to be overwritten is removed when nothing can be refused any more.
    let (found, overwrites) = match check_output_dir(output, identity, resumes) {
        Err(error) if settings.overwrite_output_dir && error.is_usage() && holds_run(output) => (Found::Nothing, true),
        found => (found?, false),
    };
    if let Found::Finished(finished) = found {
        check_recorded_base(output, &loaded.checkpoint.fingerprint()?)?;
        if let (Some(locked), Some(owned)) = (locked, Owned::recorded_in(output)?) {
            remove_temporary(locked.dir(), &owned)?;
        }
        return Ok(Standing::Finished(finished));
    }
    if let Some(locked) = locked {
        check_names(locked.dir(), overwrites)?;
    }
    match locked {
        Some(_) if overwrites => check_removable(output)?,
        Some(locked) => recover(locked.dir())?,
        None => {}
    }
    let saved = match &settings.resume_from_checkpoint {
        Resume::No | Resume::Latest if overwrites => None,
        _ => resume::choose(settings, output, identity)?,
    };
    if let Some(saved) = &saved {
        saved.check_schedule(&data.schedule, settings.gradient_accumulation_steps)?;
    }
    if !overwrites {
        let step = saved.as_ref().map_or(0, |saved| saved.trainer.global_step);
        check_room(output, step, data.schedule.total_steps())?;
    }
    Ok(Standing::Begins { saved: saved.map(Box::new), overwrites })
}

/// The output directory for this process alone, without the run that it takes the place of.
pub(super) fn lock(
    locked: Option<LockedDir>,
    output: &Path,
    identity: &Identity,
    overwrites: bool,
) -> Result<LockedDir> {
    let locked = match locked {
        Some(locked) => locked,
        None => {
            let locked = LockedDir::create(output)?;
            // Another process may have been faster.
            check_output_dir(output, identity, false)?;
            locked
        }
    };
    if overwrites {
        warning!("{}: the run that it held is removed (overwrite_output_dir)", output.display());
        remove_run(locked.dir())?;
    }
    locked.with_lock_file()
}
