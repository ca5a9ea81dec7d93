use super::super::card::configs;
use super::*;

fn choose(names: &[&str], card: &str, part: Option<&str>) -> Result<(Vec<String>, Vec<String>), String> {
    let configs = configs(card).unwrap();
    let chosen = Splits::new(names, configs.as_deref())?.choose(part)?;
    Ok((chosen.training, chosen.validation))
}

fn training(names: &[&str], card: &str, part: Option<&str>) -> String {
    choose(names, card, part).unwrap().0.join(" ")
}

#[test]
fn names_alone_tell_the_split_for_training() {
    let alpaca = ["README.md", "data/train-00000-of-00001-a09b.parquet", "dataset_infos.json", ".gitattributes"];
    assert_eq!(training(&alpaca, "", None), alpaca[1]);
    assert_eq!(training(&["README.md", "rows.json"], "", None), "rows.json");
    let parts = ["train.jsonl", "test.jsonl", "extra.jsonl", "valid.jsonl"];
    let (train, valid) = choose(&parts, "", None).unwrap();
    assert_eq!((train.join(" "), valid.join(" ")), ("train.jsonl".to_owned(), "valid.jsonl".to_owned()));
    assert_eq!(training(&parts, "", Some("test")), "test.jsonl");
    assert_eq!(training(&parts, "", Some("extra.jsonl")), "extra.jsonl");
    assert_eq!(training(&parts, "", Some("t*.jsonl")), "test.jsonl train.jsonl");
    // The rows once more in another form are left out.
    let twice = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "train.jsonl"];
    assert_eq!(training(&twice, "", None), twice[..2].join(" "));
}

#[test]
fn several_subsets_or_splits_have_to_be_chosen_from() {
    let gsm8k = [
        "main/train-00000-of-00001.parquet",
        "main/test-00000-of-00001.parquet",
        "socratic/train-00000-of-00001.parquet",
    ];
    let error = choose(&gsm8k, "", None).unwrap_err();
    assert!(error.contains("main/test, main/train, socratic/train"), "{error}");
    assert_eq!(training(&gsm8k, "", Some("main")), gsm8k[0]);
    assert_eq!(training(&gsm8k, "", Some("main/test")), gsm8k[1]);
    assert_eq!(choose(&gsm8k, "", Some("main")).unwrap().1, [gsm8k[1]]);
    assert!(choose(&gsm8k, "", Some("other")).unwrap_err().contains("has no part \"other\""));
    let chat = ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"];
    assert_eq!(choose(&chat, "", None).unwrap(), (vec![chat[0].to_owned()], vec![chat[1].to_owned()]));
    let two = ["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"];
    assert!(choose(&two, "", None).unwrap_err().contains("train_gen, train_sft"));
    assert_eq!(training(&two, "", Some("train_gen")), two[1]);
}

#[test]
fn a_card_wins_over_names() {
    let names = ["a/one.jsonl", "a/two.jsonl", "b/train.jsonl", "b/deep/x.jsonl"];
    let card = |files: &str| format!("---\nconfigs:\n- config_name: x\n  data_files:\n{files}---\n");
    assert_eq!(training(&names, &card("  - split: train\n    path: a/*\n"), None), "a/one.jsonl a/two.jsonl");
    assert_eq!(training(&names, &card("  - split: train\n    path: b/*\n"), None), "b/train.jsonl");
    assert_eq!(training(&names, &card("  - split: train\n    path: b/**\n"), None), "b/deep/x.jsonl b/train.jsonl");
    assert_eq!(training(&names, &card("  - split: train\n    path: a\n"), None), "a/one.jsonl a/two.jsonl");
    assert!(choose(&names, &card("  - split: train\n    path: '[['\n"), None).unwrap_err().contains("no pattern"));
    let dir = "---\nconfigs:\n- config_name: x\n  data_dir: b\n- config_name: y\n  data_dir: a\n---\n";
    assert_eq!(training(&names, dir, Some("x")), "b/train.jsonl");
    assert_eq!(training(&names, dir, Some("y")), "a/one.jsonl a/two.jsonl");
    let missing = card("  - split: train\n    path: gone/*\n");
    assert!(Splits::new(&names, configs(&missing).unwrap().as_deref()).unwrap().is_empty());
}

/// A card of few bytes may match every file of a repository many times.
#[test]
fn a_card_of_many_subsets_without_patterns_is_refused_and_long_names_are_cut() {
    let names: Vec<String> = (0..5000).map(|at| format!("data/rows-{at}.jsonl")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let card = format!("---\nconfigs:\n- data_dir: data\n{}---\n", "- config_name: x\n".repeat(1000));
    let error = Splits::new(&names, configs(&card).unwrap().as_deref()).unwrap_err();
    assert!(error.contains("more than 1000000 files"), "{error}");
    let long = "é".repeat(5000);
    let card = format!("---\nconfigs:\n- data_files:\n  - split: {long}\n    path: data\n---\n");
    let error = choose(&names, &card, None).unwrap_err();
    assert!(error.contains(&format!("{}…", "é".repeat(300))) && error.len() < 1000, "{error}");
}

#[test]
fn what_the_hub_converted_is_sorted_by_its_folders() {
    let names = ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"];
    let chosen = Splits::converted(&names).choose(None).unwrap();
    assert_eq!(chosen.training, names[..2]);
    assert_eq!(chosen.validation, names[2..]);
    assert!(Splits::converted(&["x.bin"]).is_empty());
}
