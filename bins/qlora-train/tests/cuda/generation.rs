//! Text from keys and values kept on the device. Bounds as in `training`: logits may be as far from the CPU backend's
//! as those of models that are moved by bf16's largest error, tensors by twice the moved models' mean and single
//! numbers by 4 times.

use crate::runs::{largest, rms};
use crate::sources::{Moved, config, memory, on_device, spec};
use crate::sources::{
    with_a_layer_not_rotated, with_fused_projections, with_multipliers, with_norms_after, with_norms_around,
    with_soft_caps, with_two_ropes,
};
use lab::device::{Tally, set_schedule};
use qlora_kernels::ops::linear::Path;
use qlora_kernels::rng::RngStream;
use qlora_train::arch::{Arch, LayerArch, Projection, QkNorm, Rope};
use qlora_train::backend::cpu::Cpu;
use qlora_train::backend::{Backend, Batch, Quantization};
use qlora_train::model::generate::{Sampling, generate};
use qlora_train::model::{Llama, ModelSpec, Source};

const MODELS: u64 = 6;

/// Tokens of each prompt; those of the first two are more than 16, so that they take the tensor cores' path too.
const PROMPTS: [usize; 4] = [13, 5, 14, 1];
const NEW: usize = 6;

fn reading(config: Arch) -> ModelSpec {
    let tokens = PROMPTS.iter().map(|len| len + NEW).sum();
    ModelSpec { trainable: false, activations: Vec::new(), tokens, positions: 40, ..spec(config) }
}

/// Each prompt with what follows it.
fn rows(vocab: usize) -> Vec<Vec<u32>> {
    let mut stream = RngStream::new(9, 5);
    PROMPTS.iter().map(|len| (0..len + NEW).map(|_| stream.below(vocab as u32)).collect()).collect()
}

/// New tokens of some rows as one batch, and where their rows of the cache begin.
#[derive(Default)]
struct Pieces {
    input_ids: Vec<u32>,
    positions: Vec<u32>,
    boundaries: Vec<u32>,
    targets: Vec<i32>,
    starts: Vec<u32>,
    last: Vec<usize>,
}

impl Pieces {
    /// `of(row)`: the positions that are new; none of an open row is a document without tokens.
    fn new(rows: &[Vec<u32>], of: impl Fn(usize) -> std::ops::Range<usize>) -> Self {
        let (mut pieces, mut start) = (Self { boundaries: vec![0], ..Self::default() }, 0);
        for (index, row) in rows.iter().enumerate() {
            let new = of(index);
            pieces.input_ids.extend_from_slice(&row[new.clone()]);
            pieces.positions.extend(new.start as u32..new.end as u32);
            pieces.boundaries.push(pieces.input_ids.len() as u32);
            pieces.starts.push(start);
            pieces.targets.resize(pieces.input_ids.len(), -100);
            if !new.is_empty() {
                pieces.last.push(pieces.input_ids.len() - 1);
            }
            start += row.len() as u32;
        }
        pieces
    }

    fn batch(&self) -> Batch<'_> {
        let Self { input_ids, positions, boundaries, targets, .. } = self;
        Batch { input_ids, positions, boundaries, targets, weights: None, adapters: None }
    }
}

/// The prompts, then one token of every row at a time; in the fourth step the second row has none, and in the fifth
/// two.
fn steps(rows: &[Vec<u32>]) -> Vec<Pieces> {
    let at = |row: usize, step: usize| match (row, step) {
        (_, 0) => 0..PROMPTS[row],
        (1, 4) => PROMPTS[1] + 3..PROMPTS[1] + 3,
        (1, 5) => PROMPTS[1] + 3..PROMPTS[1] + 5,
        (_, step) => PROMPTS[row] + step - 1..PROMPTS[row] + step,
    };
    (0..=5).map(|step| Pieces::new(rows, |row| at(row, step))).collect()
}

