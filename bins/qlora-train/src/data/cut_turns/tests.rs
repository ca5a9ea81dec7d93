use super::*;

/// Values of LLaMA-Factory's own function.
#[test]
fn prompt_and_answer_are_cut_in_proportion() {
    for ((prompt, answer, most), expected) in [
        // Its own tests.
        ((3000, 2000, 1000), (600, 400)),
        ((2000, 3000, 1000), (400, 600)),
        ((1000, 100, 1000), (900, 100)),
        ((100, 1000, 1000), (100, 900)),
        ((100, 500, 1000), (100, 500)),
        ((500, 100, 1000), (500, 100)),
        ((300, 500, 1000), (300, 500)),
        ((7, 3, 5), (4, 1)),
        ((0, 9, 4), (0, 4)),
    ] {
        assert_eq!(lengths(prompt, answer, most), expected, "{prompt} {answer} {most}");
    }
}

#[test]
fn turns_are_kept_as_far_as_they_go() {
    const NO: i32 = UNSUPERVISED;
    let row = |labels: &[i32]| Row {
        input_ids: (0..labels.len() as u32).collect(),
        labels: labels.to_vec(),
        weights: (0..labels.len()).map(|at| at as f32).collect(),
        file: 0,
        line: 1,
        task: None,
    };
    for (labels, most, expected) in [
        // One turn: 6 tokens asked and 6 answered.
        (&[NO, NO, NO, NO, NO, NO, 6, 7, 8, 9, 10, 11][..], 6, vec![0, 1, 2, 6, 7, 8]),
        // The first of two is whole, the second as far as there is room; the line break at the end is left out.
        (&[NO, 1, 2, NO, NO, NO, 6, 7, 8, NO], 7, vec![0, 1, 2, 3, 4, 6, 7]),
        (&[NO, 1, 2, NO, NO, NO, 6, 7, 8, NO], 3, vec![0, 1, 2]),
        (&[NO, 1, 2, NO], 3, vec![0, 1, 2]),
        (&[0, 1, 2, 3], 2, vec![0, 1]),
        (&[NO, NO, NO], 2, vec![]),
    ] {
        let mut cut = row(labels);
        cut_turns(&mut cut, most);
        assert_eq!(cut.input_ids, expected, "{labels:?} {most}");
        assert!(cut.labels.iter().zip(&expected).all(|(label, id)| *label == NO || *label as u32 == *id));
        assert!(cut.weights.iter().zip(&expected).all(|(weight, id)| *weight == *id as f32));
    }
}
