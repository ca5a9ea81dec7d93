//! Which run this is, gathered before the weights are read: everything, settings and contents, that decides its result.
//!
//! The paths of model and data do not count, their contents do. Of the base these are its config.json as it was
//! understood and, where rows are text, its tokenizer and the chat template in use. Two bases that differ in their
//! weights only are told apart by the fingerprint, which is kept beside.

use super::Identity;
use crate::config::Settings;
use crate::error::{Context, Result};
use crate::report::hex;
use crate::session::inputs::{Loaded, held_settings};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Settings that name a place; what is found there counts.
const PLACES: [&str; 5] = ["model", "revision", "data", "val_data", "chat_template"];

pub fn run_identity(settings: &Settings, loaded: &Loaded) -> Result<Identity> {
    let checkpoint = &loaded.checkpoint;
    let mut result_settings = held_settings(settings, checkpoint).result_settings();
    result_settings.retain(|name, _| !PLACES.contains(&name.as_str()));
    let hashes = |files: &[PathBuf]| files.iter().map(|path| file_hash(path)).collect::<Result<Vec<_>>>();
    let tokenizer = match &loaded.tokenizer {
        Some(_) => Some(file_hash(&checkpoint.dir().join("tokenizer.json"))?),
        None => None,
    };
    Ok(Identity {
        settings: result_settings,
        base_config: checkpoint.arch().to_json("").into(),
        not_quantized: checkpoint.skipped_modules(),
        tokenizer,
        chat_template: loaded.tokenizer.as_ref().and_then(|tokenizer| tokenizer.template_hash()),
        data: hashes(&settings.data)?,
        val_data: hashes(&settings.val_data)?,
    })
}

/// SHA-256 (hex) of a file's bytes.
pub fn file_hash(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => hash.update(&buffer[..n]),
            }
        }
    };
    read().or_refuse(|| format!("{}: cannot be read", path.display()))?;
    Ok(hex(hash.finalize()))
}
