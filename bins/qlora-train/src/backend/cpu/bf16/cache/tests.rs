use super::super::drawn::{by_every_kind, values};
use super::*;

/// Tokens at these positions, each in a document of its own whose rows of the cache begin at its start.
fn batch_of(positions: &[u32]) -> CheckedBatch {
    let mut batch = CheckedBatch::default();
    batch.positions = positions.to_vec();
    batch.boundaries = (0..=positions.len() as u32).collect();
    batch
}

/// Keys in one tile, in one part and in many, more tokens than are taken together, groups with more heads than are,
/// windows and caps: within the rounding of probabilities and of the result, 2⁻⁸ each; the bits of a token do not
/// depend on the others, nor on the number of threads or the instructions.
#[test]
fn attention_over_a_cache_is_its_definition_for_each_token_alone() {
    let positions = [5u32, 0, 63, 64, 1100, 200];
    let starts = [0u32, 6, 7, 71, 136, 1237];
    for (heads, kv_heads, d, soft_cap, window) in
        [(9, 3, 64, None, None), (5, 1, 80, Some(4.0), None), (2, 2, 130, None, Some(70)), (8, 2, 32, None, Some(1))]
    {
        let shape = AttentionShape { heads, kv_heads, head_dim: d, soft_cap };
        let (visible, width) = (Visible::new(window), 2 * kv_heads * d);
        let (qkv, cache) = (values(positions.len() * shape.qkv(), 1), values(1438 * width, 2));
        let run = |isa, threads, tokens: Range<usize>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (batch, mut out) = (batch_of(&positions[tokens.clone()]), vec![bf16::NAN; tokens.len() * shape.out()]);
            let (qkv, starts) = (&qkv[tokens.start * shape.qkv()..], &starts[tokens]);
            pool.install(|| attention(isa, qkv, &cache, &batch, shape, visible, starts, &mut out));
            out
        };
        let all = run(Isa::SCALAR, 1, 0..positions.len());
        for (isa, threads) in by_every_kind(&[1, 3]) {
            assert!(run(isa, threads, 0..positions.len()) == all, "{shape:?}, {isa:?}, {threads} threads");
        }
        for (token, found) in all.chunks_exact(shape.out()).enumerate() {
            assert!(run(Isa::SCALAR, 2, token..token + 1) == found, "{shape:?}, token {token} alone");
            for (head, found) in found.chunks_exact(d).enumerate() {
                let query = &qkv[token * shape.qkv() + head * d..][..d];
                let key = shape.key_column(head) - shape.out();
                let row = |position: usize| &cache[(starts[token] as usize + position) * width..][..width];
                let seen = visible.keys(0, positions[token] as usize);
                let score = |position: usize| {
                    let dot: f64 = query.iter().zip(&row(position)[key..]).map(|(q, k)| q.to_f64() * k.to_f64()).sum();
                    let cap = |x: f64| soft_cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
                    cap(dot * shape.scale()).exp()
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let total: f64 = scores.iter().sum();
                for (column, found) in found.iter().enumerate() {
                    let value = |position: usize| row(position)[key + kv_heads * d + column].to_f64();
                    let terms =
                        scores.iter().zip(seen.clone()).map(|(score, position)| score / total * value(position));
                    let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let error = (found.to_f64() - exact).abs();
                    assert!(error <= 2f64.powi(-7) * size, "{shape:?}, {token}, {head}, {column}: {error:e}");
                }
            }
        }
    }
}
