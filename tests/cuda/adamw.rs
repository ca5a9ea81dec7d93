//! The optimizer on the device against the plain Rust references, bit for bit, under every schedule.

use crate::property::checked;
use lab::adamw::{Described, OptimizerStep};
use lab::device::device;
use lab::operation::{Operation, run, verify};
use proptest::prelude::*;
use qlora_kernels::device::{Buffer, View, ViewMut};
use qlora_kernels::ops::adamw::{CHUNK, GradientState, STATE_LEN, States, Tensor, Tensors, rates};
use qlora_kernels::optim::AdamW;

const SCHEDULES: u64 = 3;

/// Sizes around blocks of 256 and chunks of 4096, and ragged ones.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..600, Just(255), Just(256), Just(4096), 4000usize..4400, 8000usize..9000]
}

fn steps() -> impl Strategy<Value = OptimizerStep> {
    let tensor = (sizes(), 0usize..2, any::<bool>(), any::<bool>())
        .prop_map(|(n, rate, blockwise, working)| Described { n, rate, blockwise, working });
    let clipping = prop_oneof![Just(0.0), Just(1e-3), Just(1e9)];
    (prop::collection::vec(tensor, 1..6), clipping, any::<u64>()).prop_map(|(tensors, max_norm, seed)| OptimizerStep {
        tensors,
        rates: vec![(1e-3, 0.0), (1.6e-2, 0.1)],
        max_norm,
        seed,
        bad: Vec::new(),
    })
}

#[test]
fn updates_and_norms_equal_the_reference_bit_for_bit() {
    checked("AdamW", SCHEDULES, 32, steps(), |step| step.seed);
}

fn example() -> OptimizerStep {
    let tensor = |n, rate, blockwise| Described { n, rate, blockwise, working: true };
    OptimizerStep {
        tensors: vec![tensor(300, 0, false), tensor(4500, 1, true), tensor(5000, 0, true), tensor(5, 1, false)],
        rates: vec![(1e-3, 0.0), (1.6e-2, 0.1)],
        max_norm: 1.0,
        seed: 7,
        bad: Vec::new(),
    }
}

/// The first tensor is named whatever the order of the faults, and nothing is updated.
#[test]
fn gradients_that_are_not_finite_name_their_tensor_and_stop_the_update() {
    let device = device();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for bad in [vec![(0, 0, value)], vec![(3, 4, value), (1, 4499, value)], vec![(2, 4096, value)]] {
            let step = OptimizerStep { bad, ..example() };
            verify(&device, &step, 1, 1).unwrap();
        }
    }
    // Squares beyond f32 are no fault: the norm is f64.
    let mut step = example();
    step.bad = vec![(1, 7, 3e38)];
    let inputs = step.inputs();
    let found = run(&device, &step, &inputs);
    step.bad.clear();
    step.check(&inputs, &found, usize::MAX).unwrap();
}

/// An optimizer that ignores a tensor's rate, its decay or the clipping would not pass.
#[test]
fn a_rate_that_is_ignored_is_seen() {
    let (device, step) = (device(), example());
    let inputs = step.inputs();
    let right = run(&device, &step, &inputs);
    step.check(&inputs, &right, usize::MAX).unwrap();
    let mut ignoring = step.clone();
    ignoring.tensors[1].rate = 0;
    assert!(step.check(&inputs, &run(&device, &ignoring, &inputs), usize::MAX).unwrap_err().contains("tensor 1"));
    let undecayed = OptimizerStep { rates: vec![(1e-3, 0.0), (1.6e-2, 0.0)], ..step.clone() };
    assert!(step.check(&inputs, &run(&device, &undecayed, &inputs), usize::MAX).unwrap_err().contains("tensor 1"));
    let unclipped = OptimizerStep { max_norm: 0.0, ..step.clone() };
    assert!(step.check(&inputs, &run(&device, &unclipped, &inputs), usize::MAX).unwrap_err().contains("scale"));
    let mut wrong = right;
    wrong.tensors[2][3][17] ^= 1;
    assert!(step.check(&inputs, &wrong, usize::MAX).unwrap_err().contains("tensor 2, part 3, element 17"));
}

/// With f32 states and the second rate.
fn described<'a>(
    value: &'a mut Buffer<f32>,
    gradient: View<'a, f32>,
    m: &'a mut Buffer<f32>,
    v: &'a mut Buffer<f32>,
) -> Tensor<'a> {
    let states = States::F32 { m: m.view_mut(), v: v.view_mut() };
    Tensor { value: value.view_mut(), working: None, gradient, states, rate: 1 }
}

