//! The command line: arguments in, one exit status out. Standard output carries the answer (`--json`: one object);
//! everything else goes to standard error.

mod answer;
mod bench;
mod chat;
mod check;
mod completions;
mod cpu_only;
mod datasheet;
mod doctor;
mod eval;
mod eval_answers;
mod export;
mod forecast;
mod generate;
mod init;
mod man;
mod merge;
mod model_args;
mod plan;
mod preview;
mod push;
mod quantize;
mod report;
mod run_size;
mod sampling_args;
mod train;
mod world;

use crate::config::{SettingsArgs, unknown_flag};
use crate::data::begin_heap_peak;
use crate::error::{Context, Error, Result};
use crate::report::{
    Verbosity, in_part, print_error, print_text, printable_json, printable_lines, set_verbosity, speaks, status,
};
use answer::Answer;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use qlora_kernels::device::{KERNELS, Kernels};
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::{LazyLock, OnceLock};

#[derive(Parser)]
#[command(name = "qlora-train", version, about = "Fine-tunes language models with QLoRA", long_version = LONG_VERSION.as_str(), disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Print warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Print more about the work
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune a model: --model, --data and --output-dir are enough
    Train(SettingsArgs),
    /// Plan memory, time and cost of a run, with --gpu for a GPU that is not in this machine; exit status 0 if it fits,
    /// 1 if not
    Plan(plan::PlanArgs),
    /// Show rows as they are tokenized (with --adapter DIR as for that adapter): trained tokens, special tokens,
    /// lengths
    Preview(preview::PreviewArgs),
    /// Quantize a model to NF4, in the format of bitsandbytes
    Quantize(quantize::QuantizeArgs),
    /// Merge an adapter into its base: a model in 16 bits that needs no adapter
    Merge(merge::MergeArgs),
    /// Export for other programs: GGUF for llama.cpp and Ollama
    Export(export::ExportArgs),
    /// Check which engines take an adapter, with the command that serves it; the exit status is 0 if all do, 1 if not
    Check(check::CheckArgs),
    /// Upload an adapter to a model hub, as one commit
    Push(push::PushArgs),
    /// Evaluate loss and perplexity
    Eval(eval::EvalArgs),
    /// Generate text
    Generate(generate::GenerateArgs),
    /// Talk to a model, line by line
    Chat(chat::ChatArgs),
    /// Measure training steps on random weights: speed, memory, time by operation
    Bench(bench::BenchArgs),
    /// Write report.html of a run, or of several side by side
    Report(report::ReportArgs),
    /// Write a settings file to begin with: every setting, its default and what it does
    Init(init::InitArgs),
    /// Check this machine (--gpu N: that GPU), or with the settings of a run check that it can begin; exit status 1 if
    /// not
    Doctor(SettingsArgs),
    /// Write a script that completes commands and settings in a shell
    Completions(completions::CompletionsArgs),
    /// Write a manual page, for `man -l -`
    Man(man::ManArgs),
}

/// Commit that the program was built from, where that is known.
static COMMIT: OnceLock<&str> = OnceLock::new();

/// Version, commit and the devices that the build supports; whether it has what only tests need.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = COMMIT.get().filter(|commit| !commit.is_empty());
    let commit = commit.map_or(String::new(), |commit| format!(" ({commit})"));
    let built = match KERNELS {
        Kernels::Cuda => "built with CUDA",
        Kernels::Emulated => "built for the CPU, with an emulation of the GPU's kernels",
        Kernels::Absent => "built for the CPU",
    };
    let faults = if cfg!(feature = "failpoints") { ", with failpoints for tests" } else { "" };
    format!("{}{commit}\n{built}{faults}", env!("CARGO_PKG_VERSION"))
});

/// Version and build of this program in one line: the same for all processes of a run.
fn build() -> String {
    LONG_VERSION.replace('\n', ", ")
}

/// Commands that people look for, with the one that does the job.
const ELSEWHERE: [(&[&str], &str); 4] = [
    (&["fuse"], "`qlora-train merge --model BASE --adapter DIR --output-dir NEW` merges an adapter into its base"),
    (&["serve"], "vLLM serves an adapter: `vllm serve BASE --enable-lora --lora-modules name=DIR`"),
    (&["upload", "publish"], "`qlora-train push DIR --to ORG/NAME` uploads an adapter"),
    (&["config", "new"], "`qlora-train init` writes a settings file to begin with"),
];

/// The commands that take the settings of a run.
const WITH_SETTINGS: [&str; 4] = ["train", "plan", "preview", "doctor"];

