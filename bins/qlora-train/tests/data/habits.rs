//! Templates by how they open and close an answer: what is learned begins after the header and ends with the token that
//! ends the turn.

use proptest::prelude::*;
use qlora_train::data::{Checks, SpecialTokens};
use serde_json::json;

use trainer_lab::fixture::*;

/// A template of turns `HEADER content END`, with what follows the last turn.
fn template(begin: &str, header: &str, end: &str, last: &str) -> String {
    format!(
        "{begin}{{% for m in messages %}}{{{{ '{}' + m.content{} + '{end}' }}}}{{% endfor %}}{last}",
        header.replace("ROLE", "' + m.role + '"),
        ""
    )
}

const QUESTIONS: [(&str, &str); 4] = [("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")];

/// (name, the template's pieces, the prompt to answer, what is learned of an answer "x").
fn cases() -> Vec<(&'static str, [&'static str; 3], &'static str, String)> {
    let learned = |end: &str| format!("x{}", end.trim_end());
    [
        ("chatml", ["", "<|im_start|>ROLE\\n", "<|im_end|>\\n"], "<|im_start|>assistant\\n", "<|im_end|>"),
        (
            "llama 3",
            ["{{ bos_token }}", "<|start|>ROLE<|stop|>\\n\\n", "<|eot|>"],
            "<|start|>assistant<|stop|>\\n\\n",
            "<|eot|>",
        ),
        ("eos", ["{{ bos_token }}", "[ROLE] ", "<eos>"], "[assistant] ", "<eos>"),
        ("plain header", ["", "### ROLE:\\n", "<|eot|>\\n\\n"], "### assistant:\\n", "<|eot|>"),
        ("two end tokens", ["", "<|start|>ROLE\\n", "<|stop|><|eot|>\\n"], "<|start|>assistant\\n", "<|stop|><|eot|>"),
    ]
    .map(|(name, pieces, prompt, end)| (name, pieces, prompt, learned(end)))
    .into()
}

#[test]
fn templates_that_write_the_prompt_on_demand_always_or_never_learn_the_same() {
    for (name, [begin, header, end], prompt, learned) in cases() {
        for (when, last) in [
            ("on demand", format!("{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}")),
            ("always", format!("{{{{ '{prompt}' }}}}")),
            ("never", String::new()),
        ] {
            // Only the first of two end tokens can be distinguished from the header that follows.
            if when == "always" && name == "two end tokens" {
                continue;
            }
            let tokenizer = chat_tokenizer(&template(begin, header, end, &last));
            let expected: Vec<String> = ["one", "two"].map(|said| learned.replacen('x', said, 1)).into();
            assert_eq!(supervised(&tokenizer, &QUESTIONS).unwrap(), expected, "{name}, {when}");
            assert_eq!(supervised(&tokenizer, &QUESTIONS[..2]).unwrap(), expected[..1], "{name}, {when}");
            // A turn that is found by itself, because the text depends on what is said.
            let spaced = [("user", "q"), ("assistant", "   "), ("user", "r"), ("assistant", "two")];
            assert_eq!(supervised(&tokenizer, &spaced).unwrap()[1], expected[1], "{name}, {when}");
        }
    }
}

/// A file that ends with a line break loses it: what stands before an answer is then not what ends the prompt.
#[test]
fn a_prompt_that_is_always_written_may_lack_white_space_of_rows() {
    for (name, [begin, header, end], prompt, learned) in cases() {
        let Some((short, lead)) =
            [("\\n", "\n"), (" ", " ")].iter().find_map(|(written, read)| Some((prompt.strip_suffix(written)?, *read)))
        else {
            continue;
        };
        if name == "two end tokens" {
            continue;
        }
        let tokenizer = chat_tokenizer(&template(begin, header, end, &format!("{{{{ '{short}' }}}}")));
        let expected: Vec<String> =
            ["one", "two"].map(|said| format!("{lead}{}", learned.replacen('x', said, 1))).into();
        assert_eq!(supervised(&tokenizer, &QUESTIONS).unwrap(), expected, "{name}");
        assert_eq!(supervised(&tokenizer, &QUESTIONS[..2]).unwrap(), expected[..1], "{name}");
    }
}

