//! Text: several prompts at once, side by side in one batch without padding. After the prompts only the new tokens are
//! computed; keys and values of the earlier ones are kept.

use super::Llama;
use super::cached::KvCache;
use crate::backend::{Backend, Batch};
use crate::error::{Error, Result};
use qlora_kernels::rng::Stream;

/// Keeps the streams of sampling apart from those of shuffling and of initial values.
const SAMPLING_DOMAIN: u64 = 2 << 32;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Only so many of the most likely tokens are drawn from, before `top_p` is looked at; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities reach this sum are drawn from, (0, 1].
    pub top_p: f32,
    /// Logits of tokens that the row holds already are divided by it where they are above 0, else multiplied.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
}

/// Continues each prompt until one of `stop` or `max_new_tokens`; returns the new tokens without the stop token.
/// `token` is called with the prompt's index and each new token; an answer ends with the token for which it says
/// false. The backend's batches have room for all prompts with
/// `max_new_tokens` each. What one prompt is answered does not depend on the others, beyond the rounding of sums.
pub fn generate<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
    stop: &[u32],
    sampling: &Sampling,
    token: &mut dyn FnMut(usize, u32) -> Result<bool>,
) -> Result<Vec<Vec<u32>>> {
    generate_by_row(backend, model, prompts, &[], max_new_tokens, stop, sampling, token)
}

/// Like [`generate`], of a model that has an adapter for each row: `adapters` names that of each prompt, -1 the base
/// alone; empty: the base alone for all.
pub fn generate_by_row<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    prompts: &[Vec<u32>],
    adapters: &[i32],
    max_new_tokens: usize,
    stop: &[u32],
    sampling: &Sampling,
    token: &mut dyn FnMut(usize, u32) -> Result<bool>,
) -> Result<Vec<Vec<u32>>> {
    model.reserve_text(backend, prompts.len())?;
    let mut cache = model.cache(backend)?;
    generate_rows(backend, model, &mut cache, prompts, adapters, max_new_tokens, stop, sampling, token)
}

/// Like [`generate`], with a cache that has a row for each token of the prompts and of their answers.
pub fn generate_in<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    cache: &mut KvCache<B>,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
    stop: &[u32],
    sampling: &Sampling,
    token: &mut dyn FnMut(usize, u32) -> Result<bool>,
) -> Result<Vec<Vec<u32>>> {
    generate_rows(backend, model, cache, prompts, &[], max_new_tokens, stop, sampling, token)
}

fn generate_rows<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    cache: &mut KvCache<B>,
    prompts: &[Vec<u32>],
    adapters: &[i32],
    max_new_tokens: usize,
    stop: &[u32],
    sampling: &Sampling,
    token: &mut dyn FnMut(usize, u32) -> Result<bool>,
) -> Result<Vec<Vec<u32>>> {
    assert!(adapters.is_empty() || adapters.len() == prompts.len(), "an adapter for each prompt");
    let mut starts = Vec::with_capacity(prompts.len());
    let mut next_start = 0;
    for prompt in prompts {
        starts.push(next_start);
        next_start += (prompt.len() + max_new_tokens) as u32;
    }
    let mut streams: Vec<Stream> =
        (0..prompts.len()).map(|row| Stream::new(sampling.seed, SAMPLING_DOMAIN + row as u64)).collect();
    let mut rows = prompts.to_vec();
    // Tokens of each row that the cache holds.
    let mut cached = vec![0; rows.len()];
    let mut open: Vec<usize> = (0..rows.len()).collect();
    for _ in 0..max_new_tokens {
        if open.is_empty() {
            break;
        }
        let (mut input_ids, mut positions, mut last) = (Vec::new(), Vec::new(), Vec::new());
        let (mut boundaries, mut row_starts, mut of_tokens) = (vec![0u32], Vec::new(), Vec::new());
        for &row in &open {
            input_ids.extend_from_slice(&rows[row][cached[row]..]);
            positions.extend(cached[row] as u32..rows[row].len() as u32);
            cached[row] = rows[row].len();
            boundaries.push(input_ids.len() as u32);
            of_tokens.resize(input_ids.len(), adapters.get(row).copied().unwrap_or(-1));
            row_starts.push(starts[row]);
            last.push(input_ids.len() - 1);
        }
        let targets = vec![-100; input_ids.len()];
        let batch = Batch {
            input_ids: &input_ids,
            positions: &positions,
            boundaries: &boundaries,
            targets: &targets,
            weights: None,
            adapters: (!adapters.is_empty()).then_some(&of_tokens[..]),
        };
        let logits = model.logits_cached(backend, &batch, cache, &row_starts, &last)?;
        let mut still_open = Vec::new();
        for (&row, logits) in open.iter().zip(&logits) {
            let id = choose(logits, &rows[row], sampling, &mut streams[row])?;
            if !stop.contains(&id) {
                rows[row].push(id);
                if token(row, id)? {
                    still_open.push(row);
                }
            }
        }
        open = still_open;
    }
    Ok(rows.into_iter().zip(prompts).map(|(row, prompt)| row[prompt.len()..].to_vec()).collect())
}

