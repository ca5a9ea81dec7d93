use super::*;

#[test]
fn a_name_goes_to_an_adapter_and_back() {
    let id = ParamId::b("model.layers.3.mlp.up_proj");
    assert_eq!(id.to_string(), "model.layers.3.mlp.up_proj.lora_B.weight");
    assert_eq!(id.peft_key(), "base_model.model.model.layers.3.mlp.up_proj.lora_B.weight");
    assert_eq!(ParamId::from_peft_key(&id.peft_key()), Some(id));
    let lm_head = ParamId::a("lm_head");
    assert_eq!(ParamId::from_peft_key("base_model.model.lm_head.lora_A.weight"), Some(lm_head));
    let magnitude = ParamId::magnitude("x");
    assert_eq!(magnitude.peft_key(), "base_model.model.x.lora_magnitude_vector");
    assert_eq!(ParamId::from_peft_key(&magnitude.peft_key()), Some(magnitude));
    let whole = ParamId::whole("model.embed_tokens");
    assert_eq!(whole.peft_key(), "base_model.model.model.embed_tokens.weight");
    assert_eq!(ParamId::from_peft_key(&whole.peft_key()), Some(whole));
    let tokens = ParamId::tokens("lm_head");
    assert_eq!(tokens.peft_key(), "base_model.model.lm_head.token_adapter.trainable_tokens_delta");
    assert_eq!(ParamId::from_peft_key(&tokens.peft_key()), Some(tokens));
    for key in [
        "lm_head.lora_A.weight",
        "base_model.model..lora_A.weight",
        "base_model.model.x.lora_A.default.weight",
        "base_model.model.weight",
        "base_model.model.x.lora_E.weight",
        "base_model.model.lora_magnitude_vector",
        "base_model.model.token_adapter.trainable_tokens_delta",
    ] {
        assert_eq!(ParamId::from_peft_key(key), None, "{key}");
    }
}
