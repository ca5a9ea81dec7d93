//! An adapter's directory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;

use safetensors::Dtype;

use super::card::{CURVE, MARK, Training, model_card, plain_card};
use super::fold::multiply_b;
use super::kind::{ADAPTER_CONFIG, ADAPTER_MODEL, check_adapter};
use super::{Adapter, AdapterConfig};
use crate::arch::Wrapper;
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::atomic::{AtomicFiles, SUMS, find_change};
use crate::files::dir::Kind;
use crate::files::json::read_object;
use crate::files::regular;
use crate::files::safetensors::{TensorFile, write_header};
use crate::lora::{ParamId, ParamKind};

const PEFT_PREFIX: &str = "base_model.model.";

pub(crate) const CARD: &str = "README.md";
/// Limit far above the size of any card of ours.
const MAX_CARD_BYTES: u64 = 1 << 20;

/// Files that an engine needs beside the adapter to build the same prompts.
pub(crate) const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
];

impl Adapter {
    /// Writes the three files, rsLoRA folded; equal adapters give equal bytes. Each file is complete or absent, and
    /// `adapter_config.json`, without which no program takes the directory for an adapter, comes last. A README.md that
    /// somebody else wrote is kept. A `SHA256SUMS` that is there gets the sums of what was written. Failed: an adapter
    /// that does not fit together or holds NaN, or a disk error; nothing is replaced then.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let mut files = AtomicFiles::new(dir)?;
        self.add_to(&mut files)?;
        let sums = files.dir().kind(SUMS).context(|| dir.join(SUMS).display().to_string())?;
        if matches!(sums, Some(Kind::File)) {
            files.update_sums()?;
        }
        files.commit_with_last(ADAPTER_CONFIG)
    }

    /// Adds the three files, as [`save`](Self::save) does.
    pub(crate) fn add_to(&self, files: &mut AtomicFiles) -> Result<()> {
        let source = files.dir().join(ADAPTER_MODEL).display().to_string();
        self.pairs(&source).failure_context(|| "not written".to_owned())?;
        let shapes = self.tensors.iter().map(|(key, (shape, _))| (key.as_str(), &shape[..])).collect();
        let plain = Self { config: self.config.clone(), tensors: BTreeMap::new(), metadata: self.metadata.clone() };
        plain.add_streamed(files, &shapes, &mut |key| Ok(Cow::Borrowed(&self.tensors[key].1[..])))
    }

    /// Adds the three files of an adapter whose tensors are not in memory: `values` gives each by its key, in the order
    /// of the keys, and only one of them is held. A tokenizer that was added before is named by the card as the
    /// adapter's; a card that was added before stays.
    pub(crate) fn add_streamed<'a>(
        &self,
        files: &mut AtomicFiles,
        shapes: &BTreeMap<&str, &[usize]>,
        values: &mut dyn FnMut(&str) -> Result<Cow<'a, [f32]>>,
    ) -> Result<()> {
        let (config, multiplies) = self.config.folded();
        let mut metadata = self.metadata.clone();
        metadata.insert("format".to_owned(), "pt".to_owned());
        files.add(ADAPTER_MODEL, |to| {
            let named: Vec<(String, &[usize])> =
                shapes.iter().map(|(key, shape)| (served_key(key, config.wrapped), *shape)).collect();
            write_header(to, &metadata, named.iter().map(|(key, shape)| (key.as_str(), Dtype::F32, *shape)))?;
            for (key, shape) in shapes {
                let mut tensor = values(key).map_err(io::Error::other)?;
                let is_b = ParamId::from_peft_key(key).is_some_and(|id| id.kind() == ParamKind::LoraB);
                if multiplies && is_b {
                    multiply_b(tensor.to_mut(), shape[1]);
                }
                if let Some(at) = tensor.iter().position(|x| !x.is_finite()) {
                    let width = shape.last().copied().unwrap_or(1).max(1);
                    let (value, row, column) = (tensor[at], at / width, at % width);
                    let found = format!("found {value} at row {row}, column {column}, expected finite numbers");
                    return Err(io::Error::other(format!("tensor `{key}`: {found}")));
                }
                to.write_all(bytemuck::cast_slice(&tensor))?;
            }
            Ok(())
        })?;
        let folded = Self { config, tensors: BTreeMap::new(), metadata };
        match is_ours(files, CARD)? {
            // That of a run, which was added before.
            _ if files.holds(CARD) => {}
            true => {
                let card = plain_card(&folded, files.holds(TOKENIZER_FILES[0]));
                files.add(CARD, |to| to.write_all(card.as_bytes()))?;
            }
            false => {
                let path = files.dir().join(CARD);
                crate::report::warning!("{}: not replaced: it was not written by this program", path.display());
            }
        }
        // serde_json indents by two spaces, as PEFT does.
        files.add(ADAPTER_CONFIG, |to| Ok(serde_json::to_writer_pretty(to, &folded.config.to_json())?))
    }

    /// Writes the card anew, with the facts about the run, and the learning curve (an SVG) beside it. False: the card
    /// that is there is somebody else's, and nothing is added.
    pub(crate) fn add_story(&self, files: &mut AtomicFiles, training: &Training, curve: Option<&str>) -> Result<bool> {
        if !is_ours(files, CARD)? {
            return Ok(false);
        }
        let mut training = training.clone();
        if let Some(curve) = curve
            && is_ours(files, CURVE)?
        {
            files.add(CURVE, |to| writeln!(to, "{curve}{MARK}"))?;
            training.curve = true;
        }
        let (config, _) = self.config.folded();
        let folded = Self { config, tensors: BTreeMap::new(), metadata: self.metadata.clone() };
        files.add(CARD, |to| to.write_all(model_card(&folded, Some(&training)).as_bytes()))?;
        Ok(true)
    }

    /// Reads an adapter of this or another program; bf16 and f16 tensors are widened. Everything wrong with it is
    /// a refusal: [`Error`](crate::error::Error), and so are tensors that are not those that `SHA256SUMS` beside them
    /// names.
    pub fn load(dir: &Path) -> Result<Self> {
        let (config_path, model_path) = (dir.join(ADAPTER_CONFIG), dir.join(ADAPTER_MODEL));
        check_adapter(dir)?;
        if !regular::is_there(&model_path)? {
            let pickle = dir.join("adapter_model.bin").exists();
            let hint = if pickle { ": adapter_model.bin is a pickle, save the adapter again with PEFT" } else { "" };
            bail_usage!("{}: found no such file, expected the adapter's tensors{hint}", model_path.display());
        }
        check_unchanged(dir)?;
        let mut config = AdapterConfig::from_json(&config_path, &read_object(&config_path)?)?;
        let file = TensorFile::open(&model_path)?;
        // Written again, the adapter is for the same class.
        config.wrapped |= file.tensors.keys().any(|name| name.split('.').any(|part| part == "language_model"));
        let mut tensors = BTreeMap::new();
        for (name, info) in &file.tensors {
            let values = (info.shape.clone(), file.read_f32(name, info, |_| ())?);
            if tensors.insert(canonical_key(name), values).is_some() {
                bail_usage!(
                    "{}: tensor `{name}`: found another of the same linear under another prefix",
                    model_path.display()
                );
            }
        }
        let mut metadata = file.metadata;
        metadata.remove("format");
        let adapter = Self { config, tensors, metadata };
        adapter.pairs(&model_path.display().to_string())?;
        Ok(adapter)
    }
}

