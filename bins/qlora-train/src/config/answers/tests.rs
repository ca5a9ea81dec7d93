use super::*;
use crate::config::Settings;

#[test]
fn a_text_is_a_file_and_a_list_holds_prompts() {
    let of = |yaml: &str| Settings::from_yaml(yaml, "f", &[]).map(|settings| settings.sample_prompts);
    assert_eq!(of("sample_prompts: p.txt").unwrap(), SamplePrompts::File("p.txt".into()));
    let listed = of("sample_prompts:\n- hello\n- {prompt: 'who?', reference: me}").unwrap();
    let prompt = |prompt: &str, reference: Option<&str>| SamplePrompt {
        prompt: prompt.to_owned(),
        reference: reference.map(str::to_owned),
    };
    assert_eq!(listed, SamplePrompts::Listed(vec![prompt("hello", None), prompt("who?", Some("me"))]));
    assert_eq!(SamplePrompts::read(&Value::from(&listed.json())).unwrap(), listed);
    assert_eq!(of("sample_prompts: []").unwrap(), SamplePrompts::None);
    for (yaml, words) in [
        ("sample_prompts: [{reference: me}]", "without `prompt`"),
        ("sample_prompts: [{prompt: a, answer: b}]", "`answer`"),
        ("sample_prompts: ['  ']", "expected prompts"),
        ("sample_prompts: [7]", "quotes"),
    ] {
        let error = of(yaml).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("sample_prompts"), "{error}");
    }
}

#[test]
fn a_metric_has_two_names_and_a_direction() {
    let of = |text: &str| BestMetric::read(&Value::text(text));
    for metric in BestMetric::ALL {
        let short = metric.name().strip_prefix("eval_").unwrap();
        assert_eq!((of(metric.name()), of(short)), (Ok(metric), Ok(metric)));
        assert_eq!(metric.is_better(2.0, 1.0), metric != BestMetric::Loss);
        assert!(!metric.is_better(1.0, 1.0));
    }
    assert_eq!(of("bleu"), Err(Reject::Wrong));
}
