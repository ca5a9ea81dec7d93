//! Axolotl's `datasets: [{path, type, …}]`: paths of the rows, and keys beside them for columns and template.

use std::path::{Component, Path, PathBuf};

use super::compat::Implied;
use super::role_names::RoleNames;
use super::template_names::{self, own_template};
use super::types::{Reject, SettingValue, is_off, is_unset};
use super::yaml::{Entry, Value};
use crate::files::home::expand_home;
use crate::hub::{DataSetId, is_rather_path};

/// Keys that hold a path.
const PATHS: [&str; 3] = ["path", "data_files", "file"];
/// Keys that say which rows of a data set of the hub are meant.
const OF_HUB: [&str; 5] = ["path", "data_files", "name", "split", "revision"];
/// Values of `path` that say how to read `data_files`.
const READERS: [&str; 5] = ["json", "jsonl", "parquet", "csv", "text"];

/// Keys of a data set that are accepted with these values, or where they are off.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("ds_type", &["json", "jsonl", "parquet", "csv", "arrow", "text"]),
    ("split", &["train"]),
    ("field_tools", &["tools"]),
    ("field_thinking", &["reasoning_content", "thinking", "reasoning"]),
    ("template_thinking_key", &["reasoning_content", "thinking", "reasoning"]),
    ("message_field_training", &["train", "training", "trainable", "weight", "loss_weight", "loss_mask"]),
    ("message_field_training_detail", &["train_detail"]),
    ("roles_to_train", &["assistant", "gpt"]),
    ("train_on_eos", &["turn"]),
    ("train_on_eot", &["turn"]),
    ("conversation", &["chatml"]),
    ("name", &ONLY_SUBSET),
    ("revision", &["main"]),
];
/// Keys of a data set that change nothing.
const NO_EFFECT: [&str; 4] = ["trust_remote_code", "preprocess_shards", "temperature", "description"];

/// Keys of a data set, or of its `type`, and the setting that each gives.
const COLUMNS: &[(&str, &str)] = &[
    ("field_messages", "messages_column"),
    ("field_conversations", "messages_column"),
    ("field", "text_column"),
    ("field_instruction", "prompt_column"),
    ("field_output", "completion_column"),
    ("field_input", "input_column"),
    ("field_system", "system_column"),
    ("message_field_role", "role_key"),
    ("message_field_content", "content_key"),
    ("field_human", "prompt_column"),
    ("field_model", "completion_column"),
];

/// Name for the model's own chat template, which a data set may ask for.
pub const OWN_TEMPLATE: &str = "datasets.own_template";

/// Files of rows, or Axolotl's `datasets: [{path, type}]`.
impl SettingValue for Vec<PathBuf> {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let sets = match value {
            Value::List(items) => items.iter().collect(),
            value if is_unset(value) => Vec::new(),
            one => vec![one],
        };
        let files: Result<Vec<Vec<PathBuf>>, Reject> = sets.into_iter().map(|set| DataSet::of(set)?.files()).collect();
        Ok(files?.concat())
    }
    fn json(&self) -> serde_json::Value {
        self.iter().map(PathBuf::json).collect()
    }
}

/// A key of a data set that is not taken.
pub struct DataFault {
    pub key: String,
    /// In the file; 0 if unknown
    pub line: u64,
    pub why: Reject,
}

/// Data sets with keys of their own, in a value of `data`.
fn sections(value: &Value) -> impl Iterator<Item = &Value> {
    let items = match value {
        Value::List(items) => &items[..],
        one => std::slice::from_ref(one),
    };
    items.iter().filter(|item| matches!(item, Value::Map(_)))
}

/// Everything that is wrong in the keys of the data sets.
pub fn data_faults(value: &Value) -> Vec<DataFault> {
    sections(value).filter_map(|set| DataSet::of(set).ok()).flat_map(|set| set.faults).collect()
}

/// Settings that have a number for each file of the rows that are trained on.
pub const OF_EACH: [&str; 2] = ["data_weights", "data_max_samples"];

