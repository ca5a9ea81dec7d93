use super::*;
use crate::arch::Arch;
use crate::base::Checkpoint;
use crate::base::synthetic::{Synthetic, tiny_arch};

const HEAD: &str = "lm_head.weight";

/// Passes over output layers of one part, of two, which both stay in memory, and of four: parts come in order, each row
/// once, and two are in memory at a time.
#[test]
fn every_row_comes_once_in_every_pass() {
    for vocab in [300, ROWS, ROWS + 5, 3 * ROWS + 1] {
        let dir = tempfile::tempdir().unwrap();
        Synthetic::new(Arch { vocab_size: vocab, hidden_size: 64, ..tiny_arch() }, 5).write(dir.path()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let whole = checkpoint.read(HEAD).unwrap();
        let (memory, traffic) = (HostMemory::new(false), Rc::new(Cell::new(None)));
        let (stored, kind) = (checkpoint.rows_on_disk(HEAD).unwrap(), whole.stored_type());
        let table = TableOnDisk::new(&memory, Some(stored), [vocab, 64], true, kind, traffic.clone());
        assert_eq!(memory.bytes(), (vocab.min(2 * ROWS) * 64 * 2) as u64);
        for _ in 0..3 {
            let (mut bytes, mut next) = (Vec::new(), 0);
            let each = table.each_part(&mut |rows, matrix| {
                let Matrix::Dense(dense) = matrix else { unreachable!("parts are stored as they are") };
                assert_eq!((rows.start, dense.rows()), (next, rows.len()));
                bytes.extend_from_slice(dense.tensor.bytes());
                next = rows.end;
            });
            each.unwrap();
            assert!(next == vocab && bytes == whole.bytes(), "{vocab}");
        }
        assert!(table.parts.borrow().loaded.len() <= PARTS);
        // A table that stays in memory is read once.
        let passes = if vocab > 2 * ROWS { 3 } else { 1 };
        assert_eq!(traffic.get().unwrap().bytes, passes * whole.bytes().len() as u64, "{vocab}");
        assert_eq!(has_parts(vocab), vocab > ROWS);
    }
}
