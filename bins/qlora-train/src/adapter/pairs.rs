//! The tensors of an adapter as pairs (A, B) per linear, checked against each other and against the config.

use std::collections::BTreeMap;

use fancy_regex::Regex;

use super::kind::MLX;
use super::module_pattern::{Patterns, is_match, layer_of};
use super::{Adapter, AdapterConfig, TargetModules};
use crate::arch::LLAMA_NAMES;
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::lora::{LoraKind, LoraSpec, LoraTerm, ParamId, ParamKind};

/// One linear's adapter: `y += scale · (x · Aᵀ) · Bᵀ`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPair<'a> {
    /// `[r, k_in]`, row-major
    pub a: &'a [f32],
    /// `[n_out, r]`, row-major
    pub b: &'a [f32],
    pub r: usize,
    pub k_in: usize,
    pub n_out: usize,
    pub alpha: f64,
    /// [`LoraSpec::scale`] of alpha and r
    pub scale: f32,
    /// `[n_out]`, with DoRA
    pub magnitude: Option<&'a [f32]>,
}

/// The weight of a module that was trained whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WholeModule<'a> {
    pub shape: &'a [usize],
    pub values: &'a [f32],
}

impl Adapter {
    /// Every module that has an adapter. Refused: a key that is not recognized, half a pair, shapes that do not fit
    /// each other or the config's rank, a linear that `target_modules` or `layers_to_transform` leaves out, a value
    /// that is not finite. [`check_shapes`](Self::check_shapes) checks that a model has these modules.
    pub fn lora_pairs(&self) -> Result<BTreeMap<String, LoraPair<'_>>> {
        self.pairs("adapter")
    }

    /// The weights of the modules that `modules_to_save` names, by module. Refused: as by
    /// [`lora_pairs`](Self::lora_pairs).
    pub fn whole_modules(&self) -> Result<BTreeMap<String, WholeModule<'_>>> {
        let mut modules = BTreeMap::new();
        for (key, (shape, values)) in &self.tensors {
            let Some(id) = self.whole_id(key) else { continue };
            let what = || format!("adapter: tensor `{key}`");
            if !(1..=2).contains(&shape.len()) || shape.iter().product::<usize>() != values.len() || values.is_empty() {
                bail_usage!("{}: found {} values in shape {shape:?}, expected those of a weight", what(), values.len());
            }
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                bail_usage!("{}: found {} at element {at}, expected finite numbers", what(), values[at]);
            }
            modules.insert(id.module().to_owned(), WholeModule { shape, values });
        }
        let names = &self.config.modules_to_save;
        if let Some(name) = names.iter().find(|name| !modules.keys().any(|module| module.ends_with(*name))) {
            bail_usage!(
                "adapter: `modules_to_save` of the adapter config: found {name}, expected only modules with tensors"
            );
        }
        Ok(modules)
    }

    /// The module of a tensor that `modules_to_save` names.
    fn whole_id(&self, key: &str) -> Option<ParamId> {
        let id = ParamId::from_peft_key(key).filter(|id| id.kind() == ParamKind::Whole)?;
        let named = |module: &str| self.config.modules_to_save.iter().any(|name| module.ends_with(name));
        // PEFT may name one of two modules that stay one tensor, and writes both.
        let ends = [LLAMA_NAMES.embedding_module(), LLAMA_NAMES.head_module()];
        let tied = self.config.ensure_weight_tying && ends.contains(&id.module()) && ends.iter().any(|end| named(end));
        (tied || named(id.module())).then_some(id)
    }

    /// The trainable tensors that the adapter puts on a base. Refused: as by [`lora_pairs`](Self::lora_pairs).
    pub fn lora_spec(&self) -> Result<LoraSpec> {
        let kind = |pair: &LoraPair| if pair.magnitude.is_some() { LoraKind::Dora } else { LoraKind::Lora };
        let term = |(module, pair): (String, LoraPair)| {
            (module, LoraTerm { kind: kind(&pair), ..LoraTerm::lora(pair.r, pair.alpha) })
        };
        let terms = self.lora_pairs()?.into_iter().map(term).collect();
        let whole = self.whole_modules()?;
        let end = |name: &'static str| whole.get(name).map(|module| module.values);
        let untied = end(LLAMA_NAMES.embedding_module()) != end(LLAMA_NAMES.head_module());
        let (rslora, dropout) = (self.config.use_rslora, self.config.lora_dropout);
        let whole = whole.keys().cloned().collect();
        let tokens = self.token_rows()?.into_iter().map(|(module, rows)| (module, rows.tokens)).collect();
        Ok(LoraSpec { terms, rslora, dropout, whole, tokens, untied, ..LoraSpec::default() })
    }

    /// Every pair; `source` is what errors call the adapter.
    pub(super) fn pairs(&self, source: &str) -> Result<BTreeMap<String, LoraPair<'_>>> {
        let config = &self.config;
        if !(0.0..1.0).contains(&config.lora_dropout) {
            bail_usage!(
                "{source}: `lora_dropout` of the adapter config: found {}, expected a number from 0 to below 1",
                config.lora_dropout
            );
        }
        if self.tensors.is_empty() {
            bail_usage!("{source}: found no tensors, expected the lora_A and lora_B of at least one linear");
        }
        let wrong =
            |what: &str, error: String| Error::Refused(format!("{source}: `{what}` of the adapter config: {error}"));
        let ranks = Patterns::new(&config.rank_pattern).map_err(|error| wrong("rank_pattern", error))?;
        let alphas = Patterns::new(&config.alpha_pattern).map_err(|error| wrong("alpha_pattern", error))?;
        let mut pairs = BTreeMap::new();
        self.whole_modules()?;
        self.token_rows()?;
        let is_other = |key: &str| self.whole_id(key).is_some() || self.is_token_rows(key);
        for key in self.tensors.keys().filter(|key| !is_other(key)) {
            let Some(id) = ParamId::from_peft_key(key).filter(is_linear) else {
                bail_usage!("{source}: tensor `{key}`: {}", why_not(key))
            };
            if !pairs.contains_key(id.module()) {
                let module = id.module();
                let r = ranks.of(module).map_err(|error| wrong("rank_pattern", error))?;
                let alpha = alphas.of(module).map_err(|error| wrong("alpha_pattern", error))?;
                let (r, alpha) = (r.unwrap_or(config.r), alpha.unwrap_or(config.lora_alpha));
                pairs.insert(module.to_owned(), self.pair(source, module, r, alpha)?);
            }
        }
        Ok(pairs)
    }

    /// The pair of a module to which the config gives rank `expected` and `alpha`.
    fn pair(&self, source: &str, module: &str, expected: usize, alpha: f64) -> Result<LoraPair<'_>> {
        let (a_key, b_key) = (ParamId::a(module).peft_key(), ParamId::b(module).peft_key());
        let (a_shape, a) = self.matrix(source, &a_key, &b_key)?;
        let (b_shape, b) = self.matrix(source, &b_key, &a_key)?;
        let ([r, k_in], [n_out, b_r]) = (a_shape, b_shape);
        if b_r != r {
            bail_usage!(
                "{source}: tensor `{b_key}`: found shape {b_shape:?}, expected [n_out, {r}] as lora_A has rank {r}"
            );
        }
        let config = &self.config;
        if r != expected {
            bail_usage!("{source}: tensor `{a_key}`: found rank {r}, expected {expected} as the adapter config says");
        }
        let excluded = |error| Error::Refused(format!("{source}: `exclude_modules` of the adapter config: {error}"));
        if !config.targets(module).map_err(excluded)? {
            bail_usage!(
                "{source}: tensor `{a_key}`: found an adapter of a linear that `target_modules`, `exclude_modules` or \
                 `layers_to_transform` of the adapter config leaves out, expected only those that they name"
            );
        }
        let scale = LoraSpec::scale(alpha, r, config.use_rslora) as f32;
        if !scale.is_finite() {
            bail_usage!(
                "{source}: `lora_alpha` of the adapter config: found a scale of {scale}, expected a finite one"
            );
        }
        let magnitude = self.magnitude(source, module, n_out)?;
        Ok(LoraPair { a, b, r, k_in, n_out, alpha, scale, magnitude })
    }

    /// The magnitudes of a module, which are there with `use_dora` and only then.
    fn magnitude(&self, source: &str, module: &str, n_out: usize) -> Result<Option<&[f32]>> {
        let key = ParamId::magnitude(module).peft_key();
        match (self.tensors.get(&key), self.config.use_dora) {
            (None, false) => Ok(None),
            (None, true) => {
                bail_usage!(
                    "{source}: found no tensor `{key}`, expected one as `use_dora` of the adapter config is true"
                )
            }
            (Some(_), false) => {
                bail_usage!(
                    "{source}: tensor `{key}`: found a DoRA magnitude, expected none as `use_dora` of the adapter config is false"
                )
            }
            (Some((shape, values)), true) => {
                if shape[..] != [n_out] || values.len() != n_out {
                    bail_usage!(
                        "{source}: tensor `{key}`: found shape {shape:?}, expected [{n_out}] as lora_B has so many rows"
                    );
                }
                if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                    bail_usage!(
                        "{source}: tensor `{key}`: found {} at element {at}, expected finite numbers",
                        values[at]
                    );
                }
                Ok(Some(values))
            }
        }
    }

    fn matrix(&self, source: &str, key: &str, partner: &str) -> Result<([usize; 2], &[f32])> {
        let Some((shape, values)) = self.tensors.get(key) else {
            bail_usage!("{source}: tensor `{partner}`: found it without `{key}`, expected both");
        };
        let Ok([rows, columns]) = <[usize; 2]>::try_from(&shape[..]) else {
            bail_usage!("{source}: tensor `{key}`: found shape {shape:?}, expected two dimensions");
        };
        if rows.checked_mul(columns) != Some(values.len()) || values.is_empty() {
            bail_usage!(
                "{source}: tensor `{key}`: found {} values for shape {shape:?}, expected one each",
                values.len()
            );
        }
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            bail_usage!(
                "{source}: tensor `{key}`: found {} at row {}, column {}, expected finite numbers",
                values[i],
                i / columns,
                i % columns
            );
        }
        Ok(([rows, columns], values))
    }
}

