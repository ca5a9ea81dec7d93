//! Chat templates of well-known models against transformers (`tests/golden/chat_files.py`): text, token ids, and which
//! tokens are supervised. The templates are fetched by `cargo xtask setup`; the tokenizer is SmolLM2's with each
//! template's own special tokens added.

use std::fs;
use std::path::{Path, PathBuf};

use qlora_train::config::TooLong;
use qlora_train::data::MicroBatch;
use qlora_train::data::{ChatTokenizer, DataOptions, Message, UNSUPERVISED, load};
use serde_json::{Value, json};
use tempfile::TempDir;

fn models() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("QLORA_MODELS").map_or(workspace.join("target/models"), PathBuf::from)
}

fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask setup`", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

fn golden() -> Value {
    read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat.json"))
}

/// SmolLM2's tokenizer with the template's tokens, in a directory of its own.
fn tokenizer(name: &str, facts: &Value) -> (TempDir, ChatTokenizer) {
    let base = models().join("smollm2-135m-instruct");
    let mut file = read_json(&base.join("tokenizer.json"));
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    let mut added: Vec<(&String, u64)> =
        facts["added"].as_object().unwrap().iter().map(|(token, id)| (token, id.as_u64().unwrap())).collect();
    added.sort_by_key(|&(_, id)| id);
    for (token, id) in added {
        tokens.push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        }));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), facts["special"].to_string()).unwrap();
    let template = match name {
        "smollm2" => base.join("chat_template.jinja"),
        _ => models().join(format!("chat-templates/{name}.jinja")),
    };
    let source = fs::read(&template).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask setup`", template.display()));
    fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    assert_eq!(tokenizer.template_hash().as_deref(), facts["sha256"].as_str(), "{name}: another template");
    (dir, tokenizer)
}

fn turns(conversation: &Value) -> Vec<Message> {
    let turns = conversation.as_array().unwrap().iter();
    turns.map(|turn| Message::new(turn["role"].as_str().unwrap(), turn["content"].as_str().unwrap())).collect()
}

/// Calls `each` with a name, the tokenizer, the turns and what transformers made of them, for all that it rendered.
fn for_each_case(refused: bool, each: &mut dyn FnMut(&str, &ChatTokenizer, &Value, &Value)) -> usize {
    let (golden, mut count) = (golden(), 0);
    for (name, facts) in golden["templates"].as_object().unwrap() {
        let (_dir, tokenizer) = tokenizer(name, facts);
        for (what, case) in facts["cases"].as_object().unwrap() {
            if case.get("refused").is_some() == refused {
                each(&format!("{name}: {what}"), &tokenizer, &golden["conversations"][what], case);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn text_and_token_ids_are_those_of_transformers() {
    let count = for_each_case(false, &mut |name, tokenizer, conversation, case| {
        let chat = tokenizer.render_chat(&turns(conversation)).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(chat.text, case["text"].as_str().unwrap(), "{name}");
        let prompt = format!("{}{}", chat.text, case["prompt_tail"].as_str().unwrap());
        assert_eq!(tokenizer.prompt(&turns(conversation)).unwrap(), prompt, "{name}");
        let ids: Vec<u32> =
            case["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode_chat(&turns(conversation)).unwrap().input_ids, ids, "{name}");
    });
    assert_eq!(count, 40);
}

/// The first and the behind-the-last position of every run of supervised tokens.
fn runs(labels: &[i32]) -> Vec<[usize; 2]> {
    let supervised = |at: usize| labels.get(at).is_some_and(|&label| label != UNSUPERVISED);
    let edge = |at: &usize| supervised(*at) != (*at > 0 && supervised(*at - 1));
    let edges: Vec<usize> = (0..=labels.len()).filter(edge).collect();
    edges.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()
}

#[test]
fn supervised_tokens_are_those_that_transformers_marks() {
    let mut compared = 0;
    for_each_case(false, &mut |name, tokenizer, conversation, case| {
        let Some(expected) = case.get("supervised") else { return };
        let chat = tokenizer.encode_chat(&turns(conversation)).unwrap();
        assert_eq!(json!(runs(&chat.labels)), *expected, "{name}");
        assert_eq!(chat.open_ended, 0, "{name}");
        for (&id, &label) in chat.input_ids.iter().zip(&chat.labels) {
            assert!(label == UNSUPERVISED || label == id as i32, "{name}");
        }
        compared += 1;
    });
    assert_eq!(compared, 34);
}

#[test]
fn conversations_that_a_template_refuses_are_refused_with_its_words() {
    let count = for_each_case(true, &mut |name, tokenizer, conversation, case| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        fs::write(&path, json!({"messages": conversation}).to_string()).unwrap();
        let options =
            DataOptions { max_length: 512, too_long: TooLong::Drop, vocab_size: 50_000, ..DataOptions::default() };
        let error = load(&[path], Some(tokenizer), &options).unwrap_err();
        let (text, words) = (error.to_string(), case["refused"].as_str().unwrap());
        assert!(text.contains("rows.jsonl: line 1") && text.contains(words), "{name}: {text}");
        assert_eq!(error.exit_status(), 2);
    });
    assert_eq!(count, 2);
}

/// What is learned of a loaded row is what is marked: the shifted targets of a batch hold the marked tokens and no
/// other.
#[test]
fn a_batch_predicts_the_marked_tokens_only() {
    for_each_case(false, &mut |name, tokenizer, conversation, case| {
        let Some(expected) = case.get("supervised") else { return };
        let chat = tokenizer.encode_chat(&turns(conversation)).unwrap();
        let row = qlora_train::data::Row {
            input_ids: chat.input_ids,
            labels: chat.labels,
            weights: Vec::new(),
            file: 0,
            line: 1,
            task: None,
        };
        let batch = MicroBatch::new([&row]);
        let predicted: Vec<usize> =
            (0..batch.tokens()).filter(|&at| batch.targets[at] != UNSUPERVISED).map(|at| at + 1).collect();
        let marked: Vec<usize> = expected
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|run| run[0].as_u64().unwrap() as usize..run[1].as_u64().unwrap() as usize)
            .collect();
        assert_eq!(predicted, marked, "{name}");
    });
}
