use super::*;

const SETTINGS: AdaLora = AdaLora {
    target_r: 2,
    tinit: 4,
    tfinal: 5,
    delta_t: 3,
    beta1: 0.8,
    beta2: 0.9,
    orth_reg_weight: 0.3,
    total_steps: Some(20),
};

fn random(len: usize, domain: u64) -> Vec<f32> {
    initial(RngStream::new(3, domain), len).iter().map(|x| 20.0 * x).collect()
}

/// The budgets of `RankAllocator.budget_schedule` of PEFT 0.21.2 for 14 terms of rank 6.
#[test]
fn the_budget_falls_as_the_cube_of_what_is_left_of_its_steps() {
    let phases: Vec<Phase> = (1..=20).map(|step| SETTINGS.phase(step, 84, 14)).collect();
    let expected = |step| match step {
        6 => Phase::Cut(58),
        9 => Phase::Cut(37),
        12 => Phase::Cut(29),
        15 => Phase::Finalize(28),
        16.. => Phase::Final,
        _ => Phase::Count,
    };
    assert_eq!(phases, (1..=20).map(expected).collect::<Vec<_>>());
    let unknown = AdaLora { total_steps: None, ..SETTINGS };
    assert!((1..=20).all(|step| unknown.phase(step, 84, 14) == Phase::Count));
    // The last cut is that of the last step, and a multiple of `delta_t` or not.
    let to_the_end = AdaLora { tfinal: 0, tinit: 0, ..SETTINGS };
    assert_eq!(
        [18, 19, 20].map(|step| to_the_end.phase(step, 84, 14)),
        [Phase::Cut(28), Phase::Count, Phase::Finalize(28)]
    );
}

#[test]
fn importance_and_scores_are_those_of_their_formulas() {
    let mut importance = Importance::default();
    importance.count(&SETTINGS, &[2.0, -1.0], &[0.5, 4.0], 0.5);
    let close = |found: &[f32], expected: &[f64]| {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < 1e-6 * b.abs(), "{a} {b}"));
    };
    close(&importance.mean, &[0.2 * 0.5, 0.2 * 2.0]);
    close(&importance.uncertainty, &[0.1 * 0.4, 0.1 * 1.6]);
    importance.count(&SETTINGS, &[1.0, 0.0], &[1.0, 9.0], 1.0);
    close(&importance.mean, &[0.8 * 0.1 + 0.2, 0.8 * 0.4]);
    close(&importance.uncertainty, &[0.9 * 0.04 + 0.1 * 0.72, 0.9 * 0.16 + 0.1 * 0.32]);
    // A has two rows of three values, B four rows of two: the product of mean and uncertainty is what is meant.
    let of = |mean: &[f32]| Importance { mean: mean.to_vec(), uncertainty: vec![2.0; mean.len()] };
    let triplets = Triplets {
        a: of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        b: of(&[1.0, 10.0, 1.0, 10.0, 1.0, 10.0, 5.0, 50.0]),
        e: of(&[0.5, 0.25]),
        kept: Vec::new(),
    };
    close(&triplets.scores(2), &[4.0 + 4.0 + 1.0, 10.0 + 40.0 + 0.5]);
}

#[test]
fn all_but_the_budget_is_cut_and_what_is_equal_to_the_last_of_it() {
    let scores = vec![0.3, 0.1, 0.9, 0.2, 0.2];
    for (budget, expected) in [(1, Some(0.3)), (2, Some(0.2)), (3, Some(0.2)), (4, Some(0.1)), (5, None), (9, None)] {
        assert_eq!(threshold(scores.clone(), budget), expected, "{budget}");
    }
    assert_eq!(kept(&scores, Some(0.2)), [1.0, 0.0, 1.0, 0.0, 0.0]);
    assert_eq!(kept(&scores, None), [1.0; 5]);
}

/// Against the change of Σ c · (E ∘ A) for constants c.
#[test]
fn a_gradient_is_split_by_the_product_rule() {
    let (k, e) = (300, [0.5, -2.0, 0.0]);
    let (a, c) = (random(3 * k, 1), random(3 * k, 2));
    let mut gradient = c.clone();
    let of_e = split_gradient(&a, &e, &mut gradient);
    let mut product = a.clone();
    scale_rows(&mut product, &e);
    for (row, e) in e.iter().enumerate() {
        let values = |of: &[f32]| of[row * k..][..k].to_vec();
        assert_eq!(values(&gradient), values(&c).iter().map(|x| x * e).collect::<Vec<_>>());
        assert_eq!(values(&product), values(&a).iter().map(|x| x * e).collect::<Vec<_>>());
        let expected: f64 = values(&a).iter().zip(values(&c)).map(|(a, c)| f64::from(*a) * f64::from(c)).sum();
        assert!((f64::from(of_e[row]) - expected).abs() < 1e-5 * expected.abs().max(1.0));
    }
}

/// ‖P·Pᵀ − I‖ of the rows of P
fn off_orthogonal(rows: &[Vec<f64>]) -> f64 {
    let dots = rows.iter().enumerate().flat_map(|(i, a)| rows.iter().enumerate().map(move |(j, b)| (i == j, a, b)));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dots.map(|(same, a, b)| (dot(a, b) - f64::from(u8::from(same))).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn what_pulls_towards_orthogonality_is_the_gradient_of_the_norm() {
    let (r, k, weight) = (3, 530, 0.7);
    let values: Vec<f32> = random(r * k, 4).iter().map(|x| 0.1 * x).collect();
    let transposed: Vec<f32> = (0..k * r).map(|at| values[at % r * k + at / r]).collect();
    let (mut of_rows, mut of_columns) = (vec![1.0; r * k], vec![1.0; r * k]);
    add_orthogonal_rows(&values, r, weight, &mut of_rows);
    add_orthogonal_columns(&transposed, r, weight, &mut of_columns);
    let rows: Vec<Vec<f64>> = values.chunks(k).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
    for (row, column) in [(0, 0), (1, 257), (2, 529)] {
        let moved = |by: f64| {
            let mut rows = rows.clone();
            rows[row][column] += by;
            off_orthogonal(&rows)
        };
        let expected = 1.0 + weight * (moved(1e-5) - moved(-1e-5)) / 2e-5;
        for found in [of_rows[row * k + column], of_columns[column * r + row]] {
            assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
    assert!(of_rows.iter().any(|g| (g - 1.0).abs() > 1e-2));
    // Orthonormal rows give no gradient.
    let mut none = vec![0.0; 4];
    add_orthogonal_rows(&[0.0, 1.0, 1.0, 0.0], 2, weight, &mut none);
    assert_eq!(none, [0.0; 4]);
}

#[test]
fn what_a_and_b_begin_with_is_normal() {
    let values = initial(RngStream::new(1, 2), 100_001);
    let mean = |of: &dyn Fn(f64) -> f64| values.iter().map(|&x| of(f64::from(x))).sum::<f64>() / values.len() as f64;
    assert!(mean(&|x| x).abs() < 3e-4 && (mean(&|x| x * x).sqrt() / DEVIATION - 1.0).abs() < 1e-2);
    // 4.55 % of a normal distribution are beyond two deviations.
    assert!((mean(&|x| f64::from(u8::from(x.abs() > 2.0 * DEVIATION))) - 0.0455).abs() < 3e-3);
}
