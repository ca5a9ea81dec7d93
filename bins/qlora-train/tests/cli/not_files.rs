//! Pipes and devices where files are expected: no command waits for one, or reads it without an end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sandbox::{Sandbox, train};

/// A command that waits for a pipe never ends; a slow machine is done long before this.
const FOR_EVER: Duration = Duration::from_secs(300);

/// The exit status and what was said.
#[track_caller]
fn run(sandbox: &Sandbox, line: &str) -> (i32, String) {
    let said = fs::File::create(sandbox.path("said")).unwrap();
    let mut command = sandbox.command(line);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code().unwrap_or(-1), sandbox.read("said"));
        }
        if start.elapsed() > FOR_EVER {
            child.kill().unwrap();
            panic!("{line}: waits for ever");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Puts a pipe without a writer, then a link to a device without an end, in the place of each file, and runs the lines.
fn try_each(sandbox: &Sandbox, files: &[&str], lines: &[String], statuses: &[i32]) -> usize {
    let mut tried = 0;
    for name in files {
        let path = sandbox.path(name);
        let whole = fs::read(&path).ok();
        for device in [false, true] {
            let _ = fs::remove_file(&path);
            match device {
                true => symlink("/dev/zero", &path).unwrap(),
                false => make_pipe(&path),
            }
            for line in lines {
                let (status, said) = run(sandbox, line);
                assert!(statuses.contains(&status), "{name}, device {device}: {line}: {status} {said}");
                assert!(!said.contains("panicked"), "{name}: {line}: {said}");
                tried += 1;
            }
            fs::remove_file(&path).unwrap();
        }
        if let Some(bytes) = whole {
            fs::write(&path, bytes).unwrap();
        }
    }
    tried
}

#[test]
fn no_file_of_a_model_is_waited_for() {
    let sandbox = Sandbox::chat();
    let lines = ["eval --model model --data chat.jsonl", "generate --model model --prompt a --max-new-tokens 1"];
    let files = [
        "model/config.json",
        "model/model.safetensors",
        "model/model.safetensors.index.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/chat_template.jinja",
        "model/special_tokens_map.json",
        "model/added_tokens.json",
        "model/generation_config.json",
    ];
    // Optional files may be missing.
    let tried = try_each(&sandbox, &files, &lines.map(str::to_owned), &[0, 2]);
    assert_eq!(tried, 36);
    make_pipe(&sandbox.path("template"));
    let (status, said) = run(&sandbox, "eval --model model --data chat.jsonl --chat-template template");
    assert!(status == 2 && said.contains("template"), "{said}");
    // Rows may come from a device, and a row has an end.
    let (status, said) = run(&sandbox, "eval --model model --data /dev/zero");
    assert!(status == 2 && said.contains("/dev/zero") && said.contains("longer than 64 MiB"), "{said}");
}

#[test]
fn no_file_of_a_run_is_waited_for() {
    let sandbox = Sandbox::new();
    sandbox.train("--max-steps 2 --save-steps 1").ok();
    let again = train("--max-steps 2 --save-steps 1");
    let files = ["out/run.json", "out/adapter_config.json", "out/adapter_model.safetensors", "out/SHA256SUMS"];
    let whole = fs::read(sandbox.path("out/checkpoint-1/optimizer.safetensors")).unwrap();
    let mut tried = try_each(&sandbox, &files, std::slice::from_ref(&again), &[2]);
    let files = [
        "out/checkpoint-2/run_state.json",
        "out/checkpoint-2/trainer_state.json",
        "out/checkpoint-2/optimizer.safetensors",
        "out/checkpoint-2/adapter_model.safetensors",
        "out/checkpoint-2/SHA256SUMS",
    ];
    let resumed = train("--max-steps 3 --save-steps 1 --resume-from-checkpoint");
    tried += try_each(&sandbox, &files, &[resumed], &[2]);
    let eval = "eval --model model --adapter out --data rows.jsonl".to_owned();
    tried += try_each(&sandbox, &["out/adapter_config.json", "out/adapter_model.safetensors"], &[eval], &[2]);
    assert_eq!(tried, 22);
    assert_eq!(fs::read(sandbox.path("out/checkpoint-1/optimizer.safetensors")).unwrap(), whole);
    let (status, said) = run(&sandbox, &again);
    assert!(status == 0 && said.contains("this run is finished"), "{said}");
}

/// Every command that reads an adapter reports what is in the place of its files, not that they are missing.
#[test]
fn what_is_in_the_place_of_an_adapters_file_is_told() {
    let sandbox = Sandbox::new();
    sandbox.train("--max-steps 1").ok();
    let again = train("--max-steps 1");
    let init = train("--max-steps 1 --output-dir other --init-adapter out");
    let lines = [
        "eval --model model --adapter out --data rows.jsonl",
        "eval --adapter out --data rows.jsonl",
        "eval --model out --data rows.jsonl",
        "merge --model model --adapter out --output merged",
        "export uniform --adapter out --output-dir uniform",
        "check out --model model",
        &init,
        &again,
    ];
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = sandbox.path("out").join(name);
        let whole = fs::read(&path).unwrap();
        for found in ["a pipe", "a device", "a directory", "a link to nothing"] {
            fs::remove_file(&path).unwrap();
            match found {
                "a pipe" => make_pipe(&path),
                "a device" => symlink("/dev/zero", &path).unwrap(),
                "a directory" => fs::create_dir(&path).unwrap(),
                _ => symlink("nowhere", &path).unwrap(),
            }
            for line in lines {
                let (status, said) = run(&sandbox, line);
                let last = said.lines().last().unwrap_or_default();
                assert!(status == 2 && last.contains(&format!("out/{name}: ")), "{line}: {status} {said}");
                assert!(last.contains(&format!("found {found}")), "{name}, {found}: {line}: {said}");
            }
            match found {
                "a directory" => fs::remove_dir(&path).unwrap(),
                _ => fs::remove_file(&path).unwrap(),
            }
            fs::write(&path, &whole).unwrap();
        }
    }
    assert!(!["merged", "uniform"].iter().any(|name| sandbox.path(name).exists()));
}
