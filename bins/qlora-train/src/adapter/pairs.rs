//! The tensors of an adapter as pairs (A, B) per linear, checked against each other and against the config.

use std::collections::BTreeMap;

use super::{Adapter, AdapterConfig, TargetModules};
use crate::arch::Module;
use crate::error::Result;
use crate::refuse;

const PREFIX: &str = "base_model.model.model.layers.";

/// Which half of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// `[r, k_in]`
    A,
    /// `[n_out, r]`
    B,
}

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
    /// alpha / r, or alpha / √r with rsLoRA
    pub scale: f32,
}

/// PEFT's key of one tensor: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
pub fn tensor_key(layer: usize, module: Module, matrix: Matrix) -> String {
    format!("{PREFIX}{layer}.{}.lora_{matrix:?}.weight", module.path())
}

/// The reverse of [`tensor_key`].
fn parse_key(key: &str) -> Option<(usize, Module, Matrix)> {
    let (layer, rest) = key.strip_prefix(PREFIX)?.split_once('.')?;
    let (path, matrix) = match rest.strip_suffix(".lora_A.weight") {
        Some(path) => (path, Matrix::A),
        None => (rest.strip_suffix(".lora_B.weight")?, Matrix::B),
    };
    let found = (layer.parse().ok()?, Module::from_path(path)?, matrix);
    // "+1" and "01" parse as numbers but are no layer names.
    (tensor_key(found.0, found.1, found.2) == key).then_some(found)
}

