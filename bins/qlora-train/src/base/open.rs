//! `Checkpoint::open`: everything that can be wrong with a checkpoint, found from its headers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::base_name::BaseName;
use super::locate::{Files, INDEX, locate, unlisted_shards};
use super::quantized::{Nf4Entry, OriginalBase, QuantizationConfig, has_parts};
use super::{Checkpoint, StoredTensor};
use crate::arch::{Arch, Wrapper, text_config};
use crate::bail_usage;
use crate::error::Result;
use crate::files::json::{Keys, read_object};
use crate::files::safetensors::TensorFile;

impl Checkpoint {
    /// Opens and validates a directory; reads `config.json`, the index and the headers, no weights. Everything wrong
    /// is [`Error::Refused`](crate::error::Error::Refused).
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            bail_usage!("{}: found no such directory, expected a model in Hugging Face format", dir.display());
        }
        let config_path = dir.join("config.json");
        if config_path.symlink_metadata().is_err() {
            if dir.join("adapter_config.json").is_file() {
                bail_usage!(
                    "{}: is an adapter (adapter_config.json), expected a model in Hugging Face format: give the base of the \
                     adapter, or merge the two first (`qlora-train merge --adapter`)",
                    dir.display()
                );
            }
            bail_usage!(
                "{}: found no such file, expected the config.json of a model in Hugging Face format",
                config_path.display()
            );
        }
        let json = read_object(&config_path)?;
        let (mut arch, unused) = Arch::with_note(&config_path, &json)?;
        let json = text_of(&config_path, json)?;
        let quantization = QuantizationConfig::from_keys(&Keys::new(&config_path, &json))?;

        let Files { paths, index } = locate(dir)?;
        let mut files = Vec::with_capacity(paths.len());
        let mut absent = Vec::new();
        for path in paths.iter().map(|path| dir.join(path)) {
            match index.is_some() && path.symlink_metadata().is_err() {
                true => absent.push(path),
                false => files.push(TensorFile::open(&path)?),
            }
        }
        let mut notes = Vec::from_iter(unused);
        let mut index = index;
        if let Some(wrapper) = arch.wrapper {
            let mut others = 0;
            for file in &mut files {
                others += keep_text(file)?;
            }
            if let Some(index) = &mut index {
                text_only(&dir.join(INDEX), index)?;
            }
            notes.push(format!(
                "{}: of a {}, the text model is used ({}); {} of what is around it {} not",
                config_path.display(),
                wrapper.architecture,
                arch.family.architecture,
                crate::report::count(others as u64, "tensor"),
                if others == 1 { "is" } else { "are" }
            ));
        }
        let needed: BTreeSet<String> = arch.tensors().into_iter().map(|(name, _)| name).collect();
        if is_bare(&needed, arch.names.head, &files) {
            for file in &mut files {
                with_prefix(&needed, &mut file.tensors);
            }
            if let Some(index) = &mut index {
                with_prefix(&needed, index);
            }
            notes.push(format!(
                "{}: the names of tensors have no `{PREFIX}`, as where a model is saved without its output layer: read \
                 as if they had it",
                dir.display()
            ));
        }
        let mut owners = owners(&files)?;
        if let Some(index) = index {
            let index = Index {
                path: dir.join(INDEX),
                shard_of: index,
                shards: paths,
                absent,
                wrapped: arch.wrapper.is_some(),
            };
            index.take_unlisted_shards(dir, &needed, &mut files, &mut owners)?;
            index.check_absent(&needed, &owners)?;
            notes.extend(index.drop_unlisted(&needed, &files, &mut owners));
        }
        if arch.tie_word_embeddings && has_own_head(&arch, &files, &owners)? {
            crate::report::warning!(
                "{}: config.json ties `{}` to the embedding, but the files hold it with other values: they are used, as \
                 transformers 5 does; set `tie_word_embeddings` to false in config.json",
                dir.display(),
                arch.names.head
            );
            arch.tie_word_embeddings = false;
        }
        let original = if quantization.is_some() { OriginalBase::of(&files)? } else { None };
        let base_name = original.as_ref().map_or_else(|| BaseName::of(dir, &json), |original| original.name.clone());
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            arch,
            base_name,
            files: Arc::new(files),
            tensors: BTreeMap::new(),
            notes,
            quantization: None,
            original,
            weights_dir: None,
        };
        let used = checkpoint.take_expected(&owners, quantization.as_ref())?;
        checkpoint.check_unexpected(&owners, &used)?;
        Ok(checkpoint)
    }

    /// Fills `tensors`; returns the names of the stored tensors that they are made of.
    fn take_expected(
        &mut self,
        owners: &BTreeMap<String, usize>,
        quantization: Option<&QuantizationConfig>,
    ) -> Result<BTreeSet<String>> {
        let expected = self.arch.tensors();
        let missing: Vec<&str> =
            expected.iter().map(|(name, _)| name.as_str()).filter(|name| !owners.contains_key(*name)).collect();
        if let [first, others @ ..] = &missing[..] {
            let hint = match (missing.len(), *first) {
                (1, "lm_head.weight") => "; if it is tied to the embedding, set `tie_word_embeddings` in config.json",
                _ => "",
            };
            bail_usage!(
                "{}: tensor `{first}`: found nothing{}, expected shape {:?} as config.json says{hint}",
                self.dir.display(),
                and_more(others.len(), " of that kind"),
                expected.iter().find(|(name, _)| name == first).map_or(&[][..], |(_, shape)| shape)
            );
        }
        let mut used = BTreeSet::new();
        for (name, shape) in expected {
            let entry = match quantization {
                Some(_) if self.is_linear(&name) && has_parts(owners, &name) => {
                    let entry = Nf4Entry::open(&name, &shape, &self.files, owners)?;
                    self.check_alike(&name, &entry)?;
                    used.extend(entry.parts.keys().map(|part| format!("{name}{part}")));
                    StoredTensor::Nf4(Arc::new(entry))
                }
                None if self.is_linear(&name) && has_parts(owners, &name) => bail_usage!(
                    "{}: tensor `{name}`: found parts of a quantized weight beside it, but no `quantization_config` in \
                     config.json, expected both or neither: get config.json of the quantized model",
                    self.files[owners[&name]].path().display()
                ),
                _ => {
                    let entry = self.take_dense(&name, &shape, owners[&name], quantization)?;
                    used.insert(name.clone());
                    entry
                }
            };
            self.tensors.insert(name, entry);
        }
        Ok(used)
    }

    fn take_dense(
        &self,
        name: &str,
        shape: &[usize],
        owner: usize,
        quantization: Option<&QuantizationConfig>,
    ) -> Result<StoredTensor> {
        let (file, info) = (&self.files[owner], &self.files[owner].tensors[name]);
        let shown = file.path().display();
        let module = name.trim_end_matches(".weight");
        // The files show whether there is an output layer, whatever config.json says.
        if quantization
            .is_some_and(|config| self.is_linear(name) && name != self.arch.names.head && !config.skips(module))
        {
            bail_usage!(
                "{shown}: tensor `{name}`: found {} {:?} without a quant_state, expected an NF4 weight with the tensor \
                 `{name}.quant_state.bitsandbytes__nf4`, or `{module}` in `llm_int8_skip_modules` of config.json: the \
                 checkpoint is a mixture of two, or incomplete; get it again",
                info.dtype,
                info.shape
            );
        }
        if info.shape != shape {
            bail_usage!(
                "{shown}: tensor `{name}`: found shape {:?}, expected {shape:?} as config.json says",
                info.shape
            );
        }
        file.stored_type(name, info)?;
        Ok(StoredTensor::Dense(owner, info.clone()))
    }

    /// Refuses weights of one checkpoint that are quantized in different ways.
    fn check_alike(&mut self, name: &str, entry: &Nf4Entry) -> Result<()> {
        let earlier = *self.quantization.get_or_insert(entry.options);
        if earlier != entry.options {
            let double = |double_quant| if double_quant { "with" } else { "without" };
            bail_usage!(
                "{}: tensor `{name}`: found block size {} {} double quantization, expected {} {} it as in the others: \
                 the checkpoint is a mixture of two, get it again",
                self.files[entry.parts[""].0].path().display(),
                entry.options.block_size,
                double(entry.options.double_quant),
                earlier.block_size,
                double(earlier.double_quant)
            );
        }
        Ok(())
    }

    fn check_unexpected(&mut self, owners: &BTreeMap<String, usize>, used: &BTreeSet<String>) -> Result<()> {
        let mut unknown = Vec::new();
        for (name, &owner) in owners.iter().filter(|(name, _)| !used.contains(*name)) {
            let file = &self.files[owner];
            if name.ends_with(".rotary_emb.inv_freq") {
                // Old exports store the rotary frequencies; they follow from config.json.
                self.notes
                    .push(format!("{}: tensor `{name}` follows from config.json: not used", file.path().display()));
            } else if name == self.arch.names.head && self.arch.tie_word_embeddings {
                self.notes.push(format!(
                    "{}: tensor `{name}` is not used: it is the embedding, to which config.json ties it",
                    file.path().display()
                ));
            } else {
                unknown.push((name, file));
            }
        }
        let Some((name, file)) = unknown.first() else { return Ok(()) };
        let shown = file.path().display();
        let more = and_more(unknown.len() - 1, "");
        if unknown.iter().any(|(name, _)| name.contains(".weight.") || name.ends_with("_scale_inv")) {
            bail_usage!(
                "{shown}: tensor `{name}`{more}: found part of a quantized weight where none is expected: weights in \
                 NF4 are read where `quantization_config` of config.json names them, and of linear layers only; use the \
                 original model"
            );
        }
        let hint = if name.ends_with(".bias") {
            " (`attention_bias` and `mlp_bias` of config.json say which biases there are)"
        } else {
            ""
        };
        bail_usage!(
            "{shown}: tensor `{name}`{more}: found a tensor that is not part of a {} by config.json{hint}, expected none",
            self.arch.family.architecture
        );
    }

    /// The weights that bitsandbytes quantizes.
    pub(super) fn is_linear(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight");
        name == self.arch.names.head || module.is_some_and(|module| self.arch.find(module).is_some())
    }
}

