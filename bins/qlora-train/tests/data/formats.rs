//! Rows of every format: what becomes text, what of it is supervised, and what is refused.

use qlora_train::config::TooLong;
use qlora_train::data::{
    ChatTokenizer, Checks, DataOptions, Dataset, Histogram, RowKind, SpecialTokens, UNSUPERVISED, load,
};
use serde_json::{Value, json};

use trainer_lab::fixture::*;

fn load_rows(rows: &[Value], tokenizer: &ChatTokenizer) -> qlora_train::error::Result<Dataset> {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    load_one(lines.join("\n"), Some(tokenizer))
}

/// The whole text of one row, and the text of its supervised tokens.
#[track_caller]
fn texts(row: Value, tokenizer: &ChatTokenizer) -> (String, String) {
    let data = load_rows(&[row], tokenizer).unwrap();
    let row = &data.rows[0];
    let supervised: Vec<u32> =
        row.labels.iter().filter(|&&label| label != UNSUPERVISED).map(|&label| label as u32).collect();
    (tokenizer.decode(&row.input_ids, false).unwrap(), tokenizer.decode(&supervised, false).unwrap())
}

fn both(text: &str, supervised: &str) -> (String, String) {
    (text.to_owned(), supervised.to_owned())
}

#[test]
fn a_prompt_with_its_completion_stands_between_bos_and_eos() {
    let tokenizer = chat_tokenizer(CHATML);
    let row = |prompt: &str, completion: &str| json!({"prompt": prompt, "completion": completion});
    assert_eq!(texts(row("ask: ", "hello"), &tokenizer), both("<bos>ask: hello<eos>", "hello<eos>"));
    // " w" is one token: it is the completion's first word, so it is learned with the space before it.
    assert_eq!(texts(row("ask ", "w"), &tokenizer), both("<bos>ask w<eos>", " w<eos>"));
    // Tokens that the texts hold already are not added again.
    assert_eq!(texts(row("<bos>a", "b<eos>"), &tokenizer), both("<bos>ab<eos>", "b<eos>"));
    assert_eq!(texts(row("a", "b<|eot|>"), &tokenizer), both("<bos>ab<|eot|>", "b<|eot|>"));
    assert_eq!(texts(row("a<eos>", ""), &tokenizer), both("<bos>a<eos><eos>", "<eos>"));
    assert_eq!(texts(row("", "b"), &tokenizer), both("<bos>b<eos>", "b<eos>"));
}

#[test]
fn a_prompt_and_a_completion_may_be_turns() {
    let tokenizer = chat_tokenizer(CHATML);
    let row = json!({
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}],
    });
    let (text, supervised) = texts(row, &tokenizer);
    assert!(text.ends_with("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"), "{text}");
    assert_eq!(supervised, "d<|im_end|>");
    let mixed = json!({"prompt": "a", "completion": [{"role": "assistant", "content": "d"}]});
    assert_says(&refusal(load_rows(&[mixed], &tokenizer)), &["line 1", "`prompt` must be a non-empty array"]);
}

#[test]
fn text_is_supervised_from_its_first_token_to_its_eos() {
    let tokenizer = chat_tokenizer(CHATML);
    assert_eq!(texts(json!({"text": "hello w"}), &tokenizer), both("<bos>hello w<eos>", "hello w<eos>"));
    assert_eq!(texts(json!({"text": "<bos>ab<eos>"}), &tokenizer), both("<bos>ab<eos>", "<bos>ab<eos>"));
    // Nothing to predict before the EOS but the EOS itself.
    assert_eq!(texts(json!({"text": ""}), &tokenizer), both("<bos><eos>", "<eos>"));
}

#[test]
fn text_without_an_eos_to_end_it_is_told() {
    let dir = model_dir(Some(CHATML));
    write_json(dir.path(), "tokenizer_config.json", &json!({"chat_template": CHATML}));
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    let data = load_rows(&[json!({"text": "ab"}), json!({"text": "ab<|eot|>"})], &tokenizer).unwrap();
    assert_eq!((data.lengths(), data.report.open_ended), (vec![2, 3], 1));
    assert_says(&data.report.to_string(), &["1 row", "without an end-of-turn token"]);
    // A text that is cut into rows can have an end in the last one only.
    let options = DataOptions { max_length: 3, too_long: TooLong::Chunk, ..options() };
    for (text, open) in [("abababab", 1), ("abababab<|eot|>", 0)] {
        let rows = file("rows.jsonl", json!({"text": text}).to_string());
        let data = load(std::slice::from_ref(&rows.path), Some(&tokenizer), &options).unwrap();
        assert!(data.report.pieces > 2, "{}", data.report);
        assert_eq!(data.report.open_ended, open, "{text}");
    }
}

