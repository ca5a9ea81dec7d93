//! Every path of the fused linear layer: an element-wise bound derived from the roundings, and exact cases where no sum
//! rounds, under every schedule, with S given or not.

use crate::property::checked_and;
use lab::device::set_schedule;
use lab::linear::{Linear, Part, Values};
use lab::operation::Operation;
use proptest::prelude::*;
use qlora_kernels::ops::linear::Path;

const SCHEDULES: u64 = 2;

fn parts(most: usize) -> impl Strategy<Value = Vec<Part>> {
    let real = prop_oneof![Just(8usize), Just(16), Just(32), Just(64)];
    let odd = prop_oneof![Just(0usize), 1usize..20, 60usize..140, Just(256usize)];
    let n = prop_oneof![1usize..most, (1usize..=(most / 64).max(1)).prop_map(|tiles| 64 * tiles)];
    let part = (n, prop_oneof![real, odd], any::<bool>(), prop_oneof![Just(0usize), 1usize..9])
        .prop_map(|(n, r, bias, pad)| Part { n, r, bias, pad });
    prop::collection::vec(part, 1..4)
}

fn case(m: std::ops::Range<usize>, dense: bool, exact: bool) -> impl Strategy<Value = Linear> {
    (m, 1usize..7, 0usize..2, any::<bool>(), any::<bool>(), parts(300), any::<u64>()).prop_map(
        move |(m, tiles, pad, transposed, double_quant, parts, seed)| Linear {
            m,
            k: tiles * 64,
            pad_x: pad * 8,
            block_size: 64,
            dense,
            transposed,
            double_quant,
            values: if exact { Values::Exact } else { Values::Ragged },
            given_s: false,
            adapters: 0,
            parts,
            seed,
        },
    )
}

/// K of real layers, of few outputs: what a pipeline does once it is full.
fn deep_case(m: std::ops::Range<usize>, dense: bool, exact: bool) -> impl Strategy<Value = Linear> {
    let k = prop_oneof![4 => Just(2048usize), 3 => Just(4096), 2 => Just(8192), 1 => Just(14336), 1 => Just(28672)];
    (case(m, dense, exact), k, parts(40)).prop_map(|(case, k, mut parts)| {
        parts.truncate(2);
        Linear { k, parts, ..case }
    })
}

/// K and ldx off the tile, other block sizes.
fn odd_case(dense: bool, exact: bool) -> impl Strategy<Value = Linear> {
    (case(1..40, dense, exact), 1usize..200, 5u32..9).prop_map(|(case, k, log)| Linear {
        k,
        pad_x: 1,
        block_size: 1 << log,
        ..case
    })
}

/// Real depths as often as short ones.
fn cases_of(m: std::ops::Range<usize>, dense: bool, exact: bool) -> impl Strategy<Value = Linear> {
    let few = m.start..m.end.min(m.start + 30);
    prop_oneof![case(m, dense, exact), deep_case(few, dense, exact)]
}

fn checked(name: &'static str, most: u32, strategy: impl Strategy<Value = Linear>, expected: Path) {
    let seed = |case: &Linear| case.seed;
    checked_and(name, SCHEDULES, most, strategy, seed, |device, case, output| {
        let given = Linear { given_s: true, ..case.clone() };
        let inputs = given.inputs();
        let mut buffers = given.upload(device, &inputs).unwrap();
        prop_assert_eq!(given.path(&mut buffers).unwrap(), expected);
        set_schedule(!case.seed);
        given.launch(&mut buffers, device.stream()).unwrap();
        prop_assert!(given.download(device, &buffers).unwrap() == *output, "S given changed the result");
        Ok(())
    });
}

#[test]
fn tensor_core_path_is_within_its_rounding() {
    checked("forward, tensor cores", 24, cases_of(17..300, false, false), Path::TensorCore);
}

#[test]
fn tensor_core_path_is_exact_where_no_sum_rounds() {
    checked("forward, tensor cores, exact", 16, cases_of(17..200, false, true), Path::TensorCore);
}

#[test]
fn dense_tensor_core_path_is_within_its_rounding() {
    checked("dense forward, tensor cores", 12, cases_of(17..200, true, false), Path::TensorCore);
}

#[test]
fn dense_tensor_core_path_is_exact_where_no_sum_rounds() {
    checked("dense forward, tensor cores, exact", 12, cases_of(17..200, true, true), Path::TensorCore);
}

#[test]
fn small_m_path_is_within_its_rounding() {
    checked("forward, M to 16", 32, cases_of(1..17, false, false), Path::SmallM);
}

#[test]
fn small_m_path_is_exact_where_no_sum_rounds() {
    checked("forward, M to 16, exact", 32, cases_of(1..17, false, true), Path::SmallM);
}

#[test]
fn dense_small_m_path_is_exact_where_no_sum_rounds() {
    checked("dense forward, M to 16, exact", 16, cases_of(1..17, true, true), Path::SmallM);
}

#[test]
fn generic_path_is_within_its_rounding() {
    checked("forward, odd shapes", 16, odd_case(false, false), Path::Generic);
}

#[test]
fn generic_path_is_exact_where_no_sum_rounds() {
    checked("forward, odd shapes, exact", 16, odd_case(false, true), Path::Generic);
    checked("dense forward, odd shapes, exact", 16, odd_case(true, true), Path::Generic);
}

/// Tokens of one batch with adapters of their own, of different ranks.
fn adapters(cases: impl Strategy<Value = Linear>) -> impl Strategy<Value = Linear> {
    (cases, 1usize..4).prop_map(|(case, adapters)| Linear { adapters, ..case })
}

#[test]
fn every_token_takes_its_own_adapter() {
    checked("adapters, tensor cores", 12, adapters(case(17..200, false, false)), Path::TensorCore);
    checked("adapters, tensor cores, exact", 12, adapters(case(17..200, true, true)), Path::TensorCore);
    checked("adapters, M to 16", 12, adapters(case(1..17, false, true)), Path::SmallM);
    checked("adapters, odd shapes", 8, adapters(odd_case(false, true)), Path::Generic);
}
