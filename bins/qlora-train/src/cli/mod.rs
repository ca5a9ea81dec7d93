//! The command line: arguments in, one exit status out. Standard output carries the answer (`--json`: one object);
//! everything else goes to standard error.

mod eval;
mod generate;
mod plan;
mod train;

use crate::config::{Settings, SettingsArgs};
use crate::error::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "qlora-train", version, about = "Fine-tunes a Llama with QLoRA", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune: --model, --data and --output-dir are enough
    Train(SettingsArgs),
    /// Print the memory plan of a run and whether it fits
    Plan(SettingsArgs),
    /// Loss per supervised token and perplexity
    Eval(eval::EvalArgs),
    /// Greedy text
    Generate(generate::GenerateArgs),
}

/// What the commands that only read a model have in common.
#[derive(Args)]
struct ModelArgs {
    /// Base model: a Hugging Face directory, or a hub id in the local cache
    #[arg(long)]
    model: String,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Adapter directory
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// How the base weights are held: nf4 or none
    #[arg(long, default_value = "nf4")]
    quantization: String,
    /// Template of a base model that has none of its own: chatml, alpaca or a file
    #[arg(long)]
    chat_template: Option<String>,
    /// Where to work: cpu
    #[arg(long)]
    device: Option<String>,
    /// Host memory that may be used, such as 8GiB
    #[arg(long)]
    host_memory: Option<String>,
    /// Worker threads
    #[arg(long)]
    threads: Option<usize>,
}

impl ModelArgs {
    /// The same as settings, so that every value is checked in one place.
    fn settings(&self) -> Result<Settings> {
        let mut overrides =
            vec![("model".to_owned(), self.model.clone()), ("quantization".to_owned(), self.quantization.clone())];
        let mut add = |name: &str, value: Option<String>| {
            overrides.extend(value.map(|value| (name.to_owned(), value)));
        };
        add("revision", self.revision.clone());
        add("chat_template", self.chat_template.clone());
        add("device", self.device.clone());
        add("host_memory", self.host_memory.clone());
        add("threads", self.threads.map(|n| n.to_string()));
        let settings = Settings::load(None, &overrides)?;
        settings.validate(crate::config::Purpose::Plan)?;
        crate::train::memory::set_threads(settings.threads)?;
        Ok(settings)
    }
}

/// What a command answers: for people, and for programs.
struct Answer {
    text: String,
    json: Value,
}

pub fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let cli = Cli::parse();
    let answer = match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
    };
    match answer {
        Ok(answer) => {
            if cli.json {
                println!("{}", answer.json);
            } else {
                println!("{}", answer.text);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
