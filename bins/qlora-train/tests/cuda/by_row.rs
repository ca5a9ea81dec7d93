//! Rows of one batch that have adapters of their own, by the kernels' adapter index.

use crate::sources::{ROOM, config};
use lab::device::{Tally, set_schedule};
use qlora_train::backend::cuda::Cuda;
use trainer_lab::adapters::{Adapters, documents, losses};

fn cuda(adapters: &Adapters, only: Option<i32>, tokens: usize) -> Cuda {
    let spec = adapters.spec(only, tokens);
    Cuda::new(0, spec.run_shape(), &spec.arch, ROOM).unwrap()
}

/// Bits: rows whose adapter stays are the same, whatever the others have, and whatever those hold. Few tokens and more
/// than 16 take different kernels.
#[test]
fn no_row_sees_the_adapter_of_another() {
    let tally = Tally::new("adapters by row", 2);
    for lengths in [&[3, 2, 4, 2][..], &[17, 9, 5, 12]] {
        let (of_rows, tokens) = ([1, -1, 2, 0], lengths.iter().sum());
        let mut adapters = Adapters::three(config());
        let rows = documents(lengths, adapters.arch.vocab_size, 3);
        let run = |adapters: &Adapters, of_rows: &[i32], schedule| {
            set_schedule(schedule);
            let mut cuda = cuda(adapters, None, tokens);
            let model = adapters.model(&mut cuda, None, tokens);
            losses(&mut cuda, &model, &rows, Some(of_rows))
        };
        let all = run(&adapters, &of_rows, 0);
        assert!(all == run(&adapters, &of_rows, 5), "another schedule");
        for kept in 0..of_rows.len() {
            let others_base: Vec<i32> = (0..4).map(|row| if row == kept { of_rows[row] } else { -1 }).collect();
            assert!(run(&adapters, &others_base, 0)[kept] == all[kept], "{lengths:?}: row {kept}, the others the base");
        }
        adapters.seeds[1] += 17;
        let after = run(&adapters, &of_rows, 0);
        assert_eq!([0, 1, 2, 3].map(|row| after[row] == all[row]), [false, true, true, true], "{lengths:?}");
        tally.case();
    }
}

/// Losses are those of the row with its adapter alone, as far as rounding goes: nearer by far than to those of the
/// base.
#[test]
fn a_row_is_computed_as_with_its_adapter_alone() {
    let tally = Tally::new("adapters by row, alone", 1);
    let (lengths, of_rows) = ([17, 9, 5, 12], [1, -1, 2, 0]);
    let tokens = lengths.iter().sum();
    let adapters = Adapters::three(config());
    let rows = documents(&lengths, adapters.arch.vocab_size, 3);
    let mut together = cuda(&adapters, None, tokens);
    let model = adapters.model(&mut together, None, tokens);
    let found = losses(&mut together, &model, &rows, Some(&of_rows));
    let alone = |adapter: i32| {
        let mut cuda = cuda(&adapters, Some(adapter), tokens);
        let model = adapters.model(&mut cuda, Some(adapter), tokens);
        losses(&mut cuda, &model, &rows, None)
    };
    let apart = |one: &[f64], other: &[f64]| {
        let squares = one.iter().zip(other).map(|(one, other)| (one - other) * (one - other));
        (squares.sum::<f64>() / one.len() as f64).sqrt()
    };
    let base = alone(-1);
    for (row, &adapter) in of_rows.iter().enumerate() {
        let own = alone(adapter);
        // A row of the base is measured by what an adapter would change.
        let other = if adapter == -1 { alone(0) } else { base.clone() };
        let (rounding, effect) = (apart(&found[row], &own[row]), apart(&other[row], &own[row]));
        println!("row {row}: {rounding:.1e} from its adapter alone, which changes it by {effect:.1e}");
        assert!(rounding <= 0.2 * effect, "row {row}: {rounding} {effect}");
    }
    tally.case();
}
