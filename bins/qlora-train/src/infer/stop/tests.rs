use super::*;

fn of(text: &str) -> Result<Stop> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), text).unwrap();
    Stop::of_generation_config(dir.path(), 10)
}

#[test]
fn one_id_several_and_none_are_read_and_others_are_named() {
    let tokens = |text: &str| of(text).unwrap().tokens;
    assert_eq!(Stop::of_generation_config(Path::new("no/such"), 10).unwrap(), Stop::default());
    assert_eq!(tokens(r#"{"eos_token_id": 3}"#), [3]);
    assert_eq!(tokens(r#"{"eos_token_id": [3, 9, 10, -1]}"#), [3, 9]);
    assert_eq!(tokens(r#"{"eos_token_id": null, "temperature": 0.6}"#), [0u32; 0]);
    let long = format!("{{\"stop_strings\": {:?}}}", "x".repeat(MAX_TEXT_BYTES + 1));
    let many = format!("{{\"stop_strings\": {:?}}}", vec!["x"; MAX_TEXTS + 1]);
    for bad in
        [r#"{"eos_token_id": "x"}"#, "{", r#"{"stop_strings": 3}"#, r#"{"stop_strings": ["a", ""]}"#, &long, &many]
    {
        let error = of(bad).unwrap_err();
        assert!(error.to_string().contains(FILE) && error.exit_status() == 2, "{error}");
    }
}

#[test]
fn an_answer_ends_with_a_text_of_the_model_and_before_one_of_the_user() {
    for (texts, found) in [(r#""</a>""#, 1), (r#"["</a>", "b"]"#, 2), ("[]", 0), ("null", 0)] {
        assert_eq!(of(&format!("{{\"stop_strings\": {texts}}}")).unwrap().texts().count(), found, "{texts}");
    }
    let own = of(r#"{"stop_strings": ["</a>", "b"]}"#).unwrap();
    for (text, expected) in [("x</a>y", "x</a>"), ("xb</a>", "xb"), ("nothing", "nothing"), ("</a></a>", "</a>")] {
        assert_eq!(cut(&own.texts, text), expected);
    }
    assert_eq!(own.note().unwrap(), r#"answers end with "</a>" or "b" too: `stop_strings` of generation_config.json"#);
    assert_eq!(own.clone().or_before(&[]), own);
    // The user's texts replace the model's.
    let users = own.or_before(&["END".to_owned(), "ND".to_owned()]);
    for (text, expected) in [("x</a>y END", "x</a>y "), ("END", ""), ("</a>", "</a>"), ("aND", "a")] {
        assert_eq!(cut(&users.texts, text), expected);
    }
    assert_eq!(users.note(), None);
    let many = of(r#"{"stop_strings": ["1", "2", "3", "4", "5"]}"#).unwrap().note().unwrap();
    assert!(many.contains(r#""4" and others"#) && !many.contains("\"5\""), "{many}");
}
