//! The setting that was probably meant by an unknown name.

use super::compat::{normal, working_names};
use super::table::{SETTINGS, SettingInfo};

/// Names that people try, and the setting that they mean: by spelling they are nearer to another one.
const MEANT: [(&[&str], &str); 9] = [
    (
        &["resume", "resume_from", "resume_training", "resume_run", "continue", "continue_from"],
        "resume_from_checkpoint",
    ),
    (&["eval_every", "evaluate_every", "eval_interval", "eval_freq", "val_every", "val_interval"], "eval_steps"),
    (&["save_interval", "save_freq", "checkpoint_every", "checkpoint_steps", "checkpoint_interval"], "save_steps"),
    (&["log_every", "logging_interval", "log_steps", "log_freq"], "logging_steps"),
    (&["warmup", "num_warmup_steps"], "warmup_steps"),
    (&["batch"], "batch_size"),
    (&["rank", "r", "lora_dim"], "lora_r"),
    (&["alpha"], "lora_alpha"),
    (&["dropout"], "lora_dropout"),
];

/// Prefixes of a name that mean no more than `true`.
const TURN_ON: [&str; 4] = ["enable_", "use_", "do_", "with_"];
/// Prefixes of a name that turn the setting off.
const TURN_OFF: [&str; 4] = ["no_", "disable_", "without_", "dont_"];

/// A name of any text, as messages show it.
pub fn shortened(name: &str) -> String {
    name.chars().take(80).collect::<String>().escape_debug().to_string()
}

/// A message's offer in place of an unknown name, in backquotes: a flag, or a key of a file.
pub fn suggestion(name: &str, as_flag: bool) -> Option<String> {
    let flag = |known: &str| known.replace('_', "-");
    if let Some(switch) = turned_off(name) {
        return Some(if as_flag { format!("`--{} false`", flag(switch)) } else { format!("`{switch}: false`") });
    }
    let near = nearest(name)?;
    Some(if as_flag { format!("`--{}`", flag(near)) } else { format!("`{near}`") })
}

/// The switch that a name such as `no_double_quant` turns off.
fn turned_off(name: &str) -> Option<&'static str> {
    let name = normal(name).to_lowercase();
    let rest = TURN_OFF.iter().find_map(|word| name.strip_prefix(word))?;
    let is_switch = |info: &&SettingInfo| info.name == rest || info.aliases.contains(&rest);
    SETTINGS.iter().filter(|info| info.switch).find(is_switch).map(|info| info.name)
}

/// The name of the setting that was probably meant: by meaning, by spelling, or by the beginnings of its words. None:
/// no name is similar enough.
pub fn nearest(name: &str) -> Option<&'static str> {
    // Names are short; a long text would only cost time.
    let name: String = normal(name).to_lowercase().chars().take(80).collect();
    if let Some((_, meant)) = MEANT.iter().find(|(words, _)| words.contains(&name.as_str())) {
        return Some(meant);
    }
    // `output.dir` is a key of a section and no flag, so a name without a section does not mean it.
    let names = || working_names().filter(|known| name.contains('.') || !known.contains('.'));
    if let Some(rest) = TURN_ON.iter().find_map(|word| name.strip_prefix(word))
        && let Some(known) = names().find(|known| *known == rest)
    {
        return Some(known);
    }
    let alike = |known: &str| strsim::normalized_damerau_levenshtein(known, &name);
    let close = names().filter(|known| is_close(known, &name));
    close.max_by(|a, b| alike(a).total_cmp(&alike(b))).or_else(|| names().find(|known| abbreviates(&name, known)))
}

/// True if a name may be a slip of the hand for a known one: as a whole, and where both have as many words, in each of
/// them, as `train_type` and `train_file` are not.
fn is_close(known: &str, name: &str) -> bool {
    const WHOLE: f64 = 0.7;
    const ONE_WORD: f64 = 0.75;
    const WORD_OF_SEVERAL: f64 = 0.6;
    const OTHER_WORDS: f64 = 0.85;
    // Counts are made in no time, and settle most names.
    let longer = known.chars().count().max(name.chars().count());
    if 1.0 - least_changes(known, name) as f64 / (longer as f64) < WHOLE {
        return false;
    }
    let whole = strsim::normalized_damerau_levenshtein(known, name);
    let (known, name) = (words(known), words(name));
    if known.len() != name.len() {
        return whole >= OTHER_WORDS;
    }
    let least = if name.len() == 1 { ONE_WORD } else { WORD_OF_SEVERAL };
    let alike = |(one, other): (&&str, &&str)| strsim::normalized_damerau_levenshtein(one, other) >= least;
    whole >= WHOLE && known.iter().zip(&name).all(alike)
}

/// Changes of a character, or of two neighbors, that it takes at least to make one text of another: as many as it lacks
/// of the other's characters, or has beyond them.
fn least_changes(one: &str, other: &str) -> usize {
    // Characters that share a place only lower the number.
    let mut counts = [0i32; 64];
    one.chars().for_each(|character| counts[character as usize % 64] += 1);
    other.chars().for_each(|character| counts[character as usize % 64] -= 1);
    let beyond: i32 = counts.iter().map(|count| count.max(&0)).sum();
    let lacking: i32 = counts.iter().map(|count| -count.min(&0)).sum();
    beyond.max(lacking) as usize
}

fn words(name: &str) -> Vec<&str> {
    name.split(['_', '.']).collect()
}

/// True if each word begins the word at its place in `known`, as `grad_accum` does those of
/// `gradient_accumulation_steps`. A single word, and words of fewer than four letters, are too ambiguous.
fn abbreviates(name: &str, known: &str) -> bool {
    let (mut words, mut known) = (name.split('_'), known.split('_'));
    name.contains('_') && words.all(|word| word.len() >= 4 && known.next().is_some_and(|whole| whole.starts_with(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_mean_another_thing_are_not_offered() {
        for name in
            ["compiler", "target", "train_kind", "use_lofta", "foo_token", "special_tokens.foo_token", "no_such_thing"]
        {
            assert_eq!(suggestion(name, true), None, "{name}");
        }
    }

    /// Names as near as their lengths let them be.
    #[test]
    fn no_close_name_is_passed_over_for_its_length() {
        for (one, other) in (1..80).flat_map(|one| (1..80).map(move |other| ("a".repeat(one), "a".repeat(other)))) {
            let is_near = strsim::normalized_damerau_levenshtein(&one, &other) >= 0.75;
            assert_eq!(is_close(&one, &other), is_near, "{one} {other}");
        }
    }

    /// Names that a count of characters settles are as far as their distance says.
    #[test]
    fn no_close_name_is_passed_over_for_its_characters() {
        for (one, other) in working_names().flat_map(|one| working_names().map(move |other| (one, other))) {
            let distance = strsim::damerau_levenshtein(one, other);
            assert!(least_changes(one, other) <= distance, "{one} {other}: {distance}");
        }
        assert_eq!(["abcd", "acbd", "axcd", "acd", ""].map(|name| least_changes("abcd", name)), [0, 0, 1, 1, 4]);
    }

    #[test]
    fn a_switch_that_is_turned_off_by_its_name_is_offered_turned_off() {
        assert_eq!(suggestion("--no-double-quant", true).as_deref(), Some("`--double-quant false`"));
        assert_eq!(suggestion("disable_packing", false).as_deref(), Some("`packing: false`"));
        assert_eq!(suggestion("no_lora_r", false), None, "no switch");
        assert_eq!(suggestion("enable_activation_checkpointing", false).as_deref(), Some("`activation_checkpointing`"));
    }
}
