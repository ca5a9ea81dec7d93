//! Rows of one batch that have adapters of their own, on the CPU: each is computed as with its adapter alone, and none
//! sees another's.

use proptest::prelude::*;
use qlora_train::backend::cpu::{Cpu, Isa, Precision};
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::model::generate::{Sampling, generate, generate_by_row};
use trainer_lab::adapters::{Adapters, documents, losses};

fn cpu(adapters: &Adapters, only: Option<i32>, tokens: usize, precision: Precision) -> Cpu {
    Cpu::with_precision(adapters.spec(only, tokens).run_shape(), precision)
}

fn precisions() -> [Precision; 3] {
    let instructions = [Isa::detect().unwrap_or(Isa::SCALAR), Isa::AMX_TWIN];
    [Precision::F32, Precision::Bf16(instructions[0]), Precision::Bf16(instructions[1])]
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most: f64, value| most.max(value.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Bits: what another adapter holds changes nothing in rows that do not have it, whatever lies beside what.
    #[test]
    fn no_row_sees_the_adapter_of_another(
        rows in prop::collection::vec((2..9usize, -1..3i32), 1..7),
        changed in 0..3usize,
        seed in any::<u64>(),
    ) {
        let (lengths, of_rows): (Vec<usize>, Vec<i32>) = rows.into_iter().unzip();
        let tokens = lengths.iter().sum();
        for precision in precisions() {
            let mut adapters = Adapters::three(tiny_arch());
            let rows = documents(&lengths, adapters.arch.vocab_size, seed);
            let run = |adapters: &Adapters| {
                let mut cpu = cpu(adapters, None, tokens, precision);
                let model = adapters.model(&mut cpu, None, tokens);
                losses(&mut cpu, &model, &rows, Some(&of_rows))
            };
            let before = run(&adapters);
            adapters.seeds[changed] += 17;
            let after = run(&adapters);
            for ((before, after), &adapter) in before.iter().zip(&after).zip(&of_rows) {
                prop_assert_eq!(before == after, adapter != changed as i32, "{} of {:?}", adapter, of_rows);
            }
        }
    }

    /// In f32 the losses are those of the row alone with its adapter, but for the order of sums.
    #[test]
    fn a_row_is_computed_as_with_its_adapter_alone(
        rows in prop::collection::vec((2..9usize, -1..3i32), 1..7),
        seed in any::<u64>(),
    ) {
        let (lengths, of_rows): (Vec<usize>, Vec<i32>) = rows.into_iter().unzip();
        let tokens = lengths.iter().sum();
        let adapters = Adapters::three(tiny_arch());
        let rows = documents(&lengths, adapters.arch.vocab_size, seed);
        let mut together = cpu(&adapters, None, tokens, Precision::F32);
        let model = adapters.model(&mut together, None, tokens);
        let found = losses(&mut together, &model, &rows, Some(&of_rows));
        for ((row, found), &adapter) in rows.iter().zip(&found).zip(&of_rows) {
            let mut alone = cpu(&adapters, Some(adapter), tokens, Precision::F32);
            let model = adapters.model(&mut alone, Some(adapter), tokens);
            let expected = losses(&mut alone, &model, std::slice::from_ref(row), None).remove(0);
            prop_assert_eq!(found.len(), expected.len());
            for (found, exact) in found.iter().zip(&expected) {
                prop_assert!((found - exact).abs() <= 1e-4 * largest(&expected), "{}: {} {}", adapter, found, exact);
            }
        }
    }
}

/// Adapters change losses by far more than the bounds above, so that a row with a wrong one would be seen.
#[test]
fn the_adapters_of_these_tests_differ() {
    let adapters = Adapters::three(tiny_arch());
    let rows = documents(&[8], adapters.arch.vocab_size, 4);
    let of = |adapter| {
        let mut cpu = cpu(&adapters, Some(adapter), 8, Precision::F32);
        let model = adapters.model(&mut cpu, Some(adapter), 8);
        losses(&mut cpu, &model, &rows, None).remove(0)
    };
    let all = [-1, 0, 1, 2].map(of);
    for (at, one) in all.iter().enumerate() {
        for other in &all[..at] {
            let apart: Vec<f64> = one.iter().zip(other).map(|(one, other)| one - other).collect();
            assert!(largest(&apart) > 1e-2 * largest(one), "{one:?} {other:?}");
        }
    }
}

/// Prompts with adapters of their own, the base among them, are continued side by side as each alone; tokens that are
/// cached have been computed with the row's adapter too.
#[test]
fn text_is_that_of_each_prompt_with_its_adapter_alone() {
    const NEW: usize = 8;
    let (lengths, of_rows) = ([5, 3, 6, 4, 3], [1, -1, 0, 2, 1]);
    let adapters = Adapters::three(tiny_arch());
    let tokens = lengths.iter().map(|length| length + NEW).sum();
    let rows = documents(&lengths, adapters.arch.vocab_size, 9);
    let prompts: Vec<Vec<u32>> = rows.into_iter().map(|row| row.input_ids).collect();
    let mut together = cpu(&adapters, None, tokens, Precision::F32);
    let model = adapters.model(&mut together, None, tokens);
    let mut go_on = |_: usize, _: u32| Ok(true);
    let greedy = &Sampling::GREEDY;
    let found = generate_by_row(&mut together, &model, &prompts, &of_rows, NEW, &[], greedy, &mut go_on).unwrap();
    let mut different = std::collections::BTreeSet::new();
    for ((prompt, found), adapter) in prompts.iter().zip(&found).zip(of_rows) {
        let mut alone = cpu(&adapters, Some(adapter), tokens, Precision::F32);
        let model = adapters.model(&mut alone, Some(adapter), tokens);
        let prompt = std::slice::from_ref(prompt);
        let expected = generate(&mut alone, &model, prompt, NEW, &[], greedy, &mut go_on).unwrap();
        assert_eq!(found, &expected[0], "{adapter}");
        different.insert(found);
    }
    assert!(different.len() > 1, "{different:?}");
    // Without a word of adapters the base alone answers.
    let base = generate(&mut together, &model, &prompts[1..2], NEW, &[], greedy, &mut go_on).unwrap();
    assert_eq!(base[0], found[1]);
}
