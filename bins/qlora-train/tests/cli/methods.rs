//! Adapter methods from settings to what other programs load.

use crate::sandbox::{Sandbox, train};
use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::backend::cpu::Isa;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::json;

/// The setting of `compute` for bf16, where the processor has it.
fn bf16() -> Option<&'static str> {
    Isa::detect().map(|_| "bf16")
}

/// A file of settings with lines of its own.
fn settings(sandbox: &Sandbox, name: &str, lines: &str) -> String {
    let file = format!("{name}.yaml");
    sandbox.write(&file, lines);
    format!(
        "train --json {file} --model model --data rows.jsonl --max-length 64 --learning-rate 0.02 --allow all --max-steps 6"
    )
}

const PATTERNS: &str = "lora_r: 4\nlora_alpha: 8\nrank_pattern: {v_proj: 2, 'layers\\.1\\.mlp\\..*': 6}\n\
                        alpha_pattern: {q_proj: 16, 'layers\\.1\\.mlp\\..*': 3}\nlora_dropout: 0.1\n";

/// An adapter of many ranks is evaluated, merged and checked as any other, and its uniform copy computes the same.
#[test]
fn patterns_are_one_truth_from_settings_to_the_engines() {
    let sandbox = Sandbox::chat();
    let line = settings(&sandbox, "cfg", PATTERNS);
    let told = sandbox.run(&format!("{line} --output-dir out")).ok().stderr;
    assert!(told.contains("export uniform"), "{told}");
    let lora = Adapter::load(&sandbox.path("out")).unwrap().lora_spec().unwrap();
    let term = |module: &str| (lora.terms[module].r, lora.terms[module].alpha);
    assert_eq!(term("model.layers.1.self_attn.v_proj"), (2, 8.0));
    assert_eq!(term("model.layers.0.self_attn.q_proj"), (4, 16.0));
    assert_eq!(term("model.layers.1.mlp.up_proj"), (6, 3.0));
    // Flags in another spelling give the finished run.
    let flags = "--lora-rank-pattern v_proj=2 --rank-pattern layers\\.1\\.mlp\\..*=6 --alpha-pattern q_proj=16 \
                 --lora-alpha-pattern layers\\.1\\.mlp\\..*=3 --lora-r 4 --lora-alpha 8 --lora-dropout 0.1";
    let line = settings(&sandbox, "empty", "model: model\n");
    let again = sandbox.run(&format!("{line} {flags} --output-dir out")).ok();
    assert!(again.stderr.contains("this run is finished"), "{}", again.stderr);
    sandbox.run(&format!("{line} {flags} --output-dir out --lora-r 5")).ended(2, &["lora_r"]);

    let reasons = |dir: &str| {
        let done = sandbox.run(&format!("check --json {dir} --model model"));
        let answer: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let list = answer["engines"].as_array().unwrap().clone();
        list.into_iter().map(|engine| engine["reasons"].to_string()).collect::<Vec<_>>()
    };
    let of_out = reasons("out");
    for (found, words) in of_out.iter().zip(["[]", "export uniform", "rank_pattern", "[]"]) {
        assert!(found.contains(words), "{of_out:?}");
    }
    let answer = sandbox.run("export uniform --json --adapter out --output-dir uniform").json();
    assert_eq!((&answer["r"], &answer["lora_alpha"]), (&json!(6), &json!(6.0)));
    assert_eq!(reasons("uniform"), ["[]"; 4]);
    assert!(sandbox.names("uniform").contains(&"tokenizer.json".to_owned()));
    sandbox.refused("export uniform --adapter out --output-dir uniform", &["uniform", "expected"]);
    // The card names the tokenizer that lies beside the adapter, and without one that of the base.
    let own = "AutoTokenizer.from_pretrained(\"ADAPTER\")";
    let names_own = |dir: &str| sandbox.read(&format!("{dir}/README.md")).contains(own);
    let tokenizer = sandbox.bytes("out/tokenizer.json");
    std::fs::remove_file(sandbox.path("out/tokenizer.json")).unwrap();
    sandbox.run("export uniform --adapter out --output-dir bare").ok();
    sandbox.write("out/tokenizer.json", std::str::from_utf8(&tokenizer).unwrap());
    assert_eq!(["out", "uniform", "bare"].map(names_own), [true, true, false]);
    let loss = |adapter: &str| sandbox.run(&format!("eval --json {adapter} --data rows.jsonl --max-length 64")).json();
    let (own, uniform) = (loss("--adapter out --model model"), loss("--adapter uniform --model model"));
    let (own, uniform) = (own["loss"].as_f64().unwrap(), uniform["loss"].as_f64().unwrap());
    assert!((own - uniform).abs() < 1e-6 * own, "{own} {uniform}");
    sandbox.run("merge --model model --adapter out --output merged").ok();
    sandbox.run("merge --model model --adapter uniform --output merged-uniform").ok();
    let base = sandbox.bytes("model/model.safetensors");
    let (merged, of_uniform) =
        (sandbox.bytes("merged/model.safetensors"), sandbox.bytes("merged-uniform/model.safetensors"));
    assert_ne!(base, merged);
    let differ = merged.iter().zip(&of_uniform).filter(|(a, b)| a != b).count();
    assert!(merged.len() == of_uniform.len() && differ * 100 < merged.len(), "{differ} bytes differ");
}

