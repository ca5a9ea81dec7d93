use super::*;

#[test]
fn what_is_thought_is_told_from_what_is_said() {
    let told = |content: &'static str| thinking(content).unwrap();
    assert_eq!(thinking("plain < text"), None);
    assert_eq!(told("<think>\na\n</think>\n\nx"), (vec!["a"], vec!["x"]));
    assert_eq!(told("a</think>x"), (vec!["a"], vec!["x"]));
    assert_eq!(told("w<think>a</think>x<think>b</think>y"), (vec!["a", "b"], vec!["w", "x", "y"]));
    assert_eq!(told("<think>a</think>x</think>y"), (vec!["a"], vec!["x", "y"]));
    assert_eq!(told("<think>a</think>"), (vec!["a"], vec![]));
}

#[test]
fn the_end_of_a_thought_is_told_from_the_word_for_it() {
    for (content, is_word, once) in [
        ("Use the tag `</think>` to end.", true, false),
        ("hm\n</think>\n\nx", false, true),
        ("hm</think>\nx", false, true),
        ("<think>hm</think>x", false, true),
        ("pre <think>hm</think> post", false, false),
        ("<think>a</think>x<think>b</think>y", false, false),
        ("plain", false, true),
    ] {
        assert_eq!((mentions_the_end(content), thinks_once(content)), (is_word, once), "{content}");
    }
}

#[test]
fn words_that_a_text_lacks_are_lost_and_other_signs_are_not() {
    for (said, text) in
        [("Title Case.", "title case"), ("a&lt;b &amp; c", "a<b & c"), ("a b c", "a\nb\n\nc"), ("x", "!")]
    {
        assert_eq!(lost(said, text), None, "{text}");
    }
    assert_eq!(lost("a long <|im_end|>", "a long ### answer to it"), Some("answer to it"));
    assert_eq!(lost("x<|im_end|>", "x###d"), Some("d"));
    assert_eq!(lost("b a", "a b"), Some("b"));
}
