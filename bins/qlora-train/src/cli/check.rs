//! `qlora-train check`

use super::answer::Answer;
use super::cpu_only::CpuOnly;
use crate::adapter::recorded_base;
use crate::arch::Arch;
use crate::base::resolve_description;
use crate::error::Result;
use crate::export::{Engine, Subject, Verdict};
use crate::hub::HubId;
use crate::report::{printable, status};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct CheckArgs {
    /// Adapter directory
    adapter: PathBuf,
    /// Base model: a Hugging Face directory, or a hub id (org/name@revision); without it, the one that the adapter was
    /// trained on. Of its files config.json is enough
    #[arg(long)]
    model: Option<String>,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Engines that are to serve it, separated by commas [default: all]
    #[arg(long = "for", value_name = "ENGINES", value_delimiter = ',')]
    engines: Vec<EngineArg>,
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
    let model = id.map_or(model, |id| id.name);
    let subject = Subject::read(&args.adapter, &model, &dir, &arch)?;
    let asked: Vec<Engine> = args.engines.iter().map(|&engine| engine.into()).collect();
    let engines = Engine::ALL.into_iter().filter(|engine| asked.is_empty() || asked.contains(engine));
    let verdicts: Vec<Verdict> = engines.map(|engine| subject.verdict(engine)).collect();
    Ok(Answer {
        text: verdicts.iter().flat_map(lines).collect::<Vec<_>>().join("\n"),
        json: json!({
            "adapter": args.adapter.display().to_string(),
            "base": model,
            "accepts": verdicts.iter().all(Verdict::accepts),
            "engines": verdicts.iter().map(Verdict::to_json).collect::<Vec<_>>(),
        }),
    })
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
