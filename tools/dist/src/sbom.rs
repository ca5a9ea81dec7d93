//! The crates that are in the binary: their bill of materials, as CycloneDX has it, and their licenses.

use crate::cuda_runtime::CudaRuntime;
use anyhow::{Context, Result};
use cargo_metadata::{DepKindInfo, DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use tools_support::workspace::Workspace;

/// The trainer's package and binary.
pub const TRAINER: &str = "qlora-train";
/// The package that links CUDA's runtime
const KERNELS: &str = "qlora-kernels";

/// Beginnings of names of files with a license (LICEN, in both spellings) or what it wants to be told.
const NOTICES: [&str; 3] = ["LICEN", "COPYING", "NOTICE"];

/// The trainer and what is linked into it.
#[derive(Debug)]
pub struct Crates {
    metadata: Metadata,
    /// Each with what it links itself
    linked: BTreeMap<PackageId, BTreeSet<PackageId>>,
}

impl Crates {
    /// Crates of a build with these features of the workspace.
    pub fn linked(workspace: &Workspace, features: &[&str]) -> Result<Self> {
        let mut command = MetadataCommand::new();
        command.current_dir(&workspace.root);
        let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut options: Vec<String> = ["--locked", "--filter-platform", &host].map(str::to_owned).to_vec();
        options.extend(features.iter().flat_map(|feature| ["--features".to_owned(), (*feature).to_owned()]));
        let metadata = command.other_options(options).exec().context("`cargo metadata` failed")?;
        let linked = linked(&metadata)?;
        Ok(Self { metadata, linked })
    }

    fn packages(&self) -> impl Iterator<Item = &Package> {
        self.linked.keys().map(|id| &self.metadata[id])
    }

    pub fn trainer(&self) -> Result<&Package> {
        self.packages().find(|package| package.name == TRAINER).context("cargo's metadata do not name the trainer")
    }

    fn others(&self) -> impl Iterator<Item = &Package> {
        self.packages().filter(|package| package.name != TRAINER)
    }

    /// Without a serial number and a time, which would differ each time. `runtime` is linked into the kernels.
    pub fn sbom(&self, runtime: Option<&CudaRuntime>) -> Result<Value> {
        let dependency = |(id, on): (&PackageId, &BTreeSet<PackageId>)| {
            let mut on: BTreeSet<String> = on.iter().map(|id| reference(&self.metadata[id])).collect();
            on.extend(runtime.filter(|_| self.metadata[id].name == KERNELS).map(CudaRuntime::reference));
            json!({"ref": reference(&self.metadata[id]), "dependsOn": on})
        };
        let of_runtime = runtime.map(|runtime| json!({"ref": runtime.reference(), "dependsOn": []}));
        let components = self.others().map(|package| component(package, "library"));
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": component(self.trainer()?, "application")},
            "components": components.chain(runtime.map(CudaRuntime::component)).collect::<Vec<_>>(),
            "dependencies": self.linked.iter().map(dependency).chain(of_runtime).collect::<Vec<_>>(),
        }))
    }

    /// Texts of the crates' licenses, each once, below the crates that have it.
    pub fn notices(&self) -> Result<String> {
        let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for package in self.others().filter(|package| package.source.is_some()) {
            let folder = package.manifest_path.parent().context("a manifest without a folder")?;
            for file in fs::read_dir(folder).with_context(|| format!("cannot read {folder}"))? {
                let path = file?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
                if path.is_file() && NOTICES.iter().any(|begin| name.starts_with(begin)) {
                    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                    let text = String::from_utf8_lossy(&bytes).trim().replace("\r\n", "\n");
                    texts.entry(text).or_default().insert(format!("{} {}", package.name, package.version));
                }
            }
        }
        let part = |(text, crates): (&String, &BTreeSet<String>)| {
            format!("{}\n\n{text}\n", crates.iter().cloned().collect::<Vec<_>>().join(", "))
        };
        let mut parts: Vec<String> = texts.iter().map(part).collect();
        parts.sort();
        Ok(parts.join(&format!("\n{}\n\n", "-".repeat(80))))
    }
}

