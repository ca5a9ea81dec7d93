//! Products by AMX and by AVX-512-BF16 beside each other: the bound of their difference, and what a wrong layout of a
//! panel does to it.

use super::amx::{PAIRS as STEPS, TILE};
use super::drawn::{by_every_kind, values};
use super::gemm::{Out, PAIRS, Product, Right, Scratch, fill, multiply};
use super::isa::{self, Isa, LANES};
use super::pairs::WIDTH;
use super::stored::{Rows, Stored};
use half::bf16;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};

/// The error of `n` roundings to f32 one after the other, as a share of the number: 2⁻²⁴ each.
fn rounded(n: usize) -> f64 {
    let share = n as f64 * 2f64.powi(-24);
    share / (1.0 - share)
}

/// The error of `k` terms whose sums are given as zero where they are subnormal.
fn lost(k: usize) -> f64 {
    2.0 * k as f64 * 2f64.powi(-126)
}

/// Bounds of the errors of a sum of `k` products on tiles and in one chain, where the terms' magnitudes add up to
/// `size`. A chain rounds the first of its terms k times; a tile 16 times with its even or odd elements, once where
/// these are added, and once for each 32 elements.
fn bounds(k: usize, size: f64) -> [f64; 2] {
    [17 + k.div_ceil(2 * STEPS), k].map(|roundings| rounded(roundings) * size + lost(k))
}

/// `out [m, n]` by these instructions.
fn product(isa: Isa, x: &[bf16], k: usize, right: Right, n: usize) -> Vec<f32> {
    let m = x.len() / k;
    let mut out = vec![0.0; m * n];
    let product = Product { left: Rows { data: x, stride: k }, k, right };
    multiply(isa, &mut [Scratch::new()], Out::F32 { data: &mut out, stride: n }, m, 0..n, &[product]);
    out
}

/// Terms of both signs and of one, and products so small that some sums are subnormal.
#[test]
fn tiles_and_chains_are_within_their_bounds_and_apart_by_no_more() {
    let (m, n) = (9, 48);
    for k in [2, 30, 34, 514, 1030, 4096] {
        let mut apart = 0;
        for (scale, is_positive) in [(0, false), (0, true), (-62, false), (-62, true)] {
            let of = |count, seed| -> Vec<bf16> {
                let number = |x: bf16| if is_positive { x.to_f32().abs() } else { x.to_f32() };
                values(count, seed).into_iter().map(|x| bf16::from_f32(number(x) * 2f32.powi(scale))).collect()
            };
            let (x, w) = (of(m * k, 1), of(n * k, 2));
            let rows = Rows { data: &w, stride: k };
            let [tiles, chain] = [Isa::AMX_TWIN, Isa::SCALAR].map(|isa| product(isa, &x, k, Right::Turned(&rows), n));
            for i in 0..m * n {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let terms = x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64());
                let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let [of_tiles, of_chain] = bounds(k, size);
                let (tiles, chain) = (f64::from(tiles[i]), f64::from(chain[i]));
                assert!((tiles - exact).abs() <= of_tiles, "{k} terms, 2^{scale}: {tiles} on tiles, {exact}");
                assert!((chain - exact).abs() <= of_chain, "{k} terms, 2^{scale}: {chain} in a chain, {exact}");
                assert!((tiles - chain).abs() <= of_tiles + of_chain, "{k} terms, 2^{scale}: {tiles} {chain}");
                apart += usize::from(tiles != chain);
            }
        }
        assert!(k == 2 || apart > 0, "{k} terms are summed in two orders");
    }
}

/// Every fault moves a result by more than ten times the bound.
#[test]
fn a_panel_that_is_laid_out_wrong_is_far_outside_of_the_bounds() {
    let (m, k, n) = (5, 70, WIDTH);
    let (x, w) = (values(m * k, 3), values(n * k, 4));
    let rows = Rows { data: &w, stride: k };
    let panel_of = |isa| {
        let (mut panel, mut band) = (vec![0; k / 2 * n], vec![bf16::ZERO; LANES * 2 * PAIRS]);
        fill(isa, &Right::Turned(&rows), 0..k, 0..n, &mut panel, n, &mut band);
        panel
    };
    let sums_of = |isa, panel: &[u32]| {
        let mut sums = vec![0.0; m * WIDTH];
        isa::multiply(isa, &x, k, m, panel, n, &mut sums, false);
        sums
    };
    let (of_tiles, of_chain) = (panel_of(Isa::AMX_TWIN), panel_of(Isa::SCALAR));
    let expected = sums_of(Isa::SCALAR, &of_chain);
    // The largest share of the bound.
    let share = |sums: &[f32]| {
        let shares = (0..m * n).map(|i| {
            let terms = x[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]);
            let size = terms.map(|(x, w)| (x.to_f64() * w.to_f64()).abs()).sum();
            f64::from(sums[i] - expected[i]).abs() / bounds(k, size).iter().sum::<f64>()
        });
        shares.fold(0.0, f64::max)
    };
    assert!(share(&sums_of(Isa::AMX_TWIN, &of_tiles)) <= 1.0);
    type Spoil = fn(&mut [u32]);
    let faults: [(&str, Spoil); 5] = [
        ("the elements of a pair are exchanged", |panel| panel[5] = panel[5].rotate_left(16)),
        ("two pairs of a column are exchanged", |panel| panel.swap(5, 5 + TILE)),
        ("two columns of a pair of rows are exchanged", |panel| panel.swap(5, 6)),
        ("tiles of columns are in another order", |panel| panel.rotate_left(panel.len() / 4)),
        ("a pair is lost", |panel| panel[5] = 0),
    ];
    for (what, spoil) in faults {
        let mut panel = of_tiles.clone();
        spoil(&mut panel);
        assert!(share(&sums_of(Isa::AMX_TWIN, &panel)) > 10.0, "{what}");
    }
    assert!(share(&sums_of(Isa::AMX_TWIN, &of_chain)) > 10.0, "tiles read a panel of whole rows");
    assert!(share(&sums_of(Isa::SCALAR, &of_tiles)) > 10.0, "a chain reads a panel of tiles");
}

/// Blocks that vectors pair where the processor has them, blocks that are read row by row, and rows that do not fill a
/// panel: bit for bit what the same values give as 16-bit weights.
#[test]
fn nf4_weights_give_what_their_values_give() {
    for (rows, cols, block_size) in [(96, 192, 64), (70, 128, 32), (130, 64, 64)] {
        let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
        let options = Nf4Options { block_size, double_quant: true };
        let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
        let dense: Vec<bf16> = matrix.dequantize().iter().map(|&x| bf16::from_f32(x)).collect();
        let dense = Rows { data: &dense, stride: cols };
        for (isa, is_upright) in by_every_kind(&[false, true]) {
            let (k, n) = if is_upright { (rows, cols) } else { (cols, rows) };
            let x = values(7 * k, 6);
            let run = |stored: &dyn Stored| {
                let right = if is_upright { Right::Upright(stored) } else { Right::Turned(stored) };
                product(isa, &x, k, right, n)
            };
            assert!(run(&matrix) == run(&dense), "{rows} x {cols} / {block_size}, {isa:?}, upright: {is_upright}");
        }
    }
}
