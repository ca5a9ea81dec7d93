//! The output directory: only what a run wrote is replaced or removed, links lead nowhere, and one run works in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sandbox::{Sandbox, train};

/// Three steps, each saved.
const RUN: &str = "--max-steps 3 --packing false --save-steps 1 --per-device-train-batch-size 4";

fn checkpoints(sandbox: &Sandbox, out: &str) -> Vec<String> {
    sandbox.names(out).into_iter().filter(|name| name.starts_with("checkpoint-")).collect()
}

fn sums_hold(sandbox: &Sandbox, dir: &str) -> bool {
    let mut command = Command::new("sha256sum");
    command.args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(sandbox.path(dir));
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// Names in a directory that its `SHA256SUMS` does not list.
fn unlisted(sandbox: &Sandbox, dir: &str) -> Vec<String> {
    let sums = sandbox.read(&format!("{dir}/SHA256SUMS"));
    let listed: Vec<&str> = sums.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    sandbox.names(dir).into_iter().filter(|name| !listed.contains(&name.as_str())).collect()
}

#[test]
fn something_else_under_the_name_of_a_checkpoint_is_refused_and_left_alone() {
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.path("victim")).unwrap();
    sandbox.write("victim/thesis.tex", "precious");
    let make: [&dyn Fn(&Sandbox); 4] = [
        &|sandbox| symlink("../victim", sandbox.path("out/checkpoint-2")).unwrap(),
        &|sandbox| symlink("nowhere", sandbox.path("out/checkpoint-2")).unwrap(),
        &|sandbox| fs::create_dir(sandbox.path("out/checkpoint-2")).unwrap(),
        &|sandbox| sandbox.write("out/checkpoint-2", "mine"),
    ];
    for make in make {
        // In a directory without a run.
        fs::create_dir(sandbox.path("out")).unwrap();
        make(&sandbox);
        sandbox.refused(&train(RUN), &["out: found checkpoint-2 without run.json"]);
        fs::remove_dir_all(sandbox.path("out")).unwrap();
        // In one of a run that would come to write there.
        assert_eq!(sandbox.run_at_fault(&train(RUN), "step:1").status, None);
        make(&sandbox);
        let resumed = format!("{} --resume-from-checkpoint", train(RUN));
        let done = sandbox.run(&resumed);
        assert_eq!(done.status, Some(2), "{done:#?}");
        assert!(done.stderr.contains("out/checkpoint-2"), "{done:#?}");
        // Overwriting does not remove what the other run did not write.
        let before = sandbox.files();
        let over = sandbox.run(&train(&format!("{RUN} --seed 5 --overwrite-output-dir")));
        over.ended(2, &["out/checkpoint-2: is not of the run there"]);
        assert!(sandbox.files() == before);
        fs::remove_dir_all(sandbox.path("out")).unwrap();
        assert_eq!(sandbox.read("victim/thesis.tex"), "precious");
    }
}

/// It appears while the run works.
#[test]
fn a_link_that_takes_the_place_of_a_checkpoint_is_not_followed() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("victim")).unwrap();
    sandbox.write("victim/thesis.tex", "precious");
    let child = crate::child::paused(&sandbox, &train(RUN), "step:2");
    fs::rename(sandbox.path("out/checkpoint-1"), sandbox.path("moved")).unwrap();
    symlink("../victim", sandbox.path("out/checkpoint-1")).unwrap();
    symlink("../victim", sandbox.path("out/checkpoint-2")).unwrap();
    let (status, said) = crate::child::end(child);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("out/checkpoint-2: found something there that is not of this run"), "{said}");
    assert_eq!(sandbox.names("victim"), ["thesis.tex"]);
    assert!(sandbox.path("out/checkpoint-1").is_symlink());
}

#[test]
fn files_of_the_users_own_stay() {
    let sandbox = Sandbox::new();
    let mine = [
        "out/.notes.partial",
        "out/.checkpoint-mine.removed/f",
        "out/.checkpoint-1.removed/f",
        "out/.checkpoint-1.abc.partial/f",
        "out/.run-0123456789abcdef/f",
        "out/notes/f",
    ];
    for name in mine {
        fs::create_dir_all(sandbox.path(name).parent().unwrap()).unwrap();
        sandbox.write(name, "mine");
    }
    assert_eq!(sandbox.run_at_fault(&train(RUN), "write/optimizer.safetensors:2").status, None);
    sandbox.train(&format!("{RUN} --resume-from-checkpoint")).ok();
    for name in mine {
        assert_eq!(sandbox.read(name), "mine", "{name}");
    }
    // Nothing hidden of the run itself is left but the lock.
    let hidden: Vec<String> = sandbox.names("out").into_iter().filter(|name| name.starts_with('.')).collect();
    let mut expected: Vec<&str> = vec![".lock"];
    expected.extend(mine.iter().filter_map(|name| name[4..].split('/').next()).filter(|name| name.starts_with('.')));
    expected.sort_unstable();
    assert_eq!(hidden, expected);
    // Names that the run itself would write are refused before.
    for name in ["SHA256SUMS", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"] {
        fs::create_dir(sandbox.path("other")).unwrap();
        sandbox.write(&format!("other/{name}"), "mine");
        sandbox
            .refused(&train(&format!("{RUN} --output-dir other")), &[&format!("other: found {name} without run.json")]);
        fs::remove_dir_all(sandbox.path("other")).unwrap();
    }
}

