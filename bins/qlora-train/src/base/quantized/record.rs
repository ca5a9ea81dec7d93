//! The record of the original model in a quantized checkpoint of ours: metadata of every weight file.

use std::collections::BTreeMap;

use crate::bail_usage;
use crate::base::BaseName;
use crate::error::Result;
use crate::files::safetensors::TensorFile;
use crate::hub::is_hub_name;

const FINGERPRINT: &str = "qlora.base_fingerprint";
const NAME: &str = "qlora.base_name";
const REVISION: &str = "qlora.base_revision";
const QUANTIZED_FINGERPRINT: &str = "qlora.quantized_fingerprint";

/// The model that a quantized checkpoint was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalBase {
    pub name: BaseName,
    /// The fingerprint of the original.
    pub fingerprint: String,
    /// The fingerprint of the quantized tensors themselves: what the weights have to give to be believed.
    pub quantized_fingerprint: String,
}

impl OriginalBase {
    /// `None`: the files are another program's. Refused: they disagree, or a value is damaged.
    pub(crate) fn of(files: &[TensorFile]) -> Result<Option<Self>> {
        let Some(first) = files.first() else { return Ok(None) };
        let own = |file: &TensorFile| -> BTreeMap<String, String> {
            let keys = [FINGERPRINT, NAME, REVISION, QUANTIZED_FINGERPRINT];
            file.metadata.clone().into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect()
        };
        let metadata = own(first);
        if let Some(other) = files.iter().find(|file| own(file) != metadata) {
            bail_usage!(
                "{}: metadata `{FINGERPRINT}`: found {:?}, expected {:?} as in {}: the files belong to different \
                 checkpoints, get them again",
                other.path().display(),
                own(other).get(FINGERPRINT),
                metadata.get(FINGERPRINT),
                first.path().display()
            );
        }
        if metadata.is_empty() {
            return Ok(None);
        }
        let text = |key: &str, valid: fn(&str) -> bool, expected: &str| match metadata.get(key) {
            Some(value) if valid(value) => Ok(value.clone()),
            found => bail_usage!("{}: metadata `{key}`: found {found:?}, expected {expected}", first.path().display()),
        };
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let digest = "a fingerprint of 64 hex digits: the file is damaged, get it again";
        // A path would be one of another machine.
        let is_name = |name: &str| !name.is_empty() && (!name.contains('/') || is_hub_name(name));
        let name = text(NAME, is_name, "a hub id or the name of a directory")?;
        Ok(Some(Self {
            name: BaseName { is_hub: is_hub_name(&name), name, revision: metadata.get(REVISION).cloned() },
            fingerprint: text(FINGERPRINT, is_digest, digest)?,
            quantized_fingerprint: text(QUANTIZED_FINGERPRINT, is_digest, digest)?,
        }))
    }

    pub(super) fn to_metadata(&self) -> BTreeMap<String, String> {
        let entries = [
            ("format", Some("pt")),
            (FINGERPRINT, Some(&self.fingerprint)),
            (NAME, Some(&self.name.name)),
            (REVISION, self.name.revision.as_deref()),
            (QUANTIZED_FINGERPRINT, Some(&self.quantized_fingerprint)),
        ];
        entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect()
    }
}
