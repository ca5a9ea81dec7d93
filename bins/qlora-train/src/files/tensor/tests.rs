use super::*;
use half::{bf16, f16};

/// The norm of a weight that comes in pieces has the bits of the whole one's.
#[test]
fn squares_of_pieces_are_those_of_the_whole() {
    let values: Vec<f32> = (0..PIECE + SQUARES + 37).map(|at| (at as f32 * 0.37).sin()).collect();
    for stored in [StoredType::Bf16, StoredType::F16, StoredType::F32] {
        let of = |values: &[f32]| HostTensor::from_f32(vec![values.len()], values.to_vec(), stored).squares();
        let in_pieces: Vec<f64> = values.chunks(PIECE).flat_map(of).collect();
        assert_eq!(in_pieces, of(&values), "{stored:?}");
    }
}

#[test]
fn norms_are_the_roots_of_the_sums_of_squares_of_every_type() {
    let (rows, cols) = (5, 64);
    let values: Vec<f32> = (0..rows * cols + 3).map(|at| (at as f32 * 0.37).sin()).collect();
    let expected = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let norm = |data| WeightSource::Tensor(HostTensor { shape: vec![values.len()], data }).frobenius_norm().unwrap();
    let near = |one: f64, other: f64| assert!((one - other).abs() < 1e-12 * other, "{one} {other}");
    near(norm(TensorData::F32(values.clone())), expected(&values));
    let in_bf16: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
    near(norm(TensorData::Bf16(in_bf16.clone())), expected(&in_bf16.iter().map(|x| x.to_f32()).collect::<Vec<_>>()));
    let in_f16: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
    near(norm(TensorData::F16(in_f16.clone())), expected(&in_f16.iter().map(|x| x.to_f32()).collect::<Vec<_>>()));
}