/// config.json, of the text model alone where it is one of a larger model.
pub(super) fn text_object(config_path: &Path) -> Result<Map<String, Value>> {
    text_of(config_path, read_object(config_path)?)
}

fn text_of(config_path: &Path, json: Map<String, Value>) -> Result<Map<String, Value>> {
    let Some((_, mut text)) = text_config(config_path, &json)? else { return Ok(json) };
    let class = Arch::from_json(config_path, &json)?.family.architecture;
    text.insert("architectures".to_owned(), vec![class].into());
    Ok(text)
}

/// Gives the tensors of a text model in a file the names that they have alone; returns how many others were left out.
fn keep_text(file: &mut TensorFile) -> Result<usize> {
    let path = file.path().to_owned();
    text_only(&path, &mut file.tensors)
}

/// Renames what `source` says of tensors, as [`keep_text`] does. Refused: two that would have one name.
fn text_only<T>(source: &Path, tensors: &mut BTreeMap<String, T>) -> Result<usize> {
    let before = tensors.len();
    let mut own = BTreeMap::new();
    for (name, found) in std::mem::take(tensors) {
        let Some(alone) = Wrapper::text_name(&name) else { continue };
        match own.entry(alone) {
            Entry::Vacant(entry) => _ = entry.insert((name, found)),
            Entry::Occupied(entry) => bail_usage!(
                "{}: tensors `{}` and `{name}`: found two that are `{}` of the text model, expected one: remove the \
                 one that is not to be used",
                source.display(),
                entry.get().0,
                entry.key()
            ),
        }
    }
    *tensors = own.into_iter().map(|(alone, (_, found))| (alone, found)).collect();
    Ok(before - tensors.len())
}

