//! The laboratory of the kernels: one [`Operation`](operation::Operation) per kernel, which serves its check against
//! the reference and its timing, and what tests share beside them.
//!
//! Tests and benches use it as a crate, on a GPU or emulated as their features say; it is not published.

pub mod adamw;
pub mod attention;
pub mod attention_cache;
pub mod cross_entropy;
pub mod device;
pub mod differences;
pub mod dispatched;
pub mod dispatched_dx;
pub mod layer;
pub mod linear;
pub mod linear_dx;
pub mod logits;
pub mod low_rank;
pub mod magnitude_norms;
pub mod magnitudes;
pub mod nf4;
pub mod operation;
pub mod token_rows;
pub mod values;
pub mod vector_gradients;
