use super::*;

#[test]
fn graphs_are_taken_where_launches_take_longer_than_operations_and_there_is_room() {
    let auto = |hindrance, mean, fits| decide(CudaGraphs::Auto, hindrance, mean, fits).unwrap();
    let (is_on, why) = auto(None, 3e-6, true);
    assert!(is_on && why.contains("3.0 µs") && why.contains("less than a launch"), "{why}");
    let (is_on, why) = auto(None, 30e-6, true);
    assert!(!is_on && why.contains("30.0 µs") && why.contains("more than a launch"), "{why}");
    let (is_on, why) = auto(None, 3e-6, false);
    assert!(!is_on && why.contains("no room for graphs"), "{why}");
    assert_eq!(auto(Some("weights wait"), 3e-6, true), (false, "weights wait".to_owned()));
}

#[test]
fn graphs_that_are_asked_for_are_there_or_refused() {
    assert!(decide(CudaGraphs::On, None, 30e-6, false).unwrap().0, "the room is looked at by itself");
    check_room(3 << 20, 3 << 20).unwrap();
    let error = check_room(3 << 20, 2 << 20).unwrap_err().to_string();
    for words in ["`cuda_graphs`: found on, expected auto or off", "3.0 MiB", "2.0 MiB", "gradient_checkpointing"] {
        assert!(error.contains(words), "{error}");
    }
    assert!(!decide(CudaGraphs::Off, None, 3e-6, true).unwrap().0);
    let error = decide(CudaGraphs::On, Some("weights wait"), 3e-6, true).unwrap_err().to_string();
    for words in ["`cuda_graphs`", "found on", "expected auto or off", "weights wait"] {
        assert!(error.contains(words), "{error}");
    }
}

/// A pass of 28 layers of 45 operations.
#[test]
fn graphs_of_a_small_model_take_little() {
    assert!((100 << 20..300 << 20).contains(&bytes_of(28 * 45)), "{}", bytes_of(28 * 45));
    assert_eq!(bytes_of(0), 0);
}
