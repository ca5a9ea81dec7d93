use super::*;
use crate::adapter::config::AdapterConfig;
use serde_json::{Value, json};
use std::path::Path;

fn read(value: Value) -> Result<AdapterConfig> {
    let value = json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "trainable_token_indices": value,
    });
    AdapterConfig::from_json(Path::new("adapter_config.json"), value.as_object().unwrap())
}

fn adapter(value: Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Adapter {
    let tensor = |(module, shape, values): &(&str, Vec<usize>, Vec<f32>)| {
        (ParamId::tokens(*module).peft_key(), (shape.clone(), values.clone()))
    };
    let tensors = tensors.iter().map(tensor).collect();
    Adapter { config: read(value).unwrap(), tensors, metadata: BTreeMap::new() }
}

#[test]
fn a_list_is_of_the_embedding_and_an_object_names_modules() {
    for none in [json!(null), json!([]), json!({}), json!({"embed_tokens": []})] {
        let config = read(none.clone()).unwrap();
        assert!(config.trainable_token_indices.is_empty() && !config.to_json().contains_key(KEY), "{none}");
    }
    let list = read(json!([9, 3])).unwrap();
    assert_eq!(list.trainable_token_indices, [("model.embed_tokens".to_owned(), vec![9, 3])].into());
    assert_eq!(list.to_json()[KEY], json!([9, 3]));
    for names in [["embed_tokens", "lm_head"], ["model.language_model.embed_tokens", "lm_head"]] {
        let value = json!({names[0]: [5], names[1]: [7, 1]});
        let both = read(value).unwrap();
        assert_eq!(both.to_json()[KEY], json!({"embed_tokens": [5], "lm_head": [7, 1]}));
        let wrapped = AdapterConfig { wrapped: true, ..both }.to_json();
        assert_eq!(wrapped[KEY], json!({"model.language_model.embed_tokens": [5], "lm_head": [7, 1]}));
    }
    for wrong in [json!(3), json!(["a"]), json!([-1]), json!([1, 1]), json!({"q_proj": [1]}), json!({"": [1]})] {
        let error = read(wrong.clone()).unwrap_err().to_string();
        assert!(error.contains("`trainable_token_indices`") && error.contains("token ids"), "{wrong}: {error}");
    }
}

#[test]
fn rows_are_put_in_order_and_have_to_be_there() {
    let one = adapter(json!([9, 3]), &[("model.embed_tokens", vec![2, 2], vec![1.0, 2.0, 3.0, 4.0])]);
    let rows = one.token_rows().unwrap().remove("model.embed_tokens").unwrap();
    assert_eq!(rows, TokenRows { tokens: vec![3, 9], columns: 2, values: vec![3.0, 4.0, 1.0, 2.0] });
    // PEFT writes the rows of a tied output layer once.
    let tied = json!({"embed_tokens": [9, 3], "lm_head": [9, 3]});
    let tensors = [("model.embed_tokens", vec![2, 2], vec![1.0; 4])];
    assert_eq!(adapter(tied, &tensors).token_rows().unwrap().len(), 1);
    let refused = |value: Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]| {
        adapter(value, tensors).token_rows().unwrap_err().to_string()
    };
    assert!(refused(json!({"lm_head": [9]}), &tensors).contains("found no tensor"));
    assert!(refused(json!([9]), &tensors).contains("expected 1 rows"));
    let not_finite = [("model.embed_tokens", vec![1, 2], vec![1.0, f32::NAN])];
    assert!(refused(json!([9]), &not_finite).contains("found NaN at element 1"));
    let mut both = one.clone();
    both.insert(&ParamId::whole("model.embed_tokens"), vec![1, 2], vec![0.0; 2]);
    assert!(both.token_rows().unwrap_err().to_string().contains("expected one"));
}

#[test]
fn rows_have_to_be_those_of_the_base() {
    let arch = crate::base::synthetic::tiny_arch();
    let check = |arch: &Arch, value: Value, module: &str, columns: usize| {
        let rows = adapter(value, &[(module, vec![1, columns], vec![0.5; columns])]);
        rows.check_token_rows(arch, "own", "this").map_err(|error| error.to_string())
    };
    let hidden = arch.hidden_size;
    check(&arch, json!([3]), "model.embed_tokens", hidden).unwrap();
    check(&arch, json!({"lm_head": [3]}), "lm_head", hidden).unwrap();
    assert!(check(&arch, json!([3]), "model.embed_tokens", 3).unwrap_err().contains("made for own"));
    let beyond = check(&arch, json!([arch.vocab_size]), "model.embed_tokens", hidden).unwrap_err();
    assert!(beyond.contains("expected tokens below"), "{beyond}");
    // Rows that both share are those of a base in which both are one tensor.
    let both = || json!({"embed_tokens": [3], "lm_head": [3]});
    let lacks = check(&arch, both(), "model.embed_tokens", hidden).unwrap_err();
    assert!(lacks.contains("lm_head.token_adapter") && lacks.contains("of its own in this"), "{lacks}");
    let tied = Arch { tie_word_embeddings: true, ..arch };
    check(&tied, both(), "model.embed_tokens", hidden).unwrap();
    let error = check(&tied, json!({"lm_head": [3]}), "lm_head", hidden).unwrap_err();
    assert!(error.contains("one tensor"), "{error}");
}
