//! Chat templates of well-known models against transformers (`tests/golden/chat_files.py`): text, token ids, and which
//! tokens are supervised. The templates are fetched by `cargo xtask setup`; the tokenizer is SmolLM2's with each
//! template's own special tokens added.

use std::fs;
use std::path::{Path, PathBuf};

use qlora_train::arch::Arch;
use qlora_train::config::TooLong;
use qlora_train::data::MicroBatch;
use qlora_train::data::{ChatTokenizer, DataOptions, Message, UNSUPERVISED, load};
use qlora_train::infer::stop::Stop;
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
    let (dir, tokenizer) = with_template(name, facts);
    assert_eq!(tokenizer.template_hash().as_deref(), facts["sha256"].as_str(), "{name}: another template");
    (dir, tokenizer)
}

fn with_template(name: &str, facts: &Value) -> (TempDir, ChatTokenizer) {
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

/// Well-known templates come nowhere near a limit of the sandbox, in conversations of their usual length.
#[test]
fn renderings_take_little_of_what_is_allowed() {
    use minijinja::Value as Jinja;
    let mut most: f64 = 0.0;
    for_each_case(false, &mut |name, tokenizer, conversation, _| {
        let turn = |turn: &Value| {
            Jinja::from_pairs(["role", "content"].map(|key| (key, Jinja::from(turn[key].as_str().unwrap()))))
        };
        let turns: Vec<Jinja> = conversation.as_array().unwrap().iter().map(turn).collect();
        let share = tokenizer.template().unwrap().share_of_limits(&turns, false).unwrap();
        assert!(share < 0.01, "{name}: {share}");
        most = most.max(share);
    });
    println!("at most {:.3} % of a limit", 100.0 * most);
    assert!(most > 0.0);
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

/// The learned tokens of a loaded row are the marked ones: the shifted targets of a batch hold the marked tokens and no
/// others.
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

/// A model as it is published.
struct Published {
    /// Folder in `tests/golden`
    family: &'static str,
    template: &'static str,
    /// BOS, where the tokenizer has one, and EOS
    special: (Option<&'static str>, &'static str),
    /// `eos_token_id` of config.json and generation_config.json
    ends: &'static [&'static str],
    turn_end: &'static str,
    /// Tokens of the template beside those
    marks: &'static [&'static str],
}

