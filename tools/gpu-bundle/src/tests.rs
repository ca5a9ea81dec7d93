//! The script, with shell scripts in place of the executables.

use super::*;

/// A bundle whose programs are these scripts; one that is not given ends well.
fn bundle(programs: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("built.json"), "{\"commit\": \"abc\"}\n").unwrap();
    write_script(dir.path()).unwrap();
    for (_, name) in KERNELS.into_iter().chain(TRAINER).chain([("", CALIBRATE), ("", "compute-sanitizer")]) {
        let body =
            programs.iter().find(|(program, _)| *program == name).map_or("echo test result: ok", |(_, body)| body);
        let path = dir.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// Exit status, output and summary.
fn run_with(bundle: &tempfile::TempDir, arguments: &[&str]) -> (i32, String, String) {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(bundle.path().join("run"));
    command.args(arguments).current_dir(bundle.path());
    command.env("PATH", format!("{}:{path}", bundle.path().join("bin").display()));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let summary = fs::read_to_string(bundle.path().join("output/summary.txt")).unwrap_or_default();
    (output.status.code().unwrap(), text, summary)
}

#[test]
fn all_stages_run_in_order_and_pass() {
    let programs = [(
        "bench",
        "[ \"$1\" = --facts ] && echo A GPU || { mkdir -p \"$4\"; echo 5 rows in 1 s; echo \"$@\" >\"$4/r.json\"; }",
    )];
    let bundle = bundle(&programs);
    let (status, text, summary) = run_with(&bundle, &["--quick"]);
    assert_eq!(status, 0, "{text}");
    let places: Vec<_> = [
        "A GPU",
        "abc",
        "calibrate",
        "doctor",
        "twins",
        "contraction",
        "suite",
        "training",
        "nccl",
        "memcheck",
        "racecheck",
        "stepcheck",
        "steps",
        "bench",
        "all passed",
    ]
    .map(|word| summary.find(word).unwrap_or_else(|| panic!("{word}: {summary}")))
    .into();
    assert!(places.is_sorted(), "{summary}");
    assert!(summary.contains("5 rows in 1 s"));
    let arguments = fs::read_to_string(bundle.path().join("output/records/r.json")).unwrap();
    assert!(arguments.starts_with("--bench --quick --record "), "{arguments}");
}

#[test]
fn a_failing_stage_stops_no_other_and_the_run_fails() {
    let suite = "case $1 in twins::) echo wrong twin; exit 101;; long*) echo fine;; *) sleep 20;; esac";
    let sanitizer = "[ \"$2\" = racecheck ] && { echo ========= RACECHECK SUMMARY: 1 hazard; exit 86; }; echo \"cases $PROPTEST_CASES\"";
    let bundle = bundle(&[("suite", suite), ("compute-sanitizer", sanitizer), ("bench", "echo facts")]);
    let (status, text, summary) = run_with(&bundle, &["--limit", "suite=1"]);
    assert_eq!(status, 1, "{text}");
    for expected in [
        "FAILED   twins (0 s, exit status 101): wrong twin",
        "FAILED   suite: stopped after 1 s",
        "FAILED   racecheck",
        "1 hazard",
        "passed   bench",
        "passed   training",
        "passed   nccl",
        "passed   stepcheck",
        "passed   steps",
        "NOT all passed",
    ] {
        assert!(summary.contains(expected), "{expected}: {summary}");
    }
    assert!(summary.contains("passed   memcheck") && summary.contains("cases 2"), "{summary}");
}

/// A shape that does not fit is told, and the others are measured.
#[test]
fn steps_are_measured_one_by_one() {
    let trainer = "case $* in *70b*) echo 'error: the run needs 43 GiB' >&2; exit 2;; *) echo \"{\\\"words\\\": \\\"$*\\\"}\";; esac";
    let bundle = bundle(&[("qlora-train", trainer), ("bench", "echo facts")]);
    let (status, text, summary) = run_with(&bundle, &["--stages", "steps"]);
    assert_eq!(status, 1, "{text}");
    assert!(summary.contains("FAILED   steps"), "{summary}");
    let log = fs::read_to_string(bundle.path().join("output/steps.log")).unwrap();
    assert!(log.contains("llama-3-70b 16384 offload was not measured"), "{log}");
    assert!(text.contains("the run needs 43 GiB"), "{text}");
    let files: Vec<String> = fs::read_dir(bundle.path().join("output/records/steps"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files.iter().all(|text| text.contains("--device cuda --shape llama-3-8b") && text.contains("--steps 3")));
}

/// The card's constants come first, into a folder of their own; of the suite, what no emulation shows.
#[test]
fn instructions_are_timed_before_all_and_the_long_sum_before_the_suite() {
    let programs = [
        ("calibrate", "mkdir -p \"$2\"; echo \"{}\" >\"$2/r.json\"; echo \"$1 and 11 figures\""),
        ("suite", "echo \"dX over 4096: $1\"; [ \"$1\" != long_contraction:: ]"),
        ("bench", "echo facts"),
    ];
    let bundle = bundle(&programs);
    let (status, text, summary) = run_with(&bundle, &["--stages", "calibrate,contraction,suite"]);
    assert_eq!(status, 1, "{text}");
    let is_stage = |line: &&str| line.starts_with("passed ") || line.starts_with("FAILED ");
    let lines: Vec<&str> = summary.lines().map(str::trim_end).filter(is_stage).collect();
    assert!(lines[0].starts_with("passed   calibrate") && lines[0].ends_with("--record and 11 figures"), "{summary}");
    assert!(lines[1].starts_with("FAILED   contraction") && lines[1].ends_with("long_contraction::"), "{summary}");
    assert!(lines[2].starts_with("passed   suite") && lines[2].ends_with("--nocapture"), "{summary}");
    assert!(bundle.path().join("output/records/calibration/r.json").is_file());
}

#[test]
fn packed_executables_are_unpacked_once() {
    let bundle = bundle(&[("suite", "echo the suite"), ("bench", "echo facts")]);
    let suite = bundle.path().join("bin/suite");
    assert!(Command::new("gzip").arg(&suite).status().unwrap().success() && !suite.exists());
    for _ in 0..2 {
        let (status, text, summary) = run_with(&bundle, &["--stages", "suite"]);
        assert!(status == 0 && summary.contains("the suite"), "{text}");
    }
    fs::write(suite.with_extension("gz"), "no archive").unwrap();
    let (status, text, _) = run_with(&bundle, &["--stages", "suite"]);
    assert!(status == 2 && text.contains("bin/suite.gz cannot be unpacked"), "{text}");
}

#[test]
fn a_model_adds_a_stage_that_trains_it() {
    let bundle = bundle(&[("training", "echo \"$* of $QLORA_CURVE_MODEL\""), ("bench", "echo facts")]);
    fs::create_dir(bundle.path().join("model")).unwrap();
    fs::write(bundle.path().join("model/config.json"), "{}").unwrap();
    let (status, text, summary) = run_with(&bundle, &["--stages", "twins", "--model", "model"]);
    assert_eq!(status, 0, "{text}");
    assert!(summary.contains("passed   curve") && summary.contains("--ignored curve:: --nocapture of /"), "{summary}");
    let (status, text, _) = run_with(&bundle, &["--stages", "curve"]);
    assert!(status == 2 && text.contains("needs --model DIR"), "{text}");
}

/// Tests that other machines leave out are asked for by their stage.
#[test]
fn nccl_has_a_stage_of_its_own() {
    let bundle = bundle(&[("training", "echo \"no NCCL for $*\"; exit 101"), ("bench", "echo facts")]);
    let (status, text, summary) = run_with(&bundle, &["--stages", "nccl", "--limit", "nccl=9"]);
    assert_eq!(status, 1, "{text}");
    assert!(
        summary.contains("FAILED   nccl") && summary.contains("no NCCL for --ignored nccl:: --nocapture"),
        "{summary}"
    );
}

#[test]
fn only_the_stages_that_are_asked_for_run() {
    let bundle = bundle(&[("suite", "exit 1"), ("bench", "echo \"rows of $*\"")]);
    let (status, _, summary) = run_with(&bundle, &["--stages", "bench,training", "--filter", "M 512"]);
    assert!(status == 0 && !summary.contains("twins"), "{summary}");
    assert!(summary.contains("M 512"), "{summary}");
}

#[test]
fn without_a_gpu_it_says_so_and_has_a_status_of_its_own() {
    let (status, text, summary) = run_with(&bundle(&[("bench", "echo no NVIDIA driver >&2; exit 3")]), &[]);
    assert_eq!((status, summary.as_str()), (NO_GPU, ""));
    assert!(text.starts_with("No GPU or no driver was found") && text.contains("no NVIDIA driver"), "{text}");
    let (status, text, _) = run_with(&bundle(&[("bench", "echo GLIBC_9 not found >&2; exit 1")]), &[]);
    assert!(status == 1 && text.contains("do not start here") && text.contains("GLIBC_9"), "{text}");
}

#[test]
fn wrong_usage_is_told_before_anything_runs() {
    let bundle = bundle(&[("bench", "echo facts")]);
    for (arguments, expected) in [
        (["--stages", "twin"].as_slice(), "no stage is named twin"),
        (&["--limit", "suite"], "expected STAGE=SECONDS"),
        (&["--limit", "x=3"], "no stage is named x"),
        (&["--fast"], "unknown argument --fast"),
        (&["--output"], "needs a value"),
        (&["--model", "nowhere"], "it has no config.json"),
    ] {
        let (status, text, summary) = run_with(&bundle, arguments);
        assert_eq!((status, summary.as_str()), (2, ""), "{text}");
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn there_is_a_limit_and_all_files_count() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("a"), [0; 300]).unwrap();
    fs::write(dir.path().join("bin/b"), [0; 50]).unwrap();
    assert_eq!(size(dir.path()).unwrap(), 350);
    ensure_small(LIMIT).unwrap();
    assert!(ensure_small(LIMIT + 1).unwrap_err().to_string().contains(&(LIMIT + 1).to_string()));
}