/// The other settings that the data sets give.
pub fn data_implies(value: &Value) -> Result<Vec<Implied>, Reject> {
    let mut all = Vec::new();
    for set in sections(value) {
        all.extend(DataSet::of(set)?.implied);
    }
    let has_type = |names: &[&str]| sections(value).filter_map(type_of).any(|name| names.contains(&name));
    if has_type(&ALPACA) && has_type(&BY_TEMPLATE) && !all.iter().any(|implied| implied.setting == OWN_TEMPLATE) {
        all.push(Implied::new(OWN_TEMPLATE, Value::text(BY_TEMPLATE[0])));
    }
    let items = match value {
        Value::List(items) => &items[..],
        one => std::slice::from_ref(one),
    };
    let sets = items.iter().filter(|item| !is_unset(item)).map(DataSet::of).collect::<Result<Vec<_>, _>>()?;
    let of_each = |of: fn(&DataSet) -> Option<&Value>, default: Value| {
        let given = sets.iter().any(|set| of(set).is_some());
        let numbers = sets.iter().flat_map(|set| vec![of(set).unwrap_or(&default).clone(); set.paths.len()]);
        given.then(|| Value::List(numbers.collect()))
    };
    let weights = of_each(|set| set.weight.as_ref(), Value::Int(1));
    let counts = of_each(|set| set.max_samples.as_ref(), Value::Int(0));
    let given = OF_EACH.into_iter().zip([weights, counts]);
    all.extend(given.filter_map(|(name, numbers)| Some(Implied::new(name, numbers?))));
    Ok(all)
}

/// A data set as it was read.
#[derive(Default)]
struct DataSet {
    paths: Vec<PathBuf>,
    /// Weight of its rows in an epoch, and the limit on their number
    weight: Option<Value>,
    max_samples: Option<Value>,
    implied: Vec<Implied>,
    faults: Vec<DataFault>,
}

impl DataSet {
    /// Reads one. Errors: a value that is neither a path nor a section.
    fn of(value: &Value) -> Result<Self, Reject> {
        let mut set = Self::default();
        let Value::Map(entries) = value else {
            set.paths.push(PathBuf::read(value)?);
            return Ok(set);
        };
        let files = entries.iter().any(|entry| entry.key == "data_files" && !is_unset(&entry.value));
        let id = hub_id(entries);
        let beside = Beside::of(entries);
        let mut named_by: Option<&str> = None;
        for entry in entries {
            let (key, value) = (entry.key.as_str(), &entry.value);
            let reader = matches!(value, Value::Str(text) if READERS.contains(&text.as_str()));
            let done = match key {
                "path" if files && reader => Ok(()),
                _ if id.is_some() && OF_HUB.contains(&key) => Ok(()),
                _ if PATHS.contains(&key) && is_unset(value) => Ok(()),
                "path" if beside.is_some() => Ok(()),
                "data_files" if let Some(Beside::Folder(folder)) = &beside => set.add_files(folder, value),
                _ if PATHS.contains(&key) => match named_by.replace(key) {
                    None => set.add_paths(key, value),
                    Some(before) => Err(Reject::Because(format!(
                        "found `{before}` and `{key}` in one data set, expected one of them: the files of its rows"
                    ))),
                },
                "weight" | "max_samples" | "num_samples" if is_unset(value) => Ok(()),
                "weight" => match f64::read(value) {
                    Ok(weight) if weight > 0.0 && weight <= 1000.0 => {
                        set.weight = Some(value.clone());
                        Ok(())
                    }
                    _ => Err(not_supported(key, value, "a number above 0, at most 1000")),
                },
                "max_samples" | "num_samples" => match usize::read(value) {
                    Ok(rows) if rows <= 1_000_000_000 && set.max_samples.is_none() => {
                        set.max_samples = Some(value.clone());
                        Ok(())
                    }
                    _ => Err(not_supported(key, value, "a count of rows, once")),
                },
                "type" => row_type(value).map(|implied| set.implied.extend(implied)),
                "roles" => role_names(value).map(|implied| set.implied.extend(implied)),
                "message_property_mappings" => property_mappings(value).map(|implied| set.implied.extend(implied)),
                _ => other(entry).map(|implied| set.implied.extend(implied)),
            };
            if let Err(why) = done {
                set.faults.push(DataFault { key: entry.key.clone(), line: entry.line, why });
            }
        }
        if let Some((entry, id)) = id {
            match of_hub(id, entries) {
                Ok(paths) => set.paths.extend(paths),
                Err(why) => set.faults.push(DataFault { key: entry.key.clone(), line: entry.line, why }),
            }
        }
        if set.paths.is_empty() && set.faults.is_empty() {
            let why = Reject::Because("found a data set without `path`, expected the `path` of a file".into());
            set.faults.push(DataFault { key: "datasets".into(), line: 0, why });
        }
        Ok(set)
    }

