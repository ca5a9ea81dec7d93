//! Opening a model's tokenizer: which chat template is taken, and what is refused.

use jiff::Zoned;
use qlora_train::data::{Builtin, ChatTokenizer};
use serde_json::json;

use trainer_lab::fixture::*;

const FIXED: &str = "{{ 'fixed' }}";

#[test]
fn special_tokens_may_be_strings_or_objects() {
    let tokenizer = chat_tokenizer(CHATML);
    assert_eq!((tokenizer.bos_token_id(), tokenizer.eos_token_id()), (Some(259), Some(260)));
    assert_eq!(tokenizer.vocab_size(), VOCAB_SIZE);
    assert_eq!(tokenizer.token(260), "<eos>");
    assert_eq!(tokenizer.token(9999), "<9999>");
}

#[test]
fn text_is_tokenized_without_added_tokens_or_truncation() {
    let dir = model_dir(Some(CHATML));
    let mut file = tokenizer_json();
    file["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 260, "pad_type_id": 0, "pad_token": "<eos>"});
    write_json(dir.path(), "tokenizer.json", &file);
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    assert_eq!(tokenizer.encode("hello w").unwrap(), [257, 108, 111, 258]);
    assert_eq!(tokenizer.decode(&[257, 108, 111, 258, 260], true).unwrap(), "hello w");
    assert_eq!(tokenizer.decode(&[257, 260], false).unwrap(), "hel<eos>");
}

#[test]
fn the_template_file_wins_over_the_config() {
    let dir = model_dir(Some(CHATML));
    let own = ChatTokenizer::open(dir.path(), None).unwrap();
    assert_says(own.template_origin(), &["tokenizer_config.json: chat_template"]);
    std::fs::write(dir.path().join("chat_template.jinja"), FIXED).unwrap();
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    assert_eq!(tokenizer.template().unwrap().source(), FIXED);
    assert_says(tokenizer.template_origin(), &["chat_template.jinja"]);
    assert_eq!(tokenizer.prompt(&turns(&[("user", "x")])).unwrap(), "fixed");
    // sha256sum of the file.
    let hash = "85bf845e7ccdb6bd784816171655d54c1f58363993430b46a220fa55e017d409";
    assert_eq!(tokenizer.template_hash().as_deref(), Some(hash));
    assert_ne!(tokenizer.template_hash(), own.template_hash());
}

#[test]
fn of_named_templates_the_default_is_taken() {
    let dir = model_dir(None);
    let mut config = tokenizer_config(None);
    config["chat_template"] = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": FIXED}]);
    write_json(dir.path(), "tokenizer_config.json", &config);
    assert_eq!(ChatTokenizer::open(dir.path(), None).unwrap().template().unwrap().source(), FIXED);
    config["chat_template"] = json!([{"name": "tool_use", "template": "t"}]);
    write_json(dir.path(), "tokenizer_config.json", &config);
    assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &["named default", "tool_use"]);
    config["chat_template"] = json!(7);
    write_json(dir.path(), "tokenizer_config.json", &config);
    assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &["chat_template is the number 7"]);
}

#[test]
fn a_base_without_a_template_needs_the_setting() {
    let dir = model_dir(None);
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    assert!(tokenizer.template().is_none() && tokenizer.template_hash().is_none());
    let row =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    assert_says(&refusal(load_one(row, Some(&tokenizer))), &["line 1", "no chat template", "chatml, alpaca"]);
    assert_says(&refusal(tokenizer.prompt(&turns(&[("user", "x")]))), &["no chat template"]);
}

#[test]
fn the_setting_wins_over_the_models_own_template() {
    let dir = model_dir(Some(CHATML));
    let chosen = dir.path().join("mine.jinja");
    std::fs::write(&chosen, FIXED).unwrap();
    let tokenizer = ChatTokenizer::open(dir.path(), Some(chosen.to_str().unwrap())).unwrap();
    assert_eq!(tokenizer.template().unwrap().source(), FIXED);
    assert_says(tokenizer.template_origin(), &["mine.jinja"]);
    assert_says(
        &refusal(ChatTokenizer::open(dir.path(), Some("chatmal"))),
        &["\"chatmal\"", "chatml, alpaca", "nor a file"],
    );
    std::fs::write(&chosen, "{% if %}").unwrap();
    let message = refusal(ChatTokenizer::open(dir.path(), Some(chosen.to_str().unwrap())));
    assert_says(&message, &["mine.jinja", "does not compile"]);
}

