//! State that an optimizer keeps of a trainable tensor between two updates.

use qlora_kernels::optim8bit::BLOCK_SIZE;

/// Tensors of fewer elements keep f32 states, as with bitsandbytes.
const MIN_8BIT_LEN: usize = 4096;

/// Format of the moments of a model's trainable tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateFormat {
    #[default]
    F32,
    /// 8 bits an element and a scale for every 256; f32 for tensors under 4,096 elements.
    Blockwise8,
}

impl StateFormat {
    /// Before the first update: moments of zero.
    pub fn zeros(self, len: usize) -> OptimizerState {
        if !self.is_blockwise(len) {
            return OptimizerState::F32 { m: vec![0.0; len], v: vec![0.0; len] };
        }
        let absmax = vec![0.0; len.div_ceil(BLOCK_SIZE)];
        OptimizerState::Blockwise8 { m: vec![0; len], m_absmax: absmax.clone(), v: vec![0; len], v_absmax: absmax }
    }

    /// Bytes of the states of a tensor of `len` elements.
    pub fn bytes(self, len: usize) -> u64 {
        match self.is_blockwise(len) {
            true => 2 * (len as u64 + len.div_ceil(BLOCK_SIZE) as u64 * 4),
            false => 8 * len as u64,
        }
    }

    /// True if the states of a tensor of `len` elements are 8-bit codes: small tensors keep f32.
    pub fn is_blockwise(self, len: usize) -> bool {
        self == Self::Blockwise8 && len >= MIN_8BIT_LEN
    }
}

/// Parts of the trained tensors that wait in pinned host memory between two updates, beside a GPU; the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum OptimizerOnHost {
    #[default]
    Nothing,
    States,
    /// And the f32 master copies of those tensors that operations read in bf16
    StatesAndMasters,
}

/// Optimizer memory that moves from the host to a GPU and back in each update: all states, and master copies where they
/// wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// In all
    pub bytes: u64,
    /// Bytes of the pieces that it comes in
    pub piece: usize,
    pub has_masters: bool,
}

impl Paging {
    /// Bytes of a piece: a 16th, at most 8 MiB, which take half a millisecond at 16 GB/s, and at least what 4,096
    /// elements in f32 have.
    pub fn new(bytes: u64, has_masters: bool) -> Self {
        let least = if has_masters { 48 << 10 } else { 32 << 10 };
        let piece = (bytes / 16).clamp(least, 8 << 20).next_multiple_of(256) as usize;
        Self { bytes, piece, has_masters }
    }
}

/// The two moments of AdamW, `n` the tensor's elements. Equal states and values continue a run bit for bit.
#[derive(Clone, Debug, PartialEq)]
pub enum OptimizerState {
    /// `[n]` each
    F32 { m: Vec<f32>, v: Vec<f32> },
    /// Codes `[n]` under scales `[ceil(n / 256)]`; see [`qlora_kernels::optim8bit`].
    Blockwise8 { m: Vec<u8>, m_absmax: Vec<f32>, v: Vec<u8>, v_absmax: Vec<f32> },
}

impl OptimizerState {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::F32 { m, v } => (size_of_val(&m[..]) + size_of_val(&v[..])) as u64,
            Self::Blockwise8 { m, m_absmax, v, v_absmax } => {
                (m.len() + v.len() + size_of_val(&m_absmax[..]) + size_of_val(&v_absmax[..])) as u64
            }
        }
    }

    /// True if both are of one kind and every part is as long in one as in the other.
    pub fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32 { m, v }, Self::F32 { m: m2, v: v2 }) => m.len() == m2.len() && v.len() == v2.len(),
            (
                Self::Blockwise8 { m, m_absmax, v, v_absmax },
                Self::Blockwise8 { m: m2, m_absmax: m_absmax2, v: v2, v_absmax: v_absmax2 },
            ) => {
                let codes = m.len() == m2.len() && v.len() == v2.len();
                codes && m_absmax.len() == m_absmax2.len() && v_absmax.len() == v_absmax2.len()
            }
            _ => false,
        }
    }

    /// "f32 states of 4096 elements", for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::F32 { m, v } if m.len() == v.len() => format!("f32 states of {} elements", m.len()),
            Self::F32 { m, v } => format!("f32 states of {} and {} elements", m.len(), v.len()),
            Self::Blockwise8 { m, m_absmax, v, v_absmax } if m.len() == v.len() && m_absmax.len() == v_absmax.len() => {
                format!("8-bit states of {} elements in {} blocks", m.len(), m_absmax.len())
            }
            Self::Blockwise8 { m, m_absmax, v, v_absmax } => format!(
                "8-bit states of {} and {} elements in {} and {} blocks",
                m.len(),
                v.len(),
                m_absmax.len(),
                v_absmax.len()
            ),
        }
    }
}
