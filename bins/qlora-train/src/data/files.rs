//! The files that the settings mean: patterns, `~`, folders with files for training and validation.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::home::expand_home;
use crate::files::json::read_object;
use crate::hub::{DataSetId, Environment, find_data_set, is_rather_path};

/// Names that a folder's files of rows end with.
const ENDINGS: [&str; 11] = [
    ".jsonl",
    ".json",
    ".parquet",
    ".arrow",
    ".feather",
    ".csv",
    ".tsv",
    ".jsonl.gz",
    ".jsonl.zst",
    ".json.gz",
    ".json.zst",
];
/// File in which `datasets` lists the files of a table.
const STATE: &str = "state.json";
const TRAINING: [&str; 1] = ["train"];
const VALIDATION: [&str; 5] = ["validation", "valid", "val", "dev", "eval"];
/// Part that serves as validation rows in a data set of the hub without others.
const TEST: [&str; 1] = ["test"];
/// Folder of the files in a data set of the hub.
const DATA: &str = "data";

/// Files of rows that were found, each once, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataFiles {
    pub training: Vec<PathBuf>,
    /// Validation files of the folders that have some.
    pub validation: Vec<PathBuf>,
}

impl DataFiles {
    /// Finds the files that `paths` mean; those of an id of the hub are downloaded where the cache lacks them. Refused:
    /// an address, a word that is no file, a pattern that nothing matches, a folder without rows, an id that neither
    /// hub nor cache has.
    pub fn find(paths: &[PathBuf]) -> Result<Self> {
        Self::find_by(paths, &Environment::read())
    }

    /// [`find`](Self::find) with the caches, the hub and the recorded commits of `environment`.
    pub fn find_by(paths: &[PathBuf], environment: &Environment) -> Result<Self> {
        let mut found = Self::default();
        for path in paths {
            let text = path.to_string_lossy();
            if let Some((scheme, _)) = text.split_once("://") {
                bail_usage!(
                    "{text}: an address ({scheme}); rows are read from files only, so that a run can be repeated: download it \
                     first and give its path, or name a data set of the hub by its id (org/name)"
                );
            }
            let path = expand_home(path);
            let is_there = path.symlink_metadata().is_ok();
            let id = if is_there { None } else { path.to_str().map(DataSetId::parse).transpose()?.flatten() };
            if let Some(id) = id {
                if is_rather_path(&text) {
                    bail_usage!(
                        "{text}: found no such file or folder in one that is there; for the data set of this name on \
                         the hub write {text}@main"
                    );
                }
                let files = find_data_set(environment, &id)?;
                found.training.extend(files.training);
                found.validation.extend(files.validation);
            } else if path.is_dir() {
                found.folder(&path)?;
            } else if !is_there && text.contains(['*', '?', '[']) {
                found.training.extend(matches(&path)?);
            } else if !is_there && !text.contains(['/', '.']) {
                bail_usage!(
                    "{text}: found no such file; names of LLaMA-Factory's dataset_info.json are read in settings files \
                     written for it, as `dataset`: give the paths of the files, several as a list, or the id of a data \
                     set on the hub (org/name)"
                );
            } else {
                found.training.push(path);
            }
        }
        Ok(found)
    }

    fn folder(&mut self, dir: &Path) -> Result<()> {
        let files = entries(dir)?;
        let named = |names: &[&str]| -> Vec<PathBuf> {
            files.iter().filter(|file| names.iter().any(|name| is_part(file, name))).cloned().collect()
        };
        let (training, validation) = (named(&TRAINING), named(&VALIDATION));
        if !training.is_empty() {
            self.training.extend(training);
            self.validation.extend(validation);
            return Ok(());
        }
        // A table of `datasets`, by itself or one folder for each part.
        let parts = |names: &[&str]| -> Result<Vec<PathBuf>> {
            let dirs = names.iter().map(|name| dir.join(name)).filter(|dir| dir.is_dir());
            let files: Result<Vec<Vec<PathBuf>>> = dirs.map(|dir| tables(&dir, entries(&dir)?)).collect();
            Ok(files?.concat())
        };
        let training = parts(&TRAINING)?;
        if !training.is_empty() {
            self.training.extend(training);
            self.validation.extend(parts(&VALIDATION)?);
            return Ok(());
        }
        if dir.join("dataset_info.json").is_file() {
            self.training.extend(tables(dir, files)?);
            return Ok(());
        }
        // `hf download` leaves a data set in this form.
        let data = dir.join(DATA);
        if data.is_dir() && has_training(&data)? {
            let mut below = Self::default();
            below.folder(&data)?;
            if below.validation.is_empty() {
                below.validation = entries(&data)?.into_iter().filter(|file| is_part(file, TEST[0])).collect();
            }
            self.training.extend(below.training);
            self.validation.extend(below.validation);
            return Ok(());
        }
        let subsets = subsets(dir)?;
        if !subsets.is_empty() {
            bail_usage!(
                "{}: holds rows for training in directories below it: give one of them ({})",
                dir.display(),
                subsets.join(", ")
            );
        }
        let ending =
            files.first().and_then(|file| file.extension()).map_or("jsonl".into(), |end| end.to_string_lossy());
        bail_usage!(
            "{}: is a directory without files of rows for training (train.jsonl, train-*.parquet …); give the files \
             themselves, or a pattern such as '{}'",
            dir.display(),
            dir.join(format!("*.{ending}")).display()
        )
    }
}

