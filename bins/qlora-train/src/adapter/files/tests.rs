use super::*;

#[test]
fn keys_under_other_prefixes_are_those_of_peft() {
    let linear = "layers.0.self_attn.q_proj.lora_A";
    let expected = format!("base_model.model.model.{linear}.weight");
    for prefix in [
        "base_model.model.model.",
        "base_model.model._orig_mod.model.",
        "model.",
        "",
        "base_model.model.",
        "_orig_mod.model.",
        "module.base_model.model.model.",
        "_fsdp_wrapped_module.base_model.model.model.",
    ] {
        for end in ["weight", "default.weight", "other.weight"] {
            assert_eq!(canonical_key(&format!("{prefix}{linear}.{end}")), expected, "{prefix} {end}");
        }
    }
    let wrapped = "base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.lora_A.weight";
    assert_eq!(canonical_key(wrapped), expected);
    for (name, expected) in [
        ("model.embed_tokens.modules_to_save.default.weight", "base_model.model.model.embed_tokens.weight"),
        ("base_model.model.model.language_model.norm.weight", "base_model.model.model.norm.weight"),
        ("base_model.model.lm_head.modules_to_save.weight", "base_model.model.lm_head.weight"),
        ("layers.1.self_attn.q_norm.weight", "base_model.model.model.layers.1.self_attn.q_norm.weight"),
        (
            "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta.default",
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        ),
        (
            "lm_head.token_adapter.trainable_tokens_delta",
            "base_model.model.lm_head.token_adapter.trainable_tokens_delta",
        ),
    ] {
        assert_eq!(canonical_key(name), expected);
    }
    for other in ["base_model.model.lm_head.lora_A.weight", "vision.0.lora_A.weight", "vision.norm.weight"] {
        assert_eq!(canonical_key(other), other);
    }
}
