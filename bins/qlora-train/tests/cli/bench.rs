//! `bench`: real steps on random weights.

use crate::sandbox::Sandbox;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};

#[test]
fn steps_of_any_shape_are_measured() {
    let sandbox = Sandbox::new();
    let line = "bench --shape model/config.json --seq 40 --batch 3 --steps 2 --lora-r 4 --device cpu";
    let found = sandbox.run(&format!("{line} --json")).json();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    assert_eq!(
        (found["seq"].as_u64(), found["batch"].as_u64(), found["lora_r"].as_u64()),
        (Some(40), Some(3), Some(4))
    );
    let (step, speed) = (number(&found["step_seconds"]), number(&found["tokens_per_second"]));
    assert!(step > 0.0 && (speed * step / 120.0 - 1.0).abs() < 1e-9, "{found}");
    let each = found["step_seconds_each"].as_array().unwrap();
    assert!(each.len() == 2 && (each.iter().map(number).sum::<f64>() / 2.0 / step - 1.0).abs() < 1e-9, "{found}");
    // Random tokens of 96: about ln 96.
    assert!((number(&found["loss"]) - 96f64.ln()).abs() < 0.5, "{found}");
    // One step before the two, and one after them.
    let steps = found["steps"].as_array().unwrap();
    assert!(steps.len() == 4 && steps[2]["loss"] == found["loss"], "{found}");
    assert!(steps.iter().all(|step| number(&step["grad_norm"]) > 0.0) && steps[0] != steps[3], "{found}");
    let kernels = found["kernels"].as_array().unwrap();
    assert!((kernels.iter().map(|kernel| number(&kernel["share"])).sum::<f64>() - 1.0).abs() < 1e-6, "{found}");
    for name in ["linear", "linear, backward", "attention", "attention, backward", "output layer and loss", "optimizer"]
    {
        assert!(kernels.iter().any(|kernel| kernel["name"] == name), "{name}: {found}");
    }
    // The peak has pages of files in it too, the plan room for what the process comes to take.
    let of = |key: &str| number(&found["host"][key]);
    assert!(of("planned_bytes") > 1e6 && (0.2..5.0).contains(&(of("peak_bytes") / of("planned_bytes"))), "{found}");
    assert!(found["gpu"].is_null() && number(&found["mfu"]) > 0.0 && number(&found["model_flops_per_step"]) > 0.0);
    let linear = kernels.iter().find(|kernel| kernel["name"] == "linear").unwrap();
    let share = number(&linear["flops"]) / number(&linear["seconds"]) / number(&found["peak_flops"]);
    assert!((number(&linear["share_of_peak"]) / share - 1.0).abs() < 1e-9, "{linear}");
    assert!(kernels.iter().any(|kernel| kernel["name"] == "norm" && kernel["share_of_peak"].is_null()), "{found}");

    let done = sandbox.run(line).ok();
    for words in
        ["tokens/s", "3 rows of 40 tokens, r 4, CPU", "model FLOPs of a step = ", "ms a step", "linear, backward"]
    {
        assert!(done.stdout.contains(words), "{}", done.stdout);
    }
}

/// Layers' inputs go to a file in the working directory, and nothing is left of it.
#[test]
fn steps_with_inputs_on_disk_are_those_in_memory() {
    let sandbox = Sandbox::new();
    let line = "bench --shape model/config.json --seq 40 --steps 0 --lora-r 4 --device cpu --compute f32 --json";
    let in_memory = sandbox.run(&format!("{line} --gradient-checkpointing true")).json();
    let names = sandbox.names("");
    let done = sandbox.run(&format!("{line} --gradient-checkpointing disk"));
    assert!(done.stderr.contains("in a scratch file in ."), "{}", done.stderr);
    let on_disk = done.json();
    assert_eq!(on_disk["steps"], in_memory["steps"]);
    assert!(on_disk["activations"]["disk"].as_u64() > Some(0) && in_memory["activations"]["disk"] == 0, "{on_disk}");
    assert_eq!(sandbox.names(""), names);
}

/// Random weights are in no file.
#[test]
fn an_output_layer_of_random_weights_is_not_planned_on_disk() {
    let sandbox = Sandbox::new();
    for plan in ["", " --plan"] {
        let line = format!("bench --shape model/config.json --seq 40 --device cpu --lm-head disk{plan}");
        sandbox.refused(&line, &["`lm_head`: found disk", "in no file"]);
    }
}

