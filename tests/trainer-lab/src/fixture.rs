//! A byte-level tokenizer of a few hundred tokens, templates in the styles of well-known models, and files of rows.

use std::path::{Path, PathBuf};

use qlora_train::config::PromptCompletion;
use qlora_train::data::{ChatTokenizer, DataOptions, Dataset, Message, load};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

pub const SPECIAL: [&str; 9] =
    ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|start|>", "<|stop|>", "[INST]", "[/INST]"];

pub const CHATML: &str = r"{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Begins with a BOS, trims what is said, and ends turns without a line break.
pub const LLAMA3: &str = r"{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '<|stop|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|stop|>\n\n' }}
{%- endif %}";

/// No mark before an answer but the end of the question, and turns must alternate.
pub const INST: &str = r"{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate user/assistant') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}";

/// Writes an empty reasoning block in the last turn and drops the reasoning of earlier ones.
pub const THINKING: &str = r"{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set said = message.content.split('</think>')[-1].lstrip('\n') %}
{%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in message.content else '' %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}
{{- said + '<|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";

/// Closes the whole conversation, and only that, with an EOS; the prompt to answer opens a reasoning block that is
/// in no answer.
pub const CLOSING: &str = r"{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|stop|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n<think>\n' }}{% else %}{{ eos_token }}{% endif %}";

/// Spelling of a byte in byte-level tokenizers.
fn spelling(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(byte) {
        return byte as char;
    }
    let before = (0..byte).filter(|&b| !plain(b)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

/// A `tokenizer.json`: one token a byte, the merges `h e`, `he l` and `Ġ w`, then [`SPECIAL`].
pub fn tokenizer_json() -> Value {
    tokenizer_json_of(&Vec::from_iter(0..=255))
}

/// A `tokenizer.json` with tokens of these bytes alone, those of the merges among them; others are left out of texts.
fn tokenizer_json_of(bytes: &[u8]) -> Value {
    let mut vocab = Map::new();
    let letters = bytes.iter().map(|&byte| spelling(byte).to_string());
    for (id, token) in letters.chain(["he", "hel", "Ġw"].map(str::to_owned)).enumerate() {
        vocab.insert(token, json!(id));
    }
    let first = vocab.len();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(at, token)| {
            json!({"id": first + at, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [first], "tokens": ["<bos>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": ["h e", "he l", "Ġ w"]}
    })
}

pub const VOCAB_SIZE: usize = 259 + SPECIAL.len();

/// The settings of the tokenizer; pad = eos, as many models have it.
pub fn tokenizer_config(template: Option<&str>) -> Value {
    let mut config =
        json!({"bos_token": "<bos>", "eos_token": {"content": "<eos>", "special": true}, "pad_token": "<eos>"});
    if let Some(template) = template {
        config["chat_template"] = template.into();
    }
    config
}

pub fn model_dir(template: Option<&str>) -> TempDir {
    model_dir_of(&tokenizer_json(), template)
}

/// [`model_dir`] with a tokenizer that is opened in a fraction of the time: of small letters, blanks and ends of lines,
/// 31 tokens and then [`SPECIAL`].
pub fn small_model_dir(template: Option<&str>) -> TempDir {
    model_dir_of(&tokenizer_json_of(b"\n abcdefghijklmnopqrstuvwxyz"), template)
}

fn model_dir_of(tokenizer: &Value, template: Option<&str>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_json(dir.path(), "tokenizer.json", tokenizer);
    write_json(dir.path(), "tokenizer_config.json", &tokenizer_config(template));
    dir
}

/// A model's directory whose `tokenizer.json` holds `value` at this place (a JSON pointer), which has to be there.
pub fn model_dir_with(place: &str, value: &Value) -> TempDir {
    let dir = model_dir(Some(CHATML));
    let mut file = tokenizer_json();
    match file.pointer_mut(place) {
        Some(there) => *there = value.clone(),
        None => panic!("{place} is no place of the fixture"),
    }
    write_json(dir.path(), "tokenizer.json", &file);
    dir
}

pub fn write_json(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).unwrap();
}

pub fn chat_tokenizer(template: &str) -> ChatTokenizer {
    ChatTokenizer::open(model_dir(Some(template)).path(), None).unwrap()
}

/// `("user", "hello")` …
pub fn turns(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(role, content)).collect()
}

/// The supervised spans of a conversation as text.
pub fn supervised(tokenizer: &ChatTokenizer, conversation: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let chat = tokenizer.render_chat(&turns(conversation))?;
    Ok(chat.supervised.iter().map(|span| chat.text[span.clone()].to_owned()).collect())
}

pub struct File {
    _dir: TempDir,
    pub path: PathBuf,
}

pub fn file(name: &str, content: impl AsRef<[u8]>) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    File { _dir: dir, path }
}

pub fn options() -> DataOptions {
    let prompt_completion = PromptCompletion::Text;
    DataOptions { vocab_size: VOCAB_SIZE, eos_token_ids: vec![260], prompt_completion, ..DataOptions::default() }
}

pub fn load_one(content: impl AsRef<[u8]>, tokenizer: Option<&ChatTokenizer>) -> qlora_train::error::Result<Dataset> {
    let file = file("rows.jsonl", content);
    load(std::slice::from_ref(&file.path), tokenizer, &options())
}

/// The message of a refusal (exit status 2); anything else fails the test.
pub fn refusal<T>(result: qlora_train::error::Result<T>) -> String {
    match result {
        Ok(_) => panic!("expected a refusal"),
        Err(error) => {
            assert_eq!(error.exit_status(), 2, "{error}");
            error.to_string()
        }
    }
}

#[track_caller]
pub fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}
