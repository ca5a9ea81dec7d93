use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::base::{Checkpoint, Fingerprint};
use qlora_train::files::tensor::StoredType;
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
