//! Keys of the metadata that an adapter's safetensors file has.

/// [`Checkpoint::fingerprint`](crate::base::Checkpoint::fingerprint) of the base as it was before quantizing.
pub const BASE_FINGERPRINT: &str = "qlora.base_fingerprint";
/// [`BaseFingerprint::unquantized`](crate::base::BaseFingerprint::unquantized) of the base.
pub const UNQUANTIZED_FINGERPRINT: &str = "qlora.base_unquantized_fingerprint";
pub const BASE_NAME: &str = "qlora.base_name";
pub const BASE_REVISION: &str = "qlora.base_revision";
/// The JSON of a [`BaseQuantization`](super::BaseQuantization).
pub const QUANTIZATION: &str = "qlora.quantization";
/// SHA-256 (hex) of the chat template's text.
pub const CHAT_TEMPLATE_SHA256: &str = "qlora.chat_template_sha256";