impl AdapterConfig {
    /// True if `target_modules` and `layers_to_transform` name this module. A regular expression is taken to name what
    /// has tensors. Failed: a regular expression of `exclude_modules` that takes too many steps.
    pub fn targets(&self, module: &str) -> Result<bool, String> {
        match self.target_modules {
            TargetModules::Pattern(_) => self.transforms(module),
            TargetModules::Names(_) => self.names(module),
        }
    }

    /// True if a module is named outright: not by a regular expression. Failed as [`Self::targets`].
    pub(super) fn names(&self, module: &str) -> Result<bool, String> {
        let TargetModules::Names(names) = &self.target_modules else { return Ok(false) };
        Ok(names.iter().any(|name| is_suffix(name, module)) && self.transforms(module)?)
    }

    fn transforms(&self, module: &str) -> Result<bool, String> {
        let listed = |layers: &Vec<usize>| layer_of(module).is_some_and(|layer| layers.contains(&layer));
        Ok(self.layers_to_transform.as_ref().is_none_or(listed) && !self.excludes(module)?)
    }

    /// True if `exclude_modules` leaves a module out: by its name or the end of its path, or by a regular expression
    /// for the whole path, as PEFT reads it.
    fn excludes(&self, module: &str) -> Result<bool, String> {
        match &self.exclude_modules {
            None => Ok(false),
            Some(TargetModules::Names(names)) => Ok(names.iter().any(|name| is_suffix(name, module))),
            Some(TargetModules::Pattern(pattern)) => match Regex::new(&format!(r"\A(?:{pattern})\z")) {
                Ok(regex) => is_match(&regex, pattern, module),
                Err(_) => Ok(false),
            },
        }
    }
}

