//! Text from outside, escaped for Markdown and YAML: none of its characters acts as markup.

use crate::report::{printable, printable_lines};

/// Longest text in one line, in characters
const MOST_CHARS: usize = 2000;

/// A text in one line of Markdown, in a cell of a table too.
pub(super) fn inline(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = printable(&text);
    let chars: Vec<char> = shown.chars().collect();
    let is_word = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(|c| c.is_alphanumeric());
    let mut escaped = String::with_capacity(shown.len() + 16);
    for (at, &c) in chars.iter().take(MOST_CHARS).enumerate() {
        let is_markup = match c {
            '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '&' | '|' | '~' | '$' | '!' | '@' | '#' => true,
            // Between letters it is no markup.
            '_' => !(is_word(at.checked_sub(1)) && is_word(Some(at + 1))),
            // Neither an address nor an emoji.
            ':' => chars.get(at + 1).is_some_and(|next| !next.is_whitespace()),
            _ => false,
        };
        if is_markup {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    if chars.len() > MOST_CHARS {
        escaped.push('…');
    }
    escaped
}

/// A block of code, which no line of the text ends.
pub(super) fn code(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest + 1));
    format!("{fence}{language}\n{}\n{fence}\n", printable_lines(text.trim_end_matches('\n')))
}

/// A table of two columns, without a head.
pub(super) fn table(rows: impl IntoIterator<Item = (String, String)>) -> String {
    let mut table = String::from("| | |\n|---|---|\n");
    for (name, value) in rows {
        table += &format!("| {} | {} |\n", inline(&name), inline(&value));
    }
    table
}

/// A text in YAML, in quotes.
pub(super) fn quoted(text: &str) -> String {
    // JSON is YAML.
    serde_json::Value::from(printable(text)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_of_a_text_is_markup() {
        for (text, expected) in [
            ("q_proj, k_proj; nf4, block 64", "q_proj, k_proj; nf4, block 64"),
            ("models/my-model 1.5 (a)", "models/my-model 1.5 (a)"),
            ("a | b\nc", r"a \| b c"),
            ("[x](javascript:alert(1)) ![y](z)", r"\[x\](javascript\:alert(1)) \!\[y\](z)"),
            ("<script>&amp;</script>", r"\<script\>\&amp;\</script\>"),
            ("_x_ __y__ **z** `c` ~~d~~ $e$", r"\_x\_ \_\_y\_\_ \*\*z\*\* \`c\` \~\~d\~\~ \$e\$"),
            (r".*\.(q|k)_proj", r".\*\\.(q\|k)\_proj"),
            ("https://x.y :smile: a: b @me #1", r"https\://x.y \:smile: a: b \@me \#1"),
            ("\u{1b}[31m\u{202e}x", r"\\u{1b}\[31m\\u{202e}x"),
        ] {
            assert_eq!(inline(text), expected);
        }
        assert_eq!(inline(&"x".repeat(3000)).chars().count(), MOST_CHARS + 1);
    }

    #[test]
    fn no_line_of_a_text_ends_its_block() {
        assert_eq!(code("yaml", "a: 1\n"), "```yaml\na: 1\n```\n");
        assert_eq!(code("", "a\n````\nb\u{1b}"), "`````\na\n````\nb\\u{1b}\n`````\n");
    }

    #[test]
    fn a_text_in_yaml_stays_one() {
        assert_eq!(quoted("apache-2.0"), "\"apache-2.0\"");
        assert_eq!(quoted("a\"b\nc: d"), r#""a\"b\\nc: d""#);
    }
}
