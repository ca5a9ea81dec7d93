//! Keys of rows, turns and parts: those that say what is not learned, those that give a row another meaning, and those
//! that nothing reads.

use proptest::prelude::*;
use qlora_train::data::{ChatTokenizer, Dataset, UNSUPERVISED};
use serde_json::{Map, Value, json};

use trainer_lab::fixture::*;

const FLAGS: [&str; 6] = ["train", "training", "trainable", "weight", "loss_weight", "loss_mask"];

fn load_row(row: &Value, tokenizer: &ChatTokenizer) -> qlora_train::error::Result<Dataset> {
    load_one(row.to_string(), Some(tokenizer))
}

/// The supervised tokens of the only row as text.
#[track_caller]
fn learned(row: &Value) -> String {
    let tokenizer = chat_tokenizer(CHATML);
    let data = load_row(row, &tokenizer).unwrap_or_else(|error| panic!("{row}: {error}"));
    let ids: Vec<u32> = data.rows[0].labels.iter().filter(|&&l| l != UNSUPERVISED).map(|&l| l as u32).collect();
    tokenizer.decode(&ids, false).unwrap()
}

fn with(mut turn: Value, key: &str, value: Value) -> Value {
    turn[key] = value;
    turn
}

/// A conversation of two answers in `messages` or `conversations`, whose first one has a key more.
fn conversation(share_gpt: bool, key: &str, value: &Value) -> Value {
    let turn = |role: &str, text: &str| match share_gpt {
        true => json!({"from": if role == "user" { "human" } else { "gpt" }, "value": text}),
        false => json!({"role": role, "content": text}),
    };
    let first = with(turn("assistant", "Bad."), key, value.clone());
    let turns = json!([turn("user", "a"), first, turn("user", "b"), turn("assistant", "Good.")]);
    if share_gpt { json!({"conversations": turns}) } else { json!({"messages": turns}) }
}

#[test]
fn every_key_that_says_do_not_learn_is_followed_on_turns() {
    for key in FLAGS {
        for share_gpt in [false, true] {
            for off in [json!(false), json!(0), json!(0.0)] {
                assert_eq!(learned(&conversation(share_gpt, key, &off)), "Good.<|im_end|>", "{key}: {off}");
            }
            for on in [json!(true), json!(1), json!(1.0), Value::Null] {
                let all = "Bad.<|im_end|>Good.<|im_end|>";
                assert_eq!(learned(&conversation(share_gpt, key, &on)), all, "{key}: {on}");
            }
        }
    }
}

#[test]
fn every_key_that_says_do_not_learn_is_followed_on_parts() {
    let row =
        |parts: Value| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]});
    for key in FLAGS {
        let part = |text: &str, value: Value| with(json!({"type": "text", "text": text}), key, value);
        let last = row(json!([part("Bad guess. ", json!(false)), part("It is 4.", json!(true))]));
        // " It" begins with the space before it.
        assert_eq!(learned(&last), "It is 4.<|im_end|>", "{key}");
        let first = row(json!([part("It is 4.", json!(1)), part(" I guess.", json!(0))]));
        assert_eq!(learned(&first), "It is 4.", "{key}");
        let middle = row(json!([part("a", json!(1)), part("b", json!(0)), {"text": "c"}]));
        assert_eq!(learned(&middle), "ac<|im_end|>", "{key}");
    }
}

#[test]
fn every_key_that_says_do_not_learn_is_followed_on_rows() {
    for key in FLAGS {
        for row in [
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            json!({"instruction": "q", "output": "a"}),
            json!({"prompt": "q", "completion": "a"}),
            json!({"text": "a"}),
            json!({"input_ids": [1, 2, 3]}),
        ] {
            let rows = format!("{}\n{}", with(row.clone(), key, json!(false)), with(row, key, json!(true)));
            let data = load_one(rows, Some(&chat_tokenizer(CHATML))).unwrap();
            assert_eq!((data.rows.len(), data.report.unsupervised), (1, 1), "{key}");
            assert_eq!(data.rows[0].line, 2);
        }
    }
}