/// Logits after every step's last tokens, and the device's bytes after each.
fn stepped<B: Backend>(
    b: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    rows: &[Vec<u32>],
) -> (Vec<Vec<f32>>, Vec<u64>) {
    let model = Llama::build(b, source, spec.clone(), &mut |_| ()).unwrap();
    let mut cache = model.cache(b).unwrap();
    let (mut logits, mut bytes) = (Vec::new(), Vec::new());
    for pieces in steps(rows) {
        let found = model.logits_cached(b, &pieces.batch(), &mut cache, &pieces.starts, &pieces.last).unwrap();
        logits.push(found.concat());
        bytes.push(b.bytes());
    }
    (logits, bytes)
}

fn on_cuda(spec: &ModelSpec, rows: &[Vec<u32>]) -> (Vec<Vec<f32>>, Vec<u64>) {
    stepped(&mut on_device(spec), &mut memory(&spec.arch), spec, rows)
}

/// Root of the mean square of the differences, step by step.
fn apart(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Vec<f64> {
    assert_eq!(found.len(), expected.len());
    let step = |(found, expected): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(found.len(), expected.len());
        rms(&found.iter().zip(expected).map(|(a, b)| f64::from(a - b)).collect::<Vec<_>>())
    };
    found.iter().zip(expected).map(step).collect()
}

/// The CPU backend's logits and, of every step, how far those of the moved models are from them: twice their mean.
fn bounds(spec: &ModelSpec, rows: &[Vec<u32>]) -> (Vec<Vec<f32>>, Vec<f64>) {
    let cpu = |source: &mut dyn Source| stepped(&mut Cpu::new(spec.run_shape()), source, spec, rows).0;
    let expected = cpu(&mut memory(&spec.arch));
    let moved: Vec<_> = (0..MODELS).map(|seed| apart(&cpu(&mut Moved::new(spec, Some(seed))), &expected)).collect();
    let mean = |step: usize| moved.iter().map(|moved| moved[step]).sum::<f64>() / MODELS as f64;
    let bounds = (0..expected.len()).map(|step| 2.0 * mean(step)).collect();
    (expected, bounds)
}

fn share(apart: &[f64], bounds: &[f64]) -> f64 {
    largest(&apart.iter().zip(bounds).map(|(apart, bound)| apart / bound).collect::<Vec<_>>())
}

/// The device's logits of every step, in the memory that the first steps made.
#[track_caller]
fn follows_the_cpu(what: &str, spec: &ModelSpec) {
    let rows = rows(spec.arch.vocab_size);
    let (expected, bounds) = bounds(spec, &rows);
    let (found, bytes) = on_cuda(spec, &rows);
    let found = apart(&found, &expected);
    println!("{what}: apart by {found:?}, bounds {bounds:?}");
    assert!(share(&found, &bounds) <= 1.0, "{what}: {found:?} {bounds:?}");
    // The prompts' step and the first with one token make buffers; no later one does.
    assert!(bytes[2..].iter().all(|held| *held == bytes[1]), "a token allocated: {bytes:?}");
}

/// Both sizes of heads, grouped queries, tied tables, biases, scaled rotation, weights of 4 and 16 bits.
#[test]
fn logits_of_every_step_are_those_of_the_cpu_backend() {
    let tally = Tally::new("generation, models", 1);
    let dense = ModelSpec { quantization: Quantization::None, ..reading(config()) };
    let scaling = qlora_kernels::rope::RopeScaling::Linear { factor: 2.0 };
    let rope = Rope::new(10_000.0, scaling);
    let wide =
        Arch { head_dim: 128, num_heads: 6, tie_word_embeddings: true, layers: LayerArch::uniform(rope), ..config() };
    let biased = Arch { num_kv_heads: 1, biases: Projection::ALL.into(), ..config() };
    let normed = Arch { qk_norm: QkNorm::Head, ..config() };
    let mut windowed = with_two_ropes(config());
    windowed.layers[1].window = Some(6);
    for (what, spec) in [
        ("4 bits", reading(config())),
        ("16 bits", dense),
        ("wide", reading(wide)),
        ("biases, a layer without rotation", reading(with_a_layer_not_rotated(biased))),
        ("norms of heads", reading(normed)),
        ("norms of rotated heads", reading(Arch { qk_norm: QkNorm::HeadRotated, ..config() })),
        ("a window and another rotation on every other layer", reading(windowed)),
        ("multipliers", reading(with_multipliers(config()))),
        ("norms of what branches give", reading(with_norms_after(config()))),
        ("norms around branches, gelu", reading(with_norms_around(config()))),
        ("fused projections, rotated in part", reading(with_fused_projections(config()))),
        ("heads of 96", reading(Arch { head_dim: 96, num_heads: 3, num_kv_heads: 1, ..config() })),
        ("heads of 256", reading(Arch { head_dim: 256, num_heads: 2, num_kv_heads: 1, ..config() })),
        ("soft caps", reading(with_soft_caps(config()))),
    ] {
        follows_the_cpu(what, &spec);
        tally.case();
    }
}

