//! Weights of rows, turns, parts, ranges and tokens: how much each token's loss counts.

use proptest::prelude::*;
use qlora_train::data::{Row, UNSUPERVISED, load};
use serde_json::{Value, json};

use trainer_lab::fixture::*;

const GRADED: [&str; 3] = ["weight", "loss_weight", "loss_mask"];

#[track_caller]
fn row_of(row: &Value) -> Row {
    let data = load_one(row.to_string(), Some(&chat_tokenizer(CHATML))).unwrap_or_else(|e| panic!("{row}: {e}"));
    assert_eq!(data.report.weighted, usize::from(!data.rows[0].weights.is_empty()));
    data.rows[0].clone()
}

/// The learned text, in pieces of equal weight.
fn pieces(row: &Row) -> Vec<(String, f32)> {
    let tokenizer = chat_tokenizer(CHATML);
    assert!(row.weights.is_empty() || row.weights.len() == row.len());
    let mut pieces: Vec<(Vec<u32>, f32)> = Vec::new();
    for at in (0..row.len()).filter(|&at| row.labels[at] != UNSUPERVISED) {
        match pieces.last_mut() {
            Some((ids, weight)) if *weight == row.weight(at) => ids.push(row.input_ids[at]),
            _ => pieces.push((vec![row.input_ids[at]], row.weight(at))),
        }
    }
    pieces.into_iter().map(|(ids, weight)| (tokenizer.decode(&ids, false).unwrap(), weight)).collect()
}

#[track_caller]
fn assert_pieces(row: &Value, expected: &[(&str, f32)]) {
    let expected: Vec<(String, f32)> = expected.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
    assert_eq!(pieces(&row_of(row)), expected, "{row}");
}

/// ms-swift's key. In rows it is as often a number that was measured.
#[test]
fn a_turn_without_loss_is_not_learned() {
    assert_pieces(&two_answers("loss", json!(false), json!(true)), &[("b<|im_end|>", 1.0)]);
    assert_pieces(&two_answers("loss", json!(0), Value::Null), &[("b<|im_end|>", 1.0)]);
    let share_gpt = json!({"conversations": [
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "loss": false}, {"from": "human", "value": "r"},
        {"from": "gpt", "value": "b"},
    ]});
    assert_pieces(&share_gpt, &[("b<|im_end|>", 1.0)]);
    let parts = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [
        {"type": "text", "text": "a", "loss": false}, {"type": "text", "text": "b"}]}]});
    assert_pieces(&parts, &[("b<|im_end|>", 1.0)]);
    let mut row = two_answers("weight", json!(1), json!(1));
    row["loss"] = json!(2.35);
    assert_pieces(&row, &[("a<|im_end|>b<|im_end|>", 1.0)]);
    row["loss"] = json!(false);
    assert_says(&refusal(load_one(row.to_string(), Some(&chat_tokenizer(CHATML)))), &["no supervised token"]);
}

fn two_answers(key: &str, first: Value, second: Value) -> Value {
    json!({"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", key: first},
        {"role": "user", "content": "r"}, {"role": "assistant", "content": "b", key: second},
    ]})
}

#[test]
fn a_turn_counts_as_its_key_says_the_end_of_turn_included() {
    for key in GRADED {
        let row = two_answers(key, json!(0.25), json!(3));
        assert_pieces(&row, &[("a<|im_end|>", 0.25), ("b<|im_end|>", 3.0)]);
        let row = two_answers(key, json!(0), json!(0.5));
        assert_pieces(&row, &[("b<|im_end|>", 0.5)]);
        let row = two_answers(key, json!(true), json!(0.5));
        assert_pieces(&row, &[("a<|im_end|>", 1.0), ("b<|im_end|>", 0.5)]);
    }
    let share_gpt = json!({"conversations": [
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0.5, "train": true},
    ]});
    assert_pieces(&share_gpt, &[("a<|im_end|>", 0.5)]);
}

#[test]
fn a_part_and_a_range_count_as_their_keys_say() {
    for key in GRADED {
        let parts =
            json!([{"text": "one", key: 0.5}, {"text": "two"}, {"text": "three", key: 0}, {"text": "4", key: 2}]);
        let row = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]});
        assert_pieces(&row, &[("one", 0.5), ("two", 1.0), ("4<|im_end|>", 2.0)]);
    }
    let detail = json!([
        {"begin_offset": 0, "end_offset": 2, "weight": 0.5}, {"begin_offset": 3, "end_offset": 5, "train": true},
        {"begin_offset": 6, "end_offset": 7, "train": false},
    ]);
    let turn = json!({"role": "assistant", "content": "onetwono", "train_detail": detail});
    let row = json!({"messages": [{"role": "user", "content": "q"}, turn]});
    assert_pieces(&row, &[("one", 0.5), ("two", 1.0)]);
}

#[test]
fn a_row_counts_as_its_key_says_in_every_format() {
    for key in GRADED {
        for (row, text) in [
            (
                json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
                "a<|im_end|>",
            ),
            (json!({"instruction": "q", "output": "a"}), "a<|im_end|>"),
            (json!({"prompt": "q", "completion": "a"}), "a<eos>"),
            (json!({"text": "ab"}), "ab<eos>"),
            (json!({"input_ids": [97, 98]}), "ab"),
        ] {
            let mut row = row;
            row[key] = json!(0.75);
            assert_pieces(&row, &[(text, 0.75)]);
        }
    }
}

#[test]
fn weights_of_row_turn_and_part_multiply() {
    let parts = json!([{"text": "a", "weight": 0.5}, {"text": "b"}]);
    let row = json!({
        "messages": [
            {"role": "user", "content": "q"}, {"role": "assistant", "content": parts, "weight": 0.5},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "c"},
        ],
        "loss_weight": 4,
    });
    assert_pieces(&row, &[("a", 1.0), ("b<|im_end|>", 2.0), ("c<|im_end|>", 4.0)]);
}

