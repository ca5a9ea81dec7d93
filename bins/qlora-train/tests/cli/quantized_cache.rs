//! A 16-bit base that is quantized once: a run is the same with and without, whatever becomes of what was kept.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use qlora_train::base::synthetic::{Synthetic, tiny_arch};

use crate::child::{end, paused, stopped, wait_for};
use crate::launched;
use crate::sandbox::{Sandbox, keys, train};

const CACHE: &str = "--quantized-cache kept";
/// Words of a start that quantizes, of one that takes what is there, of one that reads all weights to tell which those
/// are, and of one that finds damage.
const KEPT: &str = "the base in NF4 for the next start";
const TAKEN: &str = "the base in NF4 as an earlier start kept it";
const READ: &str = "are read to tell whether";
const ANEW: &str = "it is made anew";

/// Directories of models that are kept.
fn entries(sandbox: &Sandbox) -> Vec<String> {
    let is_dir = |name: &String| sandbox.path(&format!("kept/{name}")).is_dir();
    sandbox.names("kept").into_iter().filter(is_dir).collect()
}

/// The only one.
#[track_caller]
fn entry(sandbox: &Sandbox) -> String {
    let entries = entries(sandbox);
    assert_eq!(entries.len(), 1, "{entries:?}");
    format!("kept/{}", entries[0])
}

#[track_caller]
fn assert_said(stderr: &str, expected: [bool; 2]) {
    assert_eq!([KEPT, TAKEN].map(|words| stderr.contains(words)), expected, "{stderr}");
}

#[test]
fn a_run_is_the_same_with_and_without_and_what_is_kept_is_what_quantize_writes() {
    let sandbox = Sandbox::chat();
    for (at, (quantize, settings, ending)) in [
        ("", "--data chat.jsonl --val-set-size 1 --eval-steps 3", "-nf4-64-double"),
        ("--no-double-quant --nf4-block-size 128", "--double-quant false --nf4-block-size 128", "-nf4-128"),
    ]
    .into_iter()
    .enumerate()
    {
        let [nf4, plain, first, second] = ["nf4", "plain", "first", "second"].map(|name| format!("{name}{at}"));
        let quantized = sandbox.run(&format!("quantize --json --model model --output {nf4} {quantize}")).json();
        let plan = |settings: &str| {
            let line = format!("plan --json --model model --max-length 64 --lora-r 4 {CACHE} {settings}");
            sandbox.run(&line).json()["quantized_cache"].clone()
        };
        // The cache takes the memory and the disk that a plan says.
        let planned = plan(settings);
        let all = ["path", "bytes", "original_bytes", "is_there", "needed_bytes", "free_bytes"];
        assert_eq!((keys(&planned), &planned["path"]), (all.to_vec(), &"kept".into()));
        assert_eq!(planned["bytes"], quantized["bytes"]);
        assert_eq!(planned["original_bytes"], quantized["original_bytes"]);
        assert_ne!(planned["is_there"], true);
        sandbox.train_into(&plain, settings).ok();
        let made = sandbox.train_into(&first, &format!("{settings} {CACHE}")).ok();
        assert_said(&made.stderr, [true, false]);
        let taken = sandbox.train_into(&second, &format!("{settings} {CACHE}")).ok();
        assert_said(&taken.stderr, [false, true]);
        for out in [&first, &second] {
            sandbox.assert_same_result(&plain, out);
            let of = |out: &str| {
                let run = sandbox.json(&format!("{out}/run.json"));
                [run["identity"].clone(), run["base"].clone()]
            };
            assert_eq!(of(out), of(&plain));
        }
        let kept = entries(&sandbox).into_iter().find(|name| name.ends_with(ending)).unwrap();
        let fingerprint = quantized["base"]["fingerprint"].as_str().unwrap();
        assert_eq!(kept, format!("{}{ending}", &fingerprint[..32]));
        assert_eq!(sandbox.names(&format!("kept/{kept}")), sandbox.names(&nf4));
        let mut bytes = 0;
        for name in sandbox.names(&nf4) {
            let file = sandbox.bytes(&format!("kept/{kept}/{name}"));
            assert!(file == sandbox.bytes(&format!("{nf4}/{name}")), "{name}");
            bytes += file.len() as u64;
        }
        assert!((bytes..bytes + 200_000).contains(&planned["needed_bytes"].as_u64().unwrap()), "{bytes} {planned}");
        assert_ne!(plan(settings)["is_there"], false);
    }
    assert_eq!(entries(&sandbox).len(), 2);
}

