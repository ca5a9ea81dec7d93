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

/// Changes of what is trained beside the low-rank terms are those of the adapter's tensors from the base's.
#[test]
fn whole_modules_and_rows_of_single_tokens_are_measured() {
    let sandbox = Sandbox::chat();
    let weights = sandbox.bytes("model/model.safetensors");
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let base = |module: &str| -> Vec<f64> {
        let weight = weights.tensor(&format!("{module}.weight")).unwrap();
        let bits = weight.data().chunks_exact(2).map(|b| u32::from(b[1]) << 24 | u32::from(b[0]) << 16);
        bits.map(|bits| f64::from(f32::from_bits(bits))).collect()
    };
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let columns = base("model.norm").len();
    sandbox.train_into("rows", "--trainable-token-indices 14,16,18").ok();
    sandbox.train_into("whole", "--modules-to-save lm_head,norm").ok();
    for (run, of, key, tokens) in [
        ("rows", "model.embed_tokens", "token_adapter.trainable_tokens_delta", Some([14, 16, 18])),
        ("whole", "lm_head", "weight", None),
        ("whole", "model.norm", "weight", None),
    ] {
        let details = sandbox.json(&format!("{run}/report.json"));
        let tensors = details["tensors"].as_array().unwrap();
        assert_eq!(tensors.iter().filter(|tensor| tensor["module"] == of).count(), 1, "{tensors:?}");
        let told = tensors.iter().find(|tensor| tensor["module"] == of).unwrap();
        let adapter = sandbox.bytes(&format!("{run}/adapter_model.safetensors"));
        let adapter = SafeTensors::deserialize(&adapter).unwrap();
        let trained = adapter.tensor(&format!("base_model.model.{of}.{key}")).unwrap();
        let trained = trained.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
        let base = match tokens {
            None => base(of),
            Some(tokens) => tokens.map(|token| base(of)[token * columns..][..columns].to_vec()).concat(),
        };
        let change = norm(&mut trained.zip(&base).map(|(now, then)| now - then));
        let (found, relative) = (told["norm"].as_f64().unwrap(), told["relative"].as_f64().unwrap());
        assert!(change > 0.0 && (found / change - 1.0).abs() < 1e-6, "{told}: {change}");
        assert!((relative * norm(&mut base.iter().copied()) / change - 1.0).abs() < 1e-6, "{told}");
        assert_eq!(told["rows"].as_u64(), tokens.map(|tokens| tokens.len() as u64), "{told}");
    }
    let page = sandbox.read("rows/report.html");
    assert!(page.contains("Trained beside the low-rank terms") && page.contains("<small>3 rows</small>"), "{page}");
    // Every norm of both layers, the last one and the output layer.
    assert_eq!(sandbox.json("whole/report.json")["tensors"].as_array().unwrap().len(), 2 * 2 + 2);
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
fn a_pipe_in_the_place_of_a_record_is_told() {
    let sandbox = Sandbox::new();
    for name in ["run.json", "metrics.jsonl", "report.json"] {
        std::fs::create_dir(sandbox.path(name)).unwrap();
        if name != "run.json" {
            sandbox.write(&format!("{name}/run.json"), "{}");
        }
        let pipe = sandbox.path(&format!("{name}/{name}"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let told = format!("{name}/{name}: found a pipe, expected a file");
        sandbox.run(&format!("report {name}")).ended(2, &[&told]);
    }
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
