//! Which run this is: one hash over everything, known before the weights are read, that decides its result.
//!
//! Settings that change results count, but not the paths of model and data: their contents do. Of the base these are
//! its config.json as it was understood and, where rows are text, its tokenizer and the chat template in use. Two bases
//! that differ in their weights only are told apart by the fingerprint, which `run.json` keeps beside this hash.

use super::inputs::{Loaded, held_settings};
use crate::config::Settings;
use crate::error::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub fn run_identity(settings: &Settings, loaded: &Loaded) -> Result<String> {
    let contents_count = Settings {
        model: None,
        revision: None,
        data: Vec::new(),
        val_data: Vec::new(),
        chat_template: None,
        // A quantised base counts as its original quantised alike.
        ..held_settings(settings, &loaded.checkpoint)
    };
    let mut lines = vec![format!("settings {}", contents_count.result_hash())];
    let checkpoint = &loaded.checkpoint;
    let config = serde_json::Value::from(checkpoint.config().to_json(""));
    lines.push(format!("config {config}"));
    lines.extend(checkpoint.skipped_modules().iter().map(|module| format!("not quantised {module}")));
    if let Some(tokenizer) = &loaded.tokenizer {
        lines.push(format!("tokenizer {}", file_hash(&checkpoint.dir().join("tokenizer.json"))?));
        lines.push(format!("template {:?}", tokenizer.template_hash()));
    }
    for (what, files) in [("data", &settings.data), ("val_data", &settings.val_data)] {
        for path in files {
            lines.push(format!("{what} {}", file_hash(path)?));
        }
    }
    Ok(hex(Sha256::digest(lines.join("\n"))))
}

fn file_hash(path: &Path) -> Result<String> {
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

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
