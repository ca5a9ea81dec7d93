//! Rotary position embedding (Su et al. 2021) in the half-split form of Llama: element i of a head is rotated with
//! element i + D/2 by the angle position·frequency(i).

use super::Real;

/// How the frequencies are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth blend between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
}

/// cos and sin of every (position, frequency), from f64.
#[derive(Clone, Debug)]
pub struct RopeTable<T> {
    /// D / 2
    pub half: usize,
    /// `[positions, D/2]`
    pub cos: Vec<T>,
    /// `[positions, D/2]`
    pub sin: Vec<T>,
}

impl<T: Real> RopeTable<T> {
    /// `head_dim` is even; `theta` is the base of the frequencies θ^(−2i/D).
    pub fn new(head_dim: usize, theta: f64, scaling: RopeScaling, positions: usize) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> =
            (0..half).map(|i| scaled(theta.powf(-(2.0 * i as f64) / head_dim as f64), scaling)).collect();
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        Self {
            half,
            cos: angles().map(|angle| T::of(angle.cos())).collect(),
            sin: angles().map(|angle| T::of(angle.sin())).collect(),
        }
    }

    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings as f64;
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength > original / low_freq_factor {
                frequency / factor
            } else if wavelength < original / high_freq_factor {
                frequency
            } else {
                let blend = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - blend) * frequency / factor + blend * frequency
            }
        }
    }
}

fn rotate<T: Real>(x: &mut [T], row: usize, heads: usize, positions: &[u32], table: &RopeTable<T>, direction: T) {
    let half = table.half;
    for (x, &position) in x.chunks_exact_mut(row).zip(positions) {
        let at = position as usize * half;
        for head in x[..heads * 2 * half].chunks_exact_mut(2 * half) {
            for i in 0..half {
                let (cos, sin) = (table.cos[at + i], direction * table.sin[at + i]);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }
}

/// Rotates the first `heads` heads of every row in place.
pub fn rope<T: Real>(
    x: &mut [T], // [M, row], row ≥ heads·D
    row: usize,
    heads: usize,
    positions: &[u32], // [M]
    table: &RopeTable<T>,
) {
    rotate(x, row, heads, positions, table, T::ONE);
}

/// The inverse rotation, which is also the gradient.
pub fn rope_inverse<T: Real>(x: &mut [T], row: usize, heads: usize, positions: &[u32], table: &RopeTable<T>) {
    rotate(x, row, heads, positions, table, -T::ONE);
}
