//! Text from the KV cache against the whole row computed anew for every token.

use proptest::prelude::*;
use qlora_kernels::rng::RngStream;
use qlora_train::arch::{Arch, LayerArch, Projection, QkNorm};
use qlora_train::backend::cpu::{Cpu, Isa, Precision};
use qlora_train::backend::{Batch, Quantization};
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::lora::LoraSpec;
use qlora_train::model::generate::{Sampling, generate};
use qlora_train::model::{Llama, ModelSpec};
use trainer_lab::model::Memory;

const VOCAB: usize = 37;

fn model(kv_heads: usize, per_kv: usize, tokens: usize, seed: u64) -> (Cpu, Llama<Cpu>) {
    model_in(Precision::F32, kv_heads, per_kv, tokens, seed)
}

fn model_in(precision: Precision, kv_heads: usize, per_kv: usize, tokens: usize, seed: u64) -> (Cpu, Llama<Cpu>) {
    let qk_norm = [QkNorm::Head, QkNorm::None, QkNorm::HeadRotated][seed as usize / 7 % 3];
    // Full attention, a window on every layer or on every other one.
    let full = tiny_arch().layers[0].clone();
    let local = LayerArch { window: Some(1 + seed as usize / 3 % 5), ..full.clone() };
    let layers = [vec![full.clone()], vec![local.clone()], vec![local, full]][seed as usize % 3].clone();
    let num_heads = kv_heads * per_kv;
    let [attention_soft_cap, logits_soft_cap] = [0.7, 1.3].map(|cap| (seed / 5).is_multiple_of(2).then_some(cap));
    let config = Arch {
        num_kv_heads: kv_heads,
        num_heads,
        vocab_size: VOCAB,
        qk_norm,
        layers,
        attention_soft_cap,
        logits_soft_cap,
        ..tiny_arch()
    };
    let lora = LoraSpec::uniform(&config, &Projection::ALL, 3, 2.1, 0.0);
    let spec = ModelSpec { seed, ..ModelSpec::new(lora, config, Quantization::NF4, tokens) };
    let mut cpu = Cpu::with_precision(spec.run_shape(), precision);
    let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), seed));
    let model = Llama::build(&mut cpu, &mut memory, spec, &mut |_| ()).unwrap();
    (cpu, model)
}

/// Logits after the last token of `row`, without a cache.
fn anew(cpu: &mut Cpu, model: &Llama<Cpu>, row: &[u32]) -> Vec<f32> {
    let positions: Vec<u32> = (0..row.len() as u32).collect();
    let (boundaries, targets) = ([0, row.len() as u32], vec![-100; row.len()]);
    let batch = Batch {
        input_ids: row,
        positions: &positions,
        boundaries: &boundaries,
        targets: &targets,
        weights: None,
        adapters: None,
    };
    model.logits(cpu, &batch, &[row.len() - 1]).unwrap().remove(0)
}

fn rows(lengths: &[usize], seed: u64) -> Vec<Vec<u32>> {
    let mut stream = RngStream::new(seed, 5);
    lengths.iter().map(|&len| (0..len).map(|_| stream.below(VOCAB as u32)).collect()).collect()
}

