//! The chat template of a model with adapters, and the files that keep it beside what was trained.
//!
//! An adapter is used with the template that stands beside it, which is the one that it was trained with if its hash is
//! the recorded one. Without any there, the model's own is used; where that has another hash, it is said.

use crate::adapter::{ADAPTER_MODEL, add_tokenizer_files, metadata};
use crate::base::Checkpoint;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::files::atomic::AtomicFiles;
use crate::files::json::read_object;
use crate::files::regular;
use crate::files::safetensors::TensorFile;
use crate::refuse;
use crate::report::warning;
use std::io::Write;
use std::path::{Path, PathBuf};

const TEMPLATE_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// The base's tokenizer with the template that `chat_template` chooses, else the one that stands beside the adapters,
/// else the base's own. Refused: adapters that were trained with different templates.
pub fn open_tokenizer(
    chat_template: Option<&str>,
    checkpoint: &Checkpoint,
    adapters: &[PathBuf],
) -> Result<ChatTokenizer> {
    let mut tokenizer = ChatTokenizer::open(checkpoint.dir(), chat_template)?;
    let chosen = tokenizer.template_is_chosen();
    let mut used: Option<&PathBuf> = None;
    for adapter in adapters {
        let Some(Trained { recorded, tokenizer: beside }) = trained_with(checkpoint.dir(), adapter)? else { continue };
        let own = tokenizer.template_hash();
        let held = beside.as_ref().and_then(ChatTokenizer::template_hash);
        let Some(theirs) = beside.filter(|_| !chosen) else {
            match recorded.or(held.clone()) {
                hash if hash == own => used = Some(adapter),
                _ if held.is_some() => warning!(
                    "{}: was trained with another chat template than the one chosen; leave chat_template out to use it",
                    adapter.display()
                ),
                hash => warning!(
                    "{}: was trained with another chat template (SHA-256 {}) than the one in use ({}), and does not \
                     hold it: its answers may differ from what it learned",
                    adapter.display(),
                    short(&hash.unwrap_or_default()),
                    tokenizer.template_origin()
                ),
            }
            continue;
        };
        // Who changes the file beside an adapter wants it used; every other program uses it too.
        if let Some(recorded) = recorded.filter(|recorded| held.as_ref() != Some(recorded)) {
            warning!(
                "{}: is not the chat template that this adapter was trained with (SHA-256 {}): it was changed since, and \
                 is used as it is now, so that answers may differ from what was learned; {}",
                theirs.template_origin(),
                short(&recorded),
                match own == Some(recorded.clone()) {
                    true => "without it there, that of the model is used, which is the one of the training",
                    false => "put the one of the training back there",
                }
            );
        }
        if own == held {
            used = Some(adapter);
            continue;
        }
        if let Some(other) = used {
            refuse!(
                "{}: was trained with another chat template than {}: choose one with --chat-template, or use them one at a \
                 time",
                adapter.display(),
                other.display()
            );
        }
        (tokenizer, used) = (theirs, Some(adapter));
    }
    Ok(tokenizer)
}

/// The first characters of a hash.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// What an adapter says of its chat template.
struct Trained {
    /// Hash of the one that it was trained with. None: it is another program's, and does not say.
    recorded: Option<String>,
    /// With the template that stands beside it. None: there is none.
    tokenizer: Option<ChatTokenizer>,
}

/// What an adapter was trained with. None: it does not say, and holds no template.
fn trained_with(base: &Path, adapter: &Path) -> Result<Option<Trained>> {
    let file = adapter.join(ADAPTER_MODEL);
    let recorded = match regular::is_there(&file)? {
        true => TensorFile::open(&file)?.metadata.get(metadata::CHAT_TEMPLATE_SHA256).cloned(),
        false => None,
    };
    let tokenizer = ChatTokenizer::open_with_template_of(base, adapter)?;
    let says = recorded.is_some() || tokenizer.is_some();
    Ok(says.then_some(Trained { recorded, tokenizer }))
}

/// Adds the tokenizer of the base to what is trained, with the chat template that was trained with.
pub(crate) fn add_tokenizer(base: &Path, tokenizer: Option<&ChatTokenizer>, files: &mut AtomicFiles) -> Result<()> {
    let Some(source) = tokenizer.and_then(ChatTokenizer::chosen_template) else {
        return add_tokenizer_files(base, files, &[]).map(drop);
    };
    add_tokenizer_files(base, files, &[TEMPLATE_FILE, CONFIG_FILE])?;
    // Programs read one of two places, and some the older one first.
    let config = base.join(CONFIG_FILE);
    let mut object = match config.is_file() {
        true => read_object(&config)?,
        false => serde_json::Map::new(),
    };
    object.insert("chat_template".to_owned(), source.into());
    files.add(TEMPLATE_FILE, |to| to.write_all(source.as_bytes()))?;
    files.add(CONFIG_FILE, |to| Ok(serde_json::to_writer_pretty(to, &object)?))
}
