use super::*;

fn found(yaml: &str) -> std::result::Result<Option<AdaLora>, String> {
    settings_of(&Settings::from_yaml(yaml, "run.yaml", &[]).unwrap()).map_err(|error| error.to_string())
}

#[test]
fn pefts_names_and_ours_are_the_same_settings() {
    assert_eq!(found("lora_r: 4"), Ok(None));
    let ours = "use_adalora: true\nlora_r: 12\ntarget_r: 4\ntinit: 10\ntfinal: 20\ndelta_t: 5\nadalora_beta1: 0.7";
    let ours = found(ours).unwrap().unwrap();
    let theirs =
        "{peft_type: ADALORA, init_r: 12, target_r: 4, tinit: 10, tfinal: 20, deltaT: 5, beta1: 0.7, total_step: 9}";
    assert_eq!(found(&format!("peft: {theirs}")), Ok(Some(ours)));
    assert_eq!((ours.target_r, ours.tinit, ours.tfinal, ours.delta_t, ours.total_steps), (4, 10, 20, 5, None));
    assert_eq!((ours.beta1, ours.beta2, ours.orth_reg_weight), (0.7, 0.85, 0.5));
    assert!(found("peft_type: LORA").unwrap().is_none());
    let other = Settings::from_yaml("peft_type: IA3", "run.yaml", &[]).unwrap_err().to_string();
    assert!(other.contains("IA3") && other.contains("lora or adalora"), "{other}");
}

#[test]
fn what_is_not_computed_beside_it_is_refused_by_name() {
    for (beside, name) in [
        ("use_dora: true", "use_dora"),
        ("use_rslora: true", "use_rslora"),
        ("init_lora_weights: olora", "init_lora_weights"),
        ("rank_pattern: {q_proj: 4}", "rank_pattern"),
        ("alpha_pattern: {q_proj: 4}", "alpha_pattern"),
        ("init_adapter: somewhere", "init_adapter"),
    ] {
        let error = found(&format!("use_adalora: true\n{beside}")).unwrap_err();
        assert!(error.starts_with(&format!("`{name}` is not computed with `use_adalora`")), "{error}");
    }
    for given in ["target_r: 4", "tinit: 1", "tfinal: 1", "delta_t: 2", "adalora_beta1: 0.5", "orth_reg_weight: 0"] {
        let error = found(given).unwrap_err();
        assert!(error.contains("give `use_adalora: true`"), "{error}");
    }
    let error = found("use_adalora: true\nlora_r: 8").unwrap_err();
    assert!(error.contains("`target_r`: found 8, expected less than `lora_r`, the rank 8"), "{error}");
}

#[test]
fn a_run_has_steps_between_the_first_and_the_last_ones() {
    for (tinit, tfinal, least) in [(0, 0, 2), (1, 0, 2), (5, 7, 13), (0, 3, 5)] {
        let settings = format!("use_adalora: true\ntinit: {tinit}\ntfinal: {tfinal}");
        let adalora = found(&settings).unwrap().unwrap();
        assert!(check_steps(&adalora, least).is_ok(), "{settings}");
        let error = check_steps(&adalora, least - 1).unwrap_err().to_string();
        assert!(error.contains("`tinit`") && error.contains("`tfinal`"), "{error}");
    }
}
