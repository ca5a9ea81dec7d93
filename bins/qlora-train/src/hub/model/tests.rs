use super::super::listing::File;
use super::*;

fn listing(names: &[&str]) -> Listing {
    let file = |name: &&str| File { name: (*name).to_owned(), size: None, blob: None };
    let commit = "0123456789abcdef0123456789abcdef01234567".to_owned();
    Listing { commit, files: names.iter().map(file).collect(), license: None }
}

#[test]
fn a_repository_without_a_model_says_what_it_has() {
    let id = HubId::parse("org/name").unwrap();
    let kind = |names: &[&str]| check_kind(&listing(names), &id).unwrap_err().to_string();
    assert!(kind(&["adapter_config.json", "adapter_model.safetensors"]).contains("holds an adapter"));
    assert!(kind(&["model.Q4_K_M.gguf"]).contains("it has model.Q4_K_M.gguf"));
    let weights = |names: &[&str]| check_weights(&listing(names), &id).unwrap_err().to_string();
    assert!(weights(&["config.json", "pytorch_model.bin"]).contains("it has pytorch_model.bin"));
    assert!(check_weights(&listing(&[INDEX]), &id).is_ok());
}

#[test]
fn a_snapshot_is_whole_with_every_shard() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let whole = |need| is_whole(dir.path(), need);
    write(CONFIG, "{}");
    assert!(!whole(Need::Description));
    write(TOKENIZER, "{}");
    assert!(whole(Need::Description) && !whole(Need::Weights));
    for index in ["", "[]", r#"{"weight_map": {"a": 3}}"#] {
        write(INDEX, index);
        assert!(!whole(Need::Weights), "{index}");
    }
    write(INDEX, r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#);
    write("one.safetensors", "");
    assert!(!whole(Need::Weights));
    write("two.safetensors", "");
    assert!(whole(Need::Weights));
    let id = HubId::parse("org/name").unwrap();
    let error = shards(&dir.path().join(INDEX), &listing(&["one.safetensors"]), &id).unwrap_err().to_string();
    assert!(error.contains("two.safetensors") && error.contains("does not have"), "{error}");
}
