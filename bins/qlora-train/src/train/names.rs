//! Names of the files that a run leaves in its output directory.

pub const RUN_FILE: &str = "run.json";
pub const METRICS_FILE: &str = "metrics.jsonl";
pub const STATE_FILE: &str = "trainer_state.json";
/// TensorBoard's event files, where `logging_dir` names no other place
pub const EVENTS_DIR: &str = "runs";
/// State of a run that its next step follows from, in a checkpoint
pub const RUN_STATE: &str = "run_state.json";

/// Name of the checkpoint of a step
pub fn checkpoint(step: u64) -> String {
    format!("checkpoint-{step}")
}

/// Step of a name `checkpoint-<step>`.
pub fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("checkpoint-")?.parse().ok()?;
    (checkpoint(step) == name).then_some(step)
}
