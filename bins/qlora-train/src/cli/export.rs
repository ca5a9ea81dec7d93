//! `qlora-train export`

use super::answer::Answer;
use super::cpu_only::CpuOnly;
use super::merge::{BaseWeights, merge_base};
use crate::adapter::engines::not_plain;
use crate::adapter::{Adapter, recorded_base};
use crate::bail_usage;
use crate::base::{Checkpoint, resolve_model};
use crate::config::path_from_home;
use crate::error::{Error, Result};
use crate::export::{Exported, GgufType, Part, ToMerge, export_adapter, export_model, export_uniform};
use crate::files::units::format_bytes;
use crate::report::{Bars, printable, status, warning};
use crate::session::Interruption;
use crate::session::chat_template::{open_tokenizer, warn_of_templates};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct ExportArgs {
    #[command(subcommand)]
    format: Format,
}

#[derive(Subcommand)]
enum Format {
    /// Write a GGUF file for llama.cpp and a Modelfile for Ollama: a model with an adapter merged into it, the base
    /// alone, or an adapter alone (--lora)
    Gguf(GgufArgs),
    /// Write an adapter as plain LoRA of one rank and one alpha, padded with zeros, as vLLM and SGLang serve it
    Uniform(UniformArgs),
}

#[derive(Args)]
struct UniformArgs {
    /// Adapter directory
    #[arg(long, value_parser = path_from_home())]
    adapter: PathBuf,
    /// Directory to write; it must not exist, or be empty
    #[arg(long, visible_alias = "output", value_parser = path_from_home())]
    output_dir: PathBuf,
    #[command(flatten)]
    device: CpuOnly,
}

