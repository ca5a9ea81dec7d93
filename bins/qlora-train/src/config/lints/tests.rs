use crate::config::{SETTINGS, Settings};

fn allowed(yaml: &str) -> Result<Vec<&'static str>, String> {
    let settings = Settings::from_yaml(yaml, "run.yaml", &[]).map_err(|error| error.to_string())?;
    Ok(settings.allow.names().to_vec())
}

#[test]
fn lints_are_named_in_a_list_a_text_or_a_section() {
    assert_eq!(allowed("seed: 1"), Ok(vec![]));
    for yaml in
        ["allow: [alpha, few-steps]", "allow: few_steps, alpha", "lints: {few_steps: off, alpha: false, plateau: on}"]
    {
        assert_eq!(allowed(yaml), Ok(vec!["few_steps", "alpha"]), "{yaml}");
    }
    for yaml in ["allow: []", "allow: none", "allow:", "lints: {}"] {
        assert_eq!(allowed(yaml), Ok(vec![]), "{yaml}");
    }
    assert_eq!(allowed("allow: all").unwrap().len(), crate::lint::LINTS.len());
    let flags = [("allow".to_owned(), "alpha".to_owned()), ("allow".to_owned(), "plateau".to_owned())];
    assert_eq!(Settings::load(None, &flags).unwrap().allow.names(), ["alpha", "plateau"]);
}

#[test]
fn a_name_that_is_no_lint_is_refused_with_the_nearest() {
    for (yaml, words) in [
        ("allow: [few_step]", "did you mean `few_steps`?"),
        ("allow: everything", "docs/lints.md lists them"),
        ("allow: [1]", "write it in quotes"),
        ("lints: {alpha: maybe}", "expected on or off"),
        ("lints: {beta: off}", "expected the name of a lint"),
    ] {
        let error = allowed(yaml).unwrap_err();
        assert!(error.contains("run.yaml line 1") && error.contains(words), "{yaml}: {error}");
    }
}

#[test]
fn it_is_read_back_from_its_record_and_changes_no_run() {
    let mut settings = Settings::from_yaml("allow: [alpha, plateau]", "", &[]).unwrap();
    let again = Settings::from_yaml(&settings.to_yaml().unwrap(), "", &[]).unwrap();
    assert_eq!(again, settings);
    let hash = settings.result_hash();
    settings.allow = Default::default();
    assert_eq!(settings.result_hash(), hash);
    assert!(SETTINGS.iter().any(|info| info.name == "allow" && info.list));
}