    fn add_paths(&mut self, key: &str, value: &Value) -> Result<(), Reject> {
        let items = match value {
            Value::List(items) if key != "path" || items.len() == 1 => &items[..],
            one => std::slice::from_ref(one),
        };
        let wrong = || Reject::Because(format!("found {value} as `{key}` of a data set, expected the path of a file"));
        for item in items {
            self.paths.push(PathBuf::read(item).map_err(|why| if why == Reject::Wrong { wrong() } else { why })?);
        }
        Ok(())
    }

    /// Adds files that are named beside the folder that may hold them.
    fn add_files(&mut self, folder: &Path, value: &Value) -> Result<(), Reject> {
        let before = self.paths.len();
        self.add_paths("data_files", value)?;
        for path in &mut self.paths[before..] {
            let inside = folder.join(&path);
            if !path.exists() && !without_dots(path).starts_with(without_dots(folder)) && inside.exists() {
                *path = inside;
            }
        }
        Ok(())
    }

    fn files(self) -> Result<Vec<PathBuf>, Reject> {
        match self.faults.into_iter().next() {
            Some(fault) => Err(fault.why),
            None => Ok(self.paths),
        }
    }
}

/// A `path` that adds nothing to the `data_files` of a data set.
enum Beside {
    /// It is the one file.
    File,
    /// It is a folder, which may hold them.
    Folder(PathBuf),
}

impl Beside {
    fn of(entries: &[Entry]) -> Option<Self> {
        let value = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let (Some(Value::Str(path)), Some(files)) = (value("path"), value("data_files")) else { return None };
        if is_unset(files) || path.is_empty() {
            return None;
        }
        let path = expand_home(Path::new(path));
        let one = match files {
            Value::List(items) if items.len() == 1 => &items[0],
            one => one,
        };
        let is_file =
            matches!(one, Value::Str(file) if without_dots(&expand_home(Path::new(file))) == without_dots(&path));
        match is_file {
            true => Some(Self::File),
            false => path.is_dir().then_some(Self::Folder(path)),
        }
    }
}

