//! The fused linear layer against a plain f64 product of the same bf16 inputs and dequantised weights: an element-wise bound
//! derived from the roundings, and exact cases where no sum rounds, under every schedule.

#![allow(unsafe_code)]
#![cfg(any(feature = "emulation", feature = "cuda"))]

mod common;

use common::{DeviceWeight, Tally, device, set_schedule, to_bf16, weights};
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use qlora_kernels::cuda::linear::{
    Input, Lora, Path, Segment, Weight, forward, lora_columns, lora_down, path, workspace_len,
};
use qlora_kernels::cuda::nf4::Layout;
use qlora_kernels::cuda::{Buffer, Device};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::philox::Stream;

const SCHEDULES: u64 = 2;

/// What one segment is made of.
#[derive(Clone, Debug)]
struct Part {
    n: usize,
    r: usize,
    bias: bool,
    pad: usize,
}

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    k: usize,
    pad_x: usize,
    block_size: usize,
    dense: bool,
    transposed: bool,
    double_quant: bool,
    /// Codes 0, 7 and 15, absmax a power of two, small integers elsewhere: every product and sum is exact.
    exact: bool,
    parts: Vec<Part>,
    seed: u64,
}

struct Host {
    weight: Vec<f32>,
    nf4: Option<Nf4Matrix>,
    a: Vec<bf16>,
    b: Vec<bf16>,
    bias: Vec<bf16>,
    scale: f32,
}

fn integers(len: usize, most: u32, stream: &mut Stream) -> Vec<f32> {
    (0..len).map(|_| stream.below(2 * most + 1) as f32 - most as f32).collect()
}