#[test]
fn a_run_goes_on_with_what_is_kept_and_without_it() {
    let sandbox = Sandbox::new();
    let line = "--save-steps 1 --gradient-accumulation-steps 2 --resume-from-checkpoint true";
    sandbox.train_into("whole", line).ok();
    for (at, (first, second)) in [("", CACHE), (CACHE, ""), (CACHE, CACHE)].into_iter().enumerate() {
        let out = format!("out{at}");
        let killed = train(&format!("{line} --output-dir {out} {first}"));
        assert_eq!(sandbox.run_at_fault(&killed, "checkpoint-in-place:3").status, None);
        let resumed = sandbox.train_into(&out, &format!("{line} {second}")).ok();
        assert!(resumed.stderr.contains("resuming after step"), "{}", resumed.stderr);
        sandbox.assert_same_result("whole", &out);
    }
    // A finished run is told of as it is without.
    let again = sandbox.train_into("whole", &format!("{line} {CACHE}")).ok();
    assert!(again.stderr.contains("this run is finished"), "{}", again.stderr);
}

#[test]
fn what_is_kept_may_stay_on_disk() {
    let sandbox = Sandbox::chat();
    let line = "--max-steps 3 --device cpu";
    sandbox.train_into("plain", line).ok();
    for weights in ["disk", "resident"] {
        let more = format!("{line} {CACHE} --weights {weights}");
        let plan =
            sandbox.run(&format!("plan --json --model model --data rows.jsonl --max-length 64 --lora-r 4 {more}"));
        let plan = plan.json();
        assert_eq!(plan["weights"], weights);
        let beside = |name: &str| name.starts_with("rows, tokenizer") || name.starts_with("saving");
        let buffers = plan["buffers"].as_array().unwrap();
        let own = buffers.iter().filter(|buffer| !beside(buffer["name"].as_str().unwrap()));
        let planned: u64 = own.map(|buffer| buffer["bytes"].as_u64().unwrap()).sum();
        let out = format!("out-{weights}");
        let done = sandbox.train_into(&out, &more);
        assert_eq!(done.stderr.contains("the base weights stay on disk"), weights == "disk", "{}", done.stderr);
        assert_eq!(done.json()["peak_bytes"], planned, "{weights}");
        sandbox.assert_same_result("plain", &out);
    }
    let kept = entry(&sandbox);
    fs::remove_dir_all(sandbox.path(&kept)).unwrap();
    for command in ["eval --data rows.jsonl", "generate --prompt hello --max-new-tokens 4"] {
        let of = |more: &str| sandbox.run(&format!("{command} --json --model model --adapter plain {more}")).ok();
        let plain = of("");
        for more in [CACHE.to_owned(), format!("{CACHE} --weights disk")] {
            let done = of(&more);
            assert!(done.stderr.contains(KEPT) || done.stderr.contains(TAKEN), "{}", done.stderr);
            assert_eq!(done.stdout, plain.stdout, "{command} {more}");
        }
    }
    assert_eq!(entry(&sandbox), kept);
}