#[test]
fn character_ranges_of_a_turn_are_followed() {
    let row = |detail: Value| json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "é bad, good", "train_detail": detail}]});
    let range = |begin: u64, end: u64, train: bool| json!({"begin_offset": begin, "end_offset": end, "train": train});
    assert_eq!(learned(&row(json!([range(0, 5, false), range(6, 10, true)]))), " good<|im_end|>");
    assert_eq!(learned(&row(json!([range(6, 10, true), range(0, 0, true)]))), "é good<|im_end|>");
    // What no range holds is not learned, and the end goes with the last character.
    assert_eq!(learned(&row(json!([range(2, 4, true)]))), "bad");
    let tokenizer = chat_tokenizer(CHATML);
    for (detail, parts) in [
        (json!("x"), ["train_detail is the string", "array"]),
        (json!([{"begin_offset": 0, "train": true}]), ["train_detail[0]", "end_offset"]),
        (json!([range(4, 2, true)]), ["from 4 to 2", "0 to 10"]),
        (json!([range(11, 12, true)]), ["from 11 to 12", "0 to 10"]),
        (json!([range(0, 5, true), range(5, 6, false)]), ["overlap", "0 and 5"]),
    ] {
        assert_says(&refusal(load_row(&row(detail), &tokenizer)), &parts);
    }
}

#[test]
fn weights_that_contradict_each_other_or_are_none_are_refused() {
    let tokenizer = chat_tokenizer(CHATML);
    for key in FLAGS {
        for (value, found) in [
            (json!(-1), "the number -1"),
            (json!(-0.5), "the number -0.5"),
            (json!(1e-7), "the number 1e-7"),
            (json!(1e7), "the number 10000000"),
            (json!("no"), "the string \"no\""),
            (json!([1]), "an array"),
        ] {
            let message = refusal(load_row(&conversation(false, key, &value), &tokenizer));
            assert_says(&message, &["`messages[1]`", key, found, "0 (not learned)"]);
        }
        // Flags say whether, weights how much.
        if key.starts_with("train") {
            for value in [json!(0.5), json!(2)] {
                let message = refusal(load_row(&conversation(false, key, &value), &tokenizer));
                assert_says(&message, &["`messages[1]`", key, "0 (not learned) or 1", "`weight` takes other numbers"]);
            }
        }
    }
    let both = |first: Value, second: Value| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": first, "weight": second}]});
    for (first, second) in [(json!(true), json!(0)), (json!(false), json!(1))] {
        assert_says(&refusal(load_row(&both(first, second), &tokenizer)), &["`train` and `weight` contradict"]);
    }
    assert_eq!(learned(&both(json!(true), json!(1))), "a<|im_end|>");
}

#[test]
fn keys_that_give_a_row_another_meaning_are_refused_by_name() {
    let tokenizer = chat_tokenizer(CHATML);
    let rows = [
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
        json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
        json!({"prompt": "q", "completion": "a"}),
        json!({"instruction": "q", "output": "a"}),
        json!({"text": "a"}),
        json!({"input_ids": [1, 2]}),
        json!({"prompt": "q"}),
    ];
    let keys = [
        ("chosen", json!("b"), "preference"),
        ("rejected", json!([{"role": "assistant", "content": "b"}]), "preference"),
        ("label", json!(false), "KTO"),
        ("label", json!(true), "KTO"),
        ("kto_tag", json!(true), "KTO"),
        ("images", json!(["a.png"]), "only text"),
        ("videos", json!(["a.mp4"]), "only text"),
        ("audios", json!(["a.wav"]), "only text"),
        ("image_path", json!("a.png"), "only text"),
        ("desirable", json!(false), "KTO"),
        ("KTO_TAG", json!(true), "KTO"),
    ];
    for row in &rows {
        // Beside the text of a page, the address of its picture is none.
        let is_page = |key: &str| key == "image_path" && row.get("text").is_some();
        for (key, value, words) in keys.iter().filter(|(key, ..)| !is_page(key)) {
            let message = refusal(load_row(&with(row.clone(), key, value.clone()), &tokenizer));
            assert_says(&message, &["line 1", &format!("`{key}`"), words, "remove"]);
        }
    }
    for row in &rows[..5] {
        for nothing in [Value::Null, json!([]), json!("")] {
            for key in ["images", "chosen", "label"] {
                load_row(&with(row.clone(), key, nothing.clone()), &tokenizer).unwrap();
            }
        }
    }
    let turn =
        json!({"messages": [{"role": "user", "content": "q", "images": ["a"]}, {"role": "assistant", "content": "a"}]});
    assert_says(&refusal(load_row(&turn, &tokenizer)), &["`messages[0]`.images", "only text"]);
}

#[test]
fn keys_that_nothing_reads_are_told_once_for_each_file() {
    let row = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "mood": 1}], "color": "red"},
                     {"role": "assistant", "content": "a"}], "score": 3, "empty": null});
    let data = load_one(format!("{row}\n{row}\n"), Some(&chat_tokenizer(CHATML))).unwrap();
    let text = data.report.to_string();
    let line = "not used: `score` of rows; `color` of turns; `mood` of parts of turns";
    assert_eq!(text.matches(line).count(), 1, "{text}");
    let used = json!({"messages": [{"role": "user", "content": "q", "name": "x"}, {"role": "assistant", "content": "a"}],
                      "task": "t", "system": "s", "tools": []});
    let data = load_one(used.to_string(), Some(&chat_tokenizer(LLAMA3))).unwrap();
    assert!(data.report.files[0].notes.is_empty(), "{}", data.report);
}

