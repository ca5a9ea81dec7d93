//! A `tokenizer.json` of a stranger that makes more of a text than any memory holds, or other tokens each time.

use qlora_train::data::ChatTokenizer;
use serde_json::{Value, json};

use trainer_lab::fixture::*;

fn opened(place: &str, value: &Value) -> Result<ChatTokenizer, String> {
    let dir = model_dir_with(place, value);
    ChatTokenizer::open(dir.path(), None).map_err(|error| {
        assert_eq!(error.exit_status(), 2, "{place}: {error}");
        error.to_string()
    })
}

#[test]
fn what_multiplies_text_is_refused_with_its_row() {
    let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
    let replace = |pattern: Value, to: &str| json!({"type": "Replace", "pattern": pattern, "content": to});
    let long = "y".repeat(1 << 20);
    for normalizer in [
        replace(json!({"String": "a"}), &long),
        replace(json!({"Regex": "."}), &long),
        json!({"type": "Prepend", "prepend": long}),
        sequence(vec![replace(json!({"String": "a"}), "aa"); 60]),
        sequence(vec![json!({"type": "Prepend", "prepend": "abc".repeat(100)}); 500]),
    ] {
        let tokenizer = opened("/normalizer", &normalizer).unwrap();
        let rows = json!({"text": "banana"}).to_string();
        let why = refusal(load_one(rows, Some(&tokenizer)));
        assert_says(&why, &["line 1", "tokenizer.json", "makes more than 12 times as much of a text of 6 bytes"]);
    }
    // Forms that are shorter or longer by a little are read.
    let tokenizer = opened("/normalizer", &sequence(vec![json!({"type": "NFKC"})])).unwrap();
    assert_eq!(load_one(json!({"text": "ﬁ".repeat(1000)}).to_string(), Some(&tokenizer)).unwrap().rows.len(), 1);
}

#[test]
fn what_no_two_runs_would_share_and_what_no_memory_holds_is_refused_at_once() {
    let replace = |to: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": to});
    let added = |text: &str| {
        json!([{"id": 259, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}])
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    for (place, value, words) in [
        ("/model/dropout", json!(0.1), "`model.dropout` has tokens drawn at random"),
        ("/model/dropout", json!(1.0), "`model.dropout`"),
        ("/decoder", replace(&"b".repeat(1 << 16)), "`decoder` replaces text by up to 65536 times as much"),
        ("/decoder", json!({"type": "Sequence", "decoders": vec![replace("aa"); 40]}), "`decoder` replaces"),
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![byte_level; 5]}), "5 parts `ByteLevel`"),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}), "its size does not"),
        ("/added_tokens", added(&"x".repeat(1 << 16)), "a token has 65536 bytes of text"),
    ] {
        let why = opened(place, &value).map(|_| ()).unwrap_err();
        assert_says(&why, &["tokenizer.json", words]);
    }
    assert!(opened("/model/dropout", &json!(0.0)).is_ok());
    // The library takes the last of two parts of one name.
    let dir = model_dir_with("/added_tokens", &added("x"));
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', "{\"added_tokens\": [],", 1)).unwrap();
    let why = ChatTokenizer::open(dir.path(), None).map(|_| ()).unwrap_err().to_string();
    assert_says(&why, &["tokenizer.json", "has a part twice"]);
}
