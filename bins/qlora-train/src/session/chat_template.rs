//! The chat template of a model with adapters, and the files that keep it beside what was trained.
//!
//! An adapter is used with the template that stands beside it, which is the one that it was trained with if its hash is
//! the recorded one. Without any there, the model's own is used; where that has another hash, it is said.

use crate::adapter::{ADAPTER_MODEL, add_tokenizer_files, metadata};
use crate::bail_usage;
use crate::base::Checkpoint;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::files::atomic::AtomicFiles;
use crate::files::json::read_object;
use crate::files::regular;
use crate::files::safetensors::TensorFile;
use crate::report::warning;
use std::io::Write;
use std::path::{Path, PathBuf};

const TEMPLATE_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// The base's tokenizer with the template that `chat_template` chooses, otherwise the one that stands beside the
/// adapters, otherwise the base's own. Refused: adapters that were trained with different templates.
pub fn open_tokenizer(
    chat_template: Option<&str>,
    checkpoint: &Checkpoint,
    adapters: &[PathBuf],
) -> Result<ChatTokenizer> {
    let mut tokenizer = ChatTokenizer::open(checkpoint.dir(), chat_template)?;
    let chosen = tokenizer.template_is_chosen();
    let mut used: Option<&PathBuf> = None;
    for adapter in adapters {
        let Some(trained) = Trained::read(adapter)? else { continue };
        let own = tokenizer.template_hash();
        if let Some(text) = trained.warning(adapter, chosen, own.as_deref(), tokenizer.template_origin()) {
            warning!("{text}");
        }
        let Some((_, held)) = trained.held.as_ref().filter(|_| !chosen) else {
            if trained.hash() == own.as_deref() {
                used = Some(adapter);
            }
            continue;
        };
        if own.as_ref() == Some(held) {
            used = Some(adapter);
            continue;
        }
        if let Some(other) = used {
            bail_usage!(
                "{}: was trained with another chat template than {}: choose one with --chat-template, or use them one at a \
                 time",
                adapter.display(),
                other.display()
            );
        }
        let Some(theirs) = ChatTokenizer::open_with_template_of(checkpoint.dir(), adapter)? else { continue };
        (tokenizer, used) = (theirs, Some(adapter));
    }
    Ok(tokenizer)
}

/// Warns where the chat template that is written beside the result of adapters is not the one of their training. It is
/// the first that stands beside one of them, otherwise that of the model in `base` (None: nothing of it is written).
pub fn warn_of_templates(base: Option<&Path>, adapters: &[PathBuf]) {
    // A config may be all that there is of a model.
    let base = base.filter(|base| base.join("tokenizer.json").is_file());
    let own = base.and_then(|base| ChatTokenizer::template_in(base).ok());
    let mut all = Vec::with_capacity(adapters.len());
    for adapter in adapters {
        match Trained::read(adapter) {
            Ok(trained) => all.extend(trained.map(|trained| (adapter, trained))),
            // It goes along all the same.
            Err(error) => warning!("{error}"),
        }
    }
    let first = all.iter().find_map(|(_, trained)| trained.held.as_ref());
    for (adapter, trained) in &all {
        let along = match (&own, first) {
            (Some(own), _) if trained.held.is_some() => own.as_ref(),
            (_, Some(first)) => Some(first),
            (Some(own), None) => own.as_ref(),
            (None, None) => continue,
        };
        let (origin, hash) = along.map_or(("none", None), |(origin, hash)| (origin.as_str(), Some(hash.as_str())));
        if let Some(text) = trained.warning(adapter, false, hash, origin) {
            warning!("{text}");
        }
    }
}

/// The first characters of a hash.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// An adapter's facts on its chat template.
struct Trained {
    /// Hash of the one that it was trained with. None: it is another program's, and does not say.
    recorded: Option<String>,
    /// Place and hash of the one that stands beside it. None: there is none.
    held: Option<(String, String)>,
}

impl Trained {
    /// The template that an adapter was trained with. None: the adapter does not say, and holds no template.
    fn read(adapter: &Path) -> Result<Option<Self>> {
        let file = adapter.join(ADAPTER_MODEL);
        let recorded = match regular::is_there(&file)? {
            true => TensorFile::open(&file)?.metadata.get(metadata::CHAT_TEMPLATE_SHA256).cloned(),
            false => None,
        };
        let held = ChatTokenizer::template_in(adapter)?;
        let says = recorded.is_some() || held.is_some();
        Ok(says.then_some(Self { recorded, held }))
    }

    /// Hash of the template of the training, as far as it is known.
    fn hash(&self) -> Option<&str> {
        self.recorded.as_deref().or(self.held.as_ref().map(|(_, hash)| hash.as_str()))
    }

    /// A sentence for users where the template in use is not the one of the training. `own` and `origin` are hash and
    /// place of the one that is used where none stands beside the adapter, or where one was `chosen`.
    fn warning(&self, adapter: &Path, chosen: bool, own: Option<&str>, origin: &str) -> Option<String> {
        let dir = adapter.display();
        match &self.held {
            // A changed file beside an adapter is meant to be used; every other program uses it too.
            Some((file, held)) if !chosen => {
                let recorded = self.recorded.as_deref().filter(|recorded| *recorded != held.as_str())?;
                let what_to_do = match own == Some(recorded) {
                    true => "without it there, that of the model is used, which is the one of the training",
                    false => "put the one of the training back there",
                };
                Some(format!(
                    "{file}: is not the chat template that this adapter was trained with (SHA-256 {}): it was changed since, \
                     and is used as it is now, so that answers may differ from what was learned; {what_to_do}",
                    short(recorded)
                ))
            }
            _ if self.hash() == own => None,
            Some(_) => Some(format!(
                "{dir}: was trained with another chat template than the one chosen; leave chat_template out to use it"
            )),
            None => Some(format!(
                "{dir}: was trained with another chat template (SHA-256 {}) than the one in use ({origin}), and does not \
                 hold it: its answers may differ from what it learned",
                short(self.hash().unwrap_or_default())
            )),
        }
    }
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
