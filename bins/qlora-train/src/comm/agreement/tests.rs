use super::*;
use serde_json::json;

/// A communicator whose other ranks give these bytes.
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
    let expected = [(3, "`lora_r`", "nothing", "4"), (3, "`seed`", "2", "1"), (3, "`preset`", "\"qlora\"", "nothing")];
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
