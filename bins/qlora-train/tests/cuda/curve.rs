//! Whole runs by the commands on both devices: the loss of every step within 1% of the CPU's, adapters that evaluate
//! alike on either device, and the same bytes from two runs with one seed.

use crate::commands::{Directory, train};
use std::path::PathBuf;

/// `train` is the command of a run but for its directory and device, `eval` that of an evaluation but for the adapter
/// and the device. Returns the losses of the steps on the CPU.
fn compare(directory: &Directory, train: &str, eval: &str) -> Vec<f64> {
    for (run, device) in [("cuda", "cuda"), ("again", "cuda"), ("cpu", "cpu")] {
        let (answer, errors) = directory.done(&format!("{train} --output-dir {run} --device {device}"));
        println!("{run}: {answer}");
        let expected = if device == "cuda" { "device: cuda:0, " } else { "device: cpu, " };
        assert!(errors.lines().any(|line| line.starts_with(expected)), "{errors}");
    }
    let bytes = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(bytes("cuda") == bytes("again"), "two runs with one seed differ");

    let (found, expected) = (directory.losses("cuda"), directory.losses("cpu"));
    assert!(found.len() == expected.len() && found.len() > 2, "{} and {} steps", found.len(), expected.len());
    let near = |found: &f64, expected: &f64| (found / expected - 1.0).abs() < 0.01;
    let mut losses = Vec::new();
    for adapter in ["cuda", "cpu"] {
        for device in ["cuda", "cpu"] {
            let (answer, _) = directory.done(&format!("{eval} --adapter {adapter} --device {device}"));
            losses.push(answer["loss"].as_f64().unwrap());
        }
    }
    println!(
        "losses on cuda {found:?}\non the cpu {expected:?}\nof the adapters of cuda and cpu, each on both: {losses:?}"
    );
    assert!(found.iter().zip(&expected).all(|(found, expected)| near(found, expected)), "{found:?} {expected:?}");
    assert!(losses.iter().all(|loss| near(loss, &losses[3])), "{losses:?}");
    expected
}

#[test]
fn a_run_on_the_device_gives_the_losses_and_the_adapter_of_one_on_the_cpu() {
    let eval = "eval --json --model model --data rows.jsonl";
    let losses = compare(&Directory::new(), &train(""), eval);
    // The run itself goes down by more than the devices may differ by.
    assert!(losses[3] < 0.9 * losses[0], "{losses:?}");
}

/// The demo's run of a real model. It takes minutes on a GPU and hours on the emulation, so it only runs with
/// `--ignored`.
#[test]
#[ignore = "needs a model's directory in QLORA_CURVE_MODEL and that of the demo's rows in QLORA_CURVE_ROWS"]
fn a_real_model_gives_the_losses_and_the_adapter_of_the_cpu() {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("{name} is not set"));
    let (model, rows) = (path("QLORA_CURVE_MODEL"), path("QLORA_CURVE_ROWS"));
    let (model, rows) = (model.display(), rows.display());
    let train = format!(
        "train --json --model {model} --data {rows}/habit.train.jsonl --lora-r 16 --learning-rate 5e-4 --num-train-epochs 3 --max-length \
         512 --save-steps 0"
    );
    compare(&Directory::new(), &train, &format!("eval --json --model {model} --data {rows}/habit.validation.jsonl"));
}