/// True if a directory itself holds files of rows for training.
fn has_training(dir: &Path) -> Result<bool> {
    Ok(entries(dir)?.iter().any(|file| TRAINING.iter().any(|name| is_part(file, name))))
}

/// Directories in `dir`, or in its `data`, that hold rows for training: the subsets of a data set of the hub.
fn subsets(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for parent in [dir.to_owned(), dir.join(DATA)].iter().filter(|parent| parent.is_dir()) {
        for entry in std::fs::read_dir(parent).usage_context(|| format!("{}: cannot be read", parent.display()))? {
            let path = entry.usage_context(|| format!("{}: cannot be read", parent.display()))?.path();
            if path.is_dir() && has_training(&path)? {
                found.push(path.display().to_string());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The files of rows in a folder. Where `datasets` lists them, these in its order; files of other versions of the table
/// are left out. Refused: a listed file is missing; rows that are chosen by a list of their numbers.
fn tables(dir: &Path, files: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let state = dir.join(STATE);
    if !state.is_file() {
        return Ok(files);
    }
    let name = state.display();
    let object = read_object(&state)?;
    let named = |key: &str| -> Option<Vec<&str>> {
        let files = object.get(key)?.as_array()?;
        files.iter().map(|file| file.get("filename").and_then(Value::as_str)).collect()
    };
    if named("_indices_data_files").is_some_and(|files| !files.is_empty()) {
        bail_usage!(
            "{name}: the rows are chosen by a list of numbers; save the table anew, by `flatten_indices()` first"
        );
    }
    let Some(listed) = named("_data_files").filter(|files| !files.is_empty()) else {
        bail_usage!("{name}: expected `_data_files`, a list of {{\"filename\": …}}")
    };
    let mut found = Vec::with_capacity(listed.len());
    for file in listed {
        let Some(path) = files.iter().find(|path| path.file_name().is_some_and(|name| name == file)) else {
            bail_usage!("{name}: names the file {file:?}, which is not there; copy the folder whole")
        };
        found.push(path.clone());
    }
    Ok(found)
}

/// True if a file belongs to a part of a data set: `train.jsonl`, `train-00000-of-00002.parquet`, `train_sft.json`.
fn is_part(file: &Path, part: &str) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(part).is_some_and(|rest| rest.starts_with(['.', '-', '_']))
}

/// The files of rows in a folder, by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).usage_context(|| format!("{}: cannot be read", dir.display()))? {
        let path = entry.usage_context(|| format!("{}: cannot be read", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let table = !matches!(name.as_str(), "dataset_info.json" | STATE | "dataset_dict.json");
        let shown = table && !name.starts_with('.');
        if shown && path.is_file() && ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// True if a part of a path begins with a dot that the pattern does not ask for, as in a shell: editors and notebooks
/// keep older copies of files in such folders (`.ipynb_checkpoints`).
fn is_hidden(path: &Path, pattern: &Path) -> bool {
    let hidden = |path: &Path| -> Vec<String> {
        let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
        let names = parts.map(|part| part.as_os_str().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with('.')).collect()
    };
    let meant = hidden(pattern);
    let is_meant =
        |name: &String| meant.iter().any(|part| glob::Pattern::new(part).is_ok_and(|part| part.matches(name)));
    !hidden(path).iter().all(is_meant)
}

fn matches(pattern: &Path) -> Result<Vec<PathBuf>> {
    let name = pattern.display();
    let paths =
        glob::glob(&pattern.to_string_lossy()).usage_context(|| format!("{name}: not a pattern of file names"))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.usage_context(|| format!("{name}: cannot be read"))?;
        if path.is_file() && !is_hidden(&path, pattern) {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail_usage!("{name}: no file matches this pattern");
    }
    Ok(files)
}
