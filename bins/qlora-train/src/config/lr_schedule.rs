//! Learning-rate schedules, as transformers' `get_*_schedule_with_warmup` compute them.

use super::enums::Scheduler;

/// The factor of the base rate at optimizer step `step` (0 is the first).
///
/// With a warm-up the first step therefore has factor 0, exactly as in transformers, and the factor first reaches 1 at
/// `step == warmup_steps`. Steps past the end stay at 0 (linear) or repeat the cosine's formula, never below 0.
pub fn factor(kind: Scheduler, step: usize, warmup_steps: usize, total_steps: usize) -> f64 {
    if kind == Scheduler::Constant {
        return 1.0;
    }
    if step < warmup_steps {
        return step as f64 / warmup_steps.max(1) as f64;
    }
    let decay_steps = total_steps.saturating_sub(warmup_steps).max(1) as f64;
    match kind {
        Scheduler::Constant | Scheduler::ConstantWithWarmup => 1.0,
        Scheduler::Linear => ((total_steps as f64 - step as f64) / decay_steps).max(0.0),
        Scheduler::Cosine => {
            let progress = (step - warmup_steps) as f64 / decay_steps;
            (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
        }
    }
}

/// Warm-up steps of a run of `total_steps`: `steps` if given, otherwise `ceil(ratio · total_steps)`.
pub fn warmup_steps(steps: Option<usize>, ratio: f64, total_steps: usize) -> usize {
    steps.unwrap_or_else(|| (ratio * total_steps as f64).ceil() as usize)
}
