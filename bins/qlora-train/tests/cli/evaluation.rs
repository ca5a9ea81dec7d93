//! Evaluation on the way: its rhythm, the best checkpoint, and an early end.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, assert_close};

/// The rows to train on count upwards; these count downwards, so that learning the ones makes the others worse.
fn opposite(sandbox: &Sandbox) {
    let row = |start: u32| {
        let ids: Vec<u32> = (start..start + 10).rev().collect();
        json!({"input_ids": ids}).to_string()
    };
    sandbox.write("opposite.jsonl", &(5..20).map(row).collect::<Vec<_>>().join("\n"));
}

fn eval_losses(sandbox: &Sandbox, out: &str) -> Vec<(u64, f64)> {
    let lines = sandbox.lines(&format!("{out}/metrics.jsonl"));
    lines.iter().filter_map(|line| Some((line["step"].as_u64()?, line["eval_loss"].as_f64()?))).collect()
}

#[test]
fn the_validation_rows_are_evaluated_every_so_many_steps_and_at_the_end() {
    let sandbox = Sandbox::new();
    let steps = |out: &str, more: &str| {
        sandbox.train_into(out, &format!("--max-steps 7 --val-set-size 3 {more}")).ok();
        eval_losses(&sandbox, out).into_iter().map(|(step, _)| step).collect::<Vec<_>>()
    };
    assert_eq!(steps("never", ""), [7]);
    assert_eq!(steps("three", "--eval-steps 3"), [3, 6, 7]);
    assert_eq!(steps("one", "--eval-strategy steps --eval-steps 1"), (1..=7).collect::<Vec<_>>());
    assert_eq!(steps("share", "--eval-steps 0.5"), [4, 7]);
    // 9 rows in batches of 4: three steps an epoch.
    assert_eq!(steps("epoch", "--eval-strategy epoch --packing false --per-device-train-batch-size 4"), [3, 6, 7]);
    let bytes = |out: &str| sandbox.bytes(&format!("{out}/adapter_model.safetensors"));
    assert!(bytes("never") == bytes("one"), "evaluating changes no bit of the adapter");
}

#[test]
fn the_best_checkpoint_is_kept_and_its_adapter_is_the_result_if_asked_for() {
    let sandbox = Sandbox::new();
    opposite(&sandbox);
    let line = "--max-steps 10 --val-data opposite.jsonl --eval-steps 2 --save-steps 3 --save-total-limit 1 \
                --warmup-steps 3";
    let best = sandbox.train_into("best", &format!("{line} --load-best-model-at-end")).json();
    let last = sandbox.train_into("last", line).json();
    let losses = eval_losses(&sandbox, "last");
    assert_eq!(eval_losses(&sandbox, "best"), losses);
    let (step, lowest) = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(step < 10, "{losses:?}: the rows are made to get worse");
    assert_eq!(best["eval_loss"], lowest);
    assert_eq!(last["eval_loss"], losses.last().unwrap().1);
    for out in ["best", "last"] {
        let state = sandbox.json(&format!("{out}/trainer_state.json"));
        assert_eq!(state["best_metric"], lowest);
        assert_eq!(state["best_model_checkpoint"], format!("checkpoint-{step}"));
        let names = sandbox.names(out);
        let kept: Vec<&String> = names.iter().filter(|name| name.starts_with("checkpoint")).collect();
        assert_eq!(kept, [&format!("checkpoint-{step}"), "checkpoint-9"], "the best and the newest");
    }
    assert_close(sandbox.eval("--adapter best --data opposite.jsonl"), lowest, 1e-6);
    let name = "adapter_model.safetensors";
    assert!(sandbox.bytes(&format!("best/{name}")) == sandbox.bytes(&format!("last/checkpoint-{step}/{name}")));
    assert!(sandbox.bytes(&format!("last/{name}")) != sandbox.bytes(&format!("best/{name}")));
}

