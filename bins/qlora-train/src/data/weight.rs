//! The share of the loss that a row, a turn or a part of a turn has, by the keys that trainers use for it.

use std::ops::Range;

use serde_json::{Map, Value};

use super::json;

/// The keys under which "do not learn this" is said.
pub(super) const KEYS: [&str; 6] = ["train", "training", "trainable", "weight", "loss_weight", "loss_mask"];
/// Axolotl's list of character ranges of a turn, each with `train`.
pub(super) const DETAIL: &str = "train_detail";

/// The weight that the keys of a map give it. None: they say nothing. Errors: a value that is no weight; two keys that
/// contradict each other.
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
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Ok(0.0),
            Some(1.0) => Ok(1.0),
            _ => Err(format!(".{key} is {}; expected 0 (not learned) or 1", json::describe(value))),
        },
        _ => Err(format!(".{key} is {}; expected true or false, 0 (not learned) or 1", json::describe(value))),
    }
}

/// The byte ranges of `content` that `train_detail` names, in order, each with its weight. Its offsets count
/// characters, the last one included; what no range holds is not learned.
pub(super) fn details(value: &Value, content: &str) -> Result<Vec<(Range<usize>, f32)>, String> {
    let Value::Array(items) = value else {
        return Err(format!(".{DETAIL} is {}; expected an array of ranges", json::describe(value)));
    };
    // Where every character begins, and the end.
    let bounds: Vec<usize> = content.char_indices().map(|(at, _)| at).chain([content.len()]).collect();
    let characters = bounds.len() - 1;
    let mut ranges: Vec<(Range<usize>, f32)> = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let offset = |key: &str| item.get(key).and_then(Value::as_u64).map(|offset| offset as usize);
        let (Some(begin), Some(end), Some(train)) =
            (offset("begin_offset"), offset("end_offset"), item.get("train").and_then(Value::as_bool))
        else {
            return Err(format!(
                ".{DETAIL}[{at}] is {}; expected `begin_offset`, `end_offset` (characters, the last one included) and \
                 `train`",
                json::describe(item)
            ));
        };
        if begin > end || begin >= characters {
            return Err(format!(
                ".{DETAIL}[{at}] goes from {begin} to {end}, the content has the characters 0 to {}",
                characters.saturating_sub(1)
            ));
        }
        ranges.push((bounds[begin]..bounds[(end + 1).min(characters)], f32::from(u8::from(train))));
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