#[test]
fn damage_is_told_and_made_anew_and_never_trained_on() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", "").ok();
    sandbox.train_into("out", CACHE).ok();
    let kept = entry(&sandbox);
    let weights = format!("{kept}/model.safetensors");
    let whole = sandbox.bytes(&weights);
    // Another model, quantized alike.
    Synthetic::new(tiny_arch(), 2).write(&sandbox.path("other")).unwrap();
    sandbox.run("quantize --model other --output other-nf4").ok();
    let damage: [(&str, &dyn Fn()); 6] = [
        ("no weights", &|| fs::remove_file(sandbox.path(&weights)).unwrap()),
        ("no config.json", &|| fs::remove_file(sandbox.path(&format!("{kept}/config.json"))).unwrap()),
        ("nothing", &|| {
            fs::remove_dir_all(sandbox.path(&kept)).unwrap();
            fs::create_dir(sandbox.path(&kept)).unwrap();
        }),
        ("half of the weights", &|| fs::write(sandbox.path(&weights), &whole[..whole.len() / 2]).unwrap()),
        ("another model", &|| {
            fs::copy(sandbox.path("other-nf4/model.safetensors"), sandbox.path(&weights)).map(drop).unwrap();
        }),
        ("the original", &|| {
            for name in ["config.json", "model.safetensors"] {
                fs::copy(sandbox.path(&format!("model/{name}")), sandbox.path(&format!("{kept}/{name}"))).unwrap();
            }
        }),
    ];
    for (at, (what, damage)) in damage.into_iter().enumerate() {
        damage();
        let out = format!("out{at}");
        let done = sandbox.train_into(&out, CACHE).ok();
        assert_eq!(done.stderr.matches(ANEW).count(), 1, "{what}: {}", done.stderr);
        assert!(done.stderr.contains(&format!("warning: {kept}: ")), "{what}: {}", done.stderr);
        assert_said(&done.stderr, [true, false]);
        sandbox.assert_same_result("whole", &out);
        assert!(sandbox.bytes(&weights) == whole, "{what}");
        assert_eq!(entry(&sandbox), kept);
    }
    // Other values are found once they are read.
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(sandbox.path(&weights), bytes).unwrap();
    let line = train(&format!("--output-dir late {CACHE}"));
    let words = [&kept[..], "changed after the model was quantized", "remove this directory"];
    sandbox.run(&line).ended(2, &words);
    sandbox.run(&format!("eval --model model --data rows.jsonl {CACHE}")).ended(2, &words);
    assert!(!sandbox.path("late").exists());
    fs::remove_dir_all(sandbox.path(&kept)).unwrap();
    sandbox.run(&line).ok();
    sandbox.assert_same_result("whole", "late");
    // Something that is no directory is nobody's to remove.
    fs::remove_dir_all(sandbox.path(&kept)).unwrap();
    sandbox.write(&kept, "mine");
    sandbox.run(&train(&format!("--output-dir nothing {CACHE}"))).ended(2, &[&kept, "not a directory", "move it away"]);
    assert_eq!(sandbox.read(&kept), "mine");
}