#[test]
fn a_run_ends_when_the_validation_loss_no_longer_falls() {
    let sandbox = Sandbox::new();
    opposite(&sandbox);
    let line = "--max-steps 60 --val-data opposite.jsonl --eval-steps 2 --early-stopping-patience 3 --warmup-steps 3 \
                --save-steps 4";
    let done = sandbox.train(line).ok();
    assert!(done.stderr.contains("3 evaluations without a validation loss below"), "{}", done.stderr);
    let losses = eval_losses(&sandbox, "out");
    let lowest = losses.iter().map(|loss| loss.1).fold(f64::INFINITY, f64::min);
    let at = losses.iter().position(|loss| loss.1 == lowest).unwrap();
    assert_eq!(at, losses.len() - 4, "{losses:?}");
    let (last, _) = *losses.last().unwrap();
    assert!(last < 60, "{losses:?}");
    let answer: Value = done.json();
    assert_eq!((&answer["steps"], &answer["eval_loss"]), (&last.into(), &losses.last().unwrap().1.into()));
    // Patience outlives an interruption.
    let killed = sandbox
        .run_at_fault(&crate::sandbox::train(&format!("--output-dir other {line}")), &format!("step:{}", last - 1));
    assert_eq!(killed.status, None);
    sandbox.train_into("other", &format!("{line} --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("other", "out");
}

#[test]
fn several_validation_files_have_losses_of_their_own() {
    let sandbox = Sandbox::new();
    opposite(&sandbox);
    sandbox.write_rows("val.jsonl", 6, 4);
    let answer = sandbox.train("--val-data val.jsonl --val-data opposite.jsonl --eval-steps 3").json();
    let metrics = sandbox.lines("out/metrics.jsonl");
    let lines: Vec<&Value> = metrics.iter().filter(|line| !line["eval_loss"].is_null()).collect();
    assert_eq!(lines.len(), 2);
    let files = lines[1]["eval_file_losses"].as_object().unwrap();
    let tokens = |file: &str| {
        let eval = sandbox.run(&format!("eval --model model --adapter out --data {file} --json")).json();
        assert_close(files[file].as_f64().unwrap(), eval["loss"].as_f64().unwrap(), 1e-6);
        eval["tokens"].as_f64().unwrap()
    };
    let (val, opposite) = (tokens("val.jsonl"), tokens("opposite.jsonl"));
    let of = |file: &str| files[file].as_f64().unwrap();
    let mean = (of("val.jsonl") * val + of("opposite.jsonl") * opposite) / (val + opposite);
    assert_close(answer["eval_loss"].as_f64().unwrap(), mean, 1e-6);
}

/// Rows of three kinds in two files; a third of them name no task.
fn tasks(sandbox: &Sandbox) {
    let row = |start: u32, task: Value| {
        let ids: Vec<u32> = (start..start + 10).collect();
        let mut row = json!({"input_ids": ids});
        if task != "none" {
            row["task"] = task;
        }
        row.to_string()
    };
    let rows = |from: u32, tasks: [Value; 3]| -> String {
        (from..from + 12).map(|at| row(at, tasks[at as usize % 3].clone())).collect::<Vec<_>>().join("\n")
    };
    sandbox.write("one.jsonl", &rows(5, [json!("add"), json!(" copy "), json!("none")]));
    sandbox.write("two.jsonl", &rows(30, [json!("add"), json!(7), Value::Null]));
}

#[test]
fn tasks_have_losses_of_their_own() {
    let sandbox = Sandbox::new();
    tasks(&sandbox);
    let data = "--val-data one.jsonl --val-data two.jsonl";
    let done = sandbox.train(&format!("{data} --eval-steps 3")).ok();
    let metrics = sandbox.lines("out/metrics.jsonl");
    let last = metrics.iter().rfind(|line| !line["eval_loss"].is_null()).unwrap();
    let eval = "eval --model model --adapter out --data one.jsonl --data two.jsonl";
    let answer = sandbox.run(&format!("{eval} --json")).json();
    let text = sandbox.run(eval).ok().stdout;
    let parts = |key: &str| -> Vec<(String, f64, f64)> {
        let figure = |part: &Value, key: &str| part[key].as_f64().unwrap();
        let parts = answer[key].as_array().unwrap().iter();
        parts.map(|p| (p["name"].as_str().unwrap().to_owned(), figure(p, "loss"), figure(p, "tokens"))).collect()
    };
    let (files, tasks) = (parts("files"), parts("tasks"));
    let names = |parts: &[(String, f64, f64)]| parts.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&files), ["one.jsonl", "two.jsonl"]);
    assert_eq!(names(&tasks), ["7", "add", "copy"]);
    // 9 tokens of each row are predicted; four rows of each file are of each task.
    let tokens = |parts: &[(String, f64, f64)]| parts.iter().map(|(_, _, tokens)| *tokens).collect::<Vec<_>>();
    assert_eq!((tokens(&files), tokens(&tasks)), (vec![108.0, 108.0], vec![36.0, 72.0, 36.0]));
    assert_close(files.iter().map(|(_, loss, _)| loss / 2.0).sum(), answer["loss"].as_f64().unwrap(), 1e-9);
    // The rows of one task alone.
    let ids: Vec<Value> = ["one.jsonl", "two.jsonl"].iter().flat_map(|file| sandbox.lines(file)).collect();
    for (name, task) in [("7", json!(7)), ("add", json!("add")), ("copy", json!(" copy "))] {
        let alone: Vec<String> = ids.iter().filter(|row| row["task"] == task).map(Value::to_string).collect();
        sandbox.write("alone.jsonl", &alone.join("\n"));
        let (_, loss, _) = tasks.iter().find(|(found, ..)| found == name).unwrap();
        assert_close(sandbox.eval("--adapter out --data alone.jsonl"), *loss, 1e-6);
        assert_close(last["eval_task_losses"][name].as_f64().unwrap(), *loss, 1e-6);
        let line = format!("  task {name}: loss {loss:.4}, ");
        assert!(text.contains(&line) && done.stderr.contains(&line), "{line:?} in {text} and {}", done.stderr);
    }
    assert!(done.stderr.contains("validation after step 3: loss ") && done.stderr.contains("\n3 tasks\n"), "{done:?}");
    // One task, or none, is no reason to tell parts apart.
    sandbox.write("alone.jsonl", &json!({"input_ids": [1, 2, 3], "task": "add"}).to_string());
    for file in ["alone.jsonl", "rows.jsonl"] {
        let answer = sandbox.run(&format!("eval --model model --json --data {file}")).json();
        assert_eq!(crate::sandbox::keys(&answer), ["loss", "perplexity", "tokens"]);
    }
}

