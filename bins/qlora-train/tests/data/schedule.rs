//! Order, packing, micro-batches and the plan of a run's steps.

use std::collections::BTreeMap;

use proptest::prelude::*;
use qlora_train::data::{
    Dataset, DatasetReport, MicroBatch, Row, Schedule, ScheduleOptions, UNSUPERVISED, order, pack, pack_in_order,
};

use trainer_lab::fixture::{assert_says, refusal};

fn row(input_ids: &[u32], labels: &[i32]) -> Row {
    Row { input_ids: input_ids.into(), labels: labels.into(), weights: Vec::new(), file: 0, line: 1, task: None }
}

fn options() -> ScheduleOptions {
    ScheduleOptions {
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        num_train_epochs: 1.0,
        max_steps: None,
        packing: false,
        max_length: 10,
        shuffle: true,
        seed: 3,
    }
}

fn dataset(rows: usize) -> Dataset {
    let rows = (0..rows).map(|at| Row { line: at + 1, ..row(&[1, 2], &[1, 2]) }).collect();
    Dataset { hashes: Vec::new(), rows, report: DatasetReport::default() }
}

#[test]
fn a_micro_batch_is_the_rows_one_behind_the_other_with_shifted_targets() {
    let batch = MicroBatch::new([&row(&[5, 6, 7], &[-100, 6, 7]), &row(&[8, 9], &[8, -100]), &row(&[4], &[4])]);
    assert_eq!(batch.input_ids, [5, 6, 7, 8, 9, 4]);
    assert_eq!(batch.positions, [0, 1, 2, 0, 1, 0]);
    assert_eq!(batch.boundaries, [0, 3, 5, 6]);
    assert_eq!(batch.targets, [6, 7, -100, -100, -100, -100]);
    assert_eq!((batch.supervised, batch.tokens(), batch.rows()), (2, 6, 3));
}

#[test]
fn a_micro_batch_of_nothing_is_empty() {
    let batch = MicroBatch::new([]);
    assert_eq!((batch.tokens(), batch.rows(), batch.boundaries), (0, 0, vec![0]));
    assert!(MicroBatch::new([&row(&[], &[])]).targets.is_empty());
}

#[test]
fn the_order_depends_on_seed_and_epoch_only() {
    assert_eq!(order(50, 0, 7), order(50, 0, 7));
    assert_ne!(order(50, 0, 7), order(50, 1, 7));
    assert_ne!(order(50, 0, 7), order(50, 0, 8));
    let mut sorted = order(50, 4, 7);
    sorted.sort_unstable();
    assert_eq!(sorted, (0..50).collect::<Vec<_>>());
}

#[test]
fn packing_takes_the_best_fit() {
    // 6 and 5 open bins; 4 fills the one with 4 free, 3 goes to the other, 2 fills that.
    assert_eq!(pack(&[2, 3, 4, 5, 6], &[0, 1, 2, 3, 4], 10).unwrap(), [vec![3, 1, 0], vec![4, 2]]);
    assert_eq!(pack(&[], &[], 10).unwrap(), Vec::<Vec<usize>>::new());
    assert_says(&refusal(pack(&[11], &[0], 10)), &["11 tokens", "max_length 10"]);
}

#[test]
fn rows_that_are_not_shuffled_keep_their_order_in_every_epoch() {
    assert_eq!(
        pack_in_order(&[2, 3, 6, 5, 5, 1], &[0, 1, 2, 3, 4, 5], 10).unwrap(),
        [vec![0, 1], vec![2], vec![3, 4], vec![5]]
    );
    assert_eq!(pack_in_order(&[], &[], 10).unwrap(), Vec::<Vec<usize>>::new());
    assert_says(&refusal(pack_in_order(&[11], &[0], 10)), &["11 tokens", "max_length 10"]);
    let lengths = vec![4, 7, 3, 3, 9, 1, 2, 2];
    for packing in [false, true] {
        let options = ScheduleOptions { packing, shuffle: false, num_train_epochs: 2.0, ..options() };
        let schedule = Schedule::new(lengths.clone(), options).unwrap();
        let rows: Vec<usize> = schedule.steps(0).flat_map(|step| step.micro_batches.concat()).collect();
        assert_eq!(rows, (0..8).chain(0..8).collect::<Vec<_>>(), "packing {packing}");
    }
}

#[test]
fn equal_rows_are_packed_in_the_given_order() {
    assert_eq!(pack(&[5; 4], &[2, 0, 3, 1], 10).unwrap(), [[2, 0], [3, 1]]);
}

