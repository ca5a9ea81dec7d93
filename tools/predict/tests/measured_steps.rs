//! Steps of a GPU that were never measured: each stands beside its prediction, whole and by operation.

use kernel_inspect::{resources, sass};
use predict::cards::card;
use predict::launches::Kernels;
use predict::measured_steps::{ComparedKind, ComparedStep, compared, tables};
use serde_json::{Value, json};
use std::fmt::Write;

/// A forward kernel for large tiles that does nothing but multiply, and kernels that load and store.
fn kernels() -> Kernels {
    const FORWARD: &str = "linear_forward<Config<128, 8, 3, false>>";
    let (mut text, mut resources) = ("\tcode for sm_80\n".to_owned(), "arch = sm_80\n".to_owned());
    let mut kernel = |name: &str, instructions: &[String]| {
        let _ = writeln!(text, "\t\tFunction : {name}");
        for (index, instruction) in instructions.iter().enumerate() {
            let _ = writeln!(text, "/*{:04x}*/ {instruction} ; /* 0x0000000000000000 */", 16 * index);
            let _ = writeln!(text, "/* 0x{:016x} */", 1_u64 << 41 | 7 << 46 | 7 << 49);
        }
        let _ = writeln!(resources, "Function {name}:\n REG:255 STACK:0 SHARED:0 LOCAL:0");
    };
    let mut multiplies = vec!["HMMA.16816.F32.BF16 R4, R8, R12, R4".to_owned(); 32];
    multiplies.extend(["@P0 BRA 0x0", "EXIT"].map(str::to_owned));
    kernel(FORWARD, &multiplies);
    let moves = ["S2R R0, SR_TID.X", "SHF.L.U32 R1, R0, 0x2, RZ", "LDG.E R32, [R1.64]", "STG.E [R1.64], R32", "EXIT"];
    for name in ["rms_norm<8>", "gradient_partials", "adamw_update"] {
        kernel(name, &moves.map(str::to_owned));
    }
    Kernels::new(sass::parse(&text), &resources::parse(&resources)).unwrap()
}

/// The least that one product of 4,096 tokens takes on tensor cores alone: 43 waves of 128·256·8192 multiply-adds, 512
/// a cycle at 1.6 GHz.
const LEAST: f64 = 43.0 * (128.0 * 256.0 * 8192.0 / 512.0) / 1.6e9;

fn operation(name: &str, count: usize) -> Value {
    let (segments, values) = if name == "linear" { (json!([[28672, 0]]), 0) } else { (json!([]), 4 * 8192) };
    let flops = if name == "linear" { 2.0 * 4096.0 * 8192.0 * 28672.0 } else { 0.0 };
    json!({"name": name, "count": count, "tokens": 4096, "k": 8192, "segments": segments, "heads": [0, 0, 0],
           "window": 0, "vocab": 0, "values": values, "units": 1.0, "flops": flops, "trained": 0})
}

/// A record as `qlora-train bench --json` prints it, of two products and three norms.
fn record(change: impl Fn(&mut Value)) -> Value {
    let mut value = json!({
        "shape": "made-up", "seq": 4096, "batch": 1, "lora_r": 16, "recompute": false, "offload": true,
        "tokens_per_second": 4096.0 / 0.15, "step_seconds": 0.15, "step_seconds_each": [0.15], "mfu": null,
        "activations": {"keep": 1, "recompute": 0, "offload": 3},
        "levers": {"weights": "host", "pinned_layers": 2, "lm_head": "resident", "optimizer_states": "host",
                   "token_tile": null},
        "linear": ["gate, N 28672, K 8192, forward: fused"],
        "kernels": [{"name": "norm", "seconds": 0.001}, {"name": "linear", "seconds": 4.0 * LEAST},
                    {"name": "sampling", "seconds": 0.002}],
        "operations": [operation("linear", 2), operation("norm", 3)],
        "device": {"planned_bytes": 1, "peak_bytes": 1}, "gpu": "NVIDIA RTX A6000",
        "date": "2025-01-31T23:59:00Z", "built": {"kernels_hash": "now"},
    });
    change(&mut value);
    value
}

fn compared_of(records: &[(&str, Value)]) -> Vec<ComparedStep> {
    let dir = tempfile::tempdir().unwrap();
    for (name, record) in records {
        std::fs::write(dir.path().join(name), record.to_string()).unwrap();
    }
    compared(&kernels(), &records::steps::read(dir.path()).unwrap(), "now").unwrap()
}

fn kind<'a>(step: &'a ComparedStep, name: &str) -> &'a ComparedKind {
    step.kinds.iter().find(|kind| kind.name == name).unwrap()
}