/// A step that takes minutes is not made three times.
#[test]
fn a_single_step_is_measured_as_the_first_of_several() {
    let sandbox = Sandbox::new();
    let of = |steps: usize| {
        let line = "bench --shape model/config.json --seq 40 --lora-r 4 --device cpu --compute f32 --json";
        sandbox.run(&format!("{line} --steps {steps}")).json()
    };
    let (single, several) = (of(0), of(1));
    let len = |found: &serde_json::Value, key: &str| found[key].as_array().unwrap().len();
    assert_eq!([len(&single, "steps"), len(&several, "steps"), len(&single, "step_seconds_each")], [1, 3, 1]);
    assert_eq!(single["steps"][0], several["steps"][0]);
    assert!(single["loss"] == single["steps"][0]["loss"] && single["step_seconds"].as_f64().unwrap() > 0.0, "{single}");
    assert_eq!(len(&single, "kernels"), len(&several, "kernels"));
    for key in ["limit_bytes", "planned_bytes"] {
        assert!(single["device"].get(key).is_some() && single["host"].get(key).is_some(), "{key}: {single}");
    }
    assert!(single["link"].is_null() && single["predicted_step_seconds"].as_object().unwrap().is_empty(), "{single}");
}

/// The lines of the script that measures on machines with a GPU, as `bench` reads them.
#[test]
fn what_the_gpu_bundle_measures_is_not_refused() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/gpu-bundle/src/measure.sh");
    let script = std::fs::read_to_string(script).unwrap().replace("\\\n", " ").replace("$timed", "3");
    // Heads that the kernels compute.
    let sandbox = Sandbox::of(&Synthetic::new(Arch { head_dim: 64, ..tiny_arch() }, 1));
    let mut settings: Vec<String> = Vec::new();
    let mut read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_label, shape, tokens, steps, more @ ..] = &words[..] else { panic!("{line}") };
        let known = ["llama-3-8b", "llama-3-70b", "llama-3.2-1b", "qwen3-0.6b"];
        assert!(known.contains(shape) && tokens.parse::<usize>().is_ok(), "{line}");
        settings.push(format!("--steps {steps} {}", more.join(" ")));
    };
    for line in script.lines().map(str::trim) {
        // A shape whose steps are measured by separate launches and as graphs: the function passes its words on.
        if let Some(of_shape) = line.strip_prefix("with_graphs ") {
            let of_shape = of_shape.replace("$repeated", "20");
            ["off", "on"].iter().for_each(|graphs| read(&format!("graphs-{graphs} {of_shape} --cuda-graphs {graphs}")));
        } else if let Some(line) = line.strip_prefix("measure ").filter(|line| !line.contains("\"$@\"")) {
            read(line);
        }
    }
    assert!(settings.len() > 20, "{settings:?}");
    settings.sort();
    settings.dedup();
    for settings in settings {
        // Planned of a tiny model, for a GPU that need not be there.
        let limit = if settings.contains("--device-memory") { "" } else { "--device-memory 8GiB" };
        let line = format!("bench --shape model/config.json --seq 40 --device cuda --plan --json {limit} {settings}");
        assert!(sandbox.run(&line).json()["fits"] == true, "{line}");
    }
}

#[test]
fn text_of_any_shape_is_measured() {
    let sandbox = Sandbox::new();
    let line = "bench --shape model/config.json --seq 20 --batch 2 --generate 6 --device cpu";
    let found = sandbox.run(&format!("{line} --json")).json();
    let number = |key: &str| found[key].as_f64().unwrap();
    assert!(found["prompt"] == 20 && found["prompts"] == 2 && found["lora_r"].is_null(), "{found}");
    let each = found["token_seconds_each"].as_array().unwrap();
    let mean = each.iter().map(|seconds| seconds.as_f64().unwrap()).sum::<f64>() / 5.0;
    assert!(each.len() == 5 && (mean / number("token_seconds") - 1.0).abs() < 1e-9, "{found}");
    assert!((number("tokens_per_second") * mean / 2.0 - 1.0).abs() < 1e-9, "{found}");
    let share = number("weight_bytes") / mean / number("read_bandwidth");
    assert!((number("share_of_bandwidth") / share - 1.0).abs() < 1e-9, "{found}");
    let operations = found["operations"].as_array().unwrap();
    for name in ["linear", "attention", "KV cache", "logits"] {
        assert!(operations.iter().any(|operation| operation["name"] == name), "{name}: {found}");
    }
    assert!(number("planned_bytes") > 0.0 && number("prompt_tokens_per_second") > 0.0, "{found}");
    // 16 bits are about four times what NF4 takes, beside the output layer.
    let dense = sandbox.run(&format!("{line} --quantization none --lora-r 4 --json")).json();
    assert!(dense["weight_bytes"].as_f64().unwrap() > number("weight_bytes") && dense["lora_r"] == 4, "{dense}");

    let done = sandbox.run(line).ok();
    for words in [
        "2 prompts of 20 tokens, no adapter, CPU",
        "tokens/s read",
        "tokens/s written",
        "GB/s of weights",
        "ms a token",
    ] {
        assert!(done.stdout.contains(words), "{}", done.stdout);
    }
}

