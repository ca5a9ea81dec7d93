//! Everything that a run reads before its first step: read by each of its processes and compared, and nothing trained.
//!
//! A process that cannot read one part goes on with those that do not need it: one look tells all that is amiss. One
//! that is alone has nothing to compare: there it is enough that files are there and can be read.

use super::identity::{commits_to_follow, result_settings, run_identity};
use super::sharing::{ASKED, KIND_OF_DEVICE, kind_of_device, name_of_part, settings_of_all};
use super::summing::{Sums, VARIABLE};
use crate::adapter::check_adapter;
use crate::arch::Arch;
use crate::comm::agreement::{Difference, differences};
use crate::comm::{Communicator, from_first};
use crate::config::{Purpose, Settings};
use crate::error::{Context, Result};
use crate::files::regular;
use crate::files::units::format_bytes;
use crate::hub::Environment;
use crate::infer::questions::{Questions, check_positions};
use crate::report::{count, thousands};
use crate::session::model_spec::{check_quantization, lora_spec};
use crate::session::training_data::find_files_by;
use crate::session::{Device, Loaded, TrainingData, description_alone, replace_adapter_by_base};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

const SETTINGS: &str = "settings";
const DEVICE: &str = "device";
const MODEL: &str = "model";
const WEIGHTS: &str = "base weights";
const DATA: &str = "data";
const TOKENIZER: &str = "tokenizer";
const TEMPLATE: &str = "chat template";

/// Parts of a run that several processes compare, in the order in which they are reported
const COMPARED: [&str; 7] = [SETTINGS, DEVICE, MODEL, WEIGHTS, DATA, TOKENIZER, TEMPLATE];
/// Parts that a process which is alone looks at
const LOOKED_AT: [&str; 5] = [SETTINGS, DEVICE, MODEL, DATA, TEMPLATE];

/// Words of messages between processes for what they send
const WHAT: &str = "what a run reads";

/// A rank that cannot read a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Unread {
    pub rank: usize,
    pub why: String,
}

/// One part of what a run reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub name: &'static str,
    /// Words for what the first rank that can read it has found; none: none can
    pub found: Option<String>,
    /// The rank that the others are compared with: the first that can read it
    pub first: usize,
    pub unread: Vec<Unread>,
    pub differences: Vec<Difference>,
}

/// All that a run reads before its first step.
pub struct Readiness {
    pub parts: Vec<Part>,
    /// Names of the processes, by rank
    pub names: Vec<String>,
}

/// Looks at everything that the run of these settings reads, on each rank, and compares it as a run does; all ranks
/// call it. `settings` may be an error: settings that a rank cannot read. Failed: a rank is gone, or does not come in
/// time.
pub fn readiness(settings: Result<Settings>, comm: &mut dyn Communicator) -> Result<Readiness> {
    // Templates that write the date are told one.
    let now = || Ok(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
    let clock = from_first(comm, "clock", now)?;
    let (local_rank, here) = comm.on_this_machine();
    let place = Place { local_rank, here, world_size: comm.world_size(), clock };
    let own = serde_json::to_vec(&Reading::of(settings, &place)).context(|| WHAT.to_owned())?;
    let all = comm.all_gather(WHAT, &own)?;
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).context(|| WHAT.to_owned());
    let all: Vec<Reading> = all.iter().map(read).collect::<Result<_>>()?;
    let parts = if place.world_size == 1 { &LOOKED_AT[..] } else { &COMPARED[..] };
    Ok(Readiness {
        parts: parts.iter().map(|&name| compared(name, &all)).collect(),
        names: (0..all.len()).map(|rank| comm.name_of(rank)).collect(),
    })
}

/// A part, as all ranks have found it.
fn compared(name: &'static str, all: &[Reading]) -> Part {
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for (rank, reading) in all.iter().enumerate() {
        match reading.parts.get(name) {
            Some(Ok(part)) => found.push((rank, part)),
            Some(Err(why)) => unread.push(Unread { rank, why: why.clone() }),
            None => unread.push(Unread { rank, why: "not looked at: it needs what is missing above".to_owned() }),
        }
    }
    let values: Vec<_> = found.iter().map(|(rank, part)| (*rank, part.values.clone())).collect();
    Part {
        name,
        found: found.first().map(|(_, part)| part.words.clone()),
        first: found.first().map_or(0, |(rank, _)| *rank),
        unread,
        differences: differences(&values),
    }
}

