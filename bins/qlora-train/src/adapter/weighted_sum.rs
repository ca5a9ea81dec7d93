//! Several adapters as one: ΔW = Σ weight · scale · B · A, exact, by ranks laid side by side. PEFT's
//! `add_weighted_adapter` calls it `cat`.

use super::{Adapter, AdapterConfig, LoraPair, TargetModules};
use crate::bail_usage;
use crate::error::Result;
use crate::lora::{LoraSpec, ParamId};
use indexmap::IndexMap;
use std::collections::BTreeMap;

impl Adapter {
    /// The weighted sum of plain LoRA adapters, each with its weight: of one rank r, the largest sum of ranks that a
    /// module has, padded with zeros, and of alpha r. Weights and scales are multiplied into B, with one rounding to
    /// f32. Refused: no adapter, one that does not fit together, one that holds more than plain LoRA, shapes of a
    /// module that differ, and a product that is not finite.
    pub fn weighted_sum<'a>(parts: impl IntoIterator<Item = (&'a Adapter, f64)>) -> Result<Self> {
        let mut modules: BTreeMap<String, Vec<(LoraPair<'a>, f64)>> = BTreeMap::new();
        let mut config: Option<&AdapterConfig> = None;
        for (adapter, weight) in parts {
            config = config.or(Some(&adapter.config));
            if let Some(what) = adapter.lora_spec()?.beside_plain_lora() {
                bail_usage!("an adapter holds {what}, expected plain LoRA in a weighted sum");
            }
            for (module, pair) in adapter.lora_pairs()? {
                let factor = weight * LoraSpec::scale(pair.alpha, pair.r, adapter.config.use_rslora);
                modules.entry(module).or_default().push((pair, factor));
            }
        }
        let Some(config) = config else { bail_usage!("found no adapter, expected at least one in a weighted sum") };
        let rank = |pairs: &Vec<(LoraPair, f64)>| pairs.iter().map(|(pair, _)| pair.r).sum::<usize>();
        let r = modules.values().map(rank).max().unwrap_or(1);
        let config = AdapterConfig {
            r,
            lora_alpha: r as f64,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: TargetModules::Pattern(".*".to_owned()),
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            layers_to_transform: None,
            exclude_modules: None,
            ..config.clone()
        };
        let mut sum = Self { config, tensors: BTreeMap::new(), metadata: BTreeMap::new() };
        for (module, pairs) in &modules {
            let LoraPair { k_in, n_out, .. } = pairs[0].0;
            let (mut a, mut b, mut first) = (Vec::with_capacity(r * k_in), vec![0.0; n_out * r], 0);
            for (pair, factor) in pairs {
                if (pair.k_in, pair.n_out) != (k_in, n_out) {
                    let (n, k) = (pair.n_out, pair.k_in);
                    bail_usage!("{module}: found adapters of [{n_out}, {k_in}] and of [{n}, {k}], expected one shape");
                }
                a.extend_from_slice(pair.a);
                for (to, from) in b.chunks_exact_mut(r).zip(pair.b.chunks_exact(pair.r)) {
                    let columns = to[first..].iter_mut().zip(from);
                    columns.for_each(|(to, from)| *to = (factor * f64::from(*from)) as f32);
                }
                first += pair.r;
            }
            a.resize(r * k_in, 0.0);
            sum.insert(&ParamId::a(module.as_str()), [r, k_in], a);
            sum.insert(&ParamId::b(module.as_str()), [n_out, r], b);
        }
        sum.pairs("the weighted sum of the adapters")?;
        Ok(sum)
    }
}
