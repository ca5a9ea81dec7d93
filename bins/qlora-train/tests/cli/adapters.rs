//! Adapters and what they record: how their base was held, what they are made of, and how their rows were read.

use qlora_train::adapter::Adapter;

use crate::sandbox::{Sandbox, train};

const ON_NF4: &str = "on a base quantized as nf4, block 64, double quantization, block 256";

#[test]
fn a_base_that_is_held_otherwise_than_in_training_is_told_by_every_command() {
    let sandbox = Sandbox::chat();
    for (out, held) in [("on-nf4", "nf4"), ("on-16", "none")] {
        sandbox.train_into(out, &format!("--data chat.jsonl --max-steps 1 --quantization {held}")).ok();
    }
    let warnings = |line: &str| {
        let done = sandbox.run(line);
        assert!(done.status == Some(0) || line.starts_with("check"), "{line}: {done:#?}");
        let said = done.stderr;
        let held = said.lines().filter(|line| line.starts_with("warning: ") && line.contains("; this base is "));
        held.map(str::to_owned).collect::<Vec<_>>()
    };
    let rows = "--data chat.jsonl --max-length 64";
    let nf4 = |out: &str| {
        [
            format!("eval --adapter {out} {rows} --quantization nf4"),
            format!("generate --adapter {out} --prompt hello --max-new-tokens 2 --quantization nf4"),
            format!("merge --adapter {out} --output-dir merged-nf4-{out} --base nf4"),
            train(&format!("--init-adapter {out} --quantization nf4 --max-steps 1 --output-dir nf4-from-{out} {rows}")),
        ]
    };
    let in_16_bits = |out: &str| {
        let mut lines: Vec<String> = nf4(out).map(|line| line.replace("quantization nf4", "quantization none")).into();
        lines[2] = format!("merge --adapter {out} --output-dir merged-{out} --base bf16 --data chat.jsonl");
        lines[3] = lines[3].replace("nf4-from", "from");
        lines.push(format!("export gguf --adapter {out} --output-dir gguf-{out} --base bf16"));
        lines.push(format!("check {out}"));
        lines
    };
    for line in in_16_bits("on-nf4") {
        let told = warnings(&line);
        assert!(
            told.len() == 1 && told[0].contains(ON_NF4) && told[0].contains("this base is in 16 bits"),
            "{line}: {told:?}"
        );
        assert!(told[0].contains("these are not rounded") && told[0].contains("not those of the training"), "{told:?}");
    }
    for line in nf4("on-16") {
        let told = warnings(&line);
        let words = ["on a base in 16 bits", "this base is quantized as nf4, block 64", "and these are,"];
        assert!(told.len() == 1 && words.iter().all(|word| told[0].contains(word)), "{line}: {told:?}");
    }
    // Held as in training, the dequantized copy among it, there is nothing to say; without a word about it, it is.
    let plain = ["on-nf4", "on-16"].map(|out| format!("eval --adapter {out} {rows}"));
    for line in nf4("on-nf4").into_iter().chain(in_16_bits("on-16")).chain(plain) {
        assert_eq!(warnings(&line), [""; 0], "{line}");
    }
}

/// An adapter says itself what it is made of; what is given wins, and is refused where its tensors cannot be that.
#[test]
fn a_run_that_goes_on_has_the_terms_of_the_adapter() {
    let sandbox = Sandbox::new();
    let made = "--lora-r 4 --lora-alpha 6 --lora-target-modules q_proj,up_proj --layers-to-transform 1 \
                --rank-pattern up_proj=2 --alpha-pattern q_proj=3";
    for (first, more, own) in [
        ("plain", "--lora-dropout 0.1", &["lora_alpha 6", "lora_dropout 0.1"][..]),
        ("dora", "--use-dora", &["lora_alpha 6", "use_dora true"]),
        ("rslora", "--use-rslora", &["lora_alpha 6", "use_rslora true"]),
    ] {
        sandbox.train_into(first, &format!("{made} {more} --max-steps 4")).ok();
        let before = sandbox.eval(&format!("--data rows.jsonl --adapter {first}"));
        for (out, from) in
            [("one", format!("--model {first}")), ("two", format!("--init-adapter {first} --model model"))]
        {
            let end = "--data rows.jsonl --max-length 64 --max-steps 1 --learning-rate 1e-9 --allow all";
            let done = sandbox.run(&format!("train {from} {end} --overwrite-output-dir --output-dir {out}")).ok();
            let told: Vec<&str> =
                done.stderr.lines().filter(|line| line.starts_with(&format!("as {first} has "))).collect();
            let shared = ["lora_r 4", "\"q_proj\"", "layers_to_transform [1]", "rank_pattern {\"up_proj\":2}"];
            assert!(told.len() == 1 && shared.iter().chain(own).all(|word| told[0].contains(word)), "{done:#?}");
            let specs = [first, out].map(|dir| Adapter::load(&sandbox.path(dir)).unwrap().lora_spec().unwrap());
            assert_eq!(specs[0].terms, specs[1].terms, "{first}");
            let after = sandbox.eval(&format!("--data rows.jsonl --adapter {out}"));
            assert!((after - before).abs() < 1e-3, "{first} {out}: {after}, was {before}");
            let settings = sandbox.json(&format!("{out}/run.json"))["settings"].clone();
            assert_eq!(settings["lora_alpha"].as_f64(), Some(6.0), "{first}");
        }
    }
    // Repeating a setting is accepted, and a different value is named.
    let begin = |more: &str| {
        format!(
            "train --model plain --data rows.jsonl --max-length 64 --max-steps 1 --allow all --output-dir other {more}"
        )
    };
    for (more, words) in [
        ("--lora-r 16", ["rank", "leave out `lora_r`"]),
        ("--lora-target-modules all-linear", ["linear layers", "leave out `lora_target_modules`"]),
        ("--layers-to-transform 0,1", ["linear layers", "leave out `layers_to_transform`"]),
        ("--use-dora --lora-dropout 0", ["magnitudes (DoRA)", "leave out `use_dora`"]),
        ("--rank-pattern up_proj=3", ["rank", "leave out `rank_pattern`"]),
    ] {
        sandbox.refused(&begin(more), &["`init_adapter`: plain", words[0], words[1]]);
        sandbox.refused(&begin(more).replacen("train", "plan", 1), &["`init_adapter`: plain", words[0], words[1]]);
    }
    let done = sandbox.run(&begin("--lora-r 4 --layers-to-transform 1")).ok();
    let told = done.stderr.lines().find(|line| line.starts_with("as plain has them: ")).unwrap();
    assert!(told.contains("lora_alpha 6") && !told.contains("lora_r ") && !told.contains("layers"), "{told}");
    let again = sandbox.run(&begin("")).ok();
    assert!(again.stderr.contains("this run is finished"), "{again:#?}");
}

