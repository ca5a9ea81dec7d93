use super::*;

fn shares(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let mut stream = Stream::new(sampling.seed, SAMPLING_DOMAIN);
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..20_000 {
        counts[choose(logits, &[], sampling, &mut stream).unwrap() as usize] += 1.0 / 20_000.0;
    }
    counts
}

#[test]
fn the_first_of_the_largest_is_found_and_no_nan_is_passed_over() {
    for len in [1usize, 15, 16, 17, 40] {
        for at in 0..len {
            let mut logits = vec![f32::NEG_INFINITY; len];
            assert_eq!(argmax(&logits), 0);
            logits[at..].fill(-3.5);
            assert_eq!((argmax(&logits), largest(&logits)), (at, -3.5));
            logits[at] = f32::NAN;
            assert!(largest(&logits).is_nan(), "{at} of {len}");
        }
    }
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let logits = [0.3f32, -1.0, 2.0, 0.9];
    for temperature in [0.5, 1.0, 2.0] {
        let expected: Vec<f64> = logits.iter().map(|&x| f64::from(x / temperature).exp()).collect();
        let total: f64 = expected.iter().sum();
        let found = shares(&logits, &Sampling { temperature, seed: 3, ..Sampling::GREEDY });
        for (found, expected) in found.iter().zip(&expected) {
            // Four standard deviations of 20,000 draws are 0.014.
            assert!((found - expected / total).abs() < 0.015, "{found} {}", expected / total);
        }
    }
}

#[test]
fn top_p_draws_from_the_fewest_tokens_that_reach_it() {
    let logits = [0.0f32, 2.0, 1.0, -4.0];
    let found = shares(&logits, &Sampling { temperature: 1.0, top_p: 0.9, seed: 1, ..Sampling::GREEDY });
    // Probabilities 0.090, 0.665, 0.244 and 0.002: the first two make up 0.909.
    assert!(found[0] == 0.0 && found[3] == 0.0 && (found[1] - 0.731).abs() < 0.015, "{found:?}");
    let smallest = Sampling { temperature: 1.0, top_p: 1e-6, seed: 1, ..Sampling::GREEDY };
    assert_eq!(shares(&logits, &smallest)[1].round(), 1.0);
}

#[test]
fn top_k_draws_from_the_most_likely_and_top_p_from_those() {
    let logits = [0.0f32, 2.0, 1.0, -4.0];
    let of = |top_k, top_p| shares(&logits, &Sampling { temperature: 1.0, top_k, top_p, seed: 1, ..Sampling::GREEDY });
    let two = of(2, 1.0);
    // 0.665 and 0.244 of 0.909.
    assert!(two[0] == 0.0 && two[3] == 0.0 && (two[1] - 0.731).abs() < 0.015, "{two:?}");
    assert_eq!(of(1, 1.0)[1].round(), 1.0);
    assert_eq!((of(9, 1.0), of(0, 1.0)[3] > 0.0), (of(0, 1.0), true));
    // The first makes up 0.731 of the two, and 0.665 of all.
    assert_eq!(of(2, 0.7)[1].round(), 1.0);
    assert!(of(0, 0.7)[2] > 0.0);
}

#[test]
fn tokens_of_the_row_become_less_likely() {
    let logits = [2.0f32, 1.5, -1.0, -1.5];
    assert_eq!(penalize(&logits, &[0, 3, 0], 2.0), [1.0, 1.5, -1.0, -3.0]);
    let of = |row: &[u32], repetition_penalty| {
        let sampling = Sampling { repetition_penalty, ..Sampling::GREEDY };
        choose(&logits, row, &sampling, &mut Stream::new(0, 0)).unwrap()
    };
    assert_eq!((of(&[0], 1.0), of(&[0], 2.0), of(&[0, 1], 2.0), of(&[2], 2.0)), (0, 1, 0, 0));
}

#[test]
fn greedy_takes_the_first_of_the_largest_and_refuses_what_is_not_finite() {
    let greedy = |logits: &[f32]| choose(logits, &[], &Sampling::GREEDY, &mut Stream::new(0, 0));
    assert_eq!(greedy(&[1.0, 3.0, 3.0]).unwrap(), 1);
    for bad in [[f32::NAN, 0.0], [0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
        assert!(greedy(&bad).unwrap_err().to_string().contains("not finite"), "{bad:?}");
    }
}
