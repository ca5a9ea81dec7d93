//! Answers that a run gives while it trains, and what they decide.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, train};

const CHAT: &str = "--data chat.jsonl --max-length 128 --learning-rate 2e-2";

fn answered(sandbox: &Sandbox, out: &str) -> Vec<Value> {
    let lines = sandbox.lines(&format!("{out}/metrics.jsonl"));
    lines.into_iter().filter(|line| !line["samples"].is_null()).collect()
}

fn losses(sandbox: &Sandbox, out: &str) -> Vec<Value> {
    let lines = sandbox.metrics(out);
    lines.into_iter().filter(|line| !line["loss"].is_null()).collect()
}

/// The adapter, every logged loss and the moments of the optimizer, of runs with other lengths than the rows have.
#[test]
fn answering_changes_no_bit_of_the_run_and_says_what_generate_says() {
    let sandbox = Sandbox::chat();
    sandbox.write("prompts.txt", "hello\n\nwho are you, and what do you do all day long?\n");
    for (out, more) in [
        ("plain", ""),
        ("dropout", "--lora-dropout 0.2 --packing false"),
        ("few", "--gradient-checkpointing true --per-device-train-batch-size 2"),
    ] {
        let line = format!("{CHAT} {more} --max-steps 8 --save-steps 4");
        sandbox.train_into(out, &line).ok();
        let with = format!("{out}-with");
        let asked = "--sample-prompts prompts.txt --eval-steps 2 --eval-max-new-tokens 100";
        let done = sandbox.train_into(&with, &format!("{line} {asked}")).ok();
        for file in ["adapter_model.safetensors", "checkpoint-8/optimizer.safetensors"] {
            assert!(sandbox.bytes(&format!("{out}/{file}")) == sandbox.bytes(&format!("{with}/{file}")), "{file}");
        }
        assert_eq!(losses(&sandbox, out), losses(&sandbox, &with));
        let lines = answered(&sandbox, &with);
        assert_eq!(lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
        assert!(done.stderr.contains("answers after step 0:") && done.stderr.contains("  hello → "), "{done:#?}");
        // Each is what the model of that step says.
        let said = |adapter: &str| {
            let line = format!("generate --model model {adapter} --prompts prompts.txt --max-new-tokens 100 --json");
            let texts = sandbox.run(&line).json()["completions"].clone();
            texts.as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap().trim().to_owned()).collect()
        };
        let logged = |at: usize| -> Vec<String> {
            let samples = lines[at]["samples"].as_array().unwrap();
            samples.iter().map(|sample| sample["answer"].as_str().unwrap().to_owned()).collect()
        };
        let (before, after): (Vec<String>, Vec<String>) = (said(""), said(&format!("--adapter {with}")));
        assert_eq!((logged(0), logged(4)), (before.clone(), after.clone()), "{out}");
        assert_ne!(before, after);
        assert_eq!(lines[0]["samples"][0]["prompt"], "hello");
        assert!(sandbox.read(&format!("{with}/report.html")).contains("Greedy answers"));
    }
}

/// Rows, prompts with references, and a list in YAML.
#[test]
fn references_are_those_of_rows_of_lines_and_of_lists() {
    let sandbox = Sandbox::chat();
    let row = |prompt: &str, reference: &str| json!({"prompt": prompt, "reference": reference}).to_string();
    sandbox.write("asked.jsonl", &[row("hello", "world"), row("who", "me")].join("\n"));
    sandbox.write("run.yaml", "sample_prompts:\n- hello\n- {prompt: who, reference: me}\n");
    for (out, asked, references) in [
        ("rows", "--sample-prompts chat.jsonl", [json!("world"), json!("me")]),
        ("lines", "--sample-prompts asked.jsonl", [json!("world"), json!("me")]),
        ("list", "run.yaml", [Value::Null, json!("me")]),
    ] {
        sandbox.train_into(out, &format!("{CHAT} --max-steps 2 --eval-max-new-tokens 5 {asked}")).ok();
        let lines = answered(&sandbox, out);
        let found: Vec<Value> =
            lines[1]["samples"].as_array().unwrap().iter().map(|sample| sample["reference"].clone()).collect();
        assert_eq!(found, references, "{out}");
        assert!(lines[1]["eval_rouge_l"].is_f64() && lines[1]["eval_match"].is_null(), "{}", lines[1]);
    }
    // Answers do not depend on where the questions come from.
    let answers = |out: &str| answered(&sandbox, out)[1]["samples"][1]["answer"].clone();
    assert_eq!(answers("rows"), answers("list"));
    assert!(sandbox.read("rows/metrics.jsonl").contains("<|im_start|>assistant"));
}

