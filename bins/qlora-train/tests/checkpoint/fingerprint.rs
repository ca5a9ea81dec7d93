use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::base::{Checkpoint, Fingerprint};
use qlora_train::error::Error;
use qlora_train::files::tensor::{HostTensor, PIECE, StoredType};
use sha2::{Digest, Sha256};

use super::{configs, stored_types};

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The documented recipe, over the values that the synthetic model was made of.
fn by_the_recipe(model: &Synthetic) -> String {
    let mut tensors = model.config.tensors();
    tensors.sort();
    let mut text = String::from("qlora base fingerprint 1\n");
    for (name, shape) in tensors {
        let digest = hex(Sha256::digest(model.tensor(&name, &shape).bytes()));
        let shape: Vec<String> = shape.iter().map(|d| d.to_string()).collect();
        text += &format!("{name}\t{}\t{}\t{digest}\n", model.stored.name(), shape.join(","));
    }
    hex(Sha256::digest(text))
}

fn of(model: &Synthetic) -> String {
    let dir = tempfile::tempdir().unwrap();
    model.write(dir.path()).unwrap();
    Checkpoint::open(dir.path()).unwrap().fingerprint().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn it_follows_the_recipe_however_the_tensors_are_spread(
        config in configs(), seed: u64, stored in stored_types(), shards in 2..6usize,
    ) {
        let single = Synthetic { config, seed, stored, shards: 1, v4: false };
        let expected = by_the_recipe(&single);
        prop_assert_eq!(&of(&single), &expected);
        prop_assert_eq!(&of(&Synthetic { shards, v4: true, ..single }), &expected);
    }

    #[test]
    fn collected_while_loading_it_is_the_same(config in configs(), seed: u64, backwards: bool) {
        let dir = tempfile::tempdir().unwrap();
        let model = Synthetic { shards: 3, ..Synthetic::new(config, seed) };
        model.write(dir.path()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let mut names: Vec<&str> = checkpoint.names().collect();
        if backwards {
            names.reverse();
        }
        let mut fingerprint = Fingerprint::new(&checkpoint);
        for (i, name) in names.iter().enumerate() {
            let (tensor, digest) = checkpoint.read_with_digest(name).unwrap();
            let (widened, same) = checkpoint.read_f32_with_digest(name).unwrap();
            prop_assert_eq!(&digest, &same);
            prop_assert_eq!(tensor.to_f32(), widened);
            fingerprint.add(digest).unwrap();
            if i + 1 < names.len() {
                prop_assert!(fingerprint.clone().finish().is_err(), "unfinished");
            }
            fingerprint.add(same).unwrap();
        }
        prop_assert_eq!(fingerprint.finish().unwrap().whole, by_the_recipe(&model));
    }
}

#[test]
fn it_does_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let model = Synthetic { shards: 4, ..Synthetic::new(tiny_arch(), 1) };
    model.write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| checkpoint.fingerprint()).unwrap(), by_the_recipe(&model), "{threads} threads");
    }
}

#[test]
fn values_types_and_shapes_all_count() {
    let model = Synthetic::new(tiny_arch(), 1);
    let variants = [
        model.clone(),
        Synthetic { seed: 2, ..model.clone() },
        Synthetic { stored: StoredType::F16, ..model.clone() },
        Synthetic { config: Arch { vocab_size: 97, ..tiny_arch() }, ..model.clone() },
        Synthetic { config: Arch { tie_word_embeddings: true, ..tiny_arch() }, ..model.clone() },
    ];
    let distinct: BTreeSet<String> = variants.iter().map(of).collect();
    assert_eq!(distinct.len(), variants.len());
    assert!(distinct.iter().all(|print| print.len() == 64));
}

#[test]
fn one_flipped_bit_changes_it_and_a_change_while_loading_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let model = Synthetic::new(tiny_arch(), 1);
    model.write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let before = checkpoint.fingerprint().unwrap();
    let early: Vec<_> = checkpoint.names().map(|name| checkpoint.digest(name).unwrap()).collect();

    let path = dir.path().join("model.safetensors");
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let last = file.metadata().unwrap().len() - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).unwrap();
    file.write_all_at(&[byte[0] ^ 1], last).unwrap();
    assert_ne!(checkpoint.fingerprint().unwrap(), before);

    let mut fingerprint = Fingerprint::new(&checkpoint);
    early.into_iter().for_each(|digest| fingerprint.add(digest).unwrap());
    let late = checkpoint.names().map(|name| checkpoint.digest(name).unwrap());
    let errors: Vec<_> = late.filter_map(|digest| fingerprint.add(digest).err()).collect();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().contains("changed while it was being read"), "{}", errors[0]);
}