/// Refuses tensors of which `SHA256SUMS`, where it lies beside them, says that they were others. `adapter_config.json`
/// is edited by hand, as for a base that was moved, and is not compared.
pub(crate) fn check_unchanged(dir: &Path) -> Result<()> {
    match find_change(dir, ADAPTER_MODEL)? {
        None => Ok(()),
        Some(damage) => bail_usage!(
            "{damage}; take another copy of the adapter, or train it anew; if the change is meant, remove {}",
            dir.join(SUMS).display()
        ),
    }
}

/// PEFT's key of a tensor in the class that serves it, which may be the text model or one that is `wrapped` around it.
pub fn served_key(key: &str, wrapped: bool) -> String {
    match key.strip_prefix(PEFT_PREFIX).filter(|_| wrapped) {
        Some(name) => format!("{PEFT_PREFIX}{}", Wrapper::path(name)),
        None => key.to_owned(),
    }
}

/// Path components that wrappers of a model add to its modules.
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Path components that may stand before the layers of a text model.
const INSIDE: [&str; 3] = ["base_model", "model", "language_model"];

/// PEFT's key of a tensor that was saved in another way: from a wrapped model, with the name of the adapter
/// (`.lora_A.default.weight`), or without PEFT's prefix. A key of another kind stays as it is.
fn canonical_key(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    if let [.., "lora_A" | "lora_B", _, "weight"] = parts[..] {
        parts.remove(parts.len() - 2);
    }
    let named = |part: &&str| ["lora_magnitude_vector", "trainable_tokens_delta"].contains(part);
    if let Some(at) = parts.iter().position(named) {
        parts.truncate(at + 1);
    }
    // PEFT's name of the copy that is trained.
    if let Some(at) = parts.iter().position(|part| *part == "modules_to_save") {
        parts.drain(at..parts.len() - 1);
    }
    let path: Vec<&str> = parts.into_iter().skip_while(|part| INSIDE.contains(part)).collect();
    match path[..] {
        ["embed_tokens" | "norm", "weight"] => format!("{PEFT_PREFIX}model.{}", path.join(".")),
        ["lm_head", "weight"] | ["lm_head", "token_adapter", "trainable_tokens_delta"] => {
            format!("{PEFT_PREFIX}{}", path.join("."))
        }
        ["embed_tokens", "token_adapter", "trainable_tokens_delta"] => format!("{PEFT_PREFIX}model.{}", path.join(".")),
        ["layers", .., norm, "weight"] if norm.ends_with("norm") => format!("{PEFT_PREFIX}model.{}", path.join(".")),
        ["layers", .., "lora_A" | "lora_B", "weight"] | ["layers", .., "lora_magnitude_vector"] => {
            format!("{PEFT_PREFIX}model.{}", path.join("."))
        }
        _ => name.to_owned(),
    }
}

