//! `qlora-train man`

use super::answer::Answer;
use crate::bail_usage;
use crate::config::path_from_home;
use crate::error::{Context, Result};
use crate::report::{count, printable};
use clap::{Args, Command};
use clap_mangen::Man;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct ManArgs {
    /// Command to write the page of, such as train or export gguf [default: the program itself]
    command: Vec<String>,
    /// Directory to write the pages of the program and all commands into, such as ~/.local/share/man/man1
    #[arg(long, value_name = "DIR", conflicts_with = "command", value_parser = path_from_home())]
    output_dir: Option<PathBuf>,
}

/// The manual page of `program`, or of one of its commands, for `man -l -`; or all of them in a directory.
pub fn run(args: &ManArgs, mut program: Command) -> Result<Answer> {
    // Names and flags of the program are handed down to its commands.
    program.build();
    if let Some(directory) = &args.output_dir {
        return all(&program, directory);
    }
    let mut command = &program;
    for name in &args.command {
        command = match command.find_subcommand(name) {
            Some(found) => found,
            None => {
                let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
                let expected = if names.is_empty() { "no more words".to_owned() } else { names.join(", ") };
                let name_of = command.get_bin_name().unwrap_or("qlora-train");
                bail_usage!("`{name_of}` has no command {name:?}; expected {expected}")
            }
        };
    }
    let text = page(&Man::new(command.clone()))?;
    let json = json!({"command": command.get_bin_name(), "page": text});
    Ok(Answer { text: text.trim_end().to_owned(), json })
}

fn page(man: &Man) -> Result<String> {
    let mut page = Vec::new();
    man.render(&mut page).context(|| "the manual page".to_owned())?;
    String::from_utf8(page).context(|| "the manual page is no text".to_owned())
}

/// Writes the pages of the command and of those below it.
fn all(program: &Command, directory: &Path) -> Result<Answer> {
    std::fs::create_dir_all(directory).usage_context(|| format!("{}: cannot be made", directory.display()))?;
    let (mut commands, mut names) = (vec![program.clone()], Vec::new());
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().filter(|below| !below.is_hide_set()).cloned());
        let man = Man::new(command);
        let path = directory.join(man.get_filename());
        std::fs::write(&path, page(&man)?).usage_context(|| format!("{}: cannot be written", path.display()))?;
        names.push(man.get_filename());
    }
    names.sort();
    let shown = directory.display().to_string();
    Ok(Answer {
        text: printable(&format!("{shown}: {}", count(names.len() as u64, "manual page"))).into_owned(),
        json: json!({"directory": shown, "pages": names}),
    })
}
