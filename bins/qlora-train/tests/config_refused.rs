//! Bad settings: exit status 2, a line that names the place, what was found and what was expected, and the line itself.

use std::io::Write;

use qlora_train::config::*;
use qlora_train::error::Result;

#[track_caller]
fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.expect_err("should be refused");
    assert_eq!(error.exit_status(), 2, "{error}");
    let text = error.to_string();
    // One line for each fault, and below it the line of the file, if there is one.
    let mut lines = text.lines();
    assert!(lines.next().is_some_and(|line| !line.trim().is_empty()), "{text:?}");
    for line in lines {
        let shown = line
            .split_once('|')
            .is_some_and(|(number, _)| number.trim().parse::<u64>().is_ok() || number.trim().is_empty());
        assert!(shown || line.starts_with("error: "), "{text:?}");
    }
    text
}

#[track_caller]
fn yaml(text: &str) -> String {
    refusal(Settings::from_yaml(text, "cfg.yaml", &[]))
}

#[track_caller]
fn flags(args: &[&str]) -> String {
    refusal(parse_overrides(args).and_then(|args| args.load()))
}

#[track_caller]
fn file(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    refusal(Settings::load(Some(file.path()), &[]))
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn unknown_settings_name_place_and_nearest() {
    says(&yaml("seed: 1\nlora_rnk: 8"), &["cfg.yaml line 2", "`lora_rnk`", "did you mean `lora_rank`?"]);
    says(&yaml("lora:\n  rnk: 8"), &["cfg.yaml line 2", "`lora.rnk`", "`lora.rank`"]);
    says(&yaml("wibble:"), &["`wibble`", "not a known setting"]);
    says(&yaml("learningrate:\n  max: 1"), &["`learningrate`", "`learning_rate`"]);
    says(&yaml("datasets: [{path: a, shards: 4}]"), &["line 1", "`datasets`", "`shards`"]);
    let far = flags(&["--xyzzy", "8"]);
    says(&far, &["`--xyzzy`", "not a known setting"]);
    assert!(!far.contains("did you mean"), "{far}");
    says(&flags(&["--lora-rnk", "8"]), &["--lora-rnk", "--lora-r"]);
    says(&flags(&["--outputdir", "x"]), &["did you mean `--output-dir`?"]);
    for (short, whole) in
        [("--grad-accum", "--gradient-accumulation-steps"), ("--batch", "--batch-size"), ("--warmup", "--warmup-")]
    {
        says(&flags(&[short, "8"]), &[&format!("did you mean `{whole}")]);
    }
    says(&flags(&["--steps", "8"]), &["is not a setting", "`max_steps`"]);
    for nothing in ["--bat", "--grad-grad", "--xy"] {
        assert!(!flags(&[nothing, "8"]).contains("did you mean"), "{nothing}");
    }
    says(&refusal(Settings::load(None, &[("lora-rnk".into(), "8".into())])), &["`--lora-rnk`", "`--lora-rank`"]);
}

#[test]
fn wrong_types_and_ranges_name_found_and_expected() {
    for (line, parts) in [
        ("lora_r: 0", &["found `0`", "an integer from 1 to 256"][..]),
        ("lora_r: 257", &["257"]),
        ("lora_r: 8.5", &["`8.5`"]),
        ("lora_r: eight", &["`eight`"]),
        ("lora_r: [8]", &["a list of 1 beginning with `8`"]),
        ("lora_r: {a: 1}", &["a section with the key `a`"]),
        ("lora_r: true", &["`true`"]),
        ("lora_r: 99999999999999999999999999", &["expected an integer"]),
        ("lora_dropout: 1", &["from 0 to below 1"]),
        ("lora_dropout: -0.1", &["`-0.1`"]),
        ("learning_rate: 0", &["above 0"]),
        ("learning_rate: -1e-4", &["above 0"]),
        ("learning_rate: 'inf'", &["above 0"]),
        ("learning_rate: 'nan'", &["above 0"]),
        ("loraplus_lr_ratio: 0", &["above 0"]),
        ("warmup_ratio: 1.5", &["from 0 to 1"]),
        ("warmup_steps: 10.5", &["whole number"]),
        ("warmup_steps: -1", &["ratio below 1"]),
        ("num_train_epochs: 0", &["above 0"]),
        ("max_steps: -2", &["-2"]),
        ("per_device_train_batch_size: 0", &["1 to 65536"]),
        ("nf4_block_size: 96", &["power of two"]),
        ("nf4_block_size: 8192", &["power of two"]),
        ("max_length: 1", &["from 2"]),
        ("too_long: shorten", &["drop, truncate, proportional, error or chunk"]),
        ("packing: 2", &["true or false"]),
        ("val_set_size: 1.5", &["a share below 1"]),
        ("val_set_size: -0.1", &["a share below 1"]),
        ("host_memory: 8G", &["8GiB"]),
        ("host_memory: -8GiB", &["8GiB"]),
        ("device: tpu", &["cpu, cuda or cuda:N"]),
        ("device: cuda:x", &["cuda:N"]),
        ("threads: 5000", &["4096"]),
        ("seed: -1", &["from 0"]),
        ("revision: 12e4", &["quotes"]),
        ("lora_target_modules: [q_proj, qproj]", &["`qproj`", "gate_proj"]),
        ("lora_target_modules: [model.layers.0.self_attn.q_proj]", &["found `model.layers.0.self_attn.q_proj`"]),
        ("lora_target_modules: [q_proj, self_attn.qproj]", &["found `self_attn.qproj`"]),
        ("lora_target_modules: 'q_proj, qproj'", &["found `qproj`"]),
        ("lora_target_modules: '.*q_proj)|(.*v_proj'", &["found `.*q_proj)|(.*v_proj`", "no regular expression"]),
        (r"lora_target_modules: '.*\.(q_proj'", &[r"found `.*\.(q_proj`", "no regular expression"]),
        ("lora_target_modules: ['.*q_proj', v_proj]", &["found `.*q_proj` in a list", "as one string"]),
        ("lora_target_modules: ['.*q_proj']", &["found `.*q_proj` in a list", "as one string"]),
        ("lora_target_modules: []", &["an empty list"]),
        ("preset: fast", &["loraplus"]),
        ("datasets: [{type: chat_template}]", &["without `path`"]),
        ("datasets: [{path: a, type: input_output}]", &["`type: input_output`", "not supported yet"]),
        ("datasets: [{path: a, train_on_eos: all}]", &["`train_on_eos: all`", "not supported yet"]),
        (
            "datasets: [{path: a, type: {field_instruction: instruction, field_output: output, format: '{instruction}'}}]",
            &["`format: {instruction}`", "remove its key"],
        ),
        (
            "datasets: [{path: a, type: {field_instruction: q, field_output: a, field_input: c, format: '{instruction} {input}'}}]",
            &["`format: {instruction} {input}`", r"{instruction}\n\n{input}"],
        ),
        (
            "datasets: [{path: a, type: {field_instruction: q, field_output: a, format: '{instruction} {input}'}}]",
            &["`format: {instruction} {input}`", "`field_input`"],
        ),
        (
            "datasets: [{path: a, type: {field_input: c, no_input_format: '{instruction} {input}'}}]",
            &["`no_input_format: {instruction} {input}`"],
        ),
        ("datasets: [{path: a, field_instruction: q}, {path: b, field_instruction: r}]", &["`q`", "`r`", "keep one"]),
        ("eval_steps: 0 per epoch", &["`N per epoch`"]),
        ("saves_per_epoch: many", &["in each epoch"]),
        ("data: ['']", &["a list of paths"]),
    ] {
        let text = yaml(&format!("# first line\n{line}"));
        says(&text, &["cfg.yaml line 2", line.split(':').next().unwrap()]);
        says(&text, parts);
    }
    says(&flags(&["--lora-r", "0"]), &["`--lora-r`", "found `0`", "from 1 to 256"]);
    says(&flags(&["--packing", "cfg.yaml"]), &["`--packing`", "true or false"]);
    says(&flags(&["a.yaml", "b.yaml"]), &["b.yaml"]);
    says(&flags(&["--lora-r"]), &["--lora-r"]);
}

#[test]
fn one_value_keys_are_checked() {
    for line in ["bias: all", "task_type: SEQ_CLS", "stage: dpo", "training_mode: dpo", "bnb_4bit_quant_type: fp4"] {
        says(&yaml(line), &["cfg.yaml line 1", "expected `"]);
    }
    says(&yaml("adapter: ia3"), &["lora or qlora"]);
    says(&yaml("lora: {bias: lora_only}"), &["`lora.bias`"]);
}

#[test]
fn what_is_not_built_is_refused_by_name_and_accepted_when_off() {
    for (name, on) in [
        ("push_to_hub", "true"),
        ("fp16", "true"),
        ("label_smoothing_factor", "0.1"),
        ("neftune_noise_alpha", "5"),
        ("exclude_modules", "[lm_head]"),
    ] {
        says(&yaml(&format!("{name}: {on}")), &[name, "is not supported yet"]);
        for off in ["false", "null", "none", "0", "0.0", "[]", "{}", "", "no"] {
            Settings::from_yaml(&format!("{name}: {off}"), "cfg.yaml", &[]).unwrap();
        }
    }
    says(&flags(&["--neftune-noise-alpha", "2"]), &["neftune-noise-alpha", "is not supported yet"]);
    for optim in ["adafactor", "lion_8bit", "ademamix_8bit", "rmsprop", "q_galore_adamw8bit", "sgd"] {
        says(&yaml(&format!("optim: {optim}")), &[optim, "is not supported yet", "adamw_8bit or adamw_torch"]);
    }
    says(&yaml("lr_scheduler_type: cosine_with_restarts"), &["is not supported yet"]);
}

#[test]
fn when_to_save_and_to_evaluate() {
    for (line, save_steps) in [
        ("save_steps: 20", Every::Steps(20)),
        ("save_steps: 0.1", Every::Share(0.1)),
        ("save_steps: epoch", Every::Epoch),
        ("save_steps: -1", Every::Never),
        ("save_steps: false", Every::Never),
        ("save_strategy: epoch", Every::Epoch),
        ("save_strategy: 'no'", Every::Never),
        ("save_strategy: steps", Every::Steps(500)),
        ("save_strategy: steps\nsave_steps: 7", Every::Steps(7)),
    ] {
        let settings = Settings::from_yaml(line, "cfg.yaml", &[]).unwrap();
        assert_eq!(settings.save_steps, save_steps, "{line}");
        let line = line.replace("save", "eval");
        let settings = Settings::from_yaml(&line, "cfg.yaml", &[]).unwrap();
        let none_given = line == "eval_strategy: steps";
        assert_eq!(settings.eval_steps, if none_given { Every::Never } else { save_steps }, "{line}");
    }
    for (line, resume) in [
        ("resume_from_checkpoint: true", Resume::Latest),
        ("resume_from_checkpoint:", Resume::No),
        ("resume_from_checkpoint: false", Resume::No),
        ("auto_resume_from_checkpoints: true", Resume::Latest),
        ("resume_from_checkpoint: out/checkpoint-5", Resume::From("out/checkpoint-5".into())),
    ] {
        assert_eq!(Settings::from_yaml(line, "cfg.yaml", &[]).unwrap().resume_from_checkpoint, resume, "{line}");
    }
    says(&yaml("save_strategy: epoch\nsave_steps: 5"), &["line 1", "line 2", "keep one"]);
    says(&yaml("save_strategy: best"), &["`best` is not supported yet"]);
    says(&yaml("eval_strategy: sometimes"), &["steps, epoch or no"]);
    says(&yaml("save_steps: 1.5"), &["a share below 1"]);
    says(&yaml("metric_for_best_model: bleu"), &["eval_loss"]);
    // Only where it has a say in the run does the rhythm of evaluation make another run.
    let hash = |text: &str| Settings::from_yaml(text, "cfg.yaml", &[]).unwrap().result_hash();
    assert_eq!(hash("eval_steps: 2"), hash("eval_steps: 3\nsave_steps: 9"));
    assert_ne!(
        hash("eval_steps: 2\nload_best_model_at_end: true"),
        hash("eval_steps: 3\nload_best_model_at_end: true")
    );
}

#[test]
fn contradictions_name_both_places() {
    says(&yaml("lora_r: 8\nlora:\n  rank: 16"), &["line 3", "`lora.rank`", "line 1", "`lora_r`", "keep one"]);
    says(&yaml("load_in_4bit: false\nadapter: qlora"), &["line 1", "line 2"]);
    says(&yaml("warmup_ratio: 0.1\nwarmup_steps: 5"), &["line 1", "line 2", "keep one"]);
    says(&yaml("val_set_size: 5\nval_data: v.jsonl"), &["line 1", "line 2", "keep one"]);
    says(&flags(&["--lora-r", "8", "--lora-rank", "4"]), &["`8`", "`4`", "keep one"]);
}

#[test]
fn a_bad_file_value_is_refused_even_if_a_flag_wins() {
    let flags = [("lora_r".to_string(), "8".to_string())];
    says(&refusal(Settings::from_yaml("lora_r: x", "cfg.yaml", &flags)), &["cfg.yaml line 1"]);
}

#[test]
fn text_that_is_no_settings_file() {
    says(&file(b"seed: 1\nmodel: \xff\xfe"), &["line 2", "not UTF-8"]);
    says(&file(&vec![b'#'; (1 << 20) + 1]), &["more than 1048576 bytes"]);
    says(&yaml("seed: 1\nseed: 2"), &["cfg.yaml line 2", "seed"]);
    says(&yaml("- a\n- b"), &["a list of 2", "`name: value`"]);
    says(&yaml("just text"), &["`just text`"]);
    says(&yaml("seed: [1"), &["cfg.yaml", "not a valid settings file"]);
    says(&yaml("seed: 1\n---\nseed: 2"), &["cfg.yaml"]);
    says(&yaml("[a]: 1"), &["cfg.yaml"]);
    says(&yaml("seed: *nowhere"), &["cfg.yaml"]);
    says(&yaml(&format!("model: {}{}", "[".repeat(50_000), "]".repeat(50_000))), &["cfg.yaml"]);
    says(&yaml(&format!("model: {}", "{a: ".repeat(50_000))), &["cfg.yaml"]);
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(", "));
    }
    says(&yaml(&bomb), &["cfg.yaml", "not a valid settings file"]);
    says(&refusal(Settings::load(Some("no/such/file.yaml".as_ref()), &[])), &["no/such/file.yaml", "cannot be read"]);
    says(&refusal(Settings::load(Some(std::env::temp_dir().as_ref()), &[])), &["cannot be read"]);
}