#[test]
fn a_run_with_patterns_goes_on_where_it_stopped() {
    let sandbox = Sandbox::new();
    let line =
        settings(&sandbox, "cfg", &format!("{PATTERNS}use_rslora: true\nsave_steps: 3\nlayers_to_transform: [1]\n"));
    sandbox.run(&format!("{line} --output-dir whole")).ok();
    sandbox.run(&format!("{line} --output-dir again --resume-from-checkpoint whole/checkpoint-3")).ok();
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(sandbox.bytes(&format!("whole/{name}")) == sandbox.bytes(&format!("again/{name}")), "{name}");
    }
    let config = sandbox.json("whole/adapter_config.json");
    assert_eq!(config["layers_to_transform"], json!([1]));
    assert!(sandbox.read("whole/README.md").contains("| Layers | 1 |"));
}

#[test]
fn patterns_and_layers_that_the_model_has_not_are_refused_by_name() {
    let sandbox = Sandbox::new();
    for (lines, words) in [
        ("rank_pattern: {lm_head: 4}", ["`rank_pattern`", "`lm_head` matches no module"]),
        ("alpha_pattern: {'(q_proj': 4}", ["`alpha_pattern`", "no regular expression"]),
        (
            r"rank_pattern: {'(?:(?:(?!x)[a-z_.0-9])+)+y': 4}",
            ["`rank_pattern`", "takes too many steps for model.layers"],
        ),
        ("lora_target_modules: [q_proj]\nrank_pattern: {v_proj: 4}", ["`rank_pattern`", "`v_proj` matches no module"]),
        ("layers_to_transform: [1, 2]", ["`layers_to_transform`: found 2", "from 0 to 1"]),
        ("rank_pattern: {q_proj: 400}", ["`rank_pattern`", "from 1 to 256"]),
        ("rank_pattern: {q_proj: many}", ["`q_proj`", "expected a number"]),
        ("alpha_pattern: [q_proj]", ["`alpha_pattern`", "expected names of modules"]),
        ("layers_to_transform: last", ["`layers_to_transform`", "numbers of layers"]),
        ("lora_target_modules: '.*w_proj'", ["`.*w_proj`, which matches no linear layer", "such as model.layers.0."]),
        ("lora_target_modules: '.*'", ["`.*`, which matches lm_head too", "`modules_to_save`"]),
        ("lora_target_modules: 'q_proj|v_proj'", ["matches no linear layer", "for whole paths"]),
    ] {
        for command in ["train", "plan"] {
            let line = settings(&sandbox, "cfg", &format!("{lines}\n")).replace("train --json", command);
            let out = if command == "train" { " --output-dir out" } else { "" };
            sandbox.run(&format!("{line}{out}")).ended(2, &words);
        }
    }
    assert!(!sandbox.path("out").exists());
}

const WHOLE: &str =
    "lora_r: 4\nmodules_to_save: [embed_tokens, norm]\ncompute: f32\noptim: adamw_torch\nquantization: none\n";

/// A model whose output layer is its embedding, with a tokenizer.
fn tied() -> Sandbox {
    Sandbox::chat_of(Arch { tie_word_embeddings: true, ..tiny_arch() })
}

