//! An output directory belongs to one run, which may be run again; another is refused and changes nothing.

use qlora_train::adapter::Adapter;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};

use crate::sandbox::{Sandbox, train};

#[test]
fn a_finished_run_says_so_and_is_left_alone() {
    let sandbox = Sandbox::new();
    let answer = sandbox.train("").json();
    let files = sandbox.files();
    // Settings that change no result, and the same contents at other places, are the same run.
    for more in ["", "--resume-from-checkpoint", "--threads 1 --logging-steps 3 --save-steps 1"] {
        let again = sandbox.train(more).ok();
        assert!(again.stderr.contains("out: this run is finished (6 steps)"), "{}", again.stderr);
        assert!(again.stderr.contains("nothing was done"), "{}", again.stderr);
        assert_eq!(again.json(), answer, "{more}");
        assert!(sandbox.files() == files, "{more}");
    }
    std::fs::rename(sandbox.path("rows.jsonl"), sandbox.path("moved.jsonl")).unwrap();
    std::fs::rename(sandbox.path("model"), sandbox.path("moved")).unwrap();
    let again = sandbox.train("--model moved --data moved.jsonl").ok();
    assert!(again.stderr.contains("this run is finished"), "{}", again.stderr);
}

#[test]
fn the_same_run_again_gives_the_same_adapter() {
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        let adapter = sandbox.bytes("out/adapter_model.safetensors");
        std::fs::remove_file(sandbox.path(&format!("out/{name}"))).unwrap();
        sandbox.train("").ok();
        assert!(sandbox.bytes("out/adapter_model.safetensors") == adapter);
    }
    let tensors = Adapter::load(&sandbox.path("out")).unwrap().tensors;
    std::fs::rename(sandbox.path("rows.jsonl"), sandbox.path("moved.jsonl")).unwrap();
    std::fs::rename(sandbox.path("model"), sandbox.path("moved")).unwrap();
    std::fs::remove_file(sandbox.path("out/adapter_config.json")).unwrap();
    let moved = train("--model moved --data moved.jsonl");
    sandbox.run(&format!("{moved} --threads 1 --logging-steps 3")).ok();
    // The adapter names its base, which is now called otherwise; its tensors are the same.
    assert_eq!(Adapter::load(&sandbox.path("out")).unwrap().tensors, tensors);
    assert_eq!(sandbox.lines("out/metrics.jsonl").len(), 2);
}

#[test]
fn a_run_with_other_settings_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    for (more, what) in [
        ("--seed 2", "`seed` was 42 and is 2 now"),
        ("--lora-dropout 0.1", "`lora_dropout` was 0 and is 0.1 now"),
        ("--learning-rate 2e-2", "`learning_rate` was 0.01 and is 0.02 now"),
        ("--val-set-size 2", "`val_set_size` was 0 and is 2 now"),
        ("--max-steps 7", "`max_steps` was 6 and is 7 now"),
    ] {
        sandbox.refused(&train(more), &["out: holds a different run", what, "choose another output_dir"]);
    }
}

#[test]
fn a_run_on_other_data_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 2, 5);
    sandbox.train("--val-data val.jsonl").ok();
    let line = train("--val-data val.jsonl");
    let text = sandbox.read("rows.jsonl");
    sandbox.write("rows.jsonl", &format!("{text}\n"));
    sandbox.refused(&line, &["holds a different run", "the contents of `data` changed"]);
    sandbox.write("rows.jsonl", &text);
    sandbox.write_rows("val.jsonl", 2, 6);
    sandbox.refused(&line, &["holds a different run", "the contents of `val_data` changed"]);
    sandbox.write_rows("val.jsonl", 2, 5);
    sandbox.run(&line).ok();
}

#[test]
fn a_run_on_another_base_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    // Only the weights differ: the fingerprint shows it, once they are read.
    Synthetic::new(tiny_arch(), 2).write(&sandbox.path("model")).unwrap();
    sandbox.refused(&train(""), &["out: holds a run on another base", "fingerprint", "choose another output_dir"]);
    let mut config = tiny_arch();
    config.layers = qlora_train::arch::LayerArch::uniform(qlora_train::arch::Rope { theta: 500.0, ..config.rope() });
    Synthetic::new(config, 1).write(&sandbox.path("model")).unwrap();
    sandbox.refused(&train(""), &["holds a different run"]);
}

#[test]
fn another_chat_template_is_another_run() {
    let sandbox = Sandbox::chat();
    sandbox.write("template.jinja", trainer_lab::fixture::CHATML);
    let line = format!("{} --chat-template template.jinja", train("--data chat.jsonl"));
    sandbox.run(&line).ok();
    sandbox.run(&line).ok();
    sandbox.write("template.jinja", trainer_lab::fixture::LLAMA3);
    sandbox.refused(&line, &["holds a different run: the chat template changed;"]);
}

/// A template changes rows; that is reported before a length, which a resumed run may change.
#[test]
fn a_longer_run_with_another_template_is_refused_by_the_template() {
    let sandbox = Sandbox::chat();
    sandbox.write("template.jinja", trainer_lab::fixture::CHATML);
    let line = |more: &str| {
        train(&format!("--data chat.jsonl --chat-template template.jinja --save-steps 1 --save-total-limit 0 {more}"))
    };
    sandbox.run(&line("--max-steps 2")).ok();
    sandbox.write("template.jinja", &trainer_lab::fixture::CHATML.replacen("{%", "{# edited #}{%", 1));
    let both = "out: holds a different run: the chat template changed; `max_steps` was 2 and is 4 now; choose another";
    sandbox.refused(&line("--max-steps 4"), &[both]);
    let template = "out: holds a different run: the chat template changed; choose another";
    sandbox.refused(&line("--max-steps 4 --resume-from-checkpoint"), &[template]);
    let from = line("--max-steps 4 --output-dir new --resume-from-checkpoint out/checkpoint-2");
    sandbox.refused(&from, &["is of a different run: the chat template changed;"]);
    let rate = line("--max-steps 4 --learning-rate 0.5 --resume-from-checkpoint");
    sandbox.refused(&rate, &["the chat template changed; `learning_rate` was 0.01 and is 0.5 now; choose another"]);
}

#[test]
fn a_directory_of_another_program_is_left_alone() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("out")).unwrap();
    sandbox.write("out/notes.txt", "mine");
    sandbox.train("").ok();
    assert_eq!(sandbox.read("out/notes.txt"), "mine");
    std::fs::remove_file(sandbox.path("out/run.json")).unwrap();
    sandbox.refused(&train(""), &["out: found adapter_config.json without run.json"]);
    sandbox.write("out/run.json", "{");
    sandbox.refused(&train(""), &["out/run.json", "choose another output_dir"]);
}

#[test]
fn an_output_directory_that_cannot_be_one_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "");
    for out in ["file", "file/below/it"] {
        let line = &train(&format!("--output-dir {out}"));
        sandbox.refused(line, &["file: found something that is not a directory", "output_dir"]);
    }
    // /proc cannot be written by anybody.
    let line = train("--output-dir /proc/adapter");
    sandbox.refused(&line, &["/proc: cannot be written (output_dir)"]);
    // The root directory is refused under any name, also to a user who may write there.
    std::os::unix::fs::symlink("/", sandbox.path("link")).unwrap();
    for root in ["/", "//", "/../.", "link"] {
        sandbox
            .refused(&train(&format!("--output-dir {root}")), &[root, "is the root of the file system (output_dir)"]);
    }
    // Deep and new is fine.
    sandbox.run(&train("--output-dir new/deep/out")).ok();
}
