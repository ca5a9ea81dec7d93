use super::super::drawn::values;
use super::*;

/// Parts of a head, odd numbers of rows, and columns that fill no vector; on a processor without the instructions this
/// compares the twin with itself.
#[test]
fn weighted_rows_are_those_of_the_twin_and_the_sum_of_their_terms() {
    let isa = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
    for (few, count, d) in [(1, 1, 2), (1, 64, 64), (2, 63, 80), (3, 64, 64), (3, 2, 30), (4, 33, 200), (4, 64, 256)] {
        let stride = d + 6;
        let (mut p, rows) = (values(few * WIDTH, 1), values(count * stride - 6, 2));
        p.chunks_mut(WIDTH).for_each(|p| p[count..].fill(bf16::ZERO));
        let before: Vec<f32> = (0..few * d.next_multiple_of(WIDTH)).map(|i| i as f32 / 7.0).collect();
        let run = |isa| {
            let mut sums = before.clone();
            add_weighted(isa, &p, &rows, stride, count, d, &mut sums);
            sums
        };
        let (found, twin) = (run(isa), run(Isa::SCALAR));
        assert!(found == twin, "{few} x {count} x {d}");
        for (i, (found, before)) in found.iter().zip(&before).enumerate() {
            let (member, column) = (i / WIDTH % few, i / WIDTH / few * WIDTH + i % WIDTH);
            if column >= d {
                assert_eq!(found, before, "nothing beyond the columns");
                continue;
            }
            let term = |row: usize| p[member * WIDTH + row].to_f64() * rows[row * stride + column].to_f64();
            let (exact, size) = (0..count).map(term).fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            let error = (f64::from(*found) - f64::from(*before) - exact).abs();
            let bound = (count + 2) as f64 * (size + f64::from(*before)) * 2f64.powi(-24);
            assert!(error <= bound, "{few} x {count} x {d}, {member}, {column}: {error:e}");
        }
    }
}