/// Modules that are trained in full pass from the settings to every command that takes an adapter.
#[test]
fn whole_modules_are_evaluated_merged_and_served_where_they_can_be() {
    for (sandbox, tensors) in [(tied(), 28 + 2 + 5), (Sandbox::chat(), 28 + 1 + 5)] {
        let line = settings(&sandbox, "cfg", WHOLE).replace("0.02", "0.004");
        let told = sandbox.run(&format!("{line} --output-dir out")).ok().stderr;
        assert!(told.contains("trained whole") && told.contains("model.embed_tokens"), "{told}");
        let plan = sandbox.run(&line.replace("train --json", "plan")).ok().stdout;
        assert!(plan.contains("gradients of whole modules"), "{plan}");
        let adapter = Adapter::load(&sandbox.path("out")).unwrap();
        assert_eq!(adapter.tensors.len(), tensors);
        let config = sandbox.json("out/adapter_config.json");
        let tied = tensors == 35;
        assert_eq!(config["ensure_weight_tying"], if tied { json!(true) } else { json!(null) });
        assert!(sandbox.read("out/README.md").contains("| Modules trained whole | "));
        // A plain adapter after it, and the base, are as they are alone.
        let plain = settings(&sandbox, "plain", "lora_r: 4\n");
        sandbox.run(&format!("{plain} --output-dir plain")).ok();
        let rows = "--data rows.jsonl --max-length 64 --compute f32 --quantization none";
        let (own, other) =
            (sandbox.eval(&format!("--adapter out {rows}")), sandbox.eval(&format!("--adapter plain {rows}")));
        let base = sandbox.eval(rows);
        assert!(own < base, "{own} {base}");
        let all = sandbox.run(&format!("eval --json --model model --adapter out --adapter plain --with-base {rows}"));
        let all = all.json();
        let losses: Vec<f64> =
            all["adapters"].as_array().unwrap().iter().map(|one| one["loss"].as_f64().unwrap()).collect();
        assert_eq!(losses, [own, other]);
        assert_eq!(all["base"]["loss"].as_f64(), Some(base));
        // bf16 rounds what is merged once.
        sandbox.run("merge --model model --adapter out --output merged").ok();
        let merged = sandbox.run(&format!("eval --json --model merged {rows}")).json()["loss"].as_f64().unwrap();
        assert!((merged / own - 1.0).abs() < 2e-2 && (merged - own).abs() * 10.0 < base - own, "{merged} {own} {base}");
        let verdicts = sandbox.run("check --json out --model model");
        let verdicts: serde_json::Value = serde_json::from_str(&verdicts.stdout).unwrap();
        let reasons: Vec<String> =
            verdicts["engines"].as_array().unwrap().iter().map(|engine| engine["reasons"].to_string()).collect();
        assert_eq!(reasons[0], "[]");
        assert!(reasons[1..].iter().all(|reason| reason.contains("modules_to_save")), "{reasons:?}");
        sandbox
            .refused("export gguf --lora --model model --adapter out --output-dir gguf", &["whole weight", "--lora"]);
        // A run that begins with it trains the same modules.
        sandbox
            .run(&format!("{plain} --modules-to-save norm --init-adapter out --output-dir other"))
            .ended(2, &["`init_adapter`", "model.embed_tokens", "the run trains", "leave out `modules_to_save`"]);
        let line = line.replace("cfg.yaml", "rest.yaml");
        sandbox.write("rest.yaml", &WHOLE.replace("modules_to_save: [embed_tokens, norm]\n", ""));
        let more = sandbox.run(&format!("{line} --init-adapter out --output-dir more")).ok().stderr;
        assert!(more.contains("begins with the weights of out"), "{more}");
        let more = sandbox.eval(&format!("--adapter more {rows}"));
        assert!(more < own, "{more} {own}");
    }
}

#[test]
fn a_run_with_whole_modules_goes_on_where_it_stopped() {
    for compute in ["f32"].into_iter().chain(bf16()) {
        let sandbox = tied();
        let lines = WHOLE.replace("compute: f32", &format!("compute: {compute}")).replace("adamw_torch", "adamw_8bit");
        let line = settings(&sandbox, "cfg", &format!("{lines}save_steps: 3\nuse_rslora: true\n"));
        sandbox.run(&format!("{line} --output-dir whole")).ok();
        sandbox.run(&format!("{line} --output-dir again --resume-from-checkpoint whole/checkpoint-3")).ok();
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            assert!(sandbox.bytes(&format!("whole/{name}")) == sandbox.bytes(&format!("again/{name}")), "{name}");
        }
    }
}