const IM: &[&str] = &["<|im_start|>", "<|im_end|>"];
const HEADERS: &[&str] = &["<|start_header_id|>", "<|end_header_id|>"];
const PUBLISHED: [Published; 10] = [
    Published {
        family: "checkpoint/base",
        template: "llama-3.1",
        special: (Some("<|begin_of_text|>"), "<|eot_id|>"),
        ends: &["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        turn_end: "<|eot_id|>",
        marks: HEADERS,
    },
    // With the tokenizer of the base, which ends a text and no turn.
    Published {
        family: "checkpoint/base",
        template: "llama-3",
        special: (Some("<|begin_of_text|>"), "<|end_of_text|>"),
        ends: &["<|end_of_text|>"],
        turn_end: "<|eot_id|>",
        marks: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    },
    Published {
        family: "mistral",
        template: "mistral-v3",
        special: (Some("<s>"), "</s>"),
        ends: &["</s>"],
        turn_end: "</s>",
        marks: &["[INST]", "[/INST]"],
    },
    Published {
        family: "qwen2",
        template: "qwen2.5",
        special: (None, "<|im_end|>"),
        ends: &["<|im_end|>", "<|endoftext|>"],
        turn_end: "<|im_end|>",
        marks: IM,
    },
    Published {
        family: "qwen2",
        template: "qwen2.5",
        special: (None, "<|endoftext|>"),
        ends: &["<|endoftext|>"],
        turn_end: "<|im_end|>",
        marks: IM,
    },
    Published {
        family: "qwen3",
        template: "qwen3",
        special: (None, "<|im_end|>"),
        ends: &["<|im_end|>", "<|endoftext|>"],
        turn_end: "<|im_end|>",
        marks: IM,
    },
    Published {
        family: "phi3",
        template: "phi-3",
        special: (Some("<s>"), "<|endoftext|>"),
        ends: &["<|endoftext|>", "<|assistant|>", "<|end|>"],
        turn_end: "<|end|>",
        marks: &["<|system|>", "<|user|>"],
    },
    Published {
        family: "phi3",
        template: "phi-4",
        special: (Some("<|endoftext|>"), "<|im_end|>"),
        ends: &["<|im_end|>"],
        turn_end: "<|im_end|>",
        marks: &["<|im_start|>", "<|im_sep|>"],
    },
    Published {
        family: "gemma2",
        template: "gemma-2",
        special: (Some("<bos>"), "<eos>"),
        ends: &["<eos>", "<end_of_turn>"],
        turn_end: "<end_of_turn>",
        marks: &["<start_of_turn>"],
    },
    Published {
        family: "gemma3",
        template: "gemma-3",
        special: (Some("<bos>"), "<eos>"),
        ends: &["<eos>", "<end_of_turn>"],
        turn_end: "<end_of_turn>",
        marks: &["<start_of_turn>"],
    },
];

/// The last token that is learned of each answer is the one that ends a turn, and an answer that is generated stops at
/// it: by what is published, and where config.json and generation_config.json say nothing.
#[test]
fn what_is_learned_ends_where_a_turn_does_and_answers_stop_there() {
    let conversations = golden()["conversations"].clone();
    for Published { family, template, special: (bos, eos), ends, turn_end, marks } in PUBLISHED {
        let mut wanted: Vec<&str> = bos.into_iter().chain([eos, turn_end]).collect();
        wanted.extend(ends.iter().chain(marks));
        wanted.sort_unstable();
        wanted.dedup();
        let own = read_json(&models().join("smollm2-135m-instruct/tokenizer.json"));
        let has = |token: &str| own["added_tokens"].as_array().unwrap().iter().any(|own| own["content"] == token);
        wanted.retain(|token| !has(token));
        let added: serde_json::Map<String, Value> =
            wanted.iter().enumerate().map(|(at, token)| ((*token).to_owned(), json!(49_152 + at))).collect();
        let special = json!({ "bos_token": bos, "eos_token": eos });
        let (dir, tokenizer) = with_template(template, &json!({ "special": special, "added": added }));
        let id =
            |token: &str| tokenizer.vocabulary().iter().position(|own| own.as_deref() == Some(token)).unwrap() as u32;
        let turn_end = id(turn_end);
        // Gemma 2 knows no system message.
        let several =
            if template == "gemma-2" { "white space, code and other scripts" } else { "system and two answers" };
        for what in ["one answer", several] {
            let turns = turns(&conversations[what]);
            let chat = tokenizer.encode_chat(&turns).unwrap();
            let runs = runs(&chat.labels);
            assert_eq!(runs.len(), turns.iter().filter(|turn| turn.role == "assistant").count(), "{template}: {what}");
            for [first, behind] in runs {
                let learned = &chat.input_ids[first..behind];
                let ends = learned.iter().filter(|&&id| id == turn_end).count();
                assert!(ends == 1 && learned.last() == Some(&turn_end), "{template}: {what}: {learned:?}");
            }
        }
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/golden/{family}/config.json"));
        let mut arch = Arch { vocab_size: 50_000, eos_token_ids: Vec::new(), ..Arch::from_file(&config).unwrap() };
        let alone = Stop::of_model(dir.path(), &arch, &tokenizer, true).unwrap().tokens;
        assert!(alone.contains(&turn_end), "{template}: {alone:?} without {turn_end}");
        let ids: Vec<u32> = ends.iter().map(|end| id(end)).collect();
        arch.eos_token_ids = ids[..1].to_vec();
        fs::write(dir.path().join("generation_config.json"), json!({ "eos_token_id": ids }).to_string()).unwrap();
        let all = Stop::of_model(dir.path(), &arch, &tokenizer, true).unwrap().tokens;
        assert!(ids.iter().chain([&turn_end]).all(|id| all.contains(id)), "{template}: {all:?} without {ids:?}");
    }
}
