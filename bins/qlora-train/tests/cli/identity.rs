//! A run is the same one only if everything that changes its rows and tokens is the same; a refusal names what is not.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, train};

/// Writes the day, as the templates of Llama 3.1 do.
const DATED: &str = "{{ 'Today: ' + strftime_now('%d %b %Y %H:%M:%S') }}{% for m in messages %}<|im_start|>{{ m.role }}\n\
                     {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn stopped(sandbox: &Sandbox, line: &str) {
    let done = sandbox.run_at_fault(line, "step:3");
    assert_eq!(done.status, None, "{done:#?}");
}

#[test]
fn a_template_that_writes_the_date_writes_that_of_the_runs_start() {
    let sandbox = Sandbox::chat();
    sandbox.write("model/chat_template.jinja", DATED);
    let line = |out: &str| train(&format!("--data chat.jsonl --save-steps 2 --output-dir {out}"));
    stopped(&sandbox, &line("cut"));
    let clock = sandbox.json("cut/run.json")["identity"]["clock"].as_str().unwrap().to_owned();
    assert!(clock.ends_with('Z'), "{clock}");
    // Seconds are in the text: whatever is rendered again later differs, unless the clock is that of the start.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    sandbox.run(&format!("{} --resume-from-checkpoint", line("cut"))).ok();
    // The whole run at the time of the cut one: from its checkpoint's record.
    assert_eq!(sandbox.json("cut/run.json")["identity"]["clock"], clock.as_str());
    let again = sandbox.run(&line("cut")).ok();
    assert!(again.stderr.contains("this run is finished"), "{}", again.stderr);
    std::fs::remove_file(sandbox.path("cut/adapter_config.json")).unwrap();
    let adapter = sandbox.bytes("cut/adapter_model.safetensors");
    for step in [2, 4, 6] {
        if sandbox.path(&format!("cut/checkpoint-{step}")).exists() {
            std::fs::remove_dir_all(sandbox.path(&format!("cut/checkpoint-{step}"))).unwrap();
        }
    }
    // From the first step: the run that was never cut.
    sandbox.run(&line("cut")).ok();
    assert!(sandbox.bytes("cut/adapter_model.safetensors") == adapter);
    // Another run has a clock of its own; a template without a date has none.
    sandbox.run(&line("later")).ok();
    assert_ne!(sandbox.json("later/run.json")["identity"]["clock"], clock.as_str());
    let before = sandbox.json("later/run.json")["identity"]["clock"].clone();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    sandbox.run(&format!("{} --max-steps 4 --overwrite-output-dir", line("later").replace("--max-steps 6", ""))).ok();
    assert_ne!(sandbox.json("later/run.json")["identity"]["clock"], before, "a run that overwrites has its own");
    sandbox.run(&format!("{} --chat-template chatml", line("plain"))).ok();
    assert_eq!(sandbox.json("plain/run.json")["identity"]["clock"], Value::Null);
}

/// The time zone of a machine changes no row.
#[test]
fn the_time_zone_changes_nothing() {
    let sandbox = Sandbox::chat();
    sandbox.write("model/chat_template.jinja", &DATED.replace("%d %b %Y %H:%M:%S", "%d %b %Y"));
    let line = |out: &str| train(&format!("--data chat.jsonl --output-dir {out}"));
    for zone in ["Pacific/Kiritimati", "Pacific/Pago_Pago", "UTC"] {
        let out = zone.replace('/', "-");
        assert!(sandbox.command(&line(&out)).env("TZ", zone).output().unwrap().status.success());
    }
    let adapter = |out: &str| sandbox.bytes(&format!("{out}/adapter_model.safetensors"));
    assert!(adapter("Pacific-Kiritimati") == adapter("Pacific-Pago_Pago"));
    assert!(adapter("UTC") == adapter("Pacific-Pago_Pago"));
}

