//! `compute`: what the CPU computes in, where nobody says, and where a run goes on.

use qlora_train::backend::cpu::Isa;

use crate::resume::{RUN, stop_after};
use crate::sandbox::{Sandbox, train};

/// The words in the first lines of a run for the arithmetic that `auto` takes here.
fn automatic() -> String {
    Isa::detect().map_or("threads, f32".to_owned(), |isa| format!("threads, bf16 by {}", isa.name()))
}

#[test]
fn the_processor_decides_where_nobody_says() {
    let sandbox = Sandbox::new();
    for more in ["", "--compute auto"] {
        let done = sandbox.train_into("chosen", more).ok();
        assert!(done.stderr.contains(&automatic()), "{}", done.stderr);
    }
    let done = sandbox.train_into("f32", "--compute f32").ok();
    assert!(done.stderr.contains("threads, f32"), "{}", done.stderr);
    let Some(_) = Isa::detect() else { return };
    sandbox.train_into("bf16", "--compute bf16").ok();
    sandbox.assert_same_result("chosen", "bf16");
    let tensors = |out: &str| sandbox.bytes(&format!("{out}/adapter_model.safetensors"));
    assert_ne!(tensors("chosen"), tensors("f32"));
}

#[test]
fn a_run_goes_on_as_it_began() {
    let sandbox = Sandbox::new();
    for (compute, said) in [("f32", "compute: f32, as the run in f32 began"), ("bf16", "")] {
        if compute == "bf16" && Isa::detect().is_none() {
            continue;
        }
        sandbox.train_into("whole", &format!("{RUN} --compute {compute} --overwrite-output-dir")).ok();
        stop_after(&sandbox, compute, 3, &format!("--compute {compute}"));
        let resumed = sandbox.train_into(compute, &format!("{RUN} --resume-from-checkpoint")).ok();
        assert!(Isa::detect().is_none() || resumed.stderr.contains(said), "{}", resumed.stderr);
        sandbox.assert_same_result(compute, "whole");
    }
}

#[test]
fn another_arithmetic_is_another_run() {
    let Some(isa) = Isa::detect() else { return };
    let sandbox = Sandbox::new();
    stop_after(&sandbox, "out", 3, "--compute f32");
    let resumed = sandbox.run(&train(&format!("{RUN} --compute bf16 --resume-from-checkpoint")));
    resumed.ended(2, &["out: holds a different run", "`compute`", isa.name()]);
}

#[test]
fn evaluation_and_text_are_computed_as_training_is() {
    let sandbox = Sandbox::new();
    let evaluated = |compute: &str| {
        let done = sandbox.run(&format!("eval --json --model model --data rows.jsonl {compute}")).ok();
        (done.stderr.contains(&automatic()), done.stdout)
    };
    let (is_automatic, loss) = evaluated("");
    assert!(is_automatic);
    let Some(_) = Isa::detect() else { return };
    assert_eq!(evaluated("--compute bf16").1, loss);
    assert_ne!(evaluated("--compute f32").1, loss);
}

/// A thread has a panel of 512 · 64 values of its own, also where there are more than 64 threads.
#[test]
fn the_plan_counts_the_scratch_memory_of_every_thread() {
    let sandbox = Sandbox::new();
    let workspace = |threads: u64| {
        let line = train(&format!("--compute f32 --threads {threads}")).replacen("train", "plan", 1);
        let plan = sandbox.run(&line).json();
        let buffers = plan["buffers"].as_array().unwrap();
        buffers.iter().find(|line| line["name"] == "workspace").unwrap()["bytes"].as_u64().unwrap()
    };
    assert_eq!(workspace(100) - workspace(1), 99 * 512 * 64 * 4);
}