#[test]
fn validate_names_what_the_purpose_lacks() {
    let full = Settings::from_yaml("model: m\ndata: d.jsonl\noutput_dir: o", "cfg.yaml", &[]).unwrap();
    full.validate(Purpose::Train).unwrap();
    let no_output = Settings { output_dir: None, ..full.clone() };
    no_output.validate(Purpose::Preview).unwrap();
    says(&refusal(no_output.validate(Purpose::Train)), &["`output_dir` is missing", "--output-dir"]);
    let no_data = Settings { data: Vec::new(), ..no_output };
    no_data.validate(Purpose::Plan).unwrap();
    says(&refusal(no_data.validate(Purpose::Preview)), &["`data` is missing"]);
    says(&refusal(Settings::default().validate(Purpose::Plan)), &["`model` is missing"]);
    // Ranges hold for settings built in code, too.
    says(&refusal(Settings { lora_r: 0, ..full.clone() }.validate(Purpose::Train)), &["`lora_r`", "1 to 256"]);
    says(&refusal(Settings { weight_decay: f64::NAN, ..full.clone() }.validate(Purpose::Train)), &["`weight_decay`"]);
    let nan_rate = Settings { learning_rate: Some(f64::NAN), ..full };
    says(&refusal(nan_rate.validate(Purpose::Train)), &["`learning_rate`"]);
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_its_line() {
    let text =
        yaml("model: m\nlora_rnk: 8\nlora:\n  dropout: 2\nuse_qalora: true\nwarmup_steps: 3\nwarmup_ratio: 0.5\nlr: x");
    let told: Vec<&str> = text.split("\nerror: ").collect();
    assert_eq!(told.len(), 5, "{text}");
    for (line, shown) in
        [(2, "lora_rnk: 8"), (4, "  dropout: 2"), (5, "use_qalora: true"), (6, "warmup_steps: 3"), (8, "lr: x")]
    {
        let fault = told.iter().find(|fault| fault.starts_with(&format!("cfg.yaml line {line}: ")));
        let fault = fault.unwrap_or_else(|| panic!("line {line}: {text}"));
        assert!(fault.contains(&format!("{line} | {shown}")) && fault.contains("^^"), "{fault}");
    }
    // Those of the flags too.
    let flags = [("lora_r".to_string(), "0".to_string()), ("sed".to_string(), "1".to_string())];
    let text = refusal(Settings::from_yaml("lora_dropout: 2", "cfg.yaml", &flags));
    says(&text, &["cfg.yaml line 1", "\nerror: `--lora-r`: found `0`", "\nerror: `--sed` is not a known setting"]);
}

#[test]
fn a_suggestion_is_close_and_sets_something() {
    for (name, instead) in [
        ("lora_alfa", Some("`lora_alpha`")),
        ("learning_rat", Some("`learning_rate`")),
        ("batch_siz", Some("`batch_size`")),
        ("config", Some("without a flag")),
        ("dry_run", Some("qlora-train plan")),
        ("wandb_projct", None),
        ("save_only_modl", None),
        ("fsdp_confg", None),
        ("frobnicate", None),
        ("train_kind", None),
        ("use_lofty", None),
        ("special_tokens.foo_token", None),
        ("no_double_quant", Some("`double_quant: false`")),
    ] {
        let text = yaml(&format!("{name}: 1"));
        match instead {
            Some(instead) => says(&text, &[name, instead]),
            None => assert!(text.contains("is not a known setting") && !text.contains("did you mean"), "{text}"),
        }
    }
}

/// `auto` leaves the choice to the trainer where a setting lists it; elsewhere it is a name like others, or refused.
#[test]
fn auto_is_a_choice_only_where_a_setting_lists_it() {
    let mut held_as_text = 0;
    for info in SETTINGS {
        let flags = [(info.name.to_owned(), "auto".to_owned())];
        let from_file = Settings::from_yaml(&format!("{}: auto", info.name), "cfg.yaml", &[]);
        let from_flag = Settings::from_yaml("", "cfg.yaml", &flags);
        for loaded in [from_file, from_flag] {
            let held = loaded.map(|settings| info.value_in(&settings));
            match held {
                Ok(held) if info.values.starts_with("auto") => {
                    assert_eq!(held, info.value_in(&Settings::default()), "{}", info.name);
                }
                Ok(held) if info.name == "resume_from_checkpoint" => assert_eq!(held, true),
                Ok(held) => {
                    let text = held.as_array().map_or(&held, |items| &items[0]);
                    assert_eq!(text, "auto", "{}", info.name);
                    held_as_text += 1;
                }
                Err(error) => {
                    assert!(!info.values.contains("auto"), "{}: {error}", info.name);
                    assert!(error.to_string().contains("found `auto`"), "{}: {error}", info.name);
                }
            }
        }
    }
    assert!(held_as_text >= 2 * 13, "{held_as_text}");
    // Words for "not set" are so for names too.
    for word in ["none", "null", "\"\""] {
        let settings = Settings::from_yaml(&format!("output_dir: {word}"), "cfg.yaml", &[]).unwrap();
        assert_eq!(settings.output_dir, None);
    }
}
