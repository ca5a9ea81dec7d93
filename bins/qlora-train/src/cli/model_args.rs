//! Arguments of the commands that only read a model, as settings.

use crate::adapter::{ADAPTER_MODEL, BaseQuantization, is_adapter, metadata, recorded_base, recorded_setting};
use crate::bail_usage;
use crate::config::{PromptCompletion, Purpose, Settings, SettingsArgs, name_or_path_from_home, path_from_home};
use crate::error::Result;
use crate::files::safetensors::TensorFile;
use crate::infer::Adapters;
use crate::report::status;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments shared by the commands that only read a model.
#[derive(Args)]
pub(super) struct ModelArgs {
    /// Settings file of a run: gives the model, the data and, after training, the adapter; the flags below override it
    #[arg(value_name = "CONFIG.yaml", value_parser = path_from_home())]
    pub config: Option<PathBuf>,
    /// Base model: a Hugging Face directory, or a hub id (org/name@revision); without it, the one that the first
    /// adapter was trained on. An adapter directory stands for that adapter on its base
    #[arg(long, required_unless_present_any = ["adapter", "config"], value_parser = name_or_path_from_home())]
    pub model: Option<String>,
    /// Revision of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Adapter directory; repeat the flag to use several in turn on the same base. NAME=DIR gives one a name.
    /// DIR:WEIGHT gives one a weight: then all are added up, with weight 1 for the others
    #[arg(long, value_name = "[NAME=]DIR[:WEIGHT]", value_parser = path_from_home())]
    pub adapter: Vec<PathBuf>,
    /// Put adapters on a base with other weights than they were trained on, such as the 16-bit original of an NF4 copy;
    /// what they compute then differs from what they learned
    #[arg(long)]
    pub allow_other_base: bool,
    /// Quantization of the base weights: nf4 or none [default: as the adapter was trained, or nf4]
    #[arg(long)]
    pub quantization: Option<String>,
    /// Directory in which a 16-bit base is kept in NF4, so that it is quantized once
    #[arg(long)]
    pub quantized_cache: Option<String>,
    /// Chat template for a base model without one: chatml, alpaca or a file
    #[arg(long)]
    pub chat_template: Option<String>,
    /// Form of prompts and completions: plain text (text), turns of the chat template (chat), or turns if the model has
    /// a template (auto) [default: as the adapter was trained]
    #[arg(long)]
    pub prompt_completion: Option<String>,
    /// Device to compute on: auto, cpu, cuda or cuda:N
    #[arg(long)]
    pub device: Option<String>,
    /// Number format of the CPU's arithmetic: auto, f32 or bf16
    #[arg(long)]
    pub compute: Option<String>,
    /// Place of the base weights: resident, host (for a GPU) or disk (for the CPU, with an NF4 checkpoint); from host
    /// and disk two layers at a time are loaded [default: resident if they fit]
    #[arg(long)]
    pub weights: Option<String>,
    /// Place of the output layer: resident, host (for a GPU), from where it is copied for each use, or disk (for the
    /// CPU), from where it is read in parts, and rows of the embedding with it [default: resident if it fits]
    #[arg(long)]
    pub lm_head: Option<String>,
    /// Host memory that may be used, such as 8GiB
    #[arg(long)]
    pub host_memory: Option<String>,
    /// GPU memory that may be used in total, such as 44.4GiB
    #[arg(long)]
    pub device_memory: Option<String>,
    /// Worker threads
    #[arg(long)]
    pub threads: Option<String>,
}

/// The settings, adapters and files that the arguments choose.
pub(super) struct Chosen {
    pub settings: Settings,
    pub adapters: Adapters,
}

