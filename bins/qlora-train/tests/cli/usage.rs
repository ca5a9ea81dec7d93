//! Help, version and wrong usage.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use qlora_train::config::SETTINGS;

use crate::sandbox::{Sandbox, train};

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
    let train = sandbox.run("train --help").ok().stdout;
    let headings =
        ["Model, data and output:", "Base weights:", "Adapters:", "Training:", "Optimizer:", "Memory and device:"];
    let found: Vec<&str> = train.lines().filter(|line| headings.contains(line)).collect();
    assert_eq!(found, headings, "{train}");
    assert!(train.lines().all(|line| line.chars().count() <= 100), "{train}");
}

#[test]
fn the_version_is_that_of_the_package() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run("-V").ok().stdout, format!("qlora-train {}\n", env!("CARGO_PKG_VERSION")));
    let text = sandbox.run("--version").ok().stdout;
    let mut git = Command::new("git");
    let head = git.args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short=12", "HEAD"]).output();
    // Not everybody who has the sources has their history.
    let commit = head
        .ok()
        .filter(|head| head.status.success())
        .map_or(String::new(), |head| format!(" ({}", String::from_utf8(head.stdout).unwrap().trim()));
    assert!(text.starts_with(&format!("qlora-train {}{commit}", env!("CARGO_PKG_VERSION"))), "{text}, not{commit}");
    let (first, second) = text.split_once('\n').unwrap();
    assert!(first.ends_with(')') != commit.is_empty() && second.starts_with("built "), "{text}");
    // By this a release refuses the program of the tests.
    assert!(second.ends_with(", with failpoints for tests\n"), "{text}");
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
        ("eval", "--model"),
        ("generate --model model", "--prompt"),
        ("generate --model model --prompt x --max-new-tokens 0", "--max-new-tokens"),
        ("preview --model model --data rows.jsonl --rows many", "--rows"),
        ("train a.yaml b.yaml", "b.yaml"),
        ("generate --model model --prompt x --temperature -1", "'-1' for '--temperature <TEMPERATURE>'"),
        ("generate --model model --prompt x --max-new-tokens -3", "'-3' for '--max-new-tokens"),
    ] {
        let done = sandbox.run(line);
        assert_eq!(done.status, Some(2), "{done:?}");
        assert_eq!(done.stdout, "");
        assert!(done.stderr.contains(word), "{done:?} lacks {word:?}");
    }
}

#[test]
fn help_that_cannot_be_written_is_a_failure() {
    let sandbox = Sandbox::new();
    for line in ["--help", "train --help", "--version"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let done = sandbox.command(line).stdout(full).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{line}");
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(said, "error: standard output: No space left on device (os error 28)\n", "{line}");
    }
}

#[test]
fn a_path_from_home_is_there_however_the_flag_is_written() {
    let sandbox = Sandbox::new();
    let home = sandbox.path("home");
    std::fs::create_dir(&home).unwrap();
    let of_home = |line: &str| sandbox.run_with(line, &[("HOME", home.to_str().unwrap())]).ok();
    of_home("quantize --model model --output-dir=~/nf4");
    of_home(&train("--output-dir ~/run"));
    of_home("merge --model model --adapter=~/run --output-dir=~/merged");
    of_home("export uniform --adapter=~/run --output-dir=~/uniform");
    of_home("init ~/settings.yaml");
    of_home("report ~/run --output=~/page.html");
    assert_eq!(sandbox.names("home"), ["merged", "nf4", "page.html", "run", "settings.yaml", "uniform"]);
    for line in ["--model=~/run", "--adapter mine=~/run", "--adapter ~/run:0.5", "--adapter=~/run"] {
        of_home(&format!("eval {line} --data rows.jsonl"));
    }
    let sandbox = Sandbox::chat();
    let form = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}";
    std::fs::write(home.join("form.jinja"), form).unwrap();
    let line = "preview --model model --data chat.jsonl --chat-template=~/form.jinja";
    sandbox.run_with(line, &[("HOME", home.to_str().unwrap())]).ok();
    assert!(!sandbox.path("~").exists());
}

#[test]
fn commands_that_use_no_gpu_take_a_device_all_the_same() {
    let sandbox = Sandbox::chat();
    sandbox.train_into("out", "--chat-template chatml").ok();
    for (i, command) in [
        "quantize --model model --output-dir",
        "check out --model model",
        "merge --model model --adapter out --output-dir",
        "export gguf --model model --adapter out --chat-template chatml --output-dir",
        "export uniform --adapter out --output-dir",
    ]
    .into_iter()
    .enumerate()
    {
        let line = |device: &str, at: usize| match command.ends_with("--output-dir") {
            true => format!("{command} new-{i}-{at} --device {device}"),
            false => format!("{command} --for peft --device {device}"),
        };
        for (at, device) in ["cpu", "auto"].into_iter().enumerate() {
            sandbox.run(&line(device, at)).ok();
        }
        for device in ["cuda", "cuda:1"] {
            let found = format!("found `{device}`");
            sandbox.refused(&line(device, 2), &["`--device`", &found, "works on the CPU only", "give cpu or auto"]);
        }
        sandbox.refused(&line("tpu", 2), &["`--device`", "found `tpu`", "cpu, cuda or cuda:N"]);
    }
}

