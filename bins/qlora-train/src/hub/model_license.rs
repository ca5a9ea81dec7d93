//! The license of a model in a directory: as its card names it, else as the hub did when it was downloaded.

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
        // Of several nobody knows which holds.
        Names::Several(names) => <[String; 1]>::try_from(names).ok()?.into_iter().next()?,
    };
    let (name, link) = (front.license_name, front.license_link);
    License::of_fields(&json!({"license": license, "license_name": name, "license_link": link}))
}

/// The license of the model in a directory: as its README.md names it, else as the hub did when it was downloaded.
/// None: nobody says.
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
mod tests {
    use super::super::cache::Kind;
    use super::super::listing::Listing;
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_license_is_read_from_the_card_beside_the_model() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(license_of(dir.path()), None);
        let of = |text: &str| {
            std::fs::write(dir.path().join(CARD), text).unwrap();
            license_of(dir.path())
        };
        let plain = |id: &str| License { id: id.to_owned(), name: None, link: None };
        assert_eq!(of("---\nlicense: apache-2.0\ntags: [a]\n---\n# x\n"), Some(plain("apache-2.0")));
        assert_eq!(of("---\nlicense:\n- mit\n---\n"), Some(plain("mit")));
        let other = License { name: Some("terms".into()), link: Some("LICENSE".into()), ..plain("other") };
        assert_eq!(of("---\nlicense: other\nlicense_name: terms\nlicense_link: LICENSE\n---\n"), Some(other));
        for none in [
            "# no fields",
            "---\ntags: []\n---\n",
            "---\nlicense:\n- mit\n- gpl\n---\n",
            "---\nlicense: [\n---\n",
            "---\nlicense: \"a\\nb: c\"\n---\n",
            "---\nlicense: a b\n---\n",
            "---\nlicense: ''\n---\n",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn a_license_is_kept_with_the_listing_of_a_commit() {
        let root = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let folder = Folder::new(root.path(), Kind::Model, "org/name");
        let answer = |card: Value| json!({"sha": commit, "siblings": [], "cardData": card}).to_string();
        let listing = Listing::of_answer(answer(json!({"license": "llama3.1"})).as_bytes(), "org/name").unwrap();
        folder.keep_listing(&listing).unwrap();
        let snapshot = folder.snapshot(commit);
        assert_eq!(license_of(&snapshot).unwrap().id, "llama3.1");
        assert_eq!(license_of(&root.path().join("snapshots").join(commit)), None);
        // Whatever stands in a card, the files are listed.
        for card in [json!(null), json!(7), json!({"license": ["a", "b"]}), json!({"license": {"x": 1}})] {
            assert_eq!(Listing::of_answer(answer(card).as_bytes(), "org/name").unwrap().license, None);
        }
    }
}