/// Bytes of the files that [`copy_tokenizer_files`] copies.
pub fn tokenizer_bytes(base_dir: &Path) -> u64 {
    TOKENIZER_FILES.iter().filter_map(|name| base_dir.join(name).metadata().ok()).map(|file| file.len()).sum()
}

/// True if a name of the card's is free, or stands for a file that this program wrote.
fn is_ours(files: &AtomicFiles, name: &str) -> Result<bool> {
    let path = files.dir().join(name);
    match files.dir().kind(name).context(|| path.display().to_string())? {
        None => Ok(true),
        Some(Kind::File) => {
            let mut text = String::new();
            let read = files.dir().open_file(name).and_then(|file| file.take(MAX_CARD_BYTES).read_to_string(&mut text));
            match read {
                // Ours is text.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
                read => read.map(|_| text.contains(MARK)).context(|| format!("{}: cannot be read", path.display())),
            }
        }
        Some(_) => Ok(false),
    }
}

/// Copies the tokenizer and the chat template of a base beside its adapter, whichever of their files there are, and
/// returns their names. A base without any is no error: tokenized rows need none.
pub fn copy_tokenizer_files(base_dir: &Path, out_dir: &Path) -> Result<Vec<String>> {
    let mut files = AtomicFiles::new(out_dir)?;
    let copied = add_tokenizer_files(base_dir, &mut files, &[])?;
    files.commit()?;
    Ok(copied)
}

/// Adds the files of a base's tokenizer, as [`copy_tokenizer_files`] does, but those that `others` names.
pub(crate) fn add_tokenizer_files(base_dir: &Path, files: &mut AtomicFiles, others: &[&str]) -> Result<Vec<String>> {
    let mut copied = Vec::new();
    let out_dir = files.dir().path();
    let same = base_dir.canonicalize().ok().is_some_and(|base| Some(base) == out_dir.canonicalize().ok());
    let wanted = |name: &&str| !same && !others.contains(name) && base_dir.join(name).is_file();
    for name in TOKENIZER_FILES.into_iter().filter(wanted) {
        let path = base_dir.join(name);
        let mut from = regular::open(&path).context(|| format!("{}: cannot be read", path.display()))?;
        files.add(name, |to| std::io::copy(&mut from, to).map(drop))?;
        copied.push(name.to_owned());
    }
    Ok(copied)
}

#[cfg(test)]
mod tests;
