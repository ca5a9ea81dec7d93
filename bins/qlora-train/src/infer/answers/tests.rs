use super::*;

#[test]
fn rouge_l_is_that_of_the_python_package() {
    // rouge_score.rouge_scorer.RougeScorer(["rougeL"]).score(reference, answer)
    for (reference, answer, expected) in [
        ("The cat sat on the mat.", "the cat was on the mat", 0.833_333_333),
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("police killed the gunman", "the gunman kill police", 0.5),
        ("a b c d e f", "f e d c b a", 0.166_666_667),
        ("#### 72", "The answer is 72", 0.4),
        ("one two", "", 0.0),
        ("", "one", 0.0),
        ("naïve café", "naïve cafe", 0.666_666_667),
        ("x", "x", 1.0),
    ] {
        assert!(
            (rouge_l(answer, reference) - expected).abs() < 1e-6,
            "{reference:?} {answer:?}: {}",
            rouge_l(answer, reference)
        );
    }
}

#[test]
fn answers_are_the_same_but_for_white_space_or_hold_the_reference_or_end_alike() {
    let of = |answer: &str, reference: &str| Score::of(answer, reference, None);
    assert_eq!((of(" a\n b ", "a b").exact, of("a b c", "a b").exact), (1.0, 0.0));
    assert_eq!((of("so: a b c", "a\tb").contains, of("A b", "a b").contains, of("x", "").contains), (1.0, 0.0, 0.0));
    let number = Regex::new(r"#### (-?[0-9]+)").unwrap();
    let by = |answer: &str, reference: &str| Score::of(answer, reference, Some(&number)).pattern;
    assert_eq!(by("#### 3 no, #### 72", "so #### 72"), Some(1.0));
    assert_eq!([by("72", "#### 72"), by("#### 7", "#### 72"), by("#### 72", "72")], [Some(0.0), Some(0.0), None]);
    let whole = Regex::new("yes|no").unwrap();
    assert_eq!(Score::of("no … yes", "yes", Some(&whole)).pattern, Some(1.0));
}

#[test]
fn means_are_over_all_answers_and_over_those_of_a_task() {
    let score = |exact: f64, pattern| Score { exact, pattern, ..Score::default() };
    let scores = [score(1.0, Some(1.0)), score(0.0, None), score(0.0, Some(0.0))];
    let all = Scores::of(&scores);
    assert!((all.exact - 1.0 / 3.0).abs() < 1e-12 && all.pattern == Some(0.5) && all.answers == 3);
    assert_eq!(Scores::of(&[]), Scores::default());
    let question =
        |task: Option<&str>| Question { prompt: vec![], reference: String::new(), task: task.map(str::to_owned) };
    let tasks = by_task(&[question(Some("b")), question(Some("a")), question(Some("b"))], &scores);
    assert_eq!(
        tasks.iter().map(|(name, of)| (name.as_str(), of.answers, of.exact)).collect::<Vec<_>>(),
        [("a", 1, 0.0), ("b", 2, 0.5)]
    );
    assert!(by_task(&[question(Some("a")), question(Some("a"))], &scores).is_empty());
    assert!(by_task(&[question(None)], &scores).is_empty());
}

#[test]
fn the_last_answer_is_asked_for() {
    assert_eq!(last_answer(&[-100, -100, 5, 6, -100, 7, 8, -100]), Some(5..7));
    assert_eq!(last_answer(&[-100, -100, 1]), Some(2..3));
    for none in [&[1, 2, 3][..], &[-100, 1, 2], &[-100, -100], &[]] {
        assert_eq!(last_answer(none), None, "{none:?}");
    }
}
