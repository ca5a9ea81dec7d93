//! Disk space that a run takes is known before it begins, and compared with what is free.

use std::path::Path;

use qlora_train::config::Settings;
use qlora_train::session::Loaded;
use qlora_train::session::disk::{DiskPlan, free_bytes};
use qlora_train::session::model_spec::model_spec;

use crate::sandbox::{Sandbox, train};

const MIB: u64 = 1 << 20;

/// The plan of a run of `steps` steps, ten to an epoch.
fn plan(sandbox: &Sandbox, more: &str, steps: u64, existing: u64) -> DiskPlan {
    let words: Vec<&str> = more.split_whitespace().collect();
    let pair = |pair: &[&str]| (pair[0].trim_start_matches("--").replace('-', "_"), pair[1].to_owned());
    let mut given: Vec<(String, String)> = words.chunks(2).map(pair).collect();
    given.push(("model".to_owned(), sandbox.path("model").display().to_string()));
    let settings = Settings::load(None, &given).unwrap();
    let loaded = Loaded::open(&settings).unwrap();
    let spec = model_spec(&settings, &loaded.checkpoint, 64, 64).unwrap();
    DiskPlan::new(&settings, &spec, loaded.checkpoint.dir(), steps, 10, existing)
}

fn size(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn a_checkpoint_takes_what_was_planned() {
    let sandbox = Sandbox::chat();
    for (out, more) in [
        ("eight", "--lora-r 64 --optim adamw_8bit"),
        ("torch", "--lora-r 64 --optim adamw_torch"),
        ("rslora", "--lora-r 32 --optim adamw_torch --use-rslora true"),
        ("few", "--lora-r 5 --lora-target-modules q_proj"),
    ] {
        sandbox.train_into(out, &format!("--data chat.jsonl --save-steps 3 {more}")).ok();
        let plan = plan(&sandbox, more, 6, 0);
        let found = size(&sandbox.path(&format!("{out}/checkpoint-6")));
        // Beside the tensors there is room for headers and records: 1 KiB for each of 28 tensors, 64 KiB, and the log.
        assert!((found..found + 100_000).contains(&plan.checkpoint_bytes), "{out}: {found} of {plan:?}");
    }
    // One that was written within a step has gradients too.
    let line = train("--lora-r 64 --output-dir within --gradient-accumulation-steps 4 --packing false");
    let child = crate::child::paused(&sandbox, &line, "micro-batch:2");
    assert_eq!(crate::child::stopped(child, "-TERM").0, Some(143));
    let plan = plan(&sandbox, "--lora-r 64", 6, 0);
    let found = size(&sandbox.path("within/checkpoint-0"));
    assert!((found..found + 100_000).contains(&(plan.checkpoint_bytes + plan.gradient_bytes)), "{found} of {plan:?}");
}

#[test]
fn checkpoints_that_are_there_at_once_are_counted() {
    let sandbox = Sandbox::new();
    let count = |more: &str, existing: u64| plan(&sandbox, more, 100, existing).checkpoints;
    // The default keeps two, and a third is written before the oldest is removed.
    assert_eq!(count("--save-steps 10", 0), 3);
    assert_eq!(count("--save-steps 10 --save-total-limit 4", 0), 5);
    assert_eq!(count("--save-steps 60 --save-total-limit 4", 0), 1);
    assert_eq!(count("--save-steps 10 --save-total-limit 0", 0), 10);
    assert_eq!(count("--save-steps 0.25 --save-total-limit 0", 0), 4);
    assert_eq!(count("--save-steps epoch --save-total-limit 0", 0), 10);
    // An interruption writes one even where none is due.
    assert_eq!(count("--save-steps 0", 0), 1);
    // The best is kept beside the others; each evaluation may be it, the one at the end too.
    assert_eq!(count("--save-steps 10 --val-set-size 3 --eval-steps 20", 0), 4);
    assert_eq!(count("--save-steps 10 --val-set-size 3 --eval-steps 20 --save-total-limit 0", 0), 16);
    assert_eq!(count("--save-steps 0 --val-set-size 3 --eval-steps 20", 0), 1);
    // Those of the run that is resumed take their room already.
    assert_eq!(count("--save-steps 10", 2), 1);
    assert_eq!(count("--save-steps 10 --save-total-limit 0", 4), 6);
    assert_eq!(count("--save-steps 10", 20), 1);
}

#[test]
fn what_is_free_decides() {
    let plan = DiskPlan {
        checkpoint_bytes: 10 * MIB,
        gradient_bytes: MIB,
        adapter_bytes: 2 * MIB,
        log_bytes: 4,
        checkpoints: 3,
    };
    assert_eq!((plan.least_bytes(), plan.most_bytes()), (13 * MIB, 33 * MIB + 5 * 4));
    let plan = DiskPlan { log_bytes: 0, ..plan };
    let check = |free| plan.check(free, Path::new("out"));
    for free in [0, 13 * MIB - 1] {
        let error = check(free).unwrap_err();
        assert_eq!(error.exit_status(), 2);
        let text = error.to_string();
        assert!(
            text.starts_with("out: ") && text.contains("expected 13.0 MiB") && text.contains("make room"),
            "{text}"
        );
    }
    for free in [13 * MIB, 33 * MIB - 1] {
        let warning = check(free).unwrap().unwrap();
        assert!(warning.contains("33.0 MiB: 3 checkpoints of 10.0 MiB") && warning.contains("save_total_limit"));
    }
    assert_eq!(check(33 * MIB).unwrap(), None);
    for huge in [DiskPlan { checkpoints: u64::MAX, ..plan }, DiskPlan { log_bytes: u64::MAX, ..plan }] {
        assert_eq!((huge.least_bytes(), huge.most_bytes()), (13 * MIB, u64::MAX));
    }
}

#[test]
fn a_run_says_what_is_free_and_warns_of_more_than_that() {
    let sandbox = Sandbox::new();
    let done = sandbox.train("").ok();
    assert!(done.stderr.contains("\ndisk: ") && done.stderr.contains(" a checkpoint, "), "{}", done.stderr);
    assert!(!done.stderr.contains("save_total_limit"), "{}", done.stderr);
    // A checkpoint after each of 10⁹ steps, all kept, each with the log until then: more than any disk has.
    let endless = "--output-dir other --max-steps 1000000000 --save-steps 1 --save-total-limit 0";
    let done = sandbox.run_at_fault(&train(endless), "step:1");
    assert_eq!(done.status, None, "{done:?}");
    assert!(done.stderr.contains("1000000000 checkpoints of"), "{}", done.stderr);
    let free = free_bytes(&sandbox.path("")).unwrap();
    assert!(free > 0 && free_bytes(&sandbox.path("not/made/yet")).is_some());
    assert!(free_bytes(Path::new("not/made/yet")).is_some());
}

/// On a small file system of its own, where the machine lets a user have one.
#[test]
fn a_run_without_room_for_a_checkpoint_is_refused_and_writes_nothing() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("disk")).unwrap();
    let (binary, line) = (env!("CARGO_BIN_EXE_qlora-train"), train("--output-dir disk/out"));
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs disk || exit 77
         {binary} {line} >/dev/null 2>errors; echo status $?; ls -A disk
         mount -o remount,size=64m disk
         {binary} {line} >/dev/null 2>&1; echo then $?"
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).current_dir(sandbox.path(""));
    let Ok(output) = command.output() else { return println!("not run: there is no `unshare`") };
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("status") {
        return println!("not run: no file system of its own: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(text, "status 2\nthen 0\n", "{}", sandbox.read("errors"));
    assert!(sandbox.read("errors").contains("disk/out: 64.0 KiB are free on its file system"));
}

/// A part of them would be in the way of the next try.
#[test]
fn settings_that_the_disk_has_no_room_for_leave_no_file() {
    let sandbox = Sandbox::new();
    let before = sandbox.files();
    sandbox.run_at_fault("init run.yaml", "write/settings:1:full").ended(1, &["run.yaml: cannot be written: No space"]);
    assert!(sandbox.files() == before, "{:?}", sandbox.names(""));
    sandbox.run("init run.yaml").ok();
    assert_eq!(sandbox.read("run.yaml").trim_end(), sandbox.run("init").ok().stdout.trim_end());
}
