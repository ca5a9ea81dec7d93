use super::super::drawn::by_every_kind;
use super::*;
use qlora_kernels::rng::RngStream;

/// Continues a sum by the products of two rows.
type Sum = dyn Fn(f32, &[bf16], &[bf16]) -> f32;

fn matrix(len: usize, seed: u64) -> Vec<bf16> {
    let mut stream = RngStream::new(seed, 1);
    (0..len).map(|_| bf16::from_f32(stream.below(2001) as f32 / 1000.0 - 1.0)).collect()
}

fn scratch(threads: usize) -> Vec<Scratch> {
    (0..threads).map(|_| Scratch::new()).collect()
}

#[test]
fn scratch_memory_has_the_bytes_that_are_planned() {
    let Scratch { panel, sums, band } = Scratch::new();
    let bytes = size_of_val(&panel[..]) + size_of_val(&sums[..]) + size_of_val(&band[..]);
    assert_eq!(bytes as u64, Scratch::BYTES);
}

#[test]
fn every_task_is_run_once() {
    for (threads, tasks) in [(1, 5), (2, 1), (3, 7), (4, 64), (7, 3)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for scratches in 1..=threads {
            let mut done = vec![Vec::new(); scratches];
            pool.install(|| each_in_order(&mut done, (0..tasks).collect(), |done, task| done.push(task)));
            let mut all = done.concat();
            all.sort_unstable();
            assert_eq!(all, (0..tasks).collect::<Vec<i32>>(), "{threads} threads, {scratches} scratches");
        }
    }
}

/// Every shape in one thread and in several, both ways of reading the right operand, as the sum of its definition:
/// one chain, or on tiles the chains of even and odd elements of every 32, added.
#[test]
fn products_are_sums_in_order_whatever_the_shape() {
    for (m, n, k, r) in [(5, 5, 2, 0), (7, 64, 34, 2), (70, 130, 514, 6), (600, 48, 1030, 16)] {
        let (x, w) = (matrix(m * k, 1), matrix(n * k, 2));
        let (s, b) = (matrix(m * r, 3), matrix(n * r, 4));
        let transposed: Vec<bf16> = (0..k * n).map(|i| w[i % n * k + i / n]).collect();
        let chain = |sum: f32, x: &[bf16], w: &[bf16]| {
            x.chunks(2).zip(w.chunks(2)).fold(sum, |sum, (x, w)| {
                let sum = x[1].to_f32().mul_add(w[1].to_f32(), sum);
                x[0].to_f32().mul_add(w[0].to_f32(), sum)
            })
        };
        let chains = |sum: f32, x: &[bf16], w: &[bf16]| {
            x.chunks(32).zip(w.chunks(32)).fold(sum, |sum, (x, w)| {
                let of = |first: usize| x.iter().zip(w).skip(first).step_by(2);
                let chain = |first| of(first).fold(0.0f32, |sum, (x, w)| x.to_f32().mul_add(w.to_f32(), sum));
                sum + (chain(0) + chain(1))
            })
        };
        let all = |sum: &Sum| -> Vec<f32> {
            let element = |row: usize, column: usize| {
                let base = sum(0.0, &x[row * k..][..k], &w[column * k..][..k]);
                sum(base, &s[row * r..][..r], &b[column * r..][..r])
            };
            (0..m * n).map(|i| element(i / n, i % n)).collect()
        };
        let sums = [all(&chain), all(&chains)];
        let (w, b) = (Rows { data: &w, stride: k }, Rows { data: &b, stride: r });
        let transposed = Rows { data: &transposed, stride: n };
        let low_rank = Product { left: Rows { data: &s, stride: r }, k: r, right: Right::Turned(&b) };
        for right in [Right::Turned(&w), Right::Upright(&transposed)] {
            let products = [Product { left: Rows { data: &x, stride: k }, k, right }, low_rank];
            let products = &products[..if r == 0 { 1 } else { 2 }];
            for (isa, threads) in by_every_kind(&[1, 3]) {
                let sums = &sums[usize::from(isa.panel_tile(WIDTH) < WIDTH)];
                let mut out = vec![7.0f32; m * (n + 9)];
                let destination = Out::F32 { data: &mut out, stride: n + 9 };
                multiply(isa, &mut scratch(threads), destination, m, 4..4 + n, products);
                for row in 0..m {
                    for column in 0..n + 9 {
                        let found = out[row * (n + 9) + column];
                        let inside = (4..4 + n).contains(&column);
                        let expected = if inside { sums[row * n + column - 4] } else { 7.0 };
                        assert!(found == expected, "{m} x {n} x {k}, {isa:?}, {threads}: {found} {expected}");
                    }
                }
            }
        }
    }
}

/// A row alone is what it is beside others, in any number of threads, and the sum that it should be.
#[test]
fn few_rows_are_dot_products() {
    for (m, n, k) in [(1, 3, 2), (2, 130, 514), (4, 64, 1100)] {
        let (x, w) = (matrix(m * k, 1), matrix(n * k, 2));
        let w = Rows { data: &w, stride: k };
        let run = |isa, x: &[bf16], threads| {
            let mut out = vec![0.0f32; x.len() / k * n];
            let product = Product { left: Rows { data: x, stride: k }, k, right: Right::Turned(&w) };
            let destination = Out::F32 { data: &mut out, stride: n };
            multiply(isa, &mut scratch(threads), destination, x.len() / k, 0..n, &[product]);
            out
        };
        let isa = Isa::detect().unwrap_or(Isa::SCALAR);
        let all = run(isa, &x, 1);
        assert!(all == run(isa, &x, 3) && all == run(Isa::SCALAR, &x, 2), "{m} x {n} x {k}");
        for row in 0..m {
            assert!(all[row * n..][..n] == run(isa, &x[row * k..][..k], 2), "row {row} alone");
            for column in 0..n {
                let terms = (0..k).map(|i| x[row * k + i].to_f64() * w.data[column * k + i].to_f64());
                let (exact, size) = terms.fold((0.0, 0.0f64), |(sum, size), x| (sum + x, size + x.abs()));
                let error = (f64::from(all[row * n + column]) - exact).abs();
                assert!(error <= k as f64 * size * f64::from(f32::EPSILON), "{row}, {column}");
            }
        }
    }
}

#[test]
fn results_are_scaled_biased_rounded_or_added() {
    let (x, w) = (matrix(3 * 8, 5), matrix(4 * 8, 6));
    let w = Rows { data: &w, stride: 8 };
    let product = Product { left: Rows { data: &x, stride: 8 }, k: 8, right: Right::Turned(&w) };
    let mut sums = vec![0.0f32; 12];
    let mut one = scratch(1);
    multiply(Isa::SCALAR, &mut one, Out::F32 { data: &mut sums, stride: 4 }, 3, 0..4, &[product]);
    let mut added = vec![1.5f32; 12];
    multiply(Isa::SCALAR, &mut one, Out::Add { data: &mut added, stride: 4 }, 3, 0..4, &[product]);
    let mut rounded = vec![bf16::ZERO; 12];
    let bias = [0.25, -1.0, 2.0, 0.0];
    let out = Out::Bf16 { data: &mut rounded, stride: 4, scale: 0.5, bias: Some(&bias) };
    multiply(Isa::SCALAR, &mut one, out, 3, 0..4, &[product]);
    for i in 0..12 {
        assert_eq!(added[i], 1.5 + sums[i]);
        assert_eq!(rounded[i], bf16::from_f32(0.5 * sums[i] + bias[i % 4]));
    }
}