/// A path without the `.` that it may begin with.
fn without_dots(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

/// The `path` of a data set where it is an id of the hub and no path.
fn hub_id(entries: &[Entry]) -> Option<(&Entry, &str)> {
    let entry = entries.iter().find(|entry| entry.key == "path")?;
    let Value::Str(text) = &entry.value else { return None };
    let has_revision = entries.iter().any(|entry| entry.key == "revision" && !is_unset(&entry.value));
    let is_path = Path::new(text).symlink_metadata().is_ok() || (!has_revision && is_rather_path(text));
    let is_id = matches!(DataSetId::parse(text), Ok(Some(_))) && !is_path;
    is_id.then_some((entry, text.as_str()))
}

/// True if an entry of `data` may bring rows to validate on, as folders and data sets of the hub do.
pub fn may_hold_validation(path: &Path) -> bool {
    let path = expand_home(path);
    let text = path.to_string_lossy();
    let is_id = || !is_rather_path(&text) && matches!(DataSetId::parse(&text), Ok(Some(_)));
    path.is_dir() || (path.symlink_metadata().is_err() && is_id())
}

/// Names of a subset that stand for the only one.
const ONLY_SUBSET: [&str; 2] = ["default", "main"];

/// A value of `data` with the `name` of a subset and the `split` that stand beside it. Errors: it is not one data set
/// of the hub, or its id says already which part is meant.
pub fn with_parts(data: &Value, parts: &[(&str, &Value)]) -> Result<Value, Reject> {
    let one = match data {
        Value::List(items) if items.len() == 1 => &items[0],
        one => one,
    };
    if !matches!(one, Value::Str(_)) {
        return Err(Reject::Because(format!("found {one} as the data, expected the id of one data set on the hub")));
    }
    let entry = |key: &str, value: &Value| Entry { key: key.to_owned(), line: 0, value: value.clone() };
    let beside = parts.iter().map(|(key, value)| entry(key, value));
    let entries: Vec<Entry> = std::iter::once(entry("path", one)).chain(beside).collect();
    if let Some((_, id)) = hub_id(&entries) {
        let paths = of_hub(id, &entries)?;
        return Ok(Value::List(paths.iter().map(|path| Value::text(path.display().to_string())).collect()));
    }
    let says_nothing = |(key, value): &(&str, &Value)| {
        *key == "name" && matches!(value, Value::Str(name) if ONLY_SUBSET.contains(&name.as_str()))
    };
    match parts.iter().all(says_nothing) {
        true => Ok(data.clone()),
        false => Err(Reject::Because(format!(
            "found {one} as the data, which is no id of the hub: files have no subsets and splits; give the path of \
             the files that are meant, and leave this out"
        ))),
    }
}

/// An id of the hub with the revision, subset and split that stand beside it, one for each pattern of files.
fn of_hub(id: &str, entries: &[Entry]) -> Result<Vec<PathBuf>, Reject> {
    let given = |key: &str| entries.iter().find(|entry| entry.key == key && !is_unset(&entry.value));
    let text = |key: &str| given(key).map(|entry| String::read(&entry.value)).transpose();
    let (name, split, revision) = (text("name")?, text("split")?, text("revision")?);
    let whole = id.contains(':') && (name.is_some() || split.is_some() || given("data_files").is_some());
    // A revision stands before part and rows.
    if whole || (id.contains(['@', ':', '[']) && revision.is_some()) {
        return Err(Reject::Because(format!(
            "found `{id}`, which says which part is meant, and a key beside it that says it too: keep one of them"
        )));
    }
    let base = revision.map_or_else(|| id.to_owned(), |revision| format!("{id}@{revision}"));
    let (split, rows) = match split.as_deref().map(|split| split.split_at(split.find('[').unwrap_or(split.len()))) {
        Some((split, rows)) => (Some(split), rows),
        None => (None, ""),
    };
    let files = given("data_files");
    if files.is_some() && (name.is_some() || split.is_some_and(|split| split != "train")) {
        let why = "found `data_files` beside `name` or `split`, expected one of them: the files say which rows are \
                   meant";
        return Err(Reject::Because(why.to_owned()));
    }
    let several = files.is_some_and(|entry| matches!(&entry.value, Value::List(items) if items.len() > 1));
    if several && !rows.is_empty() {
        return Err(Reject::Because(format!(
            "found rows {rows} of several `data_files`, expected them of one: give one pattern, or a data set for each \
             file"
        )));
    }
    let parts: Vec<String> = match (files, name, split) {
        (Some(entry), _, _) => {
            let items = match &entry.value {
                Value::List(items) => &items[..],
                one => std::slice::from_ref(one),
            };
            items.iter().map(|item| Ok(format!(":{}", String::read(item)?))).collect::<Result<_, Reject>>()?
        }
        (None, Some(name), Some(split)) => vec![format!(":{name}/{split}")],
        (None, Some(part), None) => vec![format!(":{part}")],
        (None, None, Some(part)) => vec![format!(":{part}")],
        (None, None, None) => vec![String::new()],
    };
    let path = |part: String| match DataSetId::parse(&format!("{base}{part}{rows}")) {
        Ok(_) => Ok(PathBuf::from(format!("{base}{part}{rows}"))),
        Err(error) => Err(Reject::Because(error.to_string())),
    };
    parts.into_iter().map(path).collect()
}

/// A value as a file holds it, lists and sections with all their parts.
fn written(value: &Value) -> String {
    match value {
        Value::List(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let entry = |entry: &Entry| format!("{}: {}", entry.key.escape_debug(), written(&entry.value));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        one => one.to_string().trim_matches('`').to_owned(),
    }
}

fn not_supported(key: &str, value: &Value, expected: &str) -> Reject {
    let found = written(value);
    let (shown, key): (String, _) = (found.chars().take(80).collect(), key.escape_debug());
    let found = if shown.len() < found.len() { format!("{shown}…") } else { shown };
    Reject::Because(format!("`{key}: {found}` of a data set is not supported yet, expected {expected}"))
}

/// The form of the rows is found from the rows themselves; the type still says which template writes them.
fn row_type(value: &Value) -> Result<Vec<Implied>, Reject> {
    if is_unset(value) {
        return Ok(Vec::new());
    }
    if let Value::Map(entries) = value {
        let mut implied = vec![Implied {
            note: "Axolotl writes rows of a `type` with columns as plain text; here the chat template writes them \
                   where there is one, `prompt_completion: text` does without it"
                .into(),
            ..Implied::weak("prompt_completion", Value::text("auto"))
        }];
        let reads_input = reads_input(entries);
        for entry in entries {
            match (entry.key.as_str(), &entry.value) {
                ("format", Value::Str(text)) if is_placeholders(text) => check_format(text, reads_input)?,
                ("no_input_format", Value::Str(text)) if ["", "{instruction}"].contains(&text.trim()) => {}
                ("format" | "no_input_format" | "system_format" | "system_prompt", value) if is_off(value) => {}
                ("system_format", Value::Str(text)) if text.trim() == "{system}" => {}
                ("format" | "no_input_format" | "system_format" | "system_prompt", value) => {
                    let expected = format!("no `{}`: the chat template writes the prompt", entry.key);
                    return Err(not_supported(&entry.key, value, &expected));
                }
                _ => implied.extend(other(entry)?),
            }
        }
        return Ok(implied);
    }
    let text = String::read(value)?;
    let name = text.trim();
    if ALPACA.contains(&name) {
        return Ok(vec![Implied {
            note: "`type: alpaca`: rows are written by the alpaca template, as Axolotl writes them; `chat_template` \
                   chooses another"
                .into(),
            ..Implied::weak("chat_template", Value::text("alpaca"))
        }]);
    }
    if ["chat_template", "completion", "sharegpt", "text"].contains(&name) {
        return Ok(Vec::new());
    }
    let style = STYLES.iter().find(|(begins, _)| name.starts_with(begins)).map_or(
        "`chat_template`, `alpaca`, `completion` or no `type`: the form of the rows is found from the rows themselves",
        |(_, instead)| *instead,
    );
    Err(not_supported("type", value, style))
}

/// True if columns of a `type` make rows whose `input` is read; it follows the instruction after a blank line.
fn reads_input(entries: &[Entry]) -> bool {
    let asked = column(entries, &["field_instruction", "field_human"]);
    let answered = column(entries, &["field_output", "field_model"]);
    let is_unnamed = asked.is_none() && answered.is_none();
    let is_named = column(entries, &["field_input"]).is_some();
    is_unnamed || is_named || asked == Some("instruction") || answered == Some("output")
}

/// The column that one of these keys names.
fn column<'e>(entries: &'e [Entry], keys: &[&str]) -> Option<&'e str> {
    let given = entries.iter().filter(|entry| keys.contains(&entry.key.as_str()));
    let mut names = given.filter_map(|entry| match &entry.value {
        Value::Str(name) => Some(name.as_str()),
        _ => None,
    });
    names.find(|name| !name.trim().is_empty())
}

