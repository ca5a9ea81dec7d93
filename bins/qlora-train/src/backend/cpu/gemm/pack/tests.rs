use super::*;
use crate::backend::cpu::gemm::CHUNK;

#[test]
fn a_matrix_is_turned_over_by_every_width_of_vectors() {
    let (stride, width) = (700, 48);
    let data: Vec<f32> = (0..40 * stride).map(|i| i as f32).collect();
    let matrix = Scaled { data: &data, stride, factor: 2.0 };
    for (rows, steps) in [(0..40, 0..512), (3..19, 100..612), (5..9, 7..20), (2..37, 1..14), (0..16, 0..1)] {
        let mut panel = vec![f32::NAN; CHUNK * width];
        turn(&matrix, steps.clone(), rows.clone(), &mut panel, width);
        for (j, i) in (0..steps.len()).flat_map(|j| (0..rows.len()).map(move |i| (j, i))) {
            let expected = 2.0 * data[(rows.start + i) * stride + steps.start + j];
            assert_eq!(panel[j * width + i], expected, "{rows:?}, {steps:?}: step {j} of row {i}");
        }
    }
}

#[test]
fn squares_of_eight_turn_a_band_and_touch_nothing_beside_it() {
    let band: Box<[f32; BAND * STEPS]> = Box::new(std::array::from_fn(|i| i as f32));
    for length in [1, 8, 13, STEPS] {
        let mut out = vec![-1.0; STEPS * BAND + 8];
        if !turn_in_halves(&band[..], STEPS, length, &mut out, BAND) {
            continue;
        }
        for (at, value) in out.iter().enumerate() {
            let (step, row) = (at / BAND, at % BAND);
            let expected = if step < length { (row * STEPS + step) as f32 } else { -1.0 };
            assert_eq!(*value, expected, "{length} steps: step {step} of row {row}");
        }
    }
}