/// Facts that a process knows of the others before it reads.
struct Place {
    /// Number of this process on its machine
    local_rank: usize,
    /// Processes of its machine
    here: usize,
    world_size: usize,
    /// Time that a chat template is told
    clock: Timestamp,
}

/// A part that could be read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Found {
    words: String,
    /// Values that all ranks must have alike, by name
    values: Map<String, Value>,
}

impl Found {
    fn in_words(words: impl Into<String>) -> Self {
        Self { words: words.into(), values: Map::new() }
    }
}

/// Findings of one process, by the names of parts; parts that it did not reach are not there.
#[derive(Default, Serialize, Deserialize)]
struct Reading {
    parts: BTreeMap<String, Result<Found, String>>,
}

impl Reading {
    fn of(settings: Result<Settings>, place: &Place) -> Self {
        let mut reading = Self::default();
        let commits = settings.as_ref().map(commits_to_follow).unwrap_or_default();
        let hub = Environment::read().following(commits);
        let Some((mut settings, files)) = reading.note(SETTINGS, prepared(settings, place, &hub)) else {
            return reading;
        };
        let device = reading.note(DEVICE, chosen(&mut settings, place));
        if place.world_size == 1 {
            reading.note(DATA, files.and_then(|()| files_of(&settings)).map(|found| ((), found)));
            reading.look_at_model(&mut settings, device.as_ref(), place, &hub);
            return reading;
        }
        let opened = opened(&mut settings, device.as_ref(), place, &hub);
        let Some(loaded) = reading.note(MODEL, opened) else {
            if let Err(error) = files {
                reading.note::<()>(DATA, Err(error));
            }
            return reading;
        };
        reading.note(WEIGHTS, fingerprint(&loaded).map(|found| ((), found)));
        let rows = files.and_then(|()| rows_of(&settings, &loaded, place.clock));
        if let Some([tokenizer, template]) = reading.note(DATA, rows) {
            reading.note(TOKENIZER, Ok(((), tokenizer)));
            reading.note(TEMPLATE, Ok(((), template)));
        }
        reading
    }

    /// Notes a part, and gives what was read with it. None: it could not be read.
    fn note<T>(&mut self, part: &str, read: Result<(T, Found)>) -> Option<T> {
        let (value, found) = match read {
            Ok((value, found)) => (Some(value), Ok(found)),
            Err(error) => (None, Err(error.lines().join("; "))),
        };
        self.parts.insert(part.to_owned(), found);
        value
    }

    /// Notes the model of a process that is alone, which is not read: weights that are on the hub stay there.
    fn look_at_model(&mut self, settings: &mut Settings, device: Option<&Device>, place: &Place, hub: &Environment) {
        let not_here = match description_alone(settings, hub) {
            Ok(Some(dir)) => described(&dir),
            Ok(None) => {
                let Some(loaded) = self.note(MODEL, opened(settings, device, place, hub)) else { return };
                self.note(TEMPLATE, template_of(&loaded).map(|found| ((), found)));
                return;
            }
            Err(error) => Err(error),
        };
        if self.note(MODEL, not_here.map(|found| ((), found))).is_some() {
            self.note(TEMPLATE, Ok(((), Found::in_words("not looked at: it is read with the weights"))));
        }
    }
}

