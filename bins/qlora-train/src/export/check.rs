//! A check of an adapter on disk against other programs: whether they accept it, reasons why not, and the command that
//! serves it.
//!
//! The base's config.json and tokenizer are read here, and of its weights at most the headers. The engines' rules are
//! those of PEFT 0.21, vLLM 0.33, SGLang 0.5 and llama.cpp of 2026.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::logits::LogitChange;
use crate::adapter::engines::{VLLM_RANKS, vllm_rank_flag};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, BaseQuantization, check_unchanged, read_tokens};
use crate::arch::{Arch, Wrapper};
use crate::base::Checkpoint;
use crate::config::Settings;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::files::json::read_object;
use crate::files::safetensors::TensorFile;
use crate::lora::{ParamId, ParamKind};
use crate::session::model_spec::base_quantization;

/// A program that serves adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Peft,
    Vllm,
    Sglang,
    LlamaCpp,
}

impl Engine {
    pub const ALL: [Self; 4] = [Self::Peft, Self::Vllm, Self::Sglang, Self::LlamaCpp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llamacpp",
        }
    }
}

/// The verdict of one engine on an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub engine: Engine,
    /// The reasons why it refuses the adapter or would answer differently, one sentence each; empty: it accepts it.
    pub reasons: Vec<String>,
    /// The command, or the lines of Python, that serve it.
    pub command: String,
}

impl Verdict {
    pub fn accepts(&self) -> bool {
        self.reasons.is_empty()
    }

    pub fn to_json(&self) -> Value {
        json!({
            "name": self.engine.name(), "accepts": self.accepts(), "reasons": self.reasons, "command": self.command,
        })
    }
}

/// An adapter as it lies on the disk, and its base.
pub struct Subject<'a> {
    dir: &'a Path,
    /// Name or path of the base for the engines' commands.
    base: &'a str,
    base_dir: &'a Path,
    arch: &'a Arch,
    config: Map<String, Value>,
    /// Faults for every engine.
    faults: Vec<String>,
    ranks: BTreeSet<usize>,
    /// The adapter as this program reads it, or its error.
    own: Result<Adapter>,
    /// A file with the chat template that was trained with, where the base has another.
    template: Option<String>,
}

impl<'a> Subject<'a> {
    /// Refused: no adapter_config.json or adapter_model.safetensors there, or one that cannot be read at all, or
    /// whose tensors were changed after they were written.
    pub fn read(dir: &'a Path, base: &'a str, base_dir: &'a Path, arch: &'a Arch) -> Result<Self> {
        let own = Adapter::load(dir);
        let (config_path, model_path) = (dir.join(ADAPTER_CONFIG), dir.join(ADAPTER_MODEL));
        if !config_path.exists() || !model_path.exists() {
            own?;
            crate::bail_usage!("{}: found no adapter, expected {ADAPTER_CONFIG} and {ADAPTER_MODEL}", dir.display());
        }
        check_unchanged(dir)?;
        let (config, file) = (read_object(&config_path)?, TensorFile::open(&model_path)?);
        let mut subject =
            Self { dir, base, base_dir, arch, config, faults: Vec::new(), ranks: BTreeSet::new(), own, template: None };
        subject.check_tensors(&file)?;
        subject.check_tokenizer()?;
        Ok(subject)
    }

    /// True if the adapter fits the base: nothing that was read is wrong.
    pub fn is_sound(&self) -> bool {
        self.own.is_ok() && self.faults.is_empty()
    }

    /// A warning that the base is stored in another quantization than the adapter was trained on: engines use it as it
    /// is stored.
    pub fn warning(&self) -> Option<String> {
        let adapter = self.own.as_ref().ok()?;
        let in_16_bits = !read_object(&self.base_dir.join("config.json")).ok()?.contains_key("quantization_config");
        let held = match in_16_bits {
            true => BaseQuantization::NONE,
            false => base_quantization(&Settings::default(), &Checkpoint::open(self.base_dir).ok()?),
        };
        adapter.check_base_quantization(None, &held)
    }

    /// Adds the result for the logits of a prompt: if none changes, every engine would serve the base alone.
    pub fn take_logits(&mut self, change: &LogitChange) {
        if change.largest_change == 0.0 {
            let tokens = change.tokens;
            self.faults.push(format!(
                "the logits of a prompt of {tokens} tokens are those of the base: the adapter changes nothing"
            ));
        }
    }

