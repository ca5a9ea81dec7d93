//! On made-up records, in directories of their own.

use super::format::Row;
use super::*;

/// A repository of a few kernels, a page and no record.
fn repository() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("cuda/a.cu", "kernel");
    write("cuda/include/a.h", "header");
    write("cuda/package/flags-cuda.txt", "-O3");
    write("benches/records/README.md", "no record");
    write(PAGE, "before\n<!-- gpu -->\nanything\n<!-- /gpu -->\nafter\n");
    let hash = source::kernels_hash(dir.path()).unwrap();
    (dir, hash)
}

fn record(hash: &str, date: &str, gpu: &str, rows: Vec<Row>) -> Record {
    Record {
        date: date.into(),
        gpu: gpu.into(),
        driver: Some("580.1".into()),
        cuda: "13.0".into(),
        nvcc: None,
        cublaslt: None,
        commit: None,
        kernels_hash: hash.into(),
        multiprocessors: 1,
        l2_bytes: 1,
        memory_bytes: 1,
        copy_gb_per_s: 1000.0,
        mode: "quick".into(),
        method: String::new(),
        not_measured: Vec::new(),
        rows,
    }
}

fn put(root: &Path, record: &Record) {
    let path = root.join(RECORDS).join(record.file_name());
    fs::write(path, serde_json::to_string(record).unwrap()).unwrap();
}

fn row(operation: &str, shape: &str, m: Option<usize>) -> Row {
    Row { operation: operation.into(), shape: shape.into(), m, seconds: 1e-3, ..Row::default() }
}

fn written(root: &Path) -> String {
    write(root).unwrap();
    check(root).unwrap();
    fs::read_to_string(root.join(PAGE)).unwrap()
}

#[test]
fn without_a_record_every_goal_says_that_it_was_not_measured() {
    let (dir, _) = repository();
    assert!(check(dir.path()).unwrap_err().to_string().contains("cargo xtask records"));
    let text = written(dir.path());
    assert!(text.starts_with("before\n<!-- gpu -->\n| work") && text.ends_with("<!-- /gpu -->\nafter\n"), "{text}");
    assert_eq!(text.matches("| not measured on a GPU |").count(), goals::GOALS.len() + 4);
    assert!(text.contains("There is no record of the kernels on a GPU."));
}

#[test]
fn figures_are_the_worst_of_the_newest_record_of_each_gpu() {
    let (dir, hash) = repository();
    let dequantize = |shape: &str, share| Row { share_of_copy: Some(share), ..row("dequantize bf16", shape, None) };
    let gemv =
        |m, seconds| Row {
            seconds, share_of_copy: Some(0.7), ..row("forward NF4 + LoRA", "gate 28672×8192", Some(m))
        };
    // Records of older kernels, and of a run in parts.
    put(dir.path(), &record(&"0".repeat(64), "2025-01-01 00:00", "NVIDIA L40S", vec![dequantize("old", 0.1)]));
    let replaced = Row { share_of_copy: Some(0.2), ..dequantize("a", 0.2) };
    let adamw = Row { share_of_copy: Some(0.9), ..row("AdamW update, 8-bit states", "560 tensors", None) };
    put(dir.path(), &record(&hash, "2025-01-01 09:00", "NVIDIA L40S", vec![replaced, adamw]));
    let rows = vec![dequantize("a", 0.95), dequantize("b", 0.87), gemv(1, 1e-3), gemv(4, 1.05e-3), gemv(16, 1.2e-3)];
    put(dir.path(), &record(&hash, "2025-01-02 00:00", "NVIDIA L40S", rows));
    put(dir.path(), &record(&hash, "2024-01-02 00:00", "NVIDIA A40", vec![dequantize("c", 0.8)]));
    let text = written(dir.path());
    assert!(
        text.contains("NVIDIA A40: dequantize: 80% (c), missed<br>NVIDIA L40S: dequantize: 87% (b), met |"),
        "{text}"
    );
    assert!(
        text.contains("M 1: 70% (gate 28672×8192, M 1), met; M ≤ 16 over M 1: 20% (gate 28672×8192, M 16), missed |")
    );
    assert!(!text.contains("old") && text.contains("580.1") && text.contains("2025-01-02-0000-nvidia-l40s.json"));
    assert_eq!(text.matches("| not measured on a GPU |").count(), goals::GOALS.len() + 4 - 3);
    assert!(
        text.contains("NVIDIA L40S: 90% (560 tensors), met |") && text.contains("2025-01-01-0900-nvidia-l40s.json")
    );
    assert!(!text.contains("changed since"));
}

