//! docs/recipes.md, run: its files are written, and its commands run by a shell, on a tiny model in the place of the
//! models that it names.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::sandbox::Sandbox;

const PAGE: &str = include_str!("../../../../docs/recipes.md");
/// The models of the page; the tiny one stands in for them.
const MODELS: [&str; 3] = ["Llama-3.1-70B-Instruct", "Llama-3.1-8B-Instruct", "Llama-3.1-8B"];
/// A template that writes tools and calls.
const TEMPLATE: &str = "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}\
    {% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}\
    {% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A fenced block: what follows the fence, `sh` or `jsonl chat.jsonl`, and its lines.
struct Block {
    info: String,
    text: String,
}

/// The heading of every recipe, and its blocks.
fn recipes() -> Vec<(&'static str, Vec<Block>)> {
    let mut recipes: Vec<(&str, Vec<Block>)> = Vec::new();
    let mut open: Option<Block> = None;
    for line in PAGE.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some(Block { info: info.to_owned(), text: String::new() }),
            (Some(_), Some(_)) => {
                let blocks = &mut recipes.last_mut().expect("a block below a heading").1;
                blocks.extend(open.take());
            }
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => recipes.extend(line.strip_prefix("## ").map(|heading| (heading, Vec::new()))),
        }
    }
    assert!(open.is_none(), "a block is not closed");
    recipes
}

/// The command as the test runs it: on the tiny model, and for a few steps.
fn tiny(text: &str) -> String {
    let text = MODELS.iter().fold(text.to_owned(), |text, model| text.replace(model, "model"));
    let trains = text.starts_with("qlora-train train");
    if trains { format!("{text} --max-steps 4 --allow all") } else { text }
}

#[test]
fn every_recipe_of_the_docs_runs() {
    let program = Path::new(env!("CARGO_BIN_EXE_qlora-train"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    let sandbox = Sandbox::chat();
    let mut config: Value = serde_json::from_str(&sandbox.read("model/tokenizer_config.json")).unwrap();
    config["chat_template"] = TEMPLATE.into();
    sandbox.write("model/tokenizer_config.json", &config.to_string());
    let recipes = recipes();
    assert!(recipes.len() >= 7, "{} recipes", recipes.len());
    for (heading, blocks) in recipes {
        let mut ran = 0;
        for Block { info, text } in blocks {
            match info.split_once(' ') {
                Some((_, file)) => sandbox.write(file, &tiny(&text)),
                None => assert_eq!(info, "sh", "{heading}"),
            }
            for line in text.lines().filter(|_| info == "sh") {
                assert!(line.starts_with("qlora-train "), "{heading}: {line}");
                let mut shell = Command::new("sh");
                let done = shell.args(["-c", &tiny(line)]).env("PATH", &path).current_dir(sandbox.path("")).output();
                let done = done.unwrap();
                let said = String::from_utf8_lossy(&done.stderr);
                assert!(done.status.success(), "{heading}: {line}: {said}");
                ran += 1;
                if let Some((_, dir)) = line.split_once("--output-dir ").filter(|_| line.contains(" train ")) {
                    let dir = dir.split_whitespace().next().unwrap();
                    assert!(sandbox.path(dir).join("adapter_model.safetensors").is_file(), "{heading}: {line}");
                }
            }
        }
        assert!(ran > 1, "{heading} has no commands");
    }
    for adapter in ["from-axolotl", "from-mlx", "big"] {
        assert!(sandbox.path(adapter).join("adapter_model.safetensors").is_file(), "{adapter}");
    }
    assert!(sandbox.path("gguf/Modelfile").is_file() && sandbox.path("merged/config.json").is_file());
}
