//! `qlora-train merge`

use super::answer::Answer;
use super::cpu_only::check_cpu_only;
use super::model_args::recorded_form;
use crate::adapter::{Adapter, recorded_base};
use crate::bail_usage;
use crate::base::{Checkpoint, resolve_model};
use crate::config::{Purpose, Settings, path_from_home};
use crate::data;
use crate::error::{Error, Result};
use crate::export::{
    Measurements, MergeBase, MergeMemory, MergeOptions, Merged, Part, measure, merge, merge_memory, trained_on,
    trained_options,
};
use crate::files::units::{format_bytes, parse_bytes};
use crate::infer::Adapters;
use crate::report::{Bars, count, printable, status, status_lines, warning};
use crate::session::chat_template::warn_of_templates;
use crate::session::host::{host_budget, set_threads};
use crate::session::training_data::{data_options, find_files, training_options};
use crate::session::{Device, Interruption, Loaded};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct MergeArgs {
    /// Base model: a Hugging Face directory, or a hub id (org/name@revision); without it, the one that the first
    /// adapter was trained on
    #[arg(long)]
    model: Option<String>,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Adapter directory; repeat the flag to add up the changes of several. DIR:WEIGHT sets a weight other than 1, and
    /// NAME=DIR a name in the printed result
    #[arg(long, required = true, value_name = "[NAME=]DIR[:WEIGHT]", value_parser = path_from_home())]
    adapter: Vec<PathBuf>,
    /// Directory to write; it must not exist, or be empty
    #[arg(long, visible_alias = "output", value_parser = path_from_home())]
    output_dir: PathBuf,
    /// Weights to add the adapter to: the 16-bit original, or the NF4 ones that it was trained on, dequantized
    /// [default: as the model is stored]
    #[arg(long)]
    base: Option<BaseWeights>,
    /// Merge into a base with other weights than the adapter was trained on; what it computes then differs from what it
    /// learned
    #[arg(long)]
    allow_other_base: bool,
    /// Maximum size of one weight file, such as 5GB
    #[arg(long, default_value = "5GB")]
    max_shard_size: String,
    /// Rows to measure the effect of merging on, before the model is written: the loss of base, adapter, merged model
    /// and merged model in NF4, and how far their next tokens are from the trained adapter's
    #[arg(long, value_parser = path_from_home())]
    data: Vec<PathBuf>,
    /// Maximum number of tokens in a row of --data; longer rows are left out
    #[arg(long, requires = "data", default_value_t = 2048)]
    max_length: usize,
    /// Device to measure on: auto, cpu, cuda or cuda:N; merging itself uses the CPU
    #[arg(long)]
    device: Option<String>,
    /// Number format of the CPU's arithmetic: auto, f32 or bf16
    #[arg(long, requires = "data")]
    compute: Option<String>,
    /// Host memory that may be used, such as 8GiB
    #[arg(long)]
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

/// Weights that adapters are added to. Without an adapter they are those that the checkpoint holds. Refused: the 16-bit
/// ones of a checkpoint in NF4.
pub(super) fn merge_base(chosen: Option<BaseWeights>, checkpoint: &Checkpoint, parts: &[Part]) -> Result<MergeBase> {
    Ok(match (chosen, checkpoint.quantization()) {
        (Some(BaseWeights::Bf16), Some(_)) => bail_usage!(
            "--base bf16: {} is in NF4: give the 16-bit model that it was made from with --model, or --base nf4",
            checkpoint.dir().display()
        ),
        (_, Some(options)) => MergeBase::Nf4(options),
        (Some(BaseWeights::Nf4), None) if !parts.is_empty() => MergeBase::Nf4(trained_options(parts)?),
        (_, None) => MergeBase::Original,
    })
}

pub fn run(args: &MergeArgs) -> Result<Answer> {
    if args.data.is_empty() {
        check_cpu_only(args.device.as_deref(), "`merge` without `--data`")?;
    }
    let Some(max_shard_bytes) = parse_bytes(&args.max_shard_size) else {
        bail_usage!("--max-shard-size: found {:?}, expected a size such as 5GB or 500MiB", args.max_shard_size);
    };
    let host_memory = Settings::load(None, &given([("host_memory", args.host_memory.clone())]))?.host_memory;
    let adapters = Adapters::parse(&args.adapter)?.added_up();
    if adapters.weights().iter().all(|&weight| weight == 0.0) {
        bail_usage!(
            "--adapter: found weights that are all 0, by which the merged model would be the base; expected another"
        );
    }
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let base = recorded_base(&adapters.dirs[0], args.revision.as_deref())?;
            status!("base: {base}, as {} records", adapters.dirs[0].display());
            base
        }
    };
    let checkpoint = Checkpoint::open(&resolve_model(&model, args.revision.as_deref())?)?;
    for note in checkpoint.notes() {
        status!("{note}");
    }
    let loaded = adapters.dirs.iter().map(|dir| Adapter::load(dir)).collect::<Result<Vec<_>>>()?;
    let of_each = loaded.iter().zip(&adapters.dirs).zip(adapters.weights());
    let parts: Vec<Part> = of_each.map(|((adapter, dir), &weight)| Part { adapter, dir, weight }).collect();
    let base = merge_base(args.base, &checkpoint, &parts)?;
    let options = MergeOptions { base, max_shard_bytes, allow_other_base: args.allow_other_base };
    let memory = merge_memory(&checkpoint, &parts, &options)?;
    say_memory(&memory, parts.len(), host_budget(host_memory.map(|bytes| bytes.0)))?;
    let measured = match args.data.is_empty() {
        true => {
            warn_of_templates(Some(checkpoint.dir()), &adapters.dirs);
            None
        }
        false => Some(measure_on_rows(args, &model, &parts, &adapters, base)?),
    };
    let mut bar = Bars::new("merging", checkpoint.arch().tensors().len() as u64);
    let interruption = Interruption::watch("stopping after the current tensor; nothing is kept")?;
    let done = merge(&checkpoint, &parts, &args.output_dir, &options, &mut |done| {
        bar.set(done as u64, String::new());
        interruption.signal().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
    })?;
    bar.finish();
    done.warnings.iter().for_each(|text| warning!("{text}"));
    let mut answer = answer(args, &checkpoint, &adapters, &options, &memory, &done);
    if let Some(measured) = measured {
        answer.text = format!("{}\n{}", measured.lines().join("\n"), answer.text);
        answer.json["measured"] = measured.to_json();
    }
    Ok(answer)
}

