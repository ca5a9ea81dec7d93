//! Schedules and memory sizes against known answers.

use qlora_train::config::Scheduler;
use qlora_train::config::lr_schedule::{factor, warmup_steps};
use qlora_train::files::units::{format_bytes, parse_bytes};

/// From transformers 5.23.0: `get_scheduler` over an SGD of rate 1, and `TrainingArguments.get_warmup_steps`.
#[test]
fn schedules_equal_transformers() {
    const RISE: [f64; 3] = [0.0, 0.3333333333333333, 0.6666666666666666];
    const LINEAR: [f64; 9] = [
        1.0,
        0.8571428571428571,
        0.7142857142857143,
        0.5714285714285714,
        0.42857142857142855,
        0.2857142857142857,
        0.14285714285714285,
        0.0,
        0.0,
    ];
    const COSINE: [f64; 9] = [
        1.0,
        0.9504844339512095,
        0.8117449009293668,
        0.6112604669781572,
        0.38873953302184283,
        0.18825509907063326,
        0.04951556604879048,
        0.0,
        0.04951556604879043,
    ];
    const COSINE_10: [f64; 7] =
        [1.0, 0.9755282581475768, 0.9045084971874737, 0.7938926261462366, 0.6545084971874737, 0.5, 0.34549150281252633];
    let cases: [(Scheduler, usize, usize, Vec<f64>); 10] = [
        (Scheduler::Constant, 3, 10, vec![1.0; 12]),
        (Scheduler::ConstantWithWarmup, 0, 1, vec![1.0; 12]),
        (Scheduler::ConstantWithWarmup, 3, 10, [&RISE[..], &[1.0; 9]].concat()),
        (Scheduler::Linear, 0, 1, vec![1.0, 0.0, 0.0]),
        (Scheduler::Linear, 3, 10, [&RISE[..], &LINEAR].concat()),
        (Scheduler::Linear, 5, 3, vec![0.0, 0.2, 0.4, 0.6, 0.8, 0.0, 0.0]),
        (Scheduler::Linear, 10, 10, vec![0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.0, 0.0]),
        (Scheduler::Cosine, 0, 10, COSINE_10.to_vec()),
        (Scheduler::Cosine, 3, 10, [&RISE[..], &COSINE].concat()),
        (Scheduler::Cosine, 5, 3, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.0]),
    ];
    for (kind, warmup, total, expected) in cases {
        for (step, expected) in expected.into_iter().enumerate() {
            let got = factor(kind, step, warmup, total);
            assert!((got - expected).abs() <= 4.0 * f64::EPSILON, "{kind:?} {warmup}/{total} step {step}: {got}");
        }
    }
    for (ratio, total, expected) in
        [(0.03, 1, 1), (0.03, 33, 1), (0.03, 34, 2), (0.03, 100, 3), (0.1, 7, 1), (0.0, 50, 0), (0.07, 100, 8)]
    {
        assert_eq!(warmup_steps(None, ratio, total), expected, "{ratio} of {total}");
    }
    assert_eq!(warmup_steps(Some(10), 0.5, 5), 10);
}

#[test]
fn memory_sizes() {
    for (text, bytes) in [
        ("44.4GiB", Some(47_674_136_985)),
        ("24 GB", Some(24_000_000_000)),
        ("8gib", Some(8 << 30)),
        (" 1.5 MiB ", Some(3 << 19)),
        ("512", Some(512)),
        ("512B", Some(512)),
        ("9223372036854775807", Some(i64::MAX as u64)),
        ("9223372036854775808", None),
        ("8G", None),
        ("0GiB", None),
        ("-1GiB", None),
        ("1e9", None),
        ("nanGiB", None),
        ("1.2.3GiB", None),
        ("GiB", None),
        ("", None),
        ("99999999999999999999TiB", None),
    ] {
        assert_eq!(parse_bytes(text), bytes, "{text:?}");
    }
    assert_eq!(format_bytes(47_674_136_985), "44.4 GiB");
    assert_eq!(format_bytes(512), "512 B");
}
