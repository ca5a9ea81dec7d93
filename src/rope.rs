//! Angles of the rotary position embedding (Su et al. 2021), and how they are scaled beyond the trained context.

use crate::real::Real;
use std::sync::Arc;

/// The stretching of the frequencies beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
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
    /// YaRN (Peng et al. 2023): frequencies that turn more than `beta_fast` times within the trained context are kept,
    /// those that turn less than `beta_slow` times are divided by `factor`, a linear blend between; queries and keys
    /// grow by `attention_factor`.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max_position_embeddings: usize,
        attention_factor: f64,
        /// Rounds the ends of the blend outwards to whole indices.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): every frequency divided by a factor of its own, those of `long_factor` where a
    /// table reaches beyond the trained context; queries and keys grow by `attention_factor`.
    LongRope {
        /// `[R/2]`
        short_factor: Arc<[f32]>,
        /// `[R/2]`
        long_factor: Arc<[f32]>,
        original_max_position_embeddings: usize,
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// The factor of cos and sin.
    fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => *attention_factor,
            Self::Default | Self::Linear { .. } | Self::Llama3 { .. } => 1.0,
        }
    }
}

/// cos and sin of every (position, frequency), from f64.
#[derive(Clone, Debug)]
pub struct RopeTable<T> {
    /// R / 2, of the R elements of a head that are rotated
    pub half: usize,
    /// `[positions, R/2]`
    pub cos: Vec<T>,
    /// `[positions, R/2]`
    pub sin: Vec<T>,
}

impl<T: Real> RopeTable<T> {
    /// `rotary_dim`, the elements of a head that are rotated, is even; `theta` is the base of the frequencies
    /// θ^(−2i/R).
    pub fn new(rotary_dim: usize, theta: f64, scaling: RopeScaling, positions: usize) -> Self {
        Self::scaled(rotary_dim, theta, scaling, positions, 1.0)
    }

    /// The table of [`new`](Self::new) with queries and keys multiplied by `scale` as they turn: the scores of
    /// attention are multiplied by `scale²`.
    pub fn scaled(rotary_dim: usize, theta: f64, scaling: RopeScaling, positions: usize, scale: f64) -> Self {
        let half = rotary_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| frequency(i, rotary_dim, theta, &scaling, positions)).collect();
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let factor = scaling.attention_factor() * scale;
        Self {
            half,
            cos: angles().map(|angle| T::of(angle.cos() * factor)).collect(),
            sin: angles().map(|angle| T::of(angle.sin() * factor)).collect(),
        }
    }

    /// Rows of the table: positions 0 to this, exclusive.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

/// Radians by which pair `i` of the D / 2 pairs of a head turns with each position.
pub fn frequency(i: usize, rotary_dim: usize, theta: f64, scaling: &RopeScaling, positions: usize) -> f64 {
    let frequency = theta.powf(-(2.0 * i as f64) / rotary_dim as f64);
    match *scaling {
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
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } => {
            let dim = rotary_dim as f64;
            // The index of the frequency that turns this often within the trained context.
            let index = |turns: f64| {
                let wavelengths = original_max_position_embeddings as f64 / (turns * std::f64::consts::TAU);
                dim * wavelengths.ln() / (2.0 * theta.ln())
            };
            let (first, last) = (index(beta_fast), index(beta_slow));
            let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
            let (first, last) = (first.max(0.0), last.min(dim - 1.0));
            let width = if first == last { 0.001 } else { last - first };
            let divided = ((i as f64 - first) / width).clamp(0.0, 1.0);
            frequency / factor * divided + frequency * (1.0 - divided)
        }
        RopeScaling::LongRope { ref short_factor, ref long_factor, original_max_position_embeddings, .. } => {
            let beyond = positions > original_max_position_embeddings;
            frequency / f64::from(if beyond { long_factor[i] } else { short_factor[i] })
        }
    }
}
