//! `qlora-train quantize`

use super::answer::Answer;
use super::cpu_only::CpuOnly;
use crate::bail_usage;
use crate::base::{Checkpoint, QuantizeOptions, Quantized, quantize, resolve_model};
use crate::config::path_from_home;
use crate::error::{Error, Result};
use crate::files::units::{format_bytes, parse_bytes};
use crate::report::{Bars, printable, status};
use crate::session::Interruption;
use clap::Args;
use qlora_kernels::nf4::Nf4Options;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct QuantizeArgs {
    /// Model: a Hugging Face directory, or a hub id (org/name@revision)
    #[arg(long)]
    model: String,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Directory to write; it must not exist, or be empty
    #[arg(long, visible_alias = "output", value_parser = path_from_home())]
    output_dir: PathBuf,
    /// Number of weights that share one absmax: a power of two from 32 to 4096
    #[arg(long, alias = "block-size", default_value_t = 64)]
    nf4_block_size: usize,
    /// Quantize absmax itself to 8 bits
    #[arg(long, alias = "bnb-4bit-use-double-quant", default_value_t = true, action = clap::ArgAction::Set)]
    double_quant: bool,
    /// Short for --double-quant false
    #[arg(long, conflicts_with = "double_quant")]
    no_double_quant: bool,
    /// Linear layers to leave as they are, such as down_proj or model.layers.0; separated by commas, or repeated
    #[arg(long, value_delimiter = ',')]
    llm_int8_skip_modules: Vec<String>,
    /// Maximum size of one weight file, such as 5GB
    #[arg(long, default_value = "5GB")]
    max_shard_size: String,
    #[command(flatten)]
    device: CpuOnly,
}

pub fn run(args: &QuantizeArgs) -> Result<Answer> {
    args.device.check("quantize")?;
    let Some(max_shard_bytes) = parse_bytes(&args.max_shard_size) else {
        bail_usage!("--max-shard-size: found {:?}, expected a size such as 5GB or 500MiB", args.max_shard_size);
    };
    let block_size = args.nf4_block_size;
    if !(32..=4096).contains(&block_size) || !block_size.is_power_of_two() {
        bail_usage!("--nf4-block-size: found {block_size}, expected a power of two from 32 to 4096");
    }
    let options = QuantizeOptions {
        nf4: Nf4Options { block_size, double_quant: args.double_quant && !args.no_double_quant },
        skip_modules: args.llm_int8_skip_modules.clone(),
        max_shard_bytes,
    };
    let dir = resolve_model(&args.model, args.revision.as_deref())?;
    let checkpoint = Checkpoint::open(&dir)?;
    for note in checkpoint.notes() {
        status!("{note}");
    }
    let tensors = checkpoint.arch().tensors().len();
    let mut bar = Bars::new("quantizing", tensors as u64);
    let interruption = Interruption::watch("stopping after the current tensor; nothing is kept")?;
    let done = quantize(&checkpoint, &args.output_dir, &options, &mut |done| {
        bar.set(done as u64, String::new());
        interruption.signal().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
    })?;
    bar.finish();
    Ok(answer(&checkpoint, &args.output_dir, &options, &done))
}

fn answer(checkpoint: &Checkpoint, output: &Path, options: &QuantizeOptions, done: &Quantized) -> Answer {
    let (before, base) = (checkpoint.stored_bytes(), &done.original.name);
    let skipped = match done.skipped.len() {
        0 => String::new(),
        n => format!(", {n} left as they were"),
    };
    let double = if options.nf4.double_quant { "with" } else { "without" };
    Answer {
        text: format!(
            "{} linear weights in NF4, block {}, {double} double quantization{skipped}: {} instead of {}, in {}",
            done.quantized,
            options.nf4.block_size,
            format_bytes(done.bytes),
            format_bytes(before),
            printable(&output.display().to_string())
        ),
        json: json!({
            "output": output.display().to_string(),
            "quantized": done.quantized,
            "skipped": done.skipped,
            "files": done.files,
            "bytes": done.bytes,
            "original_bytes": before,
            "base": {"name": base.name, "revision": base.revision, "fingerprint": done.original.fingerprint},
            "block_size": options.nf4.block_size,
            "double_quant": options.nf4.double_quant,
        }),
    }
}