fn distance(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// The two largest.
fn top_two(logits: &[f32]) -> [(f32, usize); 2] {
    let mut sorted: Vec<(f32, usize)> = logits.iter().copied().zip(0..).collect();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    [sorted[0], sorted[1]]
}

/// Largest difference of f32 sums in another order, relative to the largest logit.
const ROUNDING: f32 = 1e-5;

fn largest(logits: &[f32]) -> f32 {
    logits.iter().fold(0.0, |a, x| a.max(x.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Rows that grow by pieces of any size, side by side, each in rows of the cache of its own.
    #[test]
    fn logits_from_the_cache_are_those_of_the_whole_row(
        (kv_heads, per_kv) in (1..3usize, 1..3usize),
        lengths in prop::collection::vec(2..14usize, 1..4),
        cuts in prop::collection::vec(1..6usize, 1..5),
        seed in any::<u64>(),
    ) {
        let total: usize = lengths.iter().sum();
        let (mut cpu, model) = model(kv_heads, per_kv, total, seed);
        let rows = rows(&lengths, seed);
        let starts: Vec<u32> = lengths.iter().scan(0, |at, &len| { let start = *at; *at += len as u32; Some(start) }).collect();
        let mut cache = model.cache(&mut cpu).unwrap();
        let mut held = vec![0; rows.len()];
        for turn in 0.. {
            let open: Vec<usize> = (0..rows.len()).filter(|&row| held[row] < rows[row].len()).collect();
            if open.is_empty() {
                break;
            }
            let (mut ids, mut positions, mut boundaries) = (Vec::new(), Vec::new(), vec![0u32]);
            let (mut row_starts, mut last) = (Vec::new(), Vec::new());
            for &row in &open {
                let end = (held[row] + cuts[(turn + row) % cuts.len()]).min(rows[row].len());
                ids.extend_from_slice(&rows[row][held[row]..end]);
                positions.extend(held[row] as u32..end as u32);
                boundaries.push(ids.len() as u32);
                row_starts.push(starts[row]);
                last.push(ids.len() - 1);
                held[row] = end;
            }
            let targets = vec![-100; ids.len()];
            let (positions, boundaries, targets) = (&positions[..], &boundaries[..], &targets[..]);
            let batch = Batch { input_ids: &ids, positions, boundaries, targets, weights: None, adapters: None };
            let found = model.logits_cached(&mut cpu, &batch, &mut cache, &row_starts, &last).unwrap();
            for (&row, found) in open.iter().zip(&found) {
                let expected = anew(&mut cpu, &model, &rows[row][..held[row]]);
                let bound = ROUNDING * largest(&expected);
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert!((found - expected).abs() <= bound, "row {row} of {}: {found} {expected}", held[row]);
                }
            }
        }
    }

    /// In bf16, logits from the cache are as near to those in f32 as logits of the whole row in bf16 are: a token at a
    /// time rounds at the same places. All tokens of a row together, because one alone may be near by chance.
    #[test]
    fn logits_from_the_cache_in_bf16_are_as_near_to_f32_as_those_of_the_whole_row(
        (kv_heads, per_kv) in (1..3usize, 1..3usize),
        len in 8..24usize,
        prompt in 1..8usize,
        on_tiles in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let isa = if on_tiles { Isa::AMX_TWIN } else { Isa::detect().unwrap_or(Isa::SCALAR) };
        let bf16 = Precision::Bf16(isa);
        let row = rows(&[len], seed).remove(0);
        let (mut cpu, f32_model) = model(kv_heads, per_kv, len, seed);
        let exact: Vec<f32> = (prompt..=len).flat_map(|end| anew(&mut cpu, &f32_model, &row[..end])).collect();
        let (mut cpu, model) = model_in(bf16, kv_heads, per_kv, len, seed);
        let whole: Vec<f32> = (prompt..=len).flat_map(|end| anew(&mut cpu, &model, &row[..end])).collect();
        let mut cache = model.cache(&mut cpu).unwrap();
        let (mut cached, mut held) = (Vec::new(), 0);
        for end in prompt..=len {
            let positions: Vec<u32> = (held as u32..end as u32).collect();
            let (boundaries, targets) = ([0, (end - held) as u32], vec![-100; end - held]);
            let ids = &row[held..end];
            let (positions, boundaries, targets) = (&positions[..], &boundaries[..], &targets[..]);
            let batch = Batch { input_ids: ids, positions, boundaries, targets, weights: None, adapters: None };
            cached.extend(model.logits_cached(&mut cpu, &batch, &mut cache, &[0], &[end - held - 1]).unwrap().remove(0));
            held = end;
        }
        let (of_whole, of_cached) = (distance(&whole, &exact), distance(&cached, &exact));
        prop_assert!(of_whole > 0.0, "bf16 rounds");
        prop_assert!(of_cached <= 2.0 * of_whole, "{of_cached} from the cache, {of_whole} of the whole row");
    }

    /// Several prompts side by side get the tokens that each would get alone from the most likely token of the whole
    /// row, computed anew each time; where two tokens are as likely but for rounding, either is right.
    #[test]
    fn greedy_tokens_are_the_most_likely_of_the_whole_row(
        lengths in prop::collection::vec(1..10usize, 1..4),
        new in 1..12usize,
        stop in 0..VOCAB as u32,
        seed in any::<u64>(),
    ) {
        let total = lengths.iter().map(|len| len + new).sum();
        let (mut cpu, model) = model(2, 2, total, seed);
        let prompts = rows(&lengths, seed);
        let mut called = vec![Vec::new(); prompts.len()];
        let mut token = |row: usize, id| { called[row].push(id); Ok(true) };
        let answers = generate(&mut cpu, &model, &prompts, new, &[stop], &Sampling::GREEDY, &mut token).unwrap();
        prop_assert_eq!(&answers, &called);
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let mut row = prompt.clone();
            let stopped = (answer.len() < new).then_some(stop);
            for id in answer.iter().copied().chain(stopped) {
                let logits = anew(&mut cpu, &model, &row);
                let [(best, first), (second, _)] = top_two(&logits);
                let tie = best - second <= 2.0 * ROUNDING * largest(&logits);
                prop_assert!(first == id as usize || tie, "{id} after {row:?}, {first} is more likely");
                row.push(id);
            }
            prop_assert!(!answer.contains(&stop));
        }
    }

    #[test]
    fn drawn_tokens_follow_the_seed_and_a_temperature_of_0_is_greedy(seed in any::<u64>(), top_p in 0.2f32..=1.0) {
        let (mut cpu, model) = model(1, 2, 2 * (4 + 16), seed);
        let prompts = rows(&[4, 4], seed);
        let mut answers = |temperature, top_p, seed| {
            let sampling = Sampling { temperature, top_p, seed, ..Sampling::GREEDY };
            generate(&mut cpu, &model, &prompts, 16, &[], &sampling, &mut |_, _| Ok(true)).unwrap()
        };
        // Hot enough that two draws of 32 tokens do not agree by chance.
        let one = answers(50.0, 1.0, seed);
        prop_assert_eq!(&answers(50.0, 1.0, seed), &one);
        prop_assert_ne!(&answers(50.0, 1.0, seed ^ 1), &one);
        let greedy = answers(0.0, 1.0, 0);
        prop_assert_eq!(&answers(0.0, top_p, seed), &greedy);
        prop_assert_eq!(answers(1.0, 1e-9, seed), greedy);
    }
}
