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
        // Each letter of these is a token.
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
    // Text outside of all ranges is not learned, and the end counts as the last character.
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

/// Compared answers are recognized by words in their keys; their scores are numbers.
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

/// The remarks about the only row.
#[track_caller]
fn remarks(row: &Value) -> Vec<String> {
    let data = load_row(row, &chat_tokenizer(CHATML)).unwrap_or_else(|error| panic!("{row}: {error}"));
    let mut lines = data.report.files[0].notes.lines("line");
    // These templates write no BOS, which gives a note too.
    lines.retain(|line| !line.contains("BOS token"));
    lines
}

/// A flag that nothing reads would let be learned what it says is not: quiet runs hear of it too.
#[test]
fn keys_that_look_like_flags_are_warned_of() {
    let places = [("the row", "rows"), ("a turn", "turns"), ("a part of a turn", "parts of turns")];
    let row = |place: &str, key: &str, value: &Value| {
        let plain = json!({"type": "text", "text": "a"});
        let with = |yes: bool, to: Value| if yes { with(to, key, value.clone()) } else { to };
        let content = json!([with(place == "a part of a turn", plain)]);
        let turn = with(place == "a turn", json!({"role": "assistant", "content": content}));
        with(place == "the row", json!({"messages": [{"role": "user", "content": "q"}, turn]}))
    };
    for (place, listed) in places {
        for (key, off, on) in [
            ("masked", json!(true), json!(false)),
            ("Masked", json!(1), json!(0)),
            ("isMasked", json!("true"), json!("false")),
            ("learn", json!(false), json!(true)),
            ("IGNORE", json!(true), json!(false)),
            ("no_loss", json!(true), json!(false)),
            ("no-loss", json!(true), json!(false)),
            ("loss_scale", json!(0.0), json!(1.0)),
            ("lossScale", json!(0.5), json!(1)),
            ("supervised", json!(0), json!(1)),
        ] {
            let said = remarks(&row(place, key, &off));
            assert_eq!(said.len(), 1, "{said:?}");
            assert_says(&said[0], &["warning: in 1 row (line 1)", place, &format!("`{key}`"), "`train: false`"]);
            assert_eq!(remarks(&row(place, key, &on)), [format!("not used: `{key}` of {listed}")]);
        }
        // By their words.
        for (key, off) in [
            ("do_not_train", json!(true)),
            ("doNotTrain", json!(1)),
            ("is_trainable", json!(false)),
            ("useForTraining", json!("False")),
            ("should-train", json!(0)),
            ("mask_loss", json!(true)),
            ("exclude_from_loss", json!(true)),
            ("skip", json!(true)),
            ("with_loss", json!(false)),
            ("mask_history", json!(true)),
            ("loss_weights", json!(0)),
        ] {
            let said = remarks(&row(place, key, &off));
            assert_says(&said[0], &["warning: ", place, &format!("`{key}`"), "`train: false`"]);
            let on = if key == "loss_weights" { json!(1) } else { json!(off != json!(true) && off != json!(1)) };
            assert_eq!(remarks(&row(place, key, &on)), [format!("not used: `{key}` of {listed}")], "{key}: {on}");
        }
        for (key, value) in [
            ("train_loss", json!(0.0)),
            ("ignore_case", json!(true)),
            ("training_steps", json!(0)),
            ("skip_reason", json!("long")),
            ("history_only", json!(true)),
            ("no", json!(true)),
        ] {
            assert_eq!(remarks(&row(place, key, &value)), [format!("not used: `{key}` of {listed}")]);
        }
        // Both values are found with both meanings.
        for value in [json!(true), json!(false), json!(0), json!([0, 1])] {
            assert_says(&remarks(&row(place, "mask", &value))[0], &["warning: ", place, "`mask`"]);
        }
        // No flag.
        assert_eq!(remarks(&row(place, "mask", &json!("a mask"))), [format!("not used: `mask` of {listed}")]);
        for key in FLAGS {
            let capital = key[..1].to_uppercase() + &key[1..];
            for other in [key.to_uppercase(), capital] {
                let said = remarks(&row(place, &other, &json!(false)));
                assert_eq!(said.len(), 1, "{said:?}");
                assert_says(&said[0], &["warning: ", place, &format!("`{other}`"), &format!("`{key}` is read")]);
                assert_eq!(remarks(&row(place, &other, &json!(true))), [format!("not used: `{other}` of {listed}")]);
            }
        }
    }
    // The user's text is not learned anyway.
    let row = json!({"messages": [{"role": "user", "content": "q", "masked": true, "Train": false},
                                  {"role": "assistant", "content": "a"}]});
    assert_eq!(remarks(&row), ["not used: `Train`, `masked` of turns"]);
    // A measured loss.
    let row =
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "Loss": 0.3});
    assert_eq!(remarks(&row), ["not used: `Loss` of rows"]);
}

