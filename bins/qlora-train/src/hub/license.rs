//! A license by its names in cards and on the hub: copied, never guessed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Limit on the names and links of licenses.
const MAX_CHARS: usize = 200;

/// A license by the names that cards have for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct License {
    /// Such as `apache-2.0`, or `other`
    pub id: String,
    /// Its own name, where the first is not enough
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An address of the web, or the name of a file beside the card
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

impl License {
    /// The license that the fields of a card name. None: they name none, or the value is no name.
    pub(super) fn of_fields(fields: &Value) -> Option<Self> {
        let text = |key: &str| {
            let text = fields.get(key)?.as_str()?.trim();
            let is_plain = !text.chars().any(char::is_control) && text.chars().count() <= MAX_CHARS;
            (is_plain && !text.is_empty()).then(|| text.to_owned())
        };
        let id = text("license").filter(|id| id.chars().all(|c| c.is_ascii_alphanumeric() || "-._+".contains(c)))?;
        Some(Self { id, name: text("license_name"), link: text("license_link") })
    }
}
