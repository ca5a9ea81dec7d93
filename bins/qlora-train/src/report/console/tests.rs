use super::*;

#[test]
fn a_long_line_is_told_in_part() {
    for c in ["a", "é", "語", "🦀"] {
        let whole = c.repeat(TOLD_BYTES / c.len());
        assert!(matches!(in_part(&whole), Cow::Borrowed(_)));
        let line = format!("begin {} end", c.repeat(1 << 20));
        let told = in_part(&line);
        let (begin, rest) = told.split_once(" … (").unwrap();
        let (left_out, end) = rest.split_once(" bytes left out) … ").unwrap();
        assert!(line.starts_with(begin) && line.ends_with(end) && begin.starts_with("begin ") && end.ends_with(" end"));
        assert_eq!(begin.len() + left_out.parse::<usize>().unwrap() + end.len(), line.len());
        assert!(told.len() < TOLD_BYTES + 60, "{}", told.len());
    }
}

#[test]
fn control_characters_are_escaped_and_the_rest_is_left() {
    assert!(matches!(printable("loss 0.5: 70% ⟦größer⟧"), Cow::Borrowed(_)));
    assert_eq!(printable("a\x1b[31mb\x07\r\n\u{9b}2J\u{202e}x\x7f"), r"a\u{1b}[31mb\u{7}\r\n\u{9b}2J\u{202e}x\u{7f}");
    assert_eq!(printable_lines("a\n\tb\r\x1b"), "a\n\tb\\r\\u{1b}");
    assert_eq!(printable("a\u{200b}b\u{feff}"), r"a\u{200b}b\u{feff}", "names that would look the same");
    for kept in ["क्‍ष", "👩‍🔬", "می‌خواهم"] {
        assert_eq!(printable(kept), kept, "joined");
    }
    for text in [printable_lines, printable_text] {
        assert_eq!(text("ខ្ញុំ\u{200b}ស្រឡាញ់"), "ខ្ញុំ\u{200b}ស្រឡាញ់", "text of a language");
    }
    assert_eq!(printable_text("a\n\tb\x1b"), r"a\n\tb\u{1b}");
    assert_eq!(printable("a\u{e0041}\u{3164}"), r"a\u{e0041}\u{3164}", "tags and blanks");
    assert_eq!(printable("辻\u{e0100}❤\u{fe0f}"), "辻\u{e0100}❤\u{fe0f}", "forms");
    assert_eq!(printable("a\u{fffe}\u{ffff}"), r"a\u{fffe}\u{ffff}", "what no YAML holds");
    let value = serde_json::json!({"a\u{9b}": "\u{202e}\u{7f}\u{1b}\n\u{ffff}\u{e0041}"});
    let json = value.to_string();
    assert!(printable_json(&json).contains(r"\udb40\udc41"));
    assert!(json.contains(is_harmful) && !printable_json(&json).contains(is_harmful));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&printable_json(&json)).unwrap(), value);
}