/// The settings as a run takes them, and whether the files of rows that they name were found.
fn prepared(settings: Result<Settings>, place: &Place, hub: &Environment) -> Result<((Settings, Result<()>), Found)> {
    let mut settings = settings?;
    // Without an output directory the other settings are still checked.
    let purpose = if settings.output_dir.is_some() { Purpose::Train } else { Purpose::Plan };
    settings.validate(purpose)?;
    replace_adapter_by_base(&mut settings)?;
    if let Some(adapter) = &settings.init_adapter {
        check_adapter(adapter).usage_context(|| "`init_adapter`".to_owned())?;
    }
    let files = find_files_by(&mut settings, hub);
    if files.is_ok() {
        settings.leave_out_evaluations();
        settings.validate(purpose)?;
    }
    let mut values = settings_of_all(&settings);
    values.insert(format!("the variable {VARIABLE}"), json!(Sums::asked_word()?));
    let each = settings.gradient_accumulation_steps;
    settings.gradient_accumulation_steps = each.saturating_mul(place.world_size);
    // Nothing is written.
    settings.tokenized_cache = None;
    let words = "read, and each is in its range".to_owned();
    Ok(((settings, files), Found { words, values }))
}

/// The device of this process, opened.
fn chosen(settings: &mut Settings, place: &Place) -> Result<(Device, Found)> {
    settings.device = Device::of_rank(settings.device, place.local_rank);
    let device = Device::choose(settings)?;
    let arithmetic = device.arithmetic().unwrap_or_else(|| "f32 on the CPU".to_owned());
    let values = [
        (KIND_OF_DEVICE.to_owned(), json!(kind_of_device(&device))),
        ("arithmetic (`compute`, `linear`)".to_owned(), json!(arithmetic)),
    ];
    let found = Found { words: device.in_words(), values: values.into_iter().collect() };
    Ok((device, found))
}

/// The base, opened and checked against the settings, without its weights.
fn opened(
    settings: &mut Settings,
    device: Option<&Device>,
    place: &Place,
    hub: &Environment,
) -> Result<(Loaded, Found)> {
    let mut loaded = Loaded::open_by(settings, hub)?;
    loaded.set_processes_here(place.here);
    loaded.set_clock(place.clock);
    if let Some(device) = device {
        loaded.check_size(settings, device)?;
    }
    let checkpoint = &loaded.checkpoint;
    check_quantization(settings, checkpoint)?;
    lora_spec(settings, checkpoint.arch())?;
    settings.resolve(loaded.parameters());
    let of_config = |(key, value): (String, Value)| (format!("`{key}` of {}", name_of_part("base_config")), value);
    let mut values: Map<String, Value> = checkpoint.arch().to_json("").into_iter().map(of_config).collect();
    values.insert(name_of_part("not_quantized"), json!(checkpoint.skipped_modules()));
    // Settings that this base changes.
    let asked = settings.to_json();
    let of_base = result_settings(settings, &loaded, None).into_iter();
    let changed = of_base.filter(|(name, value)| asked.get(name) != Some(value));
    values.extend(changed.map(|(name, value)| (format!("`{name}`, as the base has it"), value)));
    let words = format!(
        "{}: {} parameters, {}",
        checkpoint.dir().display(),
        thousands(loaded.parameters()),
        format_bytes(checkpoint.stored_bytes())
    );
    Ok((loaded, Found { words, values }))
}

/// A model of the hub of which only the description is here.
fn described(dir: &Path) -> Result<Found> {
    let arch = Arch::from_file(&dir.join("config.json"))?;
    let parameters = arch.num_parameters().unwrap_or(u64::MAX);
    Ok(Found::in_words(format!(
        "{}: {} parameters; its weights are not here yet, and a run fetches them",
        dir.display(),
        thousands(parameters)
    )))
}

/// The fingerprint of the base's weights, all of which are read for it.
fn fingerprint(loaded: &Loaded) -> Result<Found> {
    let fingerprint = loaded.checkpoint.fingerprint()?;
    let words = format!("fingerprint {fingerprint}");
    Ok(Found { words, values: [("the base's weights".to_owned(), json!(fingerprint))].into_iter().collect() })
}

