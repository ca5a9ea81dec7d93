use super::*;
use crate::arch::shapes::shape;

#[test]
fn time_grows_with_layers_and_what_is_no_layer_counts_once() {
    let time = |micro_batch, update| StepTime { micro_batch, update, evaluation: micro_batch / 3.0 };
    // 2 s and 0.1 s that are no layer, 1 s and 0.01 s a layer.
    let kept = [time(3.0, 0.11), time(6.0, 0.14)];
    let all = StepTime::of_all(&[kept], [1, 4], &[32]);
    assert!((all.micro_batch - 34.0).abs() < 1e-9 && (all.update - 0.42).abs() < 1e-9, "{all:?}");
    assert!((all.evaluation - 34.0 / 3.0).abs() < 1e-9, "{all:?}");
    // A layer that is computed again takes 1.5 s.
    let again = [time(3.5, 0.11), time(8.0, 0.14)];
    let all = StepTime::of_all(&[kept, again], [1, 4], &[20, 12]);
    assert!((all.micro_batch - (2.0 + 20.0 + 18.0)).abs() < 1e-9 && (all.update - 0.42).abs() < 1e-9, "{all:?}");
    // A model of one layer is measured whole.
    assert_eq!(StepTime::of_all(&[[time(3.0, 0.5); 2]], [1, 1], &[1]), time(3.0, 0.5));
}

#[test]
fn a_sample_has_the_work_of_all_micro_batches() {
    let arch = shape("llama-3.2-1b").unwrap();
    let row = |length: usize| RowShape { length, learned: length - 1 };
    let all: Vec<Vec<RowShape>> = [50, 900, 100, 2000, 70, 400, 60, 300].map(|length| vec![row(length)]).to_vec();
    let samples = Sample::of(&arch, &all);
    let lengths = |sample: &Sample| sample.micro_batches.iter().flatten().map(|row| row.length).collect::<Vec<usize>>();
    assert_eq!(samples.iter().map(lengths).collect::<Vec<_>>(), [vec![60, 100, 400, 2000], vec![70, 900], vec![300]]);
    let work = |lengths: &[usize]| step_flops(&arch, lengths.iter().copied());
    let mean = work(&[50, 900, 100, 2000, 70, 400, 60, 300]) / 8.0;
    for sample in &samples {
        let lengths = lengths(sample);
        assert!((sample.scale * work(&lengths) / lengths.len() as f64 / mean - 1.0).abs() < 1e-12, "{sample:?}");
    }
    // Longer rows take more than their tokens: twice 1000 are less than 2000.
    assert!(work(&[1000, 1000]) < work(&[2000]));
    // One micro-batch is enough where all are alike, and a sample has no more than the run.
    assert_eq!(Sample::of(&arch, &vec![vec![row(500), row(1500)]; 9]).len(), 1);
    assert_eq!(Sample::of(&arch, &all[..2]).iter().map(|sample| sample.micro_batches.len()).max(), Some(2));
    assert!(Sample::of(&arch, &[]).is_empty());
}

#[test]
fn what_is_measured_is_bounded() {
    let row = |length: usize| RowShape { length, learned: length - 1 };
    let of = |name: &str, lengths: &[usize], part: f64| {
        let arch = shape(name).unwrap();
        let all: Vec<Vec<RowShape>> = lengths.iter().map(|&length| vec![row(length)]).collect();
        affordable(&arch, &Sample::of(&arch, &all), part).map(|sample| sample.micro_batches.len())
    };
    assert_eq!(of("llama-3.2-1b", &[20, 40, 80, 160], 1.0), Some(4));
    assert_eq!(of("llama-3.2-1b", &[1000, 2000, 4000, 8000], 1.0), None);
    assert_eq!(of("llama-3-70b", &[2048], 10.0 / 80.0), None);
}
