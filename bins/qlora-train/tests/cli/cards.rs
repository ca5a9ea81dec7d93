//! The model card of a run: what it tells, and that the run can be repeated from it.

use crate::hub::UNSET;
use crate::loopback::{Loopback, sha256};
use crate::sandbox::{Sandbox, train};

/// The block of code that begins so.
#[track_caller]
fn block<'a>(card: &'a str, language: &str) -> &'a str {
    let begin = format!("```{language}\n");
    let (_, rest) = card.split_once(&begin).unwrap_or_else(|| panic!("no {language}: {card}"));
    rest.split_once("```").unwrap().0
}

#[track_caller]
fn assert_sums_hold(sandbox: &Sandbox, dir: &str) {
    let checked = std::process::Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(sandbox.path(dir))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn the_card_of_a_run_tells_what_came_of_it_and_repeats_it() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 4, 2);
    sandbox.write("model/README.md", "---\nlicense: llama3.1\n---\n# A base\n");
    let answer =
        sandbox.train("--val-data val.jsonl --eval-steps 4 --lora-dropout 0.1 --lora-r 3 --max-steps 9").json();
    let card = sandbox.read("out/README.md");
    let loss = |key: &str| format!("{:.4}", answer[key].as_f64().unwrap());
    for line in [
        "license: \"llama3.1\"".to_owned(),
        "| License of the base | llama3.1 |".to_owned(),
        "| Optimizer steps | 9 (".to_owned(),
        format!("| Training loss, mean of the run | {} |", loss("train_loss")),
        format!("| Validation loss | {} |", loss("eval_loss")),
        "| Lowest validation loss | ".to_owned(),
        "12 rows to train on, 4 for validation: ".to_owned(),
        format!("| a local file | {} |", sha256(&sandbox.bytes("rows.jsonl"))),
        format!("| a local file (validation) | {} |", sha256(&sandbox.bytes("val.jsonl"))),
        "(learning_curve.svg)".to_owned(),
    ] {
        assert!(card.contains(&line), "{line}: {card}");
    }
    // No name of a file of rows, and no place.
    let place = sandbox.path("").display().to_string();
    assert!(!card.contains(".jsonl") && !card.contains(place.trim_end_matches('/')), "{card}");
    let curve = sandbox.read("out/learning_curve.svg");
    assert!(curve.starts_with("<svg xmlns=") && curve.contains("validation</text>"), "{curve}");
    assert_eq!(curve.matches("<circle").count(), 3, "evaluations after steps 4 and 8, and at the end");
    assert_sums_hold(&sandbox, "out");
    // The settings, with the files in their places, train the same adapter.
    let settings = block(&card, "yaml").replace("path/to/base", "model").replace("path/to/rows", "rows.jsonl");
    sandbox.write("settings.yaml", &settings.replace("path/to/validation-rows", "val.jsonl"));
    sandbox.run("train settings.yaml --output-dir adapter --eval-steps 4 --allow all").ok();
    for file in ["adapter_model.safetensors", "adapter_config.json", "README.md", "learning_curve.svg"] {
        assert!(sandbox.bytes(&format!("adapter/{file}")) == sandbox.bytes(&format!("out/{file}")), "{file} differs");
    }
    assert!(card.contains("```sh\nqlora-train train settings.yaml --output-dir adapter\n```\n"), "{card}");
    // Card and curve may be edited or removed: the run still counts as finished.
    sandbox.write("out/README.md", "# Mine");
    std::fs::remove_file(sandbox.path("out/learning_curve.svg")).unwrap();
    sandbox.write("out/learning_curve.svg", "<svg/>");
    let line = "--val-data val.jsonl --eval-steps 4 --lora-dropout 0.1 --lora-r 3 --max-steps 9";
    assert!(sandbox.train(line).ok().stderr.contains("this run is finished"));
}

