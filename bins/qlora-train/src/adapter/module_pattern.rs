//! Paths of modules: the layer in one, and the keys of PEFT's `rank_pattern` and `alpha_pattern`, which are regular
//! expressions for them.

use fancy_regex::Regex;
use indexmap::IndexMap;

/// Patterns with their values, compiled, in the order in which they are tried.
pub(crate) struct Patterns<T>(Vec<(String, ModulePattern, T)>);

impl<T: Copy> Patterns<T> {
    /// Failed: a key is no regular expression.
    pub fn new(pattern: &IndexMap<String, T>) -> Result<Self, String> {
        let compile = |(key, &value): (&String, &T)| match ModulePattern::new(key) {
            Ok(compiled) => Ok((key.clone(), compiled, value)),
            Err(error) => Err(format!("`{key}` is no regular expression: {error}")),
        };
        pattern.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    /// The value of the first pattern that matches. Failed: a pattern that takes too many steps.
    pub fn of(&self, module: &str) -> Result<Option<T>, String> {
        for (key, pattern, value) in &self.0 {
            if pattern.matches(key, module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    /// The first key that matches none of the modules. Failed: a pattern that takes too many steps.
    pub fn matching_none<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Result<Option<&str>, String> {
        'patterns: for (key, pattern, _) in &self.0 {
            for module in modules.clone() {
                if pattern.matches(key, module)? {
                    continue 'patterns;
                }
            }
            return Ok(Some(key));
        }
        Ok(None)
    }
}

/// PEFT's rule: the key matches the whole path of a module, or the end of it that follows a dot; "^" ties it to the
/// beginning.
pub(super) enum ModulePattern {
    /// A name or path, in which nothing but dots is special
    Name {
        name: String,
        from_start: bool,
    },
    Regex(Box<Regex>),
}

impl ModulePattern {
    /// Failed: no regular expression.
    pub fn new(key: &str) -> Result<Self, String> {
        let name = key.strip_prefix('^').unwrap_or(key);
        if name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')) {
            return Ok(Self::Name { name: name.to_owned(), from_start: name.len() < key.len() });
        }
        let regex = Regex::new(&format!(r"\A(.*\.)?({key})\z")).map_err(|error| error.to_string())?;
        Ok(Self::Regex(Box::new(regex)))
    }

    /// Failed: a regular expression that takes too many steps; `key` is what the error calls it.
    fn matches(&self, key: &str, module: &str) -> Result<bool, String> {
        match self {
            Self::Name { name, from_start } => {
                let Some(at) = module.len().checked_sub(name.len()) else { return Ok(false) };
                let (head, tail) = module.as_bytes().split_at(at);
                let begins = head.is_empty() || (!from_start && head.ends_with(b"."));
                Ok(begins && name.bytes().zip(tail).all(|(expected, &found)| expected == b'.' || expected == found))
            }
            Self::Regex(regex) => is_match(regex, key, module),
        }
    }
}

/// True if the regular expression that a user wrote as `key` matches. Failed: it takes too many steps.
pub(super) fn is_match(regex: &Regex, key: &str, module: &str) -> Result<bool, String> {
    regex.is_match(module).map_err(|_| {
        format!(
            "found the regular expression `{key}`, which takes too many steps for {module}, expected one without \
             repetitions inside of repetitions, such as `.*_proj`"
        )
    })
}

/// The number of the layer that a module is in: what follows "layers" in its path.
pub(super) fn layer_of(module: &str) -> Option<usize> {
    let mut parts = module.split('.').skip_while(|part| *part != "layers");
    parts.nth(1)?.parse().ok()
}

/// A key for the modules of a wrapped text model, as one for those of the text model alone.
pub(super) fn in_own_model(key: &str) -> String {
    let whole = [(r"language_model\.", ""), ("language_model.*", ".*"), ("language_model.", "")];
    whole.iter().fold(key.to_owned(), |key, (theirs, own)| key.replace(theirs, own))
}

#[cfg(test)]
mod tests;
