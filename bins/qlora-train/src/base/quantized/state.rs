//! `W.quant_state.bitsandbytes__nf4`: the JSON of a quantized weight.

use serde_json::{Map, Value, json};

use crate::error::{Context, Error, Result};
use crate::files::json::{Keys, UniqueMap};
use crate::files::tensor::StoredType;
use qlora_kernels::nf4::NESTED_BLOCK_SIZE;

const KEYS: [&str; 7] =
    ["quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"];
/// The writer pads to this length: a decimal offset has at most 24 characters.
pub(super) const STATE_BYTES: usize = 256;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct QuantState {
    /// `[out, in]`
    pub shape: [usize; 2],
    pub block_size: usize,
    /// Type of the weight before, which bitsandbytes dequantizes it to
    pub dtype: StoredType,
    /// The offset of the absmax under double quantization.
    pub nested_offset: Option<f32>,
}

impl QuantState {
    /// `source` is what errors call the tensor: its file and name.
    pub fn parse(source: String, bytes: &[u8]) -> Result<Self> {
        let damaged = || format!("{source}: not a quant_state (a JSON object as bitsandbytes writes it); get it again");
        let UniqueMap(entries) = serde_json::from_slice::<UniqueMap<Value>>(bytes).usage_context(damaged)?;
        let map: Map<String, Value> = entries.into_iter().collect();
        let keys = Keys::of(source, &map);
        if let Some(unknown) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(keys.wrong(unknown, &format!("only the keys {}", KEYS.join(", "))));
        }
        if keys.text("quant_type")? != Some("nf4") {
            return Err(keys.wrong("quant_type", "\"nf4\""));
        }
        let block_size = keys.whole("blocksize")?.filter(|n| (32..=4096).contains(n) && n.is_power_of_two());
        let Some(block_size) = block_size else {
            return Err(keys.wrong("blocksize", "a power of two from 32 to 4096"));
        };
        let shape = keys.get("shape").and_then(Value::as_array).and_then(|list| match &list[..] {
            [n, k] => Some([usize::try_from(n.as_u64()?).ok()?, usize::try_from(k.as_u64()?).ok()?]),
            _ => None,
        });
        let Some(shape) = shape else { return Err(keys.wrong("shape", "[out features, in features]")) };
        let dtype = match keys.text("dtype")? {
            Some("bfloat16") => StoredType::Bf16,
            Some("float16") => StoredType::F16,
            Some("float32") => StoredType::F32,
            _ => return Err(keys.wrong("dtype", "\"bfloat16\", \"float16\" or \"float32\"")),
        };
        Ok(Self { shape, block_size, dtype, nested_offset: nested_offset(&keys)? })
    }

    /// The bytes of the tensor, padded with spaces: its length is known before the offset is.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut state = json!({
            "quant_type": "nf4",
            "blocksize": self.block_size,
            "dtype": self.dtype.torch_name(),
            "shape": self.shape,
        });
        if let (Some(offset), Value::Object(map)) = (self.nested_offset, &mut state) {
            map.insert("nested_blocksize".to_owned(), NESTED_BLOCK_SIZE.into());
            map.insert("nested_dtype".to_owned(), "float32".into());
            map.insert("nested_offset".to_owned(), f64::from(offset).into());
        }
        let mut bytes = state.to_string().into_bytes();
        debug_assert!(bytes.len() <= STATE_BYTES);
        bytes.resize(STATE_BYTES.max(bytes.len()), b' ');
        bytes
    }
}

fn nested_offset(keys: &Keys) -> Result<Option<f32>> {
    let nested = ["nested_blocksize", "nested_dtype", "nested_offset"];
    if nested.iter().all(|key| keys.get(key).is_none()) {
        return Ok(None);
    }
    let wrong = |key: &str, expected: String| -> Error { keys.wrong(key, &expected) };
    if keys.whole("nested_blocksize")? != Some(NESTED_BLOCK_SIZE) {
        return Err(wrong("nested_blocksize", format!("{NESTED_BLOCK_SIZE}, the one that bitsandbytes uses")));
    }
    if keys.text("nested_dtype")? != Some("float32") {
        return Err(wrong("nested_dtype", "\"float32\"".to_owned()));
    }
    match keys.number("nested_offset")?.map(|x| x as f32).filter(|x| x.is_finite()) {
        Some(offset) => Ok(Some(offset)),
        None => Err(wrong("nested_offset", "a number that f32 can hold".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_has_the_length_that_was_planned() {
        for nested_offset in [None, Some(1.0 / 3.0), Some(f32::MIN_POSITIVE), Some(-f32::MAX), Some(1e-45)] {
            let shape = [i32::MAX as usize, i32::MAX as usize];
            let state = QuantState { shape, block_size: 4096, dtype: StoredType::Bf16, nested_offset };
            let bytes = state.to_bytes();
            assert_eq!(bytes.len(), STATE_BYTES);
            assert_eq!(QuantState::parse("state".to_owned(), &bytes).unwrap(), state);
        }
    }
}