#[test]
fn rows_that_follow_no_flag_are_told_how_to_be_given() {
    let sandbox = Sandbox::new();
    sandbox.write("one.jsonl", "{\"prompt\": \"a\"}\n");
    sandbox.write("run.yaml", "sead: 1\n");
    let hint = "each further file of rows takes another `--data`";
    for rows in ["rows.jsonl", "one.jsonl", "no-such.jsonl"] {
        for command in ["preview", "train --output-dir out", "eval"] {
            let line = format!("{command} --model model --data rows.jsonl {rows}");
            sandbox.refused(&line, &[&format!("{rows} was read as the settings file"), hint]);
        }
    }
    for line in ["preview --model model --data rows.jsonl run.yaml", "preview --model model --lora-r 0"] {
        let done = sandbox.run(line);
        assert!(done.status == Some(2) && !done.stderr.contains(hint), "{done:?}");
    }
}

#[test]
fn commands_that_people_look_for_are_told_what_does_it() {
    let sandbox = Sandbox::new();
    for (command, words) in [("fuse", "merge"), ("serve", "vllm"), ("upload", "qlora-train push DIR --to")] {
        sandbox.run(command).ended(2, &[&format!("`{command}` is not a command"), words]);
        sandbox.run(&format!("{command} --json")).ended(2, &[words]);
    }
}

#[test]
fn wrong_usage_is_an_object_for_programs() {
    let sandbox = Sandbox::new();
    for (line, word) in [
        ("--json", "requires a subcommand"),
        ("trian --json", "'trian'"),
        ("eval --json --model model", "--data"),
        ("generate --model model --json", "--prompt"),
        ("train --json --no-such-flag 3", "--no-such-flag"),
        ("eval --json --no-such-flag 3", "'--no-such-flag'"),
        ("plan --json", "`model` is missing"),
    ] {
        let done = sandbox.run(line);
        assert_eq!(done.status, Some(2), "{done:?}");
        let told: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{line}: {done:?}"));
        assert_eq!(told["error"]["exit_status"], 2, "{line}");
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(word) && !message.contains('\n'), "{line}: {message}");
    }
    assert!(sandbox.run("eval --json --help").ok().stdout.contains("Usage:"), "help is no error");
}

#[test]
fn devices_and_directories_have_one_name_in_every_command() {
    let sandbox = Sandbox::new();
    for command in ["train", "plan", "preview", "eval", "generate", "bench", "doctor"] {
        assert!(sandbox.run(&format!("{command} --help")).ok().stdout.contains("--device "), "{command}");
    }
    sandbox.run("quantize --model model --output-dir one").ok();
    sandbox.run("quantize --model model --output two").ok();
    assert_eq!(sandbox.bytes("one/model.safetensors"), sandbox.bytes("two/model.safetensors"));
    let plain = sandbox.run("doctor --json").ok().stdout;
    for same in ["--gpu 0", "--device cuda", "--device cuda:0"] {
        let found: serde_json::Value =
            serde_json::from_str(&sandbox.run(&format!("doctor --json {same}")).ok().stdout).unwrap();
        let plain: serde_json::Value = serde_json::from_str(&plain).unwrap();
        assert_eq!(found["problems"], plain["problems"], "{same}");
    }
    for wrong in ["cpu", "gpu", "cuda:x"] {
        sandbox.run(&format!("doctor --device {wrong}")).ended(2, &["device", wrong, "cuda:N"]);
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
    assert!(found["disk"]["free_bytes"].as_u64().unwrap() > 0, "{found}");
    assert_eq!(found["hub_cache"]["path"], serde_json::Value::Null);
    std::fs::create_dir_all(sandbox.path("no-cache/hub")).unwrap();
    let text = sandbox.run("doctor").ok().stdout;
    let cache = sandbox.path("no-cache/hub").display().to_string();
    assert!(text.lines().any(|line| line.starts_with("ok      hub cache") && line.ends_with(&cache)), "{text}");
    // The compiler, in each place where a build looks for it.
    sandbox.write("nvcc", "");
    std::fs::create_dir(sandbox.path("bin")).unwrap();
    sandbox.write("bin/nvcc", "");
    let here = |name: &str| sandbox.path(name).display().to_string();
    for (variable, value, expected) in [
        ("NVCC", here("nvcc"), Some(here("nvcc"))),
        ("CUDA_HOME", here(""), Some(here("bin/nvcc"))),
        ("CUDA_PATH", here(""), Some(here("bin/nvcc"))),
        ("PATH", here("bin"), Some(here("bin/nvcc"))),
        ("NVCC", here("no-such"), None),
    ] {
        let mut command = sandbox.command("doctor --json");
        command.env_remove("NVCC").env_remove("CUDA_HOME").env_remove("CUDA_PATH").env("PATH", "no-such");
        let output = command.env(variable, value).output().unwrap();
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["nvcc"]["path"].as_str().map(str::to_owned), expected, "{variable}: {found}");
    }
    assert_eq!((&found["gpu"], &found["gpu_usable"]), (&serde_json::Value::Null, &serde_json::json!(false)));
    assert_eq!(found["problems"].as_array().unwrap().len(), 1, "{found}");
}

