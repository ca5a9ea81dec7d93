//! One quantized weight: its parts checked when the checkpoint is opened, put together when it is read.

use std::collections::BTreeMap;
use std::path::Path;

use qlora_kernels::nf4::{Absmax, NESTED_BLOCK_SIZE, Nf4Matrix, Nf4Options};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::part;
use super::state::QuantState;
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::safetensors::TensorFile;

/// Far more than the JSON of any shape takes.
const MAX_STATE_BYTES: usize = 1 << 16;

/// A weight that is stored in NF4.
pub(crate) struct Nf4Entry {
    pub shape: [usize; 2],
    pub options: Nf4Options,
    offset: Option<f32>,
    /// Suffix of the weight's name → (position of the file, header entry); the codes have "".
    pub parts: BTreeMap<&'static str, (usize, TensorInfo)>,
}

/// Use of a weight's codes while its parts are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Codes {
    Keep,
    Scan,
    Skip,
}

/// True if a part is stored beside `name` that makes it a quantized weight.
pub(crate) fn has_parts(owners: &BTreeMap<String, usize>, name: &str) -> bool {
    let prefix = format!("{name}.");
    owners.range(prefix.clone()..).next().is_some_and(|(found, _)| found.starts_with(&prefix))
}

/// The parts of one weight while they are checked.
struct Parts<'a> {
    name: &'a str,
    files: &'a [TensorFile],
    owners: &'a BTreeMap<String, usize>,
    found: BTreeMap<&'static str, (usize, TensorInfo)>,
}

impl Parts<'_> {
    /// Takes the part that has to be there.
    fn take(&mut self, suffix: &'static str, dtype: Dtype, shape: &[usize]) -> Result<()> {
        let (file, info) = self.find(suffix)?;
        if info.dtype != dtype || info.shape != shape {
            bail_usage!(
                "{}: tensor `{}{suffix}`: found {} {:?}, expected {dtype} {shape:?} for the shape and block size that \
                 its quant_state names: the files belong to different checkpoints, or are damaged; get them again",
                self.files[file].path().display(),
                self.name,
                info.dtype,
                info.shape
            );
        }
        self.found.insert(suffix, (file, info));
        Ok(())
    }

    fn find(&self, suffix: &str) -> Result<(usize, TensorInfo)> {
        let name = format!("{}{suffix}", self.name);
        let Some(&file) = self.owners.get(&name) else {
            let beside = self.owners.get(self.name).map_or(Path::new(""), |&file| self.files[file].path());
            bail_usage!(
                "{}: tensor `{name}`: found nothing, expected this part of the NF4 weight `{}`: the checkpoint is \
                 incomplete, get it again",
                beside.display(),
                self.name
            );
        };
        Ok((file, self.files[file].tensors[&name].clone()))
    }
}

impl Nf4Entry {
    /// Checks every part's type and shape; reads the small quant_state only.
    pub fn open(name: &str, shape: &[usize], files: &[TensorFile], owners: &BTreeMap<String, usize>) -> Result<Self> {
        check_kind(name, files, owners)?;
        let mut parts = Parts { name, files, owners, found: BTreeMap::new() };
        let (file, info) = parts.find(part::STATE)?;
        let source = format!("{}: tensor `{name}{}`", files[file].path().display(), part::STATE);
        if info.dtype != Dtype::U8 || info.shape.len() != 1 || info.shape[0] > MAX_STATE_BYTES {
            bail_usage!(
                "{source}: found {} {:?}, expected U8 [n], the bytes of a JSON object of at most {MAX_STATE_BYTES}",
                info.dtype,
                info.shape
            );
        }
        let bytes = files[file].read_elements::<u8>(&format!("{name}{}", part::STATE), &info, |_| ())?;
        let state = QuantState::parse(source.clone(), &bytes)?;
        if state.shape[..] != *shape {
            bail_usage!("{source}: key `shape`: found {:?}, expected {shape:?} as config.json says", state.shape);
        }
        parts.found.insert(part::STATE, (file, info));

        // The sizes of config.json were checked: the product fits.
        let len = shape[0] * shape[1];
        let blocks = len.div_ceil(state.block_size);
        parts.take(part::QUANT_MAP, Dtype::F32, &[16])?;
        match state.nested_offset {
            None => parts.take(part::ABSMAX, Dtype::F32, &[blocks])?,
            Some(_) => {
                parts.take(part::ABSMAX, Dtype::U8, &[blocks])?;
                parts.take(part::NESTED_ABSMAX, Dtype::F32, &[blocks.div_ceil(NESTED_BLOCK_SIZE)])?;
                parts.take(part::NESTED_QUANT_MAP, Dtype::F32, &[256])?;
            }
        }
        // The codes may be packed into any type: the shape shrinks, the bytes stay.
        let (file, info) = parts.find("")?;
        let bytes = len.div_ceil(2);
        let stored = info.data_offsets.1 - info.data_offsets.0;
        if stored != bytes || info.shape.len() != 2 || info.shape[1] != 1 {
            bail_usage!(
                "{}: tensor `{name}`: found {} {:?}, expected [n, 1] of {bytes} bytes: the NF4 codes of {shape:?} weights",
                files[file].path().display(),
                info.dtype,
                info.shape
            );
        }
        parts.found.insert("", (file, info));
        let options = Nf4Options { block_size: state.block_size, double_quant: state.nested_offset.is_some() };
        let entry = Self { shape: [shape[0], shape[1]], options, offset: state.nested_offset, parts: parts.found };
        entry.check_no_more(name, files, owners)?;
        Ok(entry)
    }

