//! Going on: from an adapter, and with more steps than a finished run had.

use super::sandbox::{Sandbox, train};

#[test]
fn a_finished_run_goes_on_for_more_steps_and_says_its_schedule() {
    let sandbox = Sandbox::new();
    sandbox.train_into("out", "--max-steps 3 --save-steps 1").ok();
    let longer = sandbox.train_into("out", "--max-steps 5 --save-steps 1 --resume-from-checkpoint").ok();
    assert!(longer.stderr.contains("5 steps instead of 3"), "{longer:#?}");
    let steps: Vec<u64> = sandbox.lines("out/metrics.jsonl").iter().filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5]);
    assert_eq!(sandbox.json("out/run.json")["finished"]["steps"], 5);
    // Not shorter, and not without being asked to.
    sandbox
        .train_into("out", "--max-steps 4 --resume-from-checkpoint")
        .ended(2, &["5 steps", "ends after 4", "not shorter"]);
    sandbox.train_into("out", "--max-steps 6").ended(2, &["`max_steps` was 5 and is 6 now"]);
    // Another change is another run.
    sandbox
        .train_into("out", "--max-steps 6 --learning-rate 0.5 --resume-from-checkpoint")
        .ended(2, &["holds a different run", "`learning_rate`"]);
}

#[test]
fn a_new_run_begins_with_an_adapter() {
    let sandbox = Sandbox::new();
    sandbox.train_into("first", "--max-steps 4").ok();
    let before = sandbox.eval("--data rows.jsonl --adapter first");
    for (name, from) in [("one", "--init-adapter first"), ("two", "--lora-model-dir first"), ("three", "--model first")]
    {
        let done = sandbox.train_into(name, &format!("--max-steps 1 --learning-rate 1e-9 {from}")).ok();
        assert!(done.stderr.contains("begins with"), "{done:#?}");
        let after = sandbox.eval(&format!("--data rows.jsonl --adapter {name}"));
        assert!((after - before).abs() < 1e-3, "{name}: {after}, was {before}");
    }
    // Its record names the base.
    let end = "--data rows.jsonl --max-length 64 --max-steps 1 --lora-r 4 --output-dir five";
    let done = sandbox.run(&format!("train --init-adapter first {end}")).ok();
    assert!(done.stderr.contains("model: model, the base of first"), "{done:#?}");
    let end = "--data rows.jsonl --max-steps 1 --output-dir six";
    sandbox.run(&format!("train --init-adapter nothing {end}")).ended(2, &["nothing"]);
    // Two adapters to begin with, of which one would not be used.
    let two = format!("train --model first --init-adapter one {end}");
    sandbox.run(&two).ended(2, &["first", "`init_adapter` is one", "give one of them"]);
    sandbox
        .train_into("four", "--max-steps 1 --lora-r 3 --init-adapter first")
        .ended(2, &["`init_adapter`", "rank", "lora_r"]);
    // A plan refuses what a run would.
    let plan = "plan --data rows.jsonl --max-length 64";
    sandbox.run(&format!("{plan} --lora-r 4 --model first")).ok();
    sandbox.refused(&format!("{plan} --lora-r 3 --model first"), &["`init_adapter`", "rank", "lora_r"]);
    sandbox.refused(&format!("{plan} --model model --init-adapter nothing"), &["`init_adapter`", "nothing"]);
    for gpu in ["24GB", "a100-60gb"] {
        sandbox.refused(&format!("{plan} --model model --gpu {gpu}"), &[gpu, "--device-memory"]);
    }
}

/// The written adapter is folded: a run with rsLoRA can still begin with it, and computes the same.
#[test]
fn a_new_run_begins_with_an_adapter_of_another_scale() {
    let sandbox = Sandbox::new();
    for (first, rank, second, rescaled) in [
        // Alpha is folded if the rank is a square.
        ("--use-rslora", 4, "--use-rslora", false),
        ("--use-rslora", 3, "--use-rslora", true),
        ("--use-rslora", 3, "--lora-alpha 5", true),
        ("--lora-alpha 8", 4, "--use-rslora --lora-alpha 3", true),
    ] {
        let line = format!("{first} {second} {rank}");
        let overwrite = format!("--overwrite-output-dir --lora-r {rank}");
        sandbox.train_into("first", &format!("--max-steps 4 {first} {overwrite}")).ok();
        let before = sandbox.eval("--data rows.jsonl --adapter first");
        let again = format!("--max-steps 1 --learning-rate 1e-9 --init-adapter first {second} {overwrite}");
        let done = sandbox.train_into("second", &again).ok();
        assert_eq!(done.stderr.contains("its B is multiplied"), rescaled, "{line}: {done:#?}");
        let after = sandbox.eval("--data rows.jsonl --adapter second");
        assert!((after - before).abs() < 1e-3, "{line}: {after}, was {before}");
    }
}

