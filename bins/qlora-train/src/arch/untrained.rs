//! Model types that are known but cannot be trained, each with the nearest one that can.

/// A line of `model_types.txt` that names a type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Untrained {
    /// The model type of the nearest family that can be trained
    pub nearest: &'static str,
    /// The obstacle, as the end of a sentence about the type: "is a mixture of experts"
    pub what: &'static str,
}

/// Every type of the table, in its order. A line that begins with a space holds types; one before says what they have.
pub(super) fn table() -> impl Iterator<Item = (&'static str, Untrained)> {
    let mut of = None;
    let lines = include_str!("model_types.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(move |line| {
        if !line.starts_with(' ') {
            of = line.split_once(": ").map(|(nearest, what)| Untrained { nearest, what });
            return Vec::new();
        }
        line.split_whitespace().filter_map(|name| Some((name, of?))).collect()
    })
}

/// `None`: a type that the table does not have.
pub(super) fn untrained(model_type: &str) -> Option<Untrained> {
    table().find_map(|(name, untrained)| (name == model_type).then_some(untrained))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_type_is_listed_twice() {
        let names: Vec<&str> = table().map(|(name, _)| name).collect();
        assert!(names.len() > 780, "{}", names.len());
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn a_type_is_found_with_what_is_in_the_way() {
        let found = |name| untrained(name).map(|found| (found.nearest, found.what));
        assert_eq!(found("qwen3_moe"), Some(("qwen3", "is a mixture of experts")));
        assert_eq!(found("granite_swa"), Some(("granite", "has sliding-window attention")));
        assert_eq!(found("yolos").map(|(nearest, _)| nearest), Some("llama"));
        for unknown in ["llama", "", "experts", "qwen3:", "#"] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }
}