/// True if a format consists only of the placeholders for instruction and input.
fn is_placeholders(format: &str) -> bool {
    format.replace("{instruction}", "").replace("{input}", "").trim().is_empty()
}

/// Refuses a format of instruction and input other than the one that rows are written with here.
fn check_format(format: &str, reads_input: bool) -> Result<(), Reject> {
    const WITH_INPUT: &str = "{instruction}\n\n{input}";
    match (format.trim(), reads_input) {
        ("", _) | (WITH_INPUT, true) | ("{instruction}", false) => Ok(()),
        (_, reads_input) => {
            let written = WITH_INPUT.escape_debug();
            let expected = match reads_input {
                true => format!(
                    "`\"{written}\"`, which is how a row with an input is written, or no `format`: for another form write \
                     the prompts out in the rows, and to leave the input out remove its key from the rows"
                ),
                false => format!(
                    "`\"{{instruction}}\"`, or `\"{written}\"` with `field_input`, the column of the inputs, beside it"
                ),
            };
            Err(not_supported("format", &Value::text(format), &expected))
        }
    }
}

/// The `type` of a data set, where it is a name.
fn type_of(set: &Value) -> Option<&str> {
    let Value::Map(entries) = set else { return None };
    match &entries.iter().find(|entry| entry.key == "type")?.value {
        Value::Str(name) => Some(name.trim()),
        _ => None,
    }
}