fn values(len: usize, exact: bool, stream: &mut Stream) -> Vec<bf16> {
    let values =
        if exact { integers(len, 2, stream) } else { (0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect() };
    to_bf16(&values)
}

impl Case {
    fn host(&self) -> (Vec<bf16>, Vec<Host>) {
        let mut stream = Stream::new(self.seed, 2);
        let x = values(self.m * (self.k + self.pad_x), self.exact, &mut stream);
        let hosts = self.parts.iter().map(|part| {
            let len = part.n * self.k;
            let plain = if self.exact {
                let scale = [0.5, 1.0, 2.0][stream.below(3) as usize];
                // Every block has its largest magnitude, so that absmax is the power of two.
                (0..len).map(|i| if i % 32 == 0 { scale } else { (stream.below(3) as f32 - 1.0) * scale }).collect()
            } else {
                weights(len, stream.next_u32().into())
            };
            let nf4 = (!self.dense).then(|| {
                let double_quant = self.double_quant && !self.exact;
                Nf4Matrix::quantize(&plain, part.n, self.k, &Nf4Options { block_size: self.block_size, double_quant })
                    .unwrap()
            });
            let weight = nf4.as_ref().map_or(plain, Nf4Matrix::dequantize);
            // What the kernels multiply with: one rounding to bf16.
            let weight = to_bf16(&weight).iter().map(|w| w.to_f32()).collect();
            let scale = if self.exact { 0.5 } else { 1.5 };
            let a = if self.exact {
                // One feature a rank, so that S stays a small integer.
                let mut a = vec![bf16::ZERO; part.r * self.k];
                (0..part.r)
                    .for_each(|row| a[row * self.k + stream.below(self.k as u32) as usize] = bf16::from_f32(2.0));
                a
            } else {
                values(part.r * self.k, false, &mut stream)
            };
            let (b, bias) = (values(part.n * part.r, self.exact, &mut stream), values(part.n, self.exact, &mut stream));
            Host { weight, nf4, a, b, bias, scale }
        });
        let hosts = hosts.collect();
        (x, hosts)
    }
}

struct Uploaded {
    nf4: Option<DeviceWeight>,
    dense: Option<Buffer<bf16>>,
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    bias: Buffer<bf16>,
    y: Buffer<bf16>,
}

fn upload(device: &Device, case: &Case, part: &Part, host: &Host) -> Uploaded {
    let layout =
        if case.transposed && case.k.is_multiple_of(case.block_size) { Layout::Transposed } else { Layout::RowMajor };
    Uploaded {
        nf4: host.nf4.as_ref().map(|matrix| DeviceWeight::new(device, matrix, layout)),
        dense: case.dense.then(|| device.upload(&to_bf16(&host.weight)).unwrap()),
        a: device.upload(&host.a).unwrap(),
        b: device.upload(&host.b).unwrap(),
        bias: device.upload(&host.bias).unwrap(),
        y: device.upload(&vec![SENTINEL; case.m * (part.n + part.pad)]).unwrap(),
    }
}

const SENTINEL: bf16 = bf16::from_bits(0x4bcd);

/// What one run gave: S by `lora_down` and every y; and the path taken.
#[derive(Clone, Debug, PartialEq)]
struct Output {
    s: Vec<bf16>,
    y: Vec<Vec<bf16>>,
    path: Path,
}

fn run(device: &Device, case: &Case, x: &[bf16], hosts: &[Host], given_s: bool) -> Output {
    let x = device.upload(x).unwrap();
    let mut uploaded: Vec<Uploaded> =
        case.parts.iter().zip(hosts).map(|(part, host)| upload(device, case, part, host)).collect();
    let mut segments: Vec<Segment> = Vec::new();
    for ((part, host), buffers) in case.parts.iter().zip(hosts).zip(&mut uploaded) {
        let weight = match (&buffers.nf4, &buffers.dense) {
            (Some(nf4), _) => Weight::Nf4(nf4.weight()),
            (None, dense) => Weight::Dense(dense.as_ref().expect("one of the two").view()),
        };
        let lora =
            (part.r > 0).then(|| Lora { r: part.r, scale: host.scale, a: buffers.a.view(), b: buffers.b.view() });
        let bias = part.bias.then(|| buffers.bias.view());
        segments.push(Segment { n: part.n, weight, lora, bias, y: buffers.y.view_mut(), ldy: part.n + part.pad });
    }
    let mut input = Input { m: case.m, k: case.k, x: x.view(), ldx: case.k + case.pad_x, s: None };
    let mut s = device.upload(&vec![SENTINEL; case.m * lora_columns(&segments)]).unwrap();
    lora_down(&input, &mut segments, s.view_mut(), device.stream()).unwrap();
    if given_s {
        input.s = Some(s.view());
    }
    let mut workspace = device.upload(&vec![SENTINEL; workspace_len(&input, &segments)]).unwrap();
    let path = path(&input, &mut segments).unwrap();
    forward(&input, &mut segments, workspace.view_mut(), device.stream()).unwrap();
    let s = device.download(&s).unwrap();
    Output { s, y: uploaded.iter().map(|buffers| device.download(&buffers.y).unwrap()).collect(), path }
}

/// |found − expected| may be 2⁻⁸ of the value for its own rounding, and an f32 sum's error over the magnitudes that it adds.
fn check(case: &Case, x: &[bf16], hosts: &[Host], output: &Output) -> Result<(), TestCaseError> {
    let columns: usize = case.parts.iter().map(|part| part.r.next_multiple_of(8)).sum();
    let ldx = case.k + case.pad_x;
    let close = |found: bf16, expected: f64, magnitude: f64, terms: usize, what: String| {
        let found = f64::from(found.to_f32());
        let bound = 2f64.powi(-8) * expected.abs() + terms as f64 * 2f64.powi(-24) * magnitude + 1e-38;
        let right = if case.exact {
            found == f64::from(bf16::from_f64(expected).to_f32())
        } else {
            (found - expected).abs() <= bound
        };
        prop_assert!(right, "{what}: found {found}, expected {expected}, bound {bound}");
        Ok(())
    };
    let mut column = 0;
    for (part, (host, y)) in case.parts.iter().zip(hosts.iter().zip(&output.y)) {
        for token in 0..case.m {
            let x = &x[token * ldx..][..case.k];
            let dot = |w: &mut dyn Iterator<Item = f64>| {
                x.iter().zip(w).fold((0.0, 0.0), |(sum, magnitude), (x, w)| {
                    let product = f64::from(x.to_f32()) * w;
                    (sum + product, magnitude + product.abs())
                })
            };
            let s = &output.s[token * columns + column..][..part.r.next_multiple_of(8)];
            for (j, &found) in s.iter().enumerate() {
                if j >= part.r {
                    prop_assert_eq!(found.to_bits(), 0, "padding of S at token {}, column {}", token, j);
                    continue;
                }
                let (sum, magnitude) = dot(&mut host.a[j * case.k..][..case.k].iter().map(|a| f64::from(a.to_f32())));
                let scale = f64::from(host.scale);
                close(found, scale * sum, scale * magnitude, case.k + 1, format!("S[{token}, {j}]"))?;
            }
            for n in 0..part.n {
                let (mut sum, mut magnitude) =
                    dot(&mut host.weight[n * case.k..][..case.k].iter().map(|&w| f64::from(w)));
                // S as it was rounded: what follows is exact in it.
                for j in 0..part.r {
                    let product = f64::from(s[j].to_f32()) * f64::from(host.b[n * part.r + j].to_f32());
                    (sum, magnitude) = (sum + product, magnitude + product.abs());
                }
                if part.bias {
                    let bias = f64::from(host.bias[n].to_f32());
                    (sum, magnitude) = (sum + bias, magnitude + bias.abs());
                }
                let terms = case.k + part.r + 1;
                close(y[token * (part.n + part.pad) + n], sum, magnitude, terms, format!("Y[{token}, {n}]"))?;
            }
            let rest = &y[token * (part.n + part.pad) + part.n..][..part.pad];
            prop_assert!(rest.iter().all(|&y| y == SENTINEL), "columns past N of row {} were written", token);
        }
        column += part.r.next_multiple_of(8);
    }
    Ok(())
}

fn parts(most: usize) -> impl Strategy<Value = Vec<Part>> {
    let r = prop_oneof![Just(0usize), 1usize..20, Just(16usize), Just(64usize), 60usize..140, Just(256usize)];
    let part = (1usize..most, r, any::<bool>(), prop_oneof![Just(0usize), 1usize..9])
        .prop_map(|(n, r, bias, pad)| Part { n, r, bias, pad });
    prop::collection::vec(part, 1..4)
}

fn case(m: std::ops::Range<usize>, dense: bool, exact: bool) -> impl Strategy<Value = Case> {
    (m, 1usize..7, 0usize..2, any::<bool>(), any::<bool>(), parts(300), any::<u64>()).prop_map(
        move |(m, tiles, pad, transposed, double_quant, parts, seed)| Case {
            m,
            k: tiles * 64,
            pad_x: pad * 8,
            block_size: 64,
            dense,
            transposed,
            double_quant,
            exact,
            parts,
            seed,
        },
    )
}

/// K and ldx off the tile, other block sizes.
fn odd_case(dense: bool, exact: bool) -> impl Strategy<Value = Case> {
    (case(1..40, dense, exact), 1usize..200, 5u32..9).prop_map(|(case, k, log)| Case {
        k,
        pad_x: 1,
        block_size: 1 << log,
        ..case
    })
}

fn checked(name: &'static str, cases: u32, strategy: impl Strategy<Value = Case>, expected: Path) {
    let tally = Tally::new(name, SCHEDULES);
    let device = device();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&strategy, |case| {
        let (x, hosts) = case.host();
        set_schedule(case.seed);
        let output = run(&device, &case, &x, &hosts, false);
        prop_assert_eq!(output.path, expected);
        check(&case, &x, &hosts, &output)?;
        for schedule in 1..SCHEDULES {
            set_schedule(case.seed ^ schedule);
            let again = run(&device, &case, &x, &hosts, true);
            prop_assert_eq!(&again.s, &output.s, "another schedule, or S given, changed S");
            prop_assert_eq!(&again.y, &output.y, "another schedule, or S given, changed Y");
        }
        tally.case();
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn tensor_core_path_is_within_its_rounding() {
    checked("forward, tensor cores", 24, case(17..300, false, false), Path::TensorCore);
}

#[test]
fn tensor_core_path_is_exact_where_no_sum_rounds() {
    checked("forward, tensor cores, exact", 16, case(17..200, false, true), Path::TensorCore);
}

#[test]
fn dense_tensor_core_path_is_within_its_rounding() {
    checked("dense forward, tensor cores", 12, case(17..200, true, false), Path::TensorCore);
}

#[test]
fn dense_tensor_core_path_is_exact_where_no_sum_rounds() {
    checked("dense forward, tensor cores, exact", 12, case(17..200, true, true), Path::TensorCore);
}

#[test]
fn small_m_path_is_within_its_rounding() {
    checked("forward, M to 16", 32, case(1..17, false, false), Path::SmallM);
}

#[test]
fn small_m_path_is_exact_where_no_sum_rounds() {
    checked("forward, M to 16, exact", 32, case(1..17, false, true), Path::SmallM);
}

#[test]
fn dense_small_m_path_is_exact_where_no_sum_rounds() {
    checked("dense forward, M to 16, exact", 16, case(1..17, true, true), Path::SmallM);
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

/// The large tiles need a large product; their sums are those of the small ones, which a slice of the tokens takes.
#[test]
fn a_token_does_not_depend_on_the_tile_that_it_falls_in() {
    let device = device();
    let part = Part { n: 3001, r: 16, bias: true, pad: 7 };
    for dense in [false, true] {
        let large = Case {
            m: 1000,
            k: 192,
            pad_x: 0,
            block_size: 64,
            dense,
            transposed: true,
            double_quant: true,
            exact: false,
            parts: vec![part.clone()],
            seed: 5,
        };
        let (x, hosts) = large.host();
        let whole = run(&device, &large, &x, &hosts, false);
        let (first, tokens) = (333, 50);
        let small = Case { m: tokens, ..large.clone() };
        let slice = run(&device, &small, &x[first * 192..(first + tokens) * 192], &hosts, false);
        let ldy = part.n + part.pad;
        assert!(whole.y[0][first * ldy..(first + tokens) * ldy] == slice.y[0][..], "dense {dense}");
        assert_eq!(whole.s[first * 16..(first + tokens) * 16], slice.s[..]);
    }
}

/// What a kernel with a bug would compute, brought about through its inputs: the check must turn red in the bounded cases and in the exact
/// ones, on every path.
#[test]
fn swapped_nibbles_a_dropped_k_tail_and_a_wrong_rank_stride_are_seen() {
    let device = device();
    let part = Part { n: 40, r: 12, bias: true, pad: 0 };
    for (m, exact) in [(3, false), (3, true), (40, false), (40, true)] {
        let case = Case {
            m,
            k: 320,
            pad_x: 0,
            block_size: 64,
            dense: false,
            transposed: false,
            double_quant: true,
            exact,
            parts: vec![part.clone()],
            seed: 11,
        };
        let (x, hosts) = case.host();
        check(&case, &x, &hosts, &run(&device, &case, &x, &hosts, false)).expect("right inputs pass");
        let seen = |what: &str, x_run: &[bf16], run_hosts: &[Host]| {
            let output = run(&device, &case, x_run, run_hosts, false);
            assert!(check(&case, &x, &hosts, &output).is_err(), "{what} is not seen: M {m}, exact {exact}");
        };

        let (_, mut swapped) = case.host();
        let nf4 = swapped[0].nf4.take().unwrap();
        let codes = nf4.codes().iter().map(|byte| byte.rotate_left(4)).collect();
        let nf4 = Nf4Matrix::from_parts(40, 320, 64, *nf4.code(), codes, nf4.absmax().clone()).unwrap();
        swapped[0].nf4 = Some(nf4);
        seen("a swapped nibble", &x, &swapped);

        let mut no_tail = x.clone();
        no_tail.chunks_mut(320).for_each(|row| row[256..].fill(bf16::ZERO));
        seen("a dropped tile of K", &no_tail, &hosts);

        let (_, mut strided) = case.host();
        let b = &hosts[0].b;
        strided[0].b = (0..40 * 12).map(|i| b[(i / 12 * 16 + i % 12).min(b.len() - 1)]).collect();
        seen("a wrong stride of B", &x, &strided);

        let (_, mut truncated) = case.host();
        (0..40).for_each(|n| truncated[0].b[n * 12 + 11] = bf16::ZERO);
        seen("a dropped rank", &x, &truncated);
    }
}

#[test]
fn bad_operands_are_errors_that_say_what_was_expected() {
    let device = device();
    let buffer = |len: usize| device.upload(&vec![bf16::ZERO; len]).unwrap();
    let (x, w, a, b, mut y, mut none) =
        (buffer(4 * 64), buffer(8 * 64), buffer(2 * 64), buffer(8 * 2), buffer(4 * 8), buffer(0));
    let mut attempt = |m: usize, k: usize, n: usize, r: usize, ldy: usize| {
        let lora = Some(Lora { r, scale: 1.0, a: a.view(), b: b.view() });
        let mut segments = [Segment { n, weight: Weight::Dense(w.view()), lora, bias: None, y: y.view_mut(), ldy }];
        let input = Input { m, k, x: x.view(), ldx: k, s: None };
        forward(&input, &mut segments, none.view_mut(), device.stream()).unwrap_err().to_string()
    };
    assert!(attempt(4, 64, 8, 2, 8).contains("the workspace has 0 elements, expected at least 32"));
    assert!(attempt(5, 64, 8, 2, 8).contains("x has 256 elements, expected at least 5 rows of 64, 64 apart"));
    assert!(attempt(4, 64, 7, 2, 8).contains("the weight has 512 elements, expected 448"));
    assert!(attempt(4, 64, 8, 3, 8).contains("A has 128 elements, expected 192"));
    assert!(attempt(4, 64, 8, 300, 8).contains("the LoRA rank is 300, expected 1 to 256"));
    assert!(attempt(4, 64, 8, 2, 7).contains("y has a stride of 7, expected at least 8"));
}
