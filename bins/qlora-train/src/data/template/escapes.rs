//! Filters around HTML. Chat templates have no use for them, but Jinja's `safe` has an effect in one: text that is
//! added to a text marked as safe is escaped.

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

const ESCAPING: [&str; 3] = ["e", "escape", "forceescape"];

/// Makes rendering fail where the result would differ from Jinja's.
pub(super) fn add(environment: &mut Environment, source: &str) {
    let refused = |filter: &str| {
        let sentence = format!("the filter `{filter}` escapes text for HTML, which is not supported");
        move |_: Value| -> Result<Value, Error> { Err(Error::new(ErrorKind::InvalidOperation, sentence.clone())) }
    };
    for filter in ESCAPING {
        environment.add_filter(filter, refused(filter));
    }
    if adds_to_safe(source) {
        environment.add_filter("safe", refused("safe"));
    } else {
        environment.add_filter("safe", |value: Value| value);
    }
}

/// True if a tag has the filter `safe` and an operator that joins texts.
fn adds_to_safe(source: &str) -> bool {
    let tags = source.split("{{").flat_map(|part| part.split("{%"));
    tags.filter_map(|tag| tag.split("}}").next().and_then(|tag| tag.split("%}").next())).any(|tag| {
        let safe = tag.split('|').skip(1).any(|filter| {
            let rest = filter.trim_start().strip_prefix("safe");
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        });
        safe && tag.contains(['+', '~', '%'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_is_only_refused_beside_what_joins_texts() {
        for source in
            ["{{ 'a'|safe + b }}", "{{ a ~ (b | safe) }}", "{% set x = a|safe + b %}", "{{ a }}{{ b|safe+c }}"]
        {
            assert!(adds_to_safe(source), "{source}");
        }
        for source in ["{{ a|safe }}", "{{ a + b }}{{ c|safe }}", "{{ a|safely + b }}", "safe + {{ a }}"] {
            assert!(!adds_to_safe(source), "{source}");
        }
    }
}
