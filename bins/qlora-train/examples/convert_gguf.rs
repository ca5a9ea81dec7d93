//! Converts a GGUF file of a Llama to a Hugging Face directory, for `cargo xtask setup`:
//! `cargo run --release -p qlora-train --example convert_gguf -- FILE.gguf BASE_NAME DIRECTORY`
//!
//! The directory exists and is empty. BASE_NAME is the hub id that adapters record as their base.

use qlora_train::error::{Context, Error, Result};
use qlora_train::gguf::{Gguf, write_model_dir};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, base_name, directory] = &arguments[..] else {
        return Err(Error::Refused("expected FILE.gguf BASE_NAME DIRECTORY".to_owned()));
    };
    let bytes = std::fs::read(file).usage_context(|| file.clone())?;
    let gguf = Gguf::parse(&bytes).usage_context(|| file.clone())?;
    write_model_dir(&gguf, base_name, Path::new(directory)).usage_context(|| file.clone())
}
