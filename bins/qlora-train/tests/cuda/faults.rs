//! Faults of the device: each ends the run with a message that says what happened, and loses no checkpoint.
#![cfg(feature = "emulation")]

use crate::commands::{Directory, train};
use std::collections::BTreeMap;
use std::path::Path;

/// Every file below a directory with what is in it.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(contents(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// Lost in the third step, after the checkpoint of the second: it is as it was, and a run that goes on from it ends in
/// the same bytes as one that lost nothing.
#[test]
fn a_lost_device_ends_the_run_and_the_checkpoint_goes_on() {
    let directory = Directory::small();
    let line = |more: &str| train(&format!("{more} --device cuda")).replace("--max-steps 4", "--max-steps 3");
    directory.done(&line("--output-dir whole"));
    // Launches are the same in every run: those of two steps and their checkpoint are done when the third is under way.
    let lost = (3..).map(|hundreds| hundreds * 100).find_map(|launch| {
        let lost = format!("{launch}:719");
        let output = directory.run_with(&line("--output-dir lost"), &[("QLORA_EMULATION_LOST", &lost)]);
        let errors = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            panic!("the run ended before launch {launch}: no launch came after the checkpoint");
        }
        assert_eq!(output.status.code(), Some(1), "{errors}");
        for words in ["the GPU: ", "(719)", "cannot use the GPU any more", "--resume-from-checkpoint"] {
            assert!(errors.contains(words), "{errors}");
        }
        assert!(!directory.path("lost/adapter_model.safetensors").exists());
        let checkpoint = directory.path("lost/checkpoint-2");
        let found = checkpoint.exists().then(|| (launch, contents(&checkpoint)));
        if found.is_none() {
            let _ = std::fs::remove_dir_all(directory.path("lost"));
        }
        found
    });
    let (launch, checkpoint) = lost.unwrap();
    println!("lost at launch {launch}");
    assert!(checkpoint.contains_key("adapter_model.safetensors"), "{:?}", checkpoint.keys());
    directory.done(&line("--output-dir lost --resume-from-checkpoint true"));
    assert!(contents(&directory.path("lost/checkpoint-2")) == checkpoint);
    let adapter = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("lost"));
}

/// A GPU whose memory is taken by others, and one that has too little of it.
#[test]
fn too_little_memory_is_refused_before_the_model_is_read() {
    let directory = Directory::new();
    let output =
        directory.run_with(&train("--output-dir small --device cuda"), &[("QLORA_EMULATION_MEMORY", "135000000")]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("of GPU memory") && errors.contains("device_memory"), "{errors}");
    assert!(!directory.path("small").exists());
    let line = "eval --model model --data rows.jsonl --lm-head resident --device cuda";
    let output = directory.run_with(line, &[("QLORA_EMULATION_MEMORY", "135000000")]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && errors.contains("of GPU memory"), "{errors}");
}

/// GPU memory of other processes is neither planned for nor taken, and it is named where a run does not fit.
#[test]
fn memory_of_other_processes_is_left_to_them_and_named() {
    let directory = Directory::small();
    let train = |out: &str, taken: &str| {
        let output = directory
            .run_with(&train(&format!("--output-dir {out} --device cuda")), &[("QLORA_EMULATION_TAKEN", taken)]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let gib = |gib: u64| gib << 30;
    let (code, said) = train("beside", &gib(60).to_string());
    assert!(code == Some(0) && !said.contains("other processes hold"), "{said}");
    // All that is left is for the kernels' code.
    let (code, said) = train("without", &(gib(64) - (128 << 20)).to_string());
    assert_eq!(code, Some(2), "{said}");
    for words in ["of GPU memory", "other processes hold at least 63.1 GiB of it"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(!directory.path("without").exists());
    let line = "plan --json --model model --data rows.jsonl --max-length 64 --lora-r 24 --device cuda";
    let output = directory.run_with(line, &[("QLORA_EMULATION_TAKEN", &gib(60).to_string())]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let named = |buffer: &serde_json::Value| buffer["name"] == "CUDA context, and what else is on the GPU";
    let buffer = plan["buffers"].as_array().unwrap().iter().find(|buffer| named(buffer)).unwrap();
    assert_eq!(buffer["bytes"].as_u64(), Some(gib(60) + (128 << 20)));
    assert!(plan["device"]["peak_bytes"].as_u64() > buffer["bytes"].as_u64());
}
