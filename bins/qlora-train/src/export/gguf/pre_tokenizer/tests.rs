use super::*;
use serde_json::json;

#[test]
fn ways_to_cut_text_are_known_by_their_expressions() {
    let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
    let split = |regex: &str, behavior: &str, invert: bool| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let cases = [
        (byte_level(true), false, Some("gpt-2")),
        (byte_level(true), true, None),
        (json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}), false, Some("smollm")),
        (split(LLAMA3, "Isolated", false), true, Some("llama-bpe")),
        (split(LLAMA3, "Removed", true), false, Some("smaug-bpe")),
        (split(QWEN2, "Isolated", false), false, Some("qwen2")),
        (split(TEKKEN, "Isolated", false), true, Some("tekken")),
        (split(GPT4O, "Removed", true), false, Some("gpt-4o")),
        (split(LLAMA3, "Isolated", true), true, None),
        (split(r"\s+", "Isolated", false), false, None),
        (json!({"type": "ByteLevel", "use_regex": true}), false, None),
        (json!({"type": "Whitespace"}), false, None),
        (Value::Null, false, None),
    ];
    for (pre_tokenizer, ignore_merges, expected) in cases {
        assert_eq!(by_parts(&parts(&pre_tokenizer), ignore_merges), expected, "{pre_tokenizer}");
    }
}
