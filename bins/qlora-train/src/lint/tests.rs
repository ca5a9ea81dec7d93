use super::*;

/// A run without warnings.
fn good() -> Facts {
    Facts {
        parameters: 8_000_000_000,
        positions: 8192,
        is_nf4: true,
        terms: vec![(16, 32.0, 2.0)],
        use_rslora: false,
        learning_rate_a: 2e-4,
        learning_rate_b: 2e-4,
        targets: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            .map(str::to_owned)
            .to_vec(),
        lora_parameters: 41_943_040,
        max_length: 2048,
        data: Some(DataFacts {
            rows: 5000,
            validation_rows: 100,
            longest: 2000,
            duplicates: 0,
            overlap: 0,
            supervised_tokens: 1_000_000,
            open_ended: 0,
            packs: Some(500),
            steps_per_epoch: 500,
            total_steps: 500,
            steps_are_given: false,
            foreign_marks: Vec::new(),
        }),
    }
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = good();
    change(&mut facts);
    facts
}

fn with_data(change: impl FnOnce(&mut DataFacts)) -> Facts {
    with(|facts| change(facts.data.as_mut().unwrap()))
}

/// Each lint that looks before the first step, with a run that it warns of, and words of the warning.
fn bad() -> Vec<(&'static str, Facts, &'static str)> {
    vec![
        ("few_steps", with_data(|d| d.total_steps = 49), "49 steps may be too few"),
        ("learning_rate", with(|f| f.learning_rate_a = 2e-5), "2e-5 is low"),
        ("learning_rate", with(|f| (f.learning_rate_a, f.learning_rate_b) = (2e-3, 2e-3)), "2e-3 is high"),
        ("learning_rate", with(|f| f.learning_rate_b = 3e-2), "3e-2 for B is high"),
        ("alpha", with(|f| f.terms = vec![(16, 4.0, 0.25)]), "alpha / r of 0.25, which is small"),
        ("alpha", with(|f| f.terms = vec![(16, 320.0, 20.0)]), "alpha / r of 20.00, which is large"),
        (
            "alpha",
            with(|f| (f.use_rslora, f.terms) = (true, vec![(16, 100.0, 25.0)])),
            "alpha / √r of 25.00, which is large",
        ),
        (
            "alpha",
            with(|f| f.terms = vec![(16, 32.0, 2.0), (256, 32.0, 0.125)]),
            "at lora_r 256 in some linear layers gives",
        ),
        ("attention_only", with(|f| f.targets = vec!["q_proj".into(), "v_proj".into()]), "(q_proj, v_proj)"),
        ("attention_only", with(|f| f.targets = vec!["qkv_proj".into()]), "(qkv_proj)"),
        (
            "rank_for_rows",
            with(|f| (f.terms, f.data.as_mut().unwrap().rows) = (vec![(8, 8.0, 1.0), (64, 64.0, 1.0)], 999)),
            "lora_r 64 is much for 999 rows",
        ),
        ("adapter_capacity", with_data(|d| d.supervised_tokens = 90_000_000), "90,000,000 tokens"),
        ("large_batch", with_data(|d| (d.rows, d.steps_per_epoch) = (50_000, 500)), "about 100 rows"),
        ("small_model_in_4_bits", with(|f| f.parameters = 135_000_000), "0.135B parameters"),
        ("small_model_in_4_bits", with(|f| f.parameters = 12_340_000), "12.3M parameters"),
        ("small_model_in_4_bits", with(|f| f.parameters = 1_000_000), "1.0M parameters"),
        ("small_model_in_4_bits", with(|f| f.parameters = 45_120), "45,120 parameters"),
        ("max_length", with_data(|d| d.longest = 8193), "the longest row has 8193 tokens, the model was made for 8192"),
        ("max_length", with_data(|d| d.packs = Some(2)), "5,000 rows fit into 2 packs of max_length 2048"),
        ("open_turns", with_data(|d| d.open_ended = 1), "in 1 row an answer"),
        (
            "foreign_template",
            with_data(|d| d.foreign_marks = vec!["<|im_start|>".into()]),
            "writes <|im_start|>, which",
        ),
        ("duplicates", with_data(|d| d.duplicates = 251), "251 of 5,000 rows are the same"),
        ("validation_overlap", with_data(|d| d.overlap = 1), "1 of 100 validation rows are trained on too"),
        ("one_validation_row", with_data(|d| d.validation_rows = 1), "one row for validation"),
    ]
}