#[test]
fn a_note_in_a_checkpoint_outlives_it() {
    let sandbox = Sandbox::new();
    let run = format!("{RUN} --save-total-limit 1");
    assert_eq!(sandbox.run_at_fault(&train(&run), "step:2").status, None);
    sandbox.write("out/checkpoint-1/notes.txt", "mine");
    let done = sandbox.train(&format!("{run} --resume-from-checkpoint")).ok();
    assert!(done.stderr.contains("out/checkpoint-1: kept, although save_total_limit would remove it"), "{done:#?}");
    assert!(done.stderr.contains("notes.txt"), "{done:#?}");
    assert_eq!(checkpoints(&sandbox, "out"), ["checkpoint-1", "checkpoint-3"]);
    assert_eq!(sandbox.read("out/checkpoint-1/notes.txt"), "mine");

    // One that is replaced by a later state of its step leaves the note to its successor.
    let line = train(&format!("{RUN} --output-dir again"));
    assert_eq!(sandbox.run_at_fault(&line, "step:3").status, None);
    sandbox.write("again/checkpoint-2/notes.txt", "mine");
    sandbox.run(&format!("{line} --resume-from-checkpoint again/checkpoint-1")).ok();
    assert_eq!(sandbox.read("again/checkpoint-2/notes.txt"), "mine");
    assert_eq!(unlisted(&sandbox, "again/checkpoint-2"), ["SHA256SUMS", "notes.txt"]);
    assert!(sums_hold(&sandbox, "again/checkpoint-2"));
    // Wherever the process is killed in between.
    for place in ["checkpoint-set-aside:1", "checkpoint-in-place:1", "removal:1", "removal:4"] {
        let out = place.replace(':', "-");
        let line = train(&format!("{RUN} --output-dir {out}"));
        assert_eq!(sandbox.run_at_fault(&line, "step:3").status, None);
        sandbox.write(&format!("{out}/checkpoint-2/notes.txt"), "mine");
        let from = format!("{line} --resume-from-checkpoint {out}/checkpoint-1");
        assert_eq!(sandbox.run_at_fault(&from, place).status, None, "{place}");
        sandbox.run(&format!("{line} --resume-from-checkpoint")).ok();
        assert_eq!(sandbox.read(&format!("{out}/checkpoint-2/notes.txt")), "mine", "{place}");
        assert!(
            sandbox.bytes(&format!("{out}/adapter_model.safetensors"))
                == sandbox.bytes("again/adapter_model.safetensors")
        );
    }
}

#[test]
fn a_checkpoint_too_many_after_a_kill_is_removed_at_the_next_start() {
    let sandbox = Sandbox::new();
    let run = format!("{RUN} --save-total-limit 1");
    // The last save of the run: no later one removes what is too many.
    assert_eq!(sandbox.run_at_fault(&train(&run), "checkpoint-in-place:3").status, None);
    assert_eq!(checkpoints(&sandbox, "out"), ["checkpoint-2", "checkpoint-3"]);
    sandbox.train(&format!("{run} --resume-from-checkpoint")).ok();
    assert_eq!(checkpoints(&sandbox, "out"), ["checkpoint-3"]);
}

/// A process that was killed after its last write leaves nothing for good either.
#[test]
fn killed_at_its_very_end_a_run_is_tidied_by_who_asks_for_it() {
    let sandbox = Sandbox::new();
    let traced = sandbox.run_at_fault(&train(RUN), "trace").ok();
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    let writes = traced.stderr.lines().filter(|line| *line == "fault point renamed/run.json").count();
    let done = sandbox.run_at_fault(&train(RUN), &format!("renamed/run.json:{writes}"));
    assert_eq!(done.status, None);
    assert!(sandbox.names("out").iter().any(|name| name.starts_with(".run-")), "{:?}", sandbox.names("out"));
    let done = sandbox.train(RUN).ok();
    assert!(done.stderr.contains("this run is finished"), "{done:#?}");
    assert!(!sandbox.names("out").iter().any(|name| name.starts_with(".run-")), "{:?}", sandbox.names("out"));
}