/// The contents of the adapter that a run begins with are part of what the run is, not its path.
#[test]
fn a_run_is_told_apart_by_the_adapter_that_it_began_with() {
    let sandbox = Sandbox::new();
    sandbox.train_into("first", "--max-steps 2").ok();
    sandbox.train_into("other", "--max-steps 2 --seed 7").ok();
    sandbox.train("--init-adapter first").ok();
    std::fs::rename(sandbox.path("first"), sandbox.path("moved")).unwrap();
    let again = sandbox.train("--init-adapter moved").ok();
    assert!(again.stderr.contains("this run is finished"), "{again:#?}");
    sandbox.refused(&train("--init-adapter other"), &["out: holds a different run", "contents of `init_adapter`"]);
    sandbox.refused(&train(""), &["out: holds a different run", "contents of `init_adapter`"]);
    sandbox.refused(&train("--init-adapter first"), &["`init_adapter`: first", "no such directory"]);
}

#[test]
fn an_adapter_stands_for_itself_on_its_base() {
    let sandbox = Sandbox::new();
    sandbox.train_into("first", "--max-steps 2").ok();
    let loss = sandbox.eval("--data rows.jsonl --adapter first");
    for line in ["eval --json --data rows.jsonl --adapter first", "eval --json --data rows.jsonl --model first"] {
        assert_eq!(sandbox.run(line).json()["loss"].as_f64(), Some(loss), "{line}");
    }
    for line in ["plan --model first --lora-r 4", "preview --model first --data rows.jsonl"] {
        let done = sandbox.run(line).ok();
        assert!(done.stderr.contains("first is an adapter") && done.stderr.contains("on its base model"), "{done:#?}");
    }
    let text = sandbox.run("plan --model model").ok().stdout;
    assert!(text.contains("longest row that fits: 256 tokens, all positions of the model"), "{text}");
}

#[test]
fn overwriting_removes_another_run_and_nothing_else() {
    let sandbox = Sandbox::new();
    sandbox.train_into("out", "--max-steps 2 --save-steps 1").ok();
    sandbox.write("out/notes.txt", "mine");
    let done = sandbox.train_into("out", "--max-steps 1 --learning-rate 0.01 --overwrite-output-dir").ok();
    assert!(done.stderr.contains("is removed (overwrite_output_dir)"), "{done:#?}");
    assert_eq!(sandbox.read("out/notes.txt"), "mine");
    assert_eq!(sandbox.json("out/run.json")["finished"]["steps"], 1);
    assert!(!sandbox.names("out").iter().any(|name| name == "checkpoint-2"));
    // A refused run removes nothing, at whatever stage.
    let before = sandbox.files();
    for refused in ["--host-memory 1MiB", "--init-adapter first", "--lora-r 4096"] {
        let line = format!("--max-steps 2 --overwrite-output-dir {refused}");
        assert_eq!(sandbox.train_into("out", &line).status, Some(2), "{refused}");
        assert!(sandbox.files() == before, "{refused}: something was removed or written");
    }
    // A model is no run.
    sandbox.train("--output-dir model --overwrite-output-dir").ended(2, &["found config.json without run.json"]);
}

/// A finished run without a checkpoint is not begun anew in its own place; what to do instead is named.
#[test]
fn a_finished_run_without_a_checkpoint_keeps_its_adapter() {
    let sandbox = Sandbox::new();
    sandbox.train_into("out", "--max-steps 2").ok();
    let before = sandbox.files();
    for more in
        ["--max-steps 5 --resume-from-checkpoint", "--max-steps 5", "--max-steps 5 --resume-from-checkpoint latest"]
    {
        sandbox.train_into("out", more).ended(2, &["out", "`--init-adapter out`"]);
        assert!(sandbox.files() == before, "{more}: something was removed or written");
    }
    sandbox.train_into("more", "--max-steps 1 --init-adapter out").ok();
}

