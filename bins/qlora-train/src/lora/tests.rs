use super::*;
use crate::base::synthetic::tiny_arch;

#[test]
fn the_scale_is_alpha_over_r_or_over_its_root() {
    assert_eq!(LoraSpec::scale(32.0, 16, false), 2.0);
    assert_eq!(LoraSpec::scale(32.0, 16, true), 8.0);
    let mut spec = LoraSpec::uniform(&tiny_arch(), &[Projection::Q], 8, 4.0, 0.0);
    assert_eq!(spec.of("model.layers.1.self_attn.q_proj"), Some((8, 0.5)));
    assert_eq!(spec.of("model.layers.1.self_attn.k_proj"), None);
    spec.rslora = true;
    assert_eq!(spec.of("model.layers.1.self_attn.q_proj"), Some((8, (4.0 / 8f64.sqrt()) as f32)));
}

#[test]
fn what_is_exported_of_a_changed_base_has_twice_the_rank_and_the_scale() {
    for rslora in [false, true] {
        let init = InitLora::Olora;
        let spec = LoraSpec { init, rslora, ..LoraSpec::uniform(&tiny_arch(), &[Projection::Q], 8, 4.0, 0.0) };
        let (exported, module) = (spec.exported(), "model.layers.1.self_attn.q_proj");
        let ((r, scale), (own, expected)) = (exported.of(module).unwrap(), spec.of(module).unwrap());
        assert_eq!((r, own), (16, 8));
        assert!((scale / expected - 1.0).abs() < 1e-6, "{scale} {expected}");
        assert_eq!(exported.exported(), exported);
    }
}

#[test]
fn the_scale_of_adalora_is_exported_as_that_of_lora() {
    let settings = AdaLora {
        target_r: 2,
        tinit: 0,
        tfinal: 0,
        delta_t: 1,
        beta1: 0.85,
        beta2: 0.85,
        orth_reg_weight: 0.5,
        total_steps: None,
    };
    let spec = LoraSpec::uniform(&tiny_arch(), &[Projection::Q], 12, 24.0, 0.0);
    let spec = LoraSpec { adalora: Some(settings), ..spec };
    let module = "model.layers.1.self_attn.q_proj";
    assert_eq!(spec.of(module), Some((12, (24.0 / (12.0 + 1e-5)) as f32)));
    assert_eq!(spec.exported().of(module), Some((12, 2.0)));
    assert!((AdaLora::scale_over_lora(12) * 2.0 - AdaLora::scale(24.0, 12)).abs() < 1e-15);
    let len = 12 * (64 + 64 + 1);
    assert_eq!(spec.rank_bytes(&tiny_arch()), 8 * 2 * len + 16 * len);
    assert_eq!((spec.importance_bytes(&tiny_arch()), spec.exported().rank_bytes(&tiny_arch())), (16 * len, 0));
    assert_eq!(spec.lengths(&tiny_arch()).take(3).collect::<Vec<_>>(), [12 * 64, 64 * 12, 12]);
}

#[test]
fn adapters_of_rows_have_the_largest_rank_of_each_module_and_their_own_scales() {
    let arch = tiny_arch();
    let of = |projections: &[Projection], r, alpha| LoraSpec::uniform(&arch, projections, r, alpha, 0.1);
    let rows = LoraSpec::of_rows(vec![of(&[Projection::Q], 8, 4.0), of(&[Projection::Q, Projection::Up], 2, 6.0)]);
    let [q, up] = [Projection::Q, Projection::Up].map(|projection| arch.module(1, projection));
    assert_eq!((rows.of(&q), rows.of(&up)), (Some((8, 1.0)), Some((2, 1.0))));
    assert_eq!((rows.scales_of_rows(&q), rows.scales_of_rows(&up)), (vec![0.5, 3.0], vec![0.0, 3.0]));
    assert_eq!((rows.dropout, rows.terms.len(), rows.beside_plain_lora()), (0.0, 2 * arch.num_layers, None));
    let mut other = of(&[Projection::Q], 8, 4.0);
    other.tokens = [("model.embed_tokens".to_owned(), vec![3])].into();
    assert!(other.beside_plain_lora().unwrap().contains("trainable_token_indices"));
}

#[test]
fn lengths_are_those_of_a_and_b() {
    let arch = tiny_arch();
    let spec = LoraSpec::uniform(&arch, &[Projection::Down], 3, 1.0, 0.0);
    let terms = [3 * 128, 64 * 3].repeat(2);
    assert_eq!(spec.lengths(&arch).collect::<Vec<_>>(), terms);
    let whole = ["lm_head", "model.embed_tokens", "model.norm"].map(str::to_owned).into();
    let spec = LoraSpec { whole, ..spec };
    let table = arch.vocab_size * 64;
    assert_eq!(spec.lengths(&arch).collect::<Vec<_>>()[4..], [table, 64, table]);
    let tied = Arch { tie_word_embeddings: true, ..arch };
    assert_eq!(spec.lengths(&tied).collect::<Vec<_>>()[4..], [table, 64]);
    let untied = LoraSpec { untied: true, ..spec };
    assert_eq!(untied.lengths(&tied).count(), 4 + 3);
    assert_eq!(untied.lengths_in_f32(&tied).collect::<Vec<_>>(), [64]);
    let tokens = [("model.embed_tokens".to_owned(), vec![3, 5, 9])].into();
    let rows = LoraSpec { tokens, ..LoraSpec::default() };
    assert_eq!(rows.lengths(&tied).collect::<Vec<_>>(), [3 * 64]);
    assert!(rows.trains_input(&tied));
}

#[test]
fn gradients_go_down_to_what_is_trained() {
    let arch = tiny_arch();
    for (module, expected) in [
        ("model.embed_tokens", true),
        ("model.layers.0.input_layernorm", true),
        ("model.layers.0.post_attention_layernorm", false),
        ("model.layers.1.input_layernorm", false),
        ("lm_head", false),
    ] {
        let spec = LoraSpec { whole: [module.to_owned()].into(), ..LoraSpec::default() };
        assert_eq!(spec.trains_input(&arch), expected, "{module}");
    }
}
