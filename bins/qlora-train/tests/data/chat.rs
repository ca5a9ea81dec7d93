//! The supervised part of a conversation, under templates of several styles.

use proptest::prelude::*;
use qlora_train::data::{ChatTokenizer, UNSUPERVISED, describe, load};

use trainer_lab::fixture::*;

const TWO_TURNS: [(&str, &str); 5] =
    [("system", "be brief"), ("user", "hello"), ("assistant", "hi"), ("user", "bye"), ("assistant", "so long")];

/// The text of the supervised tokens.
fn supervised_tokens(tokenizer: &ChatTokenizer, conversation: &[(&str, &str)]) -> String {
    let chat = tokenizer.encode_chat(&turns(conversation)).unwrap();
    let ids: Vec<u32> = chat.labels.iter().filter(|&&label| label != UNSUPERVISED).map(|&label| label as u32).collect();
    for (&id, &label) in chat.input_ids.iter().zip(&chat.labels) {
        assert!(label == UNSUPERVISED || label == id as i32);
    }
    tokenizer.decode(&ids, false).unwrap()
}

#[test]
fn chatml_supervises_answers_with_their_end_token_and_not_the_line_break_after_it() {
    let tokenizer = chat_tokenizer(CHATML);
    assert_eq!(supervised(&tokenizer, &TWO_TURNS).unwrap(), ["hi<|im_end|>", "so long<|im_end|>"]);
    assert_eq!(supervised_tokens(&tokenizer, &TWO_TURNS), "hi<|im_end|>so long<|im_end|>");
}

#[test]
fn the_tokens_of_a_conversation_are_those_of_its_text() {
    let tokenizer = chat_tokenizer(CHATML);
    let file = file(
        "rows.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"hello w\"}]}",
    );
    let data = load(std::slice::from_ref(&file.path), Some(&tokenizer), &options()).unwrap();
    let shown = describe(&data.rows[0], Some(&tokenizer));
    let text: Vec<&str> = shown.iter().map(|(token, _)| token.as_str()).collect();
    assert_eq!(
        text,
        [
            "<|im_start|>",
            "u",
            "s",
            "e",
            "r",
            "Ċ",
            "a",
            "<|im_end|>",
            "Ċ",
            "<|im_start|>",
            "a",
            "s",
            "s",
            "i",
            "s",
            "t",
            "a",
            "n",
            "t",
            "Ċ",
            "hel",
            "l",
            "o",
            "Ġw",
            "<|im_end|>",
            "Ċ"
        ]
    );
    let expected: Vec<bool> = (0..26).map(|at| (20..25).contains(&at)).collect();
    assert_eq!(shown.iter().map(|(_, supervised)| *supervised).collect::<Vec<_>>(), expected);
    assert_eq!(data.report.supervised_tokens, 5);
}

#[test]
fn llama_3_style_trims_content_and_ends_with_eot() {
    let tokenizer = chat_tokenizer(LLAMA3);
    let conversation = [("user", "q"), ("assistant", "  padded \n"), ("user", "r"), ("assistant", "end")];
    assert_eq!(supervised(&tokenizer, &conversation).unwrap(), ["padded<|eot|>", "end<|eot|>"]);
    assert_eq!(supervised_tokens(&tokenizer, &conversation), "padded<|eot|>end<|eot|>");
    let chat = tokenizer.encode_chat(&turns(&conversation)).unwrap();
    assert_eq!((chat.input_ids[0], chat.labels[0]), (259, UNSUPERVISED));
    assert_ne!(chat.input_ids[1], 259);
}

#[test]
fn inst_style_supervises_the_eos_although_it_is_the_pad_token_too() {
    let tokenizer = chat_tokenizer(INST);
    let conversation = [("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")];
    assert_eq!(supervised(&tokenizer, &conversation).unwrap(), [" one<eos>", " two<eos>"]);
    let chat = tokenizer.encode_chat(&turns(&conversation)).unwrap();
    let eos = tokenizer.eos_token_id().unwrap();
    let eos_labels: Vec<i32> =
        chat.input_ids.iter().zip(&chat.labels).filter(|(id, _)| **id == eos).map(|(_, label)| *label).collect();
    assert_eq!(eos_labels, [eos as i32, eos as i32]);
}

#[test]
fn a_template_that_rewrites_earlier_turns_still_has_every_answer_supervised() {
    let tokenizer = chat_tokenizer(THINKING);
    let conversation = [
        ("user", "q"),
        ("assistant", "<think>\nhm\n</think>\n\none"),
        ("user", "r"),
        ("assistant", "<think>\nah\n</think>\n\ntwo"),
    ];
    assert_eq!(
        supervised(&tokenizer, &conversation).unwrap(),
        ["one<|im_end|>", "<think>\nah\n</think>\n\ntwo<|im_end|>"]
    );
    assert_eq!(
        supervised(&tokenizer, &TWO_TURNS[1..]).unwrap(),
        ["hi<|im_end|>", "<think>\n\n</think>\n\nso long<|im_end|>"]
    );
}

