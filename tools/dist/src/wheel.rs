//! A wheel that puts the binary on the path of a Python's programs.

use crate::archive::{Entry, zip};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cargo_metadata::Package;
use sha2::{Digest, Sha256};

/// The wheel's files as they are installed.
#[derive(Debug)]
pub struct Wheel<'a> {
    pub package: &'a Package,
    /// Platform tag, such as manylinux_2_34_x86_64
    pub platform: &'a str,
    pub binary: Vec<u8>,
    /// Below the Python's prefix
    pub shared: Vec<Entry>,
    pub licenses: Vec<Entry>,
    pub sbom: Vec<u8>,
    /// Shown by an index, in Markdown
    pub description: &'a str,
}

impl Wheel<'_> {
    /// Distribution and version, as file names of a wheel have them.
    fn stem(&self) -> String {
        format!("{}-{}", self.package.name.replace('-', "_"), self.package.version)
    }

    fn tag(&self) -> String {
        format!("py3-none-{}", self.platform)
    }

    pub fn file_name(&self) -> String {
        format!("{}-{}.whl", self.stem(), self.tag())
    }

    pub fn bytes(&self) -> Result<Vec<u8>> {
        let stem = self.stem();
        let info = |name: &str| format!("{stem}.dist-info/{name}");
        let program = format!("{stem}.data/scripts/{}", self.package.name);
        let mut entries = vec![Entry::executable(program, self.binary.clone())];
        entries.extend(self.shared.iter().map(|entry| entry.below(&format!("{stem}.data/data"))));
        entries.push(Entry::new(info("METADATA"), self.metadata()?));
        let generator = concat!("Generator: dist ", env!("CARGO_PKG_VERSION"));
        let tag = self.tag();
        let about = format!("Wheel-Version: 1.0\n{generator}\nRoot-Is-Purelib: false\nTag: {tag}\n");
        entries.push(Entry::new(info("WHEEL"), about));
        entries.extend(self.licenses.iter().map(|entry| entry.below(&info("licenses"))));
        entries.push(Entry::new(info(&format!("sboms/{}.cdx.json", self.package.name)), self.sbom.clone()));
        let record = info("RECORD");
        let mut lines: String = entries.iter().map(recorded).collect();
        lines += &format!("{record},,\n");
        entries.push(Entry::new(record, lines));
        zip(&entries)
    }

    fn metadata(&self) -> Result<String> {
        let package = self.package;
        let summary = package.description.as_ref().context("the package has no description")?;
        let license = package.license.as_ref().context("the package has no license")?;
        let files: String = self.licenses.iter().map(|license| format!("License-File: {}\n", license.path)).collect();
        Ok(format!(
            "Metadata-Version: 2.4\nName: {}\nVersion: {}\nSummary: {summary}\nLicense-Expression: {license}\n{files}\
             Requires-Python: >=3.8\nDescription-Content-Type: text/markdown\n\n{}",
            package.name, package.version, self.description
        ))
    }
}

/// A file's line of RECORD.
fn recorded(entry: &Entry) -> String {
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(&entry.bytes));
    format!("{},sha256={hash},{}\n", entry.path, entry.bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_hash_that_pip_computes() {
        // `printf one | openssl dgst -sha256 -binary | base64`, for URLs and without padding.
        let line = recorded(&Entry::new("a/one", "one"));
        assert_eq!(line, "a/one,sha256=dpLDrTVAu4A8Ags67mbNiIcSMjTqDG5xQ8Ct1z_0Me0,3\n");
    }
}
