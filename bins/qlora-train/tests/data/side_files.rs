//! Tokens named in files beside the tokenizer, and tokenizers that are damaged or saved with settings of their own.

use qlora_train::data::ChatTokenizer;
use serde_json::{Value, json};

use trainer_lab::fixture::*;

fn open(dir: &std::path::Path) -> ChatTokenizer {
    ChatTokenizer::open(dir, None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn special_tokens_of_the_map_count_where_the_config_has_no_decoder() {
    let dir = model_dir(Some(CHATML));
    write_json(dir.path(), "tokenizer_config.json", &json!({"chat_template": CHATML}));
    assert_eq!((open(dir.path()).bos_token_id(), open(dir.path()).eos_token_id()), (None, None));
    let map = json!({"bos_token": "<bos>", "eos_token": {"content": "<eos>", "lstrip": false}, "unk_token": null});
    write_json(dir.path(), "special_tokens_map.json", &map);
    let tokenizer = open(dir.path());
    assert_eq!((tokenizer.bos_token_id(), tokenizer.eos_token_id()), (Some(259), Some(260)));
    assert!(tokenizer.begins_with_bos());
    // It wins over the config, and not over one with a decoder.
    let mut config = json!({"bos_token": "<bos>", "eos_token": "<|eot|>", "chat_template": CHATML});
    write_json(dir.path(), "tokenizer_config.json", &config);
    assert_eq!(open(dir.path()).eos_token_id(), Some(260));
    config["added_tokens_decoder"] = json!({"263": {"content": "<|eot|>", "special": true}});
    write_json(dir.path(), "tokenizer_config.json", &config);
    assert_eq!(open(dir.path()).eos_token_id(), Some(263));
}

/// The fixture's tokenizer without its last tokens.
fn without_tokens(dir: &std::path::Path, left: usize) {
    let mut file = tokenizer_json();
    file["added_tokens"].as_array_mut().unwrap().truncate(left);
    write_json(dir, "tokenizer.json", &file);
}

#[test]
fn tokens_that_only_side_files_have_become_tokens() {
    for decoder in [false, true] {
        let dir = model_dir(Some(CHATML));
        without_tokens(dir.path(), 2);
        let text = "<|im_start|>a<|im_end|>";
        assert_ne!(open(dir.path()).encode(text).unwrap(), [261, 97, 262]);
        if decoder {
            let mut config = tokenizer_config(Some(CHATML));
            config["added_tokens_decoder"] = json!({"262": {"content": "<|im_end|>", "special": true},
                                                    "261": {"content": "<|im_start|>", "special": false}});
            write_json(dir.path(), "tokenizer_config.json", &config);
        } else {
            write_json(dir.path(), "added_tokens.json", &json!({"<|im_end|>": 262, "<|im_start|>": 261}));
        }
        let tokenizer = open(dir.path());
        assert_eq!(tokenizer.encode(text).unwrap(), [261, 97, 262], "decoder: {decoder}");
        let chat = tokenizer.render_chat(&turns(&[("user", "q"), ("assistant", "a")])).unwrap();
        assert_eq!((&chat.text[chat.supervised[0].clone()], chat.open_ended), ("a<|im_end|>", 0));
    }
    // From the middle: those that follow keep their ids.
    for at in 0..tokenizer_json()["added_tokens"].as_array().unwrap().len() {
        let dir = model_dir(Some(CHATML));
        let expected = open(dir.path());
        let mut file = tokenizer_json();
        let taken = file["added_tokens"].as_array_mut().unwrap().remove(at);
        let (token, id) = (taken["content"].as_str().unwrap(), taken["id"].as_u64().unwrap());
        write_json(dir.path(), "tokenizer.json", &file);
        // The library would give the later ones the ids before them.
        let last = at + 1 == tokenizer_json()["added_tokens"].as_array().unwrap().len();
        let alone = ChatTokenizer::open(dir.path(), None);
        if !last && !matches!(token, "<bos>" | "<eos>") {
            assert_says(&refusal(alone), &["tokenizer.json", "leave gaps", "are all files of the same model"]);
        }
        write_json(dir.path(), "added_tokens.json", &json!({token: id}));
        let found = open(dir.path());
        for other in tokenizer_json()["added_tokens"].as_array().unwrap() {
            let text = other["content"].as_str().unwrap();
            assert_eq!(found.encode(text).unwrap(), expected.encode(text).unwrap(), "without {token}: {text}");
        }
    }
    let dir = model_dir(Some(CHATML));
    without_tokens(dir.path(), 2);
    write_json(dir.path(), "added_tokens.json", &json!({"<|im_end|>": 300}));
    assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &["added_tokens.json", "<|im_end|>", "300", "261"]);
    for wrong in [json!([]), json!({"<x>": "1"}), json!({"<x>": -1})] {
        write_json(dir.path(), "added_tokens.json", &wrong);
        assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &["added_tokens.json", "expected"]);
    }
}

