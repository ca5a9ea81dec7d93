//! Passes that are launched as graphs: the bits are those of separate launches, over batches of changing shapes and
//! whatever comes between steps.
#![cfg(feature = "emulation")]

use crate::adalora::adalora;
use crate::commands::{Directory, train as train_line};
use crate::methods::both;
use crate::runs::{HYPER, Trained, train_each};
use crate::sources::{ROOM, memory, small_config, spec};
use crate::token_rows::with_rows;
use lab::device::Tally;
use qlora_kernels::device::emulation;
use qlora_kernels::ops::dispatch::Row;
use qlora_train::arch::Arch;
use qlora_train::backend::cuda::{Cuda, GraphCounts};
use qlora_train::backend::run_shape::LinearRows;
use qlora_train::backend::{Backend as _, Batch, Memory as _, StateFormat, TraceMode};
use qlora_train::model::generate::{Sampling, generate};
use qlora_train::model::optimizer_step::optimizer_step;
use qlora_train::model::{Activations, Llama, ModelSpec};
use trainer_lab::model::Documents;

fn opened(spec: &ModelSpec, row: Row, graphs: bool, is_late: bool) -> Cuda {
    let mut shape = spec.run_shape();
    (shape.graphs, shape.linear) = (graphs, LinearRows { forced: Some(row), ..LinearRows::default() });
    emulation::run_late(is_late);
    let cuda = Cuda::new(0, shape, &spec.arch, 2 * ROOM).unwrap();
    emulation::run_late(false);
    cuda
}

/// Documents of the micro-batches of each step. Those of 20 tokens are of two shapes: of up to two documents, and of
/// three or four.
const STEPS: [&[&[usize]]; 5] = [
    &[&[12, 5, 2, 1], &[10, 9]],
    &[&[9, 6, 2, 3], &[4, 15]],
    &[&[11, 8], &[9, 7, 4]],
    &[&[9, 11]],
    &[&[14, 2, 2, 2], &[10, 10]],
];

/// Recordings and launches of graphs in these steps: a part is recorded when it comes for the second time.
const COUNTED: (usize, usize) = (1 + 2 + 2 + 2, 5 + 5 + 1 + 5);

fn documents(spec: &ModelSpec) -> Vec<Vec<Documents>> {
    let mut seed = 0;
    let mut random = |lengths: &&[usize]| {
        seed += 1;
        Documents::random(lengths, spec.arch.vocab_size, seed)
    };
    STEPS.iter().map(|step| step.iter().map(&mut random).collect()).collect()
}

/// The run, what its graphs did, and the launches of kernels that were run.
fn trained(spec: &ModelSpec, row: Row, graphs: bool, is_late: bool) -> (Trained, GraphCounts, u64) {
    let documents = documents(spec);
    let batches: Vec<Vec<Batch>> = documents.iter().map(|step| step.iter().map(Documents::batch).collect()).collect();
    let steps: Vec<&[Batch]> = batches.iter().map(Vec::as_slice).collect();
    let launches = emulation::launches();
    let mut cuda = opened(spec, row, graphs, is_late);
    let found = train_each(&mut cuda, &mut memory(&spec.arch), spec, &HYPER, &steps);
    (found, cuda.graph_counts(), emulation::launches() - launches)
}

#[test]
fn steps_have_the_same_bits_and_few_launches() {
    let tally = Tally::new("training, graphs", 2);
    use Activations::{Keep, Recompute};
    let spec = ModelSpec { states: StateFormat::Blockwise8, ..spec(Arch { num_layers: 3, ..small_config() }) };
    assert!(spec.lora.dropout > 0.0);
    // A late stream shows more than one that works at once, which the first row has too.
    for (row, activations, streams) in
        [(Row::Fused, [Recompute; 3], &[false, true][..]), (Row::Dequantize, [Recompute, Keep, Keep], &[true][..])]
    {
        let spec = ModelSpec { activations: activations.to_vec(), ..spec.clone() };
        let (first, none, launches) = trained(&spec, row, false, false);
        assert_eq!(none, GraphCounts::default());
        assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
        for &is_late in streams {
            let (found, counts, launched) = trained(&spec, row, true, is_late);
            assert!(found == first, "{row}, late: {is_late}");
            assert_eq!((counts.recorded, counts.launched), COUNTED, "{row}, late: {is_late}");
            assert_eq!(launched, launches, "the same kernels");
            assert!(counts.nodes > 20 * counts.launched, "{counts:?}: many launches become one");
            tally.case();
        }
    }
}

/// Values that change between steps beside those of A and B: magnitudes and norms of rows, ranks that are cut, whole
/// modules, and rows of single tokens.
#[test]
fn steps_of_every_method_have_the_same_bits() {
    for (what, spec, row) in [
        ("magnitudes and whole modules", both(2), Row::Dequantize),
        ("ranks that are cut", adalora(small_config(), Some(5)), Row::Fused),
        ("rows of tokens", with_rows(small_config(), &["model.embed_tokens", "lm_head"]), Row::Fused),
    ] {
        let (first, ..) = trained(&spec, row, false, false);
        let (found, counts, _) = trained(&spec, row, true, true);
        assert!(found == first, "{what}");
        assert!(counts.recorded > 0 && counts.launched > counts.recorded, "{what}: {counts:?}");
    }
}