#[test]
fn what_only_some_gpus_owe_and_only_one_path_measures_is_told_apart() {
    let (dir, hash) = repository();
    let forward = |path: &str, m| Row {
        path: Some(path.into()),
        tflops: Some(400.0),
        over_bf16_weights: Some(0.97),
        over_cublaslt: Some(0.93),
        lora_percent: Some(3.0),
        ..row("forward NF4 + LoRA", "o 8192×8192", Some(m))
    };
    let rows = vec![forward("TensorCore", 4096), forward("Hopper", 1024)];
    put(dir.path(), &record(&hash, "2025-01-01 00:00", "NVIDIA H100", rows.clone()));
    let text = written(dir.path());
    assert!(
        text.contains("97% (o 8192×8192, M 4096), met; M ≥ 4096: 400 TFLOP/s (o 8192×8192, M 4096), missed |"),
        "{text}"
    );
    assert!(text.contains("M 512: not measured; M 1024: 93% (o 8192×8192, M 1024), met; M ≥ 2048: not measured |"));
    assert!(text.contains("on top: 3.0% (o 8192×8192, M 4096), met |"));
    fs::remove_file(dir.path().join("benches/records/2025-01-01-0000-nvidia-h100.json")).unwrap();
    put(dir.path(), &record(&hash, "2025-01-01 00:00", "NVIDIA L40S", rows));
    assert!(!written(dir.path()).contains("TFLOP/s (o"), "480 TFLOP/s is wanted of an H100 only");
}

#[test]
fn a_record_of_other_kernels_says_so_and_a_changed_kernel_makes_the_readme_stale() {
    let (dir, hash) = repository();
    put(dir.path(), &record(&hash, "2025-01-01 00:00", "NVIDIA H100", vec![row("quantize bf16", "a", None)]));
    assert!(!written(dir.path()).contains("changed since"));
    fs::write(dir.path().join("cuda/a.cu"), "another kernel").unwrap();
    assert!(check(dir.path()).is_err());
    assert!(written(dir.path()).contains("**The kernels have changed since.**"));
}

#[test]
fn a_bad_record_is_an_error_that_names_the_file_and_the_field() {
    let good = |hash: &str| record(hash, "2025-01-01 00:00", "NVIDIA H100", vec![row("quantize bf16", "a", None)]);
    type Change = fn(&mut Record);
    let changes: [(Change, &str); 7] = [
        (|record| record.date = "yesterday".into(), "date"),
        (|record| record.gpu = "the emulation".into(), "gpu"),
        (|record| record.kernels_hash = "12".into(), "kernels_hash"),
        (|record| record.copy_gb_per_s = 0.0, "copy_gb_per_s"),
        (|record| record.rows[0].seconds = -1.0, "rows[0].seconds"),
        (|record| record.rows.push(record.rows[0].clone()), "rows[1]"),
        (|record| record.date = "2025-01-01 00:01".into(), "by its date and GPU"),
    ];
    for (change, expected) in changes {
        let (dir, hash) = repository();
        let mut bad = good(&hash);
        change(&mut bad);
        let path = dir.path().join(RECORDS).join(good(&hash).file_name());
        fs::write(&path, serde_json::to_string(&bad).unwrap()).unwrap();
        let error = format!("{:#}", check(dir.path()).unwrap_err());
        assert!(error.contains(expected) && error.contains("2025-01-01-0000-nvidia-h100.json"), "{expected}: {error}");
    }
    let (dir, _) = repository();
    fs::write(dir.path().join("benches/records/a.json"), "{\"seconds\": 1}").unwrap();
    assert!(format!("{:#}", check(dir.path()).unwrap_err()).contains("a.json is not a record"));
    fs::write(dir.path().join(PAGE), "no table").unwrap();
    fs::remove_file(dir.path().join("benches/records/a.json")).unwrap();
    assert!(format!("{:#}", check(dir.path()).unwrap_err()).contains("<!-- gpu -->"));
}