#[test]
fn too_many_tasks_are_counted_and_a_wrong_one_is_refused() {
    let sandbox = Sandbox::new();
    let rows = |tasks: usize| -> String {
        (0..tasks).map(|at| json!({"input_ids": [1, 2, 3], "task": format!("t{at}")}).to_string() + "\n").collect()
    };
    for (tasks, parts) in [(100, 100), (101, 0)] {
        sandbox.write("many.jsonl", &rows(tasks));
        let done = sandbox.run("eval --model model --json --data many.jsonl").ok();
        let said = "101 different values of `task`, more than the 100";
        assert_eq!(done.stderr.contains(said), parts == 0, "{}", done.stderr);
        assert_eq!(done.json()["tasks"].as_array().map_or(0, Vec::len), parts);
    }
    sandbox.write("wrong.jsonl", "{\"input_ids\": [1, 2], \"task\": [\"add\"]}\n");
    let words = ["wrong.jsonl: line 1: `task` is an array of 1 items", "expected a string"];
    sandbox.refused("eval --model model --data wrong.jsonl", &words);
}

/// A settings file gives what flags give otherwise: model, rows, lengths, and the place of the adapter.
#[test]
fn eval_and_generate_take_the_settings_file_of_a_run() {
    let sandbox = Sandbox::chat();
    sandbox.write_rows("val.jsonl", 5, 2);
    let head = "model: model\nmax_length: 64\nlora_r: 4\nlearning_rate: 1e-2\nmax_steps: 6\n";
    sandbox.write("run.yaml", &format!("{head}data: rows.jsonl\nval_data: val.jsonl\noutput_dir: out\n"));
    let before = sandbox.run("eval run.yaml --json").ok();
    assert!(before.stderr.contains("left no adapter yet"), "{before:#?}");
    // Batches are as long as max_length allows, which moves the last bits.
    let same = |one: f64, other: f64| assert!((one - other).abs() < 1e-9, "{one} {other}");
    same(before.json()["loss"].as_f64().unwrap(), sandbox.eval("--data val.jsonl"));
    let trained = sandbox.run("train run.yaml --json").json()["eval_loss"].as_f64().unwrap();
    let of = |line: &str| sandbox.run(line).json()["loss"].as_f64().unwrap();
    same(of("eval run.yaml --json"), sandbox.eval("--data val.jsonl --adapter out"));
    assert!((of("eval run.yaml --json") - trained).abs() < 1e-6);
    // Flags win.
    same(of("eval run.yaml --json --data rows.jsonl"), sandbox.eval("--data rows.jsonl --adapter out"));
    std::fs::rename(sandbox.path("out"), sandbox.path("moved")).unwrap();
    same(of("eval run.yaml --json --adapter moved"), sandbox.eval("--data val.jsonl --adapter moved"));
    let said = |line: &str| sandbox.run(line).ok().stdout;
    let (end, flags) = ("--prompt hello --max-new-tokens 3", "--model model --adapter moved");
    assert_eq!(said(&format!("generate run.yaml --adapter moved {end}")), said(&format!("generate {flags} {end}")));

    // Rows that a run held back are those that are evaluated.
    sandbox.write("split.yaml", &format!("{head}data: rows.jsonl\nval_set_size: 3\noutput_dir: split\n"));
    let trained = sandbox.run("train split.yaml --json").json()["eval_loss"].as_f64().unwrap();
    let done = sandbox.run("eval split.yaml --json").ok();
    assert!(done.stderr.contains("3 held back for validation"), "{done:#?}");
    assert!((done.json()["loss"].as_f64().unwrap() - trained).abs() < 1e-6);
    // The commands that a run prints at its end are run as printed.
    let next = |said: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("compare: qlora-train ")).unwrap();
        (line.to_owned(), sandbox.run(&format!("{line} --json")).json())
    };
    let again = sandbox.run("train split.yaml").ok();
    assert!(again.stderr.contains("this run is finished"), "{again:#?}");
    let (line, answer) = next(&again.stderr);
    assert_eq!(line, "eval split.yaml --with-base");
    assert!((answer["adapters"][0]["loss"].as_f64().unwrap() - trained).abs() < 1e-6);
    assert!(answer["base"]["loss"].as_f64().is_some());
    let (line, answer) = next(&sandbox.train_into("flags", "--val-data val.jsonl").ok().stderr);
    assert_eq!(line, "eval --model model --adapter flags --data val.jsonl --with-base");
    assert!(answer["base"]["loss"].as_f64().is_some());
    // Without any, the training rows.
    sandbox.write("plain.yaml", &format!("{head}data: rows.jsonl\noutput_dir: split\n"));
    same(of("eval plain.yaml --json"), sandbox.eval("--data rows.jsonl --adapter split"));
    sandbox.write("bare.yaml", "model: model\n");
    sandbox.refused("eval bare.yaml", &["`data` is missing", "--data"]);
    sandbox.refused("eval missing.yaml --data rows.jsonl", &["missing.yaml"]);
}

