//! Lints in whole runs: each speaks of a run that has its fault, and is silent where it is turned off.

use safetensors::SafeTensors;

use crate::sandbox::{Sandbox, train};

/// Runs and says whether `name` spoke, without and with its switch.
#[track_caller]
fn check(sandbox: &Sandbox, line: &str, name: &str, words: &str) {
    let said = |allow: &str, out: &str| {
        let done = sandbox.train(&format!("--output-dir {out} --allow {allow} {line}")).ok();
        done.stderr.lines().filter(|line| line.starts_with("warning: ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let mark = format!("(allow: {name})");
    let spoken = said("none", &format!("{name}-told"));
    let of_lint: Vec<&String> = spoken.iter().filter(|line| line.ends_with(&mark)).collect();
    assert!(of_lint.len() == 1 && of_lint[0].contains(words), "{name}: {spoken:#?}");
    let silenced = said(name, &format!("{name}-silenced"));
    assert!(!silenced.iter().any(|line| line.ends_with(&mark)), "{name}: {silenced:#?}");
    let bytes = |out: &str| sandbox.bytes(&format!("{name}-{out}/adapter_model.safetensors"));
    assert!(bytes("told") == bytes("silenced"), "{name}");
}

#[test]
fn settings_and_rows_are_looked_at_before_the_first_step() {
    let sandbox = Sandbox::chat();
    sandbox.write_rows("many.jsonl", 200, 1);
    let rows = sandbox.read("rows.jsonl");
    sandbox.write("twice.jsonl", &format!("{rows}\n{rows}"));
    sandbox.write("open.jinja", "{% for message in messages %}{{ message.content }}{% endfor %}");
    let header = "<|header|>{{ message.role }}<|/header|>";
    let turn =
        "{{ message.content }}<eos>{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|/header|>{% endif %}";
    sandbox.write("foreign.jinja", &format!("{{% for message in messages %}}{header}{turn}"));
    for (name, line, words) in [
        ("few_steps", "--max-steps 0", "2 steps may be too few"),
        ("learning_rate", "--max-steps 1", "a learning rate of 1e-2 is high"),
        ("alpha", "--max-steps 1 --lora-alpha 320", "scale alpha / r of 80.00"),
        ("attention_only", "--max-steps 1 --lora-target-modules q_proj", "only attention gets adapters (q_proj)"),
        ("rank_for_rows", "--max-steps 1 --lora-r 32", "lora_r 32 is much for 12 rows"),
        (
            "adapter_capacity",
            "--max-steps 1 --lora-r 1 --lora-target-modules k_proj --data many.jsonl",
            "adapters of 192 parameters",
        ),
        (
            "large_batch",
            "--max-steps 1 --data many.jsonl --packing false --per-device-train-batch-size 70",
            "from about 67 rows at once",
        ),
        ("small_model_in_4_bits", "--max-steps 1", "held in NF4"),
        ("max_length", "--max-steps 1 --max-length 512", "12 rows fit into 1 pack of max_length 512"),
        ("open_turns", "--max-steps 1 --data chat.jsonl --chat-template open.jinja", "will not learn to stop"),
        (
            "foreign_template",
            "--max-steps 1 --data chat.jsonl --chat-template foreign.jinja",
            "writes <|/header|>, <|header|>, which",
        ),
        ("duplicates", "--max-steps 1 --data twice.jsonl", "12 of 24 rows are the same"),
        ("validation_overlap", "--max-steps 1 --val-data twice.jsonl", "24 of 24 validation rows are trained on too"),
        ("one_validation_row", "--max-steps 1 --val-set-size 1", "one row for validation"),
    ] {
        check(&sandbox, line, name, words);
    }
}

#[test]
fn a_run_that_goes_on_is_not_warned_again() {
    let sandbox = Sandbox::new();
    let line = train("--allow none --max-steps 4 --save-steps 1 --lora-alpha 320");
    assert_eq!(sandbox.run_at_fault(&line, "step:2").status, None);
    let gone_on = sandbox.run(&format!("{line} --resume-from-checkpoint")).ok();
    assert!(gone_on.stderr.contains("resuming after step"), "{}", gone_on.stderr);
    assert!(!gone_on.stderr.contains("(allow: alpha)"), "{}", gone_on.stderr);
    let details = sandbox.json("out/report.json");
    let names = details["warnings"].as_array().unwrap().iter().filter(|warning| warning["name"] == "alpha");
    assert_eq!(names.count(), 1, "{details}");
}

#[test]
fn a_template_whose_marks_the_tokenizer_knows_is_not_foreign() {
    let sandbox = Sandbox::chat();
    for line in ["--chat-template chatml", "--chat-template zephyr", ""] {
        let done = sandbox.train(&format!("--allow none --max-steps 1 --data chat.jsonl {line}")).ok();
        assert!(!done.stderr.contains("foreign_template"), "{line}: {}", done.stderr);
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

#[test]
fn losses_are_looked_at_while_it_trains() {
    let sandbox = Sandbox::new();
    let row = |ids: std::ops::Range<u32>| format!("{{\"input_ids\": {:?}}}\n", ids.collect::<Vec<_>>());
    sandbox.write("same.jsonl", &row(3..13).repeat(100));
    sandbox.write("jump.jsonl", &(row(3..13).repeat(60) + &row(60..70)));
    sandbox.write("other.jsonl", &row(60..70));
    let one_by_one = "--packing false --shuffle false --max-steps 0";
    let line = format!("--data jump.jsonl {one_by_one} --lr-scheduler-type constant");
    check(&sandbox, &line, "loss_spike", "at step 61, where");
    let still = format!("--data same.jsonl {one_by_one} --learning-rate 1e-9");
    check(&sandbox, &still, "plateau", "double lora_r");
    check(&sandbox, &still, "gradient_scale", "the gradients of B are");
    let line = format!("--data same.jsonl {one_by_one} --val-data other.jsonl --eval-steps 20 --eval-on-start");
    check(&sandbox, &line, "validation_rises", "since step 0");
}

#[test]
fn modules_that_get_no_gradient_are_named_and_the_norms_are_logged() {
    let sandbox = Sandbox::new();
    // The output of the second layer's MLP is zero, whatever its input.
    let mut file = sandbox.bytes("model/model.safetensors");
    let (start, length) = {
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let data = tensors.tensor("model.layers.1.mlp.down_proj.weight").unwrap().data();
        (data.as_ptr() as usize - file.as_ptr() as usize, data.len())
    };
    file[start..start + length].fill(0);
    std::fs::write(sandbox.path("model/model.safetensors"), file).unwrap();
    let line = "--max-steps 20 --lora-target-modules gate_proj,q_proj";
    check(&sandbox, line, "still_modules", "the adapters of model.layers.1.mlp.gate_proj get no gradient at step 20");
    let metrics = sandbox.lines("still_modules-told/metrics.jsonl");
    let measured: Vec<u64> =
        metrics.iter().filter(|m| m["grad_norm_a"].is_number()).map(|m| m["step"].as_u64().unwrap()).collect();
    assert_eq!(measured, [10, 20]);
    // Together they are the norm of all.
    for entry in metrics.iter().filter(|entry| entry["grad_norm_a"].is_number()) {
        let of = |key: &str| entry[key].as_f64().unwrap();
        let both = of("grad_norm_a").hypot(of("grad_norm_b"));
        assert!((both - of("grad_norm")).abs() < 1e-5 * both, "{entry}");
    }
}

#[test]
fn a_lint_that_is_none_is_refused_before_any_work() {
    let sandbox = Sandbox::new();
    let line = |allow: &str| crate::sandbox::train(&format!("--allow {allow}"));
    sandbox.refused(&line("few_step"), &["--allow", "few_step", "did you mean `few_steps`?"]);
    sandbox.refused(&line("everything"), &["--allow", "the name of a lint"]);
    sandbox.write("run.yaml", "allow: {few_steps: 3}\n");
    sandbox.refused("train run.yaml --model model --data rows.jsonl --output-dir out", &["few_steps", "on or off"]);
}
