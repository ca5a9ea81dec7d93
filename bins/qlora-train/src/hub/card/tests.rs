use super::*;

#[test]
fn a_card_names_subsets_splits_and_patterns() {
    let card = "---
license: mit
dataset_info:
- features:
  - name: question
    dtype: string
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path:
    - main/test-*
    - more/test.json
- config_name: socratic
  default: true
  data_files: socratic/*.parquet
- config_name: plain
  data_files:
  - a.jsonl
  - b.jsonl
---
# x
";
    let configs = configs(card).unwrap().unwrap();
    let names: Vec<_> = configs.iter().map(|config| config.config_name.as_deref().unwrap()).collect();
    assert_eq!(names, ["main", "socratic", "plain"]);
    assert_eq!(configs.iter().map(|config| config.default).collect::<Vec<_>>(), [None, Some(true), None]);
    let of = |at: usize| {
        let splits = configs[at].splits();
        splits.into_iter().map(|(split, paths)| format!("{split}={}", paths.join("|"))).collect::<Vec<_>>()
    };
    assert_eq!(of(0), ["train=main/train-*", "test=main/test-*|more/test.json"]);
    assert_eq!(of(1), ["train=socratic/*.parquet"]);
    assert_eq!(of(2), ["train=a.jsonl|b.jsonl"]);
}

#[test]
fn a_card_may_say_nothing_and_broken_yaml_is_told() {
    let without_files = "---\nconfigs:\n- config_name: x\n---\n";
    for card in ["", "# A data set", "---\nlicense: mit\n---\n", "---\n---\n", without_files] {
        assert_eq!(configs(card).unwrap(), None, "{card}");
    }
    for card in ["---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "---\na: b: c\n---\n"] {
        assert!(configs(card).is_err(), "{card}");
    }
    let long = format!("---\nconfigs: {}\n---\n", "x".repeat(100_000));
    assert!(configs(&long).unwrap_err().len() < 2000);
    // Lines may end as Windows ends them, and the card without one.
    for card in ["---\r\nconfigs:\r\n- data_dir: a\r\n---\r\n", "---\nconfigs:\n- data_dir: a"] {
        assert_eq!(configs(card).unwrap().unwrap()[0].data_dir.as_deref(), Some("a"), "{card:?}");
    }
}

#[test]
fn a_card_has_fields_or_none_or_no_yaml() {
    let has = |card: &str| has_fields(card);
    assert_eq!(has("---\nlicense: mit\ntags: [a, {b: c}]\n---\n# x\n"), Ok(true));
    for card in ["", "# x", "---\n---\n", "---\n{}\n---\n", "---\nlicense: mit\n", "---\nlicense: mit"] {
        assert_eq!(has(card), Ok(false), "{card}");
    }
    for card in ["---\na: [\n---\n", "---\na: b: c\n---\n", "---\n- a\n---\n"] {
        assert!(has(card).is_err(), "{card}");
    }
    // Messages do not mention the options of a library.
    let twice = has("---\na: 1\na: 2\n---\n").unwrap_err();
    assert!(twice.contains("duplicate mapping key") && !twice.contains("Policy"), "{twice}");
}

#[test]
fn splits_are_gathered_in_time_that_grows_with_their_number() {
    let entry = |at: usize| Entry::Split { split: format!("s{}", at % 100_000), path: Paths::One(at.to_string()) };
    let data_files = Some(DataFiles::List((0..200_000).map(entry).collect()));
    let config = Config { config_name: None, default: None, data_dir: None, data_files };
    let splits = config.splits();
    assert_eq!((splits.len(), &splits[7]), (100_000, &("s7".to_owned(), vec!["7".to_owned(), "100007".to_owned()])));
}