/// Rows that training leaves out of the validation rows, because it trains on them, are left out by `eval` too.
#[test]
fn eval_by_a_settings_file_sees_the_rows_that_its_run_evaluated() {
    let sandbox = Sandbox::new();
    let row = |start: u32| json!({"input_ids": (start..start + 9).rev().collect::<Vec<_>>()}).to_string();
    sandbox.write("new.jsonl", &[3, 4, 5].map(row).join("\n"));
    let read = |name: &str| String::from_utf8(sandbox.bytes(name)).unwrap();
    sandbox.write("mixed.jsonl", &format!("{}\n{}", read("rows.jsonl"), read("new.jsonl")));
    let settings = "model: model\nmax_length: 64\nlora_r: 4\nmax_steps: 2\ndata: rows.jsonl\nval_data: mixed.jsonl\n\
                    output_dir: out\n";
    sandbox.write("run.yaml", &format!("{settings}deduplicate: true\n"));
    let trained = sandbox.run("train run.yaml --json").json()["eval_loss"].as_f64().unwrap();
    let answer = |line: &str| sandbox.run(line).json();
    let evaluated = answer("eval run.yaml --json");
    assert_close(evaluated["loss"].as_f64().unwrap(), trained, 1e-6);
    assert_eq!(evaluated["tokens"], answer("eval --json --model model --data new.jsonl")["tokens"]);
    // Rows that are given are evaluated all.
    assert_eq!(
        answer("eval run.yaml --json --data mixed.jsonl --adapter out")["tokens"],
        answer("eval --json --model model --data rows.jsonl --data new.jsonl")["tokens"]
    );
    // Without `deduplicate` training leaves none out either.
    sandbox.write("all.yaml", &settings.replace("output_dir: out", "output_dir: all"));
    let trained = sandbox.run("train all.yaml --json").json()["eval_loss"].as_f64().unwrap();
    assert_close(answer("eval all.yaml --json")["loss"].as_f64().unwrap(), trained, 1e-6);
}

