//! `qlora-train completions`

use super::answer::Answer;
use crate::error::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use serde_json::json;

#[derive(Args)]
pub struct CompletionsArgs {
    /// Shell to write the script for
    shell: Shell,
}

/// A shell script that completes the commands and settings of `program`.
pub fn run(args: &CompletionsArgs, mut program: Command) -> Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "qlora-train", &mut script);
    let text = String::from_utf8(script).context(|| "the script is no text".to_owned())?;
    Ok(Answer { json: json!({"shell": args.shell.to_string(), "script": text}), text: text.trim_end().to_owned() })
}
