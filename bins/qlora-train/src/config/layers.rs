//! From a settings file and flags to [`Settings`]: names are resolved, contradictions refused, flags win.

use std::collections::BTreeMap;
use std::path::Path;

use super::compat::{Implied, Known, is_section, lookup, nearest, normal};
use super::enums::{Preset, Scheduler};
use super::table::{SETTINGS, SettingInfo, Settings};
use super::types::{Reject, ValSet, is_off, is_unset};
use super::yaml::{self, Entry, Value};
use crate::error::{Error, Result};
use crate::refuse;

/// Of these pairs one setting stands in for the other, so a flag for one silences the file's other.
const INSTEAD: [(&str, &str); 2] = [("warmup_steps", "warmup_ratio"), ("val_data", "val_set_size")];

/// A value and how a message names its place: ``cfg.yaml line 3: `lora.rank` `` or `` `--lora-rank` ``.
#[derive(Clone)]
struct Given {
    place: String,
    value: Value,
}

/// Values from one file or from the flags, by the settings' own names.
#[derive(Default)]
struct Layer {
    given: BTreeMap<&'static str, Given>,
    weak: BTreeMap<&'static str, Given>,
}

fn rejected(place: &str, value: &Value, expected: &str, reject: Reject) -> Error {
    Error::Refused(match reject {
        Reject::Wrong => format!("{place}: found {value}, expected {expected}"),
        Reject::NotYet(name) => format!("{place}: `{name}` is not supported yet, expected {expected}"),
        Reject::Because(sentence) => format!("{place}: {sentence}"),
    })
}

impl Layer {
    fn add(&mut self, name: &str, given: Given) -> Result<()> {
        let Given { place, value } = &given;
        match lookup(name) {
            Some(Known::Setting(info)) => self.insert(info, given),
            Some(Known::Derived(derived)) => {
                let implied = (derived.read)(value).map_err(|r| rejected(place, value, derived.values, r))?;
                let Some(Implied { setting, value, weak }) = implied else { return Ok(()) };
                if weak {
                    self.weak.insert(setting, Given { value, ..given });
                    return Ok(());
                }
                self.insert(find(setting), Given { value, ..given })
            }
            Some(Known::Fixed(fixed)) => {
                let text = match value {
                    Value::Str(s) => s.trim().to_lowercase(),
                    other => other.to_string().trim_matches('`').to_owned(),
                };
                if *value != Value::Null && !fixed.accepted.is_empty() && !fixed.accepted.contains(&text.as_str()) {
                    refuse!(
                        "{place}: found {value}, expected `{}`: this trainer has nothing else",
                        fixed.accepted.join("` or `")
                    );
                }
                Ok(())
            }
            Some(Known::NotYet) if is_off(value) => Ok(()),
            Some(Known::NotYet) => {
                refuse!("{place}: found {value}, but this setting is not supported yet: remove it or turn it off")
            }
            None => {
                refuse!("{place} is not a known setting; the nearest known one is `{}`", nearest(name))
            }
        }
    }

    fn insert(&mut self, info: &'static SettingInfo, given: Given) -> Result<()> {
        let mut scratch = Settings::default();
        apply(info, &given, &mut scratch)?;
        let json = (info.get)(&scratch);
        if let Some(before) = self.given.get(info.name) {
            apply(info, before, &mut scratch)?;
            if (info.get)(&scratch) != json {
                refuse!(
                    "{}: found {}, but {} already gave `{}` the value {}: keep one of them",
                    given.place,
                    given.value,
                    before.place,
                    info.name,
                    before.value
                );
            }
            return Ok(());
        }
        self.given.insert(info.name, given);
        Ok(())
    }

    fn from_entries(entries: &[Entry], file: &str) -> Result<Self> {
        let mut layer = Layer::default();
        layer.add_section(entries, file, None)?;
        Ok(layer)
    }

    fn add_section(&mut self, entries: &[Entry], file: &str, section: Option<&str>) -> Result<()> {
        for Entry { key, line, value } in entries {
            let name = section.map_or_else(|| key.clone(), |section| format!("{section}.{key}"));
            match value {
                Value::Map(inner) if section.is_none() && is_section(&normal(key)) => {
                    self.add_section(inner, file, Some(key))?;
                }
                // `lora:` with nothing under it; where the name is a setting too, the setting judges the null.
                Value::Null if section.is_none() && is_section(&normal(key)) && lookup(key).is_none() => {}
                value => {
                    let place = format!("{file} line {line}: `{}`", shortened(&name));
                    self.add(&name, Given { place, value: value.clone() })?;
                }
            }
        }
        Ok(())
    }

