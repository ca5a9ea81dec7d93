//! Agreement of all ranks: values that must be alike, and decisions.

use super::Communicator;
use crate::error::{Context, Error, Result};
use crate::files::json::shown;
use serde_json::{Map, Value};

/// A value in which a rank differs from the first one that has any.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub rank: usize,
    /// Name of the value
    pub name: String,
    /// Value of that rank
    pub there: String,
    /// Value of the rank that it is compared with
    pub here: String,
}

/// All in which ranks differ from the first of `all`, by rank and then by the name of the value.
pub fn differences(all: &[(usize, Map<String, Value>)]) -> Vec<Difference> {
    let Some(((_, first), others)) = all.split_first() else { return Vec::new() };
    let in_words = |values: &Map<String, Value>, name: &str| values.get(name).map_or("nothing".to_owned(), shown);
    let mut found = Vec::new();
    for (rank, other) in others {
        let added = other.keys().filter(|name| !first.contains_key(*name));
        for name in first.keys().chain(added).filter(|name| first.get(*name) != other.get(*name)) {
            let (there, here) = (in_words(other, name), in_words(first, name));
            found.push(Difference { rank: *rank, name: name.clone(), there, here });
        }
    }
    found
}

/// Refuses ranks that differ in any of `values`, by the name of the rank and of the first that differs. `what` they are
/// of.
pub fn agree(comm: &mut dyn Communicator, what: &str, values: &Map<String, Value>) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let own = serde_json::to_vec(values).context(|| what.to_owned())?;
    let all = comm.all_gather(what, &own)?;
    let read = |rank: usize| -> Result<(usize, Map<String, Value>)> {
        let values = serde_json::from_slice(&all[rank]).context(|| format!("{what} of {}", comm.name_of(rank)))?;
        Ok((rank, values))
    };
    let of_ranks = (0..all.len()).map(read).collect::<Result<Vec<_>>>()?;
    let Some(Difference { rank, name, there, here }) = differences(&of_ranks).into_iter().next() else {
        return Ok(());
    };
    Err(Error::Refused(format!(
        "{} differs from {} in {name}: {there} there, {here} here at rank 0; start all ranks with the same program, \
         settings, data and base",
        comm.name_of(rank),
        comm.name_of(0),
    )))
}

/// Fails where a rank has come to other values than rank 0: it computes something else.
pub fn agree_on_results(comm: &mut dyn Communicator, what: &str, own: &[u8]) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let all = comm.all_gather(what, own)?;
    match all.iter().position(|one| *one != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Failed(format!(
            "{} has diverged from rank 0: it has another {what}; nothing more is written. Processors of different kinds, or \
             a fault of memory, may be the cause",
            comm.name_of(rank)
        ))),
    }
}

/// Word of a rank between two micro-batches: the signal that it received, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signs {
    pub signal: Option<i32>,
    /// Step, and the bits of the last gradient norm: the same on all ranks
    pub step: u64,
    pub norm: u64,
}

impl Signs {
    fn bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.signal.unwrap_or(0).to_le_bytes());
        bytes[4..12].copy_from_slice(&self.step.to_le_bytes());
        bytes[12..].copy_from_slice(&self.norm.to_le_bytes());
        bytes
    }

    /// The signal that any of the ranks received, the first by rank. Failed: a rank has come to something else.
    pub fn agreed(self, comm: &mut dyn Communicator) -> Result<Option<i32>> {
        if comm.world_size() == 1 {
            return Ok(self.signal);
        }
        let all = comm.all_gather("signals", &self.bytes())?;
        if let Some(rank) = all.iter().position(|one| one.get(4..) != all[0].get(4..)) {
            return Err(Error::Failed(format!(
                "{} has diverged from rank 0 at step {}: its gradients have another norm after the same sum; nothing more is \
                 written. Processors of different kinds, or a fault of memory, may be the cause",
                comm.name_of(rank),
                self.step
            )));
        }
        let signal = |one: &Vec<u8>| one.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)).filter(|&of| of != 0);
        Ok(all.iter().find_map(signal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Ranks of which the others are known to have given these.
    struct Others(Vec<Vec<u8>>);

    impl Communicator for Others {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            self.0.len() + 1
        }

        fn on_this_machine(&self) -> (usize, usize) {
            (0, self.world_size())
        }

        fn all_reduce_sum(&mut self, _gradients: &mut [f32], _totals: &mut [f64]) -> Result<()> {
            Ok(())
        }

        fn all_gather(&mut self, _what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
            Ok([&[own.to_vec()], &self.0[..]].concat())
        }

        fn broadcast(&mut self, _what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
            Ok(own)
        }
    }

    #[test]
    fn a_rank_that_differs_is_named_with_what_differs() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let own = map(json!({"`seed`": 1, "`lora_r`": 4}));
        let given = |others: &[Value]| {
            let others = others.iter().map(|other| serde_json::to_vec(other).unwrap()).collect();
            agree(&mut Others(others), "settings", &own)
        };
        given(&[json!({"`seed`": 1, "`lora_r`": 4}), json!({"`lora_r`": 4, "`seed`": 1})]).unwrap();
        let error = given(&[json!({"`seed`": 1, "`lora_r`": 4}), json!({"`seed`": 2, "`lora_r`": 4})]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("rank 2 differs from rank 0 in `seed`: 2 there, 1 here"), "{text}");
        assert_eq!(error.exit_status(), 2);
        let text = given(&[json!({"`seed`": 1})]).unwrap_err().to_string();
        assert!(text.contains("rank 1 differs from rank 0 in `lora_r`: nothing there, 4 here"), "{text}");
    }

    #[test]
    fn all_differences_are_found_also_where_rank_0_has_no_values() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let first = (1, map(json!({"`seed`": 1, "`lora_r`": 4})));
        let found = differences(&[first.clone(), first.clone(), (3, map(json!({"`seed`": 2, "`preset`": "qlora"})))]);
        let found: Vec<_> = found.iter().map(|of| (of.rank, &*of.name, &*of.there, &*of.here)).collect();
        let expected =
            [(3, "`lora_r`", "nothing", "4"), (3, "`seed`", "2", "1"), (3, "`preset`", "\"qlora\"", "nothing")];
        assert!(found.len() == 3 && expected.iter().all(|of| found.contains(of)), "{found:?}");
        assert!(differences(&[first]).is_empty() && differences(&[]).is_empty());
    }

    #[test]
    fn a_signal_of_any_rank_is_one_of_all_and_another_norm_is_not_passed_over() {
        let own = Signs { signal: None, step: 3, norm: 7 };
        let with = |other: Signs| own.agreed(&mut Others(vec![own.bytes().to_vec(), other.bytes().to_vec()]));
        assert_eq!(with(own).unwrap(), None);
        assert_eq!(with(Signs { signal: Some(15), ..own }).unwrap(), Some(15));
        for other in [Signs { norm: 8, ..own }, Signs { step: 4, signal: Some(15), ..own }] {
            assert!(with(other).unwrap_err().to_string().contains("rank 2 has diverged"));
        }
        assert!(agree_on_results(&mut Others(vec![vec![1]]), "adapter", &[1]).is_ok());
        let error = agree_on_results(&mut Others(vec![vec![1], vec![2]]), "adapter", &[1]).unwrap_err();
        assert!(error.to_string().starts_with("rank 2 has diverged"), "{error}");
    }
}