#[test]
fn an_argument_that_is_not_utf8_is_wrong_usage() {
    let sandbox = Sandbox::new();
    let bytes = OsStr::from_bytes(b"x\xFF\x1B[2J");
    let lines = [
        "",
        "train",
        "train --model",
        "train --data rows.jsonl --model",
        "train --model model --data rows.jsonl --output-dir",
        "plan --lora-target-modules",
        "preview --chat-template",
        "eval --model model --data",
        "generate --model model --prompt",
    ];
    let before = sandbox.files();
    for line in lines {
        let output = sandbox.command(line).arg(bytes).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{line}: {said}");
        assert!(!said.contains("panicked") && !said.contains('\u{1b}'), "{line}: {said:?}");
    }
    assert!(sandbox.files() == before);
}

#[test]
fn completions_name_every_command_and_setting_for_every_shell() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = sandbox.run(&format!("completions {shell}")).ok().stdout;
        for word in ["train", "generate", "completions", "learning-rate", "top-k"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let answer: serde_json::Value =
            serde_json::from_str(&sandbox.run(&format!("completions {shell} --json")).ok().stdout).unwrap();
        let whole = answer["script"].as_str().unwrap();
        assert_eq!((answer["shell"].as_str(), whole.trim_end()), (Some(shell), script.trim_end()), "{shell}");
    }
    let wrong = sandbox.run("completions tcsh");
    assert!(wrong.status == Some(2) && wrong.stderr.contains("fish"), "{wrong:#?}");
}

#[test]
fn every_command_has_a_manual_page() {
    let sandbox = Sandbox::new();
    let page = |command: &str| sandbox.run(&format!("man {command}")).ok().stdout;
    let whole = page("");
    assert!(whole.contains(".TH qlora-train 1 ") && whole.contains("qlora\\-train\\-train(1)"), "{whole}");
    for (command, words) in [
        ("train", &["qlora-train-train", "\\-\\-learning\\-rate", "\\-\\-sample\\-prompts", ".SH OPTIONS"][..]),
        ("plan", &["\\-\\-price\\-per\\-hour"]),
        ("export gguf", &["gguf", "\\-\\-type"]),
    ] {
        let found = page(command);
        for word in words {
            assert!(found.contains(word), "{command} lacks {word}: {found}");
        }
    }
    let json = sandbox.run("man train --json").json();
    assert_eq!(
        (&json["command"], json["page"].as_str().unwrap().trim_end()),
        (&"qlora-train train".into(), page("train").trim_end())
    );
    sandbox.refused("man nothing", &["no command", "nothing", "train, plan"]);
    sandbox.refused("man train now", &["qlora-train train", "no more words"]);
}

#[test]
fn all_manual_pages_go_into_a_directory() {
    let sandbox = Sandbox::new();
    let pages = sandbox.run("man --output-dir share/man1 --json").json()["pages"].clone();
    let pages: Vec<&str> = pages.as_array().unwrap().iter().map(|page| page.as_str().unwrap()).collect();
    // Every command that the program's page names has one, and pages name no command without one.
    let whole = sandbox.read("share/man1/qlora-train.1").replace("\\-", "-");
    let named: Vec<String> =
        whole.lines().filter_map(|line| line.strip_suffix("(1)")).map(|name| format!("{name}.1")).collect();
    assert!(named.len() > 10, "{whole}");
    for page in &named {
        assert!(pages.contains(&page.as_str()), "{page}: {pages:?}");
    }
    assert!(pages.contains(&"qlora-train-export-gguf.1") && pages.len() > named.len(), "{pages:?}");
    for page in &pages {
        let name = page.strip_suffix(".1").unwrap();
        assert!(sandbox.read(&format!("share/man1/{page}")).contains(&format!(".TH {name} 1 ")), "{page}");
    }
    sandbox.write("taken", "a file");
    sandbox.refused("man --output-dir taken", &["taken", "cannot be made"]);
    let both = sandbox.run("man train --output-dir share");
    assert!(both.status == Some(2) && both.stderr.contains("--output-dir"), "{both:#?}");
}
