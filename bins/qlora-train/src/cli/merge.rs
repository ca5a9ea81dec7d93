//! `qlora-train merge`

use super::answer::Answer;
use super::cpu_only::check_cpu_only;
use crate::adapter::{Adapter, Recipe, recorded_base, recorded_setting};
use crate::base::{Checkpoint, resolve_model};
use crate::config::{Purpose, Settings};
use crate::data;
use crate::error::{Error, Result};
use crate::export::{Measurements, MergeBase, MergeOptions, Merged, measure, merge, trained_options};
use crate::files::units::{format_bytes, parse_bytes};
use crate::refuse;
use crate::report::{Bars, count, printable, status, status_lines, warning};
use crate::session::host::set_threads;
use crate::session::training_data::{data_options, find_files, training_options};
use crate::session::{Device, Interruption, Loaded};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct MergeArgs {
    /// Base model: a Hugging Face directory, or a hub id (org/name@revision); without it, the one that the adapter was
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
    /// Rows to measure what merging changes on, before it is done: loss, and how far the next tokens are from what was
    /// trained, of base, adapter, merged model, and merged model in NF4
    #[arg(long)]
    data: Vec<PathBuf>,
    /// Tokens of a row at most, with --data; longer rows are left out
    #[arg(long, requires = "data", default_value_t = 2048)]
    max_length: usize,
    /// Where to measure: auto, cpu, cuda or cuda:N; merging itself is done on the CPU
    #[arg(long)]
    device: Option<String>,
    /// What the CPU computes in: auto, f32 or bf16
    #[arg(long, requires = "data")]
    compute: Option<String>,
    /// Host memory that may be used to measure, such as 8GiB
    #[arg(long, requires = "data")]
    host_memory: Option<String>,
    /// Worker threads
    #[arg(long, requires = "data")]
    threads: Option<String>,
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
    if args.data.is_empty() {
        check_cpu_only(args.device.as_deref(), "`merge` without `--data`")?;
    }
    let Some(max_shard_bytes) = parse_bytes(&args.max_shard_size) else {
        refuse!("--max-shard-size: found {:?}, expected a size such as 5GB or 500MiB", args.max_shard_size);
    };
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let base = recorded_base(&args.adapter, args.revision.as_deref())?;
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
    let measured = match args.data.is_empty() {
        true => None,
        false => Some(measure_on_rows(args, &model, &adapter, base)?),
    };
    let options = MergeOptions { base, max_shard_bytes, allow_other_base: args.allow_other_base };
    let mut bar = Bars::new("merging", checkpoint.arch().tensors().len() as u64);
    let interruption = Interruption::watch("stopping after the current tensor; nothing is kept")?;
    let done = merge(&checkpoint, &adapter, &args.adapter, &args.output_dir, &options, &mut |done| {
        bar.set(done as u64, String::new());
        interruption.signal().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
    })?;
    bar.finish();
    done.warnings.iter().for_each(|text| warning!("{text}"));
    let mut answer = answer(args, &checkpoint, &options, &done);
    if let Some(measured) = measured {
        answer.text = format!("{}\n{}", measured.lines().join("\n"), answer.text);
        answer.json["measured"] = measured.to_json();
    }
    Ok(answer)
}

/// Measures on the rows of `--data` what merging changes.
fn measure_on_rows(args: &MergeArgs, model: &str, adapter: &Adapter, base: MergeBase) -> Result<Measurements> {
    let data = args.data.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",");
    let texts = [
        ("model", Some(model.to_owned())),
        ("revision", args.revision.clone()),
        ("data", Some(data)),
        ("max_length", Some(args.max_length.to_string())),
        ("device", args.device.clone()),
        ("compute", args.compute.clone()),
        ("host_memory", args.host_memory.clone()),
        ("threads", args.threads.clone()),
        ("allow_other_base", args.allow_other_base.then(|| "true".to_owned())),
        ("prompt_completion", recorded_setting(&args.adapter, "prompt_completion")),
    ];
    let given: Vec<(String, String)> =
        texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let mut settings = Settings::load(None, &given)?;
    settings.validate(Purpose::Plan)?;
    settings.data = args.data.clone();
    find_files(&mut settings)?;
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let loaded = Loaded::open_for(&settings, std::slice::from_ref(&args.adapter))?;
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    let options = training_options(&settings, data_options(&settings, &loaded));
    let dataset = data::load_once(&settings.data, &|| loaded.open_tokenizer(), &options)?;
    status_lines!(dataset.report.lines());
    let trained = match adapter.recipe(&args.adapter.display().to_string())? {
        Some(recipe) if recipe == Recipe::NONE => None,
        _ => Some(trained_options(adapter, &args.adapter.display().to_string())?),
    };
    let measured =
        measure(&settings, &loaded.checkpoint, adapter, &args.adapter, base, trained, &dataset.rows, &device)?;
    if let Some(text) = measured.warning() {
        warning!("{text}");
    }
    Ok(measured)
}

fn answer(args: &MergeArgs, checkpoint: &Checkpoint, options: &MergeOptions, done: &Merged) -> Answer {
    let output = args.output_dir.display().to_string();
    let (name, what) = match options.base {
        MergeBase::Original => ("bf16", "as the model is stored"),
        MergeBase::Nf4(_) => ("nf4", "dequantized from NF4"),
    };
    Answer {
        text: format!(
            "{} linear weights changed by the adapter{}{}, the base {what}: {} in {}",
            done.changed,
            others(done.whole),
            match done.rows {
                0 => String::new(),
                rows => format!(", {} for single tokens", count(rows as u64, "row")),
            },
            format_bytes(done.written.bytes),
            printable(&output)
        ),
        json: json!({
            "output": output,
            "changed": done.changed,
            "whole": done.whole,
            "token_rows": done.rows,
            "base_weights": name,
            "base": {"name": checkpoint.base_name().name, "revision": checkpoint.base_name().revision},
            "adapter": args.adapter.display().to_string(),
            "files": done.written.files,
            "bytes": done.written.bytes,
            "warnings": done.warnings,
        }),
    }
}

/// Words for so many weights that the adapter has itself.
fn others(whole: usize) -> String {
    match whole {
        0 => String::new(),
        1 => ", 1 other is its own".to_owned(),
        _ => format!(", {whole} others are its own"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_the_adapter_are_counted_in_words() {
        assert_eq!([0, 1, 9].map(others), ["", ", 1 other is its own", ", 9 others are its own"]);
    }
}
