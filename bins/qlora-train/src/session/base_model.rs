//! The base model of a run: its checkpoint, opened and checked, and its tokenizer.

use super::Device;
use super::chat_template::open_tokenizer;
use super::plan::{TensorStorage, stored_in};
use super::quantized_cache::{Outlook, QuantizedCache};
use crate::adapter::{ADAPTER_CONFIG, is_adapter, lora_settings, recorded_base, recorded_setting, recorded_settings};
use crate::bail_usage;
use crate::base::{Checkpoint, resolve_description_by, resolve_model_by};
use crate::config::{PromptCompletion, Resume, Settings};
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::hub::{Environment, HubId};
use crate::report::{status, warning};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// Above this many parameters the CPU is only used when it is asked for.
const CPU_PARAMETERS: u64 = 3_000_000_000;

/// A base model and the tokenizer of its directory.
pub struct Loaded {
    pub checkpoint: Checkpoint,
    chat_template: Option<String>,
    /// Adapters whose chat template is used
    adapters: Vec<PathBuf>,
    /// Special tokens that the settings name, by the names of `tokenizer_config.json`.
    special_tokens: [(&'static str, Option<String>); 2],
    /// Time for the chat template, where it is not that of the opening
    clock: Option<Timestamp>,
    /// Processes of this machine that read the same at the same time, this one among them
    processes_here: usize,
    /// Cache that keeps the weights in NF4 before they are read
    cache: Option<QuantizedCache>,
    tokenizer: OnceCell<ChatTokenizer>,
}

impl Loaded {
    /// Opens and checks the base, without its weights. The chat template is that of the adapter that the run begins
    /// with, if there is one.
    pub fn open(settings: &Settings) -> Result<Self> {
        Self::open_by(settings, &Environment::read())
    }

    /// Opens as [`open`](Self::open) does, with the caches, the hub and the recorded commits of `environment`.
    pub fn open_by(settings: &Settings, environment: &Environment) -> Result<Self> {
        Self::open_with(settings, settings.init_adapter.as_slice(), environment)
    }

    /// Opens as [`open`](Self::open) does, with the chat template that these adapters were trained with.
    pub fn open_for(settings: &Settings, adapters: &[PathBuf]) -> Result<Self> {
        Self::open_with(settings, adapters, &Environment::read())
    }

    fn open_with(settings: &Settings, adapters: &[PathBuf], environment: &Environment) -> Result<Self> {
        let arg = settings.model_path()?;
        let dir = resolve_model_by(&arg.to_string_lossy(), settings.revision.as_deref(), environment)?;
        let checkpoint = Checkpoint::open(&dir)?;
        for note in checkpoint.notes() {
            status!("{note}");
        }
        let special_tokens = [("eos_token", settings.eos_token.clone()), ("bos_token", settings.bos_token.clone())];
        let chat_template = settings.chat_template.clone();
        let (adapters, tokenizer) = (adapters.to_vec(), OnceCell::new());
        let (clock, processes_here, cache) = (None, 1, None);
        Ok(Self { checkpoint, chat_template, adapters, special_tokens, clock, processes_here, cache, tokenizer })
    }

    /// Takes the weights that `quantized_cache` keeps, where it is set and has them. Where it has not,
    /// [`keep_quantized`](Self::keep_quantized) is to be called before weights are read. Refused: it cannot have them,
    /// for want of room or because nothing can be written there.
    pub fn find_quantized(&mut self, settings: &Settings) -> Result<()> {
        let Some(mut cache) = QuantizedCache::of(settings, &self.checkpoint) else { return Ok(()) };
        if let Some(kept) = cache.find(&self.checkpoint)? {
            return self.checkpoint.take_weights_of(kept);
        }
        cache.check_place(&self.checkpoint)?;
        self.cache = Some(cache);
        Ok(())
    }

    /// Quantizes the base into `quantized_cache`, where it was not found there, and takes the weights from there.
    pub fn keep_quantized(&mut self) -> Result<()> {
        let Some(mut cache) = self.cache.take() else { return Ok(()) };
        let kept = cache.make(&self.checkpoint)?;
        self.checkpoint.take_weights_of(kept)
    }

    /// Bytes that [`keep_quantized`](Self::keep_quantized) will take of the file system of `output`.
    pub fn bytes_to_keep(&self, output: &Path) -> Result<u64> {
        self.cache.as_ref().map_or(Ok(0), |cache| cache.needed_beside(output, &self.checkpoint))
    }

    /// Takes the weights from `quantized_cache`, where it is set, and keeps them there first where need be.
    pub fn use_quantized(&mut self, settings: &Settings) -> Result<()> {
        self.find_quantized(settings)?;
        self.keep_quantized()
    }

    /// The state of `quantized_cache` as a run would find it, where it is set. Nothing is written, and few values are
    /// read.
    pub fn foresee_quantized(&mut self, settings: &Settings) -> Result<Option<Outlook>> {
        self.cache = QuantizedCache::of(settings, &self.checkpoint);
        self.cache.as_ref().map(|cache| cache.outlook(&self.checkpoint)).transpose()
    }

    /// Storage of the weights that will be read: in NF4 where the cache keeps them so.
    pub fn stored(&self) -> impl Fn(&str) -> TensorStorage {
        let own = stored_in(&self.checkpoint);
        move |name| match &self.cache {
            Some(cache) => cache.stored(self.checkpoint.arch(), name, own(name)),
            None => own(name),
        }
    }

    /// Sets the time for the chat template, before the tokenizer is opened.
    pub fn set_clock(&mut self, clock: Timestamp) {
        self.clock = Some(clock);
    }

    /// Time for the chat template; none: that of the opening.
    pub fn clock(&self) -> Option<Timestamp> {
        self.clock
    }

    /// Sets the number of processes of this machine that share its memory.
    pub fn set_processes_here(&mut self, processes: usize) {
        self.processes_here = processes;
    }

    /// Processes of this machine that share its memory, this one among them.
    pub fn processes_here(&self) -> usize {
        self.processes_here
    }

    /// Source of the tokenizer, in words.
    pub fn tokenizer_source(&self) -> String {
        format!("{:?} {:?} {:?}", self.checkpoint.dir(), self.chat_template, self.adapters)
    }

    /// The tokenizer if it was opened: not where all rows are token ids already.
    pub fn tokenizer(&self) -> Option<&ChatTokenizer> {
        self.tokenizer.get()
    }

    /// The tokenizer, opened now if it was not.
    pub fn open_tokenizer(&self) -> Result<&ChatTokenizer> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let mut tokenizer = open_tokenizer(self.chat_template.as_deref(), &self.checkpoint, &self.adapters)?;
        status!("chat template: {}", tokenizer.template_origin());
        if let Some(clock) = self.clock {
            tokenizer.set_now(clock.to_zoned(TimeZone::UTC))?;
        }
        for (name, given) in &self.special_tokens {
            check_special_token(&tokenizer, name, given.as_deref())?;
        }
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// Parameters of the base alone. Opening it checked that the count fits 64 bits.
    pub fn parameters(&self) -> u64 {
        self.checkpoint.arch().num_parameters().unwrap_or(u64::MAX)
    }

    /// Refuses a model that would keep a CPU busy for days, unless the CPU was asked for.
    pub fn check_size(&self, settings: &Settings, device: &Device) -> Result<()> {
        let parameters = self.parameters();
        if device.is_cpu() && settings.device.is_none() && parameters > CPU_PARAMETERS {
            bail_usage!(
                "the model has {:.1}B parameters, which takes very long on a CPU; use `--device cpu` to train it there \
                 anyway",
                parameters as f64 / 1e9
            );
        }
        Ok(())
    }
}

/// Directory of a model of the hub whose weights the cache lacks, and which has its description. None: the weights are
/// there or have to be, as those of a directory.
pub fn description_alone(settings: &Settings, environment: &Environment) -> Result<Option<PathBuf>> {
    let model = settings.model_path()?;
    let Some(name) = model.to_str().filter(|name| HubId::parse(name).is_some()) else { return Ok(None) };
    if model.exists() {
        return Ok(None);
    }
    let dir = resolve_description_by(name, settings.revision.as_deref(), environment)?;
    let has_weights = ["model.safetensors", "model.safetensors.index.json"].iter().any(|file| dir.join(file).exists());
    Ok((!has_weights).then_some(dir))
}

/// Puts the base of an adapter in its place where `model` names the adapter's directory, and the run begins with it; or
/// where the run begins with an adapter and no model is named. The terms of such a run are the adapter's and its rows
/// are read in the adapter's form, as far as nothing else is given.
pub fn replace_adapter_by_base(settings: &mut Settings) -> Result<()> {
    if let Some(adapter) = settings.model.clone().map(PathBuf::from).filter(|model| is_adapter(model)) {
        if let Some(other) = settings.init_adapter.as_ref().filter(|other| **other != adapter) {
            bail_usage!(
                "`model`: {} is an adapter, with whose weights the run would begin, and `init_adapter` is {}: give one of \
                 them, and the base of it as `model`",
                adapter.display(),
                other.display()
            );
        }
        let base = recorded_base(&adapter, settings.revision.as_deref())?;
        status!("{} is an adapter: the run begins with its weights, on its base {base}", adapter.display());
        settings.model = Some(base);
        settings.init_adapter.get_or_insert(adapter);
    } else if let (None, Some(adapter)) = (&settings.model, &settings.init_adapter) {
        let base = recorded_base(adapter, settings.revision.as_deref())?;
        status!("model: {base}, the base of {}", adapter.display());
        settings.model = Some(base);
    }
    follow_terms(settings)?;
    follow_form(settings)
}

/// Takes ranks, modules, scale and the like of the adapter that the run begins with where they are not given. Refused:
/// a value that no run has, such as a rank above the highest.
fn follow_terms(settings: &mut Settings) -> Result<()> {
    let Some(adapter) = settings.init_adapter.clone() else { return Ok(()) };
    let Some(own) = lora_settings(&adapter) else { return Ok(()) };
    let config = adapter.join(ADAPTER_CONFIG).display().to_string();
    let mut with_own = settings.clone();
    let taken = with_own.take_where_not_given(&config, &own);
    if taken.as_ref().is_ok_and(Vec::is_empty) {
        return Ok(());
    }
    if began_without(settings, &own) {
        status!("the run began without the terms of {} that are not given, and keeps its own", adapter.display());
        return Ok(());
    }
    let taken = taken?.join(", ");
    status!("as {} has them: {taken}", adapter.display());
    *settings = with_own;
    Ok(())
}

/// True if the run that is continued, or asked about again, began with the same adapter and has these settings' values
/// for terms that are not given: it began before the adapter's were taken.
fn began_without(settings: &Settings, own: &[(&str, Value)]) -> bool {
    let run = match &settings.resume_from_checkpoint {
        Resume::From(dir) => Some(dir),
        Resume::Latest | Resume::No => settings.output_dir.as_ref(),
    };
    let Some(began) = run.and_then(|run| recorded_settings(run)) else { return false };
    let now = settings.to_json();
    let is_same = |name: &str| began.get(name).is_none_or(|value| *value == now[name]);
    let mut not_given = own.iter().map(|(name, _)| *name).filter(|name| !settings.given.has(name));
    began.get("init_adapter") == now.get("init_adapter") && not_given.all(is_same)
}

/// Takes the form in which the adapter that the run begins with read texts under prompt and completion. One that is
/// chosen wins, which is printed.
fn follow_form(settings: &mut Settings) -> Result<()> {
    let Some(adapter) = settings.init_adapter.as_deref() else { return Ok(()) };
    let Some(form) = recorded_setting(adapter, "prompt_completion") else { return Ok(()) };
    let recorded = Settings::load(None, &[("prompt_completion".to_owned(), form)])?.prompt_completion;
    match (recorded, settings.prompt_completion) {
        (PromptCompletion::Auto, _) => {}
        (form, chosen) if form == chosen => {}
        (form, PromptCompletion::Auto) => {
            status!("prompt_completion: {}, as {} was trained", form.name(), adapter.display());
            settings.prompt_completion = form;
        }
        (form, chosen) => warning!(
            "{}: was trained with `prompt_completion: {}`, the run has {}; leave it out to go on in that form",
            adapter.display(),
            form.name(),
            chosen.name()
        ),
    }
    Ok(())
}

/// Refuses a special token other than the tokenizer's: the model was made with that one.
fn check_special_token(tokenizer: &ChatTokenizer, name: &str, given: Option<&str>) -> Result<()> {
    let own = tokenizer.special_token(name);
    match given {
        Some(given) if own != Some(given) => bail_usage!(
            "`{name}`: found {given:?}, the tokenizer of {} has {}; leave it out, or change tokenizer_config.json",
            tokenizer.dir().display(),
            own.map_or_else(|| "none".to_owned(), |own| format!("{own:?}"))
        ),
        _ => Ok(()),
    }
}