impl ModelArgs {
    /// These arguments as settings, so that every value is checked in one place, and the adapters that they name.
    pub fn choose(&self) -> Result<Chosen> {
        let of_run = match &self.config {
            Some(file) => Some(SettingsArgs { file: Some(file.clone()), overrides: Vec::new() }.load()?),
            None => None,
        };
        let model = self.model.clone().or_else(|| of_run.as_ref()?.model.clone());
        let adapters = self.adapters(model.as_deref(), of_run.as_ref())?;
        let base = match (&model, adapters.dirs.first()) {
            (Some(model), _) if !is_adapter(Path::new(model)) => model.clone(),
            (_, Some(adapter)) => {
                let base = recorded_base(adapter, self.revision.as_deref())?;
                status!("base: {base}, as {} records", adapter.display());
                base
            }
            (_, None) => bail_usage!("give the base with --model, or an adapter with --adapter"),
        };
        let values = [
            ("model", Some(&base)),
            ("revision", self.revision.as_ref()),
            ("quantization", self.quantization.as_ref()),
            ("quantized_cache", self.quantized_cache.as_ref()),
            ("chat_template", self.chat_template.as_ref()),
            ("prompt_completion", self.prompt_completion.as_ref()),
            ("device", self.device.as_ref()),
            ("compute", self.compute.as_ref()),
            ("weights", self.weights.as_ref()),
            ("lm_head", self.lm_head.as_ref()),
            ("host_memory", self.host_memory.as_ref()),
            ("device_memory", self.device_memory.as_ref()),
            ("threads", self.threads.as_ref()),
        ];
        let given = values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.clone())));
        let mut given: Vec<_> = given.collect();
        if self.allow_other_base {
            given.push(("allow_other_base".to_owned(), "true".to_owned()));
        }
        if self.quantization.is_none() {
            given.extend(recorded_quantization(&adapters.dirs)?);
        }
        let chosen = of_run.is_some_and(|run| run.prompt_completion != PromptCompletion::Auto);
        if self.prompt_completion.is_none() && !chosen {
            given.extend(recorded_form(&adapters.dirs)?);
        }
        let settings = Settings::load(self.config.as_deref(), &given)?;
        settings.validate(Purpose::Plan)?;
        Ok(Chosen { settings, adapters })
    }

    /// The adapters that are named, including one that is given as the model; otherwise the one that the run of the
    /// settings file left.
    fn adapters(&self, model: Option<&str>, of_run: Option<&Settings>) -> Result<Adapters> {
        let own = model.map(PathBuf::from).filter(|model| is_adapter(model));
        let named = Adapters::parse(own.iter().chain(&self.adapter))?;
        let (true, Some(run)) = (named.is_empty(), of_run) else { return Ok(named) };
        Ok(match run.output_dir.clone().filter(|dir| is_adapter(dir)) {
            Some(dir) => {
                status!("adapter: {}", dir.display());
                Adapters::one_by_one(vec![dir])
            }
            None => {
                status!("the run of the settings file left no adapter yet: the base alone is used");
                named
            }
        })
    }
}

/// The form in which the runs of the adapters read texts under prompt and completion. Refused: they do not agree.
pub(super) fn recorded_form(adapters: &[PathBuf]) -> Result<Option<(String, String)>> {
    const NAME: &str = "prompt_completion";
    let mut recorded: Option<(&PathBuf, String)> = None;
    for path in adapters {
        let Some(form) = recorded_setting(path, NAME) else { continue };
        match &recorded {
            Some((first, other)) if *other != form => bail_usage!(
                "{}: was trained with `{NAME}: {form}`, {} with `{other}`: choose with --prompt-completion, or use them \
                 one at a time",
                path.display(),
                first.display()
            ),
            _ => recorded = Some((path, form)),
        }
    }
    Ok(recorded.map(|(_, form)| (NAME.to_owned(), form)))
}

/// The settings for quantization that the adapters were trained with. Refused: they do not agree.
pub(super) fn recorded_quantization(adapters: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut recorded: Option<(&PathBuf, BaseQuantization)> = None;
    for path in adapters {
        let file = path.join(ADAPTER_MODEL);
        // A damaged adapter is reported when it is loaded.
        let Ok(header) = TensorFile::open(&file) else { continue };
        let Some(text) = header.metadata.get(metadata::QUANTIZATION) else { continue };
        let quantization = BaseQuantization::from_metadata(&path.display().to_string(), text)?;
        match &recorded {
            Some((first, other)) if *other != quantization => bail_usage!(
                "{}: was trained on a base quantized as {quantization}, {} on one quantized as {other}: choose one with \
                 --quantization, or use them one at a time",
                path.display(),
                first.display()
            ),
            _ => recorded = Some((path, quantization)),
        }
    }
    Ok(recorded.map_or_else(Vec::new, |(_, quantization)| quantization.settings()))
}