/// An adapter goes on with the chat template and the form of rows that it was trained with; what is chosen wins.
#[test]
fn a_run_that_begins_with_an_adapter_uses_its_template_and_form() {
    let sandbox = Sandbox::chat();
    sandbox.write("template.jinja", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}");
    let turns = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    sandbox.write("turns.jsonl", turns);
    let run = "--max-steps 1 --data turns.jsonl";
    sandbox.train_into("first", &format!("{run} --chat-template template.jinja")).ok();
    let hash = |out: &str| sandbox.json(&format!("{out}/run.json"))["identity"]["chat_template"].clone();
    for (out, from) in [("two", "--init-adapter first"), ("three", "--model first")] {
        let done = sandbox.train_into(out, &format!("{run} {from}")).ok();
        assert!(done.stderr.contains("chat template: first/chat_template.jinja"), "{done:#?}");
        assert_eq!(hash(out), hash("first"), "{from}");
        assert_eq!(sandbox.read(&format!("{out}/chat_template.jinja")), sandbox.read("template.jinja"));
    }
    let preview = sandbox.run("preview --model first --data turns.jsonl --json").ok().json();
    assert_eq!(preview["chat_template"]["source"], sandbox.read("template.jinja"));
    let chosen = sandbox.train_into("four", &format!("{run} --init-adapter first --chat-template chatml")).ok();
    assert!(chosen.stderr.contains("first: was trained with another chat template"), "{chosen:#?}");
    assert_ne!(hash("four"), hash("first"));

    // The file beside the adapter is the one that is used, also where it was changed: that is said, under -q too.
    let edited = sandbox.read("template.jinja").replacen('[', "<", 1);
    sandbox.write("first/chat_template.jinja", &edited);
    let done = sandbox.run("preview --model first --data turns.jsonl --json -q").ok();
    let words =
        ["warning: first/chat_template.jinja: is not the chat template", "was changed since", "used as it is now"];
    assert!(words.iter().all(|word| done.stderr.contains(word)), "{done:#?}");
    assert_eq!(done.json()["chat_template"]["source"], edited);

    sandbox.write("pairs.jsonl", r#"{"prompt": "q", "completion": "a"}"#);
    let run = "--max-steps 1 --data pairs.jsonl";
    sandbox.train_into("text", &format!("{run} --prompt-completion text")).ok();
    let ids = |line: &str| {
        let done = sandbox.run(&format!("preview --data pairs.jsonl --json {line}")).ok();
        let said = done.stderr.clone();
        (done.json()["rows"][0]["input_ids"].clone(), said)
    };
    let (of_text, _) = ids("--model model --prompt-completion text");
    for from in ["--model text", "--model model --init-adapter text"] {
        let (found, said) = ids(from);
        assert_eq!(found, of_text, "{from}");
        assert!(said.contains("prompt_completion: text, as text was trained"), "{said}");
    }
    let (found, said) = ids("--model text --prompt-completion chat");
    assert_ne!(found, of_text);
    assert!(said.contains("was trained with `prompt_completion: text`"), "{said}");
}

/// Commands that only save the template of an adapter, or name it, warn like those that ask by it, and once.
#[test]
fn a_chat_template_that_is_not_the_one_of_the_training_is_told_by_every_command() {
    let sandbox = Sandbox::chat();
    sandbox.train_into("out", "--data chat.jsonl").ok();
    let on_base = |to: &str| {
        [
            format!("merge --model model --adapter out --output-dir {to}-alone"),
            format!("merge --model model --adapter out --output-dir {to}-turns --data chat.jsonl"),
            format!("merge --model model --adapter out --output-dir {to}-ids --data rows.jsonl"),
            format!("export gguf --model model --adapter out --output-dir {to}-gguf --lora"),
            "check out --model model".to_owned(),
            "preview --model out --data chat.jsonl".to_owned(),
        ]
    };
    let warned = |line: &str, words: &[&str]| {
        let said = sandbox.run(line).ok().stderr;
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| {
                line.contains("the chat template that this adapter was") || line.contains("another chat template")
            })
            .collect();
        assert_eq!(lines.len(), usize::from(!words.is_empty()), "{line}: {said}");
        assert!(words.iter().all(|word| lines[0].contains(word)), "{line}: {said}");
    };
    on_base("same").iter().for_each(|line| warned(line, &[]));
    warned("export uniform --adapter out --output-dir same", &[]);

    let own = sandbox.read("model/tokenizer_config.json");
    let edited = own.replacen("{% for", "{# edited #}{% for", 1);
    assert_ne!(own, edited);
    sandbox.write("out/tokenizer_config.json", &edited);
    let changed = ["warning: out/tokenizer_config.json: chat_template: is not the chat template", "changed since"];
    on_base("edited").iter().for_each(|line| warned(line, &[changed[0], changed[1], "that of the model is used"]));
    let back = [changed[0], changed[1], "put the one of the training back there"];
    warned("export uniform --adapter out --output-dir edited", &back);

    // Without one beside the adapter, that of the model counts.
    for name in ["tokenizer_config.json", "tokenizer.json"] {
        std::fs::remove_file(sandbox.path("out").join(name)).unwrap();
    }
    on_base("moved").iter().for_each(|line| warned(line, &[]));
    sandbox.write("model/tokenizer_config.json", &edited);
    let other =
        ["warning: out: was trained with another chat template", "model/tokenizer_config.json", "does not hold it"];
    on_base("other").iter().for_each(|line| warned(line, &other));
    warned("export uniform --adapter out --output-dir other", &[]);
}

/// A path of the wrong kind is reported as what it is, in place of an adapter or a model.
#[test]
fn a_path_of_the_wrong_kind_is_told_by_what_it_is() {
    let sandbox = Sandbox::new();
    sandbox.train_into("out", "--max-steps 1").ok();
    for line in ["eval --data rows.jsonl --adapter nope", "merge --output-dir x --adapter nope"] {
        sandbox.refused(line, &["nope: found no such directory", "adapter"]);
    }
    sandbox.refused("eval --data rows.jsonl --adapter model", &["model: is a model, not an adapter", "--model"]);
    for line in ["quantize --model out --output-dir x", "merge --model out --adapter out --output-dir x"] {
        sandbox.refused(line, &["out: is an adapter", "expected a model"]);
    }
    std::fs::rename(sandbox.path("model"), sandbox.path("moved")).unwrap();
    sandbox.refused("eval --data rows.jsonl --adapter out", &["out: records the base \"model\"", "--model"]);
}