#[test]
fn the_best_answers_decide_the_checkpoint_and_the_end() {
    let sandbox = Sandbox::chat();
    // Rows that are learned, and asked for: an answer is right after some steps.
    let line = "--data chat.jsonl --val-data chat.jsonl --max-steps 300 --max-length 128 --learning-rate 2e-2 --eval-steps 10 \
                --eval-answers 2 --eval-max-new-tokens 8 --save-steps 0 --metric-for-best-model exact_match --compute f32 \
                --load-best-model-at-end --early-stopping-patience 12 --lr-scheduler-type constant";
    let done = sandbox.train(line).ok();
    let lines = answered(&sandbox, "out");
    let exact: Vec<f64> = lines.iter().map(|line| line["eval_exact_match"].as_f64().unwrap()).collect();
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    let best = exact.iter().copied().skip(1).fold(0.0, f64::max);
    assert!(exact[0] == 0.0 && best > 0.0, "{exact:?}");
    let first = exact.iter().position(|&value| value == best).unwrap();
    assert_eq!(steps.len(), first + 13, "twelve evaluations without a better one: {exact:?}");
    let stopped = format!("12 evaluations without a share of exact matches above {:.1}%", 100.0 * best);
    assert!(done.stderr.contains(&stopped), "{}", done.stderr);
    let state = sandbox.json("out/trainer_state.json");
    let checkpoint = format!("checkpoint-{}", steps[first]);
    assert_eq!((&state["best_metric"], &state["best_model_checkpoint"]), (&json!(best), &json!(checkpoint)));
    let file = "adapter_model.safetensors";
    assert!(sandbox.bytes(&format!("out/{file}")) == sandbox.bytes(&format!("out/{checkpoint}/{file}")));
    // The summary's validation loss is that of the adapter that was written.
    assert_eq!(done.json()["eval_loss"], lines[first]["eval_loss"]);
    // The figure is that of `eval --answers`, of the adapter that was written.
    let eval = "eval --model model --adapter out --data chat.jsonl --answers --max-new-tokens 8 --json";
    assert_eq!(sandbox.run(eval).json()["results"][0]["exact_match"], best);
}

#[test]
fn a_run_that_is_killed_while_it_answers_goes_on_with_the_same_log() {
    let sandbox = Sandbox::chat();
    sandbox.write("prompts.txt", "hello\nwho\nwhere\n");
    let line = format!(
        "{CHAT} --max-steps 8 --val-data chat.jsonl --sample-prompts prompts.txt --eval-answers 1 --eval-steps 2 --save-steps 2 \
         --metric-for-best-model rouge_l --load-best-model-at-end --eval-max-new-tokens 9"
    );
    sandbox.train(&line).ok();
    // At the start, and at a later evaluation.
    for (out, fault) in [("first", "answer:3"), ("later", "answer:60")] {
        let killed = sandbox.run_at_fault(&train(&format!("--output-dir {out} {line}")), fault);
        assert_eq!(killed.status, None, "{killed:#?}");
        sandbox.train_into(out, &format!("{line} --resume-from-checkpoint")).ok();
        sandbox.assert_same_result(out, "out");
    }
    // Questions that decide about the result are part of the run's identity.
    sandbox.write("prompts.txt", "hello\nwho\nwhy\n");
    let done = sandbox.train(&format!("{line} --resume-from-checkpoint"));
    done.ended(2, &["what is asked while the run trains"]);
}