#[test]
fn a_template_that_closes_only_the_last_turn_and_opens_the_prompt_otherwise() {
    let tokenizer = chat_tokenizer(CLOSING);
    // A turn ends with its own token: not with part of the next turn's mark, which begins like the EOS, nor with that.
    assert_eq!(supervised(&tokenizer, &TWO_TURNS).unwrap(), ["hi<|stop|>", "so long<|stop|>"]);
    // An answer that begins like the block in the prompt is supervised from its first character.
    let alike = [("user", "q"), ("assistant", "<th"), ("user", "q"), ("assistant", "<")];
    assert_eq!(supervised(&tokenizer, &alike).unwrap(), ["<th<|stop|>", "<<|stop|>"]);
}

/// Writes answers otherwise that hold an exclamation mark, which no placeholder does.
const REWRITING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{{ m.content | replace('!', '?') }}{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}";

/// A few turns that are written otherwise cost a few renderings, and not one for each turn.
#[test]
fn turns_that_are_written_otherwise_are_found_among_thousands() {
    let tokenizer = chat_tokenizer(REWRITING);
    let answers = |turns: usize, rewritten: &dyn Fn(usize) -> bool| -> Vec<String> {
        (0..turns).map(|at| format!("answer {at}{}", if rewritten(at) { "!" } else { "" })).collect()
    };
    let spans = |answers: &[String]| {
        let turns: Vec<(&str, &str)> =
            answers.iter().flat_map(|answer| [("user", "say"), ("assistant", answer.as_str())]).collect();
        supervised(&tokenizer, &turns)
    };
    for (count, rewritten) in [(3, vec![1]), (40, vec![0, 39]), (1500, vec![3, 700, 701, 1499])] {
        let given = answers(count, &|at| rewritten.contains(&at));
        let expected: Vec<String> = given.iter().map(|answer| answer.replace('!', "?") + "<|im_end|>").collect();
        assert!(spans(&given).unwrap() == expected, "{count}");
    }
    let why = spans(&answers(3000, &|_| true)).unwrap_err();
    assert!(why.contains("6000 turns are too many to find one by one; split the conversation"), "{why}");
}

#[test]
fn a_conversation_may_begin_with_the_assistant() {
    let conversation = [("assistant", "welcome"), ("user", "q"), ("assistant", "a")];
    assert_eq!(supervised(&chat_tokenizer(CHATML), &conversation).unwrap(), ["welcome<|im_end|>", "a<|im_end|>"]);
    // A template that cannot render an empty conversation.
    let strict = CHATML.replacen("{% for", "{% if not messages %}{{ raise_exception('empty') }}{% endif %}{% for", 1);
    assert_eq!(supervised(&chat_tokenizer(&strict), &conversation).unwrap(), ["welcome<|im_end|>", "a<|im_end|>"]);
}

#[test]
fn an_answer_that_shares_a_token_with_the_prompt_before_it_is_supervised_from_that_token() {
    let template = r"{% for m in messages %}{{ m.role + ': ' + m.content + ('<|eot|>' if m.role == 'assistant' else '\n') }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let tokenizer = chat_tokenizer(template);
    assert_eq!(supervised(&tokenizer, &[("user", "q"), ("assistant", "well")]).unwrap(), ["well<|eot|>"]);
    assert_eq!(supervised_tokens(&tokenizer, &[("user", "q"), ("assistant", "well")]), " well<|eot|>");
}

#[test]
fn a_template_without_an_end_token_is_told() {
    let template = r"{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";
    let tokenizer = chat_tokenizer(template);
    assert_eq!(supervised(&tokenizer, &[("user", "q"), ("assistant", "a")]).unwrap(), [" a\n"]);
    let row =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    let data = load_one(row, Some(&tokenizer)).unwrap();
    assert_eq!(data.report.open_ended, 1);
    assert_says(&data.report.to_string(), &["1 row", "without an end-of-turn token"]);
}

#[test]
fn a_template_in_which_the_turn_cannot_be_found_is_refused() {
    // The number of turns stands at the start, so no prefix is one, and contents are written backwards.
    let template =
        r"{{ messages | length }}{% for m in messages %}{{ m.role + m.content[::-1] + '<|eot|>' }}{% endfor %}";
    let row =
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"abc\"}, {\"role\": \"user\", \"content\": \"q\"}]}";
    let message = refusal(load_one(row, Some(&chat_tokenizer(template))));
    assert_says(&message, &["line 1", "`messages[0]`", "cannot tell"]);
}

#[test]
fn a_number_of_turns_at_the_start_alone_does_no_harm() {
    let template = r"{{ messages | length }}{% for m in messages %}{{ m.role + ':' + m.content + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    assert_eq!(supervised(&chat_tokenizer(template), &TWO_TURNS).unwrap(), ["hi<|eot|>", "so long<|eot|>"]);
}