#[test]
fn whole_modules_that_cannot_be_trained_are_refused_by_name() {
    let sandbox = Sandbox::new();
    for (lines, words) in [
        ("modules_to_save: [classifier]", ["`classifier` matches no module", "embed_tokens"]),
        ("modules_to_save: down_proj", ["`down_proj` names the linear layer", "lora_target_modules"]),
        ("modules_to_save: {a: b}", ["`modules_to_save`", "names of modules"]),
    ] {
        let line = settings(&sandbox, "cfg", &format!("{lines}\n"));
        sandbox.run(&format!("{line} --output-dir out")).ended(2, &words);
    }
    assert!(!sandbox.path("out").exists());
    let line = settings(&sandbox, "cfg", "additional_target: 'embed_tokens, lm_head'\n");
    sandbox.run(&format!("{line} --output-dir out")).ok();
    let mut config = sandbox.json("out/adapter_config.json");
    assert_eq!(config["modules_to_save"], json!(["embed_tokens", "lm_head"]));
    config["modules_to_save"] = json!(["embed_tokens"]);
    sandbox.write("out/adapter_config.json", &config.to_string());
    sandbox.refused(
        "eval --model model --adapter out --data rows.jsonl",
        &["lm_head.weight", "adapter_model.safetensors"],
    );
    config["modules_to_save"] = json!(["embed_tokens", "lm_head", "model.norm"]);
    sandbox.write("out/adapter_config.json", &config.to_string());
    sandbox.refused("eval --model model --adapter out --data rows.jsonl", &["model.norm", "modules_to_save"]);
}

/// Such a plan needs no GPU.
#[test]
fn plans_for_a_gpu_count_whole_modules_rows_and_magnitudes() {
    let arch = Arch { head_dim: 64, ..tiny_arch() };
    let (vocab, hidden) = (arch.vocab_size as u64, arch.hidden_size as u64);
    let sandbox = Sandbox::of(&Synthetic::new(arch, 1));
    let planned = |more: &str, name: &str| -> u64 {
        let line = "plan --json --model model --max-length 64 --device cuda --device-memory 24GB";
        let plan = sandbox.run(&format!("{line} {more}")).json();
        let buffers = plan["buffers"].as_array().unwrap().iter();
        buffers.filter(|buffer| buffer["name"] == name).map(|buffer| buffer["bytes"].as_u64().unwrap()).sum()
    };
    for (more, name, least) in [
        ("--modules-to-save embed_tokens", "gradients of whole modules", 4 * vocab * hidden),
        ("--modules-to-save lm_head", "gradients of whole modules", 4 * vocab * hidden),
        ("--modules-to-save norm", "gradients of whole modules", 4 * hidden),
        ("--use-dora true", "DoRA norms", 2 * 4 * hidden),
        // In f32 and in bf16, and the tokens.
        ("--trainable-token-indices 5,6,90", "rows of single tokens", 3 * (6 * hidden + 4)),
        ("--trainable-token-indices lm_head=5", "gradients of rows of single tokens", 4 * hidden),
    ] {
        assert_eq!(planned("", name), 0);
        let found = planned(more, name);
        assert!(found >= least, "{more}: {found} bytes of {name}, expected at least {least}");
    }
}

/// PEFT's rule, so that the number of a layer counts.
#[test]
fn a_regular_expression_chooses_modules_by_their_whole_paths() {
    let sandbox = Sandbox::new();
    let lines = "lora_target_modules: '.*layers\\.0\\.(self_attn|mlp)\\.(q|up)_proj'\nlora_r: 4\n";
    let line = settings(&sandbox, "cfg", lines);
    sandbox.run(&format!("{line} --output-dir out")).ok();
    let terms = Adapter::load(&sandbox.path("out")).unwrap().lora_spec().unwrap().terms;
    let modules: Vec<&str> = terms.keys().map(String::as_str).collect();
    assert_eq!(modules, ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]);
}