#[derive(Args)]
struct GgufArgs {
    /// Base model: a Hugging Face directory, or a hub id (org/name@revision); without it, the one that the adapter was
    /// trained on
    #[arg(long)]
    model: Option<String>,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Adapter directory; without it, the base alone is written
    #[arg(long, value_parser = path_from_home())]
    adapter: Option<PathBuf>,
    /// Directory to write; it must not exist, or be empty
    #[arg(long, visible_alias = "output", value_parser = path_from_home())]
    output_dir: PathBuf,
    /// Type of the weights [default: 16 bits as the model is stored; f32 for an adapter alone]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Type>,
    /// Write the adapter alone; llama.cpp adds it to the base's file when it serves
    #[arg(long, requires = "adapter", conflicts_with_all = ["base", "allow_other_base"])]
    lora: bool,
    /// Weights to add the adapter to: the 16-bit original, or the NF4 ones that it was trained on, dequantized
    /// [default: as the model is stored]
    #[arg(long, requires = "adapter")]
    base: Option<BaseWeights>,
    /// Merge into a base with other weights than the adapter was trained on; what it computes then differs from what it
    /// learned
    #[arg(long)]
    allow_other_base: bool,
    /// Chat template for a base model without one: chatml, alpaca or a file
    #[arg(long)]
    chat_template: Option<String>,
    #[command(flatten)]
    device: CpuOnly,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl From<Type> for GgufType {
    fn from(kind: Type) -> Self {
        match kind {
            Type::F32 => Self::F32,
            Type::F16 => Self::F16,
            Type::Bf16 => Self::Bf16,
            Type::Q8_0 => Self::Q8_0,
            Type::Q4KM => Self::Q4KM,
        }
    }
}

pub fn run(args: &ExportArgs) -> Result<Answer> {
    match &args.format {
        Format::Gguf(args) => gguf(args),
        Format::Uniform(args) => uniform(args),
    }
}

fn uniform(args: &UniformArgs) -> Result<Answer> {
    args.device.check("export uniform")?;
    let adapter = Adapter::load(&args.adapter)?;
    warn_of_templates(None, std::slice::from_ref(&args.adapter));
    let uniform = export_uniform(&adapter, &args.adapter, &args.output_dir)?;
    let (config, output) = (&uniform.config, args.output_dir.display().to_string());
    if let Some(what) = not_plain(config) {
        warning!("{output}: the adapter has {what} too: vLLM and SGLang serve it merged only (`qlora-train merge`)");
    }
    Ok(Answer {
        text: format!(
            "an adapter of rank {} and alpha {} throughout, in {}",
            config.r,
            config.lora_alpha,
            printable(&output)
        ),
        json: json!({
            "output": output,
            "adapter": args.adapter.display().to_string(),
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "tensors": uniform.tensors.len(),
        }),
    })
}

fn gguf(args: &GgufArgs) -> Result<Answer> {
    args.device.check("export gguf")?;
    let model = match (&args.model, &args.adapter) {
        (Some(model), _) => model.clone(),
        (None, Some(adapter)) => {
            let base = recorded_base(adapter, args.revision.as_deref())?;
            status!("base: {base}, as {} records", adapter.display());
            base
        }
        (None, None) => bail_usage!("give the base with --model, or an adapter with --adapter"),
    };
    let checkpoint = Checkpoint::open(&resolve_model(&model, args.revision.as_deref())?)?;
    for note in checkpoint.notes() {
        status!("{note}");
    }
    let adapter = args.adapter.as_ref().map(|dir| Adapter::load(dir).map(|adapter| (adapter, dir))).transpose()?;
    let dirs: Vec<PathBuf> = args.adapter.iter().cloned().collect();
    let tokenizer = open_tokenizer(args.chat_template.as_deref(), &checkpoint, &dirs)?;
    status!("chat template: {}", tokenizer.template_origin());
    let done = match &adapter {
        Some((adapter, dir)) if args.lora => {
            let kind = args.kind.map_or(GgufType::F32, GgufType::from);
            export_adapter(&checkpoint, adapter, dir, &tokenizer, &args.output_dir, kind)?
        }
        _ => {
            let kind = args.kind.map_or_else(|| GgufType::as_stored(&checkpoint), GgufType::from);
            let parts: Vec<Part> = adapter.iter().map(|(adapter, dir)| Part::whole(adapter, dir)).collect();
            let base = merge_base(args.base, &checkpoint, &parts)?;
            let merged = adapter.as_ref().map(|(adapter, dir)| ToMerge {
                adapter,
                dir,
                allow_other_base: args.allow_other_base,
            });
            let mut bar = Bars::new("exporting", checkpoint.arch().tensors().len() as u64);
            let interruption = Interruption::watch("stopping after the current tensor; nothing is kept")?;
            let mut progress = |done: usize| {
                bar.set(done as u64, String::new());
                interruption.signal().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
            };
            let done = export_model(&checkpoint, merged, base, &tokenizer, &args.output_dir, kind, &mut progress)?;
            bar.finish();
            done
        }
    };
    done.warnings.iter().for_each(|text| warning!("{text}"));
    Ok(answer(args, &checkpoint, &done))
}

fn answer(args: &GgufArgs, checkpoint: &Checkpoint, done: &Exported) -> Answer {
    let file = args.output_dir.join(&done.file).display().to_string();
    let what = match (&args.adapter, args.lora) {
        (Some(_), true) => format!("an adapter of {} linear weights", done.changed),
        (Some(_), false) => format!("the model with the adapter in {} linear weights", done.changed),
        (None, _) => "the base".to_owned(),
    };
    Answer {
        text: format!("{what}: {} in {}, a Modelfile beside it", format_bytes(done.bytes), printable(&file)),
        json: json!({
            "output": args.output_dir.display().to_string(),
            "file": file,
            "bytes": done.bytes,
            "sha256": done.sha256,
            "tensors": done.tensors,
            "changed": done.changed,
            "base": {"name": checkpoint.base_name().name, "revision": checkpoint.base_name().revision},
            "adapter": args.adapter.as_ref().map(|dir| dir.display().to_string()),
            "warnings": done.warnings,
        }),
    }
}
