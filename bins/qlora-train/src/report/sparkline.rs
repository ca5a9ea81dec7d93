//! A curve in one line of text.

/// The last `width` values, or as many means of neighbors, as blocks of eight heights; values that are not finite are
/// left out.
pub fn sparkline(values: &[f64], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    if values.is_empty() || width == 0 {
        return String::new();
    }
    let each = values.len().div_ceil(width);
    let means: Vec<f64> = values.chunks(each).map(|part| part.iter().sum::<f64>() / part.len() as f64).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let height = |value: &f64| match high > low {
        true => (((value - low) / (high - low)) * 7.0).round() as usize,
        false => 3,
    };
    means.iter().map(|value| BLOCKS[height(value).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_low_and_the_highest_high() {
        assert_eq!(sparkline(&[3.0, 2.0, 1.0], 8), "█▅▁");
        assert_eq!(sparkline(&[1.0, 1.0], 8), "▄▄");
        assert_eq!(sparkline(&[], 8), "");
        assert_eq!(sparkline(&[f64::NAN, 1.0, 2.0], 8), "▁█");
        let long: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(sparkline(&long, 10).chars().count(), 10);
    }
}
