//! Checkpoints whose linear weights are stored in NF4, as bitsandbytes and transformers write them: their entry in
//! config.json, the parts of a weight, and a writer.
//!
//! A quantized weight `W` is stored as `W` (the packed codes, in any dtype), `W.absmax`, `W.quant_map`,
//! `W.quant_state.bitsandbytes__nf4` (JSON) and, under double quantization, `W.nested_absmax` and
//! `W.nested_quant_map`. The files win: what is quantized, in which block size and with which maps is read from the
//! tensors.

mod config;
mod dense;
mod layout;
mod on_disk;
mod record;
mod state;
mod weight;
mod write;

pub(super) use config::QuantizationConfig;
pub use dense::{Rewrite, Written, write_dense};
pub use on_disk::Nf4OnDisk;
pub use record::OriginalBase;
pub(super) use weight::{Nf4Entry, has_parts};
pub(crate) use write::{Partial, quantize_into, side_bytes};
pub use write::{QuantizeOptions, Quantized, quantize, quantized_bytes};

/// Parts of a quantized weight: what follows its name.
mod part {
    pub const ABSMAX: &str = ".absmax";
    pub const QUANT_MAP: &str = ".quant_map";
    pub const NESTED_ABSMAX: &str = ".nested_absmax";
    pub const NESTED_QUANT_MAP: &str = ".nested_quant_map";
    pub const STATE: &str = ".quant_state.bitsandbytes__nf4";
}