#[test]
fn another_original_gets_another_entry_and_the_same_under_another_name_does_not() {
    let sandbox = Sandbox::new();
    sandbox.train_into("first", CACHE).ok();
    let first = entry(&sandbox);
    fs::create_dir(sandbox.path("copy")).unwrap();
    for name in sandbox.names("model") {
        fs::copy(sandbox.path(&format!("model/{name}")), sandbox.path(&format!("copy/{name}"))).unwrap();
    }
    let done = sandbox.train_into("copied", &format!("--model copy {CACHE}")).ok();
    assert_said(&done.stderr, [false, true]);
    assert_eq!(sandbox.json("copied/adapter_config.json")["base_model_name_or_path"], "copy");
    // The header names the base.
    let values = |out: &str| {
        let bytes = sandbox.bytes(&format!("{out}/adapter_model.safetensors"));
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    assert!(values("copied") == values("first"));
    assert_eq!(entry(&sandbox), first);
    // Same size and same time of writing.
    let file = sandbox.path("model/model.safetensors");
    let written = file.metadata().unwrap().modified().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(written).unwrap();
    let done = sandbox.train_into("changed", CACHE).ok();
    assert_said(&done.stderr, [true, false]);
    assert_eq!(entries(&sandbox).len(), 2);
    sandbox.train_into("plain", "").ok();
    sandbox.assert_same_result("plain", "changed");
    // All files but the weights are the original's.
    let mut config = sandbox.json("model/config.json");
    config["rms_norm_eps"] = 1e-2.into();
    config["_name_or_path"] = "org/name".into();
    sandbox.write("model/config.json", &config.to_string());
    sandbox.train_into("plain-config", "").ok();
    assert_said(&sandbox.train_into("other-config", CACHE).ok().stderr, [false, true]);
    sandbox.assert_same_result("plain-config", "other-config");
    for out in ["plain-config", "other-config"] {
        assert_eq!(sandbox.json(&format!("{out}/adapter_config.json"))["base_model_name_or_path"], "model", "{out}");
    }
    assert!(sandbox.metrics("plain-config") != sandbox.metrics("plain"));
}

/// Weights of an original that lies there untouched are not read to find what was kept.
#[test]
fn an_original_that_lies_there_untouched_is_known() {
    let sandbox = Sandbox::new();
    let model = sandbox.path("model/model.safetensors");
    // A file system may give changes within two seconds one time.
    std::thread::sleep(Duration::from_millis(2100));
    let is_there = || {
        let line = format!("plan --json --model model --max-length 64 {CACHE}");
        sandbox.run(&line).json()["quantized_cache"]["is_there"].clone()
    };
    let train_into = |out: &str| sandbox.train_into(out, CACHE).ok().stderr;
    assert_eq!(is_there(), false);
    assert_said(&train_into("first"), [true, false]);
    assert_eq!(is_there(), true);
    let said = train_into("second");
    assert!(said.contains(TAKEN) && !said.contains(READ), "{said}");
    // Touched, which changes nothing of it.
    fs::File::options().write(true).open(&model).unwrap().set_modified(SystemTime::now()).unwrap();
    assert_eq!(is_there(), serde_json::Value::Null);
    let said = train_into("third");
    assert!(said.contains(TAKEN) && said.contains(READ), "{said}");
    // A note that is damaged says nothing.
    let is_note = |name: &String| name.ends_with(".json") && !name.starts_with('.');
    for name in sandbox.names("kept").into_iter().filter(is_note) {
        sandbox.write(&format!("kept/{name}"), "{");
    }
    std::thread::sleep(Duration::from_millis(2100));
    for (out, reads) in [("fourth", true), ("fifth", false)] {
        let said = train_into(out);
        assert!(said.contains(TAKEN) && said.contains(READ) == reads, "{out}: {said}");
    }
    for out in ["second", "third", "fourth", "fifth"] {
        sandbox.assert_same_result("first", out);
    }
}

#[test]
fn a_start_that_ends_while_it_quantizes_leaves_nothing_for_good() {
    let sandbox = Sandbox::new();
    let line = train(CACHE);
    for (fault, words) in [
        ("write/model.safetensors:3:full", ["No space left on device", "`quantized_cache`"]),
        ("write/model.safetensors:1:read-only", ["Read-only file system", "`quantized_cache`"]),
    ] {
        sandbox.run_at_fault(&line, fault).ended(1, &words);
        assert_eq!(sandbox.names("kept"), [""; 0], "{fault}");
    }
    for (name, status) in [("-INT", 130), ("-TERM", 143)] {
        let (found, text) = stopped(paused(&sandbox, &line, "tensor:3"), name);
        assert_eq!(found, Some(status), "{text}");
        assert!(text.contains("stopping after the current tensor; nothing is kept"), "{text}");
        assert_eq!(sandbox.names("kept"), [""; 0], "{name}");
    }
    for nth in [1, 5, 12] {
        assert_eq!(sandbox.run_at_fault(&line, &format!("tensor:{nth}")).status, None);
        let names = sandbox.names("kept");
        assert!(names.len() == 2 && names.iter().all(|name| name.starts_with(".unfinished.")), "{names:?}");
    }
    assert!(!sandbox.path("out").exists());
    let done = sandbox.run(&line).ok();
    assert_said(&done.stderr, [true, false]);
    entry(&sandbox);
    assert!(sandbox.names("kept").iter().all(|name| !name.starts_with('.')), "{:?}", sandbox.names("kept"));
    // Once it trains, a signal is answered as ever.
    let child = paused(&sandbox, &train("--output-dir later --quantized-cache new"), "step:2");
    let (status, text) = stopped(child, "-INT");
    assert!(status == Some(130) && text.contains("saved in later/checkpoint-2"), "{text}");
}

#[test]
fn two_starts_at_a_time_quantize_once() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", "").ok();
    let first = paused(&sandbox, &train(&format!("--output-dir first {CACHE}")), "tensor:3");
    let mut second = sandbox.command(&train(&format!("--output-dir second {CACHE}")));
    let mut second = second.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = wait_for(&mut second, "another process writes a model in NF4");
    let (status, text) = end(first);
    assert_eq!(status, Some(0), "{text}");
    let (status, rest) = end(second);
    said += &rest;
    assert_eq!(status, Some(0), "{said}");
    assert_said(&said, [false, false]);
    entry(&sandbox);
    for out in ["first", "second"] {
        sandbox.assert_same_result("whole", out);
    }
}

