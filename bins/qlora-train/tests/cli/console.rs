//! Messages of the commands on standard error: how much of it, and never a character that could move the cursor.

use crate::sandbox::{Sandbox, train};

#[test]
fn quiet_leaves_warnings_and_errors_and_verbose_adds_details() {
    let sandbox = Sandbox::new();
    // A row longer than the model was made for is a warning.
    let ids: Vec<String> = (0..300).map(|id| (3 + id % 90).to_string()).collect();
    sandbox.write("long.jsonl", &format!("{{\"input_ids\": [{}]}}", ids.join(",")));
    let line = |more: &str| {
        train(&format!(
            "--data long.jsonl --max-length 320 --max-steps 1 --allow small_model_in_4_bits,learning_rate,alpha {more}"
        ))
    };
    let lines = |more: &str| {
        let text = sandbox.run(&line(more)).ok().stderr;
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let quiet = lines("--output-dir quiet -q");
    assert!(quiet.len() == 1 && quiet[0].starts_with("warning: the longest row has 300 tokens"), "{quiet:#?}");
    let normal = lines("--output-dir normal");
    assert!(normal.iter().any(|line| line.starts_with("device: ")) && normal.contains(&quiet[0]), "{normal:#?}");
    let verbose = lines("--output-dir verbose --verbose");
    let buffer = |line: &&String| line.ends_with("  embedding");
    assert!(verbose.len() > normal.len(), "{verbose:#?}");
    assert_eq!((verbose.iter().filter(buffer).count(), normal.iter().filter(buffer).count()), (1, 0), "{verbose:#?}");
    sandbox.run(&line("--output-dir file -q --lora-r 0")).ended(2, &["--lora-r"]);
    let both = sandbox.run(&line("-q -v"));
    assert_eq!(both.status, Some(2), "{both:?}");
}

#[test]
fn every_command_takes_quiet_and_verbose_and_no_variable_changes_what_is_said() {
    let sandbox = Sandbox::new();
    for command in ["train", "plan", "preview", "quantize", "eval", "generate", "bench", "doctor"] {
        let help = sandbox.run(&format!("{command} --help")).ok().stdout;
        assert!(help.contains("-q, --quiet") && help.contains("-v, --verbose"), "{help}");
    }
    let plan = "plan --model model --data rows.jsonl --max-length 64";
    let plain = sandbox.run(plan).ok();
    let logged = sandbox.command(plan).env("RUST_LOG", "trace").output().unwrap();
    assert_eq!(String::from_utf8(logged.stderr).unwrap(), plain.stderr);
    assert!(!plain.stderr.is_empty());
    assert_eq!(sandbox.run(&format!("{plan} --quiet")).ok().stderr, "");
}

#[test]
fn control_characters_of_files_and_names_are_escaped() {
    let sandbox = Sandbox::new();
    let name = "rows\u{1b}[31m\u{7}.jsonl";
    sandbox.write_rows(name, 4, 1);
    let said = sandbox.run(&train(&format!("--data {name} --max-steps 1"))).ok().stderr;
    assert!(said.contains(r"rows\u{1b}[31m\u{7}.jsonl"), "{said}");
    sandbox.write(name, "{\"input_ids\": 1, \"t\u{9b}2J\": 2}");
    let refused = sandbox.run(&train(&format!("--data {name} --output-dir other")));
    assert!(refused.stderr.contains(r"error: rows\u{1b}[31m\u{7}.jsonl: line 1"), "{refused:?}");
    for text in [said, refused.stderr] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}

/// In a file or pipe: headings in their order, a line for each logged loss, no line for what took no time, no colors.
#[test]
fn a_run_in_a_pipe_has_sections_and_a_line_for_each_logged_loss() {
    let sandbox = Sandbox::new();
    let said = sandbox.run(&train("--max-steps 6 --logging-steps 2 --val-set-size 2 --eval-steps 2")).ok().stderr;
    let headings: Vec<&str> =
        said.lines().filter(|line| ["Model", "Data", "Run", "Training", "Next"].contains(line)).collect();
    assert_eq!(headings, ["Model", "Data", "Run", "Training", "Next"], "{said}");
    let steps: Vec<&str> = said.lines().filter(|line| line.starts_with("step ")).collect();
    assert_eq!(steps.len(), 3, "{said}");
    for (line, step) in steps.iter().zip([2, 4, 6]) {
        assert!(line.starts_with(&format!("step {step}/6  epoch ")) && line.contains("  loss "), "{line}");
    }
    assert!(!said.contains("validation 2/2") && !said.contains("loading "), "{said}");
    assert_eq!(said.matches("validation after step ").count(), 3, "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let quiet = sandbox.run(&train("--max-steps 1 --output-dir quiet -q")).ok().stderr;
    assert_eq!(quiet, "");
}

/// A note on lost text of a row is a warning, not a remark among others.
#[test]
fn warnings_about_rows_are_said_under_quiet_too() {
    let sandbox = Sandbox::chat();
    let row = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "score": 3, "context": "lost"}"#;
    sandbox.write("beside.jsonl", row);
    let preview = "preview --model model --data beside.jsonl";
    let (plain, quiet) = (sandbox.run(preview).ok().stderr, sandbox.run(&format!("{preview} -q")).ok().stderr);
    let warning = "warning: beside.jsonl: in 1 row (line 1) the row has the key `context`, which nothing reads";
    assert!(plain.contains(warning) && plain.contains("not used: `score` of rows"), "{plain}");
    assert!(quiet.contains(warning) && !quiet.contains("not used"), "{quiet}");
    // A row that is skipped is named with its reason.
    sandbox.write("bad.jsonl", &format!("{}{{\"text\": 7}}\n", format!("{row}\n").repeat(12)));
    let quiet = sandbox.run("preview --model model --data bad.jsonl --on-bad-row skip -q").ok().stderr;
    assert!(quiet.contains("warning: 1 row skipped") && quiet.contains("\n  bad.jsonl: line 13: "), "{quiet}");
}