#[test]
fn each_lint_finds_its_fault_and_no_other_and_can_be_turned_off() {
    assert_eq!(before(&good(), &[]), []);
    for (name, facts, words) in bad() {
        let found = before(&facts, &[]);
        assert_eq!(found.iter().map(|finding| finding.name).collect::<Vec<_>>(), [name], "{words}");
        let lint = LINTS.iter().find(|lint| lint.name == name).unwrap();
        let said = found[0].to_string();
        assert!(said.contains(words) && said.contains(lint.cure), "{said}");
        assert!(said.ends_with(&format!("(allow: {name})")), "{said}");
        assert_eq!(before(&facts, &[name]), [], "{words}");
    }
    let tried: Vec<&str> = bad().iter().map(|(name, ..)| *name).collect();
    for lint in LINTS.iter().filter(|lint| matches!(lint.check, Check::Facts(_))) {
        assert!(tried.contains(&lint.name), "{} has no failing run", lint.name);
    }
}

#[test]
fn what_was_asked_for_and_what_is_not_known_is_not_warned_of() {
    assert_eq!(before(&with_data(|d| (d.total_steps, d.steps_are_given) = (6, true)), &[]), []);
    assert_eq!(before(&with(|f| f.data = None), &[]), []);
    // An epoch of one step has no smaller batch.
    assert_eq!(before(&with_data(|d| (d.steps_per_epoch, d.total_steps) = (1, 60)), &[]), []);
    // The model alone, without adapters.
    assert_eq!(before(&with(|f| (f.targets, f.terms, f.lora_parameters) = (Vec::new(), Vec::new(), 0)), &[]), []);
    assert_eq!(before(&with(|f| (f.use_rslora, f.terms) = (true, vec![(16, 32.0, 8.0)])), &[]), []);
}

/// Losses of steps from 1 on.
fn numbered(losses: impl IntoIterator<Item = f64>) -> Vec<(u64, f64)> {
    losses.into_iter().enumerate().map(|(at, loss)| (at as u64 + 1, loss)).collect()
}

fn names(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().map(|finding| finding.name).collect()
}

/// A little noise that is the same each time.
fn noise(at: usize) -> f64 {
    ((at * 7919) % 101) as f64 / 101.0 - 0.5
}

#[test]
fn a_loss_that_jumps_is_a_spike_and_one_of_noisy_rows_is_not() {
    let found = |losses: &[(u64, f64)]| during(&History { losses, validation: &[], total_steps: 1000 }, &[]);
    let calm: Vec<f64> = (0..30).map(|at| 2.0 + 0.1 * noise(at)).collect();
    assert_eq!(found(&numbered(calm.iter().copied())), []);
    let jump = found(&numbered(calm.iter().copied().chain([5.0])));
    assert_eq!(names(&jump), ["loss_spike"]);
    assert!(jump[0].message.contains("jumps to 5.0000 at step 31, where 2.0"), "{}", jump[0].message);
    let history = numbered(calm.iter().copied().chain([5.0]));
    assert_eq!(during(&History { losses: &history, validation: &[], total_steps: 1000 }, &["loss_spike"]), []);
    // Rows of many kinds.
    let noisy = (0..30).map(|at| 2.0 + 2.0 * noise(at)).chain([3.4]);
    assert_eq!(found(&numbered(noisy)), []);
    // Too few to know.
    assert_eq!(found(&numbered([1.0, 1.0, 9.0])), []);
    assert_eq!(found(&[]), []);
}