/// The cache gives the same as whole rows that are computed anew: each is as far from the CPU as rounding explains, and
/// so they may be from each other.
#[test]
fn the_cache_gives_what_the_whole_rows_give() {
    let spec = reading(config());
    let rows = rows(spec.arch.vocab_size);
    let (_, bounds) = bounds(&spec, &rows);
    let (cached, _) = on_cuda(&spec, &rows);
    let mut cuda = on_device(&spec);
    let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let mut anew = Vec::new();
    for step in steps(&rows) {
        let ends = step.boundaries.windows(2).map(|bounds| match bounds[0] == bounds[1] {
            true => 0,
            false => step.positions[bounds[1] as usize - 1] as usize + 1,
        });
        let ends: Vec<usize> = ends.collect();
        let whole = Pieces::new(&rows, |row| 0..ends[row]);
        anew.push(model.logits(&mut cuda, &whole.batch(), &whole.last).unwrap().concat());
    }
    let found = apart(&cached, &anew);
    println!("apart by {found:?}, bounds {bounds:?}");
    assert!(share(&found, &bounds) <= 1.0, "{found:?} {bounds:?}");
    assert!(cached[0] == anew[0], "the prompts are computed alike");
}

/// Rows that began with other tokens, and rows that are given other ones' past, are far outside of the bounds.
#[test]
fn the_bounds_see_another_past() {
    let spec = reading(config());
    let rows = rows(spec.arch.vocab_size);
    let (expected, bounds) = bounds(&spec, &rows);
    let mut other = rows.clone();
    other.iter_mut().for_each(|row| row[0] = (row[0] + 1) % 211);
    assert!(share(&apart(&on_cuda(&spec, &other).0, &expected), &bounds) > 2.0);
    let mut cuda = on_device(&spec);
    let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let mut cache = model.cache(&mut cuda).unwrap();
    let mut steps = steps(&rows);
    steps[1].starts = vec![30, 0, 19, 0];
    for (index, step) in steps[..2].iter().enumerate() {
        let found =
            model.logits_cached(&mut cuda, &step.batch(), &mut cache, &step.starts, &step.last).unwrap().concat();
        let found = apart(&[found], &expected[index..=index]);
        assert!((share(&found, &bounds[index..=index]) > 2.0) == (index == 1), "{found:?}");
    }
}

#[test]
fn every_schedule_gives_the_same_logits() {
    let tally = Tally::new("generation, schedules", 3);
    let spec = reading(config());
    let rows = rows(spec.arch.vocab_size);
    let run = |seed| {
        set_schedule(seed);
        on_cuda(&spec, &rows).0
    };
    let first = run(0);
    assert!(first.concat().iter().any(|&logit| logit != 0.0));
    assert!(first == run(1) && first == run(7));
    tally.case();
}

