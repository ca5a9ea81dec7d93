//! Help, version and wrong usage.

use qlora_train::config::SETTINGS;

use crate::sandbox::Sandbox;

#[test]
fn help_lists_every_command_and_setting() {
    let sandbox = Sandbox::new();
    let help = sandbox.run("--help").ok().stdout;
    for command in ["train", "plan", "preview", "eval", "generate"] {
        assert!(help.contains(&format!("  {command} ")), "{help}");
        let own = sandbox.run(&format!("{command} --help")).ok();
        assert_eq!(own.stderr, "");
        let settings =
            SETTINGS.iter().filter(|info| own.stdout.contains(&format!("--{} ", info.name.replace('_', "-"))));
        match command {
            "train" | "plan" | "preview" => assert_eq!(settings.count(), SETTINGS.len(), "{}", own.stdout),
            _ => assert!(own.stdout.contains("--model"), "{}", own.stdout),
        }
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let text = Sandbox::new().run("--version").ok().stdout;
    assert_eq!(text, format!("qlora-train {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_has_exit_status_2_and_names_what_is_wrong() {
    let sandbox = Sandbox::new();
    for (line, word) in [
        ("", "Usage: qlora-train"),
        ("trian", "'trian'"),
        ("eval --data rows.jsonl", "--model"),
        ("eval --model model", "--data"),
        ("eval --model model --data rows.jsonl --lora-r 8", "'--lora-r'"),
        ("generate --model model", "--prompt"),
        ("generate --model model --prompt x --max-new-tokens 0", "--max-new-tokens"),
        ("preview --model model --data rows.jsonl --rows many", "--rows"),
        ("train a.yaml b.yaml", "b.yaml"),
    ] {
        let done = sandbox.run(line);
        assert_eq!(done.status, Some(2), "{done:?}");
        assert_eq!(done.stdout, "");
        assert!(done.stderr.contains(word), "{done:?} lacks {word:?}");
    }
}

#[test]
fn the_doctor_says_what_there_is_and_what_is_missing() {
    let sandbox = Sandbox::new();
    let text = sandbox.run("doctor").ok().stdout;
    assert!(text.lines().any(|line| line.starts_with("ok      host memory")), "{text}");
    assert!(text.lines().any(|line| line.starts_with("missing gpu") && line.contains("--features cuda")), "{text}");
    assert!(text.ends_with("Runs work on the CPU.\n"), "{text}");
    let found: serde_json::Value = serde_json::from_str(&sandbox.run("doctor --json").ok().stdout).unwrap();
    assert!(found["processor"]["threads"].as_u64().unwrap() >= 1, "{found}");
    let bytes = |key: &str| found["host_memory"][key].as_u64().unwrap();
    assert!(bytes("free_bytes") <= bytes("total_bytes"), "{found}");
    assert_eq!((&found["gpu"], &found["gpu_usable"]), (&serde_json::Value::Null, &serde_json::json!(false)));
    assert_eq!(found["problems"].as_array().unwrap().len(), 1, "{found}");
}
