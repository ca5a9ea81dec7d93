//! SIGINT, SIGTERM and SIGHUP: the first saves and stops, the second leaves at once.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qlora_train::files::failpoint::VARIABLE;

use crate::child::{asked_to_stop, end, paused, signal, stopped, wait_for};
use crate::resume::RUN;
use crate::sandbox::{Sandbox, train};

#[test]
fn the_first_signal_saves_and_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", RUN).ok();
    let places = [
        // Between two steps; within a step of five micro-batches, with and without a checkpoint of the step before.
        ("-INT", "step:3", 130, "stopped after step 3 of 8; saved in out/checkpoint-3"),
        ("-TERM", "micro-batch:3", 143, "stopped after step 0 of 8 and 3 micro-batches; saved in out/checkpoint-0"),
        ("-TERM", "micro-batch:11", 143, "stopped after step 2 of 8 and 2 micro-batches; saved in out/checkpoint-2"),
        // A step is finished, and a file too.
        ("-INT", "write/optimizer.safetensors:1", 130, "stopped after step 2 of 8; saved in out/checkpoint-2"),
        ("-HUP", "step:5", 129, "stopped after step 5 of 8; saved in out/checkpoint-5"),
        ("-INT", "step:8", 130, "stopped after step 8 of 8; saved in out/checkpoint-8"),
        ("-TERM", "evaluation:1", 0, ""),
    ];
    for (name, place, status, words) in places {
        let line = train(RUN);
        let (found, text) = stopped(paused(&sandbox, &line, place), name);
        assert_eq!(found, Some(status), "{place}: {text}");
        assert!(text.contains("saving and stopping after the current micro-batch"), "{place}: {text}");
        if status != 0 {
            assert!(text.contains(words), "{place}: {text} lacks {words:?}");
            let command = format!("to go on: {} {line} --resume-from-checkpoint\n", env!("CARGO_BIN_EXE_qlora-train"));
            assert!(text.contains(&command.replace("  ", " ")), "{text} lacks {command:?}");
            assert!(!sandbox.path("out/adapter_model.safetensors").exists());
            sandbox.train(&format!("{RUN} --resume-from-checkpoint")).ok();
        }
        sandbox.assert_same_result("out", "whole");
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

#[test]
fn a_run_stopped_in_the_same_step_again_and_again_goes_on_where_it_stood() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", RUN).ok();
    let mut line = train(RUN);
    for stop in 1..=4 {
        let (status, text) = stopped(paused(&sandbox, &line, "micro-batch:1"), "-INT");
        assert_eq!(status, Some(130), "{text}");
        assert!(text.contains(&format!("stopped after step 0 of 8 and {stop} micro-batches")), "{text}");
        assert_eq!(sandbox.json("out/checkpoint-0/run_state.json")["progress"]["accumulation"]["micro_batches"], stop);
        line = train(&format!("{RUN} --resume-from-checkpoint"));
    }
    sandbox.run(&line).ok();
    sandbox.assert_same_result("out", "whole");
}

#[test]
fn an_interrupted_evaluation_is_done_again() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 40, 3);
    let run = RUN.replace("--val-set-size 3", "--val-data val.jsonl --val-data rows.jsonl --eval-steps 2");
    sandbox.train_into("whole", &run).ok();
    let mut line = train(&run);
    for place in ["step:2", "step:1"] {
        // The signal is found by the evaluation after step 2, then by that of the resumed run after step 3 or 4.
        let (status, text) = stopped(paused(&sandbox, &line, place), "-INT");
        assert_eq!(status, Some(130), "{text}");
        line = train(&format!("{run} --resume-from-checkpoint"));
    }
    assert_eq!(sandbox.json("out/checkpoint-2/run_state.json")["progress"]["evaluated_at"], 2);
    sandbox.run(&line).ok();
    sandbox.assert_same_result("out", "whole");
}

#[test]
fn the_second_signal_leaves_at_once() {
    let sandbox = Sandbox::new();
    for (first, second, status) in
        [("-INT", "-INT", 130), ("-INT", "-TERM", 143), ("-TERM", "-INT", 130), ("-TERM", "-HUP", 129)]
    {
        let mut child = paused(&sandbox, &train(&format!("{RUN} --resume-from-checkpoint")), "step:1");
        asked_to_stop(&mut child, first);
        // It does not end by going on.
        let waits = child.stdin.take();
        let start = Instant::now();
        signal(&child, second);
        let (found, text) = end(child);
        drop(waits);
        assert_eq!(found, Some(status), "{text}");
        assert!(start.elapsed() < Duration::from_secs(20), "it waited");
        assert!(!text.contains("saved in"), "{text}");
    }
    let whole = sandbox.train_into("whole", RUN);
    whole.ok();
    sandbox.train(&format!("{RUN} --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("out", "whole");
}

/// The terminal may be closed then.
#[test]
fn a_run_under_nohup_goes_on_after_a_hang_up() {
    let sandbox = Sandbox::new();
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_qlora-train")).args(train(RUN).split_whitespace()).current_dir(sandbox.path("."));
    command.env(VARIABLE, "step:2:wait").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    wait_for(&mut child, "fault point reached");
    signal(&child, "-HUP");
    let (status, text) = end(child);
    assert_eq!(status, Some(0), "{text}");
    assert!(!text.contains("stopping"), "{text}");
}

#[test]
fn quantize_leaves_nothing_when_it_is_stopped() {
    let sandbox = Sandbox::new();
    let line = "quantize --model model --output nf4";
    let before = sandbox.files();
    for (name, place, status) in
        [("-INT", "tensor:1", 130), ("-TERM", "tensor:5", 143), ("-HUP", "tensor:12", 129), ("-INT", "tensor:20", 130)]
    {
        let child = paused(&sandbox, line, place);
        assert!(sandbox.files().len() > before.len(), "it writes beside the output");
        let (found, text) = stopped(child, name);
        assert_eq!(found, Some(status), "{place}: {text}");
        assert!(text.contains("stopping after the current tensor; nothing is kept"), "{place}: {text}");
        assert!(sandbox.files() == before, "{place}: {:?}", sandbox.files().keys());
    }
    sandbox.run(line).ok();
    assert!(sandbox.path("nf4/config.json").exists());
    // An empty directory that was there stays as it was.
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    let child = paused(&sandbox, "quantize --model model --output empty", "tensor:2");
    assert_eq!(stopped(child, "-TERM").0, Some(143));
    assert_eq!(sandbox.names("empty"), Vec::<String>::new());
}
