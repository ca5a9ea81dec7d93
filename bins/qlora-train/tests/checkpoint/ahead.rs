//! Bases whose tensors are hashed by threads ahead of the reading.

use qlora_kernels::nf4::Nf4Options;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::base::{Checkpoint, QuantizeOptions, quantize};
use qlora_train::files::tensor::{HostTensor, TensorData, WeightSource};
use qlora_train::model::Source;
use qlora_train::session::CheckpointSource;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const GATE: &str = "model.layers.0.mlp.gate_proj.weight";

/// A layer whose MLP has matrices of a MiB in NF4, and of four in 16 bits, in a directory; the second one is in NF4.
fn models(dir: &Path, shards: usize) -> [Checkpoint; 2] {
    let config = Arch { intermediate_size: 32_768, num_layers: 1, ..tiny_arch() };
    let (plain, nf4) = (dir.join("plain"), dir.join("nf4"));
    Synthetic { shards, ..Synthetic::new(config, 5) }.write(&plain).unwrap();
    let plain = Checkpoint::open(&plain).unwrap();
    let options = QuantizeOptions { nf4: Nf4Options::default(), skip_modules: Vec::new(), max_shard_bytes: 1 << 40 };
    quantize(&plain, &nf4, &options, &mut |_| Ok(())).unwrap();
    [plain, Checkpoint::open(&nf4).unwrap()]
}

fn source(checkpoint: &Checkpoint) -> CheckpointSource<'_, '_> {
    CheckpointSource::new(checkpoint, BTreeMap::new(), 1).hashing_ahead().unwrap()
}

fn tensor(weight: WeightSource) -> HostTensor {
    weight.into_tensor()
}

/// However a tensor is read, before a thread has begun with it and after it has hashed it.
#[test]
fn values_and_fingerprint_are_those_of_the_base() {
    for shards in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        for checkpoint in models(dir.path(), shards) {
            let expected = checkpoint.fingerprint().unwrap();
            for (pause, is_streamed) in [(0, false), (200, false), (0, true), (200, true)] {
                let mut source = source(&checkpoint);
                std::thread::sleep(Duration::from_millis(pause));
                for (number, (name, shape)) in checkpoint.arch().tensors().iter().enumerate() {
                    let whole = checkpoint.read(name).unwrap();
                    let linear = shape.len() == 2 && name.contains(".layers.");
                    if linear && is_streamed && checkpoint.is_nf4(name) {
                        let read = source.on_disk(name).unwrap().read(None).unwrap();
                        assert_eq!(tensor(WeightSource::Nf4(read)), whole, "{name}");
                    } else if linear && number.is_multiple_of(2) {
                        assert_eq!(tensor(source.read_weight(name).unwrap()), whole, "{name}");
                    } else if linear {
                        let mut values = Vec::new();
                        let mut take = |piece: WeightSource| {
                            values.extend(piece.into_tensor().into_f32());
                            Ok(())
                        };
                        source.read_in_pieces(name, &mut take).unwrap();
                        assert_eq!(values, whole.to_f32(), "{name}");
                    } else {
                        assert_eq!(source.read(name).unwrap(), whole, "{name}");
                    }
                }
                let note = source.loading_note();
                assert!(note.contains(" waiting for hashes of ") && note.contains(" GB/s: "), "{note}");
                assert_eq!(source.finish().unwrap().whole, expected, "{shards} {pause} {is_streamed}");
            }
        }
    }
}

#[test]
fn a_file_that_is_written_to_while_the_base_is_read_ends_the_reading() {
    let dir = tempfile::tempdir().unwrap();
    let [plain, _] = models(dir.path(), 1);
    let path = dir.path().join("plain/model.safetensors");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let mut late = source(&plain);
    plain.arch().tensors().iter().for_each(|(name, _)| drop(late.read(name).unwrap()));
    file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    let error = late.finish().unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("changed"), "{error}");

    // Cut off within the largest matrix, and what comes after it.
    let bytes = std::fs::read(&path).unwrap();
    file.set_len(place(&bytes, GATE) + (1 << 20) + 5).unwrap();
    let mut cut = source(&plain);
    let errors: Vec<String> =
        plain.arch().tensors().iter().filter_map(|(name, _)| Some(cut.read(name).err()?.to_string())).collect();
    assert!(errors[0].contains("model.safetensors") && errors[0].contains(GATE), "{errors:?}");
    let mut pieces = 0;
    let mut take = |_: WeightSource| {
        pieces += 1;
        Ok(())
    };
    let error = source(&plain).read_in_pieces(GATE, &mut take).unwrap_err().to_string();
    assert!(error.contains(GATE) && error.contains("was the file changed?"), "{error}");
}

/// Its codes are hashed by a thread, and its scales are looked at all the same.
#[test]
fn scales_that_are_no_numbers_are_refused_in_a_weight_that_stays_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let [_, nf4] = models(dir.path(), 1);
    let path = nf4.file_of(GATE).unwrap().to_owned();
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&f32::NAN.to_le_bytes(), place(&bytes, &format!("{GATE}.nested_absmax"))).unwrap();
    for pause in [0, 200] {
        let mut source = source(&nf4);
        std::thread::sleep(Duration::from_millis(pause));
        let error = source.on_disk(GATE).err().unwrap();
        assert!(error.is_usage() && error.to_string().contains(GATE), "{error}");
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}

/// Pieces come from two threads, in their order, and none after one that was refused.
#[test]
fn pieces_of_a_tensor_come_in_order() {
    const TABLE: &str = "model.embed_tokens.weight";
    let dir = tempfile::tempdir().unwrap();
    let piece = qlora_train::files::tensor::PIECE;
    let config = Arch { vocab_size: 5 * piece / 64 + 100, num_layers: 1, tie_word_embeddings: true, ..tiny_arch() };
    Synthetic::new(config, 3).write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for name in checkpoint.names() {
        let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
        let mut take = |piece: HostTensor| {
            lengths.push(piece.shape[0]);
            assert!(matches!(piece.data, TensorData::Bf16(_)));
            bytes.extend_from_slice(piece.bytes());
            Ok(())
        };
        checkpoint.read_pieces(name, &mut take).unwrap();
        assert!(bytes == checkpoint.read(name).unwrap().bytes(), "{name}");
        let (last, others) = lengths.split_last().unwrap();
        assert!(*last <= piece && others.iter().all(|len| *len == piece), "{name}: {lengths:?}");
    }
    for last in [1, 2, 4] {
        let mut taken = 0;
        let mut take = |_: HostTensor| {
            taken += 1;
            let enough = || qlora_train::error::Error::Failed("enough".to_owned());
            if taken < last { Ok(()) } else { Err(enough()) }
        };
        assert_eq!(checkpoint.read_pieces(TABLE, &mut take).unwrap_err().to_string(), "enough");
        assert_eq!(taken, last);
    }
    let panics = || checkpoint.read_pieces(TABLE, &mut |_| panic!("as the test wants it"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
}

/// First byte of a tensor in a file.
fn place(bytes: &[u8], name: &str) -> u64 {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len as usize]).unwrap();
    8 + len + header[name]["data_offsets"][0].as_u64().unwrap()
}
