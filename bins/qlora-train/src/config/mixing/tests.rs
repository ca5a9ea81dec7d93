use super::SettingValue;
use crate::config::Settings;

#[test]
fn numbers_are_a_list_or_a_text_with_commas_or_stand_beside_their_files() {
    let of = |yaml: &str, flags: &[(&str, &str)]| {
        let flags: Vec<(String, String)> = flags.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let settings = Settings::from_yaml(yaml, "f", &flags).unwrap();
        (settings.data_weights.0, settings.data_max_samples.0, settings.interleave_probs.0)
    };
    assert_eq!(of("data: [a, b]\ndata_weights: [2, 0.5]", &[]).0, [2.0, 0.5]);
    assert_eq!(of("interleave_probs: 0.7,0.3", &[]).2, [0.7, 0.3]);
    assert_eq!(of("", &[("data_weights", "2"), ("data-weights", "0.5")]).0, [2.0, 0.5]);
    let sections = "data:\n- {path: a, weight: 2}\n- b\n- {data_files: [c, d], num_samples: 7}";
    assert_eq!(of(sections, &[]), (vec![2.0, 1.0, 1.0, 1.0], vec![0, 0, 7, 7], vec![]));
    let rows = |yaml: &str| Settings::from_yaml(yaml, "f", &[]).unwrap().data_rows;
    assert_eq!(rows("data_rows: ':10,[10%:],:'").json(), serde_json::json!([":10", "10%:", ":"]));
    assert_eq!(rows("data_rows: [':10', '10%:', ':']"), rows("data_rows: ':10,10%:,:'"));
    let refused = |yaml: &str| Settings::from_yaml(yaml, "f", &[]).unwrap_err().to_string();
    assert!(refused("data: [{path: a, weight: 2}]\ndata_weights: [3]").contains("keep one of them"));
    assert!(refused("data: [{path: a, weight: 0}]").contains("`weight: 0` of a data set"));
    assert!(refused("val_data: [{path: a, weight: 2}]").contains("apply to training rows only"));
    assert!(refused("data_weights: [-1]").contains("a number above 0"));
    assert!(refused("data_rows: 100").contains("such as :1000"));
    assert!(refused("data_rows: 'x:'").contains("such as :1000"));
}