/// True if a term belongs to a linear layer of a block, which is what can carry one.
fn is_linear(id: &ParamId) -> bool {
    !matches!(id.kind(), ParamKind::Whole | ParamKind::Tokens) && layer_of(id.module()).is_some()
}

fn is_suffix(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Parts of the names of tensors that are no LoRA of linear layers, with what they are.
const OTHERS: [(&str, &str); 16] = [
    ("lora_magnitude_vector", "a DoRA magnitude"),
    ("lora_E", "the singular values of AdaLoRA"),
    ("ranknum", "a rank of AdaLoRA"),
    (".lora_B.bias", "a bias that was trained (lora_bias)"),
    ("lora_embedding", "an adapter of the embedding"),
    ("trainable_tokens", "the rows of single tokens (trainable_token_indices)"),
    ("ia3_l", "the factors of IA3"),
    ("prompt_embeddings", "a soft prompt or prefix"),
    ("prompt_encoder", "a soft prompt or prefix"),
    ("adaption_", "a LLaMA-Adapter"),
    ("hada_w", "LoHa"),
    ("lokr_w", "LoKr"),
    ("oft_", "orthogonal fine-tuning"),
    ("hra_u", "orthogonal fine-tuning"),
    ("vera_lambda", "VeRA"),
    ("spectrum", "a spectrum (FourierFT)"),
];

fn why_not(key: &str) -> String {
    if key.ends_with(".lora_a") || key.ends_with(".lora_b") {
        return format!("found a tensor of mlx-lm, expected those of PEFT ({MLX})");
    }
    let what = match OTHERS.iter().find(|(part, _)| key.contains(part)) {
        Some((_, what)) => what,
        None if key.contains("embed_tokens") => "an adapter of the embedding",
        None if key.contains("lm_head") => "an adapter of lm_head",
        None if key.contains("modules_to_save") || !key.contains("lora_") => "a tensor that is not LoRA",
        None => "an adapter of another module",
    };
    format!(
        "found {what}, expected only the LoRA pairs of linear layers (`….layers.N.….lora_A.weight`, `….lora_B.weight`)"
    )
}
