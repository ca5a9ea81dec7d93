//! `qlora-train init`

use super::answer::Answer;
use crate::bail_usage;
use crate::config::{commented_yaml, path_from_home};
use crate::error::{Context, Result};
use crate::files::atomic::write_synced;
use crate::report::printable;
use clap::Args;
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

#[derive(Args)]
pub struct InitArgs {
    /// File to write; it must not exist. Without it, the settings go to standard output
    #[arg(value_name = "CONFIG.yaml", value_parser = path_from_home())]
    file: Option<PathBuf>,
}

pub fn run(args: &InitArgs) -> Result<Answer> {
    let text = commented_yaml();
    let Some(path) = &args.file else {
        return Ok(Answer { text: text.trim_end().to_owned(), json: json!({"settings": text}) });
    };
    let shown = path.display();
    match std::fs::File::create_new(path) {
        Ok(file) => {
            let written = write_synced(&file, "settings", |to| to.write_all(text.as_bytes()));
            if written.is_err() {
                // A part of the settings would be in the way of the next try. The failure is the one to tell.
                let _ = std::fs::remove_file(path);
            }
            written.context(|| format!("{shown}: cannot be written"))?;
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail_usage!("{shown}: is there already; choose another name, or remove it")
        }
        Err(error) => return Err(error).usage_context(|| format!("{shown}: cannot be written")),
    }
    Ok(Answer {
        text: printable(&format!("{shown}: set model, data and output_dir, then `qlora-train train {shown}`"))
            .into_owned(),
        json: json!({"file": shown.to_string()}),
    })
}