#[test]
fn padding_and_truncation_of_the_file_change_nothing() {
    let rows = "{\"text\": \"hello w\"}\n{\"prompt\": \"hello\", \"completion\": \"w\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    let load = |padding: Value, truncation: Value| {
        let dir = model_dir(Some(LLAMA3));
        let mut file = tokenizer_json();
        (file["padding"], file["truncation"]) = (padding, truncation);
        write_json(dir.path(), "tokenizer.json", &file);
        let data = load_one(rows, Some(&open(dir.path()))).unwrap();
        (data.rows, data.report.to_string())
    };
    let expected = load(Value::Null, Value::Null);
    assert_eq!(expected.0[0].input_ids[0], 259);
    let pad = |strategy: Value, multiple: Value, direction: &str| {
        json!({"strategy": strategy, "direction": direction, "pad_to_multiple_of": multiple, "pad_id": 260,
               "pad_type_id": 0, "pad_token": "<eos>"})
    };
    let cut =
        |length: u64| json!({"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0});
    for (padding, truncation) in [
        (pad(json!("BatchLongest"), json!(8), "Right"), Value::Null),
        (pad(json!({"Fixed": 99}), Value::Null, "Left"), Value::Null),
        (pad(json!({"Fixed": 1_000_000_000_000u64}), Value::Null, "Right"), cut(1)),
        (Value::Null, cut(2)),
    ] {
        let got = load(padding.clone(), truncation);
        assert_eq!(got.0, expected.0, "{padding}");
    }
}

#[test]
fn no_tokenizer_makes_the_library_panic() {
    let template = |single: Value, special: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special});
    let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let cases: Vec<(&str, Value)> = vec![
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""})),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("/normalizer", json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "b"})),
        ("/normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "b"})),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("/pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": true})),
        ("/post_processor", template(json!([token("nope"), sequence("A")]), json!({}))),
        ("/post_processor", template(json!([sequence("B")]), json!({}))),
        ("/post_processor", template(json!([]), json!({}))),
        ("/model/continuing_subword_prefix", json!("##")),
        ("/model/merges", json!([["h", "nope"]])),
        ("/model/vocab", json!({})),
        (
            "/added_tokens",
            json!([{"id": 4_000_000_000u64, "content": "", "single_word": false, "lstrip": false,
                                  "rstrip": false, "normalized": false, "special": true}]),
        ),
        ("/decoder", json!({"type": "Strip", "content": "x", "start": 99, "stop": 99})),
    ];
    for (place, value) in cases {
        let dir = model_dir_with(place, &value);
        // Either it works or it is refused with its name; nothing else may happen.
        let rows = "{\"text\": \"hello w  h\"}";
        match ChatTokenizer::open(dir.path(), None) {
            Err(error) => {
                assert_eq!(error.exit_status(), 2, "{place}: {value}: {error}");
                assert_says(&error.to_string(), &["tokenizer"]);
            }
            Ok(tokenizer) => {
                if let Err(error) = load_one(rows, Some(&tokenizer)) {
                    assert_eq!(error.exit_status(), 2, "{place}: {value}: {error}");
                }
                let _ = tokenizer.decode(&[1, 2, 259, 9999], false);
            }
        }
    }
}

#[test]
fn a_chat_row_without_the_bos_that_the_tokenizer_puts_before_text_is_told() {
    let row =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    let data = load_one(row, Some(&chat_tokenizer(CHATML))).unwrap();
    assert_says(&data.report.to_string(), &["warning: ", "begins without the BOS token (\"<bos>\")"]);
    let data = load_one(row, Some(&chat_tokenizer(LLAMA3))).unwrap();
    assert!(data.report.files[0].notes.is_empty(), "{}", data.report);
}

