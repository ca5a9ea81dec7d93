//! What an optimiser remembers of a trainable tensor between two updates.

/// The two moments of AdamW, `n` the tensor's elements. Equal states and values continue a run bit for bit.
#[derive(Clone, Debug, PartialEq)]
pub enum OptimizerState {
    /// `[n]` each
    F32 { m: Vec<f32>, v: Vec<f32> },
    /// Codes `[n]` of an 8-bit map, scaled by `[ceil(n / 256)]` absmax: bitsandbytes' blockwise states.
    Blockwise8 { m: Vec<u8>, m_absmax: Vec<f32>, v: Vec<u8>, v_absmax: Vec<f32> },
}

impl OptimizerState {
    /// "f32 of 4096 elements", for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::F32 { m, v } if m.len() == v.len() => format!("f32 states of {} elements", m.len()),
            Self::F32 { m, v } => format!("f32 states of {} and {} elements", m.len(), v.len()),
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
