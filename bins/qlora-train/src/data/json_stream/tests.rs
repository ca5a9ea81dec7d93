use super::*;
use std::io::BufReader;

/// Every value with its line, read through buffers of every small size.
fn values(text: &str, between: Between) -> Vec<(usize, String)> {
    let read = |capacity: usize| {
        let mut stream = JsonStream::new(BufReader::with_capacity(capacity, text.as_bytes()), 1);
        let mut found = Vec::new();
        while let Some(next) = stream.peek().unwrap() {
            if between == Between::Commas && next == b',' {
                stream.take(1);
                continue;
            }
            let text = stream.value(between, 1 << 20).unwrap();
            found.push((text.line, String::from_utf8(text.bytes).unwrap().trim_end().to_owned()));
        }
        found
    };
    let whole = read(1 << 10);
    (1..9).for_each(|capacity| assert_eq!(read(capacity), whole, "{capacity}"));
    whole
}

#[test]
fn values_end_where_they_should() {
    let text = "{\"a\": \"],}\\\"\\\\\"}\n ,\n\n[1, [2]] , 3 ,\"x,y\"";
    let found = values(text, Between::Commas);
    let expected = [(1, "{\"a\": \"],}\\\"\\\\\"}"), (4, "[1, [2]]"), (4, "3"), (4, "\"x,y\"")];
    assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    let found = values("{\n\"a\": {}}\n{}[1]\n 5 x", Between::Blanks);
    let expected = [(1, "{\n\"a\": {}}"), (3, "{}"), (3, "[1]"), (4, "5"), (4, "x")];
    assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    // A bracket too many is a value that no parser reads, and not nothing for ever.
    assert_eq!(values("}]", Between::Blanks).len(), 2);
}

#[test]
fn what_is_cut_or_too_long_is_told() {
    let value = |text: &str, between, most| JsonStream::new(text.as_bytes(), 1).value(between, most).unwrap();
    for text in ["{\"a\": 1", "\"abc", "[[1]", "\"a\\\""] {
        assert!(value(text, Between::Blanks, 100).cut && value(text, Between::Commas, 100).cut, "{text}");
    }
    assert!(!value("{}", Between::Blanks, 2).cut && value("{}", Between::Commas, 2).cut);
    assert!(value("[1, 2]", Between::Blanks, 5).too_long && !value("[1, 2]", Between::Blanks, 6).too_long);
}
