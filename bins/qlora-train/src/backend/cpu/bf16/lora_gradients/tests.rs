use super::super::drawn::{by_every_kind, values};
use super::super::isa::Isa;
use super::super::linear::{LowRank, Segment, padded};
use super::super::stored::Stored;
use super::*;

/// Weights that gradients of A and B do not read.
struct Unread;

impl Stored for Unread {
    fn read(&self, _: Isa, _: usize, _: Range<usize>, _: &mut [bf16]) {
        unreachable!("gradients of A and B are without weights");
    }
}

#[test]
fn scratch_memory_has_the_bytes_that_are_planned() {
    for max_r in [0, 1, 48] {
        let GradientScratch { t, s, band } = GradientScratch::new(max_r);
        let bytes = size_of_val(&t[..]) + size_of_val(&s[..]) + size_of_val(&band[..]);
        assert_eq!(bytes as u64, GradientScratch::bytes(max_r), "{max_r}");
    }
}

/// Whole strips and parts of one, chunks of an odd number of tokens, odd ranks and such of several blocks of registers,
/// a layer without gradients between others: sums in f64 of the same values, added to what is there. Rows as they lie
/// give the bits of panels, in any number of threads.
#[test]
fn gradients_are_sums_over_tokens_whichever_way_rows_are_read() {
    let (k, m) = (200, 301);
    let (ns, ranks) = ([128, 64, 70], [16, 4, 29]);
    let (n, width) = (ns.iter().sum::<usize>(), ranks.iter().map(|r| padded(*r)).sum::<usize>());
    let (x, dy, s, t) = (values(m * k, 1), values(m * n, 2), values(m * width, 3), values(m * width, 4));
    let low_rank: Vec<_> = ns.iter().zip(ranks).map(|(n, r)| (vec![0.0; r * k], vec![0.0; n * r])).collect();
    let segments: Vec<Segment> = (0..3)
        .map(|i| {
            let (a, b) = (&low_rank[i].0[..], &low_rank[i].1[..]);
            let lora = LowRank { r: ranks[i], scale: 1.0, scales: None, a, b };
            Segment { n: ns[i], weight: &Unread, bias: None, lora: Some(lora) }
        })
        .collect();
    let run = |isa: Isa, threads: usize| {
        let mut into: Vec<_> = ns.iter().zip(ranks).map(|(n, r)| (vec![0.5; r * k], vec![0.25; n * r])).collect();
        let mut gradients: Vec<_> = into.iter_mut().map(|(a, b)| Some(Gradients { a, b })).collect();
        gradients[1] = None;
        let group = Group { isa, k, segments: &segments, first: 0, dropout: None, adapters: &[] };
        let mut scratch: Vec<Scratch> = (0..threads).map(|_| Scratch::new()).collect();
        let mut more = GradientScratch::new(ranks.iter().sum());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| group.gradients(&mut scratch, &mut more, &x, &dy, &s, &t, &mut [], &mut gradients));
        into
    };
    let expected = run(Isa::SCALAR, 1);
    for (isa, threads) in by_every_kind(&[1, 3]) {
        let found = run(isa, threads);
        assert!(isa.panel_tile(WIDTH) < WIDTH || found == expected, "{isa:?}, {threads} threads");
        let (mut column, mut rank) = (0, 0);
        for (segment, (a, b)) in found.iter().enumerate() {
            let (n_here, r, trained) = (ns[segment], ranks[segment], segment != 1);
            let close = |found: f32, begins: f64, term: &dyn Fn(usize) -> f64| {
                let terms: Vec<f64> = (0..m).map(term).collect();
                let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|x| x.abs()).sum::<f64>());
                let exact = if trained { begins + sum } else { begins };
                assert!((f64::from(found) - exact).abs() <= 1e-5 * size, "layer {segment}: {found} {exact}");
            };
            for i in 0..r {
                for at in 0..k {
                    let term = |row: usize| t[row * width + rank + i].to_f64() * x[row * k + at].to_f64();
                    close(a[i * k + at], 0.5, &term);
                }
                for at in 0..n_here {
                    let term = |row: usize| dy[row * n + column + at].to_f64() * s[row * width + rank + i].to_f64();
                    close(b[at * r + i], 0.25, &term);
                }
            }
            (column, rank) = (column + n_here, rank + padded(r));
        }
    }
}