/// The settings that have a value.
fn given<const N: usize>(texts: [(&str, Option<String>); N]) -> Vec<(String, String)> {
    texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Prints the most memory that merging `count` adapters takes. Refused: the budget is smaller.
fn say_memory(memory: &MergeMemory, count: usize, budget: u64) -> Result<()> {
    let MergeMemory { adapters, largest, largest_bytes } = memory;
    let (bytes, adapters, tensor) = (memory.bytes(), format_bytes(*adapters), format_bytes(*largest_bytes));
    let (named, take) = if count == 1 { ("adapter", "takes") } else { ("adapters", "take") };
    status!("memory: {} at most, of which the {named} {take} {adapters}, and {largest} {tensor}", format_bytes(bytes));
    if bytes > budget {
        bail_usage!(
            "merging takes up to {} of memory, {adapters} of it for the {named} and {tensor} for {largest}: found {} \
             that may be used: free memory, or give more with --host-memory",
            format_bytes(bytes),
            format_bytes(budget)
        );
    }
    Ok(())
}

/// Measures on the rows of `--data` what merging changes.
fn measure_on_rows(
    args: &MergeArgs,
    model: &str,
    parts: &[Part],
    adapters: &Adapters,
    base: MergeBase,
) -> Result<Measurements> {
    let trained = trained_on(parts)?;
    let data = args.data.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",");
    let mut texts = given([
        ("model", Some(model.to_owned())),
        ("revision", args.revision.clone()),
        ("data", Some(data)),
        ("max_length", Some(args.max_length.to_string())),
        ("device", args.device.clone()),
        ("compute", args.compute.clone()),
        ("host_memory", args.host_memory.clone()),
        ("threads", args.threads.clone()),
        ("allow_other_base", args.allow_other_base.then(|| "true".to_owned())),
    ]);
    texts.extend(recorded_form(&adapters.dirs)?);
    let mut settings = Settings::load(None, &texts)?;
    settings.validate(Purpose::Plan)?;
    settings.data = args.data.clone();
    find_files(&mut settings)?;
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let loaded = Loaded::open_for(&settings, &adapters.dirs)?;
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    let options = training_options(&settings, data_options(&settings, &loaded));
    let dataset = data::load_once(&settings.data, &|| loaded.open_tokenizer(), &options)?;
    // The warning comes where the tokenizer is opened.
    if loaded.tokenizer().is_none() {
        warn_of_templates(Some(loaded.checkpoint.dir()), &adapters.dirs);
    }
    status_lines!(dataset.report.lines());
    let measured = measure(&settings, &loaded.checkpoint, parts, adapters, base, trained, &dataset.rows, &device)?;
    if let Some(text) = measured.warning() {
        warning!("{text}");
    }
    Ok(measured)
}

fn answer(
    args: &MergeArgs,
    checkpoint: &Checkpoint,
    adapters: &Adapters,
    options: &MergeOptions,
    memory: &MergeMemory,
    done: &Merged,
) -> Answer {
    let output = args.output_dir.display().to_string();
    let (name, what) = match options.base {
        MergeBase::Original => ("bf16", "as the model is stored"),
        MergeBase::Nf4(_) => ("nf4", "dequantized from NF4"),
    };
    // One adapter is named by its directory, several as their sum.
    let named: String = match adapters.is_sum() {
        true => adapters.passes().into_iter().flatten().collect(),
        false => adapters.dirs[0].display().to_string(),
    };
    let each = |(index, dir): (usize, &PathBuf)| {
        let dir = dir.display().to_string();
        json!({"name": adapters.name(index), "directory": dir, "weight": adapters.weights()[index]})
    };
    Answer {
        text: format!(
            "{} linear weights changed by the adapter{}{}{}, the base {what}: {} in {}",
            done.changed,
            if adapters.is_sum() { format!(" {}", printable(&named)) } else { String::new() },
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
            "adapter": named,
            "adapters": adapters.dirs.iter().enumerate().map(each).collect::<Vec<_>>(),
            "memory": {
                "bytes": memory.bytes(),
                "adapters_bytes": memory.adapters,
                "largest": memory.largest,
                "largest_bytes": memory.largest_bytes,
            },
            "files": done.written.files,
            "bytes": done.written.bytes,
            "warnings": done.warnings,
        }),
    }
}

/// Words for the weights that the adapter itself holds.
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
