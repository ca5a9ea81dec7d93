//! AdaLoRA from settings to what other programs load: ranks are cut, and the adapter is plain LoRA.

use crate::launched::run;
use crate::sandbox::{Sandbox, train};
use qlora_train::adapter::Adapter;
use qlora_train::lora::ParamId;
use serde_json::{Value, json};

/// The first cut is after step 2, the last one after step 4. In f32, in which sums of several processes have the bits
/// of one.
const RUN: &str = "--packing false --lora-r 6 --lora-alpha 60 --use-adalora --target-r 2 --tinit 1 --tfinal 2 \
                   --learning-rate 0.02 --lora-dropout 0.1 --save-steps 1 --save-total-limit 0 --compute f32 \
                   --threads 1";

fn line(out: &str, more: &str) -> String {
    train(&format!("--output-dir {out} {RUN} {more}"))
}

/// Rows of A that are not zero, of each module.
fn ranks(sandbox: &Sandbox, out: &str) -> Vec<usize> {
    let adapter = Adapter::load(&sandbox.path(out)).unwrap();
    let lora = adapter.lora_spec().unwrap();
    let rank = |module: &String| {
        let (shape, a) = adapter.tensor(&ParamId::a(module.as_str())).unwrap();
        assert_eq!(shape[0], 6, "{module}");
        a.chunks(shape[1]).filter(|row| row.iter().any(|&x| x != 0.0)).count()
    };
    lora.terms.keys().map(rank).collect()
}

#[test]
fn ranks_are_cut_to_the_target_and_the_adapter_is_plain_lora() {
    let sandbox = Sandbox::chat();
    let told = sandbox.run(&line("out", "")).ok().stderr;
    for words in ["ranks are cut by their importance from step 2 to step 4", "AdaLoRA: 28 of 84 ranks are left, "] {
        assert!(told.contains(words), "{told}");
    }
    let of_step = |step: usize| ranks(&sandbox, &format!("out/checkpoint-{step}"));
    let counts = [1, 2, 3, 4, 5, 6].map(|step| of_step(step).iter().sum::<usize>());
    // The rate of the first step is 0, so that every factor is 0 as it began. 56 of 84 are to go: int(56 · (2/3)³) more
    // than the target are left, then int(56 · (1/3)³).
    assert_eq!(counts, [0, 44, 30, 28, 28, 28]);
    assert!(of_step(4) == of_step(5) && of_step(4) == of_step(6) && of_step(6) == ranks(&sandbox, "out"));
    assert!(of_step(6).iter().any(|&rank| rank != 2), "all modules have as many");

    let config = sandbox.json("out/adapter_config.json");
    assert_eq!((&config["peft_type"], &config["r"], &config["rank_pattern"]), (&json!("LORA"), &json!(6), &json!({})));
    let verdicts: Value = serde_json::from_str(&sandbox.run("check --json out --model model").stdout).unwrap();
    let verdicts = verdicts["engines"].as_array().unwrap();
    assert!(verdicts.iter().all(|engine| engine["reasons"] == json!([])), "{verdicts:?}");
    // It computes what was trained.
    let rows = "--data rows.jsonl --max-length 64 --compute f32";
    let (own, base) = (sandbox.eval(&format!("--adapter out {rows}")), sandbox.eval(rows));
    assert!(own < base, "{own} {base}");
    let evaluated = line("evaluated", "--val-data rows.jsonl --eval-steps 3");
    let trained = sandbox.run(&evaluated).json()["eval_loss"].as_f64().unwrap();
    assert!((own / trained - 1.0).abs() < 1e-5, "{own} {trained}");
    sandbox.run("merge --model model --adapter out --output merged").ok();
    assert!(sandbox.read("out/README.md").contains("adalora"));
    assert!(!sandbox.json("out/run.json")["identity"]["settings"]["target_r"].is_null());
}

/// No gradient reaches a layer whose ranks are all cut, which is no fault of the run.
#[test]
fn a_layer_that_keeps_no_rank_is_not_warned_of() {
    let sandbox = Sandbox::chat();
    let run = RUN.replace("--target-r 2", "--target-r 1");
    let more = "--orth-reg-weight 0 --max-steps 20 --allow none";
    let told = sandbox.run(&train(&format!("--output-dir out {run} {more}"))).ok().stderr;
    assert!(ranks(&sandbox, "out").contains(&0), "every layer keeps a rank: {told}");
    assert!(!told.contains("still_modules"), "{told}");
    let measured = sandbox.lines("out/metrics.jsonl").into_iter().any(|entry| entry["grad_norm_a"].is_number());
    assert!(measured, "no step was looked at");
}

