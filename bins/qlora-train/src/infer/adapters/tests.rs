use super::*;

fn parsed(given: &[&str]) -> Result<Adapters> {
    Adapters::parse(&given.iter().map(PathBuf::from).collect::<Vec<_>>())
}

#[test]
fn names_and_weights_stand_around_the_directory() {
    let adapters = parsed(&["no/a", "x=no/b"]).unwrap();
    assert_eq!(adapters.dirs, [Path::new("no/a"), Path::new("no/b")]);
    assert_eq!(adapters.passes(), [Some("no/a".to_owned()), Some("x".to_owned())]);
    let sum = parsed(&["no/a:0.25", "x=no/b:-2", "no/c"]).unwrap();
    assert_eq!((sum.together(), sum.weights()), (Together::Sum, &[0.25, -2.0, 1.0][..]));
    assert_eq!(sum.passes(), [Some("no/a:0.25 + x:-2 + no/c:1".to_owned())]);
    assert_eq!(sum.dirs[1], Path::new("no/b"));
    for whole in ["no/x=y", "=no", "no/a:b"] {
        assert_eq!(parsed(&[whole]).unwrap().dirs, [Path::new(whole)], "{whole}");
    }
    for (given, words) in [
        (&["no/a:inf"][..], "finite"),
        (&["x=no/a:"][..], "found no weight after the colon, expected no/a or a number as in no/a:0.5"),
        (&["x=no/a", "x=no/b"][..], "\"x\" twice"),
        (&["x=no/a:2", "x=no/b:3"][..], "\"x\" twice"),
        (&["x", "x=no/b"][..], "\"x\" twice"),
    ] {
        let error = parsed(given).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(parsed(&["no/a:0.5", "no/a:0.5"]).unwrap().weights(), [0.5, 0.5]);
    assert_eq!(Adapters::default().passes(), [None]);
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("r=8:0.5");
    std::fs::create_dir(&there).unwrap();
    let found = Adapters::parse([&there]).unwrap();
    assert_eq!((&found.dirs[..], found.together()), (&[there][..], Together::OneByOne));
}

#[test]
fn several_become_their_sum_and_one_stays() {
    let of = |given: &[&str]| parsed(given).unwrap().added_up();
    for (given, together) in [
        (&["no/a"][..], Together::OneByOne),
        (&["no/a:1"][..], Together::OneByOne),
        (&["no/a:0.5"][..], Together::Sum),
        (&["no/a", "no/b"][..], Together::Sum),
    ] {
        assert_eq!(of(given).together(), together, "{given:?}");
    }
    assert_eq!(of(&["x=no/a", "no/b:2"]).passes(), [Some("x:1 + no/b:2".to_owned())]);
}

#[test]
fn rows_name_adapters_by_name_directory_or_its_end() {
    let adapters = parsed(&["runs/a", "x=runs/b", "other/b"]).unwrap().by_row().unwrap();
    for (named, expected) in [("runs/a", 0), (" a ", 0), ("x", 1), ("runs/b", 1), ("other/b", 2), ("", -1)] {
        assert_eq!(adapters.number(Some(named)).unwrap(), expected, "{named}");
    }
    assert_eq!(adapters.number(None).unwrap(), -1);
    for unknown in ["b", "runs", "X"] {
        let error = adapters.number(Some(unknown)).unwrap_err().to_string();
        assert!(error.contains(&format!("{unknown:?}")) && error.contains("\"x\""), "{error}");
    }
    let none: &[&str] = &[];
    for (given, words) in
        [(none, "no adapter"), (&["a:1"][..], "weight"), (&["x=a", "x=b"][..], "twice"), (&["a", "a"][..], "twice")]
    {
        let error = parsed(given).and_then(Adapters::by_row).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