    /// Every key has to be of a module that the base's class has, with its shape, and something has to change.
    fn check_tensors(&mut self, file: &TensorFile) -> Result<()> {
        let class = self.arch.wrapper.map_or(self.arch.family.architecture, |wrapper| wrapper.architecture);
        let mut kinds: BTreeMap<String, Vec<ParamKind>> = BTreeMap::new();
        let others: BTreeMap<String, Vec<usize>> = self.arch.other_modules().into_iter().collect();
        // None: no tensor of rows can be compared with it.
        let rows = match read_tokens(self.dir) {
            Ok(rows) => Some(rows),
            Err(error) => {
                self.faults.push(error.to_string());
                None
            }
        };
        let (mut strange, mut misses, mut wrong, mut changes) = (Vec::new(), Vec::new(), Vec::new(), false);
        for (key, info) in &file.tensors {
            let Some(id) = ParamId::from_peft_key(key) else {
                strange.push(key.clone());
                continue;
            };
            // The class of a larger model has the text model's modules below another prefix.
            let module = Wrapper::text_name(id.module()).filter(|module| Wrapper::path(module) == id.module());
            let module = if self.arch.wrapper.is_some() { module } else { Some(id.module().to_owned()) };
            if id.kind() == ParamKind::Tokens {
                changes = true;
                let Some(rows) = &rows else { continue };
                match module.as_ref().and_then(|module| rows.get(module)) {
                    // Nothing else loads it.
                    None => strange.push(key.clone()),
                    Some(tokens) if info.shape[..] != [tokens.len(), self.arch.hidden_size] => {
                        wrong.push(format!("`{key}` of shape {:?}", info.shape));
                    }
                    Some(_) => {}
                }
                continue;
            }
            if id.kind() == ParamKind::Whole {
                let shape = module.as_ref().and_then(|module| others.get(module));
                let path = module.as_deref().unwrap_or_default();
                let loaded = self.own.as_ref().ok().and_then(|own| own.whole_modules().ok());
                let loads = loaded.is_none_or(|loaded| loaded.contains_key(path));
                match shape {
                    None => misses.push(key.clone()),
                    Some(shape) if *shape != info.shape => wrong.push(format!("`{key}` of shape {:?}", info.shape)),
                    // Nothing else loads it.
                    Some(_) if !loads => strange.push(key.clone()),
                    Some(_) => changes = true,
                }
                continue;
            }
            let Some((_, projection)) = module.and_then(|module| self.arch.find(&module)) else {
                misses.push(key.clone());
                continue;
            };
            let (n_out, k_in) = projection.shape(self.arch);
            if id.kind() == ParamKind::Magnitude {
                match info.shape[..] == [n_out] {
                    true => changes = true,
                    false => wrong.push(format!("`{key}` of shape {:?}", info.shape)),
                }
                continue;
            }
            let (rank, fits) = match (id.kind(), &info.shape[..]) {
                (ParamKind::LoraA, &[r, k]) => (r, k == k_in),
                (ParamKind::LoraB, &[n, r]) => (r, n == n_out),
                _ => (0, false),
            };
            if !fits {
                wrong.push(format!("`{key}` of shape {:?}", info.shape));
            }
            self.ranks.insert(rank);
            kinds.entry(id.module().to_owned()).or_default().push(id.kind());
            let values = file.read_f32(key, info, |_| ())?;
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                self.faults.push(format!("the tensor `{key}` holds {value}"));
            }
            changes |= id.kind() == ParamKind::LoraB && values.iter().any(|&value| value != 0.0);
        }
        self.check_rows(&rows.unwrap_or_default());
        let halves: Vec<String> = kinds.iter().filter(|(_, kinds)| kinds.len() != 2).map(|(m, _)| m.clone()).collect();
        for (found, what) in [
            (strange, "no LoRA pair of a linear layer"),
            (misses, "of no module of the base"),
            (wrong, "not of the base's sizes"),
            (halves, "half a pair"),
        ] {
            if let Some(first) = found.first() {
                let more = if found.len() > 1 { format!(", and {} more", found.len() - 1) } else { String::new() };
                self.faults.push(format!("{first}{more}: {what} ({class})"));
            }
        }
        if !changes {
            self.faults.push("every lora_B is zero: the adapter changes nothing".to_owned());
        }
        Ok(())
    }

    /// Rows of single tokens have to be of tokens that the base has.
    fn check_rows(&mut self, named: &BTreeMap<String, Vec<u32>>) {
        let vocabulary = self.arch.vocab_size;
        for token in named.values().flatten().filter(|&&token| token as usize >= vocabulary) {
            self.faults.push(format!(
                "`trainable_token_indices` names token {token}, the embedding of the base has {vocabulary} rows"
            ));
        }
    }

    /// The tokens of the adapter have to be those that the base has rows for.
    fn check_tokenizer(&mut self) -> Result<()> {
        if self.dir.join("tokenizer.json").is_file() {
            let tokens = ChatTokenizer::open(self.dir, None)?.vocab_size();
            if tokens > self.arch.vocab_size {
                self.faults.push(format!(
                    "the tokenizer beside the adapter has {tokens} tokens, the embedding of the base {} rows",
                    self.arch.vocab_size
                ));
            }
        }
        if !self.base_dir.join("tokenizer.json").is_file() {
            return Ok(());
        }
        let own = ChatTokenizer::open_with_template_of(self.base_dir, self.dir)?.and_then(|own| own.template_hash());
        let base = ChatTokenizer::open(self.base_dir, None)?.template_hash();
        let file = self.dir.join("chat_template.jinja");
        if own.is_some() && own != base && file.is_file() {
            self.template = Some(file.display().to_string());
        }
        Ok(())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key).and_then(Value::as_str)
    }

    /// True if a key is there and is not null, false, `[]` or `{}`.
    fn is_set(&self, key: &str) -> bool {
        match self.config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        }
    }

    pub fn verdict(&self, engine: Engine) -> Verdict {
        let mut reasons = self.faults.clone();
        reasons.extend(match engine {
            Engine::Peft => Vec::new(),
            Engine::Vllm => self.refused_by_vllm(),
            Engine::Sglang => self.refused_by_sglang(),
            // It is converted first, by this program, which folds all scales into one.
            Engine::LlamaCpp => self.refused_by_llamacpp(),
        });
        Verdict { engine, reasons, command: self.command(engine) }
    }

    /// Reasons that apply to both vLLM and SGLang.
    fn not_plain(&self, engine: &str) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.text("peft_type") != Some("LORA") {
            let kind = self.text("peft_type").unwrap_or("none");
            reasons.push(format!("{engine} serves LoRA only, this is {kind:?}; merge it into its base"));
        }
        for (key, what) in [
            ("use_dora", "DoRA"),
            ("modules_to_save", "whole modules that were trained (`modules_to_save`)"),
            ("trainable_token_indices", "rows of single tokens that were trained (`trainable_token_indices`)"),
            ("lora_bias", "trained biases (`lora_bias`)"),
        ] {
            if self.is_set(key) {
                reasons.push(format!("{engine} does not serve {what}; merge the adapter into its base"));
            }
        }
        if self.text("bias").is_some_and(|bias| bias != "none") {
            reasons.push(format!("{engine} does not serve trained biases; merge the adapter into its base"));
        }
        for (key, what) in [("rank_pattern", "ranks"), ("alpha_pattern", "alphas")] {
            if self.is_set(key) {
                reasons.push(format!(
                    "{engine} reads one alpha and one rank for all modules and does not look at `{key}`: {what} of their own \
                     would be served with another scale; `qlora-train export uniform --adapter {} --output-dir OUT` writes \
                     an adapter of one",
                    self.dir.display()
                ));
            }
        }
        reasons
    }

    fn refused_by_llamacpp(&self) -> Vec<String> {
        let own = self.own.as_ref().err().map(|error| error.to_string());
        let dora = self.is_set("use_dora").then(|| "llama.cpp does not serve DoRA; export the merged model".to_owned());
        let whole = self.is_set("modules_to_save").then(|| {
            "llama.cpp does not serve whole modules that were trained (`modules_to_save`); export the merged model"
                .to_owned()
        });
        let rows = self.is_set("trainable_token_indices").then(|| {
            "llama.cpp does not serve rows of single tokens that were trained (`trainable_token_indices`); export the merged \
             model"
                .to_owned()
        });
        own.into_iter().chain(dora).chain(whole).chain(rows).collect()
    }

    fn refused_by_vllm(&self) -> Vec<String> {
        let mut reasons = self.not_plain("vLLM");
        if let Some(init) = self.text("init_lora_weights")
            && ["pissa", "olora", "corda", "loftq"].iter().any(|name| init.starts_with(name))
        {
            reasons.push(format!("vLLM refuses `init_lora_weights` {init:?}; convert the adapter to plain LoRA"));
        }
        for key in ["r", "lora_alpha", "target_modules"] {
            if !self.is_set(key) {
                reasons.push(format!("vLLM needs `{key}` in {ADAPTER_CONFIG}"));
            }
        }
        if vllm_rank_flag(self.rank()).is_none() {
            let most = VLLM_RANKS[VLLM_RANKS.len() - 1];
            reasons.push(format!("vLLM has room for ranks up to {most}, the adapter has {}", self.rank()));
        }
        reasons
    }

    fn refused_by_sglang(&self) -> Vec<String> {
        let mut reasons = self.not_plain("SGLang");
        if self.is_set("use_rslora") {
            reasons.push(
                "SGLang computes alpha / r and does not look at `use_rslora`: the adapter would be served with another scale; \
                 `qlora-train export uniform` writes plain LoRA"
                    .to_owned(),
            );
        }
        reasons
    }

    fn rank(&self) -> usize {
        self.ranks.last().copied().unwrap_or(0)
    }

    fn command(&self, engine: Engine) -> String {
        let (dir, base) = (self.dir.display(), self.base);
        let template = |flag: &str| self.template.as_ref().map_or(String::new(), |file| format!(" {flag} {file}"));
        match engine {
            Engine::Peft => format!(
                "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base:?}), {:?})",
                dir.to_string()
            ),
            Engine::Vllm => {
                let rank = vllm_rank_flag(self.rank()).unwrap_or_default();
                format!(
                    "vllm serve {base} --enable-lora{rank} --lora-modules adapter={dir}{}",
                    template("--chat-template")
                )
            }
            Engine::Sglang => format!(
                "python3 -m sglang.launch_server --model-path {base} --enable-lora --lora-paths adapter={dir}{}",
                template("--chat-template")
            ),
            Engine::LlamaCpp => format!(
                "qlora-train export gguf --model {base} --adapter {dir} --output-dir OUT --lora && llama-server -m BASE.gguf \
                 --lora OUT/*.gguf --jinja{}",
                template("--chat-template-file")
            ),
        }
    }
}