/// Moments that come to the device part by part, alone or with the master copy: the norm needs neither, and the parts
/// have the bits of the whole.
#[test]
fn a_tensor_whose_moments_come_in_parts_is_updated_as_the_whole_is() {
    let (device, n) = (device(), 2 * CHUNK + 300);
    let stream = device.stream();
    let numbers = |seed: usize| (0..n).map(|i| ((i * 37 + seed) % 101) as f32 * 0.01 - 0.5).collect::<Vec<f32>>();
    let gradient = device.upload(&numbers(5)).unwrap();
    let rate = AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1, step: 1 };
    let rates = device.upload(&rates(&[rate])).unwrap();
    let run = |cuts: &[usize], has_value: bool| {
        let mut value = device.upload(&numbers(1)).unwrap();
        let mut state = device.upload(&[0u64; STATE_LEN]).unwrap();
        let view = if has_value { value.view_mut() } else { ViewMut::default() };
        let states = States::Elsewhere;
        let tensor = Tensor { value: view, working: None, gradient: gradient.view(), states, rate: 0 };
        let mut whole = Tensors::new(vec![tensor]).unwrap();
        let table = device.upload(&whole.table().unwrap()).unwrap();
        let mut room = device.upload(&vec![0u64; whole.workspace_len()]).unwrap();
        let to = state.view_mut();
        whole.gradient_norm(table.view(), rates.view(), 0.5, to, room.view_mut(), stream).unwrap();
        let error = whole.update(table.view(), rates.view(), None, stream).unwrap_err().to_string();
        assert!(error.contains("QK_ERROR_NULL_POINTER"), "{error}");
        drop(whole);
        let mut moments = [Vec::new(), Vec::new()];
        for part in cuts.windows(2) {
            let (start, end) = (part[0], part[1]);
            let mut states = [(); 2].map(|()| device.zeros::<f32>(end - start).unwrap());
            let [m, v] = &mut states;
            let tensor = Tensor {
                value: value.view_mut().skip(start).first(end - start),
                working: None,
                gradient: gradient.view().skip(start).first(end - start),
                states: States::F32 { m: m.view_mut(), v: v.view_mut() },
                rate: 0,
            };
            let mut part = Tensors::new(vec![tensor]).unwrap();
            let table = device.upload(&part.table().unwrap()).unwrap();
            part.update(table.view(), rates.view(), Some(state.view()), stream).unwrap();
            drop(part);
            for (all, of_part) in moments.iter_mut().zip(&states) {
                all.extend(device.download(of_part).unwrap());
            }
        }
        (device.download(&value).unwrap(), moments, device.download(&state).unwrap())
    };
    let cuts = [0, CHUNK, 2 * CHUNK, n];
    let (whole, in_parts) = (run(&[0, n], true), run(&cuts, true));
    let expected = numbers(5).iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let norm = GradientState::from_words([whole.2[0], whole.2[1]]).norm;
    assert!((norm / expected - 1.0).abs() < 1e-12 && expected > 0.5, "{norm} {expected}");
    assert!(in_parts == run(&cuts, false));
    assert!(whole == in_parts && whole.0 != numbers(1) && whole.1[1].iter().any(|&v| v > 0.0));
}

#[test]
fn bad_arguments_are_errors_that_say_what_was_expected() {
    let device = device();
    let floats = || device.upload(&[0.0f32; 100]).unwrap();
    let (mut value, gradient, mut m, mut v) = (floats(), floats(), floats(), floats());
    let short = device.upload(&[0.0f32; 99]).unwrap();
    let error = Tensors::new(Vec::new()).unwrap_err().to_string();
    assert!(error.contains("no tensors"), "{error}");
    let tensor = described(&mut value, short.view(), &mut m, &mut v);
    let error = Tensors::new(vec![tensor]).unwrap_err().to_string();
    assert!(error.contains("the gradient of tensor 0 has 99 elements, expected 100"), "{error}");
    let tensor = Tensor { value: ViewMut::default(), ..described(&mut value, gradient.view(), &mut m, &mut v) };
    let error = Tensors::new(vec![tensor]).unwrap_err().to_string();
    assert!(error.contains("tensor 0 has no element"), "{error}");
    let tensor = described(&mut value, gradient.view(), &mut m, &mut v);
    let mut tensors = Tensors::new(vec![tensor]).unwrap();
    let table = device.upload(&tensors.table().unwrap()).unwrap();
    let one = AdamW { learning_rate: 1.0, beta1: 0.9, beta2: 0.9, epsilon: 1e-8, weight_decay: 0.0, step: 1 };
    let (one, two) = (device.upload(&rates(&[one])).unwrap(), device.upload(&rates(&[one, one])).unwrap());
    let stream = device.stream();
    let error = tensors.update(table.view(), one.view(), None, stream).unwrap_err().to_string();
    assert!(error.contains("the rates have 8 values, expected 8 for each of 2 rates"), "{error}");
    tensors.update(table.view(), two.view(), None, stream).unwrap();
    let mut state = device.upload(&[0u64; STATE_LEN]).unwrap();
    let mut workspace = device.upload(&[0u64; 2]).unwrap();
    let (to, room) = (state.view_mut(), workspace.view_mut());
    let error = tensors.gradient_norm(table.view(), two.view(), 1.0, to, room, stream).unwrap_err().to_string();
    assert!(error.contains("the workspace has 2 elements, expected 1"), "{error}");
}