#[test]
fn tokens_count_as_an_array_says() {
    for key in GRADED {
        let row = row_of(&json!({"input_ids": [97, 98, 99, 100], key: [1, 0.5, 0, 2]}));
        assert_eq!(row.labels, [97, 98, -100, 100], "{key}");
        assert_eq!(row.weights, [1.0, 0.5, 1.0, 2.0], "{key}");
        let tokenizer = chat_tokenizer(CHATML);
        for (mask, words) in [
            (json!([1, 1, 1]), &["3 entries", "`input_ids` 4"][..]),
            (json!([1, 1, -1, 1]), &["[2]", "the number -1", "for each token"]),
            (json!([1, 1, 1, "x"]), &["[3]", "the string \"x\""]),
        ] {
            let row = json!({"input_ids": [97, 98, 99, 100], key: mask}).to_string();
            let message = refusal(load_one(row, Some(&tokenizer)));
            assert_says(&message, &[&[key][..], words].concat());
        }
    }
    for key in ["completion_mask", "assistant_masks"] {
        let row = json!({"input_ids": [97, 98], key: [0, 0.5]}).to_string();
        assert_says(&refusal(load_one(row, None)), &[key, "[1]", "the number 0.5", "0 (not learned) or 1 for each"]);
    }
    // Both are followed.
    let row = row_of(&json!({"input_ids": [97, 98], "loss_mask": [1, 1], "weight": 0.5}));
    assert_eq!(row.weights, [0.5, 0.5]);
}

#[test]
fn an_array_where_there_are_no_tokens_is_refused() {
    let tokenizer = chat_tokenizer(CHATML);
    for key in ["train", "weight", "loss_weight", "loss_mask"] {
        for row in [json!({"text": "ab"}), json!({"prompt": "a", "completion": "b"})] {
            let mut row = row;
            row[key] = json!([1, 0.5]);
            let message = refusal(load_one(row.to_string(), Some(&tokenizer)));
            assert_says(&message, &[&format!("`{key}` of the row is an array")]);
        }
    }
}

#[test]
fn rows_without_weights_have_none() {
    for row in [
        json!({"text": "a"}),
        json!({"text": "a", "weight": 1.0}),
        json!({"input_ids": [1, 2], "loss_mask": [0, 1]}),
        two_answers("weight", json!(1), json!(0)),
        two_answers("loss_mask", json!(true), Value::Null),
    ] {
        assert_eq!(row_of(&row).weights, [0.0f32; 0], "{row}");
    }
}

#[test]
fn a_template_that_marks_answers_weighs_them_too() {
    const MARKED: &str = r"{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}";
    let row = two_answers("weight", json!(0.5), json!(2));
    let data = load_one(row.to_string(), Some(&chat_tokenizer(MARKED))).unwrap();
    assert_eq!(pieces(&data.rows[0]), [("a<|im_end|>".to_owned(), 0.5), ("b<|im_end|>".to_owned(), 2.0)]);
}

#[test]
fn a_cut_row_keeps_the_weights_of_its_tokens() {
    let rows = file("rows.jsonl", json!({"input_ids": [1, 2, 3, 4], "weight": [1, 2, 3, 4]}).to_string());
    let mut options = options();
    (options.max_length, options.too_long) = (3, qlora_train::config::TooLong::Truncate);
    let data = load(std::slice::from_ref(&rows.path), None, &options).unwrap();
    assert_eq!(data.rows[0].weights, [1.0, 2.0, 3.0]);
}

proptest! {
    /// Each token of an answer has the weight of its turn, whatever the weights.
    #[test]
    fn every_token_has_the_weight_of_its_turn(weights in prop::collection::vec(0u32..5, 1..6)) {
        let of = |at: usize| f64::from(weights[at]) / 2.0;
        let turns: Vec<Value> = (0..weights.len())
            .flat_map(|at| [
                json!({"role": "user", "content": "q"}),
                json!({"role": "assistant", "content": format!("answer {at}"), "weight": of(at)}),
            ])
            .collect();
        let row = json!({"messages": turns}).to_string();
        let loaded = load_one(row, Some(&chat_tokenizer(CHATML)));
        if weights.iter().all(|&weight| weight == 0) {
            assert_says(&refusal(loaded), &["no row is left"]);
            return Ok(());
        }
        let mut found = String::new();
        for (text, weight) in pieces(&loaded.unwrap().rows[0]) {
            for turn in text.split_terminator("<|im_end|>") {
                found += &format!("{turn}={weight};");
            }
        }
        let learned = (0..weights.len()).filter(|&at| weights[at] > 0);
        let expected: String = learned.map(|at| format!("answer {at}={};", of(at))).collect();
        prop_assert_eq!(found, expected);
    }
}

/// The tokenizer has `hel` as one token.
#[test]
fn a_token_across_two_parts_has_the_smaller_weight() {
    let row = |first: Value, second: Value| {
        let parts = json!([{"text": "ah", "weight": first}, {"text": "elp", "weight": second}]);
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]})
    };
    assert_pieces(&row(json!(2), json!(0.5)), &[("a", 2.0), ("help<|im_end|>", 0.5)]);
    assert_pieces(&row(json!(0.5), json!(2)), &[("ahel", 0.5), ("p<|im_end|>", 2.0)]);
    assert_pieces(&row(json!(0), json!(2)), &[("p<|im_end|>", 2.0)]);
    assert_pieces(&row(json!(2), json!(0)), &[("a", 2.0)]);
}
