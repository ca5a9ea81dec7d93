//! The low-rank path: S, T and the gradients of A and B. Element-wise bounds derived from the roundings, and exact
//! cases where no sum rounds, under every schedule, with T given or not, with dropout and adapters.

use crate::property;
use lab::low_rank::{LowRank, LowRankPart};
use proptest::prelude::*;

const SCHEDULES: u64 = 2;

/// `step`: N and the strides are multiples of it.
fn parts(most: usize, step: usize) -> impl Strategy<Value = Vec<LowRankPart>> {
    let r = prop_oneof![Just(0usize), 1usize..20, Just(16usize), Just(64usize), 60usize..80, 250usize..257];
    let part =
        (1..most / step, r, 0usize..3).prop_map(move |(n, r, pad)| LowRankPart { n: n * step, r, pad: pad * step });
    prop::collection::vec(part, 1..4)
}

fn tokens() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..70, 200usize..300, 500usize..600, Just(256usize), Just(512usize)]
}

/// `step` 8: the tensor cores' kernels, whatever M is.
fn case(step: usize, exact: bool) -> impl Strategy<Value = LowRank> {
    let dropout = prop_oneof![Just(0.0f32), Just(0.5f32), 0.01f32..0.9];
    let shape = (tokens(), 1usize..300 / step, 0usize..3, parts(300, step));
    (shape, 0usize..4, dropout, any::<bool>(), any::<u64>()).prop_map(
        move |((m, k, pad_x, parts), adapters, dropout, given_t, seed)| LowRank {
            // Whole tiles of K now and then, as S's fast kernel wants them.
            k: if step == 8 && seed % 2 == 0 { (k * step).next_multiple_of(64) } else { k * step },
            pad_x: pad_x * step,
            // 1 / (1 - 0.5) is exact.
            dropout: if exact && dropout > 0.0 { 0.5 } else { dropout },
            given_t: given_t || exact,
            m,
            parts,
            adapters,
            exact,
            seed,
        },
    )
}

fn checked(name: &'static str, most: u32, strategy: impl Strategy<Value = LowRank>) {
    property::checked(name, SCHEDULES, most, strategy, |case| case.seed);
}

#[test]
fn gradients_on_tensor_cores_are_within_their_rounding() {
    checked("low-rank path, tensor cores", 20, case(8, false));
}

#[test]
fn gradients_on_tensor_cores_are_exact_where_no_sum_rounds() {
    checked("low-rank path, tensor cores, exact", 20, case(8, true));
}

#[test]
fn gradients_of_odd_shapes_are_within_their_rounding() {
    checked("low-rank path, odd shapes", 12, case(1, false));
}

#[test]
fn gradients_of_odd_shapes_are_exact_where_no_sum_rounds() {
    checked("low-rank path, odd shapes, exact", 12, case(1, true));
}