impl Adapter {
    /// Every (layer, linear) that has an adapter. Refused: a key that is not recognised, half a pair, shapes that do
    /// not fit each other or the config's rank, a linear that `target_modules` or `layers_to_transform` leaves out, a
    /// value that is not finite.
    pub fn lora_pairs(&self) -> Result<BTreeMap<(usize, Module), LoraPair<'_>>> {
        self.pairs("adapter")
    }

    /// As [`lora_pairs`](Self::lora_pairs); `source` is what errors call the adapter.
    pub(super) fn pairs(&self, source: &str) -> Result<BTreeMap<(usize, Module), LoraPair<'_>>> {
        let config = &self.config;
        if !(0.0..1.0).contains(&config.lora_dropout) {
            refuse!(
                "{source}: `lora_dropout` of the adapter config: found {}, expected a number from 0 to below 1",
                config.lora_dropout
            );
        }
        if self.tensors.is_empty() {
            refuse!("{source}: found no tensors, expected the lora_A and lora_B of at least one linear");
        }
        let mut pairs = BTreeMap::new();
        for key in self.tensors.keys() {
            let Some((layer, module, _)) = parse_key(key) else {
                refuse!("{source}: tensor `{key}`: {}", why_not(key))
            };
            if let std::collections::btree_map::Entry::Vacant(entry) = pairs.entry((layer, module)) {
                entry.insert(self.pair(source, layer, module)?);
            }
        }
        Ok(pairs)
    }

    fn pair(&self, source: &str, layer: usize, module: Module) -> Result<LoraPair<'_>> {
        let (a_key, b_key) = (tensor_key(layer, module, Matrix::A), tensor_key(layer, module, Matrix::B));
        let (a_shape, a) = self.matrix(source, &a_key, &b_key)?;
        let (b_shape, b) = self.matrix(source, &b_key, &a_key)?;
        let ([r, k_in], [n_out, b_r]) = (a_shape, b_shape);
        if b_r != r {
            refuse!(
                "{source}: tensor `{b_key}`: found shape {b_shape:?}, expected [n_out, {r}] as lora_A has rank {r}"
            );
        }
        let config = &self.config;
        let expected = config.rank_of(source, layer, module)?;
        if r != expected {
            refuse!("{source}: tensor `{a_key}`: found rank {r}, expected {expected} as the adapter config says");
        }
        if !config.targets(layer, module) {
            refuse!(
                "{source}: tensor `{a_key}`: found an adapter of a linear that `target_modules` or `layers_to_transform` \
                 of the adapter config leaves out, expected only those that they name"
            );
        }
        let scale = config.scale_of(source, layer, module)? as f32;
        if !scale.is_finite() {
            refuse!("{source}: `lora_alpha` of the adapter config: found a scale of {scale}, expected a finite one");
        }
        Ok(LoraPair { a, b, r, k_in, n_out, scale })
    }

    fn matrix(&self, source: &str, key: &str, partner: &str) -> Result<([usize; 2], &[f32])> {
        let Some((shape, values)) = self.tensors.get(key) else {
            refuse!("{source}: tensor `{partner}`: found it without `{key}`, expected both");
        };
        let Ok([rows, columns]) = <[usize; 2]>::try_from(&shape[..]) else {
            refuse!("{source}: tensor `{key}`: found shape {shape:?}, expected two dimensions");
        };
        if rows.checked_mul(columns) != Some(values.len()) || values.is_empty() {
            refuse!("{source}: tensor `{key}`: found {} values for shape {shape:?}, expected one each", values.len());
        }
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            refuse!(
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
    /// Whether `target_modules` and `layers_to_transform` name this linear. A regular expression is taken to name what
    /// has tensors.
    pub fn targets(&self, layer: usize, module: Module) -> bool {
        matches!(self.target_modules, TargetModules::Pattern(_)) && self.transforms(layer) || self.names(layer, module)
    }

    /// As [`targets`](Self::targets), of what is named outright: not by a regular expression.
    pub(super) fn names(&self, layer: usize, module: Module) -> bool {
        let path = format!("model.layers.{layer}.{}", module.path());
        let TargetModules::Names(names) = &self.target_modules else { return false };
        self.transforms(layer) && names.iter().any(|name| is_suffix(name, &path))
    }

    fn transforms(&self, layer: usize) -> bool {
        self.layers_to_transform.as_ref().is_none_or(|layers| layers.contains(&layer))
    }

    pub(super) fn rank_of(&self, source: &str, layer: usize, module: Module) -> Result<usize> {
        Ok(from_pattern(source, "rank_pattern", &self.rank_pattern, layer, module)?.unwrap_or(self.r))
    }

    /// alpha / r, or alpha / √r with rsLoRA.
    pub(super) fn scale_of(&self, source: &str, layer: usize, module: Module) -> Result<f64> {
        let r = self.rank_of(source, layer, module)? as f64;
        let alpha = from_pattern(source, "alpha_pattern", &self.alpha_pattern, layer, module)?;
        Ok(alpha.unwrap_or(self.lora_alpha) / if self.use_rslora { r.sqrt() } else { r })
    }
}

/// PEFT's rule: the key matches the module's path or the end of it that follows a dot; "^" ties it to the beginning.
fn from_pattern<T: Copy>(
    source: &str,
    what: &str,
    pattern: &BTreeMap<String, T>,
    layer: usize,
    module: Module,
) -> Result<Option<T>> {
    let path = format!("model.layers.{layer}.{}", module.path());
    let matches = |key: &str| key.strip_prefix('^').map_or_else(|| is_suffix(key, &path), |whole| whole == path);
    let mut found = pattern.iter().filter(|(key, _)| matches(key));
    let first = found.next();
    if let (Some((first, _)), Some((second, _))) = (first, found.next()) {
        refuse!(
            "{source}: `{what}` of the adapter config: found both `{first}` and `{second}` for {path}, expected one"
        );
    }
    Ok(first.map(|(_, &value)| value))
}

fn is_suffix(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

fn why_not(key: &str) -> String {
    let what = if key.contains("lora_magnitude_vector") {
        "a DoRA magnitude"
    } else if key.contains("lora_embedding") || key.contains("embed_tokens") {
        "an adapter of the embedding"
    } else if key.contains("lm_head") {
        "an adapter of lm_head"
    } else if key.contains("modules_to_save") || !key.contains("lora_") {
        "a tensor that is not LoRA"
    } else {
        "an adapter of another module"
    };
    format!(
        "found {what}, expected only the LoRA pairs of a Llama's seven linears (`{PREFIX}N.….lora_A.weight`, `….lora_B.weight`)"
    )
}
