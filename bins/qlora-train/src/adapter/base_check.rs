//! The check that an adapter belongs to a base.

use super::config::last_part;
use super::module_pattern::layer_of;
use super::{Adapter, BaseQuantization, metadata};
use crate::arch::Arch;
use crate::bail_usage;
use crate::base::{BaseFingerprint, BaseName};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

impl Adapter {
    /// The part of [`check_base`](Self::check_base) that needs no weights. Refused: a layer or shape that the base
    /// does not have.
    pub fn check_shapes(&self, arch: &Arch, base_name: &BaseName) -> Result<()> {
        let pairs = self.lora_pairs()?;
        let own_base = self.own_base();
        if let Some(module) = pairs.keys().find(|module| arch.find(module).is_none()) {
            let (expected, name) = match layer_of(module).filter(|&layer| layer >= arch.num_layers) {
                Some(layer) => {
                    (format!("layers below {}", arch.num_layers), format!("{} of layer {layer}", last_part(module)))
                }
                None => (arch.names.short_names(), module.clone()),
            };
            bail_usage!(
                "adapter: found {name}, expected {expected}: it was made for {own_base}, not for {}",
                base_name.name
            );
        }
        for module in arch.modules() {
            let (Some(pair), Some((layer, projection))) = (pairs.get(&module), arch.find(&module)) else { continue };
            let name = arch.names.short(projection);
            let (n_out, k_in) = projection.shape(arch);
            if (pair.n_out, pair.k_in) != (n_out, k_in) {
                bail_usage!(
                    "adapter: {name} of layer {layer}: found out x in = {} x {}, expected {n_out} x {k_in}: it was made \
                     for {own_base}, not for {}",
                    pair.n_out,
                    pair.k_in,
                    base_name.name
                );
            }
        }
        let others: BTreeMap<String, Vec<usize>> = arch.other_modules().into_iter().collect();
        for (module, own) in self.whole_modules()? {
            let Some(shape) = others.get(&module) else {
                bail_usage!(
                    "adapter: `modules_to_save`: found the whole weight of {module}, which {} does not have; expected \
                     weights of embedding, output layer or norms: it was made for {own_base}",
                    base_name.name
                );
            };
            if own.shape != shape {
                let more = match (own.shape, &shape[..]) {
                    ([rows, width], [vocab, hidden]) if width == hidden && rows != vocab => {
                        ": the vocabulary was resized, which is not supported; merge the adapter with PEFT"
                    }
                    _ => "",
                };
                bail_usage!(
                    "adapter: {module}: found shape {:?}, expected {shape:?}: it was made for {own_base}, not for {}{more}",
                    own.shape,
                    base_name.name
                );
            }
        }
        self.check_token_rows(arch, own_base, &base_name.name)
    }

