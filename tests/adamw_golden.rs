//! AdamW against trajectories of bitsandbytes' AdamW8bit and of torch's AdamW: `tests/golden/adamw_files.py`.

use qlora_kernels::nf4::{dynamic_map_signed, dynamic_map_unsigned};
use qlora_kernels::optim::AdamW;
use qlora_kernels::optim8bit::{BLOCK_SIZE, adamw_blockwise};
use qlora_kernels::reference::adamw;
use safetensors::SafeTensors;

const STEPS: u64 = 20;
#[derive(Clone, Copy)]
struct Tensor {
    /// Names its gradients.
    index: u32,
    name: &'static str,
    n: usize,
    rate: f64,
    decay: f64,
    /// Binary orders of magnitude of the gradients in a block.
    orders: usize,
}

const SMALL: Tensor = Tensor { index: 0, name: "small", n: 1000, rate: 1e-3, decay: 0.1, orders: 10 };
const RAGGED: Tensor = Tensor { index: 1, name: "ragged", n: 4200, rate: 4e-3, decay: 0.0, orders: 10 };
const WHOLE: Tensor = Tensor { index: 2, name: "whole", n: 4352, rate: 1e-3, decay: 0.1, orders: 2 };

/// In [-1, 1): the generator's hash.
fn uniform(i: usize, stream: u32) -> f32 {
    let mut h = (i as u32).wrapping_mul(0x9E37_79B1).wrapping_add(stream.wrapping_mul(0x85EB_CA77));
    h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
    h = (h ^ (h >> 12)).wrapping_mul(0x297A_2D39);
    h ^= h >> 15;
    ((h >> 8) as i32 - (1 << 23)) as f32 * (-23.0f32).exp2()
}

impl Tensor {
    fn gradient(&self, step: u64) -> Vec<f32> {
        let one = |i: usize| {
            if (i + step as usize).is_multiple_of(17) {
                return 0.0;
            }
            let sum = uniform(i, 1000 * self.index) + uniform(i, 1000 * self.index + step as u32);
            sum * 0.5 * (-((i % self.orders) as f32)).exp2()
        };
        (0..self.n).map(one).collect()
    }

    fn start(&self) -> Vec<f32> {
        (0..self.n).map(|i| uniform(i, 1000 * self.index + 999) * 0.0625).collect()
    }

    fn settings(&self, step: u64) -> AdamW {
        let (learning_rate, weight_decay) = (self.rate, self.decay);
        AdamW { learning_rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay, step }
    }
}

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/adamw.safetensors");
        Self(std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap_or_else(|_| panic!("{name}")).data().to_vec()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

/// The largest |a − b|, relative to `scale`.
fn largest_difference(a: &[f32], b: &[f32], scale: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).fold(0.0, f64::max) / scale
}

/// torch updates by the same formulas; it may fuse a multiplication with an addition.
#[test]
fn f32_states_follow_torch() {
    let golden = Golden::open();
    for tensor in [SMALL, WHOLE] {
        let Tensor { name, n, rate, .. } = tensor;
        let (mut value, mut m, mut v) = (tensor.start(), vec![0.0; n], vec![0.0; n]);
        for step in 1..=STEPS {
            adamw(&tensor.settings(step), 1.0, &tensor.gradient(step), &mut value, &mut m, &mut v);
        }
        let difference = largest_difference(&value, &golden.f32(&format!("torch.{name}.20.value")), rate);
        println!("{name}: values within {difference:.1e} of the rate after 20 updates");
        assert!(difference <= 2e-4, "{name}: {difference}");
        if name == SMALL.name {
            let moment = |ours: &[f32], part: &str| {
                let theirs = golden.f32(&format!("torch.small.20.{part}"));
                let relative = |(&a, &b): (&f32, &f32)| f64::from((a - b).abs() / b.abs().max(1e-6));
                ours.iter().zip(&theirs).map(relative).fold(0.0, f64::max)
            };
            let (first, second) = (moment(&m, "m"), moment(&v, "v"));
            println!("{name}: moments within {first:.1e} and {second:.1e}");
            assert!(first <= 1e-4 && second <= 5e-6, "{first} {second}");
            // bitsandbytes keeps f32 states for so small a tensor.
            let difference = largest_difference(&value, &golden.f32("table.small.20.value"), rate);
            println!("{name}: values within {difference:.1e} of the rate of bitsandbytes");
            assert!(difference <= 2e-4, "{difference}");
        }
    }
}

