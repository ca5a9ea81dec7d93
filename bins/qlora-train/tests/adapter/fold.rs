//! rsLoRA, folded, is plain LoRA with the same update `scale · B · A`.

use proptest::prelude::*;
use qlora_train::adapter::Adapter;
use qlora_train::arch::Projection;

use super::{adapter, module_lists, updates};

/// Within the rounding of the f32 scale and of one f32 rounding of B: 2⁻²⁴ each, on either side of the comparison,
/// relative to the terms that are summed (|A|, |B| ≤ ½, so r/4 · scale).
fn assert_same_update(folded: &Adapter, original: &Adapter) {
    let (folded, expected) = (updates(folded), updates(original));
    assert_eq!(folded.len(), expected.len());
    let pairs = original.lora_pairs().unwrap();
    for (place, expected) in expected {
        let limit = 4.0 * 2f64.powi(-24) * pairs[&place].r as f64 / 4.0 * f64::from(pairs[&place].scale).abs();
        for (x, y) in folded[&place].iter().zip(&expected) {
            assert!((x - y).abs() <= limit, "{place:?}: {x} {y}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_update_is_kept_and_plain(r in 1..20usize, alpha in 1..64u32, half: bool, modules in module_lists(), seed: u64) {
        let alpha = f64::from(alpha) + if half { 0.5 } else { 0.0 };
        let mut original = adapter(r, alpha, &modules, seed);
        original.config.use_rslora = true;
        let pairs = original.lora_pairs().unwrap();
        prop_assert!(pairs.values().all(|pair| pair.scale == (alpha / (r as f64).sqrt()) as f32));
        let mut folded = original.clone();
        folded.fold_rslora().unwrap();
        prop_assert!(!folded.config.use_rslora);
        assert_same_update(&folded, &original);
        // The scale of an engine that only knows alpha / r.
        let scale = (folded.config.lora_alpha / r as f64) as f32;
        prop_assert!(folded.lora_pairs().unwrap().values().all(|pair| pair.scale == scale));
        let root = r.isqrt();
        let whole = root * root == r && (alpha * root as f64).fract() == 0.0;
        prop_assert_eq!(folded.tensors == original.tensors, whole || r == 1);
        prop_assert_eq!(folded.config.lora_alpha, if whole { alpha * root as f64 } else { alpha });
    }
}

#[test]
fn saving_folds() {
    let dir = tempfile::tempdir().unwrap();
    for r in [16, 8] {
        let mut original = adapter(r, 32.0, &[Projection::Q, Projection::Up], 3);
        original.config.use_rslora = true;
        original.save(dir.path()).unwrap();
        let loaded = Adapter::load(dir.path()).unwrap();
        assert!(!loaded.config.use_rslora);
        assert_eq!(loaded.config.lora_alpha, if r == 16 { 128.0 } else { 32.0 });
        assert_same_update(&loaded, &original);
    }
}

#[test]
fn plain_lora_is_left_alone() {
    let original = adapter(4, 8.0, &[Projection::Q], 3);
    let mut folded = original.clone();
    folded.fold_rslora().unwrap();
    assert_eq!(folded, original);
}

#[test]
fn ranks_and_alphas_of_their_own_are_folded_each() {
    let mut original = adapter(4, 8.0, &[Projection::Q, Projection::V], 3);
    let wide = adapter(9, 8.0, &[Projection::V], 4);
    original.tensors.extend(wide.tensors);
    original.config.use_rslora = true;
    original.config.rank_pattern = [("v_proj".into(), 9)].into();
    original.config.alpha_pattern = [("^model.layers.1.self_attn.q_proj".into(), 2.0)].into();
    let scales: Vec<f32> = original.lora_pairs().unwrap().values().map(|pair| pair.scale).collect();
    assert_eq!(scales, [4.0, 8.0 / 3.0, 1.0, 8.0 / 3.0]);
    let mut folded = original.clone();
    folded.fold_rslora().unwrap();
    assert_same_update(&folded, &original);
    let dir = tempfile::tempdir().unwrap();
    original.save(dir.path()).unwrap();
    assert_eq!(Adapter::load(dir.path()).unwrap().tensors, folded.tensors);
}