    fn check_no_more(&self, name: &str, files: &[TensorFile], owners: &BTreeMap<String, usize>) -> Result<()> {
        let prefix = format!("{name}.");
        let unknown = owners
            .range(prefix.clone()..)
            .take_while(|(found, _)| found.starts_with(&prefix))
            .find(|(found, _)| !self.parts.contains_key(&found[name.len()..]));
        let Some((found, &file)) = unknown else { return Ok(()) };
        let hint = match (self.offset, &found[name.len()..]) {
            (None, part::NESTED_ABSMAX | part::NESTED_QUANT_MAP) => {
                ": its quant_state names no double quantization (`nested_offset`)"
            }
            _ => "",
        };
        bail_usage!(
            "{}: tensor `{found}`: found a part that the NF4 weight `{name}` does not have{hint}, expected none: the \
             files belong to different checkpoints",
            files[file].path().display()
        );
    }

    /// Puts the parts together, in the memory of `reused`; `seen` gets the bytes of each part, in the order of the
    /// parts' names.
    pub fn read(
        &self,
        name: &str,
        files: &[TensorFile],
        reused: Option<Nf4Matrix>,
        seen: impl FnMut(&str, &[u8]),
    ) -> Result<Nf4Matrix> {
        let (code, codes, absmax) = self.read_parts(name, files, reused, Codes::Keep, seen)?;
        let [rows, cols] = self.shape;
        let matrix = Nf4Matrix::from_parts(rows, cols, self.options.block_size, code, codes, absmax);
        matrix.usage_context(|| self.damaged(name, files))
    }

    /// Reads all parts and refuses what [`read`](Self::read) refuses, without keeping the codes.
    pub fn check(&self, name: &str, files: &[TensorFile], seen: impl FnMut(&str, &[u8])) -> Result<()> {
        self.check_parts(name, files, Codes::Scan, seen)
    }

    /// Refuses what [`read`](Self::read) refuses, without reading the codes: any are right.
    pub fn check_scales(&self, name: &str, files: &[TensorFile]) -> Result<()> {
        self.check_parts(name, files, Codes::Skip, |_, _| ())
    }

    fn check_parts(&self, name: &str, files: &[TensorFile], codes: Codes, seen: impl FnMut(&str, &[u8])) -> Result<()> {
        let (code, _, absmax) = self.read_parts(name, files, None, codes, seen)?;
        let ([rows, cols], codes) = (self.shape, self.shape.iter().product::<usize>().div_ceil(2));
        let checked = Nf4Matrix::check_parts(rows, cols, self.options.block_size, &code, codes, &absmax);
        checked.usage_context(|| self.damaged(name, files))
    }

    fn damaged(&self, name: &str, files: &[TensorFile]) -> String {
        let (file, _) = self.parts[""];
        format!("{}: tensor `{name}`: the NF4 weight is damaged, get it again", files[file].path().display())
    }

    /// The 16 values, the codes if they are kept, and the scales.
    fn read_parts(
        &self,
        name: &str,
        files: &[TensorFile],
        reused: Option<Nf4Matrix>,
        codes: Codes,
        mut seen: impl FnMut(&str, &[u8]),
    ) -> Result<([f32; 16], Vec<u8>, Absmax)> {
        let mut u8s: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        let mut f32s: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        if let Some((codes, absmax)) = reused.map(Nf4Matrix::into_parts) {
            u8s.insert("", codes);
            match absmax {
                Absmax::F32(absmax) => drop(f32s.insert(part::ABSMAX, absmax)),
                Absmax::DoubleQuantized { codes, nested_absmax, .. } => {
                    u8s.insert(part::ABSMAX, codes);
                    f32s.insert(part::NESTED_ABSMAX, nested_absmax);
                }
            }
        }
        for (&suffix, (file, info)) in &self.parts {
            let (file, part) = (&files[*file], format!("{name}{suffix}"));
            let see = |bytes: &[u8]| seen(suffix, bytes);
            match (suffix, info.dtype) {
                ("", _) if codes == Codes::Skip => (),
                ("", _) if codes == Codes::Scan => file.scan(&part, info, see)?,
                // Codes are bytes, whatever type they are packed into.
                ("", _) | (_, Dtype::U8) => {
                    let values = u8s.remove(suffix).unwrap_or_default();
                    u8s.insert(suffix, file.read_elements_into(values, &part, info, see)?);
                }
                _ => {
                    let values = f32s.remove(suffix).unwrap_or_default();
                    f32s.insert(suffix, file.read_elements_into(values, &part, info, see)?);
                }
            }
        }
        let mut f32s = |suffix: &str| f32s.remove(suffix).expect("opening the checkpoint checked every part");
        let code: [f32; 16] = f32s(part::QUANT_MAP).try_into().expect("its shape was checked");
        let absmax = match self.offset {
            None => Absmax::F32(f32s(part::ABSMAX)),
            Some(offset) => Absmax::DoubleQuantized {
                codes: u8s.remove(part::ABSMAX).expect("opening the checkpoint checked every part"),
                nested_absmax: f32s(part::NESTED_ABSMAX),
                nested_block_size: NESTED_BLOCK_SIZE,
                nested_map: f32s(part::NESTED_QUANT_MAP).try_into().expect("its shape was checked"),
                offset,
            },
        };
        Ok((code, u8s.remove("").unwrap_or_default(), absmax))
    }
}

/// Other kinds of quantized weights, by name.
fn check_kind(name: &str, files: &[TensorFile], owners: &BTreeMap<String, usize>) -> Result<()> {
    let fp4 = format!("{name}.quant_state.bitsandbytes__fp4");
    if let Some(&file) = owners.get(&fp4) {
        bail_usage!(
            "{}: tensor `{fp4}`: found an FP4 weight, expected NF4: use the original 16-bit model",
            files[file].path().display()
        );
    }
    Ok(())
}
