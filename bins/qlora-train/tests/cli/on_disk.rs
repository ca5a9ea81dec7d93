//! Layers' inputs and the output layer on disk: the run is the one in memory, and nothing is left of its scratch file.

use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::Value;
use std::fs::OpenOptions;

use crate::child::{end, paused};
use crate::sandbox::{Sandbox, train};

const LAYERS: usize = 5;

/// Rows of an output layer of three parts, the last of which is short.
const VOCAB: usize = 9000;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::on_disk(&Synthetic::new(Arch { num_layers: LAYERS, ..tiny_arch() }, 1));
    std::fs::create_dir(sandbox.path("scratch")).unwrap();
    sandbox
}

fn with_large_head(tied: bool) -> Sandbox {
    let arch = Arch { num_layers: 2, vocab_size: VOCAB, tie_word_embeddings: tied, ..tiny_arch() };
    Sandbox::on_disk(&Synthetic::new(arch, 1))
}

/// The plan of a run of [`train`] with these settings.
fn plan(sandbox: &Sandbox, settings: &str) -> Value {
    sandbox.run(&format!("plan --json --model model --data rows.jsonl --max-length 64 --lora-r 4 {settings}")).json()
}

/// Bytes that a plan has in memory but for what is no part of the backend, and on disk.
fn planned(plan: &Value) -> [u64; 2] {
    let beside = |name: &str| name.starts_with("rows, tokenizer") || name.starts_with("saving");
    let buffers = plan["buffers"].as_array().unwrap().iter().filter(|line| !beside(line["name"].as_str().unwrap()));
    let (on_disk, in_memory): (Vec<&Value>, Vec<&Value>) = buffers.partition(|line| line["place"] == "disk");
    [in_memory, on_disk].map(|lines| lines.iter().map(|line| line["bytes"].as_u64().unwrap()).sum())
}

#[test]
fn a_run_with_inputs_on_disk_is_the_run_in_memory() {
    let sandbox = sandbox();
    for (i, settings) in [
        "--max-steps 3",
        "--max-steps 3 --packing false --per-device-train-batch-size 2 --gradient-accumulation-steps 2 \
         --lora-dropout 0.1 --compute f32",
        "--max-steps 4 --val-set-size 2 --eval-steps 2 --load-best-model-at-end --compute f32",
    ]
    .into_iter()
    .enumerate()
    {
        let (memory, disk) = (format!("memory-{i}"), format!("disk-{i}"));
        let in_memory = sandbox.train_into(&memory, &format!("{settings} --gradient-checkpointing true")).json();
        let line = format!("{settings} --gradient-checkpointing disk");
        let done = sandbox.train_into(&disk, &format!("{line} --scratch-dir scratch"));
        for words in ["recomputed from inputs on disk", "in a scratch file in scratch", "to and from the disk in"] {
            assert!(done.stderr.contains(words), "{words}: {}", done.stderr);
        }
        let on_disk = done.json();
        sandbox.assert_same_result(&memory, &disk);
        assert!(sandbox.names("scratch").is_empty());
        let plan = plan(&sandbox, &line);
        assert_eq!(plan["activations"]["disk"], LAYERS);
        let [held, written] = planned(&plan);
        assert_eq!(on_disk["peak_bytes"], held, "{settings}");
        // All layers' but the last one's, in places that begin with a block of the file.
        assert!(written > 0 && written % (4096 * (LAYERS as u64 - 1)) == 0, "{written}");
        assert!(in_memory["peak_bytes"].as_u64().unwrap() > held, "{settings}");
    }
    // In the output directory, unless another is named.
    let done = sandbox.train_into("own", "--max-steps 1 --gradient-checkpointing disk").ok();
    assert!(done.stderr.contains("in a scratch file in "), "{}", done.stderr);
}