#[test]
fn sums_cover_every_file_of_checkpoint_and_adapter() {
    let sandbox = Sandbox::chat();
    sandbox.train(&format!("{RUN} --data chat.jsonl --chat-template chatml")).ok();
    assert_eq!(unlisted(&sandbox, "out/checkpoint-3"), ["SHA256SUMS"]);
    let beside = [
        ".lock",
        "SHA256SUMS",
        "checkpoint-2",
        "checkpoint-3",
        "metrics.jsonl",
        "report.html",
        "report.json",
        "run.json",
        "trainer_state.json",
    ];
    assert_eq!(unlisted(&sandbox, "out"), beside);
    for dir in ["out", "out/checkpoint-2", "out/checkpoint-3"] {
        assert!(sums_hold(&sandbox, dir), "{dir}");
        assert!(sandbox.read(&format!("{dir}/SHA256SUMS")).contains("  chat_template.jinja\n"));
    }
}

/// Any of its files, in any way: the run is not called finished, and nothing is done about it unasked.
#[test]
fn a_finished_run_whose_adapter_is_damaged_is_not_called_finished() {
    let sandbox = Sandbox::chat();
    let line = train(&format!("{RUN} --data chat.jsonl"));
    sandbox.run(&line).ok();
    for name in ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "SHA256SUMS"] {
        let file = format!("out/{name}");
        let whole = sandbox.bytes(&file);
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&[][..], &whole[..whole.len() / 2], &flipped] {
            fs::write(sandbox.path(&file), damaged).unwrap();
            sandbox.refused(&line, &["is finished, but its adapter is damaged or was changed", "adapter_config.json"]);
        }
        fs::write(sandbox.path(&file), whole).unwrap();
    }
    // A model card is there to be edited.
    sandbox.write("out/README.md", "# My adapter");
    let done = sandbox.run(&line).ok();
    assert!(done.stderr.contains("this run is finished"), "{done:#?}");
    // The way out that the message names.
    let adapter = sandbox.bytes("out/adapter_model.safetensors");
    fs::write(sandbox.path("out/adapter_model.safetensors"), "").unwrap();
    fs::remove_file(sandbox.path("out/adapter_config.json")).unwrap();
    sandbox.run(&format!("{line} --resume-from-checkpoint")).ok();
    assert!(sandbox.bytes("out/adapter_model.safetensors") == adapter);
}

/// `rm -rf` of a directory in which a run works, and another run there: the first stops, the second is not disturbed.
#[test]
fn a_run_whose_directory_is_gone_or_replaced_stops() {
    let sandbox = Sandbox::new();
    let endless = train("--max-steps 1000000 --packing false --save-steps 50");
    for second in [false, true] {
        let mut first = sandbox.command(&endless).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while !sandbox.path("out/checkpoint-50").exists() {
            assert!(first.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        // The run writes there: what is new may stop the first attempts.
        while sandbox.path("out").exists() {
            let _ = fs::rename(sandbox.path("out"), sandbox.path("gone"));
        }
        let other = second.then(|| {
            sandbox.train("--seed 7 --save-steps 2").ok();
            sandbox.files().into_iter().filter(|(path, _)| path.starts_with(sandbox.path("out"))).collect::<Vec<_>>()
        });
        let (status, said) = crate::child::end(first);
        assert_eq!(status, Some(1), "{said}");
        let words = "error: out: the directory that the run worked in was removed, moved or replaced";
        assert!(said.contains(words), "{said}");
        match other {
            None => assert!(!sandbox.path("out").exists(), "made again"),
            Some(files) => {
                let now = sandbox.files().into_iter().filter(|(path, _)| path.starts_with(sandbox.path("out")));
                assert!(now.collect::<Vec<_>>() == files, "the second run's files were changed");
            }
        }
        fs::remove_dir_all(sandbox.path("gone")).unwrap();
    }
}

/// Not the path, and not the lock's file: the directory.
#[test]
fn a_directory_is_locked_under_every_path_and_without_its_lock_file() {
    let sandbox = Sandbox::new();
    let first = crate::child::paused(&sandbox, &train("--max-steps 3"), "step:2");
    symlink("out", sandbox.path("alias")).unwrap();
    fs::remove_file(sandbox.path("out/.lock")).unwrap();
    for out in ["out", "alias", "./out/../out"] {
        sandbox.refused(&train(&format!("--max-steps 3 --output-dir {out}")), &["another process is training in it"]);
    }
    fs::remove_file(sandbox.path("alias")).unwrap();
    let (status, said) = crate::child::end(first);
    assert_eq!(status, Some(0), "{said}");
}

/// The record of a run is only trusted for the run's own file names.
#[test]
fn a_record_that_names_other_things_removes_nothing() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run_at_fault(&train(RUN), "step:2").status, None);
    fs::create_dir(sandbox.path("victim")).unwrap();
    sandbox.write("victim/f", "mine");
    let record = sandbox.json("out/run.json");
    for (key, value) in [
        ("temporary", "../victim".into()),
        ("temporary", "victim".into()),
        ("temporary", ".run-/../victim12345".into()),
        ("checkpoints", serde_json::json!(["../victim"])),
        ("checkpoints", serde_json::json!(["checkpoint-1/.."])),
    ] {
        let mut changed = record.clone();
        changed["owned"][key] = value;
        sandbox.write("out/run.json", &changed.to_string());
        let line = format!("{} --resume-from-checkpoint", train(RUN));
        sandbox.refused(&line, &["out/run.json: key `owned`", "no name of this program's"]);
        let line = train(&format!("{RUN} --seed 9 --overwrite-output-dir"));
        sandbox.refused(&line, &["out/run.json: key `owned`"]);
    }
    // A link in place of the directory of temporary files: it goes, what it leads to stays.
    sandbox.write("out/run.json", &record.to_string());
    let temporary = format!("out/{}", record["owned"]["temporary"].as_str().unwrap());
    fs::remove_dir_all(sandbox.path(&temporary)).unwrap();
    symlink("../victim", sandbox.path(&temporary)).unwrap();
    let done = sandbox.train(&format!("{RUN} --resume-from-checkpoint"));
    assert_eq!(done.status, Some(1), "{done:#?}");
    assert!(done.stderr.contains(&temporary), "{done:#?}");
    assert_eq!(sandbox.read("victim/f"), "mine");
}

