//! A step of `cargo xtask test`, and how it ends.

use anyhow::Result;
use tools_support::workspace::Workspace;

/// Before the lines of the summary in which a step's tool sums itself up.
pub const CLOSING: &str = "                    ";

/// One thing that has to pass.
pub struct Step {
    pub name: &'static str,
    pub about: &'static str,
    pub run: fn(&Workspace) -> Result<Outcome>,
}

#[derive(Debug)]
pub enum Outcome {
    /// With the lines in which the step's tool sums itself up, repeated at the end of the run.
    Passed(Vec<String>),
    /// The check that was not made on this machine, and the reason.
    Skipped(String),
}
