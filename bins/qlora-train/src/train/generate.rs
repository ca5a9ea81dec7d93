//! Greedy text: several prompts at once, side by side in one batch without padding.

use crate::backend::{Backend, Batch};
use crate::error::{Error, Result};
use crate::model::Llama;

/// Continues each prompt until one of `stop` or `max_new_tokens`; returns the new tokens without the stop token.
/// `progress` is called after each position.
///
/// The whole batch is computed anew for every position: with frozen weights that are dequantised on the way, the
/// passes cost about the same whether they carry one token or a few hundred.
pub fn generate<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
    stop: &[u32],
    mut progress: impl FnMut(),
) -> Result<Vec<Vec<u32>>> {
    let mut rows = prompts.to_vec();
    let mut open: Vec<usize> = (0..rows.len()).collect();
    for _ in 0..max_new_tokens {
        if open.is_empty() {
            break;
        }
        let mut boundaries = vec![0u32];
        let (mut input_ids, mut positions, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for &row in &open {
            input_ids.extend_from_slice(&rows[row]);
            positions.extend(0..rows[row].len() as u32);
            boundaries.push(input_ids.len() as u32);
            last.push(input_ids.len() - 1);
        }
        let targets = vec![-100; input_ids.len()];
        let batch = Batch { input_ids: &input_ids, positions: &positions, boundaries: &boundaries, targets: &targets };
        let logits = model.logits(backend, &batch, &last)?;
        let mut still_open = Vec::new();
        for (&row, logits) in open.iter().zip(&logits) {
            let token = argmax(logits);
            if !logits[token as usize].is_finite() {
                return Err(Error::Failed("the logits are not finite: the adapter or the base diverged".to_owned()));
            }
            if !stop.contains(&token) {
                rows[row].push(token);
                still_open.push(row);
            }
        }
        open = still_open;
        progress();
    }
    Ok(rows.into_iter().zip(prompts).map(|(row, prompt)| row[prompt.len()..].to_vec()).collect())
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}
