//! The repository's tasks: `cargo xtask` lists them.

#![deny(unsafe_code)]

mod bindings;
mod demo;
mod dist;
mod setup;
mod test;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;
use tools_support::command::check;
use tools_support::cuda;
use tools_support::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The tasks of this repository", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Fine-tune a small real Llama on the CPU and show answers and validation loss before and after
    Demo,
    /// Run what takes seconds of it where everything is built: format, lints, spelling, unit tests
    Check,
    /// Run everything that has to pass
    Test {
        /// Run only the step of this name; can be given several times
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// List the steps
        #[arg(long)]
        list: bool,
    },
    /// Fetch the small Llama that the demo and the tests use, and convert it to a Hugging Face directory; fetch MPI
    Setup,
    /// Fetch nvcc and libclang from PyPI, unless the machine has them
    SetupCuda,
    /// Write the Rust declarations of the kernels' C interface, from its header
    Bindings,
    /// Plant bugs into copies of the kernels, one at a time: each must turn the emulated tests red
    Mutants {
        /// Only those whose name holds this text; can be given several times
        #[arg(value_name = "TEXT")]
        only: Vec<String>,
    },
    /// Predict the kernels' speed on GPUs from their machine code
    Predict {
        /// Write docs/predicted.md
        #[arg(long)]
        write: bool,
        /// Take the constants that the GPU bundle measured: a file of its folder records/calibration
        #[arg(long, value_name = "FILE", conflicts_with = "write")]
        calibrate: Option<std::path::PathBuf>,
    },
    /// Write the table of GPU figures in docs/ from the files of benches/records
    Records,
    /// Build one folder that checks and measures the kernels on a machine with a GPU and without Rust
    GpuBundle,
    /// Build the trainer and pack it: a tarball, a wheel, a Dockerfile, bills of materials, checksums
    Dist {
        /// For NVIDIA GPUs too, in a tarball of its own; fetches nvcc where there is none
        #[arg(long)]
        cuda: bool,
    },
    /// Install the kernels as a C library: header, static and shared library, pkg-config and CMake files
    InstallLib {
        /// The directory to install into: include/ and lib/ in it
        #[arg(long, value_name = "DIR")]
        prefix: std::path::PathBuf,
        /// The emulated library, which runs the kernels on the host CPU: for tests without a GPU only
        #[arg(long)]
        emulation: bool,
    },
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
        Task::Demo => demo::run(workspace)?,
        Task::Check => test::check(workspace)?,
        Task::Test { list: true, .. } => test::list(),
        Task::Test { only, .. } => test::run(workspace, &only)?,
        Task::SetupCuda => cuda::run(workspace)?,
        Task::Mutants { only } => {
            check(workspace.tool("mutants", &only.iter().map(String::as_str).collect::<Vec<_>>())?)?
        }
        Task::GpuBundle => check(workspace.tool("gpu-bundle", &[])?)?,
        Task::Dist { cuda } => dist::run(workspace, cuda)?,
        Task::Predict { calibrate: Some(file), .. } => {
            // The tool runs in the repository's root, wherever the file was named from.
            let file = std::path::absolute(file)?.to_string_lossy().into_owned();
            check(workspace.tool("predict", &["calibrate", file.as_str()])?)?;
        }
        Task::Predict { write, .. } => {
            check(workspace.tool("predict", if write { &["write"] as &[&str] } else { &[] })?)?;
        }
        Task::Records => check(workspace.tool("records", &["write"])?)?,
        Task::Bindings => drop(bindings::run(workspace, "write")?),
        Task::InstallLib { prefix, emulation } => {
            let mut command = workspace.tool("c-library", &["install"])?;
            // The tool runs in the repository's root, wherever the directory was named from.
            command.arg(std::path::absolute(prefix)?).args(emulation.then_some("--emulation"));
            check(command)?;
        }
        Task::Setup => {
            println!("{}", setup::run(workspace, &[])?.display());
            setup::mpi::fetch(workspace)?.iter().for_each(|dir| println!("{}", dir.display()));
        }
    }
    Ok(())
}
