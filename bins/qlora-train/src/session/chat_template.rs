//! The chat template of a model with adapters, and the files that keep it beside what was trained.
//!
//! An adapter is used with the template that it was trained with: the one of its own directory, if the model's own has
//! another hash than the adapter's record.

use crate::adapter::{ADAPTER_MODEL, add_tokenizer_files, metadata};
use crate::base::Checkpoint;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::files::atomic::AtomicFiles;
use crate::files::json::read_object;
use crate::files::safetensors::TensorFile;
use crate::refuse;
use crate::report::warning;
use std::io::Write;
use std::path::{Path, PathBuf};

const TEMPLATE_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// The base's tokenizer with the template that `chat_template` chooses, else the one that the adapters were trained
/// with, else the base's own. Refused: adapters that were trained with different templates.
pub fn open_tokenizer(
    chat_template: Option<&str>,
    checkpoint: &Checkpoint,
    adapters: &[PathBuf],
) -> Result<ChatTokenizer> {
    let mut tokenizer = ChatTokenizer::open(checkpoint.dir(), chat_template)?;
    let chosen = tokenizer.template_is_chosen();
    let mut used: Option<&PathBuf> = None;
    for adapter in adapters {
        let Some(trained) = trained_with(checkpoint.dir(), adapter)? else { continue };
        let (own, hash) = (tokenizer.template_hash(), trained.hash);
        if own.as_ref() == Some(&hash) {
            used = Some(adapter);
            continue;
        }
        let Some(theirs) = trained.tokenizer else {
            warning!(
                "{}: was trained with another chat template (SHA-256 {}) than the one in use ({}), and does not \
                 hold it: its answers may differ from what it learned",
                adapter.display(),
                short(&hash),
                tokenizer.template_origin()
            );
            continue;
        };
        if chosen {
            warning!(
                "{}: was trained with another chat template ({}) than the one chosen; leave chat_template out to \
                 use it",
                adapter.display(),
                theirs.template_origin()
            );
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

struct Trained {
    hash: String,
    /// With the template that the adapter's directory holds. None: it holds none, or another than it was trained with.
    tokenizer: Option<ChatTokenizer>,
}

/// What an adapter was trained with. None: it does not say, and holds no template.
fn trained_with(base: &Path, adapter: &Path) -> Result<Option<Trained>> {
    let recorded = match adapter.join(ADAPTER_MODEL) {
        file if file.is_file() => TensorFile::open(&file)?.metadata.get(metadata::CHAT_TEMPLATE_SHA256).cloned(),
        _ => None,
    };
    let tokenizer = ChatTokenizer::open_with_template_of(base, adapter)?;
    let held = tokenizer.as_ref().and_then(ChatTokenizer::template_hash);
    Ok(match (recorded, held) {
        (None, None) => None,
        // Another program's adapter: what it holds is what it was trained with.
        (None, Some(hash)) => Some(Trained { hash, tokenizer }),
        (Some(hash), held) => {
            let tokenizer = tokenizer.filter(|_| held.as_ref() == Some(&hash));
            Some(Trained { hash, tokenizer })
        }
    })
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
