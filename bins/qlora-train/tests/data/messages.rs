//! The turns of `messages` rows: what they may be, and what is refused.

use qlora_train::data::{UNSUPERVISED, describe};

use trainer_lab::fixture::*;

#[test]
fn turns_of_weight_0_are_context() {
    let row = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0},\
               {\"role\": \"user\", \"content\": \"r\"}, {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 1}]}";
    let tokenizer = chat_tokenizer(CHATML);
    let data = load_one(row, Some(&tokenizer)).unwrap();
    let shown = describe(&data.rows[0], Some(&tokenizer));
    let supervised: Vec<&str> = shown.iter().filter(|(_, yes)| *yes).map(|(token, _)| token.as_str()).collect();
    assert_eq!(supervised, ["b", "<|im_end|>"]);
}

#[test]
fn content_may_be_a_list_of_texts() {
    let row = "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"text\", \"text\": \"b\"}]},\
               {\"role\": \"assistant\", \"content\": \"c\"}]}";
    let tokenizer = chat_tokenizer(CHATML);
    let data = load_one(row, Some(&tokenizer)).unwrap();
    let text = tokenizer.decode(&data.rows[0].input_ids, false).unwrap();
    assert_eq!(text, "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n");
}

#[test]
fn wrong_turns_are_refused_with_their_place() {
    let table: [(&str, &[&str]); 14] = [
        ("[]", &["non-empty array", "an empty array"]),
        ("\"hi\"", &["non-empty array", "the string \"hi\""]),
        ("[3]", &["`messages[0]` must be an object"]),
        ("[{\"content\": \"a\"}]", &["`messages[0]` has no `role`", "`content`"]),
        ("[{\"role\": \"user\"}]", &["`messages[0]` has no `content`"]),
        ("[{\"role\": \"human\", \"content\": \"a\"}]", &["role is the string \"human\"", "user, assistant or tool"]),
        ("[{\"from\": \"human\", \"value\": \"a\"}]", &["ShareGPT turn"]),
        ("[{\"role\": \"user\", \"content\": null}]", &["content is null"]),
        ("[{\"role\": \"assistant\", \"content\": null}]", &["content is null"]),
        ("[{\"role\": \"user\", \"content\": \"a\", \"value\": \"b\"}]", &["`content` and `value`, which differ"]),
        ("[{\"role\": \"user\", \"content\": 7}]", &["content is the number 7"]),
        ("[{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]", &["content[0]", "\"image\"", "only text"]),
        ("[{\"role\": \"user\", \"content\": [\"a\"]}]", &["content[0]", "the string \"a\""]),
        ("[{\"role\": \"assistant\", \"content\": \"a\", \"weight\": -0.5}]", &["weight is the number -0.5"]),
    ];
    let tokenizer = chat_tokenizer(CHATML);
    for (messages, parts) in table {
        let message = refusal(load_one(format!("\n{{\"messages\": {messages}}}"), Some(&tokenizer)));
        assert_says(&message, parts);
        assert_says(&message, &["rows.jsonl: line 2: "]);
    }
}

#[test]
fn tool_turns_and_calls_reach_the_template() {
    let template = r"{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let row = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]}"#;
    let tokenizer = chat_tokenizer(template);
    let data = load_one(row, Some(&tokenizer)).unwrap();
    let ids: Vec<u32> = data.rows[0].labels.iter().filter(|&&l| l != UNSUPERVISED).map(|&l| l as u32).collect();
    assert_eq!(
        tokenizer.decode(&ids, false).unwrap(),
        r#"{"name": "f", "arguments": {"x": 1}}<|im_end|>two<|im_end|>"#
    );
}
