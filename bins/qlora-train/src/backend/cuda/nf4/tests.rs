//! Weights that the device quantizes, against the host's quantizer.

use super::*;
use crate::backend::run_shape::RunShape;
use crate::backend::{Quantization, Weights};
use crate::files::tensor::StoredType;
use qlora_kernels::device::{Device, Element};
use qlora_kernels::rng::RngStream;
use std::rc::Rc;

const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

fn cuda() -> Cuda {
    let dims = RunShape {
        tokens: 8,
        tile: 8,
        hidden: 64,
        vocab: 64,
        heads: 1,
        kv_heads: 1,
        head_dim: 64,
        ..RunShape::default()
    };
    Cuda::on(DeviceMemory::new(Rc::new(Device::open().unwrap()), 64 << 20, false).unwrap(), dims).unwrap()
}

/// Blocks of different sizes, and some of zeros.
fn values(count: usize) -> Vec<f32> {
    let mut stream = RngStream::new(7, 0);
    (0..count).map(|at| (at / 190 % 9) as f32 * 0.02 * (2.0 * stream.uniform() - 1.0)).collect()
}

/// The weight from its pieces, quantized on the device.
fn on_device(cuda: &mut Cuda, [n, k]: [usize; 2], options: &Nf4Options, pieces: &[HostTensor]) -> Result<CudaWeight> {
    let read: &mut ReadPieces<'_> =
        &mut |take| pieces.iter().try_for_each(|piece| take(WeightSource::Tensor(piece.clone())));
    cuda.quantized(WEIGHT, n, k, options, read)
}

fn on_host(cuda: &mut Cuda, [n, k]: [usize; 2], options: &Nf4Options, tensor: &HostTensor) -> Result<CudaWeight> {
    let Nf4Options { block_size, double_quant } = *options;
    let quantization = Quantization::Nf4 { block_size, double_quant };
    let read = &mut || Ok(WeightSource::Tensor(tensor.clone()));
    cuda.weight(WEIGHT, n, k, quantization, tensor.stored_type(), read)
}

/// The pieces of a tensor: itself where it has no more than a piece has.
fn pieces(tensor: &HostTensor) -> Vec<HostTensor> {
    let (stored, values) = (tensor.stored_type(), tensor.to_f32());
    let piece = |part: &[f32]| HostTensor::from_f32(vec![part.len()], part.to_vec(), stored);
    values.chunks(PIECE).map(piece).collect()
}

fn bytes<T: Element + Default + Pod>(memory: &DeviceMemory, array: &WeightArray<T>) -> Vec<u8> {
    let WeightArray::Device(array) = array else { panic!("the weight is on the device") };
    bytemuck::cast_slice(&memory.download(array).unwrap()).to_vec()
}

/// All arrays of a weight.
fn arrays(memory: &DeviceMemory, weight: &CudaWeight) -> Vec<Vec<u8>> {
    let CudaWeight::Nf4(weight) = weight else { panic!("the weight is in NF4") };
    let mut all = vec![bytes(memory, &weight.codes)];
    match &weight.absmax {
        nf4::Absmax::F32(absmax) => all.push(bytes(memory, absmax)),
        nf4::Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset } => {
            all.extend([bytes(memory, codes), bytes(memory, nested_absmax)]);
            all.extend([bytes(memory, nested_map), bytes(memory, offset)]);
        }
    }
    all
}

