//! The settings as command-line arguments, made from the table: `[CONFIG] --name value…`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::compat::{DERIVED, FOREIGN};
use super::path_args::path_from_home;
use super::suggest::suggestion;
use super::table::{SETTINGS, Settings};
use super::yaml::{self, Value};
use crate::error::{Error, Result};
use crate::report::status;

/// `#[command(flatten)] settings: SettingsArgs` gives a command of the trainer its settings, their `--help` included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsArgs {
    pub file: Option<PathBuf>,
    /// In the table's order, a repeated flag once for each time.
    pub overrides: Vec<(String, String)>,
}

impl SettingsArgs {
    /// Reads the settings, and prints notes on them, such as keys that have no effect.
    pub fn load(&self) -> Result<Settings> {
        let loaded = Settings::load_noting(self.file.as_deref(), &self.overrides);
        let (settings, notes) = loaded.map_err(|error| self.doubting_the_file(error))?;
        for note in notes {
            status!("{note}");
        }
        Ok(settings)
    }

    /// The error, with a hint if the name of the settings file is not one: rows that follow `--data a.jsonl` without a
    /// flag of their own.
    fn doubting_the_file(&self, error: Error) -> Error {
        let Some(file) = self.file.as_deref() else { return error };
        let ending = file.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        if ending.is_some_and(|ending| ["yaml", "yml", "json"].contains(&ending.as_str())) {
            return error;
        }
        let (mut lines, name) = (error.lines(), file.display().to_string());
        let Some(first) = lines.first_mut().filter(|first| first.starts_with(&name)) else { return error };
        *first = format!(
            "{first}; {name} was read as the settings file, as it follows no flag: each further file of rows takes \
             another `--data`"
        );
        Error::RefusedLines(lines)
    }

    /// The value of a key as it was written: the last of the flags, or the file's.
    pub fn given(&self, key: &str) -> Option<String> {
        let flag = self.overrides.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        flag.or_else(|| {
            let document = yaml::read_file(self.file.as_deref()?).ok()?;
            let entry = document.entries.into_iter().find(|entry| entry.key == key)?;
            match entry.value {
                Value::Str(text) => Some(text),
                Value::Int(number) => Some(number.to_string()),
                _ => None,
            }
        })
    }

    /// The settings file, if any, for messages and records.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

/// Splits a command's own arguments (without program and command name) into settings file and overrides.
///
/// Refuses an unknown flag, naming the nearest known one.
pub fn parse_overrides<S: Into<OsString> + Clone>(args: &[S]) -> Result<SettingsArgs> {
    let command = SettingsArgs::augment_args(Command::new("settings").no_binary_name(true).disable_help_flag(true));
    let matches = command.try_get_matches_from(args.iter().cloned()).map_err(|e| {
        unknown_flag(&e).unwrap_or_else(|| {
            let text = e.render().to_string();
            // clap's usage lines would name a command that does not exist.
            let text = text.split("\n\nUsage:").next().unwrap_or(&text);
            Error::Refused(text.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" "))
        })
    })?;
    SettingsArgs::from_arg_matches(&matches).map_err(|e| Error::Refused(e.to_string()))
}

/// If clap met a `--flag` that it does not know: the error that names the nearest one, in one sentence.
pub fn unknown_flag(error: &clap::Error) -> Option<Error> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if flag.starts_with("--") => {
            let near = suggestion(flag, true).map(|meant| format!("; did you mean {meant}?"));
            let near = near.unwrap_or_else(|| "; `--help` lists them".to_owned());
            Some(Error::Refused(format!("`{}` is not a known setting{near}", flag.escape_debug())))
        }
        _ => None,
    }
}

struct Flag {
    /// The name that [`Settings::load`] takes; also the argument's id.
    name: &'static str,
    long: String,
    others: Vec<String>,
    help: Option<String>,
    /// Heading of its group of settings
    heading: &'static str,
    switch: bool,
}

/// Text below the settings in a command's `--help`.
const AFTER: &str = "Every setting can stand in CONFIG.yaml too, with _ for -; `qlora-train init` writes such a file.";

/// clap keeps `&'static str`, so the spellings live as long as the process.
static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(|| {
    let settings = SETTINGS.iter().map(|info| {
        let others = info.aliases.iter().copied();
        let help = format!("{} [{}; default: {}]", info.help, info.values, info.default);
        Flag { heading: info.group(), ..flag(info.name, others, Some(help), info.switch) }
    });
    let derived = DERIVED.iter().map(|d| flag(d.names[0], d.names[1..].iter().copied(), None, d.switch));
    let foreign = FOREIGN.iter().map(|foreign| flag(foreign.name, std::iter::empty(), None, true));
    settings.chain(derived).chain(foreign).collect()
});

fn flag(name: &'static str, aliases: impl Iterator<Item = &'static str>, help: Option<String>, switch: bool) -> Flag {
    let spellings = std::iter::once(name).chain(aliases).flat_map(|alias| [alias.replace('_', "-"), alias.into()]);
    let long = name.replace('_', "-");
    let mut others: Vec<String> = spellings.filter(|other| *other != long).collect();
    others.sort();
    others.dedup();
    Flag { name, long, others, help, heading: "", switch }
}

impl Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("settings_file")
            .value_name("CONFIG.yaml")
            .help("Settings file; the flags below win over it")
            .value_parser(path_from_home());
        FLAGS.iter().fold(command.arg(file).after_help(AFTER), |command, flag| {
            let mut arg = Arg::new(flag.name)
                .long(flag.long.as_str())
                .aliases(flag.others.iter().map(String::as_str))
                .value_name("VALUE")
                .help_heading(flag.heading)
                // Repeated flags are checked with the values: lists grow, and equal values pass.
                .action(ArgAction::Append)
                .allow_negative_numbers(true);
            arg = match &flag.help {
                Some(help) => arg.help(help.as_str()),
                None => arg.hide(true),
            };
            if flag.switch {
                arg = arg.num_args(0..=1).default_missing_value("true");
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Vec::new();
        for flag in FLAGS.iter() {
            for value in matches.get_many::<String>(flag.name).into_iter().flatten() {
                overrides.push((flag.name.to_owned(), value.clone()));
            }
        }
        Ok(SettingsArgs { file: matches.get_one::<PathBuf>("settings_file").cloned(), overrides })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