/// The rows, with what is asked beside them; then tokenizer and chat template, which rows of text are read with.
fn rows_of(settings: &Settings, loaded: &Loaded, clock: Timestamp) -> Result<([Found; 2], Found)> {
    if settings.data.is_empty() {
        let none = || Found::in_words("not needed without data");
        return Ok(([none(), none()], Found::in_words("none is named")));
    }
    let data = TrainingData::load(settings, loaded)?;
    let questions = Questions::load(settings, loaded, &data.validation)?;
    check_positions(&questions.prompts(), loaded.checkpoint.arch(), data.longest)?;
    // Arithmetic is a matter of the device.
    let identity = run_identity(settings, loaded, &data, None, clock)?.judging(settings, &questions);
    let [mut of_rows, mut of_tokenizer, mut of_template] = [Map::new(), Map::new(), Map::new()];
    let whole = serde_json::to_value(&identity).context(|| "the run's identity".to_owned())?;
    for (key, value) in whole.as_object().into_iter().flatten() {
        let part = match key.as_str() {
            // Those of the settings and of the model were noted with them.
            "settings" | "base_config" | "not_quantized" => continue,
            "tokenizer" | "special_tokens" | "added_tokens" => &mut of_tokenizer,
            "chat_template" | "tool_template" | "clock" => &mut of_template,
            _ => &mut of_rows,
        };
        part.insert(name_of_part(key), value.clone());
    }
    of_rows.insert(ASKED.to_owned(), json!(questions.hash()));
    let (training, validation) = (count(data.rows.len() as u64, "row"), count(data.validation.len() as u64, "row"));
    let words = format!("{training} to train on, {validation} to validate on");
    let (tokenizer, template) = match loaded.tokenizer() {
        Some(tokenizer) => ("tokenizer.json of the model".to_owned(), tokenizer.template_origin().to_owned()),
        None => ("not needed: all rows are token ids".to_owned(), "not needed: all rows are token ids".to_owned()),
    };
    let found = [(tokenizer, of_tokenizer), (template, of_template)].map(|(words, values)| Found { words, values });
    Ok((found, Found { words, values: of_rows }))
}

/// The files of the rows, opened and not read.
fn files_of(settings: &Settings) -> Result<Found> {
    let (mut files, mut bytes) = (0, 0);
    for path in settings.data.iter().chain(&settings.val_data) {
        files += 1;
        // A pipe can be read once only, by the run.
        if regular::in_place_of(path) == Some("a pipe") {
            continue;
        }
        let read = || -> std::io::Result<u64> {
            let file = regular::open(path)?;
            let length = file.metadata()?.len();
            file.take(1).read_to_end(&mut Vec::new())?;
            Ok(length)
        };
        bytes += read().usage_context(|| format!("{}: cannot be read", path.display()))?;
    }
    Ok(Found::in_words(match files {
        0 => "none is named".to_owned(),
        _ => format!("{}, {}", count(files, "file"), format_bytes(bytes)),
    }))
}

/// The chat template, read where the model has a tokenizer.
fn template_of(loaded: &Loaded) -> Result<Found> {
    if !loaded.checkpoint.dir().join("tokenizer.json").exists() {
        return Ok(Found::in_words("none: the model has no tokenizer.json, and rows have to be token ids"));
    }
    Ok(Found::in_words(loaded.open_tokenizer()?.template_origin()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(parts: Value) -> Reading {
        serde_json::from_value(json!({"parts": parts})).unwrap()
    }

    #[test]
    fn a_part_is_compared_among_the_ranks_that_can_read_it() {
        let data = |hash: &str| json!({"Ok": {"words": format!("{hash} here"), "values": {"the rows": hash}}});
        let all = [
            reading(json!({"data": {"Err": "rows.jsonl: cannot be read"}})),
            reading(json!({"data": data("a")})),
            reading(json!({"data": data("b")})),
            reading(json!({})),
            reading(json!({"data": data("a")})),
        ];
        let part = compared(DATA, &all);
        assert_eq!((part.found.as_deref(), part.first), (Some("a here"), 1));
        let unread: Vec<_> = part.unread.iter().map(|unread| (unread.rank, unread.why.as_str())).collect();
        let expected = [(0, "rows.jsonl: cannot be read"), (3, "not looked at: it needs what is missing above")];
        assert_eq!(unread, expected);
        let there = ["the rows", "\"b\"", "\"a\""].map(str::to_owned);
        let [name, there, here] = there;
        assert_eq!(part.differences, [Difference { rank: 2, name, there, here }]);
        let none = compared(DATA, &all[..1]);
        assert!(none.found.is_none() && none.unread.len() == 1 && none.differences.is_empty());
    }
}