#[test]
fn a_tensor_of_another_model_is_not_taken() {
    let open = |config: Arch| {
        let dir = tempfile::tempdir().unwrap();
        Synthetic::new(config, 1).write(dir.path()).unwrap();
        (Checkpoint::open(dir.path()).unwrap(), dir)
    };
    let (tied, _keep) = open(Arch { tie_word_embeddings: true, ..tiny_arch() });
    let (untied, _keep_too) = open(tiny_arch());
    let digest = untied.digest("lm_head.weight").unwrap();
    assert!(Fingerprint::new(&tied).add(digest).is_err());
}

/// A table that has a few rows more than a piece, and tensors of less than one.
#[test]
fn a_tensor_in_pieces_is_the_tensor_and_has_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    for stored in [StoredType::Bf16, StoredType::F16, StoredType::F32] {
        let config = Arch { vocab_size: PIECE / 64 + 100, num_layers: 1, ..tiny_arch() };
        Synthetic { stored, shards: 2, ..Synthetic::new(config, 3) }.write(dir.path()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for name in checkpoint.names() {
            let (whole, expected) = checkpoint.read_with_digest(name).unwrap();
            let (mut lengths, mut values) = (Vec::new(), Vec::new());
            let mut take = |piece: HostTensor| {
                assert_eq!(piece.stored_type(), stored);
                lengths.extend(piece.shape.iter().copied());
                values.extend(piece.to_f32());
                Ok(())
            };
            assert_eq!(checkpoint.read_pieces_with_digest(name, &mut take).unwrap(), expected, "{name}");
            assert!(values == whole.to_f32(), "{name}");
            let (last, others) = lengths.split_last().unwrap();
            assert!(*last <= PIECE && others.iter().all(|&len| len == PIECE), "{name}: {lengths:?}");
            assert_eq!(others.len(), whole.shape.iter().product::<usize>() / PIECE, "{name}");
        }
        // Nothing more is taken after an error, whatever was read ahead.
        let mut taken = 0;
        let mut take = |_: HostTensor| {
            taken += 1;
            Err(Error::Failed("enough".to_owned()))
        };
        let error = checkpoint.read_pieces_with_digest("model.embed_tokens.weight", &mut take).unwrap_err();
        assert_eq!((error.to_string().as_str(), taken), ("enough", 1));
    }
}

const TABLE: &str = "model.embed_tokens.weight";

/// A model whose table has more pieces than wait to be taken.
fn with_a_long_table(dir: &std::path::Path) -> Checkpoint {
    let config = Arch { vocab_size: 8 * PIECE / 64 + 100, num_layers: 1, tie_word_embeddings: true, ..tiny_arch() };
    Synthetic::new(config, 3).write(dir).unwrap();
    Checkpoint::open(dir).unwrap()
}

/// The thread that reads ahead stands still before pieces that nobody takes, and ends with the call.
#[test]
fn reading_ahead_ends_where_a_piece_is_refused_and_where_taking_one_panics() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = with_a_long_table(dir.path());
    for at in [0, 2] {
        let mut taken = 0;
        let mut take = |_: HostTensor| {
            // Meanwhile all that may wait is read.
            std::thread::sleep(std::time::Duration::from_millis(20));
            taken += 1;
            if taken > at { Err(Error::Failed("enough".to_owned())) } else { Ok(()) }
        };
        let error = checkpoint.read_pieces_with_digest(TABLE, &mut take).unwrap_err();
        assert_eq!((error.to_string().as_str(), taken), ("enough", at + 1));
    }
    let panics = || checkpoint.read_pieces_with_digest(TABLE, &mut |_| panic!("as the test wants it"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert_eq!(checkpoint.read_pieces_with_digest(TABLE, &mut |_| Ok(())).unwrap(), checkpoint.digest(TABLE).unwrap());
}

/// A file that was cut off after it was opened: what it still has is taken, and the error names file and tensor.
#[test]
fn a_file_that_ends_within_a_piece_is_an_error_after_the_pieces_before() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = with_a_long_table(dir.path());
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len as usize]).unwrap();
    let first = header[TABLE]["data_offsets"][0].as_u64().unwrap();
    // Two pieces of bf16, and half of the third.
    let end = 8 + len + first + 5 * PIECE as u64;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(end).unwrap();
    let mut taken = Vec::new();
    let mut take = |piece: HostTensor| {
        taken.push(piece.shape[0]);
        Ok(())
    };
    let error = checkpoint.read_pieces_with_digest(TABLE, &mut take).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains(TABLE), "{error}");
    assert_eq!(taken, [PIECE; 2]);
}
