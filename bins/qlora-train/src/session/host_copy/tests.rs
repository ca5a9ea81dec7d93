use super::*;

#[test]
fn processes_share_weights_unless_one_is_told_not_to() {
    let found = [None, Some(""), Some(" on "), Some("off")].map(|value| allowed(value).unwrap());
    assert_eq!(found, [true, true, true, false]);
    let error = allowed(Some("no")).unwrap_err().to_string();
    assert_eq!(error, "environment variable QLORA_SHARED_WEIGHTS: found \"no\", expected \"on\" or \"off\"");
}

#[test]
fn ranks_that_plan_alike_share_and_others_do_not() {
    let bytes = [700, 700, 0, 0, 700, 800];
    assert!(share(&[0, 1], &bytes) && share(&[0, 1, 4], &bytes));
    for ranks in [&[][..], &[0], &[2, 3], &[0, 5], &[0, 2], &[2, 0]] {
        assert!(!share(ranks, &bytes), "{ranks:?}");
    }
}

#[test]
fn a_file_that_the_device_does_not_pin_is_not_used() {
    let made = memory_file::create().unwrap();
    let offered = || Offer::of(&made).unwrap();
    let offer = Ok(offered());
    let fits = |file: &File| -> Result<()> {
        assert_eq!(file.metadata().unwrap().len(), PAGE as u64);
        Ok(())
    };
    assert!(opened(Some(&made), Some(&offer), &fits).is_ok() && opened(None, Some(&offer), &fits).is_ok());
    let refused = |_: &File| -> Result<()> { Err(Error::Failed("no such memory".to_owned())) };
    assert_eq!(opened(None, Some(&offer), &refused).unwrap_err(), "no such memory");
    assert_eq!(opened(None, Some(&Err("no memfd".to_owned())), &fits).unwrap_err(), "no memfd");
    assert_eq!(opened(None, None, &fits).unwrap_err(), "none was offered");
    // A page of another file.
    let other = Offer { mark: vec![1; 16], ..offered() };
    assert!(opened(None, Some(&Ok(other)), &fits).unwrap_err().contains("is something else here"));
}