/// Special tokens without names become added tokens as in transformers: with the id of the vocabulary, else the next.
#[test]
fn additional_special_tokens_are_tokens_of_their_own() {
    let plain = open(model_dir(Some(CHATML)).path());
    let next = plain.vocab_size() as u32;
    let list = json!(["a", {"content": "<new>", "lstrip": false}, "<bos>"]);
    let maps = [
        ("special_tokens_map.json", json!({"additional_special_tokens": list})),
        ("special_tokens_map.json", json!({"extra_special_tokens": list})),
        ("tokenizer_config.json", json!({"additional_special_tokens": list})),
        ("tokenizer_config.json", json!({"extra_special_tokens": list})),
        ("tokenizer_config.json", json!({"extra_special_tokens": {"one_token": "a", "other_token": "<new>"}})),
    ];
    for (name, map) in maps {
        let dir = model_dir(Some(CHATML));
        let mut object = if name == "tokenizer_config.json" { tokenizer_config(Some(CHATML)) } else { json!({}) };
        object.as_object_mut().unwrap().extend(map.as_object().unwrap().clone());
        write_json(dir.path(), name, &object);
        let tokenizer = open(dir.path());
        assert_eq!(tokenizer.encode("b<new>a").unwrap(), [98, next, 97], "{name} {map}");
        let added: Vec<u32> = tokenizer.added_tokens().iter().map(|token| token.id).collect();
        assert!(added.contains(&97) && added.contains(&next), "{name} {map}: {added:?}");
        assert_eq!(tokenizer.bos_token_id(), plain.bos_token_id());
    }
    let dir = model_dir(Some(CHATML));
    write_json(dir.path(), "special_tokens_map.json", &json!({"additional_special_tokens": [7]}));
    assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &["additional_special_tokens", "list of tokens"]);
}

/// In transformers too, `added_tokens_decoder` says how a token is found in a text, whatever `tokenizer.json` says.
#[test]
fn flags_of_the_decoder_win_over_those_of_the_tokenizer() {
    let of = |own: Value, decoder: Option<Value>| {
        let dir = model_dir(Some(CHATML));
        let mut file = tokenizer_json();
        let tokens = file["added_tokens"].as_array_mut().unwrap();
        let token = tokens.iter_mut().find(|token| token["content"] == "<|im_end|>").unwrap();
        token.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        write_json(dir.path(), "tokenizer.json", &file);
        let mut config = tokenizer_config(Some(CHATML));
        if let Some(flags) = decoder {
            let mut entry = json!({"content": "<|im_end|>", "special": true});
            entry.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
            config["added_tokens_decoder"] = json!({ "262": entry });
        }
        write_json(dir.path(), "tokenizer_config.json", &config);
        open(dir.path())
    };
    let none = json!({});
    for (flag, text) in [("lstrip", "a <|im_end|>b"), ("rstrip", "a<|im_end|> b")] {
        let set = json!({flag: true});
        let plain = of(none.clone(), None).encode(text).unwrap();
        assert!(plain.len() > 3 && plain.contains(&262), "{plain:?}");
        let stripped = [97, 262, 98];
        assert_eq!(of(none.clone(), Some(set.clone())).encode(text).unwrap(), stripped, "{flag}");
        assert_eq!(of(set.clone(), None).encode(text).unwrap(), stripped, "{flag}");
        // A flag that the decoder leaves out is off.
        assert_eq!(of(set, Some(none.clone())).encode(text).unwrap(), plain, "{flag}");
    }
    let word = of(none.clone(), Some(json!({"single_word": true})));
    assert!(!word.encode("a<|im_end|>b").unwrap().contains(&262));
    assert!(word.encode("a <|im_end|> b").unwrap().contains(&262));
    // The older file has no flags.
    let dir = model_dir(Some(CHATML));
    let mut file = tokenizer_json();
    for token in file["added_tokens"].as_array_mut().unwrap() {
        token["lstrip"] = (token["content"] == "<|im_end|>").into();
    }
    write_json(dir.path(), "tokenizer.json", &file);
    write_json(dir.path(), "added_tokens.json", &json!({"<|im_end|>": 262}));
    assert_eq!(open(dir.path()).encode("a <|im_end|>b").unwrap(), [97, 262, 98]);
}

#[test]
fn a_tokenizer_that_splits_special_tokens_is_refused() {
    let dir = model_dir(Some(CHATML));
    let mut config = tokenizer_config(Some(CHATML));
    config["split_special_tokens"] = json!(false);
    write_json(dir.path(), "tokenizer_config.json", &config);
    assert_eq!(open(dir.path()).encode("<|im_end|>").unwrap(), [262]);
    config["split_special_tokens"] = json!(true);
    write_json(dir.path(), "tokenizer_config.json", &config);
    let words = ["tokenizer_config.json", "`split_special_tokens` is true", "set it to false"];
    assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &words);
}