#[test]
fn the_last_step_of_an_epoch_is_smaller_and_not_left_out() {
    let schedule = Schedule::new(vec![1; 7], ScheduleOptions { num_train_epochs: 2.0, ..options() }).unwrap();
    assert_eq!((schedule.steps_per_epoch(), schedule.total_steps()), (2, 4));
    let sizes: Vec<Vec<usize>> =
        schedule.steps(0).map(|step| step.micro_batches.iter().map(Vec::len).collect()).collect();
    assert_eq!(sizes, [[2, 2], [2, 1], [2, 2], [2, 1]]);
    assert_eq!(schedule.steps(0).map(|step| step.epoch).collect::<Vec<_>>(), [0.5, 1.0, 1.5, 2.0]);
    let five = Schedule::new(vec![1; 5], options()).unwrap();
    let sizes: Vec<Vec<usize>> = five.steps(0).map(|step| step.micro_batches.iter().map(Vec::len).collect()).collect();
    assert_eq!(sizes, [vec![2, 2], vec![1]]);
}

#[test]
fn max_steps_wins_over_epochs_and_fractions_of_an_epoch_round_up() {
    let steps = |options| Schedule::new(vec![1; 8], options).unwrap().total_steps();
    assert_eq!(steps(ScheduleOptions { max_steps: Some(1), ..options() }), 1);
    assert_eq!(steps(ScheduleOptions { max_steps: Some(9), num_train_epochs: f64::NAN, ..options() }), 9);
    assert_eq!(steps(ScheduleOptions { num_train_epochs: 0.75, ..options() }), 2);
    assert_eq!(steps(ScheduleOptions { num_train_epochs: 2.5, ..options() }), 5);
}

#[test]
fn settings_that_give_no_step_are_refused() {
    let message = |lengths: Vec<usize>, options| refusal(Schedule::new(lengths, options));
    assert_says(&message(vec![], options()), &["no row"]);
    assert_says(&message(vec![1], ScheduleOptions { per_device_train_batch_size: 0, ..options() }), &["per_device"]);
    assert_says(&message(vec![1], ScheduleOptions { gradient_accumulation_steps: 0, ..options() }), &["accumulation"]);
    assert_says(&message(vec![1], ScheduleOptions { max_steps: Some(0), ..options() }), &["max_steps is 0"]);
    for epochs in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let options = ScheduleOptions { num_train_epochs: epochs, ..options() };
        assert_says(&message(vec![1], options), &["num_train_epochs"]);
    }
    assert_says(&message(vec![11], ScheduleOptions { packing: true, ..options() }), &["11 tokens", "max_length 10"]);
    assert_says(&message(vec![usize::MAX / 2; 2], options()), &["per_device_train_batch_size"]);
}

#[test]
fn a_split_is_deterministic_disjoint_and_keeps_the_order() {
    let lines = |rows: &[Row]| rows.iter().map(|row| row.line).collect::<Vec<_>>();
    let (train, validation) = dataset(10).split(0.25, 1).unwrap();
    assert_eq!((train.len(), validation.len()), (7, 3));
    let mut all = [lines(&train), lines(&validation)].concat();
    assert!(lines(&train).is_sorted() && lines(&validation).is_sorted());
    all.sort_unstable();
    assert_eq!(all, (1..=10).collect::<Vec<_>>());
    assert_eq!(lines(&dataset(10).split(0.25, 1).unwrap().1), lines(&validation));
    assert_eq!(dataset(10).split(4.0, 1).unwrap().1.len(), 4);
    assert_eq!(dataset(10).split(0.0, 1).unwrap().1.len(), 0);
    let seeds: std::collections::BTreeSet<Vec<usize>> =
        (0..8).map(|seed| lines(&dataset(100).split(5.0, seed).unwrap().1)).collect();
    assert!(seeds.len() > 1);
}

#[test]
fn splits_that_leave_nothing_to_train_on_are_refused() {
    for size in [10.0, 11.0, 0.99, 1e300] {
        assert_says(&refusal(dataset(10).split(size, 1)), &["val_set_size", "10 rows"]);
    }
    for size in [-1.0, f64::NAN, f64::INFINITY, 2.5] {
        assert_says(&refusal(dataset(10).split(size, 1)), &["val_set_size", "share below 1"]);
    }
}