#[test]
fn a_loss_that_stands_still_half_way_is_a_plateau_told_once() {
    let found = |loss: &dyn Fn(usize) -> f64, steps: usize| {
        let losses = numbered((0..steps).map(loss));
        during(&History { losses: &losses, validation: &[], total_steps: 200 }, &[])
    };
    let still = |at: usize| if at < 10 { 4.0 - 0.2 * at as f64 } else { 2.0 + 0.02 * noise(at) };
    let plateau = found(&still, 100);
    assert_eq!(names(&plateau), ["plateau"]);
    assert!(plateau[0].message.contains("double lora_r"), "{}", plateau[0].message);
    assert_eq!([found(&still, 99), found(&still, 101)], [vec![], vec![]]);
    assert_eq!(found(&|at| 4.0 / (1.0 + 0.05 * at as f64), 100), []);
    assert_eq!(found(&|at| 2.0 + 1.5 * noise(at), 100), [], "noise that hides any fall");
    assert_eq!(found(&|_| 0.001, 100), [], "nothing is left to learn");
}

#[test]
fn a_validation_loss_that_rises_twice_diverges() {
    let found = |losses: &[f64]| {
        let validation: Vec<(u64, f64)> = losses.iter().enumerate().map(|(at, loss)| (at as u64 * 10, *loss)).collect();
        during(&History { losses: &[], validation: &validation, total_steps: 200 }, &[])
    };
    let rises = found(&[2.0, 1.0, 1.1, 1.2]);
    assert_eq!(names(&rises), ["validation_rises"]);
    assert!(rises[0].message.contains("since step 10: 1.0000 there, 1.2000 at step 30"), "{}", rises[0].message);
    for fine in [&[2.0, 1.0, 1.1][..], &[2.0, 1.0, 1.1, 0.9], &[2.0, 1.0, 1.005, 1.006], &[1.0], &[]] {
        assert_eq!(found(fine), [], "{fine:?}");
    }
}

#[test]
fn modules_without_gradients_and_gradients_out_of_scale_are_named() {
    let of = |step: u64, modules: &[(&str, f64, f64)]| {
        let modules = modules.iter().map(|(name, a, b)| ((*name).to_owned(), *a, *b)).collect();
        gradients(&ModuleGradients { step, is_warming_up: false, modules }, &[])
    };
    let fine = [("one", 0.1, 1.0), ("two", 0.2, 2.0), ("three", 0.1, 0.5)];
    assert_eq!(of(20, &fine), []);
    assert_eq!(of(20, &[]), []);
    let still = of(50, &[("one", 0.1, 1.0), ("two", 0.0, 0.0), ("three", 0.1, 0.5)]);
    assert_eq!(names(&still), ["still_modules"]);
    assert!(still[0].message.contains("adapters of two get no gradient at step 50"), "{}", still[0].message);
    let many: Vec<(&str, f64, f64)> =
        ["a", "b", "c", "d"].map(|name| (name, 0.0, 0.0)).into_iter().chain([("e", 1.0, 1.0); 5]).collect();
    assert!(of(50, &many)[0].message.contains("a, b, c and 1 more"));
    // Gradients of A begin at zero, because B does.
    assert_eq!(of(1, &[("one", 0.0, 1.0)]), []);
    let scale = of(20, &[("one", 1000.0, 1.0)]);
    assert_eq!(names(&scale), ["gradient_scale"]);
    assert!(scale[0].message.contains("of A are 1000 times those of B"), "{}", scale[0].message);
    let modules = vec![("one".to_owned(), 1.0, 1000.0)];
    assert_eq!(gradients(&ModuleGradients { step: 20, is_warming_up: true, modules }, &[]), []);
    assert!(of(20, &[("one", 0.001, 1.0)])[0].message.contains("of B are 1000 times those of A"));
}

#[test]
fn names_are_unique_and_every_lint_is_in_the_list() {
    let list = lints_markdown();
    for lint in LINTS {
        assert!(lint.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{}", lint.name);
        assert!(list.contains(&format!("| `{}` |", lint.name)));
        assert_eq!(LINTS.iter().filter(|other| other.name == lint.name).count(), 1, "{}", lint.name);
    }
    assert!(is_lint("alpha") && !is_lint("beta"));
}