#[test]
fn what_ends_the_text_behind_the_end_of_the_last_turn_is_not_learned() {
    for (name, [begin, header, end], prompt, learned) in cases().into_iter().filter(|(name, ..)| *name != "eos") {
        for more in ["<eos>", "\\n<eos>", "<eos>\\n"] {
            let last = format!("{{{{ '{prompt}' if add_generation_prompt else '{more}' }}}}");
            let tokenizer = chat_tokenizer(&template(begin, header, end, &last));
            let expected: Vec<String> = ["one", "two"].map(|said| learned.replacen('x', said, 1)).into();
            assert_eq!(supervised(&tokenizer, &QUESTIONS).unwrap(), expected, "{name}, {more}");
            let spaced = [("user", "q"), ("assistant", "   "), ("user", "r"), ("assistant", "two")];
            assert_eq!(supervised(&tokenizer, &spaced).unwrap()[1], expected[1], "{name}, {more}");
        }
    }
}

#[test]
fn the_check_knows_which_token_ends_a_turn() {
    for (name, [begin, header, end], prompt, _) in cases() {
        let last = format!("{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}");
        let tokenizer = chat_tokenizer(&template(begin, header, end, &last));
        let special = SpecialTokens::new(Some(&tokenizer), &[260]);
        let id = |token: &str| 259 + SPECIAL.iter().position(|special| *special == token).unwrap() as u32;
        let ends = ["<eos>", "<|im_end|>", "<|eot|>"].map(id);
        for token in SPECIAL {
            let ended = special.ends.contains(&id(token));
            assert_eq!(
                ended,
                token == "<eos>" || (end.contains(token) && ends.contains(&id(token))),
                "{name}: {token}"
            );
            // A header's token at the end of what is learned is no end of a turn.
            let row = qlora_train::data::Row {
                input_ids: vec![1, id(token)],
                labels: vec![-100, id(token) as i32],
                weights: Vec::new(),
                file: 0,
                line: 1,
                task: None,
            };
            assert_eq!(Checks::of(&[row], &special).without_end, usize::from(!ended), "{name}: {token}");
        }
    }
}

#[test]
fn a_template_that_closes_only_the_last_turn_learns_the_end_where_it_is_written() {
    let closing = "{{ bos_token }}{% for m in messages %}{{ ('USER: ' if m.role == 'user' else ' BOT: ') + m.content }}{% endfor %}{{ ' BOT: ' if add_generation_prompt else eos_token }}";
    let tokenizer = chat_tokenizer(closing);
    assert_eq!(supervised(&tokenizer, &QUESTIONS).unwrap(), ["one", "two<eos>"]);
    assert_eq!(tokenizer.render_chat(&turns(&QUESTIONS)).unwrap().open_ended, 1);
    let row = json!({"messages": QUESTIONS.map(|(role, content)| json!({"role": role, "content": content}))});
    let data = load_one(row.to_string(), Some(&tokenizer)).unwrap();
    assert_says(&data.report.to_string(), &["warning: in 1 row an answer or a text ends without an end-of-turn token"]);
}

#[test]
fn a_last_turn_closed_by_another_token_than_the_others() {
    let harmony = "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + ('<eos>' if loop.last and m.role == 'assistant' else '<|eot|>') }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}";
    assert_eq!(supervised(&chat_tokenizer(harmony), &QUESTIONS).unwrap(), ["one<|eot|>", "two<eos>"]);
}

