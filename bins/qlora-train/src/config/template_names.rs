//! Other trainers' names of chat templates whose text is not built in. They are refused by name: another text in their
//! place would silently train another model.

use std::path::Path;

use super::types::Reject;
use super::yaml::Value;

/// Names of Axolotl's, LLaMA-Factory's and Unsloth's templates without a built-in twin, and what they write. Hyphens
/// and dots are underscores.
const OTHERS: &[(&[&str], &str)] = &[
    (
        &["qwen", "qwen2", "qwen2_5", "qwen_25", "qwen_2_5", "qwen25"],
        "begins with a system turn of its own (\"You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\"), \
         which no built-in template writes; chatml is the same without it",
    ),
    (
        &["smollm2"],
        "begins with a system turn of its own (\"You are a helpful AI assistant named SmolLM, trained by Hugging \
         Face.\"), which no built-in template writes; chatml is the same without it",
    ),
    (
        &[
            "llama3_1",
            "llama3_2",
            "llama3_3",
            "llama_31",
            "llama_3_1",
            "llama_3_2",
            "llama_3_3",
            "llama31",
            "llama32",
            "llama33",
        ],
        "begins with a system turn that writes dates, which no built-in template does; llama3 is the same without it",
    ),
    (
        &["mistral_v1", "mistral_v2v3", "mistral_v3_tekken", "mistral_v7_tekken", "mistral_small"],
        "sets other blanks around [INST] than the built-in mistral, and other tokens come of them",
    ),
    (&["qwen3"], "writes thoughts; qwen3_training keeps them all, and qwen3_nothink writes none"),
    (
        &[
            "qwen3_5",
            "qwen2_vl",
            "phi_4",
            "phi4",
            "gemma3n",
            "gemma_3n",
            "gemma4",
            "gemma4_unified",
            "llama4",
            "llama3_2_vision",
            "llava",
            "pixtral",
            "cohere",
            "command_a",
            "command_a_rag",
            "command_a_tool_use",
            "aya",
            "deepseek_v2",
            "deepseek_v3",
            "exaone",
            "exaone4",
            "falcon_h1",
            "jamba",
            "metharme",
            "nemotron_h",
        ],
        "is not built in",
    ),
];

/// LLaMA-Factory's names of templates that the built-in ones reproduce.
const LLAMA_FACTORY: [&str; 11] =
    ["chatml", "qwen3_nothink", "yi", "smollm", "llama3", "gemma", "gemma2", "gemma3", "phi", "phi3", "alpaca"];

const ADVICE: &str = "leave it out for the model's own template, or give a template file";

/// Begins Axolotl's name of a template for models that have none of their own.
pub const FALLBACK: &str = "tokenizer_default_fallback_";

fn plain(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace(['-', '.'], "_")
}

/// Refuses a value of `chat_template` that is another trainer's name for a text which is not built in.
pub fn check(value: &Value) -> Result<(), Reject> {
    let Value::Str(name) = value else { return Ok(()) };
    if ["{%", "{{"].iter().any(|sign| name.contains(sign)) {
        return Err(Reject::Because(
            "found the text of a template, expected the path of a file: write the text into one, such as \
             chat_template.jinja, and give its path"
                .to_owned(),
        ));
    }
    let own = plain(name);
    let own = own.strip_prefix(FALLBACK).unwrap_or(&own);
    match OTHERS.iter().find(|(names, _)| names.contains(&own)) {
        Some((_, what)) if !Path::new(name).exists() => {
            Err(Reject::Because(format!("the template `{}` {what}: {ADVICE}", name.trim().escape_debug())))
        }
        _ => Ok(()),
    }
}

/// Refuses a value of LLaMA-Factory's `template` whose text differs from the built-in template of that name.
pub fn check_llama_factory(value: &Value) -> Result<(), Reject> {
    check(value)?;
    let Value::Str(name) = value else { return Err(Reject::Wrong) };
    let is_file = name.contains('/') || name.ends_with(".jinja") || Path::new(name).exists();
    if is_file || LLAMA_FACTORY.contains(&plain(name).as_str()) {
        return Ok(());
    }
    Err(Reject::Because(format!(
        "LLaMA-Factory's template `{}` is not built in: `--template false` leaves it out, for the model's own, and \
         `--chat-template` chooses another",
        name.trim().escape_debug()
    )))
}

/// True if a value of `chat_template` is another trainer's name for the model's own template, or announces a file.
pub fn own_template(value: &Value) -> bool {
    matches!(value, Value::Str(name) if ["default", "tokenizer_default", "jinja"].contains(&name.trim()))
}
