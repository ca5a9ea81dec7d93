//! Linear layers that share an input, as a backend holds them.

use super::Backend;

/// Linear layers of a backend that share one input.
pub type LinearGroup<B> = LinearGroupOf<<B as Backend>::Weight, <B as Backend>::Vector, <B as Backend>::Param>;
pub type Segment<B> = SegmentOf<<B as Backend>::Weight, <B as Backend>::Vector, <B as Backend>::Param>;
pub type Lora<B> = LoraOf<<B as Backend>::Param>;

/// Linear layers that share one input, as row segments of one operand: q‖k‖v, o, gate‖up, down.
pub struct LinearGroupOf<Weight, Vector, Param> {
    /// K, the width of the input
    pub k: usize,
    pub segments: Vec<SegmentOf<Weight, Vector, Param>>,
    /// layer · 16 + site: names the dropout mask of the input.
    pub site: u32,
}

pub struct SegmentOf<Weight, Vector, Param> {
    /// N, the rows of this segment
    pub n: usize,
    /// `[N, K]`
    pub weight: Weight,
    /// `[N]`
    pub bias: Option<Vector>,
    pub lora: Option<LoraOf<Param>>,
}

pub struct LoraOf<Param> {
    pub r: usize,
    pub scale: f32,
    /// `[r, K]`
    pub a: Param,
    /// `[N, r]`
    pub b: Param,
}

impl<Weight, Vector, Param> LinearGroupOf<Weight, Vector, Param> {
    /// Σ N, the width of the output.
    pub fn n(&self) -> usize {
        self.segments.iter().map(|s| s.n).sum()
    }

    /// Σ r, the width of S and T.
    pub fn r(&self) -> usize {
        self.segments.iter().filter_map(|s| s.lora.as_ref()).map(|l| l.r).sum()
    }
}