#[test]
fn the_templates_own_marks_are_used_as_they_are() {
    let marked = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let tokenizer = chat_tokenizer(marked);
    // The line break is inside the marks, so it is learned, as in transformers.
    assert_eq!(supervised(&tokenizer, &QUESTIONS).unwrap(), ["one<|im_end|>\n", "two<|im_end|>\n"]);
    let row = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": false},
                                  {"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]});
    assert_eq!(load_one(row.to_string(), Some(&tokenizer)).unwrap().report.supervised_tokens, 3);
    // A header inside the marks, and an answer in two marks.
    let header = "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%}{{ '<|start|>' + m.content }}{%- endgeneration -%}{%- generation -%}{{ '<|eot|>' }}{%- endgeneration -%}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert_eq!(supervised(&chat_tokenizer(header), &QUESTIONS[..2]).unwrap(), ["<|start|>one", "<|eot|>"]);
}

#[test]
fn a_prompt_that_differs_from_what_stands_before_an_answer_is_told() {
    let row =
        json!({"messages": QUESTIONS.map(|(role, content)| json!({"role": role, "content": content}))}).to_string();
    let warned = |template: &str| load_one(&row, Some(&chat_tokenizer(template))).unwrap().report.warnings;
    assert!(warned(CHATML).is_empty() && warned(LLAMA3).is_empty() && warned(INST).is_empty());
    assert_says(&warned(CLOSING)[0], &["`generate` writes ends with", "<think>", "otherwise than it was trained"]);
    let never = template("", "<|im_start|>ROLE\\n", "<|im_end|>\\n", "");
    assert_says(&warned(&never)[0], &["no beginning of an answer", "<|im_start|>assistant"]);
}

#[test]
fn line_ends_of_a_template_are_those_of_jinja() {
    let lf = CHATML.replace("{% for", "\n{% for").replace("{% endfor", "\n\n{% endfor").replace("' + m", "'\n + m");
    for ends in ["\r\n", "\r"] {
        let (one, other) = (chat_tokenizer(&lf), chat_tokenizer(&lf.replace('\n', ends)));
        let chat = one.render_chat(&turns(&QUESTIONS)).unwrap();
        assert_eq!(other.render_chat(&turns(&QUESTIONS)).unwrap(), chat);
        assert!(!chat.text.contains('\r'));
    }
    // The contents keep their own line ends.
    let said = [("user", "a\r\nb"), ("assistant", "c\rd")];
    assert_eq!(supervised(&chat_tokenizer(&lf), &said).unwrap(), ["c\rd<|im_end|>"]);
}

#[test]
fn what_a_template_cuts_is_told_and_a_training_template_named() {
    let cutting = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]");
    let said = "<think>\nbecause\n</think>\n\nyes";
    let row = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}]});
    let data = load_one(row.to_string(), Some(&chat_tokenizer(&cutting))).unwrap();
    assert_says(
        &data.report.to_string(),
        &["in 1 row (line 1)", "leaves out what the assistant thinks", "qwen3_training"],
    );
    // Whole where it is kept.
    let data = load_one(row.to_string(), Some(&chat_tokenizer(LLAMA3))).unwrap();
    assert!(data.report.files[0].notes.is_empty(), "{}", data.report);
    // This template leaves out the thoughts of earlier turns alone.
    let two = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": said},
                                  {"role": "user", "content": "q"}, {"role": "assistant", "content": said}]});
    let data = load_one(two.to_string(), Some(&chat_tokenizer(THINKING))).unwrap();
    assert_says(&data.report.to_string(), &["leaves out what the assistant thinks"]);
}

#[test]
fn a_long_conversation_is_rendered_a_few_times_only() {
    let conversation: Vec<(&str, &str)> = (0..6000).map(|at| (["user", "assistant"][at % 2], "a")).collect();
    let start = std::time::Instant::now();
    let spans = supervised(&chat_tokenizer(CHATML), &conversation).unwrap();
    assert_eq!(spans.len(), 3000);
    assert!(spans.iter().all(|span| span == "a<|im_end|>"));
    // A rendering of each prefix takes minutes.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

fn word() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec!["he", " ", "\n", "é", "🙂", "<", "[USER]", "USER: ", "Placeholder1oF", "x"]);
    prop::collection::vec(piece, 1..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Answers that hold what templates write, or placeholders, change nothing.
    #[test]
    fn spans_are_the_contents_with_their_ends(said in prop::collection::vec((word(), word()), 1..4), case in 0..4usize, when in 0..3usize) {
        let (_, [begin, header, end], prompt, learned) = cases().swap_remove(case);
        let last = [format!("{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}"), format!("{{{{ '{prompt}' }}}}"), String::new()];
        let tokenizer = chat_tokenizer(&template(begin, header, end, &last[when]));
        let conversation: Vec<(&str, &str)> =
            said.iter().flat_map(|(user, answer)| [("user", user.as_str()), ("assistant", answer.as_str())]).collect();
        let expected: Vec<String> = said.iter().map(|(_, answer)| format!("{answer}{}", &learned[1..])).collect();
        prop_assert_eq!(supervised(&tokenizer, &conversation).unwrap(), expected);
    }
}