/// Axolotl's types whose rows are written by a chat template that the data set does not name.
pub const BY_TEMPLATE: [&str; 2] = ["chat_template", "sharegpt"];
/// Axolotl's types whose rows the built-in alpaca template writes in the same way.
const ALPACA: [&str; 6] =
    ["alpaca", "alpaca:", "alpaca:instruct", "alpaca_instruct", "alpaca_instruct.load", "alpaca.load"];

/// Prefixes of Axolotl's instruction types that write other prompts, each with advice; the first match counts.
const STYLES: [(&str, &str); 9] = [
    (
        "alpaca:chatml",
        "`alpaca`, or `chat_template: chatml` and no `type`, which writes the same without its system turn (\"Below is \
         an instruction …\"): write that into the rows to have it",
    ),
    (
        "alpaca_w_system.load_open_orca_chatml",
        "`chat_template: chatml` with `prompt_column: question`, `completion_column: response` and `system_column: \
         system_prompt`, and no `type`",
    ),
    (
        "alpaca_w_system.load_open_orca",
        "a template file for its `### Human:` and `### Assistant:`, with `prompt_column: question`, \
         `completion_column: response` and `system_column: system_prompt`, and no `type`",
    ),
    (
        "alpaca_w_system.load_instruct",
        "`alpaca`, which writes the same for rows that have a system message, and a text of its own for rows that have \
         none",
    ),
    (
        "alpaca_chat.load_qa",
        "a template file as `chat_template` that writes its `SYSTEM:`, `USER:` and `ASSISTANT:`, with \
         `prompt_column: question` and `completion_column: answer`, and no `type`; without the file the model's own \
         template writes the rows",
    ),
    (
        "alpaca_chat.load_camel_ai",
        "a template file as `chat_template` that writes its `SYSTEM:`, `USER:` and `ASSISTANT:`, with \
         `prompt_column: message_1` and `completion_column: message_2`, and no `type`; without the file the model's \
         own template writes the rows",
    ),
    ("alpaca_instruct.load_no_prompt", "`alpaca`, which writes the same after a system message, or a template file"),
    (
        "alpaca",
        "`alpaca`, which writes `### Instruction:`, or a template file as `chat_template` that writes what this style \
         does, and no `type`",
    ),
    ("context_qa", "rows with context and question in one prompt: its own texts around them are not built in"),
];