struct Blockwise {
    value: Vec<f32>,
    m: Vec<u8>,
    m_absmax: Vec<f32>,
    v: Vec<u8>,
    v_absmax: Vec<f32>,
}

/// Calls `at` after every step.
fn blockwise(tensor: &Tensor, mut at: impl FnMut(u64, &Blockwise)) {
    let n = tensor.n;
    let absmax = vec![0.0; n.div_ceil(BLOCK_SIZE)];
    let value = tensor.start();
    let mut s = Blockwise { value, m: vec![0; n], m_absmax: absmax.clone(), v: vec![0; n], v_absmax: absmax };
    for step in 1..=STEPS {
        let Blockwise { value, m, m_absmax, v, v_absmax } = &mut s;
        adamw_blockwise(&tensor.settings(step), 1.0, &tensor.gradient(step), value, m, m_absmax, v, v_absmax);
        at(step, &s);
    }
}

/// Differences from bitsandbytes in one tensor at one step.
struct Comparison {
    /// Shares of the codes that differ.
    m: f64,
    v: f64,
    /// Largest relative difference of an absmax.
    absmax: f64,
}

fn compare(golden: &Golden, kind: &str, name: &str, step: u64, ours: &Blockwise) -> Comparison {
    let key = |part: &str| format!("{kind}.{name}.{step}.{part}");
    let codes = |ours: &[u8], part: &str| {
        let theirs = golden.bytes(&key(part));
        assert_eq!(ours.len(), theirs.len());
        ours.iter().zip(&theirs).filter(|(a, b)| a != b).count() as f64 / ours.len() as f64
    };
    let scale = |ours: &[f32], part: &str| {
        let theirs = golden.f32(&key(part));
        assert_eq!(ours.len(), theirs.len());
        ours.iter().zip(&theirs).map(|(a, b)| f64::from((a / b - 1.0).abs())).fold(0.0, f64::max)
    };
    let absmax = scale(&ours.m_absmax, "m_absmax").max(scale(&ours.v_absmax, "v_absmax"));
    let found = Comparison { m: codes(&ours.m, "m"), v: codes(&ours.v, "v"), absmax };
    let (m, v) = (100.0 * found.m, 100.0 * found.v);
    println!(
        "{kind}, {name}, update {step}: {m:.2}% of m's codes and {v:.2}% of v's differ; absmax within {absmax:.1e}"
    );
    found
}

/// The largest difference of a value, and the share within 0.001, in units of the rate.
fn values(golden: &Golden, kind: &str, name: &str, rate: f64, ours: &Blockwise) -> (f64, f64) {
    let theirs = golden.f32(&format!("{kind}.{name}.20.value"));
    let difference = largest_difference(&ours.value, &theirs, rate);
    let near = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs() <= 1e-3 * rate;
    let near = ours.value.iter().zip(&theirs).filter(|&pair| near(pair)).count() as f64 / theirs.len() as f64;
    println!("{kind}, {name}: values within {difference:.1e} of the rate, {:.1}% within 0.001 of it", 100.0 * near);
    (difference, near)
}

/// With our choice of codes in the place of its CPU's table, bitsandbytes differs by fused multiply-adds only: a moment
/// on the edge between two codes may fall to either side.
#[test]
fn blockwise_states_follow_bitsandbytes() {
    let golden = Golden::open();
    for tensor in [RAGGED, WHOLE] {
        blockwise(&tensor, |step, ours| {
            let name = tensor.name;
            if [1, 5, 20].contains(&step) {
                let found = compare(&golden, "search", name, step, ours);
                assert!(found.absmax <= 1e-6, "{name}, update {step}: {}", found.absmax);
                assert!(found.m <= 0.002 && found.v <= 0.002, "{name}, update {step}: {} {}", found.m, found.v);
            }
            if step == STEPS {
                let (largest, near) = values(&golden, "search", name, tensor.rate, ours);
                assert!(largest <= 0.1 && near >= 0.99, "{name}: {largest} {near}");
            }
        });
    }
}

