use super::*;
use std::error::Error as _;
use std::io;

#[test]
fn an_error_keeps_its_kind_and_its_causes_under_every_context() {
    let refused = || Err::<(), _>(Error::Refused("key `r`: found 0".to_owned()));
    let interrupted = || Err::<(), _>(Error::Interrupted(15));
    let missing = || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound));
    let what = || "a/config.json".to_owned();
    for (error, status) in [
        (refused().context(what), 2),
        (refused().failure_context(what), 1),
        (interrupted().context(what), 143),
        (missing().context(what), 1),
        (missing().usage_context(what), 2),
        (missing().context(what).context(what), 1),
        (Err("a sentence").usage_context(what), 2),
    ] {
        let error = error.unwrap_err();
        assert_eq!(error.exit_status(), status, "{error}");
        assert!(error.to_string().starts_with("a/config.json: "), "{error}");
        assert!(error.source().is_some(), "{error}");
    }
    let error = missing().context(what).context(what).unwrap_err();
    let cause = error.source().and_then(|error| error.source()).unwrap();
    assert_eq!(cause.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
}

#[test]
fn lines_of_a_message_are_its_own() {
    let lines = || Error::RefusedLines(vec!["run.yaml: `a\nb` is no key".to_owned(), " 1 | x: 2".to_owned()]);
    let told = Err::<(), _>(lines()).context(|| "settings".to_owned()).unwrap_err().usage_hint(|| "see".to_owned());
    assert_eq!(told.lines(), ["settings: run.yaml: `a\nb` is no key", " 1 | x: 2; see"]);
    assert_eq!(told.to_string(), told.lines().join("\n"));
    assert_eq!((lines().exit_status(), lines().lines().len()), (2, 2));
    assert_eq!(Error::Refused("a\nb".to_owned()).lines(), ["a\nb"]);
}

#[test]
fn a_hint_is_for_faults_of_the_input() {
    let hint = || "choose another".to_owned();
    let refused = Error::Refused("out: is a file".to_owned()).usage_hint(hint);
    assert_eq!((refused.to_string().as_str(), refused.exit_status()), ("out: is a file; choose another", 2));
    let failed = Error::Failed("the disk is full".to_owned()).usage_hint(hint);
    assert_eq!((failed.to_string().as_str(), failed.exit_status()), ("the disk is full", 1));
}
