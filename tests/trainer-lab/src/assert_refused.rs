//! Properties of every refusal; also for the tests of adapters.

use qlora_train::error::Result;

/// The error is a refusal (exit status 2) whose one sentence holds every word.
pub fn assert_refused<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("accepted, expected a refusal with {words:?}") };
    assert!(error.is_usage(), "{error}");
    assert_eq!(error.exit_status(), 2);
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text:?}");
    for word in words {
        assert!(text.contains(word), "{text:?} lacks {word:?}");
    }
}
