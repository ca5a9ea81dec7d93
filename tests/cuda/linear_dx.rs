//! Both paths of dX: an element-wise bound derived from the roundings, and exact cases where no sum rounds, under every
//! schedule, with T given or not, with dropout, accumulation and adapters.

use crate::property::checked_and;
use lab::device::set_schedule;
use lab::linear::{Linear, Part, Values};
use lab::linear_dx::LinearDx;
use lab::operation::Operation;
use proptest::prelude::*;
use qlora_kernels::ops::linear::{Dropout, Path};

const SCHEDULES: u64 = 2;

fn parts(most: usize) -> impl Strategy<Value = Vec<Part>> {
    let r = prop_oneof![Just(0usize), 1usize..20, Just(16usize), Just(64usize), 60usize..140, Just(256usize)];
    let part = (1usize..most, r, 0usize..2).prop_map(|(n, r, pad)| {
        // The next row starts at a multiple of 8.
        Part { n, r, bias: false, pad: n.next_multiple_of(8) - n + 8 * pad }
    });
    prop::collection::vec(part, 1..4)
}

fn dropout() -> impl Strategy<Value = Option<Dropout<'static>>> {
    let some = (any::<u64>(), any::<u32>(), any::<u32>(), 0u64..1 << 31).prop_map(
        |(seed, dropout_id, dropout_step, first_token)| {
            Some(Dropout { p: 0.5, seed, dropout_id, dropout_step, first_token, step_on_device: None })
        },
    );
    prop_oneof![Just(None), some]
}

fn case(m: std::ops::Range<usize>, dense: bool, exact: bool) -> impl Strategy<Value = LinearDx> {
    let values = if exact { Values::Exact } else { Values::Ragged };
    let linear = (m, 1usize..7, 0usize..10, any::<bool>(), any::<bool>(), 0usize..3, parts(300), any::<u64>());
    (linear, any::<bool>(), dropout()).prop_map(move |(linear, accumulate, dropout)| {
        let (m, tiles, pad_x, transposed, double_quant, adapters, parts, seed) = linear;
        let (k, block_size, given_s) = (tiles * 64, 64, false);
        let linear =
            Linear { m, k, pad_x, block_size, dense, transposed, double_quant, values, given_s, adapters, parts, seed };
        LinearDx {
            linear,
            accumulate,
            dropout: dropout.map(|dropout| Dropout { p: if exact { 0.5 } else { 0.1 }, ..dropout }),
        }
    })
}

/// K and lddy off the tile, other block sizes.
fn odd_case(dense: bool, exact: bool) -> impl Strategy<Value = LinearDx> {
    (case(1..40, dense, exact), 1usize..200, 5u32..9).prop_map(|(mut case, k, log)| {
        (case.linear.k, case.linear.block_size) = (k, 1 << log);
        case.linear.parts[0].pad = (case.linear.parts[0].n + 1) % 2;
        case
    })
}

fn checked(name: &'static str, most: u32, strategy: impl Strategy<Value = LinearDx>, expected: Path) {
    let seed = |case: &LinearDx| case.linear.seed;
    checked_and(name, SCHEDULES, most, strategy, seed, |device, case, output| {
        let mut given = case.clone();
        given.linear.given_s = true;
        let inputs = given.inputs();
        let mut buffers = given.upload(device, &inputs).unwrap();
        prop_assert_eq!(given.path(&mut buffers).unwrap(), expected);
        set_schedule(!case.linear.seed);
        given.launch(&mut buffers, device.stream()).unwrap();
        prop_assert!(given.download(device, &buffers).unwrap() == *output, "T given changed the result");
        Ok(())
    });
}

#[test]
fn dx_on_tensor_cores_is_within_its_rounding() {
    checked("dX, tensor cores", 24, case(1..300, false, false), Path::TensorCore);
}

#[test]
fn dx_on_tensor_cores_is_exact_where_no_sum_rounds() {
    checked("dX, tensor cores, exact", 24, case(1..200, false, true), Path::TensorCore);
}

#[test]
fn dense_dx_on_tensor_cores_is_within_its_rounding() {
    checked("dense dX, tensor cores", 12, case(1..200, true, false), Path::TensorCore);
}

#[test]
fn dense_dx_on_tensor_cores_is_exact_where_no_sum_rounds() {
    checked("dense dX, tensor cores, exact", 12, case(1..200, true, true), Path::TensorCore);
}

#[test]
fn dx_of_odd_shapes_is_within_its_rounding() {
    checked("dX, odd shapes", 16, odd_case(false, false), Path::Generic);
}

#[test]
fn dx_of_odd_shapes_is_exact_where_no_sum_rounds() {
    checked("dX, odd shapes, exact", 16, odd_case(false, true), Path::Generic);
    checked("dense dX, odd shapes, exact", 16, odd_case(true, true), Path::Generic);
}