/// The commands with their arguments. A number below zero is a value, which an argument may refuse.
fn command() -> clap::Command {
    fn takes_numbers(command: clap::Command) -> clap::Command {
        let numbers = |arg: clap::Arg| {
            let takes_value = arg.get_long().is_some() && arg.get_action().takes_values();
            if takes_value && !arg.is_allow_hyphen_values_set() { arg.allow_negative_numbers(true) } else { arg }
        };
        command.mut_args(numbers).mut_subcommands(takes_numbers)
    }
    takes_numbers(Cli::command())
}

/// `commit`: the commit that the program was built from, or empty.
pub fn main(commit: &'static str) -> ExitCode {
    COMMIT.get_or_init(|| commit);
    let parsed = command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command())));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return refuse_usage(&error),
    };
    begin_heap_peak();
    set_verbosity(match (cli.quiet, cli.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    });
    // Commands that answer a question, with the key of the answer.
    let said_no = match cli.command {
        Command::Plan(_) => Some("fits"),
        Command::Check(_) => Some("accepts"),
        Command::Doctor(_) => Some("ready"),
        _ => None,
    };
    // The preview has colors, and escapes what it shows itself.
    let previews = matches!(cli.command, Command::Preview(_));
    let answer = match cli.command {
        Command::Train(args) => train::run(&args, &build()),
        Command::Plan(args) => plan::run(&args),
        Command::Preview(args) => preview::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Push(args) => push::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args, cli.json),
        Command::Chat(args) => chat::run(&args, cli.json),
        Command::Bench(args) => bench::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Doctor(args) => doctor::run(&args, &build()),
        Command::Completions(args) => completions::run(&args, command()),
        Command::Man(args) => man::run(&args, command()),
    };
    let fits = |answer: &Answer| match said_no {
        Some(key) => answer.json[key] != false,
        None => true,
    };
    let printed = answer.and_then(|answer| {
        match cli.json {
            // Rank 0 answers for all.
            _ if !speaks() => {}
            true => print(&printable_json(&answer.json.to_string()))?,
            false if previews => print(&answer.text)?,
            false => print(&printable_lines(&answer.text))?,
        }
        Ok(fits(&answer))
    });
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        // A plan that does not fit, an adapter that an engine refuses, or a run that cannot begin.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            match error {
                // An interruption is no error: the user asked for it, and the run ended in good order.
                Error::Interrupted(_) => status!("{error}"),
                _ => print_error(&error),
            }
            if cli.json && speaks() {
                print_error_object(&error.to_string(), error.exit_status());
            }
            ExitCode::from(error.exit_status())
        }
    }
}

/// The answer of a command that ended with an error, for programs.
fn print_error_object(message: &str, exit_status: u8) {
    let told = json!({"error": {"message": in_part(message), "exit_status": exit_status}});
    // Nobody listens if this fails.
    let _ = print(&printable_json(&told.to_string()));
}

/// Help and version too: clap reports them as errors with exit status 0.
fn refuse_usage(error: &clap::Error) -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let to_program = args.iter().any(|arg| arg == "--json");
    let takes_settings =
        args.iter().find(|arg| !arg.starts_with('-')).is_some_and(|command| WITH_SETTINGS.contains(&command.as_str()));
    let refused = unknown_flag(error).filter(|_| takes_settings).or_else(|| unknown_command(error));
    let (message, exit_status) = match refused {
        Some(unknown) => {
            print_error(&unknown);
            (unknown.to_string(), unknown.exit_status())
        }
        None => {
            let hostile = args.iter().any(|arg| printable_lines(arg) != *arg);
            let printed = match hostile {
                true => print_text(&error.render().to_string()),
                false => error.print(),
            };
            match answered(printed) {
                // Help that was asked for is the answer.
                Err(failed) if error.exit_code() == 0 => {
                    print_error(&failed);
                    (failed.to_string(), failed.exit_status())
                }
                // Nobody listens if this fails.
                _ => (in_one_sentence(error), error.exit_code() as u8),
            }
        }
    };
    if to_program && exit_status != 0 {
        print_error_object(&message, exit_status);
    }
    ExitCode::from(exit_status)
}

/// The error for a command of [`ELSEWHERE`].
fn unknown_command(error: &clap::Error) -> Option<Error> {
    let Some(ContextValue::String(command)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let (_, what) = ELSEWHERE.iter().find(|(names, _)| names.contains(&command.as_str()))?;
    Some(Error::Refused(format!("`{command}` is not a command; {what}")))
}

/// clap's error without the usage that it prints below.
fn in_one_sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let found = text.split("\n\nUsage:").next().unwrap_or(&text).trim_start_matches("error: ");
    found.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Prints nothing where there is no answer: it was written as it grew.
fn print(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = std::io::stdout();
    answered(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Failed: an answer did not reach standard output. A reader that has seen enough, such as `head`, is no failure.
fn answered(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context(|| "standard output".to_owned()),
        _ => Ok(()),
    }
}