#[test]
fn processes_of_a_run_quantize_once() {
    let sandbox = Sandbox::new();
    let line =
        |out: &str, more: &str| train(&format!("--output-dir {out} --packing false --compute f32 --threads 1 {more}"));
    launched::run(&sandbox, &line("plain", ""), 2);
    for out in ["first", "second"] {
        let all = launched::run(&sandbox, &line(out, CACHE), 2);
        assert_eq!(all[0].stderr.contains(KEPT), out == "first", "{}", all[0].stderr);
        assert_eq!(all[1].stderr, "");
        sandbox.assert_same_result("plain", out);
        entry(&sandbox);
    }
}

#[test]
fn what_keeps_nothing_or_cannot_is_told() {
    let sandbox = Sandbox::new();
    for other in ["--quantization none", "--init-lora-weights pissa"] {
        let words = ["`quantized_cache`", "needs it in 16 bits", "leave one of them out"];
        sandbox.refused(&train(&format!("{CACHE} {other}")), &words);
        for model in ["model", "llama-3.2-1b"] {
            sandbox.refused(&format!("plan --model {model} --device cpu {CACHE} {other}"), &words);
        }
    }
    for (place, named) in [("rows.jsonl", "rows.jsonl"), ("rows.jsonl/below", "rows.jsonl"), ("/proc/kept", "/proc")] {
        sandbox.refused(&train(&format!("--quantized-cache {place}")), &[named, "(quantized_cache)"]);
    }
    sandbox.run("quantize --model model --output nf4").ok();
    let before = sandbox.files();
    let done = sandbox.run(&format!("eval --model nf4 --data rows.jsonl {CACHE}")).ok();
    assert!(done.stderr.contains("`quantized_cache`: nothing is kept: the base is in NF4 already"), "{}", done.stderr);
    assert!(sandbox.files() == before && !sandbox.path("kept").exists());
    // Without weights a plan knows what they will take.
    let plan = |more: &str| sandbox.run(&format!("plan --model llama-3.2-1b --device cpu {more}")).stdout;
    let (with, without) = (plan(CACHE), plan(""));
    assert!(with.contains("quantized_cache: kept: the run first writes the base in NF4 there, "), "{with}");
    assert!(!without.contains("quantized_cache:"), "{without}");
}
