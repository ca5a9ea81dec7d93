//! The model that the settings describe, and how a base's weights are quantized.

use super::adalora;
use crate::adapter::{BaseQuantization, Patterns};
use crate::arch::{Arch, Projection, Wrapper};
use crate::backend::{Quantization, StateFormat};
use crate::bail_usage;
use crate::base::Checkpoint;
use crate::config::{self, Settings, TokenIndices};
use crate::error::{Error, Result};
use crate::lora::{LoraKind, LoraSpec};
use crate::model::ModelSpec;
use fancy_regex::Regex;
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet};

/// Refuses, where a cache is to hold the base in NF4, 16-bit weights and terms that begin with these.
pub fn check_cache(settings: &Settings) -> Result<()> {
    let needs_16_bits = match (settings.quantization, settings.init_lora_weights) {
        (config::Quantization::None, _) => Some("`quantization: none`".to_owned()),
        (_, init) if init.changes_base() => Some(format!("`init_lora_weights: {}`", init.name())),
        _ => None,
    };
    if let (Some(_), Some(other)) = (&settings.quantized_cache, needs_16_bits) {
        bail_usage!("`quantized_cache` keeps the base in NF4, and {other} needs it in 16 bits: leave one of them out");
    }
    Ok(())
}

/// Refuses, where the checkpoint holds NF4 or a cache is to hold it so, 16-bit weights and terms that begin with these.
pub fn check_quantization(settings: &Settings, checkpoint: &Checkpoint) -> Result<()> {
    check_cache(settings)?;
    if settings.quantization == config::Quantization::None && checkpoint.quantization().is_some() {
        bail_usage!(
            "`quantization`: found none, but the weights of {} are already quantized ({}); expected nf4, or the original \
             16-bit model",
            checkpoint.dir().display(),
            base_quantization(settings, checkpoint)
        );
    }
    if settings.init_lora_weights.changes_base() && checkpoint.quantization().is_some() {
        bail_usage!(
            "`init_lora_weights`: found {}, which begins with directions of the weights, but those of {} are already \
             quantized ({}); expected true, or the original 16-bit model",
            settings.init_lora_weights.name(),
            checkpoint.dir().display(),
            base_quantization(settings, checkpoint)
        );
    }
    Ok(())
}

/// Refuses a class that would not serve an adapter of the model, and targets that the model does not have.
fn check_targets(settings: &Settings, arch: &Arch) -> Result<()> {
    let own = arch.family.architecture;
    let classes: Vec<&str> = arch.wrapper.map(|wrapper| wrapper.architecture).into_iter().chain([own]).collect();
    if let Some(class) = settings.adapter_architecture.as_deref().filter(|class| !classes.contains(class)) {
        bail_usage!("`adapter_architecture`: found {class}, expected {}, as config.json has it", classes.join(" or "));
    }
    let has = |name: &str| arch.names.all().any(|projection| arch.names.short(projection) == name);
    let missing = settings.lora_target_modules.listed().and_then(|names| names.iter().find(|name| !has(name)));
    let Some(missing) = missing else { return Ok(()) };
    let has = |projection| arch.names.all().any(|own| own == projection);
    let fused = match (has(Projection::Qkv), has(Projection::GateUp)) {
        (true, _) => ", as q, k and v are one tensor there, and gate and up",
        (false, true) => ", as gate and up are one tensor there",
        (false, false) => "",
    };
    bail_usage!(
        "`lora_target_modules`: found {missing}, which a model of type {:?} does not have; expected all-linear or some of \
         {}{fused}",
        arch.family.model_type,
        arch.names.short_names()
    );
}

