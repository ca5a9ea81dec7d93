use super::*;
use crate::arch::Arch;
use crate::base::synthetic::{Synthetic, tiny_arch};
use crate::files::tensor::StoredType;
use std::fs::OpenOptions;

const HEAD: &str = "lm_head.weight";

fn written(stored: StoredType) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let model = Synthetic { stored, ..Synthetic::new(Arch { vocab_size: 50, ..tiny_arch() }, 3) };
    model.write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn rows_are_those_of_the_whole_matrix_whatever_memory_they_are_read_into() {
    for stored in [StoredType::Bf16, StoredType::F16, StoredType::F32] {
        let (_dir, checkpoint) = written(stored);
        let (whole, rows) = (checkpoint.read(HEAD).unwrap(), checkpoint.rows_on_disk(HEAD).unwrap());
        assert_eq!([rows.rows(), rows.columns()], whole.shape[..]);
        let bytes = whole.bytes();
        let row = bytes.len() / 50;
        let mut reused = Some(TensorData::F32(vec![7.0; 3]));
        for range in [0..1, 7..20, 49..50, 0..50, 3..5] {
            let found = rows.read(range.clone(), reused.take()).unwrap();
            assert_eq!(found.shape, [range.len(), rows.columns()]);
            assert!(found.bytes() == &bytes[range.start * row..range.end * row], "{stored:?} {range:?}");
            reused = Some(found.data);
        }
        rows.forget_pages(0..50);
    }
}

#[test]
fn a_file_that_changes_is_told_with_the_tensor() {
    let (dir, checkpoint) = written(StoredType::Bf16);
    let rows = checkpoint.rows_on_disk(HEAD).unwrap();
    let file = OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap();
    file.set_len(100).unwrap();
    let error = rows.read(0..1, None).unwrap_err();
    assert_eq!(error.exit_status(), 1);
    for words in ["model.safetensors", "was changed", "tensor `lm_head.weight`", "`lm_head: disk`", "put it back"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}