/// A killed run leaves nothing in the directory, and one that failed says what to do; both go on from their newest
/// checkpoint, in memory or on disk.
#[test]
fn a_run_that_ends_while_it_writes_inputs_leaves_nothing_of_them_and_goes_on() {
    let sandbox = sandbox();
    let line = "--save-steps 1 --gradient-accumulation-steps 2 --resume-from-checkpoint true --compute f32";
    let on_disk = "--gradient-checkpointing disk --scratch-dir scratch";
    sandbox.train_into("whole", &format!("{line} --gradient-checkpointing true")).ok();
    // Each of two micro-batches writes and reads four inputs: the twentieth is one of the third step.
    for (out, fault, told) in [
        ("killed", "scratch/write:20", None),
        ("full", "scratch/write:20:full", Some(["cannot be written", "No space left on device"])),
        ("unread", "scratch/read:20:read-only", Some(["cannot be read", "Read-only file system"])),
    ] {
        let first = train(&format!("{line} {on_disk} --output-dir {out}"));
        let done = sandbox.run_at_fault(&first, fault);
        match told {
            None => assert_eq!(done.status, None),
            Some([what, why]) => done.ended(1, &["scratch: the scratch file", what, why, "`scratch_dir`", "is whole"]),
        }
        assert!(sandbox.names("scratch").is_empty() && !sandbox.path(&format!("{out}/adapter_config.json")).exists());
        let elsewhere = if out == "killed" { "--gradient-checkpointing false" } else { on_disk };
        let resumed = sandbox.train_into(out, &format!("{line} {elsewhere}")).ok();
        assert!(resumed.stderr.contains("resuming after step 2"), "{}", resumed.stderr);
        sandbox.assert_same_result("whole", out);
    }
    // No room is found before anything is computed with.
    let first = train(&format!("{line} {on_disk} --output-dir nothing"));
    sandbox
        .run_at_fault(&first, "scratch/reserve:2:full")
        .ended(1, &["cannot be made larger", "No space left on device"]);
}

#[test]
fn places_on_disk_that_cannot_be_are_refused() {
    let sandbox = sandbox();
    let missing = train("--gradient-checkpointing disk --scratch-dir scratch/missing");
    sandbox.refused(&missing, &["scratch/missing: the scratch file there cannot be made", "`scratch_dir`"]);
    let trained = train("--lm-head disk --modules-to-save lm_head");
    sandbox.refused(&trained, &["`lm_head`: found disk", "stays in memory"]);
    sandbox.run("quantize --model model --output nf4").ok();
    let of_dora = "--model nf4 --weights disk --device cpu --use-dora true";
    let words = ["`weights`: found disk", "`use_dora`"];
    sandbox.refused(&train(of_dora), &words);
    sandbox.refused(&format!("plan {of_dora}"), &words);
    let on_gpu = "plan --model llama-3-8b --gpu 4090 --max-length 64 --host-memory 64GiB --lm-head disk";
    sandbox.refused(on_gpu, &["`lm_head`: found disk", "a GPU takes the output layer"]);
}

