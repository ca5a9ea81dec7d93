//! The script, with shell scripts in place of the executables.

use super::*;

/// A bundle whose programs are these scripts; one that is not given ends well.
fn bundle(programs: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("built.json"), "{\"commit\": \"abc\"}\n").unwrap();
    write_scripts(dir.path()).unwrap();
    for (_, name) in KERNELS.into_iter().chain(TRAINER).chain([("", CALIBRATE), ("", "compute-sanitizer")]) {
        let body =
            programs.iter().find(|(program, _)| *program == name).map_or("echo test result: ok", |(_, body)| body);
        let path = dir.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// A trainer that says of each run what it was asked, and that as much was taken as was planned.
const TRAINER_SAYS: &str = r#"case $1 in
bench) echo "{\"steps\": [{\"loss\": 11.5, \"grad_norm\": 0.25}]," \
    "\"device\": {\"planned_bytes\": 9, \"peak_bytes\": 9, \"limit_bytes\": null}, \"words\": \"$*\"}" ;;
esac"#;

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
    let bench =
        "[ \"$1\" = --facts ] && echo A GPU || { mkdir -p \"$4\"; echo 5 rows in 1 s; echo \"$@\" >\"$4/r.json\"; }";
    let programs = [("bench", bench), ("qlora-train", TRAINER_SAYS)];
    let bundle = bundle(&programs);
    let (status, text, summary) = run_with(&bundle, &["--quick"]);
    assert_eq!(status, 0, "{text}");
    let places: Vec<_> = [
        "A GPU",
        "abc",
        "calibrate",
        "doctor",
        "parity",
        "contraction",
        "passed   suite",
        "passed   training",
        "passed   steps",
        "passed   levers",
        "passed   graphs",
        "passed   caps",
        "passed   loading",
        "passed   bench",
        "passed   long",
        "passed   stepcheck",
        "passed   memcheck",
        "passed   racecheck",
        "passed   nccl",
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
    let suite = "case $1 in ptx_parity::) echo wrong lane; exit 101;; long*) echo fine;; *) sleep 20;; esac";
    let sanitizer = "[ \"$2\" = racecheck ] && { echo ========= RACECHECK SUMMARY: 1 hazard; exit 86; }; echo \"cases $PROPTEST_CASES\"";
    let programs =
        [("suite", suite), ("compute-sanitizer", sanitizer), ("bench", "echo facts"), ("qlora-train", TRAINER_SAYS)];
    let (status, text, summary) = run_with(&bundle(&programs), &["--limit", "suite=1"]);
    assert_eq!(status, 1, "{text}");
    for expected in [
        "FAILED   parity (0 s, exit status 101): wrong lane",
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

/// The records of steps that a run has left, by name.
fn records(bundle: &tempfile::TempDir) -> Vec<(String, String)> {
    let dir = bundle.path().join("output/records/steps");
    let of = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
    };
    let mut found: Vec<(String, String)> = fs::read_dir(dir).unwrap().map(of).collect();
    found.sort();
    found
}

/// A shape that does not fit is reported, and the others are measured.
#[test]
fn steps_are_measured_one_by_one() {
    let trainer = format!("case $* in *70b*) echo 'error: the run needs 43 GiB' >&2; exit 2;; esac; {TRAINER_SAYS}");
    let bundle = bundle(&[("qlora-train", trainer.as_str()), ("bench", "echo facts")]);
    let (status, text, summary) = run_with(&bundle, &["--stages", "steps"]);
    assert_eq!(status, 1, "{text}");
    assert!(summary.contains("FAILED   steps"), "{summary}");
    let log = fs::read_to_string(bundle.path().join("output/steps.log")).unwrap();
    assert!(log.contains("error: llama-3-70b 4096 auto: it was not measured"), "{log}");
    assert!(text.contains("the run needs 43 GiB"), "{text}");
    let found = records(&bundle);
    let begins = "bench --json --device cuda --shape llama-3-8b --seq ";
    assert!(found.len() == 3 && found.iter().all(|(_, text)| text.contains(begins)), "{found:?}");
    assert!(
        found.iter().any(|(name, text)| name.ends_with("-llama-3-8b-8192-auto.json") && text.contains("--steps 1"))
    );
    assert!(found.iter().any(|(name, _)| name.ends_with("-llama-3-8b-2048-recompute.json")), "{found:?}");
}

/// Every lever alone and all at once, under limits of three cards, with little memory on the host, over the link.
#[test]
fn levers_and_limits_are_measured_with_their_settings() {
    let bundle = bundle(&[("qlora-train", TRAINER_SAYS), ("bench", "echo facts")]);
    let (status, text, summary) = run_with(&bundle, &["--stages", "levers,caps,long"]);
    assert_eq!(status, 0, "{text}");
    assert!(summary.contains("passed   long") && summary.contains("rows in"), "{summary}");
    let found = records(&bundle);
    for (name, settings) in [
        (
            "8b-2048-none",
            "--gradient-checkpointing false --weights resident --lm-head resident --optimizer-states resident",
        ),
        ("8b-2048-weights-host", "--weights host"),
        ("8b-2048-lm-head-host", "--lm-head host"),
        ("8b-2048-states-host", "--optimizer-states host"),
        ("8b-2048-masters-host", "--optimizer-states host_with_masters"),
        ("8b-2048-offload", "--gradient-checkpointing offload"),
        ("8b-2048-tile", "--token-tile 512"),
        ("8b-2048-7.5gib", "--device-memory 7.5GiB"),
        ("70b-2048-23.5gib", "--device-memory 23.5GiB"),
        ("70b-2048-44.4gib-host-3gib", "--device-memory 44.4GiB --host-memory 3GiB"),
        ("70b-1024-streamed", "--weights host"),
        ("70b-65536-44.4gib", "--seq 65536 --steps 0 --device-memory 44.4GiB --host-memory 100GiB"),
    ] {
        let is_there = |(file, text): &(String, String)| {
            file.ends_with(&format!("-llama-3-{name}.json")) && text.contains(settings)
        };
        assert!(found.iter().any(is_there), "{name}: {found:?}");
    }
    assert!(run_with(&bundle, &["--quick", "--stages", "levers,caps,long"]).0 == 0);
}

/// Each shape by separate launches and as graphs: bits are compared, times and memory reported.
#[test]
fn graphs_are_measured_beside_separate_launches() {
    let with = TRAINER_SAYS.replace("\\\"peak_bytes\\\": 9", "\\\"peak_bytes\\\": 8, \\\"step_seconds\\\": 0.5");
    let without = with.replace("8, ", "5, ").replace("0.5", "0.75");
    let trainer = format!("case $* in *graphs*off*) {without}; exit;; esac; {with}");
    let bundle = bundle(&[("qlora-train", trainer.as_str()), ("bench", "echo facts")]);
    let (status, text, _) = run_with(&bundle, &["--stages", "graphs"]);
    assert_eq!(status, 0, "{text}");
    let told = "qwen3-0.6b 512: 0.75 s a step by separate launches, 0.5 s as graphs, which took 3 bytes of the GPU (0 planned)";
    let log = fs::read_to_string(bundle.path().join("output/graphs.log")).unwrap();
    assert!(log.contains(told), "{log}");
    let found = records(&bundle);
    for (name, settings) in [
        ("-qwen3-0.6b-512-graphs-off.json", "--steps 20 --cuda-graphs off"),
        ("-qwen3-0.6b-2048-graphs-on.json", "--steps 20 --cuda-graphs on"),
        ("-llama-3.2-1b-512-graphs-on.json", "--steps 20 --cuda-graphs on"),
    ] {
        assert!(found.iter().any(|(file, text)| file.ends_with(name) && text.contains(settings)), "{name}: {found:?}");
    }
}

#[test]
fn more_memory_than_was_planned_fails() {
    let more = TRAINER_SAYS.replace("\\\"peak_bytes\\\": 9", "\\\"peak_bytes\\\": 12000000000");
    let trainer = format!("case $* in *states*host*tile*) {more}; exit;; esac; {TRAINER_SAYS}");
    let bundle = bundle(&[("qlora-train", trainer.as_str()), ("bench", "echo facts")]);
    let (status, text, summary) = run_with(&bundle, &["--stages", "levers"]);
    assert_eq!(status, 1, "{text}");
    let told = "error: llama-3-8b 2048 all: 12000000000 bytes of the GPU were taken, 11999999991 more than planned";
    assert!(summary.contains(told) && text.matches("error: ").count() <= 3, "{text}");
    // Its peak is in its record.
    assert!(records(&bundle).iter().any(|(name, text)| name.ends_with("-all.json") && text.contains("12000000000")));
}

#[test]
fn a_run_that_tells_nothing_of_the_gpu_fails() {
    let trainer = "echo '{\"steps\": [{\"loss\": 1, \"grad_norm\": 1}]}'";
    let (status, text, _) =
        run_with(&bundle(&[("qlora-train", trainer), ("bench", "echo facts")]), &["--stages", "levers"]);
    assert!(status == 1 && text.contains("it does not say how much of the GPU was taken"), "{text}");
}

/// The last bit of a norm, in one run; a run of fewer steps has the first of the others'.
#[test]
fn a_lever_that_changes_a_bit_fails() {
    let of = |steps: &str| TRAINER_SAYS.replace("{\\\"loss\\\": 11.5, \\\"grad_norm\\\": 0.25}", steps);
    let (first, second) =
        ("{\\\"loss\\\": 11.5, \\\"grad_norm\\\": 0.25}", "{\\\"loss\\\": 11.25, \\\"grad_norm\\\": 0.5}");
    let (both, other) = (format!("{first}, {second}"), second.replace("0.5", "0.5000000000000001"));
    let trainer = |of_tile: &str| {
        format!("case $* in *tile*512*) {};; *weights*host*) {};; *) {};; esac", of(of_tile), of(first), of(&both))
    };
    for (of_tile, expected) in [(both.clone(), 0), (format!("{first}, {other}"), 1), (second.to_owned(), 1)] {
        let bundle = bundle(&[("qlora-train", trainer(&of_tile).as_str()), ("bench", "echo facts")]);
        let (status, text, _) = run_with(&bundle, &["--stages", "levers"]);
        assert_eq!(status, expected, "{text}");
        let told = "error: llama-3-8b 2048 tile: its losses or norms are other than those of the first run";
        assert_eq!(text.contains(told), expected == 1, "{text}");
        assert!(!text.contains("weights-host: its"), "{text}");
    }
}

#[test]
fn no_stage_begins_when_the_time_is_over() {
    let bundle = bundle(&[("suite", "sleep 20"), ("bench", "echo facts")]);
    let arguments = ["--stages", "suite,training,nccl", "--total", "2"];
    let (status, text, summary) = run_with(&bundle, &arguments);
    assert_eq!(status, 1, "{text}");
    for expected in [
        "FAILED   suite: stopped after ",
        "NOT RUN  training: the 2 s of --total are over",
        "NOT RUN  nccl",
        "go on with --stages training,nccl",
        "NOT all passed",
    ] {
        assert!(summary.contains(expected), "{expected}: {summary}");
    }
}

/// Loading has figures of its own, which go where the other records are.
#[test]
fn loading_has_a_stage_of_its_own() {
    let training = "echo \"loading: 2.5 GB/s of $*, to $QLORA_LOADING_RECORDS\"; echo test result: ok";
    let bundle = bundle(&[("training", training), ("bench", "echo facts")]);
    let (status, text, summary) = run_with(&bundle, &["--stages", "loading"]);
    assert_eq!(status, 0, "{text}");
    let of = summary.lines().find(|line| line.starts_with("passed   loading")).unwrap();
    assert!(of.contains("of --ignored loading:: --nocapture, to /") && of.contains("/output/records/loading"), "{of}");
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
fn packed_executables_are_put_together_once() {
    let bundle = bundle(&[("bench", "echo facts")]);
    let suite = bundle.path().join("bin/suite");
    // A script that ends before what it and another have together.
    let shared = [&[0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0, 3, 0, 0, 0, 0, 0, 0, 0][..], b"abc"].concat();
    let script = b"#!/bin/sh\necho the suite\nexit 0        \n".to_vec();
    assert!(script.len().is_multiple_of(8), "{}", script.len());
    let executable = [&script[..], &shared, b"the end"].concat();
    fs::remove_file(&suite).unwrap();
    let mut parts = Parts::new(bundle.path()).unwrap();
    parts.pack(&shared, "other").unwrap();
    parts.pack(&executable, "suite").unwrap();
    for _ in 0..2 {
        let (status, text, summary) = run_with(&bundle, &["--stages", "suite"]);
        assert!(status == 0 && summary.contains("the suite"), "{text}");
    }
    assert!(fs::read(&suite).unwrap() == executable && fs::read(suite.with_file_name("other")).unwrap() == shared);
    fs::write(suite.with_extension("parts"), "missing.gz\n").unwrap();
    let (status, text, _) = run_with(&bundle, &["--stages", "suite"]);
    assert!(status == 2 && text.contains("bin/suite cannot be put together"), "{text}");
}

#[test]
fn a_model_adds_a_stage_that_trains_it() {
    let bundle = bundle(&[("training", "echo \"$* of $QLORA_CURVE_MODEL\""), ("bench", "echo facts")]);
    fs::create_dir(bundle.path().join("model")).unwrap();
    fs::write(bundle.path().join("model/config.json"), "{}").unwrap();
    let (status, text, summary) = run_with(&bundle, &["--stages", "parity", "--model", "model"]);
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
    assert!(status == 0 && !summary.contains("parity"), "{summary}");
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
        (["--stages", "parit"].as_slice(), "no stage is named parit"),
        (&["--limit", "suite"], "expected STAGE=SECONDS"),
        (&["--limit", "x=3"], "no stage is named x"),
        (&["--limit", "parity,suite=3"], "no stage is named parity,suite"),
        (&["--total", "soon"], "expected seconds"),
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