#[test]
fn the_loss_before_the_first_step_is_that_of_the_base() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 4, 9);
    let line = "--val-data val.jsonl --eval-steps 3";
    let done = sandbox.train_into("out", &format!("{line} --eval-on-start")).ok();
    assert!(done.stderr.contains("validation after step 0: loss "), "{}", done.stderr);
    let losses = eval_losses(&sandbox, "out");
    assert_eq!(losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 3, 6]);
    assert_close(losses[0].1, sandbox.eval("--data val.jsonl"), 1e-6);
    // No bit of the run is another, and what there was before is not its best.
    sandbox.train_into("plain", line).ok();
    assert_eq!(eval_losses(&sandbox, "plain"), losses[1..]);
    let bytes = |out: &str| sandbox.bytes(&format!("{out}/adapter_model.safetensors"));
    assert!(bytes("out") == bytes("plain"));
    let best = |out: &str| sandbox.json(&format!("{out}/trainer_state.json"))["best_metric"].clone();
    assert_eq!(best("out"), best("plain"));
    // Nothing to evaluate, which is told.
    let told = "eval_on_start: the data has no rows to validate on";
    assert!(!done.stderr.contains(told), "{}", done.stderr);
    let done = sandbox.train_into("without", "--eval-on-start").ok();
    assert!(done.stderr.contains(told), "{}", done.stderr);
    assert!(!done.stderr.contains("validation after"), "{}", done.stderr);
}

