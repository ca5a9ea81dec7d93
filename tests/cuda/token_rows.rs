//! Rows of single tokens: the gradients of some rows of the embedding and of the output layer, which are bit for bit
//! those of the whole table, and the rows that are put in a table. Against `reference`, under every schedule.

use crate::property::checked_and;
use lab::cross_entropy::{HeadLoss, Loss, Targets, Values};
use lab::device::device;
use lab::operation::{Operation, run, verify};
use lab::token_rows::{EmbeddingRows, ReplacedRows, rows};
use lab::vector_gradients::EmbeddingGradients;
use proptest::prelude::*;

const SCHEDULES: u64 = 2;

fn checked<O: Operation>(
    name: &'static str,
    most: u32,
    operations: impl Strategy<Value = O>,
    seed: impl Fn(&O) -> u64,
    also: impl Fn(&O, &O::Output) -> Result<(), String>,
) {
    checked_and(name, SCHEDULES, most, operations, seed, |_, operation, output| {
        also(operation, output).map_err(TestCaseError::fail)
    });
}

/// The rows of a whole table's gradient have the bits of those that were computed alone.
fn are_of_the_table(operation: &EmbeddingRows, output: &[u32]) -> Result<(), String> {
    let whole = run(&device(), &operation.of, &operation.inputs());
    (operation.wanted(&whole) == output).then_some(()).ok_or("not the bits of the whole table".to_owned())
}

#[test]
fn gradients_of_rows_of_the_embedding_are_those_of_their_tokens_in_order() {
    // Whatever is drawn: more tokens than a block looks at together, of few ids; the first row, the last, and both.
    for (h, vocab, rows) in [(72, 4, vec![1, 3]), (13, 40, vec![0, 2, 39]), (64, 5, vec![0]), (8, 5, vec![4])] {
        let of = EmbeddingGradients { m: 700, h, vocab, scale: 0.7, seed: 8 };
        let operation = EmbeddingRows { of, rows };
        let output = verify(&device(), &operation, 8, SCHEDULES).unwrap();
        are_of_the_table(&operation, &output).unwrap();
    }
    let widths = prop_oneof![Just(64usize), Just(576), Just(2048), 1usize..300];
    let sizes = (prop_oneof![1usize..40, 250usize..600], widths, prop_oneof![1usize..20, 20usize..500]);
    let scale = prop_oneof![Just(1.0f32), Just(0.3)];
    let count = prop_oneof![1usize..4, 1usize..40];
    let operations = (sizes, count, scale, any::<u64>()).prop_map(|((m, h, vocab), count, scale, seed)| {
        // A block a token and 2,048 columns: not too many.
        let h = if m > 40 { h.min(300) } else { h };
        let of = EmbeddingGradients { m, h, vocab, scale, seed };
        EmbeddingRows { of, rows: rows(count, vocab, seed) }
    });
    let name = "embedding backward of some rows";
    checked(name, 20, operations, |operation| operation.of.seed, |of, output| are_of_the_table(of, output));
}

fn loss(m: usize, h: usize, vocab: usize, chunk: usize) -> Loss {
    let (targets, values) = (Targets::Some, Values::Random { size: 2.0 });
    Loss { m, h, vocab, chunk, targets, gradient: true, weighted: true, values, soft_cap: None, seed: 12 }
}

fn losses() -> impl Strategy<Value = HeadLoss> {
    let h = prop_oneof![3 => (1usize..4).prop_map(|n| 64 * n), 1 => (1usize..20).prop_map(|n| 8 * n), 1 => 1usize..90];
    let sizes = (prop_oneof![1usize..20, 100usize..200], h, prop_oneof![2usize..40, 200usize..500]);
    let targets = prop_oneof![2 => Just(Targets::Some), 1 => Just(Targets::All), 1 => Just(Targets::Unknown)];
    let chunk = prop_oneof![1usize..80, Just(256usize), Just(1 << 40)];
    let soft_cap = prop_oneof![3 => Just(None), 1 => Just(Some(2.0f32))];
    let wanted = (prop_oneof![1usize..4, 1usize..40], any::<bool>());
    (sizes, targets, chunk, any::<bool>(), soft_cap, wanted, any::<u64>()).prop_map(
        |((m, h, vocab), targets, chunk, weighted, soft_cap, (count, unknown), seed)| {
            let (chunk, values) = (chunk.max(m / 8), Values::Random { size: 2.0 });
            let mut rows = rows(count, vocab, seed);
            if unknown {
                rows[0] = (vocab + 3) as u32;
            }
            // In another order than the table's.
            rows.reverse();
            let loss = Loss { m, h, vocab, chunk, targets, gradient: true, weighted, values, soft_cap, seed };
            HeadLoss { loss, rows: Some(rows) }
        },
    )
}