/// Prefix of the names of all tensors but the output layer's.
const PREFIX: &str = "model.";

/// True if files name the tensors of a model as its inner part alone does (`LlamaModel`), which transformers reads too.
fn is_bare(needed: &BTreeSet<String>, head: &str, files: &[TensorFile]) -> bool {
    let names = || files.iter().flat_map(|file| file.tensors.keys()).filter(|name| *name != head);
    names().all(|name| !is_needed(needed, name)) && names().any(|name| is_needed(needed, &format!("{PREFIX}{name}")))
}

/// Gives tensors the names that they have in the whole model.
fn with_prefix<T>(needed: &BTreeSet<String>, tensors: &mut BTreeMap<String, T>) {
    let named = |(name, found): (String, T)| {
        let whole = format!("{PREFIX}{name}");
        (if is_needed(needed, &whole) { whole } else { name }, found)
    };
    *tensors = std::mem::take(tensors).into_iter().map(named).collect();
}

/// Elements of the output layer and the embedding that are compared at a time.
const COMPARED: usize = 1 << 20;

/// True if the files hold an output layer with other values than the embedding's. Refused: an output layer of another
/// shape.
fn has_own_head(arch: &Arch, files: &[TensorFile], owners: &BTreeMap<String, usize>) -> Result<bool> {
    let (head, embedding) = (arch.names.head, arch.names.embedding);
    let (Some(&head_file), Some(&embedding_file)) = (owners.get(head), owners.get(embedding)) else { return Ok(false) };
    if has_parts(owners, head) {
        return Ok(true);
    }
    let (head_file, embedding_file) = (&files[head_file], &files[embedding_file]);
    let (head_info, embedding_info) = (&head_file.tensors[head], &embedding_file.tensors[embedding]);
    let expected = [arch.vocab_size, arch.hidden_size];
    if head_info.shape[..] != expected {
        bail_usage!(
            "{}: tensor `{head}`: found shape {:?}, expected {expected:?}, or none: config.json ties it",
            head_file.path().display(),
            head_info.shape
        );
    }
    if embedding_info.shape != head_info.shape {
        // An embedding of another shape is refused by name later.
        return Ok(false);
    }
    let elements = arch.vocab_size * arch.hidden_size;
    for from in (0..elements).step_by(COMPARED) {
        let range = from..elements.min(from + COMPARED);
        let own = head_file.read_range_f32(head, head_info, range.clone())?;
        if own != embedding_file.read_range_f32(embedding, embedding_info, range)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn and_more(others: usize, what: &str) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more{what})") }
}