#[test]
fn builtin_chatml_begins_with_the_bos_that_the_tokenizer_would_add() {
    let tokenizer = ChatTokenizer::open(model_dir(None).path(), Some("chatml")).unwrap();
    assert_says(tokenizer.template_origin(), &["built-in", "chatml"]);
    let chat = tokenizer.render_chat(&turns(&[("system", "s"), ("user", "q"), ("assistant", "a")])).unwrap();
    assert_eq!(
        chat.text,
        "<bos><|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    );
    assert_eq!(&chat.text[chat.supervised[0].clone()], "a<|im_end|>");
    assert_eq!(
        tokenizer.prompt(&turns(&[("user", "q")])).unwrap(),
        "<bos><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn builtin_chatml_ends_turns_with_the_eos_where_the_vocabulary_has_no_im_end() {
    let dir = model_dir(None);
    let mut file = tokenizer_json();
    file["post_processor"] = json!(null);
    for token in file["added_tokens"].as_array_mut().unwrap() {
        if token["content"] == "<|im_end|>" {
            token["content"] = json!("<|other|>");
        }
    }
    write_json(dir.path(), "tokenizer.json", &file);
    let tokenizer = ChatTokenizer::open(dir.path(), Some("chatml")).unwrap();
    let chat = tokenizer.render_chat(&turns(&[("user", "q"), ("assistant", "a")])).unwrap();
    assert_eq!(chat.text, "<|im_start|>user\nq<eos>\n<|im_start|>assistant\na<eos>\n");
    assert_eq!((&chat.text[chat.supervised[0].clone()], chat.open_ended), ("a<eos>", 0));
}

#[test]
fn builtin_alpaca_supervises_the_response_and_the_eos() {
    let tokenizer = ChatTokenizer::open(model_dir(None).path(), Some("alpaca")).unwrap();
    let conversation = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
    let chat = tokenizer.render_chat(&turns(&conversation)).unwrap();
    assert_eq!(
        chat.text,
        "<bos>S\n\n### Instruction:\nq\n\n### Response:\na<eos>\n\n### Instruction:\nr\n\n### Response:\nb<eos>"
    );
    assert_eq!(supervised(&tokenizer, &conversation).unwrap(), ["a<eos>", "b<eos>"]);
    let plain = tokenizer.prompt(&turns(&[("user", "q")])).unwrap();
    assert!(plain.starts_with("<bos>Below is an instruction") && plain.ends_with("q\n\n### Response:\n"), "{plain}");
    let tool = tokenizer.render_chat(&turns(&[("tool", "x")])).unwrap_err();
    assert_says(&tool, &["alpaca template has no role tool"]);
}

#[test]
fn builtin_templates_have_names() {
    for builtin in Builtin::all() {
        assert_eq!(Builtin::from_name(builtin.name()), Some(builtin));
        assert!(Builtin::offered().contains(builtin.name()));
    }
    for (name, builtin) in [("llama-3", Builtin::Llama3), ("qwen3-nothink", Builtin::Chatml), ("phi_35", Builtin::Phi3)]
    {
        assert_eq!(Builtin::from_name(name), Some(builtin));
    }
    // Others write other texts under these names.
    for name in ["llama-3.1", "qwen25", "smollm2", "mistral_v1", "mistral_v2v3"] {
        assert_eq!(Builtin::from_name(name), None, "{name}");
    }
    assert_eq!(Builtin::from_name("alpaca"), Some(Builtin::Alpaca));
    assert_eq!(Builtin::from_name("none of these"), None);
}

#[test]
fn a_template_to_fall_back_on_is_for_models_without_one() {
    let fallback = Some("tokenizer_default_fallback_alpaca");
    let own = ChatTokenizer::open(model_dir(Some(CHATML)).path(), fallback).unwrap();
    assert_eq!((own.template().unwrap().source(), own.template_is_chosen()), (CHATML, false));
    let none = ChatTokenizer::open(model_dir(None).path(), fallback).unwrap();
    assert_eq!((none.builtin_template(), none.template_is_chosen()), (Some(Builtin::Alpaca), true));
    let wrong = ChatTokenizer::open(model_dir(None).path(), Some("tokenizer_default_fallback_none"));
    assert_says(&refusal(wrong), &["\"none\"", "leave it out for the model's own"]);
}

#[test]
fn a_builtin_template_without_a_token_to_end_turns_is_refused() {
    let dir = model_dir(None);
    write_json(dir.path(), "tokenizer_config.json", &json!({"bos_token": "<bos>"}));
    assert_says(&refusal(ChatTokenizer::open(dir.path(), Some("alpaca"))), &["alpaca", "needs an eos_token"]);
    assert!(ChatTokenizer::open(dir.path(), Some("chatml")).is_ok());
}

#[test]
fn missing_and_broken_files_are_refused() {
    let empty = tempfile::tempdir().unwrap();
    assert_says(&refusal(ChatTokenizer::open(empty.path(), None)), &["tokenizer.json", "not found", "tokenizer.model"]);
    write_json(empty.path(), "tokenizer.json", &tokenizer_json());
    assert_says(&refusal(ChatTokenizer::open(empty.path(), None)), &["tokenizer_config.json", "not found"]);
    let dir = model_dir(Some(CHATML));
    std::fs::write(dir.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
    assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &["tokenizer.json", "not a tokenizer"]);
    for (config, parts) in [
        ("[", ["tokenizer_config.json", "EOF"]),
        ("[]", ["tokenizer_config.json", "an empty array"]),
        ("{\"eos_token\": 3}", ["eos_token is the number 3", "`content`"]),
        ("{\"eos_token\": \"<nope>\"}", ["eos_token is \"<nope>\"", "same model"]),
    ] {
        let dir = model_dir(None);
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        assert_says(&refusal(ChatTokenizer::open(dir.path(), None)), &parts);
    }
}

#[test]
fn the_date_of_a_template_can_be_set_for_a_resumed_run() {
    let mut tokenizer = chat_tokenizer("{{ strftime_now('%Y') }}");
    tokenizer.set_now("2019-05-04T03:02:01+00:00[+00:00]".parse::<Zoned>().unwrap()).unwrap();
    assert_eq!(tokenizer.prompt(&turns(&[("user", "x")])).unwrap(), "2019");
}
