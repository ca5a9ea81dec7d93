//! Text: several prompts at once, side by side in one batch without padding. After the prompts only the new tokens are
//! computed; keys and values of the earlier ones are kept.

use super::Llama;
use super::cached::KvCache;
use crate::backend::{Backend, Batch};
use crate::error::{Error, Result};
use qlora_kernels::rng::RngStream;

/// Keeps the streams of sampling apart from those of shuffling and of initial values.
const SAMPLING_DOMAIN: u64 = 2 << 32;

/// The choice of the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Number of the most likely tokens that are sampled from, before `top_p` is applied; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities reach this sum are sampled from, (0, 1].
    pub top_p: f32,
    /// Logits of tokens that the row holds already are divided by it where they are above 0, and multiplied elsewhere.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
}

/// Continues each prompt until one of `stop` or `max_new_tokens`; returns the new tokens without the stop token.
/// `token` is called with the prompt's index and each new token; an answer ends with the token for which it says
/// false. The backend's batches have room for all prompts with
/// `max_new_tokens` each. The answer to one prompt does not depend on the others, beyond the rounding of sums.
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

/// Generates as [`generate`] does, with a model that has an adapter for each row: `adapters` names that of each prompt,
/// -1 the base alone; empty: the base alone for all.
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

/// Generates as [`generate`] does, with a cache that has a row for each token of the prompts and of their answers.
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
    let mut streams: Vec<RngStream> =
        (0..prompts.len()).map(|row| RngStream::new(sampling.seed, SAMPLING_DOMAIN + row as u64)).collect();
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
fn choose(logits: &[f32], row: &[u32], sampling: &Sampling, stream: &mut RngStream) -> Result<u32> {
    let most = largest(logits);
    if !most.is_finite() {
        return Err(Error::Failed("the logits are not finite: the adapter or the base diverged".to_owned()));
    }
    let penalized;
    let (logits, most) = match sampling.repetition_penalty {
        1.0 => (logits, most),
        penalty => {
            penalized = penalize(logits, row, penalty);
            (&penalized[..], largest(&penalized))
        }
    };
    if sampling.temperature == 0.0 {
        return Ok(first_of(logits, most) as u32);
    }
    let temperature = f64::from(sampling.temperature);
    let weight = |&logit: &f32| ((f64::from(logit) - f64::from(most)) / temperature).exp();
    let mut weights = MostFirst { all: logits.iter().map(weight).zip(0..).collect(), sorted: 0 };
    if sampling.top_k > 0 {
        weights.sort_to(sampling.top_k);
        weights.all.truncate(sampling.top_k);
    }
    let total: f64 = weights.all.iter().map(|(weight, _)| weight).sum();
    let (mut count, mut kept) = (weights.all.len(), total);
    if sampling.top_p < 1.0 {
        (count, kept) = (0, 0.0);
        while count < weights.all.len() && kept < f64::from(sampling.top_p) * total {
            kept += weights.get(count).0;
            count += 1;
        }
    }
    let mut left = f64::from(stream.uniform()) * kept;
    for i in 0..count {
        let (weight, id) = weights.get(i);
        left -= weight;
        if left < 0.0 {
            return Ok(id);
        }
    }
    // Rounding may leave a last rest.
    Ok(weights.get(count - 1).1)
}

/// Weights with their tokens, which are sorted, the largest first, as far as they are asked for. Equal weights are in
/// the order of their tokens, so that the choice is the same everywhere.
struct MostFirst {
    all: Vec<(f64, u32)>,
    sorted: usize,
}

impl MostFirst {
    fn get(&mut self, i: usize) -> (f64, u32) {
        if i >= self.sorted {
            self.sort_to((8 * self.sorted).max(256));
        }
        self.all[i]
    }

    /// Sorts the first `count`.
    fn sort_to(&mut self, count: usize) {
        let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let count = count.min(self.all.len()) - self.sorted;
        let rest = &mut self.all[self.sorted..];
        if count < rest.len() {
            rest.select_nth_unstable_by(count, order);
        }
        rest[..count].sort_unstable_by(order);
        self.sorted += count;
    }
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

/// The first of the largest, which `largest` is. In parts, which are searched without a branch.
fn first_of(logits: &[f32], largest: f32) -> usize {
    const PART: usize = 256;
    let has = |part: &[f32]| part.iter().fold(false, |has, &logit| has | (logit == largest));
    let part = logits.chunks(PART).position(has).unwrap_or(0) * PART;
    part + logits[part..].iter().position(|&logit| logit == largest).unwrap_or(0)
}

/// The largest of all; NaN where one of them is. In lanes, which the compiler makes vectors of: there are as many as
/// the vocabulary has tokens.
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
mod tests;