    /// Refused: the shapes or layers do not fit the base, or the adapter records the fingerprint of another one and
    /// `allow_other_base` is off. Returned are warnings, one sentence each: another base, no recorded fingerprint,
    /// another name or revision, linears that are targeted but have no tensors.
    pub fn check_base(
        &self,
        arch: &Arch,
        base: &BaseFingerprint,
        base_name: &BaseName,
        allow_other_base: bool,
    ) -> Result<Vec<String>> {
        self.check_shapes(arch, base_name)?;
        let pairs = self.lora_pairs()?;
        let (own_base, here) = (self.own_base(), &base_name.name);
        let mut warnings = Vec::new();
        match self.base_fingerprint() {
            Some(found) if found == base.whole => {}
            Some(found) => {
                let same_model = self.metadata.get(metadata::UNQUANTIZED_FINGERPRINT) == Some(&base.unquantized);
                let what = match same_model {
                    true => format!(
                        "it was trained on another form of this model ({own_base}): embedding and norms are those of \
                         {here}, the linear weights are rounded otherwise, or were changed (merged, fine-tuned)"
                    ),
                    false => format!("it was trained on other weights ({own_base}) than those of {here}"),
                };
                if !allow_other_base {
                    bail_usage!(
                        "adapter: metadata `{}`: found {found}, expected {}: {what}; load the base that it was trained \
                         on, or give --allow-other-base: what it computes then differs from what it learned{}",
                        metadata::BASE_FINGERPRINT,
                        base.whole,
                        if same_model { " by that rounding or change" } else { ", by as much as the weights do" }
                    );
                }
                warnings
                    .push(format!("adapter: {what} (--allow-other-base): its losses differ from those in training"));
            }
            None => {
                warnings.push(format!(
                    "the adapter records no fingerprint of its base ({own_base}): its shapes fit {here}, but whether it \
                     was trained on it cannot be checked"
                ));
                // Equal fingerprints would say more than names.
                if let Some(found) = self.config.base_model_name_or_path.as_deref().filter(|name| !is_named(name, here))
                {
                    warnings.push(format!("the adapter names {found:?} as its base, this model is {here:?}"));
                }
                if let (Some(found), Some(here)) = (&self.config.revision, &base_name.revision)
                    && found != here
                {
                    warnings.push(format!("the adapter names revision {found:?} of its base, this one is {here:?}"));
                }
            }
        }
        let mut lacking = Vec::new();
        for module in arch.modules().filter(|module| !pairs.contains_key(module)) {
            let named = self.config.names(&module).map_err(|error| {
                Error::Refused(format!("adapter: `exclude_modules` of the adapter config: {error}"))
            })?;
            if let Some((layer, projection)) = arch.find(&module).filter(|_| named) {
                lacking.push(format!("{} of layer {layer}", arch.names.short(projection)));
            }
        }
        if let [first, others @ ..] = &lacking[..] {
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            warnings.push(format!("the adapter targets {first}{more} but holds no tensors for it: it stays as it is"));
        }
        Ok(warnings)
    }

    /// A warning that the base is quantized in another way than the one that the adapter was trained on: what differs,
    /// and what that changes. None: it is held in the same way, the adapter does not say, or `base`, where it is known,
    /// has other weights in 16 bits. [`check_base`](Self::check_base) warns of those: they may be NF4 weights,
    /// dequantized.
    pub fn check_base_quantization(&self, base: Option<&BaseFingerprint>, held: &BaseQuantization) -> Option<String> {
        // A damaged record is reported where it is used.
        let trained = self.base_quantization("").ok().flatten().filter(|trained| trained != held)?;
        let is_other = |base: &BaseFingerprint| self.base_fingerprint().is_some_and(|own| own != base.whole);
        let changed = match (&trained, held) {
            (_, BaseQuantization::None {}) if base.is_some_and(is_other) => return None,
            (_, BaseQuantization::None {}) => "it learned with rounded weights, and these are not rounded",
            (BaseQuantization::None {}, _) => "it learned with weights that are not rounded, and these are",
            _ => "these weights are rounded otherwise",
        };
        let held_as = |base: &BaseQuantization| match base {
            BaseQuantization::None {} => "in 16 bits".to_owned(),
            nf4 => format!("quantized as {nf4}"),
        };
        let (trained, held) = (held_as(&trained), held_as(held));
        Some(format!(
            "the adapter was trained on a base {trained}; this base is {held}: {changed}, so that losses and answers are \
             not those of the training"
        ))
    }

    fn own_base(&self) -> &str {
        self.config.base_model_name_or_path.as_deref().unwrap_or("an unnamed base")
    }
}

/// True if a name, or the last part of a path, is that of the base, or the model at a path has that name.
fn is_named(name: &str, base: &str) -> bool {
    let is_last = name.trim_end_matches('/').rsplit('/').next() == Some(base);
    name == base || is_last || BaseName::of_dir(Path::new(name)).is_some_and(|there| there.name == base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_named_by_its_name_and_by_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("copy");
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("config.json"), r#"{"_name_or_path": "org/base"}"#).unwrap();
        for (name, base, is) in [
            ("org/base", "org/base", true),
            ("/models/base/", "base", true),
            (place.to_str().unwrap(), "org/base", true),
            (place.to_str().unwrap(), "org/other", false),
            ("/gone/copy", "org/base", false),
        ] {
            assert_eq!(is_named(name, base), is, "{name} {base}");
        }
    }
}