/// On a small file system of its own, where the machine lets a user have one.
#[test]
fn a_disk_without_room_for_the_inputs_is_refused_and_nothing_is_written() {
    let sandbox = sandbox();
    let binary = env!("CARGO_BIN_EXE_qlora-train");
    let line = train("--gradient-checkpointing disk --scratch-dir scratch");
    let script = format!(
        "mount -t tmpfs -o size=16k tmpfs scratch || exit 77
         {binary} {line} >/dev/null 2>errors; echo status $?; ls -A scratch; ls -d out
         mount -o remount,size=64m scratch
         {binary} {line} >/dev/null 2>warned; echo then $?"
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).current_dir(sandbox.path(""));
    let Ok(output) = command.output() else { return println!("not run: there is no `unshare`") };
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("status") {
        return println!("not run: no file system of its own: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(text, "status 2\nthen 0\n", "{}", sandbox.read("errors"));
    let errors = sandbox.read("errors");
    assert!(
        errors.contains("scratch: 16.0 KiB are free on its file system") && errors.contains("`scratch_dir`"),
        "{errors}"
    );
    assert!(sandbox.read("warned").contains("scratch: is in memory"), "{}", sandbox.read("warned"));
}

#[test]
fn a_run_with_its_output_layer_on_disk_is_the_run_in_memory() {
    for tied in [false, true] {
        let sandbox = with_large_head(tied);
        let checkpoint = Checkpoint::open(&sandbox.path("model")).unwrap();
        let name = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let head = checkpoint.read(name).unwrap().bytes().len() as u64;
        for (i, settings) in [
            "--max-steps 3 --compute f32",
            "--max-steps 3",
            "--max-steps 2 --val-set-size 2 --eval-steps 1 --gradient-accumulation-steps 2 --compute f32",
        ]
        .into_iter()
        .enumerate()
        {
            let (memory, disk) = (format!("memory-{i}"), format!("disk-{i}"));
            let in_memory = sandbox.train_into(&memory, &format!("{settings} --lm-head resident")).json();
            let line = format!("{settings} --lm-head disk");
            let done = sandbox.train_into(&disk, &line);
            assert!(done.stderr.contains("embedding and lm_head stay on disk"), "{}", done.stderr);
            let on_disk = done.json();
            sandbox.assert_same_result(&memory, &disk);
            if i == 0 {
                // For the logits of each of three micro-batches, and for their gradients.
                assert_eq!(on_disk["weights_read"]["bytes"], 6 * head, "{tied}");
            }
            assert_eq!(in_memory["weights_read"], Value::Null);
            let plan = plan(&sandbox, &line);
            assert_eq!(plan["lm_head"], "disk");
            let [held, written] = planned(&plan);
            assert_eq!((&on_disk["peak_bytes"], written), (&held.into(), 0), "{tied} {settings}");
            let saved = in_memory["peak_bytes"].as_u64().unwrap() - held;
            // Two of the three parts are in memory; of two tables one has none there.
            let least = if tied { 0 } else { head };
            assert!(saved > least, "{tied} {settings}: {saved}");
        }
        if !tied {
            let own = "--max-steps 1 --lm-head disk --modules-to-save embed_tokens";
            let said = sandbox.train_into("own-embedding", own).ok().stderr;
            assert!(said.contains("lm_head stays on disk") && !said.contains("embedding and lm_head"), "{said}");
        }
        let loss = |place: &str| {
            sandbox
                .run(&format!(
                    "eval --json --model model --data rows.jsonl --adapter disk-0 --adapter disk-1 --lm-head {place}"
                ))
                .ok()
                .stdout
        };
        assert_eq!(loss("resident"), loss("disk"), "{tied}");
    }
}

/// Both places at once, and text, whose every token reads the output layer.
#[test]
fn answers_of_a_model_that_stays_on_disk_are_those_of_one_in_memory() {
    let sandbox = Sandbox::chat_of(Arch { num_layers: LAYERS, ..tiny_arch() });
    sandbox.run("quantize --model model --output nf4").ok();
    let answer = |places: &str| {
        sandbox.run(&format!("generate --json --model nf4 --prompt hello --max-new-tokens 4 {places}")).ok()
    };
    let (resident, disk) = (answer("--weights resident --lm-head resident"), answer("--weights disk --lm-head disk"));
    assert!(disk.stderr.contains("embedding and lm_head stay on disk"), "{}", disk.stderr);
    assert_eq!(resident.stdout, disk.stdout);
    let help = sandbox.run("generate --help").ok().stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("from where it is copied for each use, or disk (for the CPU)"), "{help}");
    let line = "--model nf4 --max-steps 2 --compute f32";
    sandbox.train_into("memory", &format!("{line} --gradient-checkpointing true")).ok();
    let places = "--gradient-checkpointing disk --weights disk --lm-head disk";
    sandbox.train_into("disk", &format!("{line} {places}")).ok();
    sandbox.assert_same_result("memory", "disk");
}

#[test]
fn an_output_layer_whose_file_changes_ends_the_run() {
    let sandbox = with_large_head(false);
    let file = sandbox.path("model/model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let line = train("--lm-head disk --save-steps 1 --resume-from-checkpoint true --compute f32");
    let child = paused(&sandbox, &line, "step:2");
    OpenOptions::new().write(true).open(&file).unwrap().set_len(whole.len() as u64 / 2).unwrap();
    let (status, said) = end(child);
    assert_eq!(status, Some(1), "{said}");
    let last = said.lines().rfind(|line| line.starts_with("error: ")).unwrap();
    for words in ["model.safetensors", "was changed while its weights were in use", "`lm_head: disk`", "put it back"] {
        assert!(last.contains(words), "{words}: {last}");
    }
    std::fs::write(&file, &whole).unwrap();
    let done = sandbox.run(&line).ok();
    assert!(done.stderr.contains("resuming after step"), "{}", done.stderr);
}
