//! Checks during training.

use super::facts::{History, ModuleGradients};

/// Number of entries that a loss is compared with; fewer are not enough.
const WINDOW: usize = 20;
const ENOUGH: usize = 10;
/// Steps after which gradients of A are meaningful: they begin at zero, because B does.
const SETTLED: u64 = 20;
/// A module whose gradient is smaller than this fraction of the median does not move.
const STILL: f64 = 1e-6;
const OUT_OF_SCALE: f64 = 300.0;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn mean_and_variance(values: &[(u64, f64)]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|(_, loss)| loss).sum::<f64>() / n;
    (mean, values.iter().map(|(_, loss)| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0))
}

pub fn loss_spike(history: &History) -> Option<String> {
    let (&(step, loss), before) = history.losses.split_last()?;
    let before: Vec<f64> = before[before.len().saturating_sub(WINDOW)..].iter().map(|(_, loss)| *loss).collect();
    if before.len() < ENOUGH {
        return None;
    }
    let usual = median(before.clone());
    // The standard deviation, by a measure that single values do not move.
    let deviation = 1.4826 * median(before.iter().map(|loss| (loss - usual).abs()).collect());
    let spike = loss > usual + f64::max(0.5, 6.0 * deviation);
    spike.then(|| format!("the loss jumps to {loss:.4} at step {step}, where {usual:.4} was usual"))
}

pub fn plateau(history: &History) -> Option<String> {
    let losses = history.losses;
    let half = history.total_steps.div_ceil(2);
    let (&(step, _), before) = losses.split_last()?;
    // Once in a run: chance would find one sooner or later, and near its end the learning rate is small.
    let is_half_way = step >= half && before.last().is_some_and(|(step, _)| *step < half);
    if !is_half_way || losses.len() < 50 || history.total_steps < 100 {
        return None;
    }
    let part = losses.len() / 3;
    let (recent, earlier) = (&losses[losses.len() - part..], &losses[losses.len() - 2 * part..losses.len() - part]);
    let ((now, now_variance), (then, then_variance)) = (mean_and_variance(recent), mean_and_variance(earlier));
    let error = ((now_variance + then_variance) / part as f64).sqrt();
    // Noise that would hide a fall of one percent allows no conclusion.
    let still = then - now < 0.005 * then && error < 0.01 * then && now > 0.05;
    still.then(|| {
        let (from, middle) = (earlier[0].0, recent[0].0);
        format!("the training loss no longer falls: {then:.4} from step {from} on, {now:.4} from step {middle} on")
    })
}

pub fn validation_rises(history: &History) -> Option<String> {
    let [before @ .., last, newest] = history.validation else { return None };
    let (step, lowest) = before.iter().copied().min_by(|one, other| one.1.total_cmp(&other.1))?;
    let rises = last.1 > 1.01 * lowest && newest.1 > 1.01 * lowest;
    rises.then(|| {
        let (at, loss) = *newest;
        format!("the validation loss rises since step {step}: {lowest:.4} there, {loss:.4} at step {at}")
    })
}

pub fn still_modules(gradients: &ModuleGradients) -> Option<String> {
    if gradients.step < SETTLED || gradients.modules.is_empty() {
        return None;
    }
    let norm = |(_, a, b): &(String, f64, f64)| a.hypot(*b);
    let usual = median(gradients.modules.iter().map(norm).collect());
    let still: Vec<&str> = gradients
        .modules
        .iter()
        .filter(|module| norm(module) <= STILL * usual)
        .map(|(name, ..)| name.as_str())
        .collect();
    let more = if still.len() > 3 { format!(" and {} more", still.len() - 3) } else { String::new() };
    (!still.is_empty()).then(|| {
        let named = still[..still.len().min(3)].join(", ");
        format!("the adapters of {named}{more} get no gradient at step {}", gradients.step)
    })
}

pub fn gradient_scale(gradients: &ModuleGradients) -> Option<String> {
    let (a, b) = gradients.norms();
    // If one of them is zero, the fault is another one.
    if gradients.step < SETTLED || gradients.is_warming_up || a == 0.0 || b == 0.0 {
        return None;
    }
    let (larger, smaller, factor) = if a > b { ("A", "B", a / b) } else { ("B", "A", b / a) };
    (factor > OUT_OF_SCALE).then(|| {
        let step = gradients.step;
        format!("at step {step} the gradients of {larger} are {factor:.0} times those of {smaller}")
    })
}