#[test]
fn the_memory_plan_of_a_run_of_a_thousand_million_steps_takes_no_time() {
    let start = std::time::Instant::now();
    for (packing, most) in [(false, 9 + 8), (true, 2 * 10)] {
        let options = ScheduleOptions { max_steps: Some(1_000_000_000), packing, ..options() };
        let schedule = Schedule::new(vec![3, 9, 1, 8, 2, 7, 4], options).unwrap();
        assert_eq!(schedule.max_tokens(), most);
    }
    // No pair of packs is ever full: the bound stands in for what would take hours to find.
    let options = ScheduleOptions { max_steps: Some(1_000_000_000), packing: true, ..options() };
    assert_eq!(Schedule::new(vec![9; 6], options).unwrap().max_tokens(), 20);
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

proptest! {
    #[test]
    fn packing_never_exceeds_the_length_and_neither_loses_nor_repeats_a_row(
        lengths in prop::collection::vec(0usize..33, 0..60), seed: u64) {
        let order = order(lengths.len(), 0, seed);
        let bins = pack(&lengths, &order, 32).unwrap();
        let total = |bin: &Vec<usize>| bin.iter().map(|&row| lengths[row]).sum::<usize>();
        prop_assert!(bins.iter().all(|bin| !bin.is_empty() && total(bin) <= 32));
        let mut rows = bins.concat();
        rows.sort_unstable();
        prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
        // The rows of two bins never fit into one, so all bins but one are more than half full.
        let all: usize = lengths.iter().sum();
        prop_assert!(bins.len() <= 1 + (2 * all) / 32);
    }

    #[test]
    fn every_row_is_trained_on_once_an_epoch(lengths in prop::collection::vec(1usize..17, 1..40), batch in 1usize..5,
        accumulation in 1usize..4, epochs in 1u32..4, packing: bool, shuffle: bool,
        seed: u64) {
        let options = ScheduleOptions { per_device_train_batch_size: batch, gradient_accumulation_steps: accumulation,
            num_train_epochs: epochs.into(), max_steps: None, packing, max_length: 16, shuffle, seed };
        let schedule = Schedule::new(lengths.clone(), options).unwrap();
        let steps: Vec<_> = schedule.steps(0).collect();
        prop_assert_eq!(steps.len() as u64, schedule.total_steps());
        let mut seen: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        let mut largest = 0;
        for step in &steps {
            prop_assert!((1..=accumulation).contains(&step.micro_batches.len()));
            for micro in &step.micro_batches {
                let tokens = schedule.tokens(micro);
                prop_assert!(!micro.is_empty() && tokens <= 16 * batch);
                prop_assert!(packing || micro.len() <= batch);
                largest = largest.max(tokens);
                for &row in micro {
                    *seen.entry((row, step.index / schedule.steps_per_epoch())).or_default() += 1;
                }
            }
        }
        prop_assert_eq!(seen.len(), lengths.len() * epochs as usize);
        prop_assert!(seen.values().all(|&count| count == 1));
        // The memory plan's largest micro-batch is the run's.
        let longest = schedule.longest();
        prop_assert_eq!(longest.tokens, largest);
        prop_assert_eq!(&steps[longest.step as usize].micro_batches[longest.micro], &longest.rows);
        prop_assert_eq!(schedule.max_tokens(), largest);
        // A resumed run goes on with the same steps.
        for from in 0..=steps.len() {
            prop_assert_eq!(schedule.steps(from as u64).collect::<Vec<_>>(), &steps[from..]);
        }
    }

    #[test]
    fn targets_are_the_labels_of_the_next_token_of_the_same_row(
        rows in prop::collection::vec(prop::collection::vec((0u32..99, any::<bool>()), 1..9), 1..6)) {
        let rows: Vec<Row> = rows.into_iter().map(|tokens| {
            let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
            let labels: Vec<i32> = tokens.iter().map(|&(id, yes)| if yes { id as i32 } else { UNSUPERVISED }).collect();
            row(&ids, &labels)
        }).collect();
        let batch = MicroBatch::new(&rows);
        prop_assert_eq!(batch.targets.len(), batch.tokens());
        prop_assert_eq!(batch.positions.len(), batch.tokens());
        prop_assert_eq!(batch.rows(), rows.len());
        prop_assert_eq!(batch.supervised, rows.iter().map(Row::supervised).sum::<usize>());
        for (b, row) in rows.iter().enumerate() {
            let start = batch.boundaries[b] as usize;
            prop_assert_eq!(batch.boundaries[b + 1] as usize - start, row.len());
            for t in 0..row.len() {
                prop_assert_eq!(batch.input_ids[start + t], row.input_ids[t]);
                prop_assert_eq!(batch.positions[start + t] as usize, t);
                prop_assert_eq!(batch.targets[start + t], row.labels.get(t + 1).copied().unwrap_or(UNSUPERVISED));
            }
        }
    }
}
