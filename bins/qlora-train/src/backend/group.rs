//! Linear layers that share an input, as a backend holds them.

use super::Operands;
use crate::lora::adalora::Triplets;

/// Linear layers that share one input, as row segments of one operand: q‖k‖v, o, gate‖up, down.
pub struct LinearGroup<B: Operands + ?Sized> {
    /// K, the width of the input
    pub k: usize,
    pub segments: Vec<Segment<B>>,
    /// layer · 16 + number of the input: names the dropout mask of the input.
    pub dropout_id: u32,
    /// The names of its linear layers, for messages: "q_proj, k_proj, v_proj"
    pub label: String,
}

pub struct Segment<B: Operands + ?Sized> {
    /// N, the rows of this segment
    pub n: usize,
    /// `[N, K]`
    pub weight: B::Weight,
    /// `[N]`
    pub bias: Option<B::Vector>,
    pub lora: Option<Lora<B>>,
}

pub struct Lora<B: Operands + ?Sized> {
    pub r: usize,
    pub scale: f32,
    /// `[r, K]`, or `[count, r, K]` of several pairs
    pub a: B::Param,
    /// `[N, r]`, or `[count, N, r]`
    pub b: B::Param,
    /// Several pairs, of which each token takes that of its adapter; none: one pair for all tokens
    pub several: Option<SeveralPairs<B>>,
    /// DoRA's; none in plain LoRA
    pub magnitude: Option<Magnitude<B>>,
    /// AdaLoRA's, with which products read E ∘ A in the place of A; none: ranks are not cut
    pub factors: Option<RankFactors<B>>,
}

/// The factor of each rank, by which it is cut.
pub struct RankFactors<B: Operands + ?Sized> {
    /// E, `[r]`
    pub e: B::Param,
    pub triplets: Triplets,
}

/// Pairs of one linear layer, all of rank r: one of a lower rank is padded with zeros. They are not trained.
pub struct SeveralPairs<B: Operands + ?Sized> {
    pub count: usize,
    /// `[count]`: the scale of each, in place of that of [`Lora`]
    pub scales: B::Vector,
}

impl<B: Operands + ?Sized> Lora<B> {
    /// Pairs of A and B.
    pub fn pairs(&self) -> usize {
        self.several.as_ref().map_or(1, |several| several.count)
    }
}

/// The magnitudes of a layer's outputs, and the norms of the rows that they take the place of.
pub struct Magnitude<B: Operands + ?Sized> {
    /// `[N]`
    pub m: B::Param,
    /// `[N]`: ‖W‖² of each row
    pub squares: B::Vector,
    /// `[N]`: ‖W + scale · B · A‖ of each row, as the last [refresh](super::Weights::refresh_magnitudes) found it
    pub norms: B::Vector,
}

impl<B: Operands + ?Sized> LinearGroup<B> {
    /// Σ N, the width of the output.
    pub fn n(&self) -> usize {
        self.segments.iter().map(|s| s.n).sum()
    }

    /// N and r of each layer.
    pub fn work(&self) -> Vec<[usize; 2]> {
        self.segments.iter().map(|segment| [segment.n, segment.lora.as_ref().map_or(0, |lora| lora.r)]).collect()
    }

    /// True if a layer has magnitudes.
    pub fn has_magnitudes(&self) -> bool {
        self.segments.iter().any(|segment| segment.lora.as_ref().is_some_and(|lora| lora.magnitude.is_some()))
    }

    /// Σ r, one pair of each layer counted.
    pub fn r(&self) -> usize {
        self.segments.iter().filter_map(|s| s.lora.as_ref()).map(|l| l.r).sum()
    }

    /// Σ r·N, the elements of all B.
    pub fn low_rank_parameters_of_b(&self) -> usize {
        self.segments.iter().filter_map(|s| s.lora.as_ref().map(|l| l.r * s.n)).sum()
    }
}
