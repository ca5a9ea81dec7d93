//! NF4 against the results of bitsandbytes 0.50.2 on real and on crafted weights (`tests/golden/README.md`).

use half::bf16;
use qlora_kernels::nf4::{
    Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Matrix, Nf4Options, dynamic_map_signed, dynamic_map_unsigned,
};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const CASES: [&str; 8] = ["up", "query", "down", "straddle", "odd", "edges", "huge", "tiny"];
const REAL_CASES: [&str; 5] = ["up", "query", "down", "straddle", "odd"];

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn golden(name: &str) -> Vec<u8> {
    read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
}

/// The bytes of a tensor as numbers of N bytes.
fn numbers<T, const N: usize>(file: &SafeTensors, name: &str, from: impl Fn([u8; N]) -> T) -> Vec<T> {
    let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(view.dtype().bitsize(), 8 * N, "{name}");
    let (chunks, []) = view.data().as_chunks::<N>() else { panic!("{name}: a torn number") };
    chunks.iter().map(|&bytes| from(bytes)).collect()
}

fn f32s(file: &SafeTensors, name: &str) -> Vec<f32> {
    numbers(file, name, f32::from_le_bytes)
}

fn u8s(file: &SafeTensors, name: &str) -> Vec<u8> {
    numbers(file, name, |[byte]: [u8; 1]| byte)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The weight of one case, with its rows and columns.
fn input(file: &SafeTensors, case: &str) -> (Vec<f32>, usize, usize) {
    let name = format!("{case}.input");
    let &[rows, cols] = file.tensor(&name).unwrap().shape() else { panic!("{name} is no matrix") };
    (f32s(file, &name), rows, cols)
}

/// The double-quantized absmax that a golden file holds under `key`.
fn nested(file: &SafeTensors, key: &str, nested_map: &[f32; 256]) -> Absmax {
    Absmax::DoubleQuantized {
        codes: u8s(file, &format!("{key}.nested.codes")),
        nested_absmax: f32s(file, &format!("{key}.nested.absmax")),
        nested_block_size: NESTED_BLOCK_SIZE,
        nested_map: Box::new(*nested_map),
        offset: f32s(file, &format!("{key}.nested.offset"))[0],
    }
}

#[test]
fn the_tables_are_those_of_bitsandbytes() {
    let bytes = golden("nf4.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(bits(&f32s(&file, "nf4_map")), bits(&CODE));
    assert_eq!(bits(&f32s(&file, "dynamic_map_signed")), bits(dynamic_map_signed()));
    assert_eq!(bits(&f32s(&file, "dynamic_map_unsigned")), bits(dynamic_map_unsigned()));
}

/// bitsandbytes on a CPU clamps absmax to 1e-38 before it takes the reciprocal; we do not.
fn clamped(case: &str, block_size: usize, block: usize) -> bool {
    case == "tiny" && block_size == 64 && (block == 1 || block == 2)
}

#[test]
fn first_level_codes_and_absmax_are_bit_exact() {
    let bytes = golden("nf4.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (case, block_size) in CASES.into_iter().flat_map(|case| [(case, 64), (case, 128)]) {
        let (weight, rows, cols) = input(&file, case);
        let options = Nf4Options { block_size, double_quant: false };
        let ours = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
        let theirs = u8s(&file, &format!("{case}.b{block_size}.codes"));
        assert_eq!(ours.codes().len(), theirs.len(), "{case}, block size {block_size}");
        let pairs = ours.codes().chunks(block_size / 2).zip(theirs.chunks(block_size / 2));
        for (block, (ours, theirs)) in pairs.enumerate() {
            assert!(ours == theirs || clamped(case, block_size, block), "{case}, block {block} of {block_size}");
        }
        let Absmax::F32(absmax) = ours.absmax() else { panic!("f32 absmax was asked for") };
        let theirs = f32s(&file, &format!("{case}.b{block_size}.absmax"));
        assert_eq!(bits(absmax), bits(&theirs), "{case}, block size {block_size}");
        if REAL_CASES.contains(&case) {
            let narrow: Vec<bf16> = weight.iter().map(|&x| bf16::from_f32(x)).collect();
            assert_eq!(Nf4Matrix::quantize_bf16(&narrow, rows, cols, &options).unwrap(), ours, "{case} in bf16");
        }
    }
}

#[test]
fn their_tensors_dequantize_bit_exactly() {
    let bytes = golden("nf4.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let map: [f32; 256] = f32s(&file, "dynamic_map_signed").try_into().unwrap();
    let code: [f32; 16] = f32s(&file, "nf4_map").try_into().unwrap();
    for (case, block_size) in CASES.into_iter().flat_map(|case| [(case, 64), (case, 128)]) {
        let key = format!("{case}.b{block_size}");
        let (_, rows, cols) = input(&file, case);
        let matrix = |absmax| {
            let codes = u8s(&file, &format!("{key}.codes"));
            Nf4Matrix::from_parts(rows, cols, block_size, code, codes, absmax).unwrap_or_else(|e| panic!("{key}: {e}"))
        };
        let plain = matrix(Absmax::F32(f32s(&file, &format!("{key}.absmax"))));
        assert_eq!(bits(&plain.dequantize()), bits(&f32s(&file, &format!("{key}.dequantized"))), "{key}");
        let nested = matrix(nested(&file, &key, &map));
        assert_eq!(bits(&nested.dequantize()), bits(&f32s(&file, &format!("{key}.nested.dequantized"))), "{key}");
        let theirs: Vec<u16> = numbers(&file, &format!("{key}.nested.dequantized_bf16"), u16::from_le_bytes);
        let ours: Vec<u16> = nested.dequantize_bf16().iter().map(|x| x.to_bits()).collect();
        assert_eq!(ours, theirs, "{key} in bf16");
    }
}

/// The number of nested codes that differ, having checked that each does for a reason: bitsandbytes' CPU path looks
/// codes up in a table of 65,536 bins over [−1, 1], so its entry is the nearest to some value at most a bin away, and
/// at most two bins farther off than ours. (Around 0 the map's entries lie closer together than the bins.)
fn count_differing(what: &str, absmax: &[f32], ours: &Absmax, theirs: &[u8]) -> usize {
    const BIN: f32 = 2.0 / 65536.0;
    let Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset, .. } = ours else {
        panic!("double quantization was asked for")
    };
    assert_eq!(codes.len(), theirs.len(), "{what}");
    for (i, (&ours, &theirs)) in codes.iter().zip(theirs).enumerate() {
        let x = (absmax[i] - offset) * (1.0 / nested_absmax[i / NESTED_BLOCK_SIZE]);
        let distance = |code: u8| (nested_map[usize::from(code)] - x).abs();
        assert!(
            ours == theirs || distance(theirs) <= distance(ours) + 2.0 * BIN,
            "{what}: nested code {i} of {x} is {ours}, theirs {theirs}"
        );
    }
    codes.iter().zip(theirs).filter(|(ours, theirs)| ours != theirs).count()
}

/// Too few codes for a share: real absmax has few distinct values, and two of them make nine of the ten differences.
#[test]
fn nested_codes_of_slices_differ_within_the_bins_of_their_table() {
    let bytes = golden("nf4.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (mut differing, mut count) = (0, 0);
    for (case, block_size) in CASES.into_iter().flat_map(|case| [(case, 64), (case, 128)]) {
        let key = format!("{case}.b{block_size}");
        let (weight, rows, cols) = input(&file, case);
        let ours = Nf4Matrix::quantize(&weight, rows, cols, &Nf4Options { block_size, double_quant: true }).unwrap();
        let theirs = u8s(&file, &format!("{key}.nested.codes"));
        differing += count_differing(&key, &f32s(&file, &format!("{key}.absmax")), ours.absmax(), &theirs);
        count += theirs.len();
    }
    println!("{differing} of {count} nested codes differ");
}

/// All 210 linear weights of a real model: codes and absmax as bitsandbytes has them; nested codes, nested absmax,
/// offset and dequantized weights as an independent implementation of the project's rules has them; and how far the
/// two double quantizations lie apart.
#[test]
fn a_whole_model_quantizes_to_the_recorded_digests() {
    let models = std::env::var_os("QLORA_MODELS")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models"), PathBuf::from);
    let path = models.join("smollm2-135m-instruct/model.safetensors");
    assert!(path.is_file(), "{} is missing: run `cargo xtask setup`", path.display());
    let model_bytes = read(path);
    let model = SafeTensors::deserialize(&model_bytes).unwrap();
    let recorded: Value = serde_json::from_slice(&golden("quantized.json")).unwrap();
    let states = golden("quantized.safetensors");
    let states = SafeTensors::deserialize(&states).unwrap();
    let recorded = recorded["tensors"].as_object().unwrap();
    assert_eq!(recorded.len(), 210);

    let (mut differing, mut count, mut largest) = (0, 0, 0f32);
    for (name, expected) in recorded {
        let &[rows, cols] = model.tensor(name).unwrap().shape() else { panic!("{name} is no matrix") };
        let weight: Vec<bf16> = numbers(&model, name, |b| bf16::from_bits(u16::from_le_bytes(b)));
        let ours = Nf4Matrix::quantize_bf16(&weight, rows, cols, &Nf4Options::default()).unwrap();
        assert_eq!(sha256(ours.codes()), expected["codes_sha256"], "codes of {name}");
        let plain = Nf4Options { double_quant: false, ..Nf4Options::default() };
        let plain = Nf4Matrix::quantize_bf16(&weight, rows, cols, &plain).unwrap();
        let Absmax::F32(plain_absmax) = plain.absmax() else { panic!("f32 absmax was asked for") };
        assert_eq!(sha256(&le_bytes(plain_absmax)), expected["absmax_sha256"], "absmax of {name}");
        let Absmax::DoubleQuantized { codes, nested_absmax, offset, .. } = ours.absmax() else {
            panic!("double quantization was asked for")
        };
        assert_eq!(f64::from(*offset), expected["own_nested_offset"], "offset of {name}");
        assert_eq!(sha256(&le_bytes(nested_absmax)), expected["own_nested_absmax_sha256"], "nested absmax of {name}");
        assert_eq!(sha256(codes), expected["own_nested_codes_sha256"], "nested codes of {name}");
        let dequantized = ours.dequantize();
        assert_eq!(sha256(&le_bytes(&dequantized)), expected["own_dequantized_sha256"], "dequantized {name}");

        // bitsandbytes' own states are kept for the first two blocks.
        let key = name.trim_end_matches(".weight");
        if states.tensor(&format!("{key}.nested.codes")).is_ok() {
            let absmax = nested(&states, key, dynamic_map_signed());
            let Absmax::DoubleQuantized { codes: their_codes, .. } = &absmax else { unreachable!() };
            let here = count_differing(name, plain_absmax, ours.absmax(), their_codes);
            assert_eq!(here, expected["nested_codes_differing"], "nested codes of {name} that differ");
            let theirs = Nf4Matrix::from_parts(rows, cols, 64, CODE, ours.codes().to_vec(), absmax).unwrap();
            let distances = dequantized.iter().zip(theirs.dequantize()).map(|(ours, theirs)| (ours - theirs).abs());
            let farthest = distances.fold(0.0, f32::max);
            assert_eq!(f64::from(farthest), expected["largest_dequantized_difference"], "dequantized {name}");
            (differing, count, largest) = (differing + here, count + codes.len(), largest.max(farthest));
        }
    }
    let share = 100.0 * differing as f64 / count as f64;
    println!("{differing} of {count} nested codes differ ({share:.2}%), dequantized weights by at most {largest}");
    assert!(count > 0 && differing * 100 < count, "{differing} of {count} nested codes differ");
}