#[test]
fn an_alpaca_row_is_a_conversation_of_which_the_output_is_supervised() {
    let tokenizer = chat_tokenizer(CHATML);
    let row = json!({
        "instruction": "add", "input": "1, 2", "output": "3", "system": "be brief",
        "history": [["hello", "hi"]], "id": 7,
    });
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let expected = [
        turn("system", "be brief"),
        turn("user", "hello"),
        turn("assistant", "hi"),
        turn("user", "add\n\n1, 2"),
        turn("assistant", "3"),
    ];
    assert_eq!(texts(row, &tokenizer), both(&expected.concat(), "3<|im_end|>"));
    let plain = json!({"instruction": "add", "input": "", "output": "3", "history": null, "system": null});
    let expected = [turn("user", "add"), turn("assistant", "3")].concat();
    assert_eq!(texts(plain, &tokenizer), both(&expected, "3<|im_end|>"));
}

#[test]
fn the_alpaca_template_writes_the_alpaca_prompt() {
    let tokenizer = ChatTokenizer::open(model_dir(None).path(), Some("alpaca")).unwrap();
    let row = json!({"instruction": "add", "input": "1, 2", "output": "3"});
    let expected = "<bos>Below is an instruction that describes a task, paired with an input that provides further \
                    context. Write a response that appropriately completes the request.\n\n### Instruction:\nadd\n\n### \
                    Input:\n1, 2\n\n### Response:\n3<eos>";
    assert_eq!(texts(row, &tokenizer), both(expected, "3<eos>"));
    let (text, _) = texts(json!({"instruction": "add", "output": "3"}), &tokenizer);
    assert!(text.starts_with("<bos>Below is an instruction that describes a task. Write a response"), "{text}");
    assert!(text.ends_with("### Instruction:\nadd\n\n### Response:\n3<eos>"), "{text}");
}

#[test]
fn share_gpt_turns_become_the_same_conversation_as_messages() {
    let tokenizer = chat_tokenizer(CHATML);
    let messages = json!({"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0}, {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "c"},
    ]});
    let turns = json!([
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0},
        {"from": "observation", "value": "t"}, {"from": "gpt", "value": "c"},
    ]);
    let expected = texts(messages.clone(), &tokenizer);
    assert_eq!(expected.1, "c<|im_end|>");
    assert_eq!(texts(json!({"system": "s", "conversations": turns}), &tokenizer), expected);
    assert_eq!(texts(json!({"conversations": messages["messages"]}), &tokenizer), expected);
}

