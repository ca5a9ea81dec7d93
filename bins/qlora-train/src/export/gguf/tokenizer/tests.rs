use super::*;
use serde_json::json;

fn source(normalizer: Value, pre_tokenizer: Value) -> Source {
    serde_json::from_value(json!({
        "model": {"type": "BPE", "byte_fallback": true, "merges": ["a b", ["ab", "c"], "b c"]},
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
    }))
    .unwrap()
}

#[test]
fn the_space_before_a_text_is_put_as_tokenizer_json_says() {
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    for (normalizer, pre_tokenizer, expected) in [
        (both.clone(), Value::Null, Some(Prefix::Always)),
        (replace.clone(), Value::Null, Some(Prefix::Never)),
        (Value::Null, metaspace("first", false), Some(Prefix::First)),
        (Value::Null, metaspace("always", false), Some(Prefix::Always)),
        (Value::Null, metaspace("never", false), Some(Prefix::Never)),
        (Value::Null, metaspace("first", true), None),
        (both.clone(), metaspace("first", false), None),
        (replace, split.clone(), Some(Prefix::Never)),
        (both, split.clone(), None),
        (Value::Null, split, None),
        (json!({"type": "NFKC"}), Value::Null, None),
        (Value::Null, Value::Null, None),
    ] {
        assert_eq!(space_prefix(&source(normalizer.clone(), pre_tokenizer)), expected, "{normalizer}");
    }
}

#[test]
fn a_token_is_scored_by_its_first_merge() {
    let tokens = ["a", "abc", "ab", "bc"].map(str::to_owned);
    assert_eq!(scores(&tokens, &source(Value::Null, Value::Null).model.merges), [-3.0, -1.0, -0.0, -2.0]);
}

#[test]
fn marks_and_bytes_are_known_by_their_spelling() {
    let special = ["<|im_end|>", "<pad>", "<unused7>", "<｜end｜>"];
    assert!(special.iter().all(|text| looks_special(text)) && !looks_special("<think>"));
    assert!(is_byte("<0x0A>") && !is_byte("<0xGG>") && !is_byte("<0x0>") && !is_byte("a"));
}
