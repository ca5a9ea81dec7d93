//! Entry point for a fuzz target to weights in NF4, without the model around them.

use std::collections::BTreeMap;
use std::path::Path;

use super::quantized::Nf4Entry;
use crate::error::Result;
use crate::files::safetensors::TensorFile;

/// Values of the weight `name` of a safetensors file, in row-major order. Refused: as opening and reading a model.
pub fn nf4_weight(path: &Path, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
    let files = [TensorFile::open(path)?];
    let owners: BTreeMap<String, usize> = files[0].tensors.keys().map(|name| (name.clone(), 0)).collect();
    let weight = Nf4Entry::open(name, &shape, &files, &owners)?;
    Ok(weight.read(name, &files, None, |_, _| ())?.dequantize())
}