/// A processor with bf16 computes in bf16 by default, and a template that writes the date makes other tokens on another
/// day.
#[test]
fn arithmetic_and_date_of_a_run_are_told() {
    let sandbox = Sandbox::chat();
    let dated = "{{ strftime_now('%Y') }} {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                 {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    sandbox.write("model/chat_template.jinja", dated);
    sandbox.train("--data chat.jsonl --compute f32 --max-steps 2").ok();
    let card = sandbox.read("out/README.md");
    let clock = sandbox.json("out/run.json")["identity"]["clock"].as_str().unwrap().to_owned();
    let date = format!(" It computed in f32. The chat template writes the date, which was {} (UTC): on", &clock[..10]);
    assert!(card.contains(&date) && block(&card, "yaml").contains("\ncompute: \"f32\"\n"), "{card}");
    // Rows of token ids use no date; the tokenizer is still copied beside the adapter.
    sandbox.train_into("plain", "--compute f32 --max-steps 2 --quantization none").ok();
    let card = sandbox.read("plain/README.md");
    assert!(sandbox.path("plain/tokenizer.json").exists() && !card.contains("writes the date"), "{card}");
    assert!(card.contains("AutoTokenizer.from_pretrained(\"ADAPTER\")"), "{card}");
    assert!(card.contains("| Base weights in training | not quantized |"), "{card}");
    let settings = block(&card, "yaml").replace("path/to/base", "model").replace("path/to/rows", "rows.jsonl");
    sandbox.write("settings.yaml", &settings);
    sandbox.run("train settings.yaml --output-dir adapter --allow all").ok();
    for file in ["adapter_model.safetensors", "adapter_config.json", "README.md", "learning_curve.svg"] {
        assert!(sandbox.bytes(&format!("adapter/{file}")) == sandbox.bytes(&format!("plain/{file}")), "{file} differs");
    }
}

/// A checkpoint's adapter is made again by what its card says, and by a run that goes on from an earlier one.
#[test]
fn the_card_of_a_checkpoint_tells_what_had_come_of_the_run_and_repeats_it() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 4, 2);
    let line = "--val-data val.jsonl --eval-steps 2 --max-steps 5 --save-steps 2 --save-total-limit 0";
    sandbox.train(line).ok();
    let card = sandbox.read("out/checkpoint-4/README.md");
    for line in [
        "# LoRA adapter: checkpoint after step 4 of 5\n",
        "| Base fingerprint | ",
        "| Optimizer steps | 4 of 5 (",
        " at step 4 |\n| Training loss, mean of the run | ",
        "| Validation loss | ",
        "| Lowest validation loss | ",
        "PeftModel.from_pretrained(",
        "\nThe adapter is then in `adapter/checkpoint-4`.\n",
    ] {
        assert!(card.contains(line), "{line}: {card}");
    }
    assert_sums_hold(&sandbox, "out/checkpoint-4");
    let settings = block(&card, "yaml").replace("path/to/base", "model").replace("path/to/rows", "rows.jsonl");
    sandbox.write("settings.yaml", &settings.replace("path/to/validation-rows", "val.jsonl"));
    let command = card.lines().find_map(|line| line.strip_prefix("qlora-train train settings.yaml")).unwrap();
    sandbox.run(&format!("train settings.yaml{command} --eval-steps 2 --allow all")).ok();
    sandbox.train_into("again", &format!("{line} --resume-from-checkpoint out/checkpoint-2")).ok();
    for (dir, file) in [
        ("adapter", "adapter_model.safetensors"),
        ("adapter", "adapter_config.json"),
        ("adapter", "README.md"),
        ("again", "README.md"),
    ] {
        let [expected, found] = ["out", dir].map(|dir| sandbox.bytes(&format!("{dir}/checkpoint-4/{file}")));
        assert!(found == expected, "{dir}/{file} differs");
    }
}

