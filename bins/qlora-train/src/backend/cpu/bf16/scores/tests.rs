use super::super::pairs::Places;
use super::*;
use qlora_kernels::rng::RngStream;

const CASES: [(usize, Range<usize>); 7] =
    [(1, 0..16), (2, 0..64), (15, 16..48), (33, 0..32), (47, 32..64), (63, 0..64), (64, 0..64)];

fn drawn(seed: u64) -> Vec<f32> {
    let mut stream = RngStream::new(seed, 1);
    (0..WIDTH * WIDTH).map(|_| stream.below(40_001) as f32 / 1000.0 - 20.0).collect()
}

/// All columns of all rows, those of a causal mask, and such that leave some columns without a row.
fn seen_of(rows: usize) -> [Vec<u64>; 3] {
    [vec![!0; rows], (0..rows).map(|row| !0 << row).collect(), (0..rows).map(|row| 0xF0_0FF1 << row).collect()]
}

fn scalings() -> [Scaling; 2] {
    [Scaling { scale: 0.37, cap: None }, Scaling { scale: 0.37, cap: Some(3.0) }]
}

/// The instructions beside the twin, over two tiles, whichever columns and rows count.
#[test]
fn exponentials_of_scores_are_those_of_the_twin_and_of_f64() {
    let hardware = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
    for (rows, columns) in CASES {
        for (scaling, seen) in scalings().into_iter().flat_map(|scaling| seen_of(rows).map(|seen| (scaling, seen))) {
            let tiles = [drawn(1), drawn(2)];
            let width = columns.len();
            let run = |isa| {
                let (mut max, mut sum, mut corrections) = ([f32::NEG_INFINITY; WIDTH], [0.0; WIDTH], [1.0; WIDTH]);
                let all = tiles.iter().map(|scores| {
                    let mut panel = vec![7; rows.div_ceil(2) * width];
                    let p = Panel { data: &mut panel, places: Places { pairs: rows.div_ceil(2), tile: width } };
                    let running = Softmax { max: &mut max, sum: &mut sum, corrections: &mut corrections };
                    softmax_columns(isa, scores, &seen, columns.clone(), scaling, running, p);
                    (panel, corrections.map(f32::to_bits))
                });
                let all: Vec<_> = all.collect();
                (all, max, sum.map(f32::to_bits))
            };
            let (twin, max, sum) = run(Isa::SCALAR);
            assert!(run(hardware) == (twin.clone(), max, sum), "{rows} rows, columns {columns:?}");
            for (number, column) in columns.clone().enumerate() {
                let of = |scores: &[f32]| -> Vec<f64> {
                    let counted = (0..rows).filter(|row| seen[*row] >> column & 1 != 0);
                    counted.map(|row| f64::from(scaling.of(scores[row * WIDTH + column]))).collect()
                };
                let scores: Vec<f64> = tiles.iter().flat_map(|scores| of(scores)).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert_eq!(f64::from(max[column]), largest, "{rows} rows, column {column}");
                let exact: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                assert!((f64::from(f32::from_bits(sum[column])) - exact).abs() <= 1e-5 * exact, "{rows}, {column}");
                for row in (0..rows).filter(|row| seen[*row] >> column & 1 == 0) {
                    let pair = twin[1].0[row / 2 * width + number];
                    assert_eq!(pair >> (16 * (row % 2)) & 0xFFFF, 0, "row {row} does not count");
                }
            }
        }
    }
}

#[test]
fn gradients_of_scores_are_those_of_the_twin_and_of_f64() {
    let hardware = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
    for (rows, columns) in CASES {
        for (scaling, seen) in scalings().into_iter().flat_map(|scaling| seen_of(rows).map(|seen| (scaling, seen))) {
            let (scores, gradients) = (drawn(3), drawn(4));
            let (lse, delta): (Vec<f32>, Vec<f32>) = (0..WIDTH).map(|i| (9.0 + i as f32, 0.1 * i as f32)).unzip();
            let width = columns.len();
            let run = |isa| {
                let mut panels = [(); 2].map(|()| vec![7; rows.div_ceil(2) * width]);
                let [p, ds] = &mut panels;
                let places = Places { pairs: rows.div_ceil(2), tile: width };
                let mut in_rows = vec![bf16::ONE; WIDTH * WIDTH];
                let of_scores = OfScores { panel: Panel { data: ds, places }, rows: &mut in_rows };
                let queries = OfQueries { lse: &lse, delta: &delta };
                let p = Panel { data: p, places };
                gradient_rows(isa, &scores, &gradients, &seen, columns.clone(), scaling, queries, p, of_scores);
                // A row that fills a pair has no meaning.
                (panels, in_rows[..rows * WIDTH].to_vec())
            };
            let twin = run(Isa::SCALAR);
            assert!(run(hardware) == twin, "{rows} rows, columns {columns:?}");
            let ([p, ds], in_rows) = twin;
            for row in 0..rows {
                for column in 0..WIDTH {
                    let found = in_rows[row * WIDTH + column];
                    if !columns.contains(&column) {
                        assert_eq!(found, bf16::ONE, "column {column} was not asked for");
                        continue;
                    }
                    let half = |panel: &[u32]| {
                        let pair = panel[row / 2 * width + column - columns.start];
                        bf16::from_bits((pair >> (16 * (row % 2))) as u16)
                    };
                    assert_eq!(half(&ds), found, "{row}, {column}");
                    let score = f64::from(scaling.of(scores[row * WIDTH + column]));
                    let slope = scaling.cap.map_or(1.0, |cap| 1.0 - (score / f64::from(cap)).powi(2));
                    let seen = f64::from((seen[row] >> column & 1) as u32);
                    let exact = seen * (score - f64::from(lse[row])).exp();
                    let below = f64::from(gradients[row * WIDTH + column]) - f64::from(delta[row]);
                    let gradient = f64::from(scaling.scale) * exact * below * slope;
                    for (found, exact, size) in [(half(&p), exact, exact), (found, gradient, exact * below.abs())] {
                        let bound = exact.abs() * 2f64.powi(-8) + size * 1e-5;
                        assert!((found.to_f64() - exact).abs() <= bound, "{row}, {column}: {found} {exact}");
                    }
                }
            }
        }
    }
}