/// The validation rows that a folder brings are evaluated where the settings say, those of other trainers too.
#[test]
fn rows_that_a_folder_brings_are_evaluated_on_the_way() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    sandbox.write("folder/train.jsonl", &sandbox.read("rows.jsonl"));
    sandbox.write_rows("folder/valid.jsonl", 4, 9);
    let evaluated = |out: &str| eval_losses(&sandbox, out).iter().map(|(step, _)| *step).collect::<Vec<_>>();
    for (out, more) in [("one", ""), ("two", "--early-stopping-patience 9")] {
        sandbox.train_into(out, &format!("--data folder --eval-steps 2 {more}")).ok();
        assert_eq!(evaluated(out), [2, 4, 6], "{more}");
    }
    let mlx = "model: model\ndata: folder\niters: 6\nsteps_per_eval: 3\nmax_seq_length: 64\nnum_layers: -1\n\
               lora_parameters: {rank: 4, scale: 2.0}\nmask_prompt: true\n";
    sandbox.write("mlx.yaml", mlx);
    let trained = |out: &str| sandbox.run(&format!("train mlx.yaml --allow all --output-dir {out}")).ok().stderr;
    trained("three");
    assert_eq!(evaluated("three"), [3, 6]);
    // A folder without validation rows: a note, and refused if something depends on them.
    std::fs::remove_file(sandbox.path("folder/valid.jsonl")).unwrap();
    let said = trained("four");
    assert!(said.contains("eval_steps: the data has no rows to validate on"), "{said}");
    assert_eq!(evaluated("four"), [0u64; 0]);
    sandbox
        .train_into("five", "--data folder --eval-steps 2 --early-stopping-patience 9")
        .ended(2, &["`eval_steps` needs rows to evaluate on"]);
    // A file brings none, which is known without a look at it.
    sandbox.train_into("six", "--eval-steps 2").ended(2, &["`eval_steps` needs rows to evaluate on"]);
}

#[test]
fn the_base_stands_beside_its_adapters() {
    let sandbox = Sandbox::new();
    sandbox.train_into("one", "--max-steps 4").ok();
    sandbox.train_into("two", "--max-steps 2 --lora-r 2").ok();
    let loss = |value: &serde_json::Value| value["loss"].as_f64().unwrap();
    let line = "eval --json --model model --data rows.jsonl --with-base";
    for adapters in [&["one"][..], &["one", "two"]] {
        let given: String = adapters.iter().map(|name| format!(" --adapter {name}")).collect();
        let answer = sandbox.run(&format!("{line}{given}")).json();
        for (found, adapter) in answer["adapters"].as_array().unwrap().iter().zip(adapters) {
            assert_eq!(
                (found["adapter"].as_str(), loss(found)),
                (Some(*adapter), sandbox.eval(&format!("--data rows.jsonl --adapter {adapter}")))
            );
        }
        assert_eq!(loss(&answer["base"]), sandbox.eval("--data rows.jsonl"));
    }
    // Alone it is alone.
    assert_eq!(loss(&sandbox.run(line).json()), sandbox.eval("--data rows.jsonl"));
}

#[test]
fn long_rows_end_an_evaluation_only_where_that_is_not_chosen_otherwise() {
    let sandbox = Sandbox::new();
    sandbox.refused("eval --model model --data rows.jsonl --max-length 10", &["longer than max_length 10"]);
    for choice in ["drop", "truncate"] {
        let line = format!("eval --model model --data rows.jsonl --max-length 10 --too-long {choice} --json");
        let answer = sandbox.run(&line).json();
        assert!(answer["loss"].as_f64().unwrap() > 0.0, "{choice}: {answer}");
    }
    sandbox.refused("eval --model model --data rows.jsonl --too-long maybe", &["too-long", "maybe"]);
}

#[test]
fn a_base_that_is_quantized_without_an_adapter_is_told() {
    let sandbox = Sandbox::new();
    let told = |more: &str| {
        let done = sandbox.run(&format!("eval --model model --data rows.jsonl {more}")).ok();
        done.stderr.contains("quantized as it is loaded") && done.stderr.contains("`--quantization none`")
    };
    assert!(told(""));
    assert!(!told("--quantization none"));
}