/// Leaves the terms of modules whose whole path a regular expression matches, as PEFT does: in the model, or in the
/// larger one around a text model. Refused: it matches none of them, or a module that gets no adapter here.
fn keep_matching(lora: &mut LoraSpec, arch: &Arch, pattern: &str) -> Result<()> {
    let regex = match Regex::new(&format!(r"\A(?:{pattern})\z")) {
        Ok(regex) => regex,
        Err(error) => bail_usage!("`lora_target_modules`: `{pattern}` is no regular expression: {error}"),
    };
    let matches = |module: &str| {
        let whole = arch.wrapper.is_some().then(|| Wrapper::path(module));
        let found = std::iter::once(module).chain(whole.as_deref()).map(|path| regex.is_match(path).ok());
        found.collect::<Option<Vec<_>>>().map(|found| found.contains(&true))
    };
    let costly = |module: &str| {
        format!(
            "found the regular expression `{pattern}`, which takes too many steps for {module}, expected one without \
             repetitions inside of repetitions"
        )
    };
    for module in ["lm_head", "model.embed_tokens"] {
        if matches(module).ok_or_else(|| wrong("lora_target_modules", costly(module)))? {
            bail_usage!(
                "`lora_target_modules`: found `{pattern}`, which matches {module} too; expected linear layers of blocks, such \
                 as `.*_proj`; `modules_to_save` trains {module} whole"
            );
        }
    }
    let modules: Vec<String> = lora.terms.keys().cloned().collect();
    let example = modules.first().cloned().unwrap_or_default();
    for module in modules {
        if !matches(&module).ok_or_else(|| wrong("lora_target_modules", costly(&module)))? {
            lora.terms.retain(|other, _| *other != module);
        }
    }
    if lora.terms.is_empty() {
        bail_usage!(
            "`lora_target_modules`: found `{pattern}`, which matches no linear layer; expected a regular expression for whole \
             paths such as {example}"
        );
    }
    Ok(())
}

/// The low-rank terms that the settings ask for. Refused: targets, layers or patterns of modules that the model does
/// not have.
pub fn lora_spec(settings: &Settings, arch: &Arch) -> Result<LoraSpec> {
    check_targets(settings, arch)?;
    let targeted = |p: &Projection| {
        settings.lora_target_modules.listed().is_none_or(|names| names.contains(&arch.names.short(*p)))
    };
    let targets: Vec<Projection> = arch.names.all().filter(targeted).collect();
    let uniform = LoraSpec::uniform(arch, &targets, settings.lora_r, settings.lora_alpha, settings.lora_dropout);
    let (rslora, init) = (settings.use_rslora, settings.init_lora_weights);
    let mut lora = LoraSpec { rslora, init, ..uniform };
    if let Some(pattern) = settings.lora_target_modules.pattern() {
        keep_matching(&mut lora, arch, pattern)?;
    }
    let layers = &settings.layers_to_transform.0;
    if let Some(layer) = layers.iter().find(|&&layer| layer >= arch.num_layers) {
        bail_usage!(
            "`layers_to_transform`: found {layer}, expected numbers from 0 to {}: the model has {} layers",
            arch.num_layers - 1,
            arch.num_layers
        );
    }
    if !layers.is_empty() {
        lora.terms.retain(|module, _| arch.find(module).is_some_and(|(layer, _)| layers.contains(&layer)));
    }
    let ranks = patterns("rank_pattern", &settings.rank_pattern.0, &lora)?;
    let alphas = patterns("alpha_pattern", &settings.alpha_pattern.0, &lora)?;
    for (module, term) in &mut lora.terms {
        term.r = ranks.of(module).map_err(|error| wrong("rank_pattern", error))?.unwrap_or(term.r);
        term.alpha = alphas.of(module).map_err(|error| wrong("alpha_pattern", error))?.unwrap_or(term.alpha);
        if settings.use_dora {
            term.kind = LoraKind::Dora;
        }
    }
    check_dora(settings)?;
    lora.adalora = adalora::settings_of(settings)?;
    if init.changes_base() {
        let too_large = lora.terms.iter().find_map(|(module, term)| {
            let (n, k) = arch.find(module)?.1.shape(arch);
            (term.r > n.min(k)).then_some((module, term.r, n, k))
        });
        if let Some((module, r, n, k)) = too_large {
            bail_usage!(
                "`init_lora_weights`: {module} is {n} x {k} and has no {r} directions of its own to begin with; expected a \
                 rank of at most {}",
                n.min(k)
            );
        }
    }
    lora.whole = whole_modules(&settings.modules_to_save.0, arch)?;
    lora.tokens = token_rows(&settings.trainable_token_indices, &lora.whole, arch)?;
    Ok(lora)
}