#[test]
fn quantize_that_is_killed_leaves_nothing_for_good_and_removes_nothing_else() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path(".q.partial-mine")).unwrap();
    sandbox.write(".q.partial-mine/f", "mine");
    let line = "quantize --model model --output q";
    let beside = |sandbox: &Sandbox| -> Vec<String> {
        sandbox.names("").into_iter().filter(|name| name.starts_with(".q.") && name != ".q.partial-mine").collect()
    };
    for nth in [1, 5, 12] {
        assert_eq!(sandbox.run_at_fault(line, &format!("tensor:{nth}")).status, None);
        assert_eq!(beside(&sandbox).len(), 2, "one directory and what names it: {:?}", beside(&sandbox));
    }
    // Another process at work is reported, and so is a foreign record.
    let child = crate::child::paused(&sandbox, line, "tensor:3");
    sandbox.run(line).ended(2, &["q: another process is writing to it"]);
    assert_eq!(crate::child::end(child).0, Some(0));
    assert_eq!(beside(&sandbox), [""; 0]);
    fs::remove_dir_all(sandbox.path("q")).unwrap();
    for text in [
        "mine",
        r#"{"program":"qlora-train quantize","directory":".q.partial-mine"}"#,
        r#"{"program":"qlora-train quantize","directory":"model"}"#,
    ] {
        sandbox.write(".q.quantize.json", text);
        sandbox.refused(line, &[".q.quantize.json: found a file that is no record", "move it away"]);
    }
    fs::remove_file(sandbox.path(".q.quantize.json")).unwrap();
    assert_eq!(sandbox.read(".q.partial-mine/f"), "mine");
}

