//! A record of a GPU that was never there: each of its rows that is predicted stands beside its prediction.

use kernel_inspect::{resources, sass};
use predict::launches::Kernels;
use predict::measured::compared;
use predict::page::beside;
use records::format::{Record, Row};
use std::fmt::Write;

/// A forward kernel for large tiles that does nothing but multiply.
fn kernels() -> Kernels {
    let name = "linear_forward<Config<128, 8, 3, false>>";
    let mut text = format!("\tcode for sm_80\n\t\tFunction : {name}\n");
    for address in 0..32 {
        let _ =
            writeln!(text, "/*{:04x}*/ HMMA.16816.F32.BF16 R4, R8, R12, R4 ; /* 0x0000000000000000 */", 16 * address);
        let _ = writeln!(text, "/* 0x{:016x} */", 1_u64 << 41 | 7 << 46 | 7 << 49);
    }
    let _ = writeln!(text, "/*0200*/ @P0 BRA 0x0 ; /* 0x0000000000000000 */\n/*0210*/ EXIT ; /* 0x0000000000000000 */");
    let resources = format!("arch = sm_80\nFunction {name}:\n REG:255 STACK:0 SHARED:0 LOCAL:0\n");
    Kernels::new(sass::parse(&text), &resources::parse(&resources)).unwrap()
}

#[test]
fn a_record_stands_beside_what_was_predicted() {
    let row = |operation: &str, m, seconds| Row {
        operation: operation.into(),
        shape: "gate 28672×8192".into(),
        m: Some(m),
        path: Some("TensorCore".into()),
        seconds,
        ..Row::default()
    };
    let record = Record {
        date: "2025-01-31 23:59".into(),
        gpu: "NVIDIA RTX A6000".into(),
        driver: None,
        cuda: "13.0".into(),
        nvcc: None,
        cublaslt: None,
        commit: None,
        kernels_hash: "0".repeat(64),
        multiprocessors: 84,
        l2_bytes: 6 << 20,
        memory_bytes: 48 << 30,
        copy_gb_per_s: 670.0,
        mode: "full".into(),
        method: "made up".into(),
        not_measured: Vec::new(),
        rows: vec![row("forward NF4", 4096, 28e-3), row("quantize bf16", 4096, 1.0)],
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(record.file_name()), serde_json::to_string(&record).unwrap()).unwrap();
    let records = records::read(dir.path()).unwrap();
    let found = compared(&kernels(), &records).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].card, found[0].measured), ("A6000", 28e-3));
    // 32 × 112 blocks of 128 tiles in 43 waves, tensor cores alone: 128·256·8192 multiply-adds at 512 a cycle.
    let least = 43.0 * (128.0 * 256.0 * 8192.0 / 512.0) / 1.6e9;
    let predicted = found[0].predicted.unwrap();
    assert!((least..1.02 * least).contains(&predicted), "{predicted} of {least}");
    assert_eq!(found[1].predicted, None);
    let shown = beside(&found);
    assert!(shown.contains("| A6000 | forward NF4, gate 28672×8192, M 4096 |"), "{shown}");
    assert!(shown.contains("| 28.000 ms |"), "{shown}");
    assert!(shown.contains("M 4096 | not predicted | 1000.000 ms |  |"), "{shown}");
    assert!(beside(&[]).contains("no record"));
}
