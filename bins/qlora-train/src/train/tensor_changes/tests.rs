use super::*;
use crate::arch::Arch;
use crate::base::synthetic::{Synthetic, tiny_arch};

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

fn differences(one: &[f32], other: &[f32]) -> f64 {
    length(one.iter().zip(other).map(|(&a, &b)| f64::from(a) - f64::from(b)))
}

#[track_caller]
fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9 * expected, "{found} {expected}");
}

/// A table of more values than are read at one time.
#[test]
fn norms_are_those_of_the_differences_from_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let arch = Arch { vocab_size: 20_000, num_layers: 1, ..tiny_arch() };
    Synthetic::new(arch, 3).write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let name = "model.embed_tokens.weight";
    let base = checkpoint.read_f32(name).unwrap();
    assert!(base.len() > PIECE);
    // One value in each piece.
    let mut values = base.clone();
    values[5] += 0.25;
    values[PIECE + 70] -= 0.5;
    let (found, own) = norms(&checkpoint, name, None, &values).unwrap().unwrap();
    near(found, differences(&values, &base));
    near(own, length(base.iter().map(|&x| f64::from(x))));
    let rows = [7usize, 19_999].map(|row| &base[row * 64..][..64]).concat();
    let moved: Vec<f32> = rows.iter().map(|x| x + 0.125).collect();
    let (found, own) = norms(&checkpoint, name, Some((&[7, 19_999], 64)), &moved).unwrap().unwrap();
    near(found, differences(&moved, &rows));
    near(own, length(rows.iter().map(|&x| f64::from(x))));
}
