//! Tables of what the adapter changed: layers x modules, colored by how much each weight changed.

use super::page::{clean, text};
use super::records::{Details, ModuleChange, TensorChange};
use super::svg::short;
use crate::report::count;
use minijinja::{Value, context};
use std::collections::BTreeMap;

pub fn changes(details: &Details) -> Vec<Option<Value>> {
    let mut blocks = modules(&details.modules);
    blocks.extend(tensors(&details.tensors));
    blocks
}

fn layer_of(module: &str) -> (Option<u64>, &str) {
    let layer = module.split('.').find_map(|part| part.parse().ok());
    (layer, module.rsplit('.').next().unwrap_or(module))
}

/// A module's change as it is shown.
struct Cell<'a> {
    module: &'a str,
    /// The value that the color shows
    change: f64,
    value: String,
    /// Below it
    small: String,
    title: String,
}

/// A change, as a share of the weight's norm or as it is.
fn shown(change: f64, is_relative: bool) -> String {
    if is_relative { format!("{:.2}%", 100.0 * change) } else { short(change) }
}

/// Layers x modules.
fn heat(caption: String, changes: Vec<Cell>) -> Value {
    let most = changes.iter().map(|cell| cell.change).fold(0.0, f64::max);
    let mut names: Vec<&str> = Vec::new();
    let mut cells: BTreeMap<Option<u64>, BTreeMap<&str, &Cell>> = BTreeMap::new();
    for change in &changes {
        let (layer, name) = layer_of(change.module);
        if !names.contains(&name) {
            names.push(name);
        }
        cells.entry(layer).or_default().insert(name, change);
    }
    let cell = |Cell { change, value, small, title, .. }: &Cell| {
        // Up to 70%, so that text stays readable.
        let share = if most > 0.0 { format!("{:.0}", 70.0 * change / most) } else { "0".to_owned() };
        context! { value => value, small => small, share => share, title => clean(title) }
    };
    let rows: Vec<Value> = cells
        .iter()
        .map(|(layer, of)| {
            let cells: Vec<Value> =
                names.iter().map(|name| of.get(name).map_or(Value::from(()), |c| cell(c))).collect();
            context! { name => layer.map_or("–".to_owned(), |layer| layer.to_string()), cells => cells }
        })
        .collect();
    let heads: Vec<String> = names.iter().map(|name| clean(name)).collect();
    context! { kind => "heat", text => caption, head => heads, rows => rows }
}

/// Linear layers, by their low-rank terms.
fn modules<'a>(changes: &'a [ModuleChange]) -> Vec<Option<Value>> {
    if changes.is_empty() {
        return vec![];
    }
    let measure = |change: &ModuleChange| change.relative.unwrap_or(change.norm);
    let is_relative = changes.iter().all(|change| change.relative.is_some());
    let cell = |change: &'a ModuleChange| {
        let ModuleChange { module, singular_values, .. } = change;
        let (r, ranks) = (singular_values.len(), change.ranks_for(0.9));
        let largest: Vec<String> = singular_values.iter().take(8).map(|value| short(*value)).collect();
        let title = format!("{module}: {ranks} of {r} ranks carry 90%; singular values {}", largest.join(", "));
        let (change, small) = (measure(change), format!("{ranks}/{r}"));
        Cell { module, change, value: shown(change, is_relative), small, title }
    };
    let largest = changes.iter().max_by(|one, other| measure(one).total_cmp(&measure(other)));
    let what = largest.map_or(String::new(), |change| format!(" {} changed most.", change.module));
    let of = if is_relative {
        "‖ΔW‖ / ‖W‖, the change of each weight over its norm"
    } else {
        "‖ΔW‖, the norm of each weight's change"
    };
    let caption = format!("{of}; below it, the number of ranks that carry 90% of it");
    vec![
        Some(text(format!("{}{what}", ranks_in_use(changes)))),
        Some(heat(caption, changes.iter().map(cell).collect())),
    ]
}

/// Tensors that were trained beside the low-rank terms: whole, or in the rows of some tokens.
fn tensors<'a>(changes: &'a [TensorChange]) -> Vec<Option<Value>> {
    if changes.is_empty() {
        return vec![];
    }
    let is_relative = changes.iter().all(|change| change.relative.is_some());
    let cell = |change: &'a TensorChange| {
        let TensorChange { module, rows, norm, relative } = change;
        let small = rows.map_or(String::new(), |rows| count(rows, "row"));
        let of = rows.map_or("the whole tensor".to_owned(), |rows| format!("{} of single tokens", count(rows, "row")));
        let title = format!("{module}: {of}, ‖Δ‖ {}", short(*norm));
        let change = relative.unwrap_or(*norm);
        Cell { module, change, value: shown(change, is_relative), small, title }
    };
    let of = if is_relative {
        "‖Δ‖ / ‖W‖, the change of each tensor over its norm in the base"
    } else {
        "‖Δ‖, the norm of each tensor's change"
    };
    let caption = format!("Trained beside the low-rank terms, whole or in the rows of single tokens: {of}");
    vec![Some(heat(caption, changes.iter().map(cell).collect()))]
}

/// A sentence on the number of ranks that the median module uses, with advice on `lora_r`. Modules that have not
/// changed, or whose values are not finite, do not count.
fn ranks_in_use(changes: &[ModuleChange]) -> String {
    let changed = changes.iter().filter(|change| change.norm > 0.0 && !change.singular_values.is_empty());
    let mut needed: Vec<(usize, usize)> =
        changed.map(|change| (change.ranks_for(0.9), change.singular_values.len())).collect();
    // By their shares: patterns give modules ranks of their own.
    needed.sort_by_key(|&(needed, r)| (needed * 1_000_000 / r, r));
    let Some(&(median, r)) = needed.get(needed.len() / 2) else { return String::new() };
    let advice = match r {
        // One number advises one rank.
        _ if needed.iter().any(|&(_, other)| other != r) => String::new(),
        r if r >= 8 && median * 4 <= r => {
            format!(" A smaller lora_r, such as {}, would do.", (2 * median).next_power_of_two())
        }
        r if median * 10 >= r * 7 => " The rank is used to the full: a larger lora_r may learn more.".to_owned(),
        _ => String::new(),
    };
    format!("In the median module, {median} of {r} ranks carry 90% of the change (of its squared norm).{advice}")
}
