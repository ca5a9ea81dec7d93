//! The built-in chat templates against transformers (`tests/golden/builtin_files.py`): texts, and what is learned of
//! them.

use std::path::Path;

use qlora_train::data::{Builtin, ChatTokenizer, UNSUPERVISED};
use serde_json::{Value, json};
use tempfile::TempDir;

use trainer_lab::fixture::*;

/// The fixture's tokenizer with a template's own tokens, under that template.
fn tokenizer(name: &str, added: &Value) -> (TempDir, ChatTokenizer) {
    let mut file = tokenizer_json();
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    for token in added.as_array().unwrap() {
        if tokens.iter().all(|known| known["content"] != *token) {
            let id = tokens.last().unwrap()["id"].as_u64().unwrap() + 1;
            let mut entry = tokens[0].clone();
            (entry["id"], entry["content"]) = (id.into(), token.clone());
            tokens.push(entry);
        }
    }
    let dir = model_dir(None);
    write_json(dir.path(), "tokenizer.json", &file);
    let tokenizer = ChatTokenizer::open(dir.path(), Some(name)).unwrap();
    (dir, tokenizer)
}

#[test]
fn the_built_in_templates_are_rendered_as_transformers_renders_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/builtin.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let templates = golden["templates"].as_object().unwrap();
    let is_there = |builtin: &Builtin| templates.keys().any(|name| Builtin::from_name(name) == Some(*builtin));
    let missing: Vec<&str> = Builtin::all().filter(|builtin| !is_there(builtin)).map(Builtin::name).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let (mut texts, mut spans, mut refused) = (0, 0, 0);
    for (name, facts) in templates {
        let (_dir, tokenizer) = tokenizer(name, &facts["added"]);
        let source = tokenizer.template().unwrap().source();
        assert_eq!(source, facts["source"], "{name} changed: run tests/golden/builtin_files.py");
        for (what, case) in facts["cases"].as_object().unwrap() {
            let place = format!("{name}: {what}");
            let row = &golden["conversations"][what];
            let file = file("rows.jsonl", row.to_string());
            let options = qlora_train::data::DataOptions { vocab_size: 1000, ..options() };
            let loaded = qlora_train::data::load(std::slice::from_ref(&file.path), Some(&tokenizer), &options);
            if case.get("refused").is_some() {
                assert_says(&refusal(loaded), &["rows.jsonl: line 1", "the chat template refuses the conversation"]);
                refused += 1;
                continue;
            }
            let data = loaded.unwrap_or_else(|error| panic!("{place}: {error}"));
            let row = &data.rows[0];
            assert_eq!(json!(tokenizer.decode(&row.input_ids, false).unwrap()), case["text"], "{place}");
            texts += 1;
            let Some(expected) = case.get("supervised") else { continue };
            let (mut found, mut before): (Vec<Vec<u32>>, _) = (Vec::new(), false);
            for (&id, &label) in row.input_ids.iter().zip(&row.labels) {
                let learned = label != UNSUPERVISED;
                if learned && !before {
                    found.push(Vec::new());
                }
                if learned {
                    found.last_mut().unwrap().push(id);
                }
                before = learned;
            }
            let found: Vec<String> = found.iter().map(|ids| tokenizer.decode(ids, false).unwrap()).collect();
            // Two answers in a row, with nothing between them, are one run of tokens.
            let expected: Vec<&str> = expected.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
            assert_eq!(found.concat(), expected.concat(), "{place}");
            assert!(found.len() <= expected.len(), "{place}");
            spans += 1;
        }
    }
    assert_eq!((texts, spans, refused), (189, 179, 5), "texts, masks, refusals");
}