/// Shapes of which each comes more rarely than graphs are kept for are launched one by one: a recording takes longer.
#[test]
fn shapes_that_come_rarely_are_not_recorded() {
    let spec = ModelSpec { activations: Vec::new(), ..spec(small_config()) };
    let lengths: Vec<[usize; 1]> = (8..20).map(|length| [length]).collect();
    let documents: Vec<Documents> =
        (0..).zip(&lengths).map(|(seed, lengths)| Documents::random(lengths, spec.arch.vocab_size, seed)).collect();
    let batches: Vec<[Batch; 1]> = documents.iter().map(|documents| [documents.batch()]).collect();
    let twice: Vec<&[Batch]> = batches.iter().chain(&batches).map(|batch| batch.as_slice()).collect();
    let run = |steps: &[&[Batch]]| {
        let mut cuda = opened(&spec, Row::Fused, true, false);
        train_each(&mut cuda, &mut memory(&spec.arch), &spec, &HYPER, steps);
        cuda.graph_counts()
    };
    // The clearing alone, which is the same in each step.
    let counts = run(&twice);
    assert_eq!((counts.recorded, counts.launched), (1, twice.len() - 1));
    // One shape again and again.
    let counts = run(&[twice[0], twice[0], twice[0], twice[1]]);
    assert_eq!((counts.recorded, counts.launched), (3, 3 + 2 + 2));
}

/// Evaluations, answers, operations that are timed, and memory that stays in use between steps.
#[test]
fn steps_have_the_same_bits_whatever_comes_between_them() {
    let spec = spec(small_config());
    let documents = documents(&spec);
    let run = |graphs: bool| {
        let mut cuda = opened(&spec, Row::Fused, graphs, false);
        let mut model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
        let (mut found, mut held) = (Vec::new(), Vec::new());
        for step in 0..8u64 {
            let batches: Vec<Batch> = documents[step as usize % 2].iter().map(Documents::batch).collect();
            if step == 5 {
                cuda.set_trace(TraceMode::Times).unwrap();
            }
            let report = optimizer_step(&mut cuda, &mut model, &HYPER, step, batches.len(), 1.0, &batches).unwrap();
            if step == 5 {
                assert!(cuda.times().unwrap().iter().any(|time| time.name == "linear"));
                cuda.set_trace(TraceMode::Off).unwrap();
            }
            found.push((report.loss, report.grad_norm));
            match step {
                2 => found.push((model.loss(&mut cuda, &batches[0]).unwrap(), 0.0)),
                3 => {
                    let prompts = [vec![3, 14, 15, 9], vec![26]];
                    let sampling = Sampling::GREEDY;
                    let answers =
                        generate(&mut cuda, &model, &prompts, 4, &[], &sampling, &mut |_, _| Ok(true)).unwrap();
                    found.extend(answers.concat().into_iter().map(|token| (f64::from(token), 0.0)));
                }
                // Memory that is taken from now on lies elsewhere.
                4 => held.push(cuda.alloc("residual stream", spec.arch.hidden_size).unwrap()),
                _ => (),
            }
        }
        (found, model.param_values(&cuda).unwrap(), cuda.graph_counts())
    };
    let ((found, values, counts), (expected, expected_values, none)) = (run(true), run(false));
    assert_eq!(found, expected);
    assert!(values == expected_values);
    // Two shapes and the clearing, before the memory that stays in use and after.
    assert!(counts.recorded >= 2 * 5 && counts.launched > counts.recorded, "{counts:?}");
    assert_eq!(none, GraphCounts::default());
}

/// Whole runs with evaluations, one of them gone on with from a checkpoint of the other kind.
#[test]
fn commands_write_the_same_bytes() {
    let directory = Directory::small();
    let evaluated = "--device cuda --packing true --val-set-size 2 --eval-steps 1 --save-total-limit 0";
    let run = |out: &str, more: &str| directory.train(&format!("--output-dir {out} {evaluated} {more}"));
    let adapter = |out: &str| std::fs::read(directory.path(out).join("adapter_model.safetensors")).unwrap();
    run("plain", "--cuda-graphs off");
    let said = run("graphs", "--cuda-graphs on");
    assert!(said.contains("CUDA graphs: on (as asked"), "{said}");
    assert!(adapter("graphs") == adapter("plain"));
    assert_eq!(directory.losses("graphs"), directory.losses("plain"));
    run("resumed", "--cuda-graphs on --resume-from-checkpoint plain/checkpoint-2");
    assert!(adapter("resumed") == adapter("plain"));
}

#[test]
fn graphs_that_are_not_possible_are_refused() {
    let directory = Directory::small();
    for (more, words) in [
        ("--device cpu", "this run works on the CPU"),
        ("--device cuda --weights host", "base weights come from host memory"),
        ("--device cuda --lm-head host", "the output layer comes from host memory"),
        ("--device cuda --gradient-checkpointing offload", "inputs of layers wait in host memory"),
    ] {
        let output = directory.run(&train_line(&format!("--output-dir out --cuda-graphs on {more}")));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && errors.contains(words), "{more}: {errors}");
        assert!(errors.contains("`cuda_graphs`: found on, expected auto or off"), "{more}: {errors}");
    }
    assert!(!directory.path("out").exists());
}

/// Steps on random weights, of which each has the same shape.
#[test]
fn bench_takes_graphs_and_plans_their_memory() {
    let directory = Directory::small();
    let line = |graphs: &str| {
        format!("bench --json --shape model --seq 40 --steps 3 --lora-r 4 --device cuda --cuda-graphs {graphs}")
    };
    let [(on, said), (off, other)] = ["on", "off"].map(|graphs| directory.done(&line(graphs)));
    assert!(said.contains("CUDA graphs: on") && other.contains("CUDA graphs: off"), "{said}{other}");
    let [on, off] = [on, off].map(|found| found["device"]["planned_bytes"].as_u64().unwrap());
    assert!(on > off + (1 << 20), "{on} {off}");
}
