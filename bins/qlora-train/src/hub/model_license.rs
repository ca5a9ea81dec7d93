//! The license of a model in a directory: from its card, or from the hub's listing at the time of the download.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::cache::Folder;
use super::card::{MAX_CARD_BYTES, front_matter};
use super::license::License;
use crate::files::json::read_bounded;

const CARD: &str = "README.md";

/// The fields of a card (YAML before its text) that name a license.
#[derive(Deserialize)]
struct FrontMatter {
    #[serde(default)]
    license: Option<Names>,
    #[serde(default)]
    license_name: Option<String>,
    #[serde(default)]
    license_link: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

/// The license that a card names.
fn of_card(card: &str) -> Option<License> {
    let front: Option<FrontMatter> = front_matter(card)?.ok()?;
    let front = front?;
    let license = match front.license? {
        Names::One(name) => name,
        // Several licenses count as none: it is unclear which one applies.
        Names::Several(names) => <[String; 1]>::try_from(names).ok()?.into_iter().next()?,
    };
    let (name, link) = (front.license_name, front.license_link);
    License::of_fields(&json!({"license": license, "license_name": name, "license_link": link}))
}

/// The license of the model in a directory: from its README.md, or from the hub's listing at the time of the download.
/// None: neither names one.
pub fn license_of(model: &Path) -> Option<License> {
    let card = model.join(CARD);
    let told = || of_card(&String::from_utf8(read_bounded(&card, MAX_CARD_BYTES).ok()?).ok()?);
    if let Some(license) = card.is_file().then(told).flatten() {
        return Some(license);
    }
    let (folder, commit) = Folder::of_snapshot(model)?;
    folder.listing(&commit)?.license
}

#[cfg(test)]
mod tests;