#[test]
fn flags_with_letters_swapped_or_missing_are_warned_of() {
    let turns = |answer: Value| json!({"messages": [{"role": "user", "content": "q"}, answer]});
    let answer = json!({"role": "assistant", "content": "a"});
    let rows = |key: &str, value: &Value| {
        let of_turn = turns(with(answer.clone(), key, value.clone()));
        [("a turn", of_turn), ("the row", with(turns(answer.clone()), key, value.clone()))]
    };
    for (key, value, words) in [
        ("trian", json!(false), "`train` is read"),
        ("Trian", json!(0), "`train` is read"),
        ("tain", json!(false), "`train` is read"),
        ("traning", json!(false), "`training` is read"),
        ("wieght", json!(0), "`weight` is read"),
        ("maksed", json!(true), "`train: false`"),
        ("laern", json!(false), "`train: false`"),
        ("do_not_trian", json!(true), "`train: false`"),
    ] {
        for (whose, row) in rows(key, &value) {
            let said = remarks(&row);
            assert_eq!(said.len(), 1, "{said:?}");
            assert_says(&said[0], &["warning: ", whose, &format!("`{key}`"), words]);
        }
    }
    // Other words.
    for key in ["trait", "trail", "trains", "lean", "raining"] {
        for (_, row) in rows(key, &json!(false)) {
            assert_says(&remarks(&row)[0], &[&format!("not used: `{key}` of ")]);
        }
    }
}

#[test]
fn known_keys_in_other_letters_are_warned_of() {
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    for (key, known) in
        [("System", "system"), ("TOOLS", "tools"), ("Task", "task"), ("chatTemplateKwargs", "chat_template_kwargs")]
    {
        let said = remarks(&json!({"messages": turns, key: "x"}));
        assert_eq!(said.len(), 1, "{said:?}");
        assert_says(&said[0], &["warning: ", "the row", &format!("`{key}`"), &format!("`{known}` is read")]);
        assert_eq!(remarks(&json!({"messages": turns, key: ""})), [""; 0], "{key}");
    }
    let row = json!({"messages": [{"role": "user", "content": "q"},
                                  {"role": "assistant", "content": "a", "Tool_Calls": [{"name": "f"}], "ID": "7"}]});
    let said = remarks(&row);
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0], "not used: `ID` of turns");
    assert_says(&said[1], &["warning: ", "a turn", "`Tool_Calls`", "`tool_calls` is read"]);
}

/// The tokenizer has `he`, `hel` and ` w` as one token each.
#[test]
fn a_token_across_two_parts_is_learned_where_both_are() {
    let row =
        |parts: Value| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]});
    let (on, off) = (json!(true), json!(false));
    let part = |text: &str, train: &Value| json!({"type": "text", "text": text, "train": train});
    for (parts, expected) in [
        (json!([part("ah", &on), part("el b", &off)]), "a"),
        (json!([part("ah", &off), part("el b", &on)]), " b<|im_end|>"),
        (json!([part("ahe", &on), part("l b", &on)]), "ahel b<|im_end|>"),
        (json!([part("h", &on), part("e", &off), part("l", &on), part("o", &on)]), "o<|im_end|>"),
        (json!([part("a ", &on), part("w", &off)]), "a"),
        (json!([part("a ", &off), part("wo", &on)]), "o<|im_end|>"),
        (json!([part("ab", &on), part("cd", &off)]), "ab"),
    ] {
        assert_eq!(learned(&row(parts.clone())), expected, "{parts}");
    }
    let range = |begin: u64, end: u64| json!({"begin_offset": begin, "end_offset": end, "train": true});
    let turn = |detail: Value| json!({"role": "assistant", "content": "ahelo", "train_detail": detail});
    // Text outside of all ranges is not learned either.
    for (detail, expected) in [(json!([range(0, 1)]), "a"), (json!([range(2, 4)]), "o<|im_end|>")] {
        assert_eq!(learned(&json!({"messages": [{"role": "user", "content": "q"}, turn(detail)]})), expected);
    }
}