/// Names of roles in turns, where a value of `roles` has others than the roles' own. Errors: one that is not taken.
fn role_names(value: &Value) -> Result<Option<Implied>, Reject> {
    let names = RoleNames::of(value).map_err(|expected| not_supported("roles", value, &expected))?;
    Ok((!names.pairs().is_empty()).then(|| Implied::new("roles", value.clone())))
}

/// Names of the keys of turns, of which those of role and content may be any.
fn property_mappings(value: &Value) -> Result<Vec<Implied>, Reject> {
    let Value::Map(entries) = value else {
        return if is_unset(value) {
            Ok(Vec::new())
        } else {
            Err(not_supported("message_property_mappings", value, "a section with `role` and `content`"))
        };
    };
    let mut implied = Vec::new();
    for Entry { key, value, .. } in entries {
        match (key.as_str(), value) {
            (_, value) if is_unset(value) => {}
            ("role", Value::Str(_)) => implied.push(Implied::new("role_key", value.clone())),
            ("content", Value::Str(_)) => implied.push(Implied::new("content_key", value.clone())),
            (key, Value::Str(name)) if key == name => {}
            (_, value) if is_off(value) => {}
            (key, value) => {
                let expected = match key {
                    "role" | "content" => "the name of a key".to_owned(),
                    key => format!("`{}`: only role and content are read under other names", key.escape_debug()),
                };
                return Err(not_supported(&format!("message_property_mappings.{key}"), value, &expected));
            }
        }
    }
    Ok(implied)
}

fn other(entry: &Entry) -> Result<Option<Implied>, Reject> {
    let (key, value) = (entry.key.as_str(), &entry.value);
    if NO_EFFECT.contains(&key) || *value == Value::Null || matches!(value, Value::Str(text) if text.is_empty()) {
        return Ok(None);
    }
    if let Some((_, setting)) = COLUMNS.iter().find(|(name, _)| *name == key) {
        return Ok(Some(Implied::new(setting, value.clone())));
    }
    if key == "chat_template" && own_template(value) {
        // `jinja`: the file is under `chat_template_jinja`.
        let file_follows = matches!(value, Value::Str(name) if name.trim() == "jinja");
        return Ok((!file_follows).then(|| Implied::new(OWN_TEMPLATE, value.clone())));
    }
    if key == "chat_template" || key == "chat_template_jinja" {
        template_names::check(value)?;
        return Ok(Some(Implied::new("chat_template", value.clone())));
    }
    // The template of the name, in files from before `type: chat_template`.
    if key == "conversation" && matches!(value, Value::Str(name) if name == "chatml") {
        return Ok(Some(Implied::new("chat_template", value.clone())));
    }
    if key == "split" && matches!(value, Value::Str(split) if split.trim_start().starts_with("train[")) {
        return Err(not_supported(key, value, "`train`, and the rows of a local file as `data_rows: [\":1000\"]`"));
    }
    if let Some((_, accepted)) = NEUTRAL.iter().find(|(name, _)| *name == key) {
        // A value that is off has a meaning too: no role, or no end of a turn, is learned.
        let listed = |value: &Value| matches!(value, Value::Str(text) if accepted.contains(&text.as_str()));
        let all = match value {
            Value::List(items) => !items.is_empty() && items.iter().all(listed),
            value => listed(value),
        };
        return match all {
            true => Ok(None),
            false => Err(not_supported(key, value, &format!("`{}` or no `{key}`", accepted.join("` or `")))),
        };
    }
    const OFF: [&str; 11] = [
        "shards",
        "shards_idx",
        "roles",
        "drop_system_message",
        "split_thinking",
        "logprobs_field",
        "input_transform",
        "input_format",
        "split_thinking_key",
        "skip",
        "max_steps",
    ];
    if OFF.contains(&key) {
        return if is_off(value) { Ok(None) } else { Err(not_supported(key, value, &format!("no `{key}`"))) };
    }
    let key = key.escape_debug();
    Err(Reject::Because(format!("found the unknown key `{key}` in a data set, expected `path`")))
}
