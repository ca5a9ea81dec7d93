//! `qlora-train check`

use super::answer::Answer;
use super::cpu_only::CpuOnly;
use super::model_args::recorded_quantization;
use crate::adapter::recorded_base;
use crate::arch::Arch;
use crate::base::{Checkpoint, resolve_description, resolve_model};
use crate::config::{Purpose, Settings, path_from_home};
use crate::error::Result;
use crate::export::{Engine, LogitChange, Subject, Verdict, logit_change};
use crate::hub::HubId;
use crate::report::{printable, status, warning};
use crate::session::Device;
use crate::session::chat_template::warn_of_templates;
use crate::session::host::set_threads;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct CheckArgs {
    /// Adapter directory
    #[arg(value_parser = path_from_home())]
    adapter: PathBuf,
    /// Base model: a Hugging Face directory, or a hub id (org/name@revision); without it, the one that the adapter was
    /// trained on. Its config.json is enough
    #[arg(long)]
    model: Option<String>,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Engines to check, separated by commas [default: all]
    #[arg(long = "for", value_name = "ENGINES", value_delimiter = ',')]
    engines: Vec<EngineArg>,
    /// Compute a short prompt with and without the adapter, and check that the logits change. This reads the base's
    /// weights and quantizes them as in training
    #[arg(long)]
    logits: bool,
    /// With --logits: allow a base with other weights than the adapter was trained on
    #[arg(long, requires = "logits")]
    allow_other_base: bool,
    /// With --logits: host memory that may be used, such as 8GiB
    #[arg(long, requires = "logits")]
    host_memory: Option<String>,
    #[command(flatten)]
    device: CpuOnly,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineArg {
    Peft,
    Vllm,
    Sglang,
    #[value(name = "llamacpp", alias = "llama.cpp", alias = "ollama")]
    LlamaCpp,
}

impl From<EngineArg> for Engine {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Peft => Self::Peft,
            EngineArg::Vllm => Self::Vllm,
            EngineArg::Sglang => Self::Sglang,
            EngineArg::LlamaCpp => Self::LlamaCpp,
        }
    }
}

pub fn run(args: &CheckArgs) -> Result<Answer> {
    args.device.check("check")?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let base = recorded_base(&args.adapter, args.revision.as_deref())?;
            status!("base: {base}, as {} records", args.adapter.display());
            base
        }
    };
    let dir = resolve_description(&model, args.revision.as_deref())?;
    let arch = Arch::from_file(&dir.join("config.json"))?;
    // Engines take a revision elsewhere.
    let id = HubId::parse(&model).filter(|_| !Path::new(&model).exists());
    let name = id.map_or(model.clone(), |id| id.name);
    let mut subject = Subject::read(&args.adapter, &name, &dir, &arch)?;
    warn_of_templates(Some(&dir), std::slice::from_ref(&args.adapter));
    let change = match args.logits && subject.is_sound() {
        true => Some(logits(args, &model)?),
        false => None,
    };
    if let Some(change) = &change {
        subject.take_logits(change);
    }
    if let Some(text) = subject.warning() {
        warning!("{text}");
    }
    let asked: Vec<Engine> = args.engines.iter().map(|&engine| engine.into()).collect();
    let engines = Engine::ALL.into_iter().filter(|engine| asked.is_empty() || asked.contains(engine));
    let verdicts: Vec<Verdict> = engines.map(|engine| subject.verdict(engine)).collect();
    let told = change.iter().map(LogitChange::line);
    Ok(Answer {
        text: told.chain(verdicts.iter().flat_map(lines)).collect::<Vec<_>>().join("\n"),
        json: json!({
            "adapter": args.adapter.display().to_string(),
            "base": name,
            "logits": change.as_ref().map(LogitChange::to_json),
            "accepts": verdicts.iter().all(Verdict::accepts),
            "engines": verdicts.iter().map(Verdict::to_json).collect::<Vec<_>>(),
        }),
    })
}

/// Change of the logits of a short prompt by the adapter, in f32 on the CPU.
fn logits(args: &CheckArgs, model: &str) -> Result<LogitChange> {
    let texts = [
        ("model", Some(model.to_owned())),
        ("revision", args.revision.clone()),
        ("device", Some("cpu".to_owned())),
        ("compute", Some("f32".to_owned())),
        ("host_memory", args.host_memory.clone()),
        ("allow_other_base", args.allow_other_base.then(|| "true".to_owned())),
    ];
    let mut given: Vec<(String, String)> =
        texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    given.extend(recorded_quantization(std::slice::from_ref(&args.adapter))?);
    let settings = Settings::load(None, &given)?;
    settings.validate(Purpose::Plan)?;
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let checkpoint = Checkpoint::open(&resolve_model(model, args.revision.as_deref())?)?;
    for note in checkpoint.notes() {
        status!("{note}");
    }
    logit_change(&settings, &checkpoint, &args.adapter, &device)
}

fn lines(verdict: &Verdict) -> Vec<String> {
    let (name, command) = (verdict.engine.name(), printable(&verdict.command));
    match verdict.accepts() {
        true => vec![format!("{name}: accepts it"), format!("  {command}")],
        false => {
            let reasons = verdict.reasons.iter().map(|reason| format!("  {}", printable(reason)));
            std::iter::once(format!("{name}: refuses it")).chain(reasons).collect()
        }
    }
}
