use super::*;

/// A weight with singular values `at(i)`, and the best approximation of rank r.
fn weight(n: usize, k: usize, r: usize, at: impl Fn(usize) -> f64) -> (Vec<f32>, Vec<f64>) {
    let mut stream = RngStream::new(5, 1);
    let rank = n.min(k);
    let mut random = |rows| DMatrix::from_fn(rows, rank, |_, _| f64::from(stream.uniform()) - 0.5).qr().q();
    let (u, v) = (random(n), random(k));
    let part = |rank: usize| {
        let values = DMatrix::from_fn(rank, rank, |i, j| if i == j { at(i) } else { 0.0 });
        u.columns(0, rank) * values * v.columns(0, rank).transpose()
    };
    (rows_of(&part(rank)), part(r).row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect())
}

fn product(factors: &Factors, n: usize, k: usize, r: usize, scale: f32) -> Vec<f32> {
    let mut values = vec![0.0; n * k];
    add_product(&mut values, k, &factors.b, r, &factors.a, scale);
    values
}

#[test]
fn pissa_is_the_best_approximation_of_its_rank_balanced_between_the_factors() {
    for (n, k, r) in [(40, 24, 4), (24, 40, 4), (30, 30, 1), (8, 12, 8)] {
        let (values, best) = weight(n, k, r, |i| 0.8f64.powi(i as i32) * if i < r { 2.0 } else { 0.5 });
        for init in [InitLora::Pissa, InitLora::PissaIterations(16)] {
            let factors = factors(init, &values, [n, k], r, 0.5, RngStream::new(1, 2)).unwrap();
            let found = product(&factors, n, k, r, 0.5);
            let worst = found.iter().zip(&best).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-6, "{init:?} of {n} x {k}: {worst}");
            for i in 0..r {
                let norm =
                    |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
                let of_a = norm(&mut factors.a[i * k..][..k].iter().copied());
                let of_b = norm(&mut factors.b.iter().skip(i).step_by(r).copied());
                assert!((of_a / of_b - 1.0).abs() < 1e-5, "{of_a} {of_b}");
            }
        }
    }
}

/// Without a gap a few sweeps from random columns are near it, and no more.
#[test]
fn few_sweeps_approximate() {
    let (values, best) = weight(40, 40, 4, |i| 0.95f64.powi(i as i32));
    let error = |init| {
        let found = product(&factors(init, &values, [40, 40], 4, 1.0, RngStream::new(1, 2)).unwrap(), 40, 40, 4, 1.0);
        found.iter().zip(&best).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt()
    };
    let (few, more, exact) =
        (error(InitLora::PissaIterations(1)), error(InitLora::PissaIterations(16)), error(InitLora::Pissa));
    assert!(exact < 1e-4 && exact < more && more < few, "{few} {more} {exact}");
}

#[test]
fn olora_begins_the_qr_decomposition() {
    let (n, k, r) = (24, 40, 5);
    let (values, _) = weight(n, k, r, |i| 0.9f64.powi(i as i32));
    let found = factors(InitLora::Olora, &values, [n, k], r, 2.0, RngStream::new(1, 2)).unwrap();
    let qr = DMatrix::from_row_iterator(n, k, values.iter().map(|&x| f64::from(x))).qr();
    let (q, upper) = (qr.q(), qr.r());
    for i in 0..r {
        // Signs are free, a pair at a time.
        let sign = (f64::from(found.b[i]) * q[(0, i)]).signum();
        for row in 0..n {
            assert!((f64::from(found.b[row * r + i]) - sign * q[(row, i)]).abs() < 1e-5);
        }
        for column in 0..k {
            assert!((f64::from(found.a[i * k + column]) - sign * upper[(i, column)]).abs() < 1e-5);
        }
    }
    assert_eq!(factors(InitLora::Random, &values, [n, k], r, 2.0, RngStream::new(1, 2)), None);
}