/// The token after those of `row`. Failed: the logits are not finite.
fn choose(logits: &[f32], row: &[u32], sampling: &Sampling, stream: &mut Stream) -> Result<u32> {
    if !largest(logits).is_finite() {
        return Err(Error::Failed("the logits are not finite: the adapter or the base diverged".to_owned()));
    }
    let penalized;
    let logits = match sampling.repetition_penalty {
        1.0 => logits,
        penalty => {
            penalized = penalize(logits, row, penalty);
            &penalized
        }
    };
    let best = argmax(logits);
    if sampling.temperature == 0.0 {
        return Ok(best as u32);
    }
    let temperature = f64::from(sampling.temperature);
    let weight = |&logit: &f32| ((f64::from(logit) - f64::from(logits[best])) / temperature).exp();
    let mut weights: Vec<(f64, u32)> = logits.iter().map(weight).zip(0..).collect();
    // Equal weights in the order of their ids, so that the choice is the same everywhere.
    weights.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if sampling.top_k > 0 {
        weights.truncate(sampling.top_k);
    }
    let total: f64 = weights.iter().map(|(weight, _)| weight).sum();
    let mut kept = 0.0;
    let nucleus = weights.iter().position(|(weight, _)| {
        kept += weight;
        kept >= f64::from(sampling.top_p) * total
    });
    weights.truncate(nucleus.map_or(weights.len(), |last| last + 1));
    let kept: f64 = weights.iter().map(|(weight, _)| weight).sum();
    let mut left = f64::from(stream.uniform()) * kept;
    for &(weight, id) in &weights {
        left -= weight;
        if left < 0.0 {
            return Ok(id);
        }
    }
    // Rounding may leave a last rest.
    Ok(weights[weights.len() - 1].1)
}

/// The logits, with those of the tokens of `row` less likely: each once, however often it is there.
fn penalize(logits: &[f32], row: &[u32], penalty: f32) -> Vec<f32> {
    let mut penalized = logits.to_vec();
    for &id in row {
        let logit = logits[id as usize];
        penalized[id as usize] = if logit > 0.0 { logit / penalty } else { logit * penalty };
    }
    penalized
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> usize {
    let largest = largest(logits);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0)
}

/// NaN where one of them is. In lanes, which the compiler makes vectors of: there are as many as the vocabulary has
/// tokens.
fn largest(logits: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (mut most, mut is_nan) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for ((most, is_nan), &logit) in most.iter_mut().zip(&mut is_nan).zip(chunk) {
            *most = if logit > *most { logit } else { *most };
            *is_nan |= logit.is_nan();
        }
    }
    match is_nan.contains(&true) || rest.iter().any(|logit| logit.is_nan()) {
        true => f32::NAN,
        false => most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max),
    }
}

#[cfg(test)]
mod tests {
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
        let of =
            |top_k, top_p| shares(&logits, &Sampling { temperature: 1.0, top_k, top_p, seed: 1, ..Sampling::GREEDY });
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
}
