//! Properties of the settings over generated values.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use qlora_train::config::*;
use qlora_train::files::units::{format_bytes, parse_bytes};
use qlora_train::lint::LINTS;
use serde_json::{Value as Json, json};

fn info(name: &str) -> &'static SettingInfo {
    SETTINGS.iter().find(|info| info.name == name).unwrap()
}

/// Valid values of a setting; the settings with named values list them.
fn value_of(info: &'static SettingInfo) -> BoxedStrategy<Json> {
    let words = |words: &[&'static str]| select(words.to_vec()).prop_map(Json::from).boxed();
    let share = || (1e-9..0.999f64).prop_map(Json::from);
    // A ~ at its beginning is the home directory.
    let path = || "[a-zA-Z0-9_./ #:'\"&*!%@{}-][a-zA-Z0-9_./ #:'\"~&*!%@{}-]{0,7}[a-z]{6}";
    match info.name {
        "model" | "revision" | "output_dir" => path().prop_map(Json::from).boxed(),
        "chat_template" => {
            let is_path = |path: &String| !path.contains("{{") && !path.contains("{%");
            path().prop_filter("the text of a template", is_path).prop_map(Json::from).boxed()
        }
        "prompt_column"
        | "completion_column"
        | "input_column"
        | "system_column"
        | "messages_column"
        | "role_key"
        | "content_key"
        | "text_column"
        | "logging_dir"
        | "scratch_dir"
        | "tokenized_cache"
        | "quantized_cache"
        | "adapter_architecture"
        | "init_adapter"
        | "eos_token"
        | "bos_token" => path().prop_map(Json::from).boxed(),
        "data" | "val_data" => prop::collection::vec(path(), 1..4).prop_map(Json::from).boxed(),
        "val_set_size" => prop_oneof![share(), (0u64..1_000_000_000).prop_map(Json::from)].boxed(),
        "allow" => {
            let names: Vec<&str> = LINTS.iter().map(|lint| lint.name).collect();
            let len = names.len();
            subsequence(names, 1..=len).prop_map(Json::from).boxed()
        }
        "report_to" => {
            words(&["tensorboard", "none"]).prop_map(|name| if name == "none" { name } else { json!([name]) }).boxed()
        }
        "preset" => words(&["loraplus"]),
        "quantization" => words(&["nf4", "none"]),
        "nf4_block_size" => (5u32..=12).prop_map(|n| Json::from(1u64 << n)).boxed(),
        "lora_target_modules" => prop_oneof![
            Just(Json::from("all-linear")),
            subsequence(TargetModules::ALL.to_vec(), 1..=7).prop_shuffle().prop_map(Json::from)
        ]
        .boxed(),
        "lr_scheduler_type" => words(&["constant", "constant_with_warmup", "linear", "cosine"]),
        "warmup_steps" => prop_oneof![share(), (1u64..1_000_000_000).prop_map(Json::from)].boxed(),
        "too_long" => words(&["drop", "truncate", "proportional", "error", "chunk"]),
        "compute" => words(&["f32", "bf16"]),
        "linear" => words(&["fused", "dequantize"]),
        "cuda_graphs" => words(&["auto", "on", "off"]),
        "weights" => words(&["resident", "host", "disk"]),
        "optimizer_states" => words(&["auto", "resident", "host", "paged", "host_with_masters"]),
        "lm_head" => words(&["auto", "resident", "host", "disk"]),
        "token_tile" => prop_oneof![words(&["auto", "off"]), (2u64..400).prop_map(|n| Json::from(256 * n))].boxed(),
        "on_bad_row" => words(&["error", "skip"]),
        "prompt_completion" => words(&["auto", "text", "chat"]),
        "optim" => words(&["adamw_torch", "adamw", "adamw_8bit", "paged_adamw_8bit"]),
        "seed" => any::<u64>().prop_map(Json::from).boxed(),
        "gradient_checkpointing" => {
            prop_oneof![words(&["auto", "offload", "disk"]), any::<bool>().prop_map(Json::from)].boxed()
        }
        "host_memory" | "device_memory" | "pinned_memory" => {
            prop_oneof![words(&["8GiB", "44.4 GiB", "24 GB"]), (1u64..=i64::MAX as u64).prop_map(Json::from)].boxed()
        }
        "device" => words(&["cpu", "cuda", "cuda:3"]),
        "layers_to_transform" => subsequence((0..90u64).collect::<Vec<_>>(), 1..5).prop_map(Json::from).boxed(),
        "init_lora_weights" => words(&["pissa", "pissa_niter_16", "olora"]),
        "modules_to_save" => {
            subsequence(vec!["embed_tokens", "lm_head", "norm", "q_norm"], 1..=4).prop_map(Json::from).boxed()
        }
        "trainable_token_indices" => {
            let tokens = || subsequence((0..200u64).collect::<Vec<_>>(), 1..5);
            let both = (tokens(), tokens()).prop_map(|(of, head)| json!({"embed_tokens": of, "lm_head": head}));
            prop_oneof![tokens().prop_map(Json::from), both].boxed()
        }
        "roles" => subsequence(vec!["client", "guest", "visitor"], 1..=3)
            .prop_map(|names| json!({"user": names, "assistant": ["agent"]}))
            .boxed(),
        "rank_pattern" => prop::collection::btree_map(path(), 1u64..=256, 1..4).prop_map(|map| json!(map)).boxed(),
        "alpha_pattern" => prop::collection::btree_map(path(), 1u64..=65536, 1..4).prop_map(|map| json!(map)).boxed(),
        "lora_r" => (1u64..=256).prop_map(Json::from).boxed(),
        "target_r" | "tinit" | "tfinal" | "delta_t" => (1u64..=255).prop_map(Json::from).boxed(),
        "threads" => (1u64..=4096).prop_map(Json::from).boxed(),
        "save_steps" | "eval_steps" => {
            prop_oneof![share(), words(&["epoch", "3 per epoch"]), (2u64..1_000_000_000).prop_map(Json::from)].boxed()
        }
        "resume_from_checkpoint" => {
            prop_oneof![any::<bool>().prop_map(Json::from), path().prop_map(Json::from)].boxed()
        }
        "sample_prompts" => path().prop_map(Json::from).boxed(),
        "answer_match" => words(&["#### ([0-9]+)", "yes|no", "a"]),
        "metric_for_best_model" => words(&["eval_exact_match", "eval_rouge_l", "eval_match"]),
        "data_weights" | "interleave_probs" => prop::collection::vec(share(), 1..4).prop_map(Json::from).boxed(),
        "data_max_samples" => prop::collection::vec(2u64..=65536, 1..4).prop_map(Json::from).boxed(),
        "data_rows" | "val_data_rows" => {
            let range = (0u64..1000, 1000u64..2000).prop_map(|(from, to)| format!("{from}:{to}"));
            prop::collection::vec(range, 1..4).prop_map(Json::from).boxed()
        }
        "mix_strategy" => words(&["interleave_under", "interleave_over"]),
        "max_steps"
        | "max_samples"
        | "eval_answers"
        | "eval_max_new_tokens"
        | "save_total_limit"
        | "early_stopping_patience"
        | "per_device_train_batch_size"
        | "gradient_accumulation_steps"
        | "max_length"
        | "logging_steps" => (2u64..=65536).prop_map(Json::from).boxed(),
        _ if info.switch => any::<bool>().prop_map(Json::from).boxed(),
        _ => share().boxed(),
    }
}

fn any_setting() -> impl Strategy<Value = (&'static str, Json)> {
    (0..SETTINGS.len()).prop_flat_map(|i| (Just(SETTINGS[i].name), value_of(&SETTINGS[i])))
}

/// A file with one key (with its section, if the name is dotted).
fn as_yaml(name: &str, value: &Json) -> String {
    let tree = name.rsplit('.').fold(value.clone(), |tree, key| json!({ key: tree }));
    serde_saphyr::to_string(&tree).unwrap()
}

/// The flags that say the same.
fn as_flags(name: &str, value: &Json) -> Vec<String> {
    let items = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let text = |item: &Json| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
    items.iter().map(|item| format!("--{name}={}", text(item))).collect()
}

fn load(yaml: &str, flags: &[String]) -> Settings {
    let args = parse_overrides(flags).unwrap_or_else(|e| panic!("{flags:?}: {e}"));
    Settings::from_yaml(yaml, "test", &args.overrides).unwrap_or_else(|e| panic!("{yaml} {flags:?}: {e}"))
}

proptest! {
    #[test]
    fn every_setting_reads_the_same_from_yaml_and_flags_under_every_name((name, value) in any_setting()) {
        let expected = load(&as_yaml(name, &value), &[]);
        for alias in info(name).aliases.iter().copied().chain([name]) {
            let kebab = alias.replace('_', "-");
            prop_assert_eq!(&load(&as_yaml(alias, &value), &[]), &expected, "{}", alias);
            prop_assert_eq!(&load(&as_yaml(&kebab, &value), &[]), &expected, "{}", kebab);
            prop_assert_eq!(&load("", &as_flags(alias, &value)), &expected, "--{}", alias);
            prop_assert_eq!(&load("", &as_flags(&kebab, &value)), &expected, "--{}", kebab);
        }
    }

    #[test]
    fn a_value_is_what_the_settings_then_hold((name, value) in any_setting()) {
        let held = info(name).value_in(&load(&as_yaml(name, &value), &[]));
        let same = match (name, &value) {
            // These are normalized: order, units, device number, synonyms, ratio written as steps.
            ("host_memory" | "device_memory" | "pinned_memory", _) => true,
            ("lora_target_modules" | "device" | "optim" | "warmup_steps", _) => true,
            ("optimizer_states", _) if value == "paged" => held == "host",
            (_, Json::Number(n)) => held.as_f64() == n.as_f64(),
            _ => held == value,
        };
        prop_assert!(same, "{} holds {} of {}", name, held, value);
    }

    #[test]
    fn flags_win_over_the_file(
        (name, in_file, in_flags) in (0..SETTINGS.len())
            .prop_flat_map(|i| (Just(SETTINGS[i].name), value_of(&SETTINGS[i]), value_of(&SETTINGS[i])))
    ) {
        let flags = as_flags(name, &in_flags);
        prop_assert_eq!(load(&as_yaml(name, &in_file), &flags), load("", &flags));
    }

    #[test]
    fn the_record_reads_back_to_the_same_settings(
        chosen in subsequence((0..SETTINGS.len()).collect::<Vec<_>>(), 0..SETTINGS.len())
            .prop_flat_map(|all| all.into_iter().map(|i| (Just(SETTINGS[i].name), value_of(&SETTINGS[i]))).collect::<Vec<_>>()),
        parameters in any::<u64>(),
    ) {
        let has = |name: &str| chosen.iter().any(|(other, _)| *other == name);
        let flags: Vec<String> = chosen
            .iter()
            .filter(|(name, _)| !(*name == "warmup_ratio" && has("warmup_steps")))
            .filter(|(name, _)| !(*name == "val_set_size" && has("val_data")))
            // Answers need validation rows, which the data's paths say early.
            .filter(|(name, _)| !(*name == "eval_answers" && has("data")))
            .flat_map(|(name, value)| as_flags(name, value))
            .collect();
        let mut settings = load("", &flags);
        for _ in 0..2 {
            let back = load(&settings.to_yaml().unwrap(), &[]);
            prop_assert_eq!(&back, &settings);
            prop_assert_eq!(back.result_hash(), settings.result_hash());
            settings.resolve(parameters);
        }
        prop_assert!(settings.learning_rate.is_some());
    }

    #[test]
    fn text_of_any_kind_never_panics(text in prop_oneof![
        "\\PC{0,200}",
        any::<String>(),
        "[a-z:\\[\\]{}&*!|>'\"#%@?, \n\t-]{0,120}",
        prop::collection::vec((select(all_names().collect::<Vec<_>>()), "[-a-z0-9.\\[\\]{}:&*!~'\" ]{0,12}"), 0..6)
            .prop_map(|lines| lines.iter().map(|(name, value)| format!("{name}: {value}\n")).collect::<String>()),
        prop::collection::vec((select(all_names().collect::<Vec<_>>()), "[-a-z0-9.\\[\\]{}:&*!~'\" ]{0,12}"), 0..6)
            .prop_map(|lines| lines.iter().map(|(name, value)| format!("lora:\n  {name}: {value}\n")).collect::<String>()),
    ]) {
        if let Err(e) = Settings::from_yaml(&text, "test", &[]) {
            prop_assert_eq!(e.exit_status(), 2);
            prop_assert!(!e.to_string().trim().is_empty());
        }
    }

    #[test]
    fn arguments_of_any_kind_never_panic(args in prop::collection::vec(
        prop_oneof![
            "\\PC{0,20}",
            (select(all_names().collect::<Vec<_>>()), "[-a-z0-9.,]{0,8}").prop_map(|(n, v)| format!("--{n}={v}")),
            select(all_names().collect::<Vec<_>>()).prop_map(|n| format!("--{}", n.replace('_', "-"))),
        ],
        0..5,
    )) {
        match parse_overrides(&args) {
            Ok(args) => drop(Settings::load(None, &args.overrides)),
            Err(e) => prop_assert_eq!(e.exit_status(), 2),
        }
    }

    #[test]
    fn a_misspelt_name_is_refused_with_a_known_one(name in select(all_names().collect::<Vec<_>>()), at in 0usize..40) {
        let mut letters: Vec<char> = name.chars().collect();
        let at = at % letters.len();
        letters.insert(at, 'q');
        let wrong: String = letters.into_iter().collect();
        prop_assume!(!all_names().any(|known| known == wrong));
        let flags = [(wrong.clone(), "1".to_string())];
        let text = Settings::load(None, &flags).unwrap_err().to_string();
        // A name that sets nothing is not offered, and neither is one that is only a little alike.
        match nearest(&wrong) {
            Some(near) => {
                let sets = |near: &str| Settings::load(None, &[(near.to_string(), "1".to_string())]);
                let answer = sets(near).err().map_or_else(String::new, |error| error.to_string());
                prop_assert!(text.contains(&near.replace('_', "-")) && !answer.contains("not supported yet"), "{}", text);
                prop_assert!(strsim::normalized_damerau_levenshtein(near, &wrong) >= 0.7, "{} for {}", near, wrong);
            }
            None => prop_assert!(text.contains("is not a known setting"), "{}", text),
        }
    }

    #[test]
    fn shown_sizes_read_back_within_the_last_digit(bytes in 1u64..=i64::MAX as u64) {
        let back = parse_bytes(&format_bytes(bytes)).unwrap();
        let unit = (0..4).map(|i| 1u64 << (10 * (i + 1))).take_while(|unit| *unit <= bytes).last().unwrap_or(1);
        // One byte more, because a fraction of a byte is dropped.
        prop_assert!((back as f64 - bytes as f64).abs() <= 0.05 * unit as f64 + 1.0, "{} {}", bytes, back);
    }

    #[test]
    fn factors_stay_between_0_and_1(
        kind in select(vec![Scheduler::Constant, Scheduler::ConstantWithWarmup, Scheduler::Linear, Scheduler::Cosine]),
        step in 0usize..1000, warmup in 0usize..1000, total in 0usize..1000,
    ) {
        let factor = lr_schedule::factor(kind, step, warmup, total);
        prop_assert!((0.0..=1.0).contains(&factor), "{}", factor);
    }
}