/// Before the first cut, between cuts and after the last one.
#[test]
fn a_run_goes_on_where_it_stopped_alone_and_in_several_processes() {
    let sandbox = Sandbox::new();
    let whole = line("whole", "--gradient-accumulation-steps 4");
    sandbox.run(&whole).ok();
    for step in [1, 2, 3, 4, 5] {
        let from = format!("--gradient-accumulation-steps 4 --resume-from-checkpoint whole/checkpoint-{step}");
        sandbox.run(&line(&format!("alone{step}"), &from)).ok();
        // Each has one micro-batch of a step, so that gradients are summed in the order of one process.
        run(&sandbox, &line(&format!("of4-{step}"), &from), 4);
        for out in [format!("alone{step}"), format!("of4-{step}")] {
            for name in ["adapter_model.safetensors", "checkpoint-6/optimizer.safetensors"] {
                let bytes = |out: &str| sandbox.bytes(&format!("{out}/{name}"));
                assert!(bytes(&out) == bytes("whole"), "{out}: {name}");
            }
        }
    }
    // From the first step on.
    run(&sandbox, &line("of4", "--gradient-accumulation-steps 1"), 4);
    assert!(sandbox.bytes("of4/adapter_model.safetensors") == sandbox.bytes("whole/adapter_model.safetensors"));
}

#[test]
fn what_cannot_be_cut_is_refused_by_name() {
    let sandbox = Sandbox::new();
    sandbox.run(&line("out", "")).ok();
    sandbox.run(&line("out", "--max-steps 8 --resume-from-checkpoint")).ended(2, &["use_adalora", "8"]);
    let plain = "--output-dir other --lora-r 4";
    for (more, words) in [
        (format!("--output-dir other {RUN} --max-steps 3"), ["`use_adalora`", "the run has 3 steps"]),
        (format!("--output-dir other {RUN} --init-adapter out"), ["`init_adapter`", "`use_adalora`"]),
        (format!("--output-dir other {RUN} --use-rslora"), ["`use_rslora`", "`use_adalora`"]),
        (format!("{plain} --use-adalora"), ["`target_r`", "less than `lora_r`"]),
        (format!("{plain} --target-r 2"), ["`target_r`", "`use_adalora: true`"]),
    ] {
        sandbox.refused(&train(&more), &words);
    }
    // The plan knows it too.
    let plan = train(&format!("--output-dir other {RUN} --max-steps 3")).replacen("train", "plan", 1);
    sandbox.refused(&plan, &["`use_adalora`", "the run has 3 steps"]);
}

/// Importance is in the plan: two numbers for each value, and one term's values and gradients.
#[test]
fn the_plan_has_what_cutting_takes() {
    let sandbox = Sandbox::new();
    let planned = |more: &str, name: &str| {
        let line = format!("plan --json --model model --data rows.jsonl --lora-r 6 --allow all --max-steps 6 {more}");
        let answer: Value = serde_json::from_str(&sandbox.run(&line).ok().stdout).unwrap();
        let buffers = answer["buffers"].as_array().unwrap();
        let of = buffers.iter().filter(|buffer| buffer["name"] == name);
        of.map(|buffer| buffer["bytes"].as_u64().unwrap()).sum::<u64>()
    };
    let with = "--use-adalora --target-r 2";
    assert_eq!(planned("", "LoRA importance of ranks"), 0);
    // Two layers of q, k, v, o, gate, up and down: N + K + 1 of each, six ranks.
    let all = 2 * 6 * (2 * (64 + 64 + 1) + 2 * (32 + 64 + 1) + 3 * (64 + 128 + 1));
    assert_eq!(planned(with, "LoRA importance of ranks"), 8 * all + 16 * 6 * (64 + 128 + 1));
    let of_a = 2 * 6 * (2 * 64 + 2 * 64 + 2 * 64 + 128);
    assert_eq!(planned(with, "LoRA E times A"), 4 * of_a);
    // Beside a GPU it is in memory that is not pinned.
    let line = "plan --model llama-3-8b --gpu 4090 --max-length 1024 --host-memory 64GiB --lora-r 8 --max-steps 9";
    let told = |more: &str| {
        let text = sandbox.run(&format!("{line} {more}")).ok().stdout;
        let on_host = |line: &&str| line.ends_with("in host memory") || line.contains("in host memory in all");
        text.lines().filter(on_host).map(str::to_owned).collect::<Vec<_>>()
    };
    let (plain, cut) = (told(""), told("--use-adalora --target-r 2"));
    assert!(!plain.is_empty() && plain.iter().all(|line| line.contains("pinned in host memory")), "{plain:?}");
    let of_ranks: Vec<&String> = cut.iter().filter(|line| line.contains("LoRA importance of ranks")).collect();
    assert!(of_ranks.len() == 1 && of_ranks[0].ends_with("LoRA importance of ranks, in host memory"), "{cut:?}");
    let in_all: Vec<&String> = cut.iter().filter(|line| line.contains("in all")).collect();
    assert!(
        in_all.len() == 1
            && in_all[0].contains("  in host memory in all, ")
            && in_all[0].contains(" of it pinned: fits in "),
        "{cut:?}"
    );
}