/// Tensor name → position of the file that stores it.
fn owners(files: &[TensorFile]) -> Result<BTreeMap<String, usize>> {
    let mut owners = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        for name in file.tensors.keys() {
            match owners.entry(name.clone()) {
                Entry::Vacant(entry) => entry.insert(i),
                Entry::Occupied(entry) => bail_usage!(
                    "{}: tensor `{name}`: found it in {} as well, expected every tensor once",
                    file.path().display(),
                    files[*entry.get()].path().display()
                ),
            };
        }
    }
    Ok(owners)
}

/// An index beside the shards that are there, which may be those of another version of the model.
struct Index {
    path: PathBuf,
    /// Tensor name → position in `shards`
    shard_of: BTreeMap<String, usize>,
    /// Relative to the directory
    shards: Vec<PathBuf>,
    /// Those that are not there
    absent: Vec<PathBuf>,
    /// True if the model is the text model of a larger one.
    wrapped: bool,
}

impl Index {
    /// Adds the tensors that are needed and in none of the listed shards, from those that the index does not list.
    fn take_unlisted_shards(
        &self,
        dir: &Path,
        needed: &BTreeSet<String>,
        files: &mut Vec<TensorFile>,
        owners: &mut BTreeMap<String, usize>,
    ) -> Result<()> {
        if needed.iter().all(|name| owners.contains_key(name)) {
            return Ok(());
        }
        for path in unlisted_shards(dir, &self.shards) {
            let mut file = TensorFile::open(&path)?;
            if self.wrapped {
                keep_text(&mut file)?;
            }
            let lacking = |name: &&String| is_needed(needed, name) && !owners.contains_key(*name);
            let taken: Vec<String> = file.tensors.keys().filter(lacking).cloned().collect();
            if !taken.is_empty() {
                owners.extend(taken.into_iter().map(|name| (name, files.len())));
                files.push(file);
            }
        }
        Ok(())
    }

    /// Refuses a shard that is not there where a tensor is missing.
    fn check_absent(&self, needed: &BTreeSet<String>, owners: &BTreeMap<String, usize>) -> Result<()> {
        let Some(missing) = needed.iter().find(|name| !owners.contains_key(*name)) else { return Ok(()) };
        let shard = self.shard_of.get(missing).map(|&shard| self.path.with_file_name(&self.shards[shard]));
        match shard.filter(|shard| self.absent.contains(shard)).or_else(|| self.absent.first().cloned()) {
            Some(shard) => bail_usage!(
                "{}: found no such file, expected a shard that {INDEX} names, with tensor `{missing}`: download it",
                shard.display()
            ),
            None => Ok(()),
        }
    }

    /// Leaves out tensors that are neither listed nor needed; returns a sentence where index and shards differ.
    fn drop_unlisted(
        &self,
        needed: &BTreeSet<String>,
        files: &[TensorFile],
        owners: &mut BTreeMap<String, usize>,
    ) -> Option<String> {
        let name_of = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut differences: Vec<String> =
            self.absent.iter().map(|path| format!("{} is not there", name_of(path))).collect();
        for (name, &shard) in &self.shard_of {
            let (listed, found) = (&self.shards[shard], owners.get(name).map(|&file| name_of(files[file].path())));
            match found {
                Some(found) if *found == listed.to_string_lossy() => (),
                Some(found) => differences.push(format!("`{name}` is in {found}, not in {}", listed.display())),
                None => differences.push(format!("`{name}` is nowhere")),
            }
        }
        differences.extend(
            owners
                .keys()
                .filter(|name| !self.shard_of.contains_key(*name))
                .map(|name| format!("`{name}` is not listed")),
        );
        owners.retain(|name, _| self.shard_of.contains_key(name) || is_needed(needed, name));
        let [first, others @ ..] = &differences[..] else { return None };
        let more = and_more(others.len(), "");
        Some(format!(
            "{}: out of step with its shards: {first}{more}; what the shards hold is used",
            self.path.display()
        ))
    }
}

/// True if a tensor is one of those that are needed, or a part of one.
fn is_needed(needed: &BTreeSet<String>, name: &str) -> bool {
    needed.contains(name) || name.match_indices('.').any(|(dot, _)| needed.contains(&name[..dot]))
}
