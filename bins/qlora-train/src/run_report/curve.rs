//! The learning curve of a run as a picture of its own, for a model card.

use super::records::LogEntry;
use super::svg::{Chart, series, smoothed};

/// The losses of a log as an SVG file: its text is a function of them alone. None: it has none.
pub fn learning_curve(history: &[LogEntry]) -> Option<String> {
    let curve = |of: fn(&LogEntry) -> Option<f64>| -> Vec<(f64, f64)> {
        let finite = |entry: &LogEntry| of(entry).filter(|value| value.is_finite());
        history.iter().filter_map(|entry| Some((entry.step as f64, finite(entry)?))).collect()
    };
    let loss = curve(|entry| entry.loss);
    let curves = [
        series("training, each entry", "one faint", loss.clone(), false),
        series("training, smoothed", "one", smoothed(&loss), false),
        series("validation", "two", curve(|entry| entry.eval_loss), true),
    ];
    let (x, y) = ("optimizer step", "loss, nats per learned token");
    Chart { title: "Learning curve", x, y, series: &curves, marks: &[] }.file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_has_what_was_logged_and_nothing_of_the_time_it_took() {
        let entry = |step: u64, loss: Option<f64>, eval_loss: Option<f64>, seconds: f64| LogEntry {
            loss,
            eval_loss,
            seconds: Some(seconds),
            tokens_per_second: Some(1.0 / seconds),
            ..LogEntry::new(step, 0.0)
        };
        let log = |seconds: f64| {
            [
                entry(1, Some(2.0), None, seconds),
                entry(2, Some(1.0), None, seconds),
                entry(2, None, Some(1.5), seconds),
                entry(3, Some(f64::NAN), None, seconds),
            ]
        };
        let curve = learning_curve(&log(1.0)).unwrap();
        assert_eq!(learning_curve(&log(7.0)), Some(curve.clone()));
        assert!(curve.contains("validation</text>") && !curve.contains("NaN"), "{curve}");
        assert_eq!(curve.matches("<circle").count(), 1, "one evaluation");
        assert_eq!(learning_curve(&[]), None);
        assert_eq!(learning_curve(&[LogEntry::new(1, 0.0)]), None);
    }
}
