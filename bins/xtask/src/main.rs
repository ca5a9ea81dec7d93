//! The repository's tasks: `cargo xtask` lists them.

#![deny(unsafe_code)]

mod setup;
mod workspace;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;
use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The tasks of this repository", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch the small Llama that the demo and the tests use, and convert it to a Hugging Face directory
    Setup,
}

fn main() -> ExitCode {
    let Some(task) = Cli::parse().task else {
        // Listing the tasks is what was asked for; a closed pipe at the other end is no failure of ours.
        let _ = Cli::command().print_help();
        return ExitCode::SUCCESS;
    };
    match Workspace::locate().and_then(|workspace| run(task, &workspace)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, workspace: &Workspace) -> anyhow::Result<()> {
    match task {
        Task::Setup => println!("{}", setup::run(workspace)?.display()),
    }
    Ok(())
}
