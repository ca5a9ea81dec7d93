use super::*;
use crate::config::Purpose;

const COMMIT: &str = "0e9e39f249a16976918f6564b8830bc894c89659";

fn files() -> Vec<TrainedFile> {
    let hub = format!("/home/me/hub/datasets--org--rows/snapshots/{COMMIT}/data/a.jsonl");
    let paths = [PathBuf::from(hub), PathBuf::from("/home/me/secret-customer.jsonl")];
    trained_files(&paths, &["01".to_owned(), "23".to_owned()])
}

#[test]
fn the_settings_of_a_card_are_read_again_and_name_no_place_of_the_machine() {
    let text = "model: /home/me/base\ndata: /home/me/secret-customer.jsonl\noutput_dir: /home/me/out\n\
                chat_template: /home/me/template.jinja\nlora_r: 4\nlearning_rate: 1e-2\ndata_weights: [1, 2]\n\
                rank_pattern: {'.*q_proj': 8}\n";
    let settings = Settings::from_yaml(text, "run.yaml", &[]).unwrap();
    let base = BaseName { name: "org/base".into(), revision: Some(COMMIT.into()), is_hub: true };
    let places = places(&settings, &base, &files(), &[]);
    let hub = format!("org/rows@{COMMIT}:data/a.jsonl");
    assert_eq!(places["data"], serde_json::json!([hub, "path/to/rows-2"]));
    assert_eq!(places["chat_template"], "path/to/template.jinja");
    assert!(!Value::Object(places.clone()).to_string().contains("/home/me"), "{places:?}");
    // The card has JSON in YAML. In a run the places are none of the settings that decide.
    let mut all = changed(&settings.result_settings());
    all.extend(places);
    for name in ["lora_alpha", "output_dir", "seed"] {
        assert!(!all.contains_key(name), "{name}: {all:?}");
    }
    let yaml: String = all.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    let output = ("output_dir".to_owned(), "out".to_owned());
    let again = Settings::from_yaml(&yaml, "settings.yaml", &[output]);
    let again = again.unwrap_or_else(|error| panic!("{yaml}: {error}"));
    again.validate(Purpose::Train).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    assert_eq!((again.lora_r, again.learning_rate), (4, Some(0.01)));
    assert_eq!(again.rank_pattern, settings.rank_pattern);
    assert_eq!(again.model.as_deref(), Some("org/base"));
}

#[test]
fn a_template_is_told_by_its_name_or_not_at_all() {
    let base = BaseName { name: "base".into(), revision: None, is_hub: false };
    for (given, told) in [
        ("phi-3.5", "phi-3.5"),
        ("chatml", "chatml"),
        ("tokenizer_default_fallback_chatml", "tokenizer_default_fallback_chatml"),
        ("tokenizer_default_fallback_mine", "tokenizer_default_fallback_path/to/template.jinja"),
        ("mine", "path/to/template.jinja"),
        ("a/b", "path/to/template.jinja"),
    ] {
        let settings = Settings { chat_template: Some(given.to_owned()), ..Settings::default() };
        assert_eq!(places(&settings, &base, &files(), &[])["chat_template"], told, "{given}");
    }
}

#[test]
fn a_file_whose_name_would_be_a_pattern_is_told_by_a_word() {
    for name in ["data/x[0].jsonl", "data/st*r.jsonl", "data/q?.jsonl", "data/two\nlines.jsonl"] {
        let origin = DataSetFile { id: "org/rows".into(), commit: COMMIT.into(), file: name.into() };
        let file = TrainedFile { sha256: "01".into(), origin: Some(origin) };
        assert_eq!(named(std::slice::from_ref(&file), "rows"), serde_json::json!(["path/to/rows"]), "{name}");
        let two = [files()[0].clone(), file];
        let hub = format!("org/rows@{COMMIT}:data/a.jsonl");
        assert_eq!(named(&two, "rows"), serde_json::json!([hub, "path/to/rows-2"]), "{name}");
    }
}

#[test]
fn what_decides_the_bits_is_told_in_words() {
    let recorded = serde_json::json!({"compute": "bf16, AMX"});
    assert_eq!(arithmetic(recorded.as_object().unwrap()), "bf16, AMX");
    assert_eq!(arithmetic(&Map::new()), "f32");
    assert_eq!(date(Timestamp::from_second(1_772_323_199).unwrap()), "2026-02-28");
    assert_eq!(summed(2, "by NCCL"), "of 2 processes were added up by NCCL");
    assert_eq!(summed(1, "by NCCL"), "of several processes were added up by NCCL");
}

#[test]
fn the_lowest_loss_is_that_of_the_best_evaluation() {
    let entry = |step: u64, eval_loss: f64| LogEntry { eval_loss: Some(eval_loss), ..LogEntry::new(step, 0.0) };
    let history = [entry(1, 2.0), LogEntry::new(2, 0.0), entry(3, f64::NAN), entry(4, 0.5), entry(5, 0.5)];
    assert_eq!(lowest(&history), Some((4, 0.5)));
    assert_eq!(lowest(&history[1..2]), None);
}