/// The trainer's package and what it links, directly or not. What only tests and build scripts need is not in the
/// binary.
fn linked(metadata: &Metadata) -> Result<BTreeMap<PackageId, BTreeSet<PackageId>>> {
    let trainer = metadata.packages.iter().find(|package| package.name == TRAINER);
    let resolve = metadata.resolve.as_ref().context("cargo's metadata have no resolved packages")?;
    let mut waiting = vec![trainer.context("the workspace has no trainer")?.id.clone()];
    let mut linked = BTreeMap::new();
    while let Some(id) = waiting.pop() {
        if linked.contains_key(&id) {
            continue;
        }
        let node = resolve.nodes.iter().find(|node| node.id == id).with_context(|| format!("no {id} among them"))?;
        let is_linked = |kinds: &[DepKindInfo]| kinds.iter().any(|of| of.kind == DependencyKind::Normal);
        // Procedural macros run in the compiler.
        let is_macro = |id: &PackageId| metadata[id].targets.iter().any(|target| target.is_proc_macro());
        let on = node.deps.iter().filter(|dependency| is_linked(&dependency.dep_kinds) && !is_macro(&dependency.pkg));
        let on: BTreeSet<PackageId> = on.map(|dependency| dependency.pkg.clone()).collect();
        waiting.extend(on.iter().cloned());
        linked.insert(id, on);
    }
    Ok(linked)
}

fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

fn component(package: &Package, kind: &str) -> Value {
    // Older crates write "MIT/Apache-2.0".
    let license = package.license.as_ref().map(|license| license.replace('/', " OR "));
    json!({
        "type": kind,
        "bom-ref": reference(package),
        "name": package.name.as_str(),
        "version": package.version.to_string(),
        "purl": reference(package),
        "licenses": license.iter().map(|license| json!({"expression": license})).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crates(features: &[&str]) -> Crates {
        Crates::linked(&Workspace::locate().unwrap(), features).unwrap()
    }

    #[test]
    fn what_is_linked_is_named_and_what_only_builds_is_not() {
        let names = |features: &[&str]| {
            let bom = crates(features).sbom(None).unwrap();
            assert_eq!(bom["metadata"]["component"]["name"], TRAINER);
            let names = bom["components"].as_array().unwrap().iter();
            names.map(|component| component["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        let cpu = names(&[]);
        for name in ["qlora-kernels", "clap", "tokenizers", "libc"] {
            assert!(cpu.contains(name), "{name}: {cpu:?}");
        }
        for name in ["cc", "proptest", "clap_derive", "cudarc", TRAINER] {
            assert!(!cpu.contains(name), "{name}: {cpu:?}");
        }
        assert!(names(&["qlora-train/cuda"]).contains("cudarc"));
    }

    #[test]
    fn the_runtime_of_cuda_is_part_of_the_kernels() {
        let runtime = CudaRuntime { version: "13.0.96".to_owned(), license: Vec::new() };
        let bom = crates(&["qlora-train/cuda"]).sbom(Some(&runtime)).unwrap();
        let on = |name: &str| {
            let all = bom["dependencies"].as_array().unwrap();
            let of = all.iter().find(|of| of["ref"].as_str().unwrap().starts_with(name)).unwrap();
            of["dependsOn"].as_array().unwrap().clone()
        };
        let library = serde_json::Value::from(runtime.reference());
        assert!(on("pkg:cargo/qlora-kernels@").contains(&library) && !on("pkg:cargo/qlora-train@").contains(&library));
        assert!(on("pkg:generic/cudart@").is_empty());
        assert!(bom["components"].as_array().unwrap().iter().any(|of| of["name"] == "cudart"));
    }

    #[test]
    fn licenses_of_the_crates_are_told_once_each() {
        let crates = crates(&[]);
        let notices = crates.notices().unwrap();
        let all = notices.lines().filter(|line| line.contains("clap ") && line.contains("clap_builder ")).count();
        assert!(all >= 2, "a license of MIT and one of Apache: {all}");
        // Most crates under the Apache license have one text of it.
        let texts = notices.matches("TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION").count();
        let crates =
            crates.others().filter(|of| of.license.as_ref().is_some_and(|name| name.contains("Apache"))).count();
        assert!(texts >= 1 && 4 * texts < crates, "{texts} texts of {crates} crates");
    }
}