/// Refuses what DoRA is not computed with.
fn check_dora(settings: &Settings) -> Result<()> {
    let beside = [
        (settings.lora_dropout > 0.0, "lora_dropout", "every linear layer would be computed once more; expected 0"),
        (
            settings.init_lora_weights.changes_base(),
            "init_lora_weights",
            "magnitudes begin with the norms of the weights; expected true",
        ),
    ];
    match beside.into_iter().find(|(given, ..)| settings.use_dora && *given) {
        Some((_, name, why)) => bail_usage!("`{name}` is not computed with `use_dora`: {why}"),
        None => Ok(()),
    }
}

fn wrong(setting: &str, error: String) -> Error {
    Error::Refused(format!("`{setting}`: {error}"))
}

/// The modules that `modules_to_save` names: by the end of their paths, as in PEFT. Where the output layer is the
/// embedding, either names both. Refused: a name of none, and one of linear layers.
fn whole_modules(names: &[String], arch: &Arch) -> Result<BTreeSet<String>> {
    let mut whole = BTreeSet::new();
    for name in names.iter().map(|name| own_name(name, arch)) {
        if let Some(linear) = arch.modules().find(|module| module.ends_with(&name)) {
            bail_usage!(
                "`modules_to_save`: `{name}` names the linear layer {linear}, which is frozen and gets a low-rank term \
                 (`lora_target_modules`); expected embed_tokens, lm_head or names of norms"
            );
        }
        let matching: Vec<String> = arch.other_modules().into_iter().map(|(module, _)| module).collect();
        let mut known = matching.iter().filter(|module| module.ends_with(&name) && !name.is_empty()).peekable();
        if known.peek().is_none() {
            let norms: BTreeSet<&str> = matching.iter().filter_map(|module| module.rsplit('.').next()).collect();
            bail_usage!(
                "`modules_to_save`: `{name}` matches no module of the model; expected some of {}",
                norms.into_iter().collect::<Vec<_>>().join(", ")
            );
        }
        whole.extend(known.cloned());
    }
    let ends = [arch.names.embedding_module(), arch.names.head_module()];
    if arch.tie_word_embeddings && ends.iter().any(|end| whole.contains(*end)) {
        whole.extend(ends.map(str::to_owned));
    }
    Ok(whole)
}

/// The tokens whose rows `trainable_token_indices` names, by module; a list is of the embedding, as in PEFT. Where the
/// output layer is the embedding, rows are of both. Refused: a module that has no row for each token or is trained
/// whole, a token beyond the vocabulary.
fn token_rows(given: &TokenIndices, whole: &BTreeSet<String>, arch: &Arch) -> Result<BTreeMap<String, Vec<u32>>> {
    const NAME: &str = "`trainable_token_indices`";
    let [embedding, head] = [arch.names.embedding_module(), arch.names.head_module()];
    let mut rows: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (name, tokens) in given.of_modules() {
        let name = name.map_or_else(|| embedding.to_owned(), |name| own_name(name, arch));
        let Some(module) = [embedding, head].into_iter().find(|table| table.ends_with(&name) && !name.is_empty())
        else {
            bail_usage!("{NAME}: `{name}` has no row for each token; expected embed_tokens or lm_head");
        };
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= arch.vocab_size) {
            bail_usage!("{NAME}: found token {token}, expected ids from 0 to {}", arch.vocab_size - 1);
        }
        if whole.contains(module) {
            bail_usage!("{NAME}: {module} is trained whole by `modules_to_save`; keep one of the two");
        }
        if !tokens.is_empty() && rows.insert(module.to_owned(), tokens.to_vec()).is_some() {
            bail_usage!("{NAME}: {module} is named twice; keep one of the two");
        }
    }
    if arch.tie_word_embeddings
        && let Some(of_head) = rows.remove(head)
        && rows.get(embedding) != Some(&of_head)
    {
        bail_usage!(
            "{NAME}: lm_head is one tensor with embed_tokens in this model; expected the rows of embed_tokens alone, which are \
             those of both"
        );
    }
    Ok(rows)
}

