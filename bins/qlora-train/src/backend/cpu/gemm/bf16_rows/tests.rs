use super::*;
use crate::backend::cpu::elementwise::dot;

#[test]
fn partial_sums_are_those_of_widened_rows_by_every_width_of_vectors() {
    for (stride, first, count) in [(576, 288, 288), (100, 3, 97), (64, 0, 64), (4096, 512, 512)] {
        let values: Vec<bf16> = (0..5 * stride).map(|i| bf16::from_f32((i as f32 * 0.7).sin())).collect();
        let x: Vec<f32> = (0..count).map(|i| (i as f32 * 0.3).cos()).collect();
        let mut rows = Bf16Rows::of(&values, stride);
        rows.begin(1, first);
        for in_halves in [false, true] {
            let mut sums = [[f32::NAN; LANES]; 4];
            #[cfg(target_arch = "x86_64")]
            let is_done = match in_halves {
                true => vectors::multiply_in_halves(&rows, &x, &mut sums),
                false => vectors::multiply(&rows, &x, &mut sums),
            };
            #[cfg(not(target_arch = "x86_64"))]
            let is_done = in_halves && has_vectors();
            for (row, sums) in sums.iter().enumerate().filter(|_| is_done) {
                let row = &values[(1 + row) * stride + first..][..count];
                let row: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
                assert_eq!(sums.iter().sum::<f32>(), dot::<LANES>(&x, &row), "{count} of {stride} columns");
            }
        }
    }
}
