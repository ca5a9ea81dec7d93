use super::super::{GgmlType, encode};

/// Values of no pattern, and groups of one sign, of zeros and of one value.
fn block(seed: u64) -> Vec<f32> {
    let mut stream = qlora_kernels::rng::RngStream::new(seed, 3);
    let value = |i: usize, x: f32| match i / 32 {
        2 => x.abs(),
        3 => 0.0,
        5 => 0.25,
        6 => x * 1e-3,
        _ => x,
    };
    (0..256).map(|i| value(i, stream.uniform() - 0.5)).collect()
}

#[test]
fn what_is_written_is_read_back_within_a_step() {
    for kind in [GgmlType::Q5_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K] {
        let levels = match kind {
            GgmlType::Q4K => 15.0,
            GgmlType::Q6K => 63.0,
            _ => 31.0,
        };
        for seed in 0..20 {
            let (values, mut bytes) = (block(seed), Vec::new());
            encode(kind, &values, &mut bytes);
            assert_eq!(bytes.len(), kind.byte_length(&[1, 256]).unwrap(), "{}", kind.name());
            let read = kind.to_f32(&bytes);
            for (group, (a, b)) in values.chunks(32).zip(read.chunks(32)).enumerate() {
                let error: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / 32.0;
                // The error of levels that are spread evenly over the values is the step over the root of 12; a
                // fifth of the largest scale's step more where a group is much smaller than the block.
                let step = 1.0 / levels;
                assert!(error.sqrt() <= 0.45 * step, "{} {group}: {} of {step}", kind.name(), error.sqrt());
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for kind in [GgmlType::Q5_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K] {
        let mut bytes = Vec::new();
        encode(kind, &[0.0; 256], &mut bytes);
        assert_eq!(kind.to_f32(&bytes), [0.0; 256], "{}", kind.name());
    }
}
