use super::*;

#[test]
fn layers_of_a_wrapped_model_are_in_the_expression() {
    let names: BTreeSet<String> = ["q_proj", "model.language_model.layers.3.mlp.up_proj"].map(str::to_owned).into();
    let text = in_text_model(&names, Some(&vec![0, 12]));
    assert_eq!(text, r"model\.language_model\.layers\.(?:3\.mlp\.up_proj|(?:0|12)\..*\.q_proj)");
    let pattern = fancy_regex::Regex::new(&format!(r"\A{text}\z")).unwrap();
    for (module, expected) in [
        ("model.language_model.layers.0.self_attn.q_proj", true),
        ("model.language_model.layers.12.self_attn.q_proj", true),
        ("model.language_model.layers.1.self_attn.q_proj", false),
        ("model.language_model.layers.3.mlp.up_proj", true),
        ("model.visual.layers.0.attn.q_proj", false),
    ] {
        assert_eq!(pattern.is_match(module).unwrap(), expected, "{module}");
    }
    let path = Path::new("adapter_config.json");
    let value = json!({
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "layers_to_transform": [0],
        "alpha_pattern": {".*language_model.*q_proj": 2, "model.language_model.layers.1.self_attn.k_proj": 3},
    });
    let Value::Object(map) = value else { panic!("it is an object") };
    let plain = AdapterConfig::from_json(path, &map).unwrap();
    assert_eq!(plain.to_json()["layers_to_transform"], json!([0]));
    let keys: Vec<&String> = plain.alpha_pattern.keys().collect();
    assert_eq!(keys, [".*.*q_proj", "model.layers.1.self_attn.k_proj"]);
    // PEFT: "`layers_to_transform` cannot be used when `target_modules` is a str".
    let wrapped = AdapterConfig { wrapped: true, ..plain }.to_json();
    assert_eq!(wrapped["layers_to_transform"], Value::Null);
    assert_eq!(wrapped["target_modules"], json!(r"model\.language_model\.layers\.(?:(?:0)\..*\.q_proj)"));
    let every = [("layers_to_transform".to_owned(), json!([]))];
    let map = map.into_iter().chain(every).collect();
    assert_eq!(AdapterConfig::from_json(path, &map).unwrap().layers_to_transform, None);
}