#[test]
fn both_ranks_of_an_adapter_to_begin_with_are_told() {
    let sandbox = Sandbox::new();
    sandbox.train_into("out", "--lora-r 4 --lora-target-modules q_proj").ok();
    let begin = |more: &str| train(&format!("--init-adapter out --output-dir other {more}"));
    let layers = tiny_arch().num_layers;
    let other = begin("--lora-r 8 --lora-target-modules q_proj");
    let has = format!("out has rank 4 on {layers} linear layer");
    sandbox.run(&other).ended(2, &["`init_adapter`", &has, "the run has rank 8 on", "lora_r"]);
    let more = begin("--lora-r 4 --lora-target-modules q_proj,v_proj --rank-pattern v_proj=2");
    let on = format!("the run has ranks 2, 4 on {} linear layers", 2 * layers);
    sandbox.run(&more).ended(2, &["`init_adapter`", &has, &on, "lora_target_modules"]);
    let same_count = begin("--lora-r 4 --lora-target-modules k_proj");
    let which = "model.layers.0.self_attn.q_proj: rank 4 in the adapter, none in the run";
    sandbox.run(&same_count).ended(2, &[&has, which, "leave out `lora_target_modules`"]);
}

/// The adapter is one for the base as it is: what it computes there is what was trained, but for rounding.
#[test]
fn terms_that_begin_with_the_weights_are_written_for_the_base_as_it_is() {
    let sandbox = Sandbox::chat();
    for (init, quantization) in [("pissa", "none"), ("pissa_niter_3", "nf4"), ("olora", "none"), ("olora", "nf4")] {
        let out = format!("{init}-{quantization}");
        let lines = format!("{PATTERNS}init_lora_weights: {init}\nquantization: {quantization}\ncompute: f32\n");
        let line = settings(&sandbox, &out, &format!("{lines}save_steps: 3\nuse_rslora: true\n"));
        let told = sandbox.run(&format!("{line} --output-dir {out}")).ok().stderr;
        assert!(told.contains("twice the rank"), "{told}");
        let adapter = Adapter::load(&sandbox.path(&out)).unwrap();
        let term = |module: &str| adapter.lora_spec().unwrap().terms[module].r;
        assert_eq!([term("model.layers.1.self_attn.v_proj"), term("model.layers.0.self_attn.q_proj")], [4, 8]);
        assert_eq!(sandbox.json(&format!("{out}/adapter_config.json"))["init_lora_weights"], json!(true));
        let rows = format!("--data rows.jsonl --max-length 64 --compute f32 --quantization {quantization}");
        let (own, base) = (sandbox.eval(&format!("--adapter {out} {rows}")), sandbox.eval(&rows));
        let last = sandbox.metrics(&out).last().unwrap()["loss"].as_f64().unwrap();
        assert!(own < base && (own / last - 1.0).abs() < 0.5, "{own} {last} {base}");
        // At the start it changes nothing but what rounding does.
        let still =
            format!("{} --output-dir {out}-still", line.replace("--learning-rate 0.02", "--learning-rate 1e-30"));
        sandbox.run(&still).ok();
        let still = sandbox.eval(&format!("--adapter {out}-still {rows}"));
        assert!((still / base - 1.0).abs() < 1e-4, "{still} {base}");
        sandbox.run(&format!("{line} --output-dir {out}-again --resume-from-checkpoint {out}/checkpoint-3")).ok();
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            assert!(sandbox.bytes(&format!("{out}/{name}")) == sandbox.bytes(&format!("{out}-again/{name}")), "{name}");
        }
    }
}

#[test]
fn starts_that_cannot_be_are_refused_by_name() {
    let sandbox = Sandbox::new();
    sandbox.run("quantize --model model --output-dir in-nf4").ok();
    for (lines, more, words) in [
        ("init_lora_weights: gaussian", "", &["`init_lora_weights`", "gaussian", "pissa_niter_N"][..]),
        ("init_lora_weights: pissa_niter_0", "", &["`init_lora_weights`", "pissa_niter_N"]),
        ("init_lora_weights: false", "", &["`init_lora_weights`", "olora"]),
        ("init_lora_weights: olora\nlora_r: 200", "", &["`init_lora_weights`", "at most"]),
        ("init_lora_weights: pissa", "--model in-nf4", &["`init_lora_weights`", "already quantized", "16-bit"]),
        ("pissa_init: true", "", &["pissa_init", "init_lora_weights: pissa_niter_16"]),
    ] {
        let line = settings(&sandbox, "cfg", &format!("{lines}\n"));
        let line = if more.is_empty() { line } else { line.replace("--model model", more) };
        sandbox.run(&format!("{line} --output-dir out")).ended(2, words);
    }
    let line = settings(&sandbox, "cfg", "lora_r: 4\n");
    sandbox.run(&format!("{line} --output-dir plain")).ok();
    sandbox
        .run(&format!("{line} --init-lora-weights olora --init-adapter plain --output-dir out"))
        .ended(2, &["`init_adapter`", "init_lora_weights"]);
    assert!(!sandbox.path("out").exists());
}

