//! `Checkpoint::open`: everything that can be wrong with a checkpoint, found from its headers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::base_name::BaseName;
use super::locate::{Files, INDEX, locate};
use super::quantized::{Nf4Entry, OriginalBase, QuantizationConfig, has_parts};
use super::{Checkpoint, Entry as Stored};
use crate::arch::Arch;
use crate::error::Result;
use crate::files::json::{Keys, read_object};
use crate::files::safetensors::TensorFile;
use crate::refuse;

impl Checkpoint {
    /// Opens and validates a directory; reads `config.json`, the index and the headers, no weights. Everything wrong
    /// is [`Error::Refused`](crate::error::Error::Refused).
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            refuse!("{}: found no such directory, expected a model in Hugging Face format", dir.display());
        }
        let config_path = dir.join("config.json");
        if config_path.symlink_metadata().is_err() {
            refuse!("{}: found no such file, expected the config.json of a Llama", config_path.display());
        }
        let json = read_object(&config_path)?;
        let arch = Arch::from_json(&config_path, &json)?;
        let quantization = QuantizationConfig::from_keys(&Keys::new(&config_path, &json))?;

        let Files { paths, index } = locate(dir)?;
        let mut files = Vec::with_capacity(paths.len());
        for path in paths.iter().map(|path| dir.join(path)) {
            if index.is_some() && !path.exists() {
                refuse!("{}: found no such file, expected a shard that {INDEX} names: download it", path.display());
            }
            files.push(TensorFile::open(&path)?);
        }
        let owners = owners(&files)?;
        if let Some(index) = index {
            check_index(&dir.join(INDEX), &index, &files, &owners)?;
        }
        let original = if quantization.is_some() { OriginalBase::of(&files)? } else { None };
        let base_name = original.as_ref().map_or_else(|| BaseName::of(dir, &json), |original| original.name.clone());
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            arch,
            base_name,
            files,
            tensors: BTreeMap::new(),
            notes: Vec::new(),
            quantization: None,
            original,
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
            refuse!(
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
                    Stored::Nf4(entry)
                }
                None if self.is_linear(&name) && has_parts(owners, &name) => refuse!(
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
    ) -> Result<Stored> {
        let (file, info) = (&self.files[owner], &self.files[owner].tensors[name]);
        let shown = file.path().display();
        let module = name.trim_end_matches(".weight");
        // An output layer is plain to see, however config.json puts it.
        if quantization
            .is_some_and(|config| self.is_linear(name) && name != self.arch.names.head && !config.skips(module))
        {
            refuse!(
                "{shown}: tensor `{name}`: found {} {:?} without a quant_state, expected an NF4 weight with the tensor \
                 `{name}.quant_state.bitsandbytes__nf4`, or `{module}` in `llm_int8_skip_modules` of config.json: the \
                 checkpoint is a mixture of two, or incomplete; get it again",
                info.dtype,
                info.shape
            );
        }
        if info.shape != shape {
            refuse!("{shown}: tensor `{name}`: found shape {:?}, expected {shape:?} as config.json says", info.shape);
        }
        file.stored_type(name, info)?;
        Ok(Stored::Dense(owner, info.clone()))
    }

    /// All quantized weights of a checkpoint are quantized alike.
    fn check_alike(&mut self, name: &str, entry: &Nf4Entry) -> Result<()> {
        let earlier = *self.quantization.get_or_insert(entry.options);
        if earlier != entry.options {
            let double = |double_quant| if double_quant { "with" } else { "without" };
            refuse!(
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
                let (shape, expected) = (&file.tensors[name].shape, [self.arch.vocab_size, self.arch.hidden_size]);
                if shape[..] != expected {
                    refuse!(
                        "{}: tensor `{name}`: found shape {shape:?}, expected {expected:?}, or none: config.json ties it",
                        file.path().display()
                    );
                }
                self.notes.push(format!(
                    "{}: tensor `{name}` is not used: config.json ties it to the embedding",
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
            refuse!(
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
        refuse!(
            "{shown}: tensor `{name}`{more}: found a tensor that is not part of a Llama by config.json{hint}, expected none"
        );
    }

    /// The weights that bitsandbytes quantizes.
    fn is_linear(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight");
        name == self.arch.names.head || module.is_some_and(|module| self.arch.find(module).is_some())
    }
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
                Entry::Occupied(entry) => refuse!(
                    "{}: tensor `{name}`: found it in {} as well, expected every tensor once",
                    file.path().display(),
                    files[*entry.get()].path().display()
                ),
            };
        }
    }
    Ok(owners)
}

/// Every tensor is in the shard that the index names, and the shards hold no other.
fn check_index(
    path: &Path,
    index: &BTreeMap<String, usize>,
    files: &[TensorFile],
    owners: &BTreeMap<String, usize>,
) -> Result<()> {
    for (name, &file) in index {
        if owners.get(name) != Some(&file) {
            let found = owners.get(name).map_or("nowhere".to_owned(), |&i| files[i].path().display().to_string());
            refuse!(
                "{}: tensor `{name}`: found it in {found}, expected it in {} as the index says: download the model again",
                path.display(),
                files[file].path().display()
            );
        }
    }

    if let Some((name, &file)) = owners.iter().find(|(name, _)| !index.contains_key(*name)) {
        refuse!(
            "{}: tensor `{name}`: found it in {}, expected an entry in `weight_map`: the index belongs to another \
             version of the model, download it again",
            path.display(),
            files[file].path().display()
        );
    }
    Ok(())
}
