use super::*;

/// 10 rows of file 0, 4 of file 1, none of file 2.
fn files() -> Vec<usize> {
    [vec![0; 10], vec![1; 4]].concat()
}

fn counts(mix: &Mix) -> Vec<usize> {
    let mut counts = vec![0; 14];
    mix.rows().for_each(|row| counts[row] += 1);
    counts
}

#[test]
fn rows_are_there_as_often_as_their_file_counts() {
    let mix = |weights: &[f64], seed| Mix::new(&files(), &MixOptions::Weights(weights.to_vec()), seed);
    assert_eq!(counts(&mix(&[1.0, 1.0, 1.0], 1)), [1; 14]);
    let half = mix(&[0.5, 2.5, 3.0], 1);
    let found = counts(&half);
    assert_eq!((found[..10].iter().sum::<usize>(), found[10..].iter().sum::<usize>()), (5, 10));
    assert!(found[..10].iter().all(|&n| n <= 1) && found[10..].iter().all(|&n| n == 2 || n == 3), "{found:?}");
    assert_eq!(counts(&mix(&[0.5, 2.5, 3.0], 1)), found, "the same seed, the same rows");
    assert!((2..9).any(|seed| counts(&mix(&[0.5, 2.5, 3.0], seed)) != found));
    // In the order of the files, whatever is drawn.
    let rows: Vec<usize> = half.rows().collect();
    assert!(rows[..5].is_sorted() && rows[5..9] == [10, 11, 12, 13], "{rows:?}");
    assert_eq!(mix(&[0.001, 1.0, 1.0], 1).len(), 5, "a file that counts has a row at least");
}

#[test]
fn shares_are_those_of_an_epoch_until_one_file_or_all_are_used_up() {
    let mix = |of_each: &[f64], over| Mix::new(&files(), &MixOptions::Shares { of_each: of_each.to_vec(), over }, 1);
    // 4 rows are half of 8; 10 rows are half of 20.
    let (under, over) = (mix(&[0.5, 0.5, 1.0], false), mix(&[3.0, 3.0, 1.0], true));
    let in_epoch = |mix: &Mix| mix.parts().iter().map(|part| part.in_epoch).collect::<Vec<_>>();
    assert_eq!((in_epoch(&under), in_epoch(&over)), (vec![4, 4], vec![10, 10]));
    assert!(counts(&under).iter().all(|&n| n <= 1) && counts(&over).iter().all(|&n| n >= 1));
    let names = ["a.jsonl".to_owned(), "b.jsonl".to_owned()];
    let line = over.line(&names).unwrap();
    assert_eq!(
        line,
        "mixing: 20 rows in an epoch: a.jsonl × 1 (10 → 10 rows), 50.0%; b.jsonl × 2.5 (4 → 10 rows), 50.0%"
    );
    assert_eq!(Mix::all(3).line(&names), None);
}