#[test]
fn the_plan_of_steps_is_that_of_a_run() {
    let sandbox = Sandbox::new();
    let line = "bench --shape model/config.json --seq 40 --batch 3 --lora-r 4 --device cpu --json";
    let plan = sandbox.run(&format!("{line} --plan")).json();
    assert!(plan["fits"] == true && plan["max_length"].as_u64() >= Some(40), "{plan}");
    let found = sandbox.run(&format!("{line} --steps 1")).json();
    assert_eq!(plan["host"]["peak_bytes"], found["host"]["planned_bytes"]);
    // A record says what ran: its prediction needs nothing else.
    assert!(
        !found["operations"].as_array().unwrap().is_empty() && found["operations"] == plan["operations"],
        "{found}"
    );
    for key in ["weights", "pinned_layers", "lm_head", "optimizer_states", "token_tile"] {
        assert!(found["levers"][key] == plan[key] && found["levers"].get(key).is_some(), "{key}: {found}");
    }
    assert_eq!((&found["levers"]["weights"], &found["activations"]), (&"resident".into(), &plan["activations"]));
    let run = "plan --json --model model --max-length 40 --per-device-train-batch-size 3 --lora-r 4 --device cpu";
    assert_eq!(sandbox.run(run).json()["host"]["peak_bytes"], plan["host"]["peak_bytes"]);
}

#[test]
fn rows_are_as_long_as_a_model_of_few_positions_allows() {
    let sandbox = Sandbox::new();
    let config = std::fs::read_to_string(sandbox.path("model/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let most = config["max_position_embeddings"].as_u64().filter(|most| *most < 2048).unwrap();
    let plan = |flags: &str| {
        let line = format!("bench --shape model/config.json --lora-r 4 --device cpu --plan --json {flags}");
        sandbox.run(&line).json()["host"]["peak_bytes"].as_u64().unwrap()
    };
    assert_eq!(plan(""), plan(&format!("--seq {most}")));
    assert!(plan("") > plan("--seq 40"));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let sandbox = Sandbox::new();
    for (flags, words) in [
        ("--shape llama-9", &["--shape", "\"llama-9\"", "llama-3-70b", "config.json"][..]),
        ("--shape model/config.json --seq 1", &["--seq", "found 1", "from 2 to"]),
        ("--shape model/config.json --seq 999999", &["--seq", "found 999999"]),
        ("--shape model/config.json --seq 8 --batch 0", &["--batch", "found 0"]),
        ("--shape model/config.json --seq 8 --steps 99999", &["--steps", "found 99999", "from 0 to 65536"]),
        ("--shape model/config.json --seq 8 --generate 1", &["--generate", "found 1", "from 2 to"]),
        ("--shape model/config.json --seq 8 --generate 999999", &["--generate", "found 999999"]),
        ("--shape model/config.json --seq 8 --lora-r 0", &["--lora-r", "from 1 to 256"]),
        ("--shape llama-3-8b --seq 2048 --device cpu --host-memory 1GiB", &["of host memory", "1.0 GiB may be used"]),
    ] {
        sandbox.refused(&format!("bench {flags}"), words);
    }
    // Flags that text generation has no use for.
    for flag in ["--steps 2", "--optim adamw_8bit", "--gradient-checkpointing true", "--plan"] {
        let told = sandbox.run(&format!("bench --shape model/config.json --generate 9 {flag}"));
        let name = flag.split(' ').next().unwrap();
        assert!(
            told.status == Some(2) && told.stderr.contains("--generate") && told.stderr.contains(name),
            "{told:#?}"
        );
    }
}