/// Its chat template may be another than the base's, and a checkpoint may be pushed too.
#[test]
fn the_card_of_a_checkpoint_names_the_tokenizer_beside_it() {
    let sandbox = Sandbox::chat();
    sandbox.train("--data chat.jsonl --max-steps 2 --save-steps 1 --save-total-limit 0").ok();
    let card = sandbox.read("out/checkpoint-1/README.md");
    assert!(sandbox.path("out/checkpoint-1/tokenizer.json").exists());
    assert!(card.contains("AutoTokenizer.from_pretrained(\"ADAPTER\")"), "{card}");
}

#[test]
fn a_card_or_a_picture_of_somebody_else_stays() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("out")).unwrap();
    sandbox.write("out/README.md", "# Mine");
    let done = sandbox.train("").ok();
    assert_eq!(done.stderr.matches("README.md: not replaced").count(), 1, "{}", done.stderr);
    assert_eq!(sandbox.read("out/README.md"), "# Mine");
    assert!(!sandbox.path("out/learning_curve.svg").exists());
    assert_sums_hold(&sandbox, "out");
    std::fs::create_dir(sandbox.path("drawn")).unwrap();
    sandbox.write("drawn/learning_curve.svg", "<svg>mine</svg>");
    sandbox.train_into("drawn", "").ok();
    assert_eq!(sandbox.read("drawn/learning_curve.svg"), "<svg>mine</svg>");
    assert!(!sandbox.read("drawn/README.md").contains("learning_curve.svg"));
    assert_sums_hold(&sandbox, "drawn");
}

#[test]
fn models_and_data_sets_of_the_hub_are_named_with_their_commits() {
    let sandbox = Sandbox::new();
    let hub = Loopback::new();
    let card: [(&str, &[u8]); 1] = [("README.md", b"---\nlicense: apache-2.0\n---\n# tiny\n")];
    let base = hub.add_dir("models/org/tiny", &sandbox.path("model"), &card);
    let rows = sandbox.bytes("rows.jsonl");
    let files: [(&str, &[u8]); 1] = [("data/train.jsonl", &rows)];
    let data = hub.add("datasets/org/rows", "main", &files);
    let home = sandbox.path("home").display().to_string();
    let mut variables: Vec<(&str, &str)> = UNSET.map(|name| (name, "")).into();
    variables.extend([("HF_ENDPOINT", hub.address.as_str()), ("HF_HOME", home.as_str()), ("HOME", home.as_str())]);
    let line = train("--model org/tiny --data org/rows:train --max-steps 2");
    sandbox.run_with(&line, &variables).ok();
    // The card of the base stayed on the hub, which says what it has.
    assert!(hub.asked("README.md").is_empty());
    let card = sandbox.read("out/README.md");
    for line in [
        "base_model: org/tiny\ndatasets:\n- org/rows\nlibrary_name: peft\nlicense: \"apache-2.0\"\n".to_owned(),
        format!("| Base revision | {base} |"),
        format!("| org/rows at {data}, data/train.jsonl | {} |", sha256(&rows)),
        format!("vllm serve org/tiny --revision {base} --enable-lora --lora-modules adapter=ADAPTER"),
    ] {
        assert!(card.contains(&line), "{line}: {card}");
    }
    sandbox.write("settings.yaml", block(&card, "yaml"));
    sandbox.run_with("train settings.yaml --output-dir again --allow all", &variables).ok();
    for file in ["adapter_model.safetensors", "README.md"] {
        assert!(sandbox.bytes(&format!("again/{file}")) == sandbox.bytes(&format!("out/{file}")), "{file} differs");
    }
    // Offline the license is the one that was kept.
    variables.push(("HF_HUB_OFFLINE", "1"));
    let line = train("--model org/tiny --data org/rows:train --max-steps 2 --output-dir offline");
    sandbox.run_with(&line, &variables).ok();
    assert!(sandbox.bytes("offline/README.md") == sandbox.bytes("out/README.md"));
}
