use super::*;
use crate::base::synthetic::{Synthetic, tiny_arch};

/// Whatever the states of their files are.
#[test]
fn a_sample_tells_models_of_one_shape_apart() {
    let dir = tempfile::tempdir().unwrap();
    let sample = |name: &str, seed: u64| {
        let model = dir.path().join(name);
        Synthetic::new(tiny_arch(), seed).write(&model).unwrap();
        let mut hash = Sha256::new();
        Checkpoint::open(&model).unwrap().sample(&mut hash).unwrap();
        hex(hash.finalize())
    };
    let first = sample("first", 1);
    assert_eq!(first, sample("again", 1));
    assert_ne!(first, sample("other", 2));
}
