use super::*;

#[test]
fn texts_are_cut_between_words_and_behind_lines() {
    let places = |text: &str| (1..text.len()).filter(|&at| text.is_char_boundary(at) && is_place(text, at)).collect();
    let none: Vec<usize> = Vec::new();
    let found: Vec<usize> = places("ab cd\nef");
    assert_eq!(found, [2, 6]);
    let found: Vec<usize> = places("。\n第 1");
    assert_eq!(found, [4, 7]);
    for text in ["a  b", "a\n\nb", "a \nb", "a\u{3000}\nb", "a \tb", "a\n/b", "\nb", " b", "a ", "a\n", "ab"] {
        let found: Vec<usize> = places(text);
        assert_eq!(found, none, "{text:?}");
    }
}

#[test]
fn parts_are_of_usual_length_and_make_the_whole() {
    let text = "some words of text\n".repeat(20_000);
    let found = parts(&text, true).unwrap();
    assert!(found.iter().all(|part| part.len() <= PART_BYTES) && found.len() == text.len().div_ceil(PART_BYTES));
    assert_eq!(found.iter().map(|part| &text[part.clone()]).collect::<String>(), text);
    assert_eq!(parts(&text, false).unwrap(), vec![0..text.len(); 1]);
    // A run without a place is one part, and refused where it is too long.
    let run = format!("a b{}x y{}", "1".repeat(PART_BYTES * 2), " z".repeat(PART_BYTES));
    let found = parts(&run, true).unwrap();
    assert_eq!(found[0], 0..1);
    assert!(found[1].len() > 2 * PART_BYTES && found.len() > 3, "{found:?}");
    assert_eq!(parts(&"1".repeat(MAX_PART_BYTES + 1), true), Err(MAX_PART_BYTES + 1));
    assert_eq!(parts(&text.repeat(4), false), Err(text.len() * 4));
    assert_eq!(parts("", true).unwrap(), vec![0..0; 1]);
}

#[test]
fn long_texts_wait_for_each_other() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NOW: AtomicUsize = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    in_turn(MAX_PART_BYTES * 2 / 3, || {
                        assert_eq!(NOW.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        NOW.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        }
    });
    assert!(std::panic::catch_unwind(|| in_turn(MAX_PART_BYTES, || panic!("broken"))).is_err());
    assert_eq!(in_turn(usize::MAX, || 7), 7);
}