#[test]
fn a_step_stands_beside_what_was_predicted_of_its_own_operations() {
    let found = compared_of(&[("a.json", record(|_| ()))]);
    assert_eq!(found.len(), 1);
    let step = &found[0];
    assert_eq!((step.card, step.measured), ("A6000", 0.15));
    let linear = kind(step, "linear");
    assert!((linear.measured.unwrap() / LEAST - 4.0).abs() < 1e-9);
    let predicted = linear.predicted.unwrap();
    assert!((2.0 * LEAST..2.04 * LEAST).contains(&predicted), "{predicted} of {LEAST}");
    let all: f64 = step.kinds.iter().filter_map(|kind| kind.predicted).sum();
    assert!((step.predicted.unwrap() / all - 1.0).abs() < 1e-9, "{step:?}");
    // Farthest apart in seconds first, kinds that only one of the two has among them.
    let names: Vec<&str> = step.kinds.iter().map(|kind| kind.name.as_str()).collect();
    assert_eq!((names.len(), names[0]), (4, "linear"), "{names:?}");
    assert_eq!((kind(step, "sampling").predicted, kind(step, "optimizer").measured), (None, None));
    assert!(kind(step, "norm").predicted.unwrap() > 0.0);

    let shown = tables(&found);
    let work = "made-up, 1 × 4096 tokens, r 16, 1 kept, 3 offloaded, weights of 2 in host memory, \
                optimizer states: host";
    let predicted_step = step.predicted.unwrap();
    let whole = format!("| A6000 | [{work}](../benches/records/steps/a.json) | 0.1500 | {predicted_step:.4} |");
    assert!(shown.contains(&whole), "{whole}: {shown}");
    let linear = format!("| linear | {:.4} | {predicted:.4} | {:.2} |", 4.0 * LEAST, 4.0 * LEAST / predicted);
    assert!(shown.contains(&linear), "{linear}: {shown}");
    assert!(shown.contains("| sampling | 0.0020 | not predicted |  |"), "{shown}");
    assert!(tables(&[]).contains("No step has been measured"));
}

#[test]
fn the_largest_disagreement_comes_first_and_what_is_not_predicted_last() {
    let near = record(|value| value["built"]["kernels_hash"] = "before".into());
    let far = record(|value| {
        value["step_seconds"] = 1.5.into();
        value["built"] = Value::Null;
    });
    let unknown = record(|value| value["operations"].as_array_mut().unwrap().push(operation("sorting", 1)));
    let elsewhere = record(|value| value["gpu"] = "NVIDIA B200".into());
    let found = compared_of(&[("a.json", unknown), ("b.json", near), ("c.json", far), ("d.json", elsewhere)]);
    let files: Vec<&str> = found.iter().map(|step| step.file.as_str()).collect();
    assert_eq!(files, ["c.json", "b.json", "a.json"]);
    assert!(found[0].work.ends_with("of which kernels is not known"), "{}", found[0].work);
    assert!(found[1].work.ends_with("of other kernels") && found[1].predicted.is_some(), "{}", found[1].work);
    assert!(found[2].predicted.is_none() && kind(&found[2], "linear").predicted.is_some());
}

/// The record's lines on its layers decide the prediction of them.
#[test]
fn products_of_a_library_are_predicted_as_such() {
    let of = |line: &str| {
        let found = compared_of(&[("a.json", record(|value| value["linear"] = json!([line])))]);
        kind(&found[0], "linear").predicted.unwrap()
    };
    let fused = of("gate, N 28672, K 8192, forward: fused");
    let library = of("gate, N 28672, K 8192, forward: dequantize + cuBLASLt");
    let least = 2.0 * 2.0 * 4096.0 * 8192.0 * 28672.0 / (card("A6000").unwrap().library_tflops.value * 1e12);
    assert!((least..1.2 * least).contains(&library) && (library / fused - 1.0).abs() > 1e-3, "{library} {least}");
    // Those of another shape, or of the other pass, are no sign.
    assert_eq!(of("gate, N 28672, K 8192, dX: dequantize + cuBLASLt"), fused);
    assert_eq!(of("down, N 8192, K 28672, forward: dequantize + cuBLASLt"), fused);
}

#[test]
fn operations_of_another_trainer_are_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let other = record(|value| value["operations"] = json!([{"name": "linear"}]));
    std::fs::write(dir.path().join("a.json"), other.to_string()).unwrap();
    let error = compared(&kernels(), &records::steps::read(dir.path()).unwrap(), "now").unwrap_err();
    assert!(format!("{error:#}").contains("a.json"), "{error:#}");
}