/// A name of the run that is a second name of a foreign file: the name is replaced, the file is not written.
#[test]
fn a_foreign_file_behind_a_hard_link_is_not_written() {
    let sandbox = Sandbox::new();
    sandbox.train(&format!("{RUN} --output-dir whole")).ok();
    let names =
        ["metrics.jsonl", "checkpoint-1/README.md", "checkpoint-1/optimizer.safetensors", "checkpoint-1/thesis.tex"];
    for more in ["--resume-from-checkpoint", "--seed 5 --overwrite-output-dir"] {
        assert_eq!(sandbox.run_at_fault(&train(RUN), "step:3").status, None);
        let mut victims = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let (victim, path) = (sandbox.path(&format!("victim-{at}")), sandbox.path(&format!("out/{name}")));
            // The bytes of the run itself, so that nothing but the link is foreign.
            let bytes = fs::read(&path).unwrap_or_else(|_| b"precious".to_vec());
            fs::write(&victim, &bytes).unwrap();
            let _ = fs::remove_file(&path);
            fs::hard_link(&victim, &path).unwrap();
            victims.push((victim, bytes));
        }
        let line = train(&format!("{RUN} --save-total-limit 1 {more}"));
        if more.contains("overwrite") {
            sandbox.refused(&line, &["out/checkpoint-1/thesis.tex: was not written by the run there"]);
            fs::rename(sandbox.path("out/checkpoint-1/thesis.tex"), sandbox.path("thesis.tex")).unwrap();
        }
        sandbox.run(&line).ok();
        for (victim, bytes) in victims {
            assert!(fs::read(&victim).unwrap() == bytes, "{more}: {}", victim.display());
        }
        if more == "--resume-from-checkpoint" {
            assert_eq!(sandbox.read("out/checkpoint-1/thesis.tex"), "precious");
            sandbox.assert_same_result("out", "whole");
        }
        fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

/// A run would fail after its last step, or would have removed half of the run that it replaces.
#[test]
fn something_else_in_the_place_of_a_file_of_the_run_is_refused_before_any_work() {
    let sandbox = Sandbox::new();
    let resumed = format!("{} --resume-from-checkpoint", train(RUN));
    let over = train(&format!("{RUN} --seed 5 --overwrite-output-dir"));
    assert_eq!(sandbox.run_at_fault(&train(RUN), "step:3").status, None);
    fs::rename(sandbox.path("out"), sandbox.path("stopped")).unwrap();
    let again = || {
        let _ = fs::remove_dir_all(sandbox.path("out"));
        let mut copy = Command::new("cp");
        assert!(copy.args(["-a", "stopped", "out"]).current_dir(sandbox.path("")).status().unwrap().success());
    };
    let directory = |path: &str| fs::create_dir(sandbox.path(path)).unwrap();
    let link = |path: &str| symlink("../rows.jsonl", sandbox.path(path)).unwrap();
    // (name, what is in its place, refused where the run goes on, and where it is replaced)
    type Case<'a> = (&'a str, &'a dyn Fn(&str), bool, bool);
    let cases: [Case; 11] = [
        ("adapter_config.json", &directory, true, true),
        ("adapter_model.safetensors", &directory, true, true),
        ("SHA256SUMS", &directory, true, true),
        ("trainer_state.json", &directory, true, true),
        ("metrics.jsonl", &directory, true, true),
        ("tokenizer.json", &directory, true, true),
        ("report.html", &directory, false, true),
        (".lock", &directory, true, true),
        (".lock", &link, true, true),
        ("checkpoint-1", &link, false, true),
        ("checkpoint-2", &link, true, true),
    ];
    for (name, make, goes_on, replaced) in cases {
        let path = format!("out/{name}");
        for (line, refused) in [(&resumed, goes_on), (&over, replaced)] {
            again();
            let old = sandbox.path(&path);
            let _ = if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
            make(&path);
            match refused {
                true => sandbox.refused(line, &[&format!("{path}: "), "move it away"]),
                false => drop(sandbox.run(line).ok()),
            }
        }
    }
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_any_work() {
    let sandbox = Sandbox::new();
    // No file can be made there, by root neither.
    for place in ["/proc/out", "/sys/out", "/dev/null", "/dev/null/out", "rows.jsonl/out"] {
        let existing = place.strip_suffix("/out").unwrap_or(place);
        sandbox.refused(&train(&format!("{RUN} --output-dir {place}")), &[&format!("{existing}: "), "(output_dir)"]);
    }
    // Permissions do not bind root.
    fs::create_dir_all(sandbox.path("shut")).unwrap();
    fs::set_permissions(sandbox.path("shut"), fs::Permissions::from_mode(0o555)).unwrap();
    if tempfile::tempfile_in(sandbox.path("shut")).is_ok() {
        return println!("not run: a directory without write permission; this user may write everywhere");
    }
    for place in ["shut", "shut/out"] {
        sandbox.refused(&train(&format!("{RUN} --output-dir {place}")), &["shut: cannot be written (output_dir)"]);
    }
}

#[test]
fn a_start_that_fails_leaves_no_hidden_directory() {
    let sandbox = Sandbox::new();
    for fault in ["write/run.json:1:full", "write/run.json:2:full", "synced/run.json:2:full", "renamed/run.json:2:full"]
    {
        let done = sandbox.run_at_fault(&train(RUN), fault);
        assert_eq!(done.status, Some(1), "{fault}: {done:#?}");
        let left = sandbox.names("out");
        assert!(left.iter().all(|name| !name.starts_with(".run-")), "{fault}: {left:?}");
        sandbox.run(&train(RUN)).ok();
        fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}