/// Magnitudes go from settings to every command that takes an adapter.
#[test]
fn dora_is_evaluated_merged_and_served_where_it_can_be() {
    let sandbox = Sandbox::chat();
    for (compute, quantization) in [("f32", "nf4"), (bf16().unwrap_or("f32"), "none")] {
        let out = format!("out-{quantization}");
        let lines = format!(
            "{}use_dora: true\ncompute: {compute}\nquantization: {quantization}\nsave_steps: 3\n",
            PATTERNS.replace("lora_dropout: 0.1\n", "")
        );
        let line = settings(&sandbox, &out, &lines);
        let told = sandbox.run(&format!("{line} --output-dir {out}")).ok().stderr;
        assert!(told.contains("% more work") && told.contains("serve it merged only"), "{told}");
        let adapter = Adapter::load(&sandbox.path(&out)).unwrap();
        assert_eq!(adapter.tensors.len(), 3 * 14);
        sandbox.run(&format!("{line} --output-dir {out}-again --resume-from-checkpoint {out}/checkpoint-3")).ok();
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            assert!(sandbox.bytes(&format!("{out}/{name}")) == sandbox.bytes(&format!("{out}-again/{name}")), "{name}");
        }
        let rows = format!("--data rows.jsonl --max-length 64 --compute {compute} --quantization {quantization}");
        let (own, base) = (sandbox.eval(&format!("--adapter {out} {rows}")), sandbox.eval(&rows));
        assert!(own < base, "{own} {base}");
        let kind = if quantization == "nf4" { "nf4" } else { "bf16" };
        sandbox.run(&format!("merge --model model --adapter {out} --base {kind} --output merged-{quantization}")).ok();
        let rows = "--data rows.jsonl --max-length 64 --compute f32 --quantization none";
        let merged =
            sandbox.run(&format!("eval --json --model merged-{quantization} {rows}")).json()["loss"].as_f64().unwrap();
        assert!((merged / own - 1.0).abs() < 2e-2 && (merged - own).abs() * 10.0 < base - own, "{merged} {own} {base}");
        let verdicts = sandbox.run(&format!("check --json {out} --model model"));
        let verdicts: serde_json::Value = serde_json::from_str(&verdicts.stdout).unwrap();
        let reasons: Vec<String> =
            verdicts["engines"].as_array().unwrap().iter().map(|engine| engine["reasons"].to_string()).collect();
        assert_eq!(reasons[0], "[]");
        assert!(reasons[1..].iter().all(|reason| reason.contains("DoRA")), "{reasons:?}");
        let gguf = format!("export gguf --lora --model model --adapter {out} --output-dir gguf");
        sandbox.refused(&gguf, &["DoRA", "--lora"]);
    }
    for (lines, words) in [
        ("use_dora: true\nlora_dropout: 0.1", &["`lora_dropout`", "`use_dora`"][..]),
        ("use_dora: true\ninit_lora_weights: olora", &["`init_lora_weights`", "`use_dora`"]),
    ] {
        let line = settings(&sandbox, "cfg", &format!("{lines}\n"));
        sandbox.run(&format!("{line} --output-dir other")).ended(2, words);
    }
    let line = settings(&sandbox, "plain", "lora_r: 4\n");
    let other = format!("{line} --use-dora false --init-adapter out-nf4 --output-dir other");
    sandbox.run(&other).ended(2, &["`init_adapter`", "leave out `use_dora`"]);
    let mut config = sandbox.json("out-nf4/adapter_config.json");
    config["use_dora"] = json!(false);
    sandbox.write("out-nf4/adapter_config.json", &config.to_string());
    sandbox.refused("eval --model model --adapter out-nf4 --data rows.jsonl", &["lora_magnitude_vector", "use_dora"]);
}
