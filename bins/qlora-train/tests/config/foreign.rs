//! Settings files of other trainers: their keys, with values that ask for nothing, and whole files of each tool.

use std::path::PathBuf;

use qlora_train::config::*;

fn noting(text: &str) -> (Settings, Vec<String>) {
    Settings::from_yaml_noting(text, "cfg.yaml", &[]).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

#[test]
fn every_key_of_every_tool_passes_where_it_asks_for_nothing() {
    let mut refused = Vec::new();
    let mut tools = std::collections::BTreeMap::new();
    for line in include_str!("foreign_keys.tsv").lines().filter(|line| !line.starts_with('#')) {
        let [tool, key, value] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        *tools.entry(tool).or_insert(0) += 1;
        let text = format!("{key}: {value}\n");
        if let Err(error) = Settings::from_yaml(&text, "cfg.yaml", &[]) {
            refused.push(format!("{tool}: {error}"));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert_eq!(tools.len(), 9, "{tools:?}");
    assert!(tools.values().all(|keys| *keys >= 10), "{tools:?}");
}

#[test]
fn keys_that_cannot_change_a_result_pass_and_are_told_in_one_line() {
    let (settings, notes) = noting("overwrite_cache: true\nddp_timeout: 9\ndataset_num_proc: 4\nmodel: m");
    assert_eq!(settings, Settings { model: Some("m".into()), ..Settings::default() });
    assert_eq!(notes, ["without effect here: `overwrite_cache`, `ddp_timeout`, `dataset_num_proc`"]);
    assert!(noting("ddp_timeout: 1800\nreport_to: none\nwandb_project:\nlogging_strategy: steps").1.is_empty());
}

#[test]
fn keys_of_others_that_say_something_are_followed() {
    let all = |text: &str| noting(text).0;
    assert_eq!(all("saves_per_epoch: 4").save_steps, Every::PerEpoch(4));
    assert_eq!(all("evals_per_epoch: 2\nval_set_size: 0.1").eval_steps, Every::PerEpoch(2));
    assert_eq!(all("evals_per_epoch: 2\nval_set_size: 0").eval_steps, Every::Never, "no rows to evaluate on");
    assert_eq!(all("evals_per_epoch: 2\neval_steps: 7\nval_set_size: 0.1").eval_steps, Every::Steps(7));
    assert_eq!(all("max_samples: 1000").max_samples, Limit(Some(1000)));
    assert_eq!(all("template: llama3").chat_template.as_deref(), Some("llama3"));
    assert_eq!(all("dataset_name: rows.jsonl").data, [PathBuf::from("rows.jsonl")]);
    assert_eq!(all("use_cpu: true").device, Some(Device::Cpu));
    assert_eq!(all("special_tokens: {pad_token: <pad>, eos_token: </s>}").eos_token.as_deref(), Some("</s>"));
    assert_eq!(all("lora_parameters: {rank: 4, scale: 20.0}").lora_alpha, 80.0, "scale is alpha / r");
    assert_eq!(all("lora_parameters: {keys: [self_attn.q_proj, mlp.up_proj]}").lora_target_modules.names().len(), 2);
    let (settings, notes) = noting("load_in_8bit: true");
    assert_eq!(settings.quantization, Quantization::None);
    assert!(notes[0].contains("16 bits"), "{notes:?}");
    assert_eq!(all("load_in_8bit: true\nquantization: nf4").quantization, Quantization::Nf4);
    assert_eq!(all("lora_model_dir: out").init_adapter, Some("out".into()));
    assert!(all("overwrite_output_dir: true").overwrite_output_dir);
}

#[test]
fn data_sets_of_axolotl_say_where_rows_are_and_what_their_columns_are() {
    let (settings, notes) = noting("datasets: [{path: a.jsonl, type: alpaca}, {path: b.jsonl, type: alpaca}]");
    assert_eq!(settings.data, [PathBuf::from("a.jsonl"), PathBuf::from("b.jsonl")]);
    assert_eq!(settings.chat_template.as_deref(), Some("alpaca"));
    assert!(notes[0].contains("alpaca template"), "{notes:?}");
    let (settings, _) = noting("chat_template: llama3\ndatasets: [{path: a.jsonl, type: alpaca}]");
    assert_eq!(settings.chat_template.as_deref(), Some("llama3"), "what is said outright wins");
    let (settings, _) = noting(
        "datasets: [{path: a.jsonl, type: {field_instruction: question, field_output: answer, format: '{instruction}'}}]",
    );
    assert_eq!(
        (settings.prompt_column.as_deref(), settings.completion_column.as_deref()),
        (Some("question"), Some("answer"))
    );
    let (settings, _) = noting(
        "datasets: [{path: json, data_files: a.jsonl, ds_type: json, type: chat_template, field_messages: talk, split: train, \
         message_property_mappings: {role: from, content: value}, roles_to_train: [assistant], train_on_eos: turn}]",
    );
    assert_eq!((settings.data.len(), settings.messages_column.as_deref()), (1, Some("talk")));
    assert_eq!((settings.role_key.as_deref(), settings.content_key.as_deref()), (Some("from"), Some("value")));
    assert_eq!(settings.chat_template, None);
}

/// Whole files, written by hand with the keys of each tool and values of our own.
#[test]
fn whole_files_of_each_tool_load() {
    let files = [
        ("axolotl_lora.yml", include_str!("samples/axolotl_lora.yml")),
        ("axolotl_qlora.yml", include_str!("samples/axolotl_qlora.yml")),
        ("axolotl_columns.yml", include_str!("samples/axolotl_columns.yml")),
        ("llamafactory_qlora.yaml", include_str!("samples/llamafactory_qlora.yaml")),
        ("trl_sft.yaml", include_str!("samples/trl_sft.yaml")),
        ("mlx_lora.yaml", include_str!("samples/mlx_lora.yaml")),
        ("peft_sections.yaml", include_str!("samples/peft_sections.yaml")),
    ];
    for (name, text) in files {
        let (settings, notes) = Settings::from_yaml_noting(text, name, &[]).unwrap_or_else(|error| panic!("{error}"));
        settings.validate(Purpose::Train).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(settings.lora_r, 8, "{name}");
        assert_eq!(settings.learning_rate, Some(3e-4), "{name}");
        assert!(notes.iter().filter(|note| note.starts_with("without effect")).count() <= 1, "{name}: {notes:?}");
        // The record of the run gives the same settings.
        assert_eq!(Settings::from_yaml(&settings.to_yaml().unwrap(), "again", &[]).unwrap(), settings, "{name}");
    }
}

#[test]
fn the_file_that_init_writes_says_the_defaults() {
    let (settings, notes) = noting(&commented_yaml());
    assert_eq!(
        settings,
        Settings {
            model: Some("path/to/model".into()),
            data: vec!["rows.jsonl".into()],
            output_dir: Some("out".into()),
            ..Settings::default()
        }
    );
    assert!(notes.is_empty());
    for info in SETTINGS {
        assert!(commented_yaml().contains(&format!("{}:", info.name)), "{}", info.name);
    }
}

#[test]
fn what_a_flag_turns_off_or_gives_itself_is_no_fault_of_the_file() {
    let load = |text: &str, flags: &[(&str, &str)]| {
        let flags: Vec<(String, String)> =
            flags.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Settings::from_yaml(text, "cfg.yaml", &flags)
    };
    let modules = "model: m\nexclude_modules: [embed_tokens, lm_head]\n";
    let error = load(modules, &[]).unwrap_err().to_string();
    assert!(error.contains("cfg.yaml line 2") && error.contains("`--exclude-modules false`"), "{error}");
    for off in ["false", "none"] {
        load(modules, &[("exclude-modules", off)]).unwrap();
    }
    // Not by another flag, nor by one that asks for it.
    assert!(load(modules, &[("use-qalora", "false")]).is_err());
    let error = load(modules, &[("exclude-modules", "lm_head")]).unwrap_err().to_string();
    assert!(error.contains("cfg.yaml line 2") && error.contains("`--exclude-modules`"), "{error}");
    // Rows that are given otherwise need none of the file's; what the file says of their columns holds.
    let rows = "datasets: [{path: org/rows, shards: 4, type: {field_instruction: q, field_output: a}}]";
    assert!(load(rows, &[]).is_err());
    let settings = load(rows, &[("data", "mine.jsonl")]).unwrap();
    assert_eq!(settings.data, [PathBuf::from("mine.jsonl")]);
    // A wrong value of a setting is wrong whatever the flags say.
    assert!(load("lora_r: many", &[("lora_r", "8")]).is_err());
}

#[test]
fn defaults_of_llama_factory_hold_for_its_files() {
    let head = "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\ntemplate: llama3\n";
    let of = |rest: &str| noting(&format!("{head}{rest}"));
    let shape = |settings: &Settings| (settings.lora_r, settings.lora_alpha);
    let (settings, notes) = of("lora_rank: 4");
    assert_eq!(shape(&settings), (4, 8.0));
    assert!(notes.iter().any(|note| note.contains("LLaMA-Factory") && note.contains("lora_alpha 8")), "{notes:?}");
    assert_eq!(shape(&of("").0), (8, 16.0));
    let rest = "learning_rate: 1e-4\nnum_train_epochs: 2\nper_device_train_batch_size: 1\npacking: true\n\
                lr_scheduler_type: cosine\nwarmup_ratio: 0.1\noptim: adamw_8bit\nquantization_bit: 4\ntoo_long: drop\n";
    let (settings, notes) = of(&format!("{rest}lora_rank: 4\nlora_alpha: 32"));
    assert_eq!(shape(&settings), (4, 32.0));
    assert!(notes.is_empty(), "{notes:?}");
    // Another's file keeps the defaults here.
    assert_eq!(shape(&noting("model: m\nlora_r: 4").0), (4, 32.0));
    // The record of a run says what came of it, and is nobody's file.
    let (settings, _) = of("lora_rank: 4");
    assert_eq!(Settings::from_yaml(&settings.to_yaml().unwrap(), "again", &[]).unwrap(), settings);
}

#[test]
fn a_file_of_axolotl_without_an_adapter_is_told() {
    let file = "base_model: m\ndatasets: [{path: a.jsonl}]\nsequence_len: 512\nmicro_batch_size: 1\n\
                sample_packing: true\noptimizer: adamw_8bit\n";
    assert!(noting(file).1.iter().any(|note| note.contains("without `adapter`")));
    assert!(noting(&format!("{file}adapter: qlora\n")).1.is_empty());
}

/// Settings that a file leaves out have the defaults of the tool that it was written for, which one line reports.
#[test]
fn what_a_file_leaves_out_is_as_in_its_own_tool() {
    let files = [
        (
            "LLaMA-Factory",
            "model_name_or_path: m\nstage: sft\nfinetuning_type: lora\ncutoff_len: 99\n",
            vec![
                ("lora_r", "8"),
                ("lora_alpha", "16"),
                ("learning_rate", "5e-5"),
                ("num_train_epochs", "3"),
                ("per_device_train_batch_size", "8"),
                ("lr_scheduler_type", "linear"),
                ("warmup_ratio", "0"),
                ("packing", "false"),
                ("optim", "adamw_torch"),
                ("quantization", "none"),
                ("too_long", "proportional"),
            ],
        ),
        (
            "TRL",
            "model_name_or_path: m\nuse_peft: true\ndataset_name: a.jsonl\nlora_task_type: CAUSAL_LM\n\
             assistant_only_loss: true\n",
            vec![
                ("quantization", "none"),
                ("lora_dropout", "0.05"),
                ("lora_target_modules", "q_proj, v_proj"),
                ("learning_rate", "2e-5"),
                ("num_train_epochs", "3"),
                ("per_device_train_batch_size", "8"),
                ("lr_scheduler_type", "linear"),
                ("warmup_ratio", "0"),
                ("max_length", "1024"),
                ("too_long", "truncate"),
                ("packing", "false"),
                ("optim", "adamw_torch"),
            ],
        ),
        (
            "Axolotl",
            "base_model: m\nadapter: qlora\ndatasets: [{path: a.jsonl}]\nmicro_batch_size: 2\nlearning_rate: 1e-3\n\
             dataset_prepared_path: x\n",
            vec![("max_length", "512"), ("packing", "false"), ("optim", "adamw_torch")],
        ),
        (
            "mlx-lm",
            "model: m\ntrain: true\nfine_tune_type: lora\nnum_layers: -1\nmask_prompt: true\n",
            vec![
                ("lora_r", "8"),
                ("lora_alpha", "160"),
                ("learning_rate", "1e-5"),
                ("max_steps", "1000"),
                ("per_device_train_batch_size", "4"),
                ("lr_scheduler_type", "constant"),
                ("packing", "false"),
                ("optim", "adamw_torch"),
                ("seed", "0"),
                ("quantization", "none"),
                ("too_long", "truncate"),
            ],
        ),
    ];
    for (tool, file, defaults) in files {
        let (found, notes) = noting(file);
        let flags: Vec<(String, String)> =
            defaults.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let expected = Settings::from_yaml(file, "cfg.yaml", &flags).unwrap();
        assert_eq!(found, expected, "{tool}");
        let told: Vec<&String> = notes.iter().filter(|note| note.contains(&format!("as in {tool}"))).collect();
        let [told] = told[..] else { panic!("{tool}: {notes:?}") };
        assert!(defaults.iter().all(|(name, _)| told.contains(name)), "{tool}: {told}");
        // A given setting has no tool default and no note; our files and those of other tools keep ours.
        for (name, value) in &flags {
            let (_, notes) = Settings::from_yaml_noting(file, "cfg.yaml", &[(name.clone(), value.clone())]).unwrap();
            assert!(!notes.iter().any(|note| note.contains(&format!("{name} {value}"))), "{tool}: {notes:?}");
        }
    }
    // A length or a warm-up that is given by its other name is the file's own.
    let file = "model_name_or_path: m\nstage: sft\nfinetuning_type: lora\ncutoff_len: 99\n";
    let settings = noting(&format!("{file}max_steps: 5\nwarmup_steps: 3\n")).0;
    assert_eq!(
        (settings.num_train_epochs, settings.max_steps, settings.warmup_steps),
        (1.0, Limit(Some(5)), Some(3.0))
    );
    assert!(noting("model: m\nlora_r: 4\ndata: a.jsonl").1.is_empty());
}

/// Keys by which another trainer learns prompts too.
#[test]
fn a_loss_over_more_than_answers_is_told() {
    for key in ["assistant_only_loss", "mask_prompt"] {
        assert!(noting(&format!("{key}: true")).1.is_empty());
        let notes = noting(&format!("{key}: false")).1;
        assert!(notes[0].contains(key) && notes[0].contains("over answers"), "{notes:?}");
    }
    let file = "model: m\ntrain: true\nfine_tune_type: lora\niters: 5\nval_batches: 5\n";
    let notes = noting(file).1;
    for key in ["mask_prompt", "num_layers"] {
        assert!(notes.iter().any(|note| note.contains(&format!("without `{key}`"))), "{notes:?}");
    }
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = Settings::from_yaml(text, "cfg.yaml", &[]).expect_err(text).to_string();
    words.iter().for_each(|word| assert!(error.contains(word), "{text}\n{error}\nlacks {word}"));
}

/// Four bits as TRL holds them have no double quantization, unless the file asks for it.
#[test]
fn a_file_of_trl_is_quantized_as_it_says() {
    let head = "use_peft: true\ndataset_name: a.jsonl\nlora_task_type: CAUSAL_LM\nload_in_4bit: true\n";
    let (settings, notes) = noting(head);
    assert_eq!((settings.quantization, settings.double_quant), (Quantization::Nf4, false));
    assert!(notes.iter().any(|note| note.contains("without `assistant_only_loss`")), "{notes:?}");
    assert!(noting(&format!("{head}use_bnb_nested_quant: true\n")).0.double_quant);
    refused("completion_only_loss: false", &["line 1", "`completion_only_loss`", "expected `true`", "as `text`"]);
    assert!(noting("completion_only_loss: true").1.is_empty());
}

/// A key that is off in a data set of Axolotl has a meaning: no role, or no end of a turn, is learned.
#[test]
fn keys_of_a_data_set_that_are_off_are_no_defaults() {
    for (key, expected) in [
        ("roles_to_train: []", "`roles_to_train: []`"),
        ("roles_to_train: none", "`roles_to_train: none`"),
        ("roles_to_train: [user, assistant]", "`roles_to_train: [user, assistant]`"),
        ("train_on_eos: none", "`train_on_eos: none`"),
        ("train_on_eos: false", "`train_on_eos: false`"),
        ("train_on_eot: last", "`train_on_eot: last`"),
    ] {
        refused(&format!("datasets:\n  - path: a.jsonl\n    {key}\n"), &["line 3", expected, "or no"]);
    }
    for key in ["roles_to_train:", "roles_to_train: [assistant]", "train_on_eos: turn", "train_on_eos: null"] {
        noting(&format!("datasets:\n  - path: a.jsonl\n    {key}\n"));
    }
}

/// Axolotl's keys of a data set of the hub become one id.
#[test]
fn a_data_set_of_the_hub_is_one_id_with_its_split_and_revision() {
    let of = |set: &str| noting(&format!("datasets: [{{{set}}}]")).0.data;
    for (set, expected) in [
        ("path: org/rows", "org/rows"),
        ("path: org/rows, split: train, type: alpaca", "org/rows:train"),
        ("path: org/rows, split: 'train[:20%]'", "org/rows:train[:20%]"),
        ("path: org/rows, name: main, split: test", "org/rows:main/test"),
        ("path: org/rows, name: main, revision: v1", "org/rows@v1:main"),
        ("path: org/rows, data_files: 'data/*.jsonl'", "org/rows:data/*.jsonl"),
        ("path: 'org/rows@v1:train[5:]'", "org/rows@v1:train[5:]"),
    ] {
        assert_eq!(of(set), [PathBuf::from(expected)], "{set}");
    }
    assert_eq!(of("path: org/rows, data_files: [a.jsonl, b.jsonl]").len(), 2);
    assert_eq!(of("path: org/rows, data_files: a.jsonl, split: 'train[:9]'"), [PathBuf::from("org/rows:a.jsonl[:9]")]);
    for (beside, words) in [
        ("data_files: [a.jsonl, b.jsonl], split: 'train[:100]'", ["found rows [:100] of", "expected them of one"]),
        ("data_files: a.jsonl, name: main", ["`data_files` beside `name` or `split`", "expected one of them"]),
        ("data_files: a.jsonl, split: test", ["`data_files` beside `name` or `split`", "expected one of them"]),
    ] {
        refused(&format!("datasets: [{{path: org/rows, {beside}}}]"), &words);
    }
    for path in ["org/rows@v2", "org/rows:train", "org/rows[:5]"] {
        refused(&format!("datasets: [{{path: '{path}', revision: v1}}]"), &["keep one"]);
    }
    refused("datasets: [{path: 'org/rows:train', split: test}]", &["keep one"]);
    refused("datasets: [{path: org/rows, split: '../x'}]", &["expected a split"]);
    refused("datasets: [{path: org/rows, split: 'train[x:]'}]", &["[x:]", "[:1000]"]);
}

/// TRL names subset and split of its data set beside it, as `load_dataset(path, name)[split]` takes them.
#[test]
fn a_subset_and_a_split_beside_a_data_set_of_the_hub_are_part_of_its_id() {
    let of = |file: &str| noting(&format!("dataset_name: org/rows\n{file}"));
    for (beside, expected) in [
        ("dataset_config: socratic", "org/rows:socratic"),
        ("dataset_config: socratic\ndataset_train_split: train", "org/rows:socratic"),
        ("dataset_config: socratic\ndataset_train_split: train_sft", "org/rows:socratic/train_sft"),
        ("dataset_train_split: train_sft", "org/rows:train_sft"),
        ("dataset_config: null\ndataset_train_split: train", "org/rows"),
        ("dataset_config: default", "org/rows:default"),
    ] {
        let (settings, notes) = of(beside);
        assert_eq!(settings.data, [PathBuf::from(expected)], "{beside}");
        assert!(!notes.iter().any(|note| note.contains("dataset_")), "{notes:?}");
    }
    assert_eq!(noting("dataset_name: org/rows@v1\ndataset_config: x").0.data, [PathBuf::from("org/rows@v1:x")]);
    // Files are read whole; a flag that gives other rows takes what stood beside the file's.
    assert_eq!(noting("dataset_name: a.jsonl\ndataset_config: default").0.data, [PathBuf::from("a.jsonl")]);
    let flags = |flags: &[(&str, &str)]| -> Vec<(String, String)> {
        flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let file = "dataset_name: org/rows\ndataset_config: socratic\n";
    let load = |given: &[(&str, &str)]| Settings::from_yaml(file, "cfg.yaml", &flags(given)).unwrap().data;
    assert_eq!(load(&[("data", "b.jsonl")]), [PathBuf::from("b.jsonl")]);
    assert_eq!(load(&[("dataset_config", "main")]), [PathBuf::from("org/rows:main")]);
    assert_eq!(load(&[("data", "org/other"), ("dataset_config", "main")]), [PathBuf::from("org/other:main")]);
    // The default as a flag takes the place of a file's too.
    assert_eq!(load(&[("dataset_config", "none")]), [PathBuf::from("org/rows")]);
    let file = "dataset_name: org/rows\ndataset_train_split: test\n";
    let with_flag = Settings::from_yaml(file, "cfg.yaml", &flags(&[("dataset_train_split", "train")])).unwrap();
    assert_eq!(with_flag.data, [PathBuf::from("org/rows")]);
    for (file, words) in [
        ("dataset_config: x", ["line 1: `dataset_config`", "found no data set beside it"]),
        ("dataset_name: a.jsonl\ndataset_config: x", ["line 2: `dataset_config`", "is no id of the hub"]),
        ("dataset_name: a.jsonl\ndataset_train_split: x", ["line 2: `dataset_train_split`", "is no id of the hub"]),
        ("dataset_name: org/rows:train\ndataset_config: x", ["line 2: `dataset_config`", "keep one of them"]),
        ("data: [org/a, org/b]\ndataset_config: x", ["line 2: `dataset_config`", "one data set on the hub"]),
        ("dataset_name: org/rows\ndataset_config: ../x", ["line 2: `dataset_config`", "expected a split"]),
        ("dataset_name: org/rows\ndataset_config: 7", ["line 2: `dataset_config`", "quote"]),
    ] {
        refused(file, &words);
    }
}

/// Each fault of a data set is reported at its own line, and a flag that gives the rows silences all of them.
#[test]
fn all_faults_of_a_data_set_are_told_at_their_lines() {
    let file =
        "datasets:\n  - path: a.jsonl\n    roles_to_train: [user]\n    train_on_eos: all\n    split: train[:10%]\n";
    refused(file, &["line 3: `datasets`", "line 4: `datasets`", "line 5: `datasets`", "`split: train[:10%]`"]);
    let error = Settings::from_yaml(file, "cfg.yaml", &[]).unwrap_err().to_string();
    assert!(error.matches('`').count().is_multiple_of(2), "{error}");
    let flag = [("data".to_owned(), "b.jsonl".to_owned())];
    assert_eq!(Settings::from_yaml(file, "cfg.yaml", &flag).unwrap().data, [PathBuf::from("b.jsonl")]);
}

#[test]
fn names_of_role_and_content_are_the_keys_of_turns() {
    for (taken, role, content) in [
        ("message_field_role: role, message_field_content: content", Some("role"), Some("content")),
        ("message_field_role: from, message_field_content: value", Some("from"), Some("value")),
        ("message_field_role: from, message_property_mappings: {content: value}", Some("from"), Some("value")),
        ("message_property_mappings: {role: from, content: value}", Some("from"), Some("value")),
        (
            "message_property_mappings: {role: speaker, content: text, tool_calls: tool_calls}",
            Some("speaker"),
            Some("text"),
        ),
        ("message_property_mappings: {content: value}", None, Some("value")),
        ("message_field_content: null", None, None),
        ("message_property_mappings: {role: null}", None, None),
    ] {
        for list in ["datasets", "test_datasets"] {
            let settings = noting(&format!("{list}: [{{path: a.jsonl, {taken}}}]")).0;
            assert_eq!((settings.role_key.as_deref(), settings.content_key.as_deref()), (role, content), "{taken}");
        }
    }
    for (wrong, words) in [
        ("message_property_mappings: {tool_calls: calls}", ["tool_calls: calls`", "only role and content"]),
        ("message_field_role: role, message_property_mappings: {role: from}", ["`role_key`", "keep one of them"]),
    ] {
        refused(&format!("datasets:\n  - {{path: a.jsonl, {wrong}}}"), &["`datasets`", words[0], words[1]]);
    }
    // All data sets are read by one pair of names.
    let two = "datasets: [{path: a.jsonl, message_field_role: from}, {path: b.jsonl, message_field_role: role}]";
    refused(two, &["`role_key`", "keep one of them"]);
}

/// Quotes are closed, and nothing is described that can be shown.
#[test]
fn values_of_a_data_set_are_shown_as_the_file_has_them() {
    for (entry, shown) in [
        ("roles: {user: [gpt]}", "`roles: {user: [gpt]}` of a data set"),
        ("roles: {user: [human, gpt], assistant: gpt}", "`roles: {user: [human, gpt], assistant: gpt}` of a data set"),
        ("split_thinking: {a: {b: 1}}", "`split_thinking: {a: {b: 1}}` of a data set"),
        ("message_property_mappings: {role: {a: 1}}", "`message_property_mappings.role: {a: 1}` of a data set"),
    ] {
        refused(&format!("datasets: [{{path: a.jsonl, {entry}}}]"), &[shown]);
    }
    let long = format!("datasets: [{{path: a.jsonl, roles: {{user: [{}]}}}}]", vec!["model"; 40].join(", "));
    refused(&long, &["`roles: {user: [model, model,", "…` of a data set"]);
    // Roles that are read so anyway.
    for roles in ["{user: [human, user], assistant: [gpt, assistant]}", "{assistant: gpt, tool: [ipython]}", "{}"] {
        assert_eq!(noting(&format!("datasets: [{{path: a.jsonl, roles: {roles}}}]")).0.data.len(), 1, "{roles}");
    }
}

#[test]
fn keys_handed_on_to_other_libraries_are_judged_one_by_one() {
    let (settings, notes) = noting(
        "bnb_config_kwargs: {llm_int8_has_fp16_weight: false, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}\n\
         model_init_kwargs: {torch_dtype: bfloat16, dtype: auto}\n",
    );
    assert!(settings.double_quant && notes.is_empty(), "{notes:?}");
    assert!(!noting("bnb_config_kwargs: {bnb_4bit_use_double_quant: false}").0.double_quant);
    refused("bnb_config_kwargs: {bnb_4bit_quant_type: fp4}", &["`bnb_config_kwargs.bnb_4bit_quant_type`", "`nf4`"]);
    refused("model_init_kwargs: {torch_dtype: float32}", &["`model_init_kwargs.torch_dtype`", "`float32`"]);
    refused("model_init_kwargs: {rope_scaling: {factor: 2.0}}", &["`model_init_kwargs.rope_scaling`"]);
    refused("llm_int8_skip_modules: [lm_head, down_proj]", &["`llm_int8_skip_modules`", "not supported yet"]);
    refused("relora_steps: 150", &["`relora_steps`", "not supported yet"]);
    refused("past_index: 2", &["`past_index`", "not supported yet"]);
    assert_eq!(noting("wandb: my-runs\ntorchdynamo: inductor").1, ["without effect here: `wandb`, `torchdynamo`"]);
}

#[test]
fn an_alpha_beside_a_scale_is_told() {
    let (settings, notes) = noting("lora_parameters: {rank: 8, scale: 20.0, alpha: 16}");
    assert_eq!(settings.lora_alpha, 160.0);
    let told = "cfg.yaml line 1: `lora_parameters.alpha`: without effect here";
    assert!(
        notes.len() == 1 && notes[0].starts_with(told) && notes[0].contains("`lora_parameters.scale`"),
        "{notes:?}"
    );
    let (settings, notes) = noting("lora_parameters: {rank: 8, scale: 20.0, alpha: 160}");
    assert!(settings.lora_alpha == 160.0 && notes.is_empty(), "{notes:?}");
    let (settings, notes) = noting("lora_parameters: {rank: 8, alpha: 24}");
    assert!(settings.lora_alpha == 24.0 && notes.is_empty(), "{notes:?}");
    let flag = [("lora_alpha".to_owned(), "12".to_owned())];
    let flagged = Settings::from_yaml("lora_parameters: {rank: 8, scale: 20.0}", "cfg.yaml", &flag).unwrap();
    assert_eq!(flagged.lora_alpha, 12.0, "a flag wins over the file");
}

#[test]
fn a_data_set_may_have_several_files() {
    let (settings, _) = noting("datasets: [{path: json, data_files: [a.jsonl, b.jsonl]}, {path: c.jsonl}]");
    assert_eq!(settings.data, ["a.jsonl", "b.jsonl", "c.jsonl"].map(PathBuf::from));
    refused("datasets: [{path: a.jsonl, data_files: b.jsonl}]", &["`path` and `data_files`", "one of them"]);
    refused("datasets: [{path: json, data_files: [{a: 1}]}]", &["`data_files`", "path of a file"]);
}

#[test]
fn data_sets_name_the_chat_template_too() {
    for own in ["tokenizer_default", "jinja"] {
        let (settings, _) = noting(&format!("datasets: [{{path: a.jsonl, chat_template: {own}}}]"));
        assert_eq!(settings.chat_template, None, "{own}");
    }
    let both = "chat_template: chatml\ndatasets:\n  - path: a.jsonl\n    chat_template: tokenizer_default\n";
    refused(both, &["model's own chat template", "chatml", "keep one"]);
    let (settings, _) = noting("datasets: [{path: a.jsonl, type: sharegpt, conversation: chatml}]");
    assert_eq!(settings.chat_template.as_deref(), Some("chatml"));
    refused("datasets: [{path: a.jsonl, conversation: vicuna_v1.1}]", &["`conversation: vicuna_v1.1`"]);
}

/// Names under which another trainer writes another text than a built-in template.
#[test]
fn names_of_templates_that_are_not_built_in_are_refused_by_name() {
    for name in ["qwen_25", "Qwen-2.5", "mistral_v2v3", "llama-3.1", "smollm2", "phi_4", "qwen3"] {
        let shown = format!("the template `{name}`");
        refused(&format!("model: m\nchat_template: {name}"), &["line 2: `chat_template`", &shown, "leave it out"]);
        let file = format!("datasets:\n  - path: a.jsonl\n    chat_template: {name}\n");
        refused(&file, &["line 3: `datasets`", &shown, "leave it out"]);
    }
    refused("template: qwen", &["line 1: `template`", "You are Qwen", "chatml is the same without it"]);
    for name in ["mistral", "zephyr", "llama2", "vicuna", "deepseek3", "qwen3", "default"] {
        refused(&format!("template: {name}"), &["line 1: `template`", &format!("`{name}`"), "it out"]);
    }
    for name in ["llama3", "chatml", "qwen3_nothink", "gemma2", "phi", "alpaca", "mine.jinja"] {
        assert_eq!(noting(&format!("template: {name}")).0.chat_template.as_deref(), Some(name));
    }
    // A flag takes its place.
    for flag in [("chat_template", "chatml"), ("template", "false")] {
        let flag = [(flag.0.to_owned(), flag.1.to_owned())];
        Settings::from_yaml("template: qwen", "cfg.yaml", &flag).unwrap();
    }
    let fallback = noting("chat_template: tokenizer_default_fallback_chatml").0.chat_template;
    assert_eq!(fallback.as_deref(), Some("tokenizer_default_fallback_chatml"));
}

#[test]
fn keys_that_name_another_tokenizer_or_turn_thoughts_off_are_refused() {
    refused("base_model: m\ntokenizer_config: other/tokenizer", &["line 2: `tokenizer_config`", "other/tokenizer"]);
    refused("base_model: m\nbase_model_config: other", &["line 2: `base_model_config`"]);
    assert!(noting("base_model: m\ntokenizer_config: m\nbase_model_config: m").1.is_empty());
    refused("enable_thinking: false", &["line 1: `enable_thinking`", "empty thought"]);
    let flag = [("enable_thinking".to_owned(), "true".to_owned())];
    Settings::from_yaml("enable_thinking: false", "cfg.yaml", &flag).unwrap();
    refused("chat_template_kwargs: {enable_thinking: false}", &["`chat_template_kwargs`"]);
    noting("chat_template_kwargs: {}");
    // The JSON of a section is one.
    noting("chat_template_kwargs: '{}'");
    let given = r#"chat_template_kwargs: '{"enable_thinking": false}'"#;
    refused(given, &["`chat_template_kwargs`", "a section with the key `enable_thinking`"]);
}

#[test]
fn arguments_that_change_nothing_in_rows_of_turns_pass() {
    for nothing in ["{skip_prepare_dataset: false}", "'{\"skip_prepare_dataset\": false}'", "{}"] {
        assert!(noting(&format!("dataset_kwargs: {nothing}")).1.is_empty(), "{nothing}");
    }
    let (settings, notes) = noting("dataset_kwargs: {add_special_tokens: false, append_concat_token: false}");
    assert_eq!(settings, Settings::default());
    assert!(notes.len() == 1 && notes[0].starts_with("cfg.yaml line 1: `dataset_kwargs`: the chat"), "{notes:?}");
    for asks in ["{skip_prepare_dataset: true}", "{add_special_tokens: true}", "{append_concat_token: false, a: 0}"] {
        refused(&format!("dataset_kwargs: {asks}"), &["`dataset_kwargs`", "not supported yet"]);
    }
}

#[test]
fn the_default_revision_of_a_directory_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().display();
    let (settings, notes) = noting(&format!("base_model: {model}\nrevision_of_model: main"));
    assert_eq!((settings.model, settings.revision), (Some(model.to_string()), None));
    assert_eq!(notes, [format!("{model}: a directory has no revisions, so `revision: main` is left out")]);
    let (settings, notes) = noting(&format!("base_model: {model}\nrevision_of_model: v1"));
    assert!(settings.revision.as_deref() == Some("v1") && notes.is_empty(), "{notes:?}");
    assert_eq!(noting("base_model: org/name\nrevision_of_model: main").0.revision.as_deref(), Some("main"));
}

#[test]
fn names_of_roles_are_taken_where_each_is_of_one_role() {
    let names = |settings: &Settings| -> Vec<(String, &str)> { settings.roles.pairs().to_vec() };
    let expected = [("agent", "assistant"), ("client", "user"), ("human", "user"), ("lookup", "tool")];
    let expected = expected.map(|(name, role)| (name.to_owned(), role));
    let section = "{user: [human, client, user], assistant: agent, tool: [lookup]}";
    for file in [
        format!("datasets: [{{path: a.jsonl, roles: {section}}}, b.jsonl]"),
        format!("data: a.jsonl\nroles: {section}"),
    ] {
        assert_eq!(names(&noting(&file).0), expected, "{file}");
    }
    for flags in [
        &["user=client,user=human,assistant=agent,tool=lookup"][..],
        &["user=human", "assistant=agent", "tool=lookup,user=client"],
        &[r#"{"user": ["human", "client"], "assistant": "agent", "tool": "lookup"}"#],
    ] {
        let flags: Vec<_> = flags.iter().map(|flag| ("roles".to_owned(), (*flag).to_owned())).collect();
        assert_eq!(names(&Settings::load(None, &flags).unwrap()), expected, "{flags:?}");
    }
    for (roles, words) in [
        ("{judge: [a]}", "names of `user`, `assistant`, `system`, `tool`"),
        ("user", "a section with a list of names for each role"),
        ("{user: [gpt]}", "another name for `user` than `gpt`, which is one of `assistant`"),
        ("{user: [guest], assistant: [guest]}", "`guest` as a name of one role, not of `user` and `assistant`"),
        ("{user: [1]}", "a section with a list of names"),
    ] {
        refused(&format!("datasets: [{{path: a.jsonl, roles: {roles}}}]"), &["of a data set", words]);
        refused(&format!("roles: {roles}"), &["`roles`", words]);
    }
    let two = "datasets: [{path: a.jsonl, roles: {user: [a]}}, {path: b.jsonl, roles: {user: [b]}}]";
    refused(two, &["`roles`", "keep one of them"]);
}

#[test]
fn a_setting_is_suggested_that_does_what_was_meant() {
    for (word, meant) in [
        ("resume", "resume_from_checkpoint"),
        ("eval-every", "eval_steps"),
        ("val_every", "eval_steps"),
        ("log_every", "logging_steps"),
        ("rank", "lora_r"),
        ("dropout", "lora_dropout"),
        ("alpha", "lora_alpha"),
        ("save_interval", "save_steps"),
    ] {
        assert_eq!(nearest(word), Some(meant), "{word}");
    }
}

#[test]
fn intervals_may_be_shares_of_all_steps() {
    for name in ["logging_steps", "save_steps", "eval_steps"] {
        let settings = noting(&format!("{name}: 0.1")).0;
        let every = match name {
            "logging_steps" => settings.logging_steps,
            "save_steps" => settings.save_steps,
            _ => settings.eval_steps,
        };
        assert_eq!(every, Every::Share(0.1), "{name}");
        assert_eq!(Settings::from_yaml(&settings.to_yaml().unwrap(), "again", &[]).unwrap(), settings);
    }
    for wrong in ["0", "-1", "epoch", "1.5", "false"] {
        refused(&format!("logging_steps: {wrong}"), &["`logging_steps`", "a share"]);
    }
}
