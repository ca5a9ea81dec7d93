use proptest::prelude::*;
use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::files::tensor::HostTensor;

use super::{configs, stored_types};
use trainer_lab::assert_refused::assert_refused;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_was_written_is_read(
        config in configs(), seed: u64, stored in stored_types(), shards in 1..6usize, v4: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let model = Synthetic { config: config.clone(), seed, stored, shards, v4 };
        model.write(dir.path()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        prop_assert_eq!(checkpoint.arch(), &config);
        prop_assert_eq!(checkpoint.dir(), dir.path());
        prop_assert!(checkpoint.notes().is_empty());
        let mut expected = config.tensors();
        let mut bytes = 0;
        for (name, shape) in &expected {
            let tensor = model.tensor(name, shape);
            prop_assert_eq!(checkpoint.shape(name), Some(&shape[..]));
            prop_assert_eq!(checkpoint.stored_type(name), Some(stored));
            prop_assert_eq!(&checkpoint.read_f32(name).unwrap(), &tensor.to_f32());
            prop_assert_eq!(&checkpoint.read(name).unwrap(), &tensor);
            bytes += tensor.bytes().len() as u64;
        }
        prop_assert_eq!(checkpoint.stored_bytes(), bytes);
        expected.sort();
        prop_assert!(checkpoint.names().eq(expected.iter().map(|(name, _)| name.as_str())));
    }
}

/// Longer than the 1 MiB in which tensors are read, at a length that the pieces do not divide.
#[test]
fn a_tensor_of_several_pieces_is_read_whole() {
    let config = Arch { vocab_size: 10_007, num_layers: 1, tie_word_embeddings: true, ..tiny_arch() };
    let dir = tempfile::tempdir().unwrap();
    let model = Synthetic::new(config, 3);
    model.write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let name = "model.embed_tokens.weight";
    let expected: HostTensor = model.tensor(name, &[10_007, 64]);
    assert!(expected.bytes().len() > 1 << 20);
    assert_eq!(checkpoint.read(name).unwrap(), expected);
    assert_eq!(checkpoint.read_f32(name).unwrap(), expected.to_f32());
    assert_eq!(checkpoint.read_f32_with_digest(name).unwrap().1, checkpoint.digest(name).unwrap());
}

/// The header's length decides where the data begins: at odd addresses too.
#[test]
fn data_at_an_odd_offset_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = Synthetic::new(tiny_arch(), 4);
    model.write(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (header, data) = bytes[8..].split_at(length as usize);
    std::fs::write(&path, [&(length + 3).to_le_bytes()[..], header, b"   ", data].concat()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for (name, shape) in tiny_arch().tensors() {
        assert_eq!(checkpoint.read(&name).unwrap(), model.tensor(&name, &shape));
    }
}

#[test]
fn an_independent_reader_reads_the_synthetic_file() {
    let dir = tempfile::tempdir().unwrap();
    let model = Synthetic::new(tiny_arch(), 5);
    model.write(dir.path()).unwrap();
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let expected = tiny_arch().tensors();
    assert_eq!(file.len(), expected.len());
    for (name, shape) in expected {
        let view = file.tensor(&name).unwrap();
        assert_eq!((view.shape(), view.data()), (&shape[..], model.tensor(&name, &shape).bytes()));
    }
}

#[test]
fn a_tensor_that_is_not_there_and_a_file_that_shrank_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    Synthetic::new(tiny_arch(), 6).write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_refused(checkpoint.read("model.nothing"), &["model.nothing"]);
    let path = dir.path().join("model.safetensors");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let errors: Vec<_> = checkpoint.names().filter_map(|name| checkpoint.read(name).err()).collect();
    assert_eq!(errors.len(), 1, "only the last tensor is cut");
    assert_eq!(errors[0].exit_status(), 1);
    assert!(errors[0].to_string().contains("was the file changed"), "{}", errors[0]);
    assert_eq!(checkpoint.fingerprint().unwrap_err().exit_status(), 1);
}