/// Text is that of the CPU backend: every token is the most likely one by its logits too, or as likely but for
/// rounding. Drawn tokens follow the seed, and answers do not depend on what is answered beside them.
#[test]
fn tokens_are_chosen_as_on_the_cpu() {
    let spec = reading(config());
    let rows = rows(spec.arch.vocab_size);
    let (_, bounds) = bounds(&spec, &rows);
    let prompts: Vec<Vec<u32>> = rows.iter().zip(PROMPTS).map(|(row, len)| row[..len].to_vec()).collect();
    let mut cuda = on_device(&spec);
    let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let mut answers = |prompts: &[Vec<u32>], sampling: Sampling, schedule: u64| {
        set_schedule(schedule);
        generate(&mut cuda, &model, prompts, NEW, &[], &sampling, &mut |_, _| Ok(true)).unwrap()
    };
    let greedy = answers(&prompts, Sampling::GREEDY, 0);
    assert_eq!(greedy, answers(&prompts, Sampling::GREEDY, 3));
    let drawn = |seed| Sampling { temperature: 5.0, top_p: 0.9, seed, ..Sampling::GREEDY };
    let first = answers(&prompts, drawn(1), 0);
    assert_eq!(first, answers(&prompts, drawn(1), 5));
    assert_ne!(first, answers(&prompts, drawn(2), 0));
    assert_eq!(first[..2], answers(&prompts[..2], drawn(1), 0), "two of the prompts alone");

    let mut cpu = Cpu::new(spec.run_shape());
    let model = Llama::build(&mut cpu, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    // A single difference of two logits, each as far off as 4 roots of the mean square: the bounds are 2.
    let near = 4.0 * bounds.iter().copied().fold(0.0, f64::max);
    let mut exact = 0;
    for (prompt, answer) in prompts.iter().zip(&greedy) {
        assert_eq!(answer.len(), NEW);
        let whole = vec![[&prompt[..], answer].concat()];
        let pieces = Pieces::new(&whole, |_| 0..whole[0].len() - 1);
        let places: Vec<usize> = (prompt.len() - 1..whole[0].len() - 1).collect();
        let logits = model.logits(&mut cpu, &pieces.batch(), &places).unwrap();
        for (logits, &id) in logits.iter().zip(answer) {
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!(f64::from(best - logits[id as usize]) <= near, "{id}: {} of {best}", logits[id as usize]);
            exact += usize::from(best == logits[id as usize]);
        }
    }
    println!("{exact} of {} tokens are the CPU's most likely ones; within {near:.1e}", PROMPTS.len() * NEW);
    assert!(2 * exact > PROMPTS.len() * NEW);
}

/// One token of each of up to 16 rows: every weight is read once.
#[test]
fn decoding_takes_the_path_of_few_tokens() {
    // Widths that the fast paths need: multiples of 64.
    let spec = reading(Arch { intermediate_size: 256, ..config() });
    let rows = rows(spec.arch.vocab_size);
    let mut cuda = on_device(&spec);
    let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let mut cache = model.cache(&mut cuda).unwrap();
    assert!(cuda.take_linear_paths().is_empty());
    for (index, step) in steps(&rows).iter().enumerate() {
        model.logits_cached(&mut cuda, &step.batch(), &mut cache, &step.starts, &step.last).unwrap();
        // q‖k‖v, o, gate‖up and down of both layers.
        let path = if index == 0 { Path::TensorCore } else { Path::SmallM };
        assert_eq!(cuda.take_linear_paths(), vec![path; 8], "step {index}");
    }
}

#[test]
fn a_row_that_does_not_fit_the_cache_is_refused() {
    let spec = reading(config());
    let rows = rows(spec.arch.vocab_size);
    let mut cuda = on_device(&spec);
    let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let mut cache = model.cache(&mut cuda).unwrap();
    let mut step = Pieces::new(&rows, |row| 0..PROMPTS[row]);
    let whole = step.starts.clone();
    for (row, start) in [(3, spec.tokens as u32), (2, spec.tokens as u32 - 13), (0, u32::MAX)] {
        step.starts[row] = start;
        let error = model.logits_cached(&mut cuda, &step.batch(), &mut cache, &step.starts, &step.last).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("begins at {start} of the KV cache")) && text.contains("57 rows"), "{text}");
        step.starts.clone_from(&whole);
    }
    model.logits_cached(&mut cuda, &step.batch(), &mut cache, &step.starts, &step.last).unwrap();
    let long = vec![vec![0; 41]];
    let step = Pieces::new(&long, |_| 0..41);
    let error = model.logits_cached(&mut cuda, &step.batch(), &mut cache, &step.starts, &step.last).unwrap_err();
    assert!(error.to_string().contains("position 40"), "{error}");
}