#[test]
fn a_mixed_file_is_read_row_by_row_and_counted_by_format() {
    let tokenizer = chat_tokenizer(CHATML);
    let rows = [
        json!({"messages": [{"role": "assistant", "content": "a"}], "text": null}),
        json!({"text": "b"}),
        json!({"input_ids": [1, 2]}),
        json!({"instruction": "c", "output": "d"}),
        json!({"text": "e"}),
    ];
    let data = load_rows(&rows, &tokenizer).unwrap();
    assert_eq!(data.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    use RowKind::{Alpaca, Messages, Text, Tokenized};
    assert_eq!(data.report.files[0].kinds, [(Messages, 1), (Alpaca, 1), (Text, 2), (Tokenized, 1)]);
    let expected = "rows.jsonl: 5 rows of mixed formats: 1 messages, 1 Alpaca, 2 text, 1 tokenized";
    assert_says(&data.report.to_string(), &[expected]);
    assert_says(&refusal(load_one("{\"input_ids\": [1, 2]}\n{\"text\": \"a\"}", None)), &["line 2", "text rows need"]);
}

#[test]
fn wrong_text_rows_are_refused_with_their_line_and_what_was_expected() {
    let tokenizer = chat_tokenizer(CHATML);
    let table: &[(Value, &[&str])] = &[
        (json!({"prompt": 1, "completion": "a"}), &["`prompt` is the number 1", "a string"]),
        (json!({"prompt": "a", "completion": {"b": 1}}), &["`completion` is an object", "a string"]),
        (json!({"text": ["a"]}), &["`text` is an array", "a string"]),
        (json!({"instruction": "a", "output": 3}), &["`output` is the number 3"]),
        (json!({"instruction": "a", "output": "b", "input": []}), &["`input` is an empty array"]),
        (json!({"instruction": "a", "output": "b", "history": [["a"]]}), &["`history[0]`", "a pair of strings"]),
        (json!({"instruction": "a", "output": "b", "history": "x"}), &["`history` is the string", "array of pairs"]),
        (json!({"conversations": []}), &["`conversations` is an empty array"]),
        (json!({"conversations": "hi"}), &["`conversations` must be a non-empty array"]),
        (json!({"conversations": ["hi"]}), &["`conversations[0]` must be an object"]),
        (json!({"conversations": [{"from": "alien", "value": "a"}]}), &["`conversations[0]`.from is \"alien\""]),
        (json!({"conversations": [{"from": "gpt"}]}), &["`conversations[0]` has no `value`"]),
        (json!({"conversations": [{"from": "gpt", "value": null}]}), &["`conversations[0]`.value is null"]),
        (json!({"conversations": [{"from": "gpt", "value": 7}]}), &["`conversations[0]`.value is the number 7"]),
        (
            json!({"conversations": [{"from": "gpt", "value": "a", "content": "b"}]}),
            &["`conversations[0]` has `content` and `value`, which differ"],
        ),
        (
            json!({"conversations": [{"from": "gpt", "value": "a", "role": "user"}]}),
            &["`conversations[0]` has `role` (user) and `from`, which differ"],
        ),
        (json!({"conversations": [{"value": "a"}]}), &["`conversations[0]` has no `from`"]),
        (json!({"messages": []}), &["`messages` must be a non-empty array"]),
        (json!({"messages": [{"role": "user", "content": null}]}), &["`messages[0]`.content is null"]),
        (json!({"text": "a", "tools": [{"name": "f"}]}), &["tool definitions (`tools`)", "plain text"]),
        (json!({"messages": [{"role": "user", "content": "a"}], "conversations": []}), &["both `messages` and"]),
        (
            json!({"system": "a", "conversations": [{"from": "system", "value": "b"}]}),
            &["`system` and a system turn", "keep one"],
        ),
    ];
    for (row, parts) in table {
        let message = refusal(load_rows(&[json!({"text": "good"}), row.clone()], &tokenizer));
        assert_says(&message, parts);
        assert_says(&message, &["rows.jsonl: line 2: "]);
    }
}

#[test]
fn rows_without_an_answer_are_skipped_counted_and_named() {
    let tokenizer = chat_tokenizer(CHATML);
    let silent = json!({"messages": [{"role": "user", "content": "a"}]});
    let data = load_rows(&[json!({"text": "a"}), silent.clone()], &tokenizer).unwrap();
    assert_eq!((data.rows.len(), data.report.unsupervised), (1, 1));
    assert_says(&data.report.to_string(), &["1 row left out: no supervised token", "rows.jsonl line 2"]);
    assert_says(&refusal(load_rows(&[silent], &tokenizer)), &["no row is left"]);
}

#[test]
fn a_template_that_loops_or_raises_is_refused_with_the_line_of_the_row() {
    let row = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    let raising = chat_tokenizer("{{ raise_exception('no such role') }}");
    let message = refusal(load_rows(std::slice::from_ref(&row), &raising));
    assert_says(&message, &["line 1", "refuses the conversation", "no such role"]);
    let looping = chat_tokenizer("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
    assert_says(&refusal(load_rows(&[row], &looping)), &["line 1", "does not end"]);
}

#[test]
fn rows_of_many_megabytes_are_refused_without_being_tokenized() {
    let tokenizer = chat_tokenizer(CHATML);
    let text = |megabytes: usize| format!("{{\"text\": \"{}\"}}\n", "a ".repeat(megabytes << 19));
    assert_says(&refusal(load_one(text(20), Some(&tokenizer))), &["line 1", "20971520 bytes of text", "16 MiB"]);
    // Cut nowhere: a run without an end of a word, and a tokenizer that looks across words.
    let run = format!("{{\"text\": \"{}\"}}\n", "1".repeat(3 << 20));
    let words = ["line 1", "3145728 bytes of text without an end of a word", "1 MiB", "split it"];
    assert_says(&refusal(load_one(&run, Some(&tokenizer))), &words);
    let dir = model_dir(Some(CHATML));
    let mut across = tokenizer_json();
    across["normalizer"] = json!({"type": "Prepend", "prepend": "_"});
    write_json(dir.path(), "tokenizer.json", &across);
    let across = ChatTokenizer::open(dir.path(), None).unwrap();
    assert_says(&refusal(load_one(text(3), Some(&across))), &["line 1", "3145728 bytes of text, more than the 1 MiB"]);
    assert_says(&refusal(load_one(text(100), Some(&tokenizer))), &["line 1", "longer than 64 MiB"]);
    let array = format!("[\n{}]", text(100));
    assert_says(&refusal(load_one(array, Some(&tokenizer))), &["line 2", "a row of more than 64 MiB"]);
}

#[test]
fn an_array_without_an_end_is_refused_after_a_row_too_long() {
    let file = file("rows.json", "[");
    std::fs::OpenOptions::new().write(true).open(&file.path).unwrap().set_len(1 << 40).unwrap();
    let message = refusal(load(std::slice::from_ref(&file.path), None, &options()));
    assert_says(&message, &["rows.json", "line 1", "a row of more than 64 MiB"]);
}

/// A quote that is never closed makes one cell of the rest of a file.
#[test]
fn a_table_without_an_end_of_a_row_is_refused_after_a_row_too_long() {
    for (begin, place) in [("", "the header"), ("text\n", "row 1"), ("text\nhello\n\"", "row 2")] {
        let file = file("rows.csv", begin);
        std::fs::OpenOptions::new().write(true).open(&file.path).unwrap().set_len(1 << 40).unwrap();
        let message = refusal(load(std::slice::from_ref(&file.path), Some(&chat_tokenizer(CHATML)), &options()));
        assert_says(&message, &["rows.csv", place, "64 MiB for a row", "a quote that is never closed"]);
    }
    // Rows that have as many bytes together are no long row.
    let file = file("rows.csv", format!("text,other\n{}", format!("a,{}\n", "b".repeat(1 << 20)).repeat(70)));
    let data = load(std::slice::from_ref(&file.path), Some(&chat_tokenizer(CHATML)), &options()).unwrap();
    assert_eq!(data.rows.len(), 70);
}

#[test]
fn special_tokens_are_checked_over_all_rows() {
    let tokenizer = chat_tokenizer(CHATML);
    let special = SpecialTokens::new(Some(&tokenizer), &[260]);
    assert_eq!((special.bos, &special.eos), (Some(259), &vec![260]));
    let rows = [json!({"text": "a"}), json!({"input_ids": [1, 2]}), json!({"input_ids": [259, 5, 262]})];
    let data = load_rows(&rows, &tokenizer).unwrap();
    let checks = Checks::of(&data.rows, &special);
    let expected = Checks { rows: 3, expects_bos: true, without_bos: 1, double_bos: 0, without_end: 1, masked_eos: 0 };
    assert_eq!(checks, expected);
    assert_says(&checks.to_string(), &["1 of 3 rows does not begin with one", "end: in 1 of 3 rows"]);
    let mut broken = data.rows.clone();
    broken[0].labels[2] = UNSUPERVISED;
    broken[2].input_ids[1] = 259;
    let checks = Checks::of(&broken, &special);
    assert_eq!((checks.double_bos, checks.masked_eos, checks.without_end), (1, 1, 2));
}

#[test]
fn lengths_are_counted_in_buckets_that_double() {
    let mut lengths = Histogram::default();
    [0, 2, 3, 4, 5, 8, 9, 1000].into_iter().for_each(|tokens| lengths.add(tokens));
    let rows: Vec<_> = lengths.buckets().into_iter().filter(|bucket| bucket.2 > 0).collect();
    assert_eq!(rows, [(1, 1, 1), (2, 2, 1), (3, 4, 2), (5, 8, 2), (9, 16, 1), (513, 1024, 1)]);
    assert_says(&lengths.to_string(), &["3 to 4  2", "17 to 32  0"]);
    assert!(Histogram::default().buckets().is_empty());
}
