//! Entry points for the fuzz targets to the readers of the hub's answers and of cards of data sets.

use std::collections::HashSet;
use std::path::{Component, Path};

use super::card::configs;
use super::infer;
use super::listing::{Listing, is_safe};
use super::splits::{Chosen, Splits};
use crate::error::Result;

pub use super::upload::fuzzing::{upload_answer, upload_record};

/// The hub's list of the files of a commit. Returns their number.
pub fn listing(answer: &[u8]) -> Result<usize> {
    let listing = Listing::of_answer(answer, "org/name")?;
    for name in listing.names() {
        let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        assert!(is_inside && listing.find(name).is_some(), "{name:?}");
    }
    // It is kept in the cache, and read again by the next start.
    let kept = serde_json::to_vec(&listing).and_then(|json| serde_json::from_slice::<Listing>(&json));
    assert!(kept.is_ok_and(|kept| kept == listing && kept.check("").is_ok()));
    Ok(listing.files.len())
}

/// Training and validation files of a data set with these files and this card. Errors: the sentences for people.
pub fn data_set(names: &[&str], card: &str, part: Option<&str>) -> Result<[Vec<String>; 2], String> {
    let names: Vec<&str> = names.iter().copied().filter(|name| is_safe(name)).collect();
    let known: HashSet<&str> = names.iter().copied().collect();
    let _ = Splits::converted(&names).choose(part);
    let Chosen { training, validation } = Splits::new(&names, configs(card)?.as_deref())?.choose(part)?;
    for file in training.iter().chain(&validation) {
        assert!(known.contains(file.as_str()), "{file:?}");
        let _ = infer::shards(file);
    }
    Ok([training, validation])
}
