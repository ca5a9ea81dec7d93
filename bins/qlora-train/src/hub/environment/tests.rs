use super::*;

fn of(set: &[(&str, &str)]) -> Environment {
    Environment::of(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
}

#[test]
fn caches_follow_the_environment() {
    assert_eq!(of(&[("HOME", "/h")]).roots, [PathBuf::from("/h/.cache/huggingface/hub")]);
    let all = of(&[("HOME", "/h"), ("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y"), ("XDG_CACHE_HOME", "")]).roots;
    assert_eq!(all, ["/y", "/x/hub", "/h/.cache/huggingface/hub"].map(PathBuf::from));
    let cache = of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c"), ("HUGGINGFACE_HUB_CACHE", "/y")]).roots;
    assert_eq!(cache, ["/y", "/c/huggingface/hub", "/h/.cache/huggingface/hub"].map(PathBuf::from));
    let below_home = of(&[("HOME", "/h"), ("HF_HOME", "~/hf"), ("HF_HUB_CACHE", "~")]).roots;
    assert_eq!(below_home, ["/h/", "/h/hf/hub", "/h/.cache/huggingface/hub"].map(PathBuf::from));
    assert_eq!(of(&[("HF_HOME", "~/hf")]).roots, [PathBuf::from("~/hf/hub")], "nobody's home");
}

#[test]
fn a_word_turns_the_hub_off() {
    for (name, value, expected) in [
        ("HF_HUB_OFFLINE", "1", Some("HF_HUB_OFFLINE")),
        ("HF_HUB_OFFLINE", "true", Some("HF_HUB_OFFLINE")),
        ("TRANSFORMERS_OFFLINE", "yes", Some("TRANSFORMERS_OFFLINE")),
        ("HF_DATASETS_OFFLINE", "1", Some("HF_DATASETS_OFFLINE")),
        ("HF_HUB_OFFLINE", "0", None),
        ("HF_HUB_OFFLINE", "", None),
    ] {
        assert_eq!(of(&[(name, value)]).offline, expected, "{name}={value}");
    }
}

#[test]
fn the_hub_and_its_patience_are_read_or_refused() {
    assert_eq!(of(&[]).endpoint().unwrap().to_string(), DEFAULT_ENDPOINT);
    let mirror = of(&[(ENDPOINT, "http://127.0.0.1:8080/hub/")]).endpoint().unwrap();
    assert_eq!(mirror.to_string(), "http://127.0.0.1:8080/hub");
    for wrong in ["ftp://x", "huggingface.co", "http://", "a b"] {
        let error = of(&[(ENDPOINT, wrong)]).endpoint().unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(ENDPOINT), "{wrong}: {error}");
    }
    let error = of(&[(ENDPOINT, "http://me:secret@127.0.0.1")]).endpoint().unwrap_err().to_string();
    assert!(error.contains("found an address with a name") && !error.contains("secret"), "{error}");
    let error = of(&[(TIMEOUT, "0")]).timeout().unwrap_err().to_string();
    assert!(error.ends_with("expected seconds from 0.05 to 3600"), "{error}");
    assert_eq!(of(&[(TIMEOUT, "0.5")]).timeout().unwrap(), Duration::from_millis(500));
    for wrong in ["0", "-1", "soon", "NaN", "inf", "1e9"] {
        assert!(of(&[(TIMEOUT, wrong)]).timeout().unwrap_err().to_string().contains(TIMEOUT), "{wrong}");
    }
}

#[test]
fn a_token_comes_from_a_variable_or_a_file_and_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    let token = |set: &[(&str, &str)]| of(set).token().unwrap().map(|token| token.header());
    assert_eq!(token(&[("HF_HOME", home)]), None);
    std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
    std::fs::write(dir.path().join("other"), "hf_other").unwrap();
    let other = dir.path().join("other");
    assert_eq!(token(&[("HF_HOME", home)]).unwrap(), "Bearer hf_file");
    assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())]).unwrap(), "Bearer hf_other");
    assert_eq!(token(&[("HF_HOME", home), ("HUGGING_FACE_HUB_TOKEN", "old")]).unwrap(), "Bearer old");
    assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", "new"), (TOKENS[1], "old")]).unwrap(), "Bearer new");
    assert_eq!(token(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    let secret = of(&[("HF_TOKEN", "hf_secret\r\nx: y")]).token().unwrap_err().to_string();
    assert!(secret.contains("HF_TOKEN") && !secret.contains("secret"), "{secret}");
    assert!(!format!("{:?}", of(&[("HF_TOKEN", "hf_secret")]).token().unwrap()).contains("secret"));
}
