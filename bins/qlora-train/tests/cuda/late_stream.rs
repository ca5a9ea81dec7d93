//! Runs on a device that does the work of its streams when something waits for it: what the host, or another stream,
//! reads, writes or frees out of their order would be other bits. That such faults are seen is shown by the tests of
//! the kernels' package.
#![cfg(feature = "emulation")]

use crate::commands::{Directory, train as train_line};
use crate::runs::{Trained, train_short};
use crate::sources::{ROOM, memory, small_config, spec};
use lab::device::Tally;
use qlora_kernels::device::emulation;
use qlora_kernels::ops::dispatch::Row;
use qlora_train::arch::Arch;
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::run_shape::LinearRows;
use qlora_train::backend::{OptimizerOnHost, Residency, StateFormat};
use qlora_train::model::generate::{Sampling, generate};
use qlora_train::model::{Activations, Llama, ModelSpec};

fn opened(spec: &ModelSpec, row: Row, is_late: bool) -> Cuda {
    let mut shape = spec.run_shape();
    shape.linear = LinearRows { forced: Some(row), ..LinearRows::default() };
    emulation::run_late(is_late);
    let cuda = Cuda::new(0, shape, &spec.arch, 2 * ROOM).unwrap();
    emulation::run_late(false);
    cuda
}

fn trained(spec: &ModelSpec, row: Row, is_late: bool) -> Trained {
    train_short(&mut opened(spec, row, is_late), &mut memory(&spec.arch), spec, 2)
}

/// With everything on the device, and with layers' inputs, weights, the output layer, the optimizer's states and
/// master copies in host memory.
#[test]
fn steps_have_the_same_bits_where_work_is_done_as_late_as_it_may() {
    let tally = Tally::new("training, late streams", 2);
    use Activations::{Keep, Offload, Recompute};
    use OptimizerOnHost::{Nothing, States, StatesAndMasters};
    use Residency::{Device, Pinned};
    let spec = ModelSpec { states: StateFormat::Blockwise8, ..spec(Arch { num_layers: 3, ..small_config() }) };
    for row in [Row::Fused, Row::Dequantize] {
        let first = trained(&spec, row, false);
        assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
        let cases = [
            ([Recompute; 3], [Device; 4], Nothing),
            ([Keep; 3], [Device; 4], States),
            ([Offload; 3], [Pinned; 4], StatesAndMasters),
            ([Keep, Offload, Recompute], [Pinned, Device, Pinned, Device], Nothing),
        ];
        // The last two have every place of what linear layers read and write; states are updated in either row alike.
        let left_out = if row == Row::Fused { 0 } else { 2 };
        for (activations, residency, optimizer_on_host) in cases.into_iter().skip(left_out) {
            let (activations, residency) = (activations.to_vec(), residency.to_vec());
            let spec = ModelSpec { activations, residency, optimizer_on_host, ..spec.clone() };
            let (what, residency) = (&spec.activations, &spec.residency);
            assert!(first == trained(&spec, row, true), "{row}: {what:?}, {residency:?}, {optimizer_on_host:?}");
            tally.case();
        }
    }
}

#[test]
fn text_is_the_same_where_work_is_done_as_late_as_it_may() {
    let spec = ModelSpec { trainable: false, activations: Vec::new(), ..spec(small_config()) };
    let answers = |is_late| {
        let mut cuda = opened(&spec, Row::Fused, is_late);
        let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
        let prompts = [vec![3, 14, 15, 9], vec![26]];
        generate(&mut cuda, &model, &prompts, 6, &[], &Sampling::GREEDY, &mut |_, _| Ok(true)).unwrap()
    };
    let first = answers(false);
    assert!(first.iter().all(|answer| answer.len() == 6), "{first:?}");
    assert_eq!(first, answers(true));
}

/// A whole run with checkpoints and evaluations, and one whose gradients the stand-in for NCCL adds up.
#[test]
fn commands_write_the_same_bytes_where_work_is_done_as_late_as_it_may() {
    let directory = Directory::small();
    let run = |out: &str, variables: &[(&str, &str)]| {
        let line = train_line(&format!("--output-dir {out} --device cuda --val-set-size 2 --eval-steps 2"));
        let output = directory.run_with(&line, variables);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let late = ("QLORA_EMULATION_STREAM", "late");
    for (out, variables) in [("plain", vec![]), ("late", vec![late]), ("summed", vec![late, ("QLORA_SUMS", "nccl")])] {
        let (is_done, said) = run(out, &variables);
        assert!(is_done, "{out}: {said}");
        let adapter = |out: &str| std::fs::read(directory.path(out).join("adapter_model.safetensors")).unwrap();
        assert!(adapter("plain") == adapter(out), "{out}");
        assert_eq!(directory.losses("plain"), directory.losses(out), "{out}");
    }
    let (is_done, said) = run("other", &[("QLORA_EMULATION_STREAM", "early")]);
    assert!(!is_done && said.contains("QLORA_EMULATION_STREAM: \"early\", expected late"), "{said}");
}