#[test]
fn gradients_of_rows_of_the_output_layer_are_within_their_rounding() {
    let name = "loss of an output layer of which some rows are trained";
    checked(name, 24, losses(), |operation| operation.loss.seed, |_, _| Ok(()));
}

/// Rows have the bits that they have in the gradient of the whole table, and no bit depends on chunks of multiples of
/// 256: of both kernels, of few rows and of enough that blocks of 64 are taken, and of one that no table has.
#[test]
fn gradients_of_rows_of_the_output_layer_are_those_of_the_table() {
    let device = device();
    for (h, vocab, rows) in
        [(72, 333, vec![7, 0, 332, 333]), (64, 150, rows(70, 150, 3)), (37, 50, vec![49, 3]), (64, 90, rows(17, 90, 4))]
    {
        let whole = HeadLoss { loss: loss(1300, h, vocab, 1 << 40), rows: None };
        let inputs = whole.inputs();
        assert!(inputs.supervised() > 512);
        let of_table = run(&device, &whole, &inputs);
        let some = |chunk| HeadLoss { loss: loss(1300, h, vocab, chunk), rows: Some(rows.clone()) };
        let operation = some(1 << 40);
        let output = verify(&device, &operation, 12, SCHEDULES).unwrap();
        assert!(output.loss == of_table.loss, "the loss beside it");
        assert!(output.dhead == operation.wanted(&of_table.dhead), "width {h}, {} rows", rows.len());
        for chunk in [256, 512] {
            assert!(run(&device, &some(chunk), &inputs) == output, "chunks of {chunk} of width {h}");
        }
    }
}

#[test]
fn replaced_rows_are_those_that_are_given() {
    for (h, vocab, rows) in [(64, 9, vec![8, 0]), (2048, 3, vec![1]), (13, 7, vec![6, 2, 5]), (72, 4, vec![3, 4, 1])] {
        verify(&device(), &ReplacedRows { h, vocab, rows, seed: 5 }, 5, SCHEDULES).unwrap();
    }
    let widths = prop_oneof![Just(576usize), Just(4096), 1usize..300];
    let operations = (widths, 1usize..60, 1usize..20, any::<u64>()).prop_map(|(h, vocab, count, seed)| {
        let mut rows = rows(count, vocab, seed);
        rows.reverse();
        ReplacedRows { h, vocab, rows, seed }
    });
    checked("replaced rows", 20, operations, |operation| operation.seed, |_, _| Ok(()));
}

/// The results of a kernel with a bug must turn the checks red.
#[test]
fn the_checks_see_wrong_rows() {
    let device = device();
    let right = HeadLoss { loss: loss(40, 24, 50, 256), rows: Some(vec![3, 17, 49]) };
    let mut output = run(&device, &right, &right.inputs());
    assert_eq!(right.check(&right.inputs(), &output, usize::MAX), Ok(()));
    let wrong = HeadLoss { rows: Some(vec![3, 18, 49]), ..right.clone() };
    assert!(wrong.check(&right.inputs(), &output, usize::MAX).is_err(), "another row");
    output.dhead[7] ^= 1 << 23;
    assert!(right.check(&right.inputs(), &output, usize::MAX).is_err());
    let of = EmbeddingGradients { m: 90, h: 24, vocab: 12, scale: 1.0, seed: 3 };
    let right = EmbeddingRows { of, rows: vec![0, 5, 11] };
    let mut output = run(&device, &right, &right.inputs());
    assert_eq!(right.check(&right.inputs(), &output, usize::MAX), Ok(()));
    output[24] ^= 1;
    assert!(right.check(&right.inputs(), &output, usize::MAX).is_err());
    let right = ReplacedRows { h: 24, vocab: 12, rows: vec![4, 9], seed: 3 };
    let mut output = run(&device, &right, &right.inputs());
    assert_eq!(right.check(&right.inputs(), &output, usize::MAX), Ok(()));
    output[0] ^= 1;
    assert!(right.check(&right.inputs(), &output, usize::MAX).is_err());
}
