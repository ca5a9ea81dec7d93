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

    /// The value of the first pattern that matches.
    pub fn of(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(_, pattern, _)| pattern.matches(module)).map(|&(_, _, value)| value)
    }

    /// The first key that matches none of the modules.
    pub fn matching_none<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Option<&str> {
        let matches = |pattern: &ModulePattern| modules.clone().any(|module| pattern.matches(module));
        self.0.iter().find(|(_, pattern, _)| !matches(pattern)).map(|(key, ..)| key.as_str())
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

    pub fn matches(&self, module: &str) -> bool {
        match self {
            Self::Name { name, from_start } => {
                let Some(at) = module.len().checked_sub(name.len()) else { return false };
                let (head, tail) = module.as_bytes().split_at(at);
                let begins = head.is_empty() || (!from_start && head.ends_with(b"."));
                begins && name.bytes().zip(tail).all(|(expected, &found)| expected == b'.' || expected == found)
            }
            // What costs too many steps matches nothing.
            Self::Regex(regex) => regex.is_match(module).unwrap_or(false),
        }
    }
}

/// The number of the layer that a module is in: what follows "layers" in its path.
pub(super) fn layer_of(module: &str) -> Option<usize> {
    let mut parts = module.split('.').skip_while(|part| *part != "layers");
    parts.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys match like `re.match(rf"(.*\.)?({key})$", module)` of Python.
    #[test]
    fn keys_match_as_in_peft() {
        let module = "model.layers.11.self_attn.q_proj";
        for (key, expected) in [
            ("q_proj", true),
            ("self_attn.q_proj", true),
            (module, true),
            ("proj", false),
            ("_proj", false),
            ("self_attn", false),
            ("^q_proj", false),
            ("^model.layers.11.self_attn.q_proj", true),
            ("layers.1.self_attn.q_proj", false),
            (".*_proj", true),
            ("[qk]_proj", true),
            ("(q|v)_proj", true),
            ("q_proj|v_proj", true),
            ("v_proj|k_proj", false),
            (r"layers\.(1|2)\..*", false),
            (r"layers\.1\d\.self_attn\..*", true),
            (r"^model\.layers\.\d+\.self_attn\.[qv]_proj", true),
            (r"^layers\.\d+\..*", false),
            (r".*\.1[0-9]\..*proj", true),
            (r"(?!.*mlp).*q_proj", true),
            // The first group is that before the key, the second the key's own.
            (r"(q)_proj(?!\3)", true),
            ("model.layers.11.self_attn.q_proj.x", false),
            ("", false),
        ] {
            assert_eq!(ModulePattern::new(key).unwrap().matches(module), expected, "{key}");
        }
        for wrong in ["(", "[a", "*"] {
            assert!(ModulePattern::new(wrong).is_err(), "{wrong}");
        }
    }
}
