use super::*;

#[test]
fn an_object_that_holds_rows_is_told_from_a_row() {
    let of = |text: &str, columns: &Columns| match nested_rows(text, columns) {
        Nested::Row => "row".to_owned(),
        Nested::Rows { key, rows, others } => format!("{key} {rows} {others}"),
        Nested::Several(why) => why,
    };
    let plain = Columns::default();
    assert_eq!(of(r#"{"data": [{"text": "a"}]}"#, &plain), r#"data [{"text": "a"}] "#);
    let more = r#"{"version": "1", "n": 3, "instances":[{"input": "a"}, {"input": "b"}], "tags": ["x"]}"#;
    assert_eq!(of(more, &plain), r#"instances [{"input": "a"}, {"input": "b"}] `version`, `n`, `tags`"#);
    let others: String = (0..25).map(|i| format!(r#", "k{i}": {i}"#)).collect();
    let many = of(&format!(r#"{{"data": [{{"text": "a"}}]{others}}}"#), &plain);
    assert!(many.contains("`k19` and 5 more") && !many.contains("`k20`"), "{many}");
    let several = of(r#"{"train": [{"a": 1}, {"a": 2}], "validation": [{"a": 1}]}"#, &plain);
    assert!(several.contains("`train` (2), `validation` (1)") && several.contains("`val_data`"), "{several}");
    for row in [
        r#"{"messages": [{"role": "user", "content": "a"}]}"#,
        r#"{"data": [{"role": "user", "content": "a"}]}"#,
        r#"{"data": [{"from": "human", "value": "a"}], "id": 1}"#,
        r#"{"text": "a", "data": [{"x": 1}]}"#,
        r#"{"talk": [{"speaker": "user", "text": "a"}]}"#,
        r#"{"data": []}"#,
        r#"{"data": [1]}"#,
        r#"{"data": [{"x": 1}, 2]}"#,
        r#"{"data": "#,
        "[]",
    ] {
        assert_eq!(of(row, &plain), "row", "{row}");
    }
    let named = Columns::new(None, None, None, None, Some("data"), None);
    assert_eq!(of(r#"{"data": [{"speaker": "user", "text": "a"}]}"#, &named), "row");
}

#[test]
fn a_list_at_the_beginning_is_seen_without_the_rest() {
    for (text, is) in [
        (r#"{"data": [{"text""#, true),
        (r#" {  "train"  :[ "#, true),
        (r#"{"text": ["#, false),
        (r#"{"data": {"#, false),
        (r#"{"data"#, false),
        ("[", false),
        ("", false),
    ] {
        assert_eq!(begins_with_list(text.as_bytes()), is, "{text}");
    }
}
