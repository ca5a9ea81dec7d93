use super::*;

#[test]
fn what_takes_too_many_steps_is_an_error_and_no_answer() {
    let costly = r"(?:(?:(?!x)[a-z_.0-9])+)+y";
    let module = "model.layers.11.self_attn.qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq_proj";
    let error = ModulePattern::new(costly).unwrap().matches(costly, module).unwrap_err();
    assert!(error.contains(costly) && error.contains(module) && error.contains("too many steps"), "{error}");
    let patterns = Patterns::new(&[("q".to_owned(), 1), (costly.to_owned(), 2)].into_iter().collect()).unwrap();
    assert_eq!(patterns.of("model.layers.1.q"), Ok(Some(1)));
    assert!(patterns.of(module).is_err() && patterns.matching_none([module].into_iter()).is_ok());
    assert!(patterns.matching_none(["x.q", module].into_iter()).is_err());
}

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
        assert_eq!(ModulePattern::new(key).unwrap().matches(key, module), Ok(expected), "{key}");
    }
    for wrong in ["(", "[a", "*"] {
        assert!(ModulePattern::new(wrong).is_err(), "{wrong}");
    }
}