/// On a CPU, bitsandbytes finds codes in a table of 65,536 equal bins: one code for all values below 1.5e-5 of
/// their block's largest. Where gradients differ by ten binary orders of magnitude in a block, half of its second
/// moments are such. In the first update, where both quantize the same moments, no code is worse than that table makes
/// it.
#[test]
fn bitsandbytes_with_its_cpu_table_chooses_codes_within_the_tables_bins() {
    const BIN: f64 = 2.0 / 65535.0;
    let golden = Golden::open();
    for tensor in [RAGGED, WHOLE] {
        blockwise(&tensor, |step, ours| {
            let name = tensor.name;
            if [1, 20].contains(&step) {
                let found = compare(&golden, "table", name, step, ours);
                // Later the largest moment of a block may have lain on the other side of a threshold once: one step of
                // the map.
                let bound = if step == 1 { 1e-6 } else { 0.0141 };
                assert!(found.absmax <= bound, "{name}, update {step}: {}", found.absmax);
            }
            if step == 1 {
                let g = tensor.gradient(1).into_iter().map(f64::from);
                let (m, v) = (g.clone().map(|g| 0.1 * g).collect(), g.map(|g| 0.001 * g * g).collect());
                let check = |moments: Vec<f64>, ours: &[u8], part: &str, absmax: &[f32], map: &[f32; 256]| {
                    let theirs = golden.bytes(&format!("table.{name}.1.{part}"));
                    for (i, moment) in moments.iter().enumerate() {
                        let x = moment / f64::from(absmax[i / BLOCK_SIZE]);
                        let distance = |code: u8| (f64::from(map[usize::from(code)]) - x).abs();
                        let (ours, theirs) = (distance(ours[i]), distance(theirs[i]));
                        // Ours is nearest, but for a second moment that is kept above 0, and to f32 rounding.
                        assert!(ours <= theirs.max(4e-7) + 1e-7, "{part}[{i}] of {x}: {ours} {theirs}");
                        assert!(theirs <= ours + 2.0 * BIN, "{part}[{i}] of {x}: {ours} {theirs}");
                    }
                };
                check(m, &ours.m, "m", &ours.m_absmax, dynamic_map_signed());
                check(v, &ours.v, "v", &ours.v_absmax, dynamic_map_unsigned());
            }
            if step == STEPS {
                values(&golden, "table", name, tensor.rate, ours);
            }
        });
    }
}

/// The comparison sees a wrong rate and a decay left out.
#[test]
fn a_wrong_rate_or_decay_is_seen() {
    let theirs = Golden::open().f32("search.whole.20.value");
    for wrong in [Tensor { rate: 1.01e-3, ..WHOLE }, Tensor { decay: 0.0, ..WHOLE }] {
        blockwise(&wrong, |step, ours| {
            if step == STEPS {
                let close = ours.value.iter().zip(&theirs).filter(|(a, b)| (*a - *b).abs() <= 1e-6).count();
                assert!(close < theirs.len() / 2, "{} {}: {close} of {} agree", wrong.rate, wrong.decay, theirs.len());
            }
        });
    }
}

/// Steps with a gradient of zero do not throw elements far away whose second moment is too small for the map.
#[test]
fn no_element_moves_further_than_adam_can() {
    for tensor in [RAGGED, WHOLE] {
        let start = tensor.start();
        blockwise(&tensor, |step, ours| {
            if step == STEPS {
                let moved = largest_difference(&ours.value, &start, tensor.rate);
                println!("{}: the furthest value moved {moved:.1} rates in {STEPS} updates", tensor.name);
                assert!(moved <= 2.0 * STEPS as f64, "{}: {moved}", tensor.name);
            }
        });
    }
}
