//! Loss weights of rows, turns and parts of turns, by the keys that trainers use for them.

use std::ops::Range;

use serde_json::{Map, Value};

use super::json;

/// The keys for "do not learn this".
pub(super) const KEYS: [&str; 7] = ["train", "training", "trainable", "weight", "loss_weight", "loss_mask", LOSS];
/// ms-swift's key for turns. As a column of rows it is often a measured loss.
const LOSS: &str = "loss";
/// The keys that also take a number.
pub(super) const GRADED: [&str; 3] = ["weight", "loss_weight", "loss_mask"];
/// Axolotl's list of character ranges of a turn, each with `train`.
pub(super) const DETAIL: &str = "train_detail";

/// True if the value of a row's key decides whether the row is learned.
pub(super) fn is_of_row(key: &str, value: &Value) -> bool {
    KEYS.contains(&key) && (key != LOSS || value.is_boolean())
}

/// The weight that the keys of a map give it. None: there is no such key. Errors: a value that is no weight; two keys
/// that contradict each other.
pub(super) fn of(map: &Map<String, Value>) -> Result<Option<f32>, String> {
    let mut found: Option<(&str, f32)> = None;
    for key in KEYS {
        let weight = match map.get(key) {
            None | Some(Value::Null) => continue,
            Some(value) => weight(key, value)?,
        };
        found = match found {
            Some((other, before)) if before != weight => {
                // `true` says that something is learned, not how much.
                match (map[other].as_bool(), map[key].as_bool()) {
                    (Some(true), None) if weight > 0.0 => Some((key, weight)),
                    (None, Some(true)) if before > 0.0 => Some((other, before)),
                    _ => return Err(format!(": `{other}` and `{key}` contradict each other; keep one of the two")),
                }
            }
            _ => Some((key, weight)),
        };
    }
    Ok(found.map(|(_, weight)| weight))
}

fn weight(key: &str, value: &Value) -> Result<f32, String> {
    match value {
        Value::Bool(learned) => Ok(f32::from(u8::from(*learned))),
        Value::Number(number) if GRADED.contains(&key) => match number.as_f64().and_then(graded) {
            Some(weight) => Ok(weight),
            None => Err(format!(".{key} is {}; expected {EXPECTED}", json::describe(value))),
        },
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Ok(0.0),
            Some(1.0) => Ok(1.0),
            _ => Err(format!(
                ".{key} is {}; expected 0 (not learned) or 1; `weight` takes other numbers",
                json::describe(value)
            )),
        },
        _ if GRADED.contains(&key) => {
            Err(format!(".{key} is {}; expected true or false, or {EXPECTED}", json::describe(value)))
        }
        _ => Err(format!(".{key} is {}; expected true or false, 0 (not learned) or 1", json::describe(value))),
    }
}

/// Beyond these, a sum of weights would lose its small ones.
const BOUNDS: [f64; 2] = [1e-6, 1e6];
const EXPECTED: &str = "0 (not learned) or a weight from 0.000001 to 1000000";

/// A number as a weight, if it is one.
fn graded(number: f64) -> Option<f32> {
    (number == 0.0 || (BOUNDS[0]..=BOUNDS[1]).contains(&number)).then_some(number as f32)
}

/// The weights that an array has for each of `tokens` tokens.
pub(super) fn of_tokens(key: &str, value: &Value, tokens: usize) -> Result<Vec<f32>, String> {
    let Value::Array(entries) = value else {
        return Err(format!("`{key}` must be an array, found {}", json::describe(value)));
    };
    if entries.len() != tokens {
        return Err(format!("`{key}` has {} entries, `input_ids` {tokens}", entries.len()));
    }
    let expected = if GRADED.contains(&key) { EXPECTED } else { "0 (not learned) or 1" };
    let weight = |(at, entry): (usize, &Value)| {
        let number = entry.as_bool().map(|learned| f64::from(u8::from(learned))).or(entry.as_f64());
        let valid = number.filter(|number| GRADED.contains(&key) || [0.0, 1.0].contains(number)).and_then(graded);
        valid.ok_or_else(|| format!("`{key}[{at}]` is {}; expected {expected} for each token", json::describe(entry)))
    };
    entries.iter().enumerate().map(weight).collect()
}

/// The byte ranges of `content` that `train_detail` names, in order, each with its weight. Its offsets count
/// characters, the last one included; what no range holds is not learned.
pub(super) fn details(value: &Value, content: &str) -> Result<Vec<(Range<usize>, f32)>, String> {
    let Value::Array(items) = value else {
        return Err(format!(".{DETAIL} is {}; expected an array of ranges", json::describe(value)));
    };
    // Offsets of all characters, and of the end.
    let bounds: Vec<usize> = content.char_indices().map(|(at, _)| at).chain([content.len()]).collect();
    let characters = bounds.len() - 1;
    let mut ranges: Vec<(Range<usize>, f32)> = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let offset = |key: &str| item.get(key).and_then(Value::as_u64).map(|offset| offset as usize);
        let weight = item.as_object().map_or(Ok(None), of).map_err(|why| format!(".{DETAIL}[{at}]{why}"))?;
        let (Some(begin), Some(end), Some(weight)) = (offset("begin_offset"), offset("end_offset"), weight) else {
            return Err(format!(
                ".{DETAIL}[{at}] is {}; expected `begin_offset`, `end_offset` (characters, the last one included) and \
                 `train` or `weight`",
                json::describe(item)
            ));
        };
        if begin > end || begin >= characters {
            return Err(format!(
                ".{DETAIL}[{at}] goes from {begin} to {end}, the content has the characters 0 to {}",
                characters.saturating_sub(1)
            ));
        }
        ranges.push((bounds[begin]..bounds[(end + 1).min(characters)], weight));
    }
    ranges.sort_by_key(|(range, _)| range.start);
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        let characters = |range: &Range<usize>| content[..range.start].chars().count();
        return Err(format!(
            ".{DETAIL} has two ranges that overlap, from the characters {} and {}",
            characters(&pair[0].0),
            characters(&pair[1].0)
        ));
    }
    Ok(ranges)
}