/// A run that began with defaults where nothing was given, before the adapter's terms were taken, is still that run.
#[test]
fn a_run_that_began_without_the_terms_of_its_adapter_keeps_its_own() {
    let sandbox = Sandbox::new();
    sandbox.train_into("first", "--lora-alpha 6 --lora-dropout 0.1 --max-steps 1").ok();
    let begin = |out: &str, more: &str| train(&format!("--model first --max-steps 1 --output-dir {out} {more}"));
    // These are the defaults.
    sandbox.run(&begin("old", "--lora-alpha 32 --lora-dropout 0")).ok();
    for more in ["", "--overwrite-output-dir"] {
        let again = sandbox.run(&begin("old", more)).ok().stderr;
        assert!(
            again.contains("this run is finished") && again.contains("began without the terms of first"),
            "{again}"
        );
    }
    sandbox.run(&begin("other", "--lora-alpha 8")).ok();
    sandbox.refused(&begin("other", ""), &["holds a different run", "`lora_alpha` was 8 and is 6 now"]);
}

/// A base in another quantization gives one warning, also where it is computed with.
#[test]
fn a_check_tells_a_base_that_is_stored_otherwise_once() {
    let sandbox = Sandbox::new();
    sandbox.train_into("out", "--max-steps 1").ok();
    sandbox.run("quantize --model model --output nf4 --double-quant false").ok();
    for more in ["", "--logits --allow-other-base"] {
        let said = sandbox.run(&format!("check out --model nf4 {more}")).stderr;
        assert_eq!(said.matches("this base is quantized as nf4, block 64: ").count(), 1, "{more}: {said}");
    }
}

/// The base, the template and the form of rows are the adapter's, as those of `generate` and `eval` are.
#[test]
fn a_preview_is_of_the_adapters_rows() {
    let sandbox = Sandbox::chat();
    sandbox.write("template.jinja", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}");
    sandbox.write("pairs.jsonl", r#"{"prompt": "q", "completion": "a"}"#);
    sandbox.train_into("out", "--max-steps 1 --data chat.jsonl --chat-template template.jinja").ok();
    sandbox.train_into("text", "--max-steps 1 --data pairs.jsonl --prompt-completion text").ok();
    let preview = |line: &str| sandbox.run(&format!("preview --json {line}")).ok().json();
    let chosen = preview("--model model --data chat.jsonl --chat-template template.jinja");
    for line in ["--adapter out", "--adapter mine=out", "--model out", "--model model --adapter out"] {
        let found = preview(&format!("{line} --data chat.jsonl"));
        assert_eq!(found["rows"], chosen["rows"], "{line}");
        assert_eq!(found["chat_template"]["source"], sandbox.read("template.jinja"), "{line}");
    }
    let as_text = preview("--model model --data pairs.jsonl --prompt-completion text");
    assert_eq!(preview("--adapter text --data pairs.jsonl")["rows"], as_text["rows"]);
    sandbox.refused("preview --adapter nope --data chat.jsonl", &["nope: found no such directory", "adapter"]);
    sandbox.refused("preview --model model --adapter nope --data chat.jsonl", &["nope: found no such directory"]);
    // In the files of others the key has another meaning.
    sandbox.write(
        "axolotl.yaml",
        "base_model: model\nadapter: qlora\ndatasets:\n  - path: chat.jsonl\n    type: chat_template\n",
    );
    sandbox.run("preview axolotl.yaml").ok();
    sandbox.run("preview --model model --data chat.jsonl --adapter qlora").ok();
}