#[test]
fn a_template_that_leaves_the_answers_out_is_refused() {
    // Takes lists of parts only.
    let template = r"{% for m in messages %}{{ m.role + ':' }}{% for part in m.content %}{{ part.text }}{% endfor %}{{ '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let error = supervised(&chat_tokenizer(template), &TWO_TURNS).unwrap_err();
    assert_says(&error, &["`messages[2]`", "leaves out what this turn says"]);
}

#[test]
fn what_a_template_refuses_is_refused_with_its_words_and_the_line() {
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n\
                {\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"user\", \"content\": \"a\"}]}\n";
    let message = refusal(load_one(rows, Some(&chat_tokenizer(INST))));
    assert_says(&message, &["line 2", "refuses the conversation: Turns must alternate user/assistant"]);
}

#[test]
fn a_text_that_begins_with_two_bos_is_refused() {
    let row =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    let twice = format!("{{{{ bos_token }}}}{LLAMA3}");
    assert_says(&refusal(load_one(row, Some(&chat_tokenizer(&twice)))), &["line 1", "two BOS"]);
}

#[test]
fn a_token_outside_the_models_vocabulary_is_refused() {
    let row =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    let file = file("rows.jsonl", row);
    let mut options = options();
    options.vocab_size = 200;
    let message = refusal(load(std::slice::from_ref(&file.path), Some(&chat_tokenizer(CHATML)), &options));
    assert_says(&message, &["line 1", "261", "<|im_start|>", "vocabulary of 200"]);
}

#[test]
fn rows_without_an_answer_are_skipped_and_data_without_any_is_refused() {
    let question = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n";
    let answered =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n";
    let tokenizer = chat_tokenizer(CHATML);
    let data = load_one(format!("{question}{answered}"), Some(&tokenizer)).unwrap();
    assert_eq!((data.rows.len(), data.report.unsupervised), (1, 1));
    assert_says(
        &refusal(load_one(question, Some(&tokenizer))),
        &["no row is left: of 1 row, 1 has no supervised token"],
    );
    let message = refusal(load_one(question.repeat(2), Some(&tokenizer)));
    assert_says(&message, &["no row is left: of 2 rows, 2 have no supervised token"]);
    assert!(!message.contains("longer"), "{message}");
    let message = refusal(data.split(1.0, 1));
    assert_says(&message, &["leaves no row to train on, there is 1 row"]);
    let data = load_one(answered.repeat(2), Some(&tokenizer)).unwrap();
    assert_says(&refusal(data.split(2.0, 1)), &["leaves no row to train on, there are 2 rows"]);
}

/// Words, white space, non-ASCII and things that look like markup.
fn content() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "hello", " ", "\n", "wé", "日本", "🙂", "<", "|im", "[INST", "he", "  w", "{{ x }}", "\t", "a", "</think>", "0",
    ]);
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

/// Alternating turns that begin with the user, perhaps after a system prompt.
fn conversation() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    (prop::option::of(content()), prop::collection::vec((content(), content()), 1..5)).prop_map(|(system, pairs)| {
        let pairs = pairs.into_iter().flat_map(|(user, assistant)| [("user", user), ("assistant", assistant)]);
        system.map(|text| ("system", text)).into_iter().chain(pairs).collect()
    })
}

proptest! {
    #[test]
    fn spans_are_the_answers_and_their_end_tokens(conversation in conversation()) {
        let borrowed: Vec<(&str, &str)> = conversation.iter().map(|(role, text)| (*role, text.as_str())).collect();
        let answers = || borrowed.iter().filter(|(role, _)| *role == "assistant").map(|(_, text)| *text);
        let chatml: Vec<String> = answers().map(|text| format!("{text}<|im_end|>")).collect();
        prop_assert_eq!(supervised(&chat_tokenizer(CHATML), &borrowed).unwrap(), chatml.clone());
        prop_assert_eq!(supervised_tokens(&chat_tokenizer(CHATML), &borrowed), chatml.concat());
        let llama: Vec<String> = answers().map(|text| format!("{}<|eot|>", text.trim())).collect();
        prop_assert_eq!(supervised(&chat_tokenizer(LLAMA3), &borrowed).unwrap(), llama.clone());
        prop_assert_eq!(supervised_tokens(&chat_tokenizer(LLAMA3), &borrowed), llama.concat());
        let users = if borrowed[0].0 == "system" { &borrowed[1..] } else { &borrowed[..] };
        let inst: Vec<String> = answers().map(|text| format!(" {text}<eos>")).collect();
        prop_assert_eq!(supervised(&chat_tokenizer(INST), users).unwrap(), inst);
    }

    #[test]
    fn spans_are_found_where_prefixes_differ(conversation in conversation()) {
        let borrowed: Vec<(&str, &str)> = conversation.iter().map(|(role, text)| (*role, text.as_str())).collect();
        let closing: Vec<String> = borrowed.iter().filter(|(role, _)| *role == "assistant")
            .map(|(_, text)| format!("{text}<|stop|>")).collect();
        prop_assert_eq!(supervised(&chat_tokenizer(CLOSING), &borrowed).unwrap(), closing);
    }
}