/// A file of the model, changed after the run was stopped.
#[test]
fn every_file_that_changes_a_token_is_named() {
    let sandbox = Sandbox::chat();
    let rows: Vec<String> =
        (0..6).map(|i| json!({"prompt": format!("hello {i}"), "completion": "world"}).to_string()).collect();
    sandbox.write("plain.jsonl", &rows.join("\n"));
    let line = train("--data plain.jsonl --save-steps 2");
    stopped(&sandbox, &line);
    let resumed = format!("{line} --resume-from-checkpoint");
    let config = sandbox.json("model/tokenizer_config.json");
    let tokenizer = sandbox.json("model/tokenizer.json");
    let special: Vec<String> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["content"].as_str().unwrap().to_owned())
        .collect();
    let eos = config["eos_token"]["content"].as_str().unwrap().to_owned();
    let other = special.iter().find(|token| **token != eos).unwrap();
    let with = |key: &str, value: Value| {
        let mut changed = config.clone();
        changed[key] = value;
        changed.to_string()
    };
    let write = |name: &str, text: &str| sandbox.write(&format!("model/{name}"), text);
    let refused = |words: &[&str]| {
        sandbox.refused(&resumed, &[&["out: holds a different run: "], words].concat());
        sandbox.refused(&line, &["out: holds a different run: "]);
    };

    write("tokenizer_config.json", &with("eos_token", other.as_str().into()));
    refused(&[
        "`eos_token` of the model's tokenizer_config.json or special_tokens_map.json was",
        &format!("{other:?} now"),
    ]);
    write("tokenizer_config.json", &with("unk_token", other.as_str().into()));
    refused(&["`unk_token` of the model's tokenizer_config.json or special_tokens_map.json was nothing"]);
    write("tokenizer_config.json", &config.to_string());
    write("special_tokens_map.json", &json!({"eos_token": other}).to_string());
    refused(&["`eos_token`"]);
    std::fs::remove_file(sandbox.path("model/special_tokens_map.json")).unwrap();
    let mut changed = tokenizer.clone();
    changed["added_tokens"][0]["lstrip"] = (!changed["added_tokens"][0]["lstrip"].as_bool().unwrap()).into();
    write("tokenizer.json", &changed.to_string());
    refused(&["the model's tokenizer.json changed"]);
    write("tokenizer.json", &tokenizer.to_string());
    sandbox.run(&resumed).ok();
}

/// Keys of tokenizer_config.json that change no row do not stand in the way.
#[test]
fn what_changes_no_token_is_no_other_run() {
    let sandbox = Sandbox::chat();
    let line = train("--data chat.jsonl --save-steps 2");
    stopped(&sandbox, &line);
    let mut config = sandbox.json("model/tokenizer_config.json");
    config["model_max_length"] = 77.into();
    sandbox.write("model/tokenizer_config.json", &config.to_string());
    sandbox.run(&format!("{line} --resume-from-checkpoint")).ok();
}

/// By its contents, not by its path.
#[test]
fn the_adapter_that_a_run_begins_with_belongs_to_it() {
    let sandbox = Sandbox::new();
    sandbox.train_into("first", "--max-steps 2").ok();
    sandbox.train_into("other", "--max-steps 2 --seed 7").ok();
    let line = |from: &str| train(&format!("--init-adapter {from}"));
    sandbox.run(&line("first")).ok();
    std::fs::rename(sandbox.path("first"), sandbox.path("moved")).unwrap();
    let again = sandbox.run(&line("moved")).ok();
    assert!(again.stderr.contains("this run is finished"), "{}", again.stderr);
    sandbox.refused(&line("other"), &["out: holds a different run: the contents of `init_adapter` changed"]);
    sandbox.refused(&train(""), &["out: holds a different run", "the contents of `init_adapter` changed"]);
}

/// Two rows of one data set that differ in a label only are two runs, whatever their order.
#[test]
fn the_tokens_are_part_of_the_run() {
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    let hash = |sandbox: &Sandbox| sandbox.json("out/run.json")["identity"]["tokens"].as_str().unwrap().to_owned();
    let first = hash(&sandbox);
    assert_eq!(first.len(), 64);
    // A record of other tokens from the same files: a version that made others of them.
    let mut run = sandbox.json("out/run.json");
    run["identity"]["tokens"] = "0".repeat(64).into();
    sandbox.write("out/run.json", &run.to_string());
    sandbox.refused(&train(""), &["the tokens that this version of the program makes of the same rows", "changed"]);
}
