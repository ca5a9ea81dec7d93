//! Damage at random places never panics and is never answered with anything but a refusal.

use std::path::Path;

use proptest::prelude::*;
use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};

#[derive(Clone, Debug)]
enum Damage {
    Truncate(prop::sample::Index),
    Set(Vec<(prop::sample::Index, u8)>),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    /// One decimal digit becomes another: JSON stays valid and the meaning changes.
    Digit(prop::sample::Index, u8),
}

impl Damage {
    /// Within the first `limit` bytes.
    fn apply(&self, bytes: &mut Vec<u8>, limit: usize) {
        match self {
            Self::Truncate(at) => bytes.truncate(at.index(limit)),
            Self::Set(places) => places.iter().for_each(|(at, byte)| bytes[at.index(limit)] = *byte),
            Self::Insert(at, more) => drop(bytes.splice(at.index(limit)..at.index(limit), more.iter().copied())),
            Self::Remove(at, n) => drop(bytes.drain(at.index(limit)..(at.index(limit) + n).min(limit))),
            Self::Digit(at, digit) => {
                let digits: Vec<usize> = (8.min(limit)..limit).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if !digits.is_empty() {
                    bytes[*at.get(&digits)] = b'0' + digit;
                }
            }
        }
    }
}

fn damages() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        at().prop_map(Damage::Truncate),
        prop::collection::vec((at(), any::<u8>()), 1..4).prop_map(Damage::Set),
        (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, more)| Damage::Insert(at, more)),
        (at(), 1..40usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        (at(), 0..10u8).prop_map(|(at, digit)| Damage::Digit(at, digit)),
    ]
}

/// Opening refuses or succeeds; what was opened can be read to the end.
fn open_and_read(dir: &Path) -> Result<(), TestCaseError> {
    match Checkpoint::open(dir) {
        Err(error) => prop_assert!(error.is_usage(), "{}", error),
        Ok(checkpoint) => {
            for name in checkpoint.names() {
                let expected: usize = checkpoint.shape(name).unwrap().iter().product();
                prop_assert_eq!(checkpoint.read_f32(name).unwrap().len(), expected);
            }
            checkpoint.fingerprint().unwrap();
        }
    }
    Ok(())
}

fn damage_file(
    shards: usize,
    file: &str,
    limit: impl Fn(&[u8]) -> usize,
    damage: &Damage,
) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let config = Arch { num_layers: 1, ..tiny_arch() };
    Synthetic { shards, ..Synthetic::new(config, 1) }.write(dir.path()).unwrap();
    let path = dir.path().join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let limit = limit(&bytes);
    damage.apply(&mut bytes, limit);
    std::fs::write(path, bytes).unwrap();
    open_and_read(dir.path())
}

/// Every damage to a quantized model is an error too; damaged scales are found when they are read.
fn damage_quantized(file: &str, limit: impl Fn(&[u8]) -> usize, damage: &Damage) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    super::quantized::write(dir.path(), &super::quantized::options(64, true));
    let path = dir.path().join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let limit = limit(&bytes);
    damage.apply(&mut bytes, limit);
    std::fs::write(path, bytes).unwrap();
    match Checkpoint::open(dir.path()) {
        Err(error) => prop_assert!(error.is_usage(), "{}", error),
        Ok(checkpoint) => {
            for name in checkpoint.names() {
                match checkpoint.read_weight_with_digest(name) {
                    Err(error) => prop_assert!(error.is_usage(), "{}", error),
                    Ok((weight, _)) => prop_assert_eq!(weight.into_tensor().shape, checkpoint.shape(name).unwrap()),
                }
            }
            if let Err(error) = checkpoint.fingerprint() {
                prop_assert!(error.is_usage(), "{}", error);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_damaged_config_of_a_quantized_model(damage in damages()) {
        damage_quantized("config.json", <[u8]>::len, &damage)?;
    }

    #[test]
    fn a_damaged_header_of_a_quantized_model(damage in damages()) {
        let header = |bytes: &[u8]| 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        damage_quantized("model.safetensors", header, &damage)?;
    }

    #[test]
    fn a_damaged_weight_file_of_a_quantized_model(damage in damages()) {
        damage_quantized("model.safetensors", <[u8]>::len, &damage)?;
    }

    #[test]
    fn a_damaged_config(damage in damages()) {
        damage_file(1, "config.json", <[u8]>::len, &damage)?;
    }

    #[test]
    fn a_damaged_header(damage in damages()) {
        let header = |bytes: &[u8]| 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        damage_file(1, "model.safetensors", header, &damage)?;
    }

    #[test]
    fn a_damaged_index(damage in damages()) {
        damage_file(2, "model.safetensors.index.json", <[u8]>::len, &damage)?;
    }

    #[test]
    fn a_damaged_weight_file(damage in damages()) {
        damage_file(1, "model.safetensors", <[u8]>::len, &damage)?;
    }
}