    fn from_flags(flags: &[(String, String)]) -> Result<Self> {
        // Repeating the flag of a list adds to it.
        let mut lists: BTreeMap<&'static str, Given> = BTreeMap::new();
        let mut layer = Layer::default();
        for (name, text) in flags {
            let place = format!("`--{}`", shortened(&normal(name).replace('_', "-")));
            let value = Value::text(text);
            match lookup(name) {
                Some(Known::Setting(info)) if info.list && !is_unset(&value) => {
                    let list = lists.entry(info.name).or_insert(Given { place, value: Value::List(Vec::new()) });
                    if let Value::List(items) = &mut list.value {
                        items.push(value);
                    }
                }
                _ => layer.add(name, Given { place, value })?,
            }
        }
        for (name, given) in lists {
            layer.insert(find(name), given)?;
        }
        Ok(layer)
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect::<String>().escape_debug().to_string()
}

fn find(name: &str) -> &'static SettingInfo {
    SETTINGS.iter().find(|info| info.name == name).expect("names in code are names of the table")
}

fn apply(info: &SettingInfo, given: &Given, settings: &mut Settings) -> Result<()> {
    (info.set)(settings, &given.value).map_err(|reject| rejected(&given.place, &given.value, info.values, reject))
}

impl Settings {
    /// Defaults, then the preset, then the file, then the flags (`(name, value)`; any spelling of the name).
    ///
    /// Every value is checked, also one that a flag overrides. Refuses (exit status 2) with the place, what was found
    /// and what was expected. That `model` or `data` is given at all is checked by [`Settings::validate`].
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self> {
        let layer = match file {
            Some(path) => Layer::from_entries(&yaml::read_file(path)?, &path.display().to_string())?,
            None => Layer::default(),
        };
        merge(layer, Layer::from_flags(overrides)?)
    }

    /// [`Settings::load`] from YAML text that messages call `name`.
    pub fn from_yaml(text: &str, name: &str, overrides: &[(String, String)]) -> Result<Self> {
        merge(Layer::from_entries(&yaml::parse(text, name)?, name)?, Layer::from_flags(overrides)?)
    }
}

fn merge(mut file: Layer, flags: Layer) -> Result<Settings> {
    for (one, other) in INSTEAD {
        if flags.given.contains_key(one) || flags.given.contains_key(other) {
            file.given.remove(one);
            file.given.remove(other);
        }
    }
    let mut all = file.weak;
    all.extend(file.given);
    // Nothing weak silences something said outright.
    for (name, given) in flags.weak {
        all.entry(name).or_insert(given);
    }
    all.extend(flags.given);

    let mut settings = Settings::default();
    for info in SETTINGS {
        if let Some(given) = all.get(info.name) {
            apply(info, given, &mut settings)?;
        }
    }
    if settings.preset == Some(Preset::Loraplus) && !all.contains_key("loraplus_lr_ratio") {
        settings.loraplus_lr_ratio = 16.0;
    }
    one_warmup(&mut settings, &all)?;
    if settings.val_set_size != ValSet::Off && !settings.val_data.is_empty() {
        refuse!("{}: {}", all["val_set_size"].place, clash("val_set_size", "val_data", &all["val_data"].place));
    }
    Ok(settings)
}

fn clash(one: &str, other: &str, place: &str) -> String {
    format!("`{one}` stands in for `{other}`, which {place} gives as well: keep one of them")
}

/// Leaves at most one of `warmup_ratio` and `warmup_steps` in force, so that the resolved settings say it plainly.
fn one_warmup(settings: &mut Settings, all: &BTreeMap<&'static str, Given>) -> Result<()> {
    let ratio_given = all.get("warmup_ratio");
    match settings.warmup_steps {
        // transformers reads `warmup_steps: 0` beside a ratio as "see the ratio".
        Some(0.0) if ratio_given.is_some() => settings.warmup_steps = None,
        Some(steps) => {
            if let Some(ratio) = ratio_given.filter(|_| settings.warmup_ratio != 0.0) {
                refuse!("{}: {}", all["warmup_steps"].place, clash("warmup_steps", "warmup_ratio", &ratio.place));
            }
            let is_ratio = steps < 1.0;
            settings.warmup_ratio = if is_ratio { steps } else { 0.0 };
            settings.warmup_steps = (!is_ratio).then_some(steps);
        }
        None => {}
    }
    if settings.lr_scheduler_type == Scheduler::Constant {
        (settings.warmup_ratio, settings.warmup_steps) = (0.0, None);
    }
    Ok(())
}
