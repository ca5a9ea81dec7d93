use super::*;

fn shares(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let mut stream = RngStream::new(sampling.seed, SAMPLING_DOMAIN);
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..20_000 {
        counts[choose(logits, &[], sampling, &mut stream).unwrap() as usize] += 1.0 / 20_000.0;
    }
    counts
}

#[test]
fn the_first_of_the_largest_is_found_and_no_nan_is_passed_over() {
    for len in [1usize, 15, 16, 17, 40, 600] {
        for at in (0..len).step_by(1 + len / 100) {
            let mut logits = vec![f32::NEG_INFINITY; len];
            assert_eq!(first_of(&logits, largest(&logits)), 0);
            logits[at..].fill(-3.5);
            assert_eq!((first_of(&logits, -3.5), largest(&logits)), (at, -3.5));
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

/// A vocabulary that is not sorted at once, with equal logits, against all of it in order.
#[test]
fn the_most_likely_are_those_of_the_whole_order() {
    let mut stream = RngStream::new(5, 0);
    let logits: Vec<f32> = (0..3000).map(|_| stream.below(400) as f32 / 50.0).collect();
    let mut order: Vec<u32> = (0..3000).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    for (temperature, top_k, top_p) in [(1.0, 0, 1.0), (0.1, 0, 1.0), (9.0, 0, 0.9), (9.0, 2500, 1.0), (2.0, 40, 0.5)] {
        let sampling = Sampling { temperature, top_k, top_p, ..Sampling::GREEDY };
        let weight =
            |id: u32| (f64::from(logits[id as usize] - logits[order[0] as usize]) / f64::from(temperature)).exp();
        let among = &order[..if top_k == 0 { order.len() } else { top_k }];
        let total: f64 = among.iter().map(|&id| weight(id)).sum();
        let before = |sum: &mut f64, &id: &u32| Some(std::mem::replace(sum, *sum + weight(id)));
        let sums: Vec<f64> = among.iter().scan(0.0, before).collect();
        // Those before which the sum has not reached the share yet.
        let count = sums.iter().filter(|&&before| top_p == 1.0 || before < f64::from(top_p) * total).count();
        let kept: f64 = among[..count].iter().map(|&id| weight(id)).sum();
        for seed in 0..200 {
            let at = f64::from(RngStream::new(seed, 1).uniform()) * kept;
            let expected = among[sums[..count].partition_point(|&before| before <= at) - 1];
            let found = choose(&logits, &[], &sampling, &mut RngStream::new(seed, 1)).unwrap();
            assert_eq!(found, expected, "{sampling:?}, seed {seed}");
        }
    }
}

#[test]
fn tokens_of_the_row_become_less_likely() {
    let logits = [2.0f32, 1.5, -1.0, -1.5];
    assert_eq!(penalize(&logits, &[0, 3, 0], 2.0), [1.0, 1.5, -1.0, -3.0]);
    let of = |row: &[u32], repetition_penalty| {
        let sampling = Sampling { repetition_penalty, ..Sampling::GREEDY };
        choose(&logits, row, &sampling, &mut RngStream::new(0, 0)).unwrap()
    };
    assert_eq!((of(&[0], 1.0), of(&[0], 2.0), of(&[0, 1], 2.0), of(&[2], 2.0)), (0, 1, 0, 0));
}

#[test]
fn greedy_takes_the_first_of_the_largest_and_refuses_what_is_not_finite() {
    let greedy = |logits: &[f32]| choose(logits, &[], &Sampling::GREEDY, &mut RngStream::new(0, 0));
    assert_eq!(greedy(&[1.0, 3.0, 3.0]).unwrap(), 1);
    for bad in [[f32::NAN, 0.0], [0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
        assert!(greedy(&bad).unwrap_err().to_string().contains("not finite"), "{bad:?}");
    }
}
