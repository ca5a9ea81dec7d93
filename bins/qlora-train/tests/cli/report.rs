//! report.html and TensorBoard's event files of whole runs.

use safetensors::SafeTensors;

use crate::sandbox::{Sandbox, train};

#[test]
fn a_run_writes_its_report_and_the_command_writes_it_again() {
    let sandbox = Sandbox::chat();
    sandbox.write_rows("val.jsonl", 4, 2);
    sandbox.train("--max-steps 12 --val-data val.jsonl --eval-steps 4 --allow plateau").ok();
    let page = sandbox.read("out/report.html");
    for part in [
        "The validation loss fell from ",
        "12 steps in ",
        "aria-label=\"Loss: ",
        "held in NF4",
        "What the adapter changed",
        "Time of one optimizer step by operation",
        "linear",
        "planned",
        "q_proj",
        "of 4 ranks carry 90%",
        "qlora-train chat --model model --adapter out",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    // The base is read once more for nothing: its norms are taken on the way.
    let details = sandbox.json("out/report.json");
    let modules = details["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 14);
    let weights = sandbox.bytes("model/model.safetensors");
    let weights = SafeTensors::deserialize(&weights).unwrap();
    for module in modules {
        let name = format!("{}.weight", module["module"].as_str().unwrap());
        let weight = weights.tensor(&name).unwrap();
        let values =
            weight.data().chunks_exact(2).map(|b| f32::from_bits(u32::from(b[1]) << 24 | u32::from(b[0]) << 16));
        let base = values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let (relative, norm) = (module["relative"].as_f64().unwrap(), module["norm"].as_f64().unwrap());
        assert!(norm > 0.0 && (relative - norm / base).abs() < 1e-9 * relative, "{module}");
    }
    let operations: f64 = details["operations"].as_array().unwrap().iter().map(|o| o[1].as_f64().unwrap()).sum();
    assert!(operations > 0.0);
    let page = sandbox.bytes("out/report.html");
    std::fs::remove_file(sandbox.path("out/report.html")).unwrap();
    let answer = sandbox.run("report out --json").json();
    assert_eq!(answer["report"], "out/report.html");
    assert!(sandbox.bytes("out/report.html") == page);
}

#[test]
fn rows_of_chats_are_shown_with_what_is_learned() {
    let sandbox = Sandbox::chat();
    sandbox.train("--data chat.jsonl --max-steps 2").ok();
    let page = sandbox.read("out/report.html");
    assert!(page.contains("hello&lt;|im_end|&gt;") && page.contains("<mark>world&lt;|im_end|&gt;"), "{page}");
}

#[test]
fn no_bit_of_the_adapter_depends_on_what_is_shown() {
    let sandbox = Sandbox::new();
    sandbox.train_into("shown", "--report-to tensorboard --logging-dir events").ok();
    sandbox.train_into("hidden", "--report false").ok();
    for name in ["adapter_model.safetensors", "adapter_config.json", "README.md", "SHA256SUMS"] {
        assert!(sandbox.bytes(&format!("shown/{name}")) == sandbox.bytes(&format!("hidden/{name}")), "{name}");
    }
    assert_eq!(sandbox.metrics("shown"), sandbox.metrics("hidden"));
    assert!(!sandbox.names("hidden").iter().any(|name| name.starts_with("report.")));
    assert_eq!(sandbox.names("events").len(), 1);
}

#[test]
fn runs_side_by_side_are_one_page_and_no_other_file_is_replaced() {
    let sandbox = Sandbox::new();
    sandbox.train_into("one", "--max-steps 3 --lora-r 2").ok();
    sandbox.train_into("two", "--max-steps 3").ok();
    sandbox.run("report one two").ok();
    let page = sandbox.read("report.html");
    assert!(page.contains("2 runs") && page.contains("<th scope=\"row\">lora_r</th><td>2</td><td>4</td>"), "{page}");
    // One of ours is written anew.
    sandbox.run("report one --output report.html").ok();
    assert!(sandbox.read("report.html").contains("<h1>Run one</h1>"));
    sandbox.write("mine.html", "<html>");
    sandbox.refused("report one --output mine.html", &["mine.html", "is no report of qlora-train"]);
    sandbox.refused("report one --output none/page.html", &["none", "no such directory"]);
    sandbox.refused("report missing", &["missing", "expected the output_dir of a run"]);
    sandbox.refused("report model", &["model", "found no run.json"]);
    sandbox.refused(&format!("report{}", " one".repeat(7)), &["7 runs", "at most 6"]);
}

#[test]
fn a_page_that_cannot_be_written_ends_no_run() {
    let sandbox = Sandbox::new();
    let done = sandbox.run_at_fault(&train("--max-steps 3"), "write/report.html:1:full").ok();
    assert_eq!(done.stderr.matches("warning: the report cannot be written, the run goes on").count(), 1, "{done:#?}");
    assert!(sandbox.path("out/adapter_model.safetensors").exists());
}

#[test]
fn no_event_file_leaves_the_output_directory_and_none_that_fails_ends_the_run() {
    let sandbox = Sandbox::new();
    for dir in ["out", "elsewhere"] {
        std::fs::create_dir(sandbox.path(dir)).unwrap();
    }
    std::os::unix::fs::symlink(sandbox.path("elsewhere"), sandbox.path("out/runs")).unwrap();
    let done = sandbox.train("--report-to tensorboard --max-steps 2").ok();
    assert!(done.stderr.contains("out/runs: cannot be written, TensorBoard is told nothing"), "{}", done.stderr);
    assert_eq!(sandbox.names("elsewhere").len(), 0);
    assert!(sandbox.path("out/adapter_model.safetensors").exists());
}

#[test]
fn event_files_go_where_they_are_told_and_with_the_run_that_is_overwritten() {
    let sandbox = Sandbox::new();
    sandbox.train("--report-to tensorboard --max-steps 3").ok();
    let names = sandbox.names("out/runs");
    assert!(names.len() == 1 && names[0].starts_with("events.out.tfevents."), "{names:?}");
    let text = String::from_utf8_lossy(&sandbox.bytes(&format!("out/runs/{}", names[0]))).into_owned();
    assert!(text.contains("train/loss") && text.contains("train/learning_rate"), "{text}");
    // Files of others stay.
    sandbox.write("out/runs/notes.txt", "mine");
    sandbox.train("--max-steps 2 --overwrite-output-dir").ok();
    assert_eq!(sandbox.names("out/runs"), ["notes.txt"]);
    sandbox.write("file", "");
    sandbox.refused(&train("--output-dir other --report-to tensorboard --logging-dir file/events"), &["logging_dir"]);
    let done = sandbox.train("--output-dir third --max-steps 1 --report-to wandb --logging-dir events").ok();
    for words in ["report_to: wandb: nothing is written for it", "logging_dir: nothing is written there without"] {
        assert!(done.stderr.contains(words), "{}", done.stderr);
    }
    sandbox
        .refused(&train("--output-dir fourth --report-to tensorbord"), &["tensorbord", "expected none, tensorboard"]);
}
