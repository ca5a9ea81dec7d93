//! Times the kernels on the first GPU (feature `cuda`), else the storage format's code on the CPU, and says which.
//!
//! `cargo bench --features cuda --bench kernels -- [--quick] [--record DIR] [FILTER]`. A new operation is one line in
//! `gpu::operations` (judged against the copy bandwidth), if it is described as an `Operation` of tests/lab.

// `unsafe` is denied by the workspace, and needed by the timer alone; the calls are the crate's safe ones.
#[cfg(kernels = "cuda")]
mod attention;
#[cfg(kernels = "cuda")]
mod bench;
#[cfg(not(kernels = "cuda"))]
mod cpu;
#[cfg(kernels = "cuda")]
mod cross_entropy;
#[cfg(kernels = "cuda")]
mod gpu;
#[cfg(kernels = "cuda")]
mod groups;
#[cfg(kernels = "cuda")]
mod low_rank;
#[cfg(kernels = "cuda")]
mod optimizer;
mod options;
#[cfg(kernels = "cuda")]
mod record;
#[cfg(kernels = "cuda")]
mod timer;

use criterion::Criterion;
use options::Options;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: kernels --bench [--quick] [--record DIR] [FILTER]
       kernels --facts
  --quick       fewer shapes
  --record DIR  write DIR/<date>-<time>-<gpu>.json
  --facts       says which GPU there is; exit status 3: none
  FILTER        only what has this in its name, for example gate-up, \"M 512\", dequantize";

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => options.bench = true,
            "--facts" => options.facts = true,
            "--quick" => options.quick = true,
            "--record" => options.record = Some(arguments.next().ok_or("--record needs a directory")?),
            // Arguments that test runners give to every target.
            "--test" | "--list" | "--ignored" | "--nocapture" | "--format" | "terse" => {}
            other if other.starts_with('-') => return Err(format!("unknown argument {other}\n{USAGE}")),
            other => options.filter = Some(other.to_owned()),
        }
    }
    Ok(options)
}

/// Short measurements with few samples: there are hundreds of them, and what is timed is long or repeated often.
fn criterion(options: &Options) -> Criterion {
    let mut criterion = Criterion::default().without_plots();
    // On a GPU whole rows are chosen, with what they are compared with.
    if let (false, Some(filter)) = (cfg!(kernels = "cuda"), &options.filter) {
        criterion = criterion.with_filter(filter.as_str());
    }
    criterion
        .sample_size(10)
        .nresamples(2000)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) if options.facts => return facts(),
        Ok(options) if options.bench => options,
        // Run as a test: there is nothing to check here that the tests do not.
        Ok(_) => return ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Prints facts of the first GPU; status 3 where there is none.
fn facts() -> ExitCode {
    #[cfg(kernels = "cuda")]
    let facts = gpu::facts();
    #[cfg(not(kernels = "cuda"))]
    let facts: Result<String, String> = Err("this build has no kernels (feature cuda)".into());
    match facts {
        Ok(facts) => {
            println!("{facts}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(3)
        }
    }
}

#[cfg(kernels = "cuda")]
fn run(options: &Options) -> Result<(), String> {
    gpu::run(options, criterion(options))
}

#[cfg(not(kernels = "cuda"))]
fn run(options: &Options) -> Result<(), String> {
    if options.record.is_some() {
        return Err("records are of GPUs, and this build has none (feature cuda)".into());
    }
    cpu::run(criterion(options), options.quick);
    Ok(())
}
