//! `qlora-train train`

use super::answer::Answer;
use crate::adapter::{is_adapter, recorded_base};
use crate::comm::launch::Launch;
use crate::comm::{Communicator, Joined, SingleProcess, Timeouts};
use crate::config::SettingsArgs;
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::report::{count, printable, section, set_rank, speaks, status, warning};
use crate::session::host::{bound, set_threads, threads_of_each};
use crate::train;
use serde_json::json;
use std::path::Path;

/// `build`: version and build of this program.
pub fn run(args: &SettingsArgs, build: &str) -> Result<Answer> {
    let Some(launch) = Launch::detect()? else { return train_among(args, &mut SingleProcess) };
    set_rank(launch.rank);
    let mut joined = Joined::join(&launch, build, Timeouts::of_environment()?)?;
    let answer = train_among(args, joined.comm());
    match (joined.leave(answer.as_ref().err()), &answer) {
        // All is written.
        (Err(error), Ok(_)) if speaks() => warning!("the run is finished, but {error}"),
        (Err(error), Ok(_)) => return Err(error),
        _ => {}
    }
    answer
}

fn train_among(args: &SettingsArgs, comm: &mut dyn Communicator) -> Result<Answer> {
    let settings = args.load()?;
    set_threads(settings.threads.or_else(|| threads_of_each(comm.on_these_processors())))?;
    let (_, here) = comm.on_this_machine();
    if let Some((own, all)) = bound(here, comm.on_these_processors()).filter(|_| settings.threads.is_none()) {
        warning!(
            "the launcher gives each of {here} processes {own} of {all} processors; `mpirun --bind-to none` (srun: \
             `--cpu-bind=none`) lets them share all"
        );
    }
    let (model, data) =
        (settings.model.clone().unwrap_or_default(), settings.val_data.first().or(settings.data.first()));
    let data = data.map(|path| path.display().to_string());
    let model = match is_adapter(Path::new(&model)) {
        // The run puts its base in its place.
        true => recorded_base(Path::new(&model), settings.revision.as_deref())?,
        false => settings.revision.as_ref().map_or(model.clone(), |revision| format!("{model}@{revision}")),
    };
    let train::TrainOutcome { summary: outcome, adapter, weights_read } = train::train_among(settings, comm)?;
    let quoted = |text: &str| crate::files::shell::quoted(text);
    let (base, put) = (quoted(&model), quoted(&adapter.display().to_string()));
    section("Next");
    status!("try it:  qlora-train generate --model {base} --adapter {put} --prompt '...'");
    status!("merge:   qlora-train merge --model {base} --adapter {put} --output-dir NEW");
    if let Some(data) = data {
        // Flags cannot say which rows a run held back; its settings file can, where it is all there is.
        let rows = match &args.file {
            Some(file) if args.overrides.is_empty() => quoted(&file.display().to_string()),
            _ => format!("--model {base} --adapter {put} --data {}", quoted(&data)),
        };
        status!("compare: qlora-train eval {rows} --with-base");
    }
    let eval = outcome.eval_loss.map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
    let speed = outcome.tokens_per_second.map_or(String::new(), |speed| format!(", {speed:.0} tokens/s"));
    let adapter = adapter.display().to_string();
    Ok(Answer {
        text: format!(
            "{}, training loss {:.4}{eval}{speed}, peak memory {}; adapter in {}",
            count(outcome.steps, "step"),
            outcome.train_loss,
            format_bytes(outcome.peak_bytes),
            printable(&adapter),
        ),
        json: json!({
            "steps": outcome.steps,
            "train_loss": outcome.train_loss,
            "eval_loss": outcome.eval_loss,
            "tokens_per_second": outcome.tokens_per_second,
            "peak_bytes": outcome.peak_bytes,
            "weights_read": weights_read.map(|read| json!({
                "bytes": read.bytes,
                "seconds": read.seconds,
                "waited_seconds": read.waited,
            })),
            "adapter": adapter,
        }),
    })
}