#[test]
fn the_plan_counts_the_room_for_answers() {
    let sandbox = Sandbox::chat();
    sandbox.write("prompts.txt", &"hello there, who are you?\n".repeat(9));
    let line = format!("{CHAT} --device cpu --packing false");
    // The run's own allocations, without saving and without memory from before.
    let planned = |more: &str| -> u64 {
        let settings = train(&format!("{line} {more}")).replacen("train --json", "plan --json", 1);
        let plan = sandbox.run(&settings).json();
        let buffers = plan["buffers"].as_array().unwrap().iter();
        let own = |buffer: &&Value| {
            let name = buffer["name"].as_str().unwrap();
            !name.starts_with("saving") && !name.starts_with("rows, tokenizer")
        };
        buffers.filter(own).map(|buffer| buffer["bytes"].as_u64().unwrap()).sum()
    };
    let asked = "--sample-prompts prompts.txt --eval-max-new-tokens 150";
    let (without, with) = (planned(""), planned(asked));
    assert!(with > without, "{without} {with}");
    for (out, more, planned) in [("out", "", without), ("with", asked, with)] {
        let done = sandbox.train_into(out, &format!("{line} {more}")).json();
        assert_eq!(done["peak_bytes"], planned, "{out}");
    }
}

#[test]
fn wrong_prompts_and_figures_are_refused() {
    let sandbox = Sandbox::chat();
    sandbox.write("empty.txt", "\n \n");
    sandbox.write("mixed.jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n");
    sandbox.write("text.jsonl", "{\"text\": \"hello\"}\n");
    sandbox.write("broken.jsonl", "{\"prompt\": \n");
    sandbox.write("many.txt", &"hello\n".repeat(257));
    sandbox.write("no-answer.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
    let asked = |file: &str| train(&format!("{CHAT} --sample-prompts {file}"));
    for (file, words) in [
        ("none.txt", &["sample_prompts", "none.txt", "no such file", "a list"][..]),
        ("empty.txt", &["sample_prompts", "empty.txt", "no prompt"]),
        ("mixed.jsonl", &["mixed.jsonl, line 2", "no `prompt`"]),
        ("text.jsonl", &["text.jsonl", "row 1", "a question before its answer"]),
        ("broken.jsonl", &["broken.jsonl, line 1"]),
        ("many.txt", &["257 prompts", "at most 256"]),
        ("no-answer.jsonl", &["sample_prompts", "no-answer.jsonl"]),
    ] {
        sandbox.refused(&asked(file), words);
    }
    sandbox.write("prompts.txt", "hello");
    let more = |more: &str| format!("{} {more}", asked("prompts.txt"));
    for (line, words) in [
        (more("--eval-max-new-tokens 5000"), &["256 positions", "eval_max_new_tokens"][..]),
        (more("--metric-for-best-model exact_match --eval-steps 2"), &["eval_exact_match", "reference"]),
        (more("--metric-for-best-model bleu"), &["bleu", "exact_match"]),
        (more("--metric-for-best-model match --eval-steps 2"), &["answer_match"]),
        (more("--load-best-model-at-end --eval-steps 2"), &["val_data", "metric_for_best_model"]),
        (more("--answer-match x --val-data chat.jsonl --eval-answers 2"), &["answer_match", "in no reference"]),
        (more("--answer-match [0-9"), &["answer-match", "regular expression"]),
        (more("--greater-is-better true"), &["greater_is_better", "less"]),
        (more("--eval-answers 3"), &["eval_answers", "val_data"]),
        (
            train(&format!("{CHAT} --metric-for-best-model rouge_l --val-data chat.jsonl --eval-steps 2")),
            &["eval_answers"],
        ),
        (train(&format!("{CHAT} --eval-steps 2")), &["eval_steps", "sample_prompts"]),
        (train("--data chat.jsonl --val-data text.jsonl --eval-answers 3"), &["eval_answers", "no validation row"]),
    ] {
        sandbox.refused(&line, words);
    }
}
