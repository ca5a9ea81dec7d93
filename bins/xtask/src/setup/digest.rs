//! SHA-256 of what is fetched.

use sha2::{Digest, Sha256};

/// In hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
