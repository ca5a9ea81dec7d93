//! The PTX instructions against tables written from the PTX manual's formulas: on a GPU the hardware, elsewhere the
//! host versions. The emulated suites rest on the two being equal, so that this runs first on a GPU.

use crate::test_kernels;
use half::bf16;
use lab::device::{Tally, cases, device, set_schedule};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// PTX ISA, mma.m16n8k16 with .bf16: row and column of element i of A, B and C in lane `lane`, as the manual writes
/// them.
mod manual {
    pub fn a(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = if matches!(i, 0 | 1 | 4 | 5) { group } else { group + 8 };
        let column = if i < 4 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
        (row, column)
    }

    pub fn b(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = if i < 2 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
        (row, group)
    }

    pub fn c(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
    }
}

fn runner() -> TestRunner {
    TestRunner::new(Config { cases: cases(64), failure_persistence: None, ..Config::default() })
}

/// Integers, so that no partial sum rounds: bitwise equality with a plain product.
#[test]
fn mma_is_a_matrix_product_in_the_manuals_layout() {
    let (device, tally) = (device(), Tally::new("mma.m16n8k16", 1));
    let numbers = |range, count| prop::collection::vec(range, count);
    let cases = (numbers(-64i32..=64, 16 * 16), numbers(-64..=64, 16 * 8), numbers(-1000..=1000, 16 * 8), any::<u64>());
    let run = |(a, b, c, seed): (Vec<i32>, Vec<i32>, Vec<i32>, u64)| {
        let bits = |x: i32| u32::from(bf16::from_f32(x as f32).to_bits());
        let mut fragment_a = vec![0u32; 32 * 4];
        let mut fragment_b = vec![0u32; 32 * 2];
        let mut fragment_c = vec![0f32; 32 * 4];
        for lane in 0..32 {
            for i in 0..8 {
                let (row, column) = manual::a(lane, i);
                fragment_a[lane * 4 + i / 2] |= bits(a[row * 16 + column]) << (16 * (i % 2));
            }
            for i in 0..4 {
                let (row, column) = manual::b(lane, i);
                fragment_b[lane * 2 + i / 2] |= bits(b[row * 8 + column]) << (16 * (i % 2));
                let (row, column) = manual::c(lane, i);
                fragment_c[lane * 4 + i] = c[row * 8 + column] as f32;
            }
        }
        set_schedule(seed);
        let (a_device, b_device) = (device.upload(&fragment_a).unwrap(), device.upload(&fragment_b).unwrap());
        let mut c_device = device.upload(&fragment_c).unwrap();
        test_kernels::mma(a_device.view(), b_device.view(), c_device.view_mut(), device.stream());
        let found = device.download(&c_device).unwrap();
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = manual::c(lane, i);
                let product: i32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
                prop_assert_eq!(found[lane * 4 + i], (c[row * 8 + column] + product) as f32);
            }
        }
        tally.case();
        Ok(())
    };
    runner().run(&cases, run).unwrap();
}

/// PTX ISA, ldmatrix: lane l gets elements 2 (l % 4) and the next of row l / 4 of each matrix; with .trans of column l
/// / 4.
#[test]
fn ldmatrix_follows_the_manual() {
    let (device, tally) = (device(), Tally::new("ldmatrix.x4", 1));
    let run = |(rows, transposed, seed): (Vec<u16>, bool, u64)| {
        let packed: Vec<u32> = rows.chunks(2).map(|pair| u32::from(pair[1]) << 16 | u32::from(pair[0])).collect();
        let rows_device = device.upload(&packed).unwrap();
        let mut d = device.upload(&vec![0u32; 32 * 4]).unwrap();
        set_schedule(seed);
        test_kernels::ldmatrix(transposed, rows_device.view(), d.view_mut(), device.stream());
        let d = device.download(&d).unwrap();
        for lane in 0..32 {
            for matrix in 0..4 {
                for half in 0..2 {
                    let (long, short) = (lane / 4, lane % 4 * 2 + half);
                    let (row, column) = if transposed { (short, long) } else { (long, short) };
                    let found = (d[lane * 4 + matrix] >> (16 * half)) as u16;
                    prop_assert_eq!(found, rows[(matrix * 8 + row) * 8 + column]);
                }
            }
        }
        tally.case();
        Ok(())
    };
    runner().run(&(prop::collection::vec(any::<u16>(), 32 * 8), any::<bool>(), any::<u64>()), run).unwrap();
}

#[test]
fn cp_async_copies_up_to_16_bytes_and_writes_zeros_after_them() {
    let (device, tally) = (device(), Tally::new("cp.async", 1));
    let run = |(input, valid, bytes, seed): (Vec<u32>, u32, u32, u64)| {
        let input_device = device.upload(&input).unwrap();
        let mut out = device.upload(&vec![0xeeee_eeeeu32; 256]).unwrap();
        set_schedule(seed);
        test_kernels::cp_async(input_device.view(), valid, bytes, out.view_mut(), device.stream());
        let copied = |i: usize| if valid >> (i / 4 % 32) & 1 == 1 { 16 } else { bytes as usize };
        let kept = |i: usize| (1u64 << (copied(i).saturating_sub(i % 4 * 4).min(4) * 8)) as u32;
        let expected: Vec<u32> = (0..256).map(|i| input[i] & kept(i).wrapping_sub(1)).collect();
        prop_assert_eq!(device.download(&out).unwrap(), expected);
        tally.case();
        Ok(())
    };
    runner().run(&(prop::collection::vec(any::<u32>(), 256), any::<u32>(), 0u32..17, any::<u64>()), run).unwrap();
}

/// Round to nearest even by integer arithmetic; a NaN becomes the canonical one, 0x7fff.
fn rounded(bits: u32) -> u32 {
    if bits << 1 > 0xff00_0000 {
        return 0x7fff;
    }
    let (kept, rest) = (bits >> 16, bits & 0xffff);
    kept + u32::from(rest > 0x8000 || rest == 0x8000 && kept % 2 == 1)
}

#[test]
fn cvt_rounds_to_nearest_even_with_the_first_operand_high() {
    let (device, tally) = (device(), Tally::new("cvt.rn.bf16x2", 1));
    // Ties, the largest number, infinities, NaNs, subnormals, and whatever comes.
    let edges = prop::sample::select(vec![
        0u32,
        0x8000_0000,
        0x3f80_8000,
        0x3f81_8000,
        0x7f7f_ffff,
        0xff7f_8000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x7f80_0001,
        0xffff_ffff,
        1,
        0x8000,
        0x0001_8000,
        0x807f_ffff,
    ]);
    let number = prop_oneof![edges, any::<u32>(), any::<u16>().prop_map(|high| u32::from(high) << 16 | 0x8000)];
    let run = |(pairs, seed): (Vec<u32>, u64)| {
        let pairs = &pairs[..pairs.len() / 2 * 2];
        let pairs_device = device.upload(pairs).unwrap();
        let mut packed = device.upload(&vec![0u32; pairs.len() / 2]).unwrap();
        set_schedule(seed);
        test_kernels::pack(pairs_device.view(), packed.view_mut(), device.stream());
        let expected: Vec<u32> = pairs.chunks(2).map(|pair| rounded(pair[1]) << 16 | rounded(pair[0])).collect();
        prop_assert_eq!(device.download(&packed).unwrap(), expected);
        tally.case();
        Ok(())
    };
    runner().run(&(prop::collection::vec(number, 2..300), any::<u64>()), run).unwrap();
}
