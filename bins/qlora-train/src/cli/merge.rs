//! `qlora-train merge`

use super::answer::Answer;
use crate::adapter::{Adapter, recorded_base};
use crate::base::{Checkpoint, resolve_model};
use crate::error::{Error, Result};
use crate::export::{MergeBase, MergeOptions, Merged, merge, trained_options};
use crate::files::units::{format_bytes, parse_bytes};
use crate::refuse;
use crate::report::{Bars, printable, status, warning};
use crate::session::Interruption;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct MergeArgs {
    /// Base model: a Hugging Face directory, or a hub id in the local cache; without it, the one that the adapter was
    /// trained on
    #[arg(long)]
    model: Option<String>,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Adapter directory
    #[arg(long)]
    adapter: PathBuf,
    /// Directory to write; it must not exist, or be empty
    #[arg(long, visible_alias = "output")]
    output_dir: PathBuf,
    /// Weights to add the adapter to: the 16-bit original, or the NF4 ones that it was trained on, dequantized
    /// [default: as the model is stored]
    #[arg(long)]
    base: Option<BaseWeights>,
    /// Merge into a base with other weights than the adapter was trained on; what it computes then differs from what it
    /// learned
    #[arg(long)]
    allow_other_base: bool,
    /// Bytes of one weight file at most, such as 5GB
    #[arg(long, default_value = "5GB")]
    max_shard_size: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum BaseWeights {
    Bf16,
    Nf4,
}

/// Weights that an adapter is added to. Without an adapter they are those that the checkpoint holds. Refused: the
/// 16-bit ones of a checkpoint in NF4.
pub(super) fn merge_base(
    chosen: Option<BaseWeights>,
    checkpoint: &Checkpoint,
    adapter: Option<(&Adapter, &Path)>,
) -> Result<MergeBase> {
    Ok(match (chosen, checkpoint.quantization(), adapter) {
        (Some(BaseWeights::Bf16), Some(_), _) => refuse!(
            "--base bf16: {} is in NF4: give the 16-bit model that it was made from with --model, or --base nf4",
            checkpoint.dir().display()
        ),
        (_, Some(options), _) => MergeBase::Nf4(options),
        (Some(BaseWeights::Nf4), None, Some((adapter, dir))) => {
            MergeBase::Nf4(trained_options(adapter, &dir.display().to_string())?)
        }
        (_, None, _) => MergeBase::Original,
    })
}

pub fn run(args: &MergeArgs) -> Result<Answer> {
    let Some(max_shard_bytes) = parse_bytes(&args.max_shard_size) else {
        refuse!("--max-shard-size: found {:?}, expected a size such as 5GB or 500MiB", args.max_shard_size);
    };
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let base = recorded_base(&args.adapter)?;
            status!("base: {base}, as {} records", args.adapter.display());
            base
        }
    };
    let checkpoint = Checkpoint::open(&resolve_model(&model, args.revision.as_deref())?)?;
    for note in checkpoint.notes() {
        status!("{note}");
    }
    let adapter = Adapter::load(&args.adapter)?;
    let base = merge_base(args.base, &checkpoint, Some((&adapter, &args.adapter)))?;
    let options = MergeOptions { base, max_shard_bytes, allow_other_base: args.allow_other_base };
    let mut bar = Bars::new("merging", checkpoint.arch().tensors().len() as u64);
    let interruption = Interruption::watch("stopping after the current tensor; nothing is kept")?;
    let done = merge(&checkpoint, &adapter, &args.adapter, &args.output_dir, &options, &mut |done| {
        bar.set(done as u64, String::new());
        interruption.signal().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
    })?;
    bar.finish();
    done.warnings.iter().for_each(|text| warning!("{text}"));
    Ok(answer(args, &checkpoint, &options, &done))
}

fn answer(args: &MergeArgs, checkpoint: &Checkpoint, options: &MergeOptions, done: &Merged) -> Answer {
    let output = args.output_dir.display().to_string();
    let (name, what) = match options.base {
        MergeBase::Original => ("bf16", "as the model is stored"),
        MergeBase::Nf4(_) => ("nf4", "dequantized from NF4"),
    };
    Answer {
        text: format!(
            "{} linear weights changed by the adapter, the base {what}: {} in {}",
            done.changed,
            format_bytes(done.written.bytes),
            printable(&output)
        ),
        json: json!({
            "output": output,
            "changed": done.changed,
            "base_weights": name,
            "base": {"name": checkpoint.base_name().name, "revision": checkpoint.base_name().revision},
            "adapter": args.adapter.display().to_string(),
            "files": done.written.files,
            "bytes": done.written.bytes,
            "warnings": done.warnings,
        }),
    }
}