#[test]
fn a_weight_that_the_device_quantizes_has_the_bytes_of_the_hosts() {
    let (mut cuda, double, plain) =
        (cuda(), Nf4Options::default(), Nf4Options { block_size: 128, double_quant: false });
    // Rows of whole blocks, and blocks that straddle rows; the last two have a piece and a few thousand elements more.
    let (whole, ragged, large, large_ragged) = ([40, 128], [3, 101], [1030, 1024], [1025, 1041]);
    let mut cases = Vec::new();
    for stored in [StoredType::Bf16, StoredType::F16, StoredType::F32] {
        cases.extend([
            (whole, double, stored),
            (ragged, double, stored),
            (whole, plain, stored),
            (ragged, plain, stored),
        ]);
    }
    cases.extend([(large, double, StoredType::Bf16), (large_ragged, plain, StoredType::F16)]);
    for (shape, options, stored) in cases {
        let tensor = HostTensor::from_f32(shape.to_vec(), values(shape[0] * shape[1]), stored);
        let expected = on_host(&mut cuda, shape, &options, &tensor).unwrap();
        let expected = arrays(&cuda.memory, &expected);
        let found = on_device(&mut cuda, shape, &options, &pieces(&tensor)).unwrap();
        assert!(arrays(&cuda.memory, &found) == expected, "{shape:?} {options:?} {stored:?}, in pieces");
        drop(found);
        let found = on_device(&mut cuda, shape, &options, std::slice::from_ref(&tensor)).unwrap();
        assert!(arrays(&cuda.memory, &found) == expected, "{shape:?} {options:?} {stored:?}");
    }
    let pinned = cuda.memory.planned_on_host().into_iter().find(|line| line.name == ON_THE_WAY).unwrap();
    assert_eq!(pinned.bytes, 4 << 20, "a piece in f32");
}

/// Codes that come with the weight, or are drawn, are not quantized.
#[test]
fn a_weight_that_comes_in_nf4_stays_as_it_is() {
    let (mut cuda, options) = (cuda(), Nf4Options::default());
    let matrix = Nf4Matrix::quantize(&values(40 * 128), 40, 128, &options).unwrap();
    let mut load = |source: WeightSource| {
        let read: &mut ReadPieces<'_> = &mut |take| take(source.clone());
        let weight = cuda.quantized(WEIGHT, 40, 128, &options, read).unwrap();
        arrays(&cuda.memory, &weight)
    };
    let (bytes, absmax) = (matrix.codes().to_vec().into(), matrix.absmax().clone());
    let random = RandomNf4 { rows: 40, cols: 128, block_size: 64, absmax, bytes, first: 0 };
    let (stored, drawn) = (load(WeightSource::Nf4(matrix.clone())), load(WeightSource::Random(random)));
    assert!(stored[0] == matrix.codes() && stored == drawn);
}

/// The sentence of a refusal.
fn refusal(result: Result<CudaWeight>) -> String {
    let error = result.err().expect("a refusal");
    assert!(error.is_usage(), "{error}");
    error.to_string()
}

#[test]
fn what_the_host_refuses_is_refused_in_the_same_words() {
    let (mut cuda, options, shape) = (cuda(), Nf4Options::default(), [1030, 1024]);
    for (at, value, words) in [
        (PIECE + 77, f32::NAN, format!("weight[{}] is NaN", PIECE + 77)),
        (9, f32::NEG_INFINITY, "weight[9] is -inf".to_owned()),
    ] {
        let mut values = values(shape[0] * shape[1]);
        values[at] = value;
        values[PIECE + 500] = f32::INFINITY;
        let tensor = HostTensor::from_f32(shape.to_vec(), values, StoredType::F32);
        let found = refusal(on_device(&mut cuda, shape, &options, &pieces(&tensor)));
        assert_eq!(found, refusal(on_host(&mut cuda, shape, &options, &tensor)));
        assert!(found.contains(WEIGHT) && found.contains(&words), "{found}");
    }
    // Magnitudes whose scale 8 bits do not hold, and weights of another length.
    let mut huge = vec![f32::MAX; 256 * 64];
    huge[..64].fill(0.0);
    let huge = HostTensor::from_f32(vec![256, 64], huge, StoredType::F32);
    let other = HostTensor::from_f32(vec![128], values(128), StoredType::F32);
    let cases =
        [([256, 64], &huge, "switch it off"), ([3, 64], &other, "expected 192"), ([1, 64], &other, "expected 64")];
    for (shape, tensor, words) in cases {
        let found = refusal(on_device(&mut cuda, shape, &options, &pieces(tensor)));
        assert_eq!(found, refusal(on_host(&mut cuda, shape, &options, tensor)));
        assert!(found.contains(words), "{found}");
    }
}