/// The name of a module of the text model, where a class around it may be meant.
fn own_name(name: &str, arch: &Arch) -> String {
    Wrapper::text_name(name).filter(|_| arch.wrapper.is_some()).unwrap_or_else(|| name.to_owned())
}

/// The patterns of a setting. Refused: one that no module with a term matches, which would change nothing.
fn patterns<T: Copy>(setting: &str, given: &IndexMap<String, T>, lora: &LoraSpec) -> Result<Patterns<T>> {
    let patterns = Patterns::new(given).map_err(|error| wrong(setting, error))?;
    let modules = lora.terms.keys().map(String::as_str);
    if let Some(key) = patterns.matching_none(modules).map_err(|error| wrong(setting, error))? {
        let example = lora.terms.keys().next().map_or("none", String::as_str);
        bail_usage!(
            "`{setting}`: `{key}` matches no module that gets an adapter; expected a name such as q_proj, or a regular \
             expression for the end of a path such as {example}"
        );
    }
    Ok(patterns)
}

/// The model that the settings describe, for batches of `tokens` and rows of `positions` tokens.
pub fn model_spec(settings: &Settings, checkpoint: &Checkpoint, tokens: usize, positions: usize) -> Result<ModelSpec> {
    let quantization = quantization(settings, checkpoint);
    model_spec_of(settings, checkpoint.arch(), quantization, tokens, positions)
}

/// The model that the settings describe, for a base of this shape.
pub fn model_spec_of(
    settings: &Settings,
    arch: &Arch,
    quantization: Quantization,
    tokens: usize,
    positions: usize,
) -> Result<ModelSpec> {
    arch.check_positions(positions)?;
    let states = match settings.optim {
        config::Optim::Adamw => StateFormat::F32,
        config::Optim::Adamw8bit => StateFormat::Blockwise8,
    };
    let spec = ModelSpec::new(lora_spec(settings, arch)?, arch.clone(), quantization, tokens);
    Ok(ModelSpec { trainable: true, states, positions, seed: settings.seed, ..spec })
}

/// The model of a run of `steps` steps, by which ranks are cut where they are. Refused: too few for that.
pub fn of_steps(mut spec: ModelSpec, steps: u64) -> Result<ModelSpec> {
    if let Some(adalora) = &mut spec.lora.adalora {
        adalora.total_steps = Some(steps);
        adalora::check_steps(adalora, steps)?;
    }
    Ok(spec)
}

/// Quantization of the frozen linear weights: as a quantized checkpoint stores them, otherwise as the settings say.
pub fn quantization(settings: &Settings, checkpoint: &Checkpoint) -> Quantization {
    of_settings(&effective_settings(settings, checkpoint))
}

/// The settings with the block size and double quantization of a quantized checkpoint.
pub fn effective_settings(settings: &Settings, checkpoint: &Checkpoint) -> Settings {
    let mut effective = settings.clone();
    if let Some(options) = checkpoint.quantization() {
        effective.quantization = config::Quantization::Nf4;
        (effective.nf4_block_size, effective.double_quant) = (options.block_size, options.double_quant);
    }
    effective
}

/// Quantization of the frozen linear weights by the settings.
pub fn of_settings(settings: &Settings) -> Quantization {
    match settings.quantization {
        config::Quantization::Nf4 => {
            Quantization::Nf4 { block_size: settings.nf4_block_size, double_quant: settings.double_quant }
        }
        config::Quantization::None => Quantization::None,
    }
}

/// The quantization of the base, as an adapter's metadata keeps it.
pub fn base_quantization(settings: &Settings, checkpoint: &Checkpoint) -> BaseQuantization {
    match quantization(settings, checkpoint) {
        Quantization::Nf4 { block_size, double_quant } => {
            BaseQuantization::nf4(block_size, double_quant, checkpoint.skipped_modules().len())
        }
        Quantization::None => BaseQuantization::NONE,
    }
}
