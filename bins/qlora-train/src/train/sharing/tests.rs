use super::*;
use crate::config::SETTINGS;

/// One of two ranks: what rank 0 gives goes through `given`.
struct OfTwo<'a> {
    rank: usize,
    given: &'a mut Vec<Vec<u8>>,
}

impl Communicator for OfTwo<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        2
    }

    fn on_this_machine(&self) -> (usize, usize) {
        (self.rank, 2)
    }

    fn all_reduce_sum(&mut self, _gradients: &mut [f32], _totals: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&mut self, _what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec(); 2])
    }

    fn broadcast(&mut self, _what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        match self.rank {
            0 => self.given.push(own.clone()),
            _ => return Ok(self.given.remove(0)),
        }
        Ok(own)
    }
}

#[test]
fn a_tensor_of_any_size_is_given_in_pieces() {
    for (length, pieces) in [(0, 0), (1, 1), (PIECE - 1, 1), (PIECE, 1), (PIECE + 3, 2)] {
        let mut values = vec![7u8; length];
        values.iter_mut().step_by(99_991).enumerate().for_each(|(at, value)| *value = at as u8);
        let mut given = Vec::new();
        let first = shared(&mut OfTwo { rank: 0, given: &mut given }, "a", values.clone()).unwrap();
        assert!(first == values && given.len() == pieces && given.iter().all(|piece| piece.len() <= PIECE));
        let other = shared(&mut OfTwo { rank: 1, given: &mut given }, "a", vec![0u8; length]).unwrap();
        assert!(other == values && given.is_empty(), "{length}");
    }
    let mut given = vec![vec![0; 3]];
    let error = shared(&mut OfTwo { rank: 1, given: &mut given }, "a", vec![0u8; 4]).unwrap_err().to_string();
    assert_eq!(error, "`a`: rank 0 sent 3 bytes, expected 4");
}

/// Each machine may have its files elsewhere: a path is never compared, its contents are where they count.
#[test]
fn no_setting_that_names_a_path_has_to_be_alike() {
    let names_path = |values: &str| values.split(|c: char| !c.is_alphabetic()).any(|word| word.starts_with("path"));
    let paths: Vec<&str> = SETTINGS.iter().filter(|info| names_path(info.values)).map(|info| info.name).collect();
    assert!(paths.len() >= 10 && paths.contains(&"tokenized_cache"), "{paths:?}");
    let compared: Vec<_> = paths.into_iter().filter(|name| !OF_A_RANK.contains(name)).collect();
    assert!(compared.is_empty(), "{compared:?}");
    let unknown: Vec<_> = OF_A_RANK.iter().filter(|name| SETTINGS.iter().all(|info| info.name != **name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
