//! Keys of tokenized rows: hashes over everything that decides the rows and the remarks about them.

use std::path::PathBuf;
use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use regex::Regex;
use sha2::{Digest, Sha256};

use super::options::DataOptions;
use super::tokenizer::ChatTokenizer;
use crate::error::Result;
use crate::files::hash::{file_hash, hex};

/// Key of the rows of these files, with the given SHA-256s, without the tokenizer, which may not be needed. `of`: where
/// the tokenizer is opened from; `known`: the rows that are left out.
pub(super) fn rows_key(
    paths: &[PathBuf],
    hashes: &[String],
    options: &DataOptions,
    of: &str,
    known: Option<&str>,
) -> String {
    // A new option is part of the key or named here.
    let DataOptions {
        max_length,
        too_long,
        vocab_size,
        eos_token_ids,
        on_bad_row,
        columns,
        max_samples,
        max_samples_of_each,
        rows_of_each,
        deduplicate,
        known_rows: _,
        prompt_completion,
        by_adapter,
        memory: _,
    } = options;
    // Paths belong to the key too: remarks about rows name them, and CSV is recognized by its name.
    let data = format!("{paths:?} {hashes:?} {of:?} {known:?}");
    let lengths = format!("{max_length} {too_long:?} {vocab_size} {eos_token_ids:?}");
    let taken = format!("{max_samples:?} {max_samples_of_each:?} {rows_of_each:?}");
    let rows = format!("{on_bad_row:?} {columns:?} {taken} {deduplicate}");
    let key = format!("{}\n{data}\n{lengths}\n{rows}\n{prompt_completion:?} {by_adapter}\n", program());
    hex(Sha256::digest(key))
}

/// The program that makes the rows: another build may make others.
fn program() -> String {
    // The running file, even if another one has its name by now.
    let file = std::fs::metadata("/proc/self/exe");
    let file = file.or_else(|_| std::env::current_exe().and_then(|path| path.metadata()));
    let built = file.and_then(|file| Ok((file.len(), file.modified()?)));
    format!("{} {:?}", env!("CARGO_PKG_VERSION"), built.ok())
}

/// Key of a tokenizer with its templates, which get the time `clock`.
pub(super) fn tokenizer_key(tokenizer: &ChatTokenizer, clock: Option<Timestamp>) -> Result<String> {
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|name| tokenizer.dir().join(name));
    let files = files.iter().filter(|path| path.is_file()).map(|path| file_hash(path)).collect::<Result<Vec<_>>>()?;
    let tokens = format!("{files:?} {:?} {}", tokenizer.special_tokens(), tokenizer.added_tokens_hash());
    let (template, tools) = (tokenizer.template_hash(), tokenizer.tool_template_hash());
    let origin = (tokenizer.template_origin(), tokenizer.template_is_chosen());
    let key = format!("{tokens}\n{template:?} {tools:?} {origin:?}\n{:?}\n", date(tokenizer, clock));
    Ok(hex(Sha256::digest(key)))
}

/// The date as the templates write it: in the formats that they use, if these are known; otherwise the exact time that
/// they get. None: they write no date.
fn date(tokenizer: &ChatTokenizer, clock: Option<Timestamp>) -> Option<String> {
    if !tokenizer.uses_date() {
        return None;
    }
    // Without a given time the tokenizer uses the time of its opening, which no other run has.
    let Some(clock) = clock else { return Some(Timestamp::now().to_string()) };
    let template = tokenizer.template().filter(|_| tokenizer.tool_template_hash().is_none());
    let Some(formats) = template.and_then(|template| date_formats(template.source())) else {
        return Some(clock.to_string());
    };
    let now = clock.to_zoned(TimeZone::UTC);
    let written: Vec<_> = formats.iter().map(|format| strtime::format(format.as_str(), &now).ok()).collect();
    Some(format!("{written:?}"))
}

/// The formats that a template gives to `strftime_now`. None: it does something else with it than to call it with a
/// text, or to ask whether it is there.
fn date_formats(source: &str) -> Option<Vec<String>> {
    static USE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let call = r#"\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)"#;
        Regex::new(&format!(r"strftime_now(?:\s*{call}|\s+is\s+(?:not\s+)?defined\b)")).ok()
    });
    let uses: Vec<_> = USE.as_ref()?.captures_iter(source).collect();
    let format = |found: &regex::Captures| Some(found.get(1).or(found.get(2))?.as_str().to_owned());
    (uses.len() == source.matches("strftime_now").count()).then(|| uses.iter().filter_map(format).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_of_dates_are_known_where_they_are_texts() {
        let known = |source: &str| date_formats(source);
        let asked = "{% if strftime_now is defined %}{{ strftime_now(\"%d %b %Y\") }}{% endif %}";
        assert_eq!(known(asked), Some(vec!["%d %b %Y".to_owned()]));
        assert_eq!(known("{{ strftime_now( '%Y' ) }}{{ strftime_now('%H:%M') }}").unwrap(), ["%Y", "%H:%M"]);
        assert_eq!(known("{{ messages }}"), Some(Vec::new()));
        for other in [
            "{{ strftime_now(format) }}",
            "{% set now = strftime_now %}{{ now('%Y') }}",
            "{{ strftime_now('%Y' + '%m') }}",
            "{{ strftime_now('%Y') }}{{ strftime_now(f) }}",
            r"{{ strftime_now('\x25H') }}",
            "{{ strftime_now('%Y', 1) }}",
        ] {
            assert_eq!(known(other), None, "{other}");
        }
    }
}