#[test]
fn a_turn_of_the_user_that_is_marked_to_be_learned_is_told() {
    let row =
        json!({"messages": [{"role": "user", "content": "q", "train": true}, {"role": "assistant", "content": "a"}]});
    let data = load_row(&row, &chat_tokenizer(CHATML)).unwrap();
    assert_says(&data.report.to_string(), &["in 1 row (line 1) a user turn is marked to be learned"]);
}

#[test]
fn the_system_of_a_row_stands_before_its_turns() {
    for key in ["messages", "conversations"] {
        let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        let row = json!({key: turns, "system": "s"});
        let tokenizer = chat_tokenizer(CHATML);
        let data = load_row(&row, &tokenizer).unwrap();
        let text = tokenizer.decode(&data.rows[0].input_ids, false).unwrap();
        assert!(text.starts_with("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq"), "{text}");
    }
}

#[test]
fn masks_of_tokenized_rows_are_followed() {
    for key in ["loss_mask", "completion_mask", "assistant_masks"] {
        let row = json!({"input_ids": [1, 2, 3, 4], key: [0, 0, 1, 1]});
        assert_eq!(load_one(row.to_string(), None).unwrap().rows[0].labels, [-100, -100, 3, 4], "{key}");
        let labeled = json!({"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, -100], key: [0, 1, 0, 1]});
        assert_eq!(load_one(labeled.to_string(), None).unwrap().rows[0].labels, [-100, 2, -100, -100]);
        for (wrong, part) in [(json!([0, 1]), "has 2 entries"), (json!([0, 1, -1, 1]), "the number -1")] {
            let row = json!({"input_ids": [1, 2, 3, 4], key: wrong});
            assert_says(&refusal(load_one(row.to_string(), None)), &[key, part]);
        }
    }
    let packed = json!({"input_ids": [1, 2, 3], "position_ids": [0, 1, 0]});
    assert_says(&refusal(load_one(packed.to_string(), None)), &["position_ids", "one by one"]);
    load_one(json!({"input_ids": [1, 2, 3], "position_ids": [0, 1, 2]}).to_string(), None).unwrap();
}

proptest! {
    /// Flags of turns, whatever they are called, are what decides which answers are learned.
    #[test]
    fn learned_answers_are_those_whose_flags_say_so(flags in prop::collection::vec((0..6usize, any::<bool>(), any::<bool>()), 1..6)) {
        let mut turns = Vec::new();
        let mut expected = String::new();
        for (at, (key, train, number)) in flags.iter().enumerate() {
            turns.push(json!({"role": "user", "content": "q"}));
            let value = if *number { json!(u8::from(*train)) } else { json!(train) };
            turns.push(with(json!({"role": "assistant", "content": format!("n{at}")}), FLAGS[*key], value));
            if *train {
                expected += &format!("n{at}<|im_end|>");
            }
        }
        let mut row = Map::new();
        row.insert("messages".into(), turns.into());
        let tokenizer = chat_tokenizer(CHATML);
        match load_row(&Value::Object(row.clone()), &tokenizer) {
            Ok(_) => prop_assert_eq!(learned(&Value::Object(row)), expected),
            Err(_) => prop_assert_eq!(expected, ""),
        }
    }
}

/// Answers that are compared are told by their words, under whatever name; scores of them are numbers.
#[test]
fn compared_answers_are_refused_under_every_name() {
    let tokenizer = chat_tokenizer(CHATML);
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    for key in ["chosen", "rejected", "response_chosen", "rejected_response", "rejected_responses", "chosen_messages"] {
        for value in [json!("b"), json!([{"role": "assistant", "content": "b"}])] {
            for row in [json!({"messages": turns, key: value}), json!({"prompt": "q", "completion": "a", key: value})] {
                let message = refusal(load_row(&row, &tokenizer));
                assert_says(&message, &["line 1", &format!("`{key}`"), "compares two answers"]);
            }
        }
        let rows = json!({"messages": turns, key: null});
        assert!(load_row(&rows, &tokenizer).is_ok(), "{key}");
    }
    for key in ["score_chosen", "rejected_score", "chosen_rating"] {
        assert!(load_row(&json!({"messages": turns, key: 0.5}), &tokenizer).is_ok(), "{key}");
    }
    assert!(load_row(&json!({"messages": turns, "unrejectedly": "x"}), &tokenizer).is_ok());
}
