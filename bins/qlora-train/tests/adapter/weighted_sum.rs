//! A weighted sum of adapters has the weighted sum of their updates `scale · B · A`.

use std::collections::BTreeSet;

use proptest::prelude::*;
use qlora_train::adapter::Adapter;

use super::{adapter, module_lists, updates};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Within one f32 rounding of B and of each scale, 2⁻²⁴ of sums below 100: |A|, |B| ≤ ½, and a scale of at most 32
    /// over ranks of at most 8.
    #[test]
    fn the_update_is_the_weighted_sum(
        ranks in prop::array::uniform2(1..9usize),
        alpha in 1..33u32,
        one_modules in module_lists(),
        other_modules in module_lists(),
        weights in prop::array::uniform2(-2.0..2.0f64),
        rslora: bool,
        seed: u64,
    ) {
        let mut one = adapter(ranks[0], f64::from(alpha), &one_modules, seed);
        one.config.use_rslora = rslora;
        let other = adapter(ranks[1], 3.0, &other_modules, seed ^ 1);
        let sum = Adapter::weighted_sum([(&one, weights[0]), (&other, weights[1])]).unwrap();
        let (found, parts) = (updates(&sum), [updates(&one), updates(&other)]);
        let modules: BTreeSet<&String> = parts.iter().flat_map(|part| part.keys()).collect();
        prop_assert_eq!(found.keys().collect::<BTreeSet<_>>(), modules);
        for (module, found) in &found {
            for (at, found) in found.iter().enumerate() {
                let of = |part: usize| parts[part].get(module).map_or(0.0, |update| weights[part] * update[at]);
                let expected = of(0) + of(1);
                prop_assert!((found - expected).abs() <= 4.0 * 2f64.powi(-24) * 100.0, "{module}: {found} {expected}");
            }
        }
        let shared = one_modules.iter().any(|module| other_modules.contains(module));
        let r = if shared { ranks[0] + ranks[1] } else { ranks[0].max(ranks[1]) };
        prop_assert_eq!((sum.config.r, sum.config.lora_alpha), (r, r as f64));
    }
}

#[test]
fn a_sum_of_nothing_and_one_that_is_not_finite_are_refused() {
    let none = Adapter::weighted_sum([]).unwrap_err().to_string();
    assert!(none.contains("no adapter"), "{none}");
    let plain = adapter(2, 4.0, &[qlora_train::arch::Projection::Q], 1);
    let infinite = Adapter::weighted_sum([(&plain, 1e300)]).unwrap_err().to_string();
    assert!(infinite.contains("the weighted sum") && infinite.contains("finite"), "{infinite}");
}
