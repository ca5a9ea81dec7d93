//! Linear layers by weights that are dequantized and one product for each input and pass: `linear: dequantize`. In the
//! emulation a product on the host stands in place of cuBLASLt, so that all around it is what a GPU would run.

use crate::commands::{Directory, train as train_line};
use crate::runs::{Apart, Trained, largest, micro_batches, train, train_on};
use crate::sources::{
    ROOM, config, memory, on_device, small_config, spec, with_fused_projections, with_norms_after, with_norms_around,
};
use crate::training::{Bounds, on_cpu};
use lab::device::{Tally, set_schedule};
use qlora_kernels::ops::cublaslt::CublasLt;
use qlora_kernels::ops::dispatch::{Pass, Row};
use qlora_train::arch::{Arch, LayerArch, Projection};
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::run_shape::{LinearRows, RunShape};
use qlora_train::backend::{Memory as _, Quantization, Residency, StateFormat};
use qlora_train::config::Settings;
use qlora_train::files::tensor::StoredType;
use qlora_train::model::{Activations, ModelSpec};
use qlora_train::session::plan::{MemoryPlan, PlannedJob, TensorStorage, plan};
use qlora_train::session::{Budget, Device};
use trainer_lab::model::Documents;

/// A GPU may lack the library; then there is nothing to compare.
fn is_there() -> bool {
    let there = CublasLt::is_present();
    if !there {
        println!("not checked: there is no cuBLASLt");
    }
    there
}

fn dequantizing(spec: &ModelSpec) -> RunShape {
    let linear = LinearRows { forced: Some(Row::Dequantize), ..LinearRows::default() };
    RunShape { linear, ..spec.run_shape() }
}

fn on_rows(spec: &ModelSpec, steps: u64) -> (Trained, Cuda) {
    let mut cuda = Cuda::new(0, dequantizing(spec), &spec.arch, 2 * ROOM).unwrap();
    let trained = train(&mut cuda, &mut memory(&spec.arch), spec, steps);
    (trained, cuda)
}

/// Forward passes and dX that were computed by dequantizing, and by the fused kernels.
fn counts(cuda: &Cuda) -> [[usize; 2]; 2] {
    [Pass::Forward, Pass::Dx].map(|pass| [Row::Dequantize, Row::Fused].map(|row| cuda.count_of_linear(pass, row)))
}

/// Every way to hold weights, segments of one tensor, biases, an input that no norm makes, dropout: within the bounds
/// of the CPU backend and of the fused kernels. Dropout of a low-rank term leaves dX to those.
#[test]
fn a_step_of_dequantized_weights_gives_the_cpu_backends_gradients() {
    if !is_there() {
        return;
    }
    let tally = Tally::new("training, dequantized weights", 1);
    let nf4 = |block_size, double_quant| Quantization::Nf4 { block_size, double_quant };
    let biased = Arch { biases: Projection::ALL.into(), ..config() };
    let wide = Arch { head_dim: 128, num_heads: 2, num_kv_heads: 1, hidden_size: 136, ..config() };
    let windowed = vec![LayerArch { window: Some(9), ..config().layers[0].clone() }];
    let windowed = Arch { layers: windowed, ..biased.clone() };
    for (what, config, quantization, dropout) in [
        ("NF4, dropout", config(), nf4(64, true), 0.1),
        ("16-bit weights, biases", biased, Quantization::None, 0.0),
        ("NF4, biases and a window, blocks of 32", windowed, nf4(32, false), 0.0),
        ("blocks that straddle rows", wide, nf4(128, false), 0.1),
        ("norms of what branches give", with_norms_after(config()), nf4(128, true), 0.0),
        ("norms around branches, gelu", with_norms_around(config()), nf4(64, true), 0.0),
        ("fused projections, rotated in part", with_fused_projections(config()), nf4(64, false), 0.0),
    ] {
        let mut spec = ModelSpec { quantization, activations: Vec::new(), ..spec(config) };
        spec.lora.dropout = dropout;
        let expected = on_cpu(&spec, 1);
        let bounds = Bounds::measure(&spec, 1, &expected);
        let (found, cuda) = on_rows(&spec, 1);
        let [[forward, forward_fused], [dx, dx_fused]] = counts(&cuda);
        assert!(forward > 0 && forward_fused == 0, "{what}: {forward} {forward_fused}");
        let expected_of_dx = if dropout > 0.0 { dx == 0 && dx_fused > 0 } else { dx > 0 && dx_fused == 0 };
        assert!(expected_of_dx, "{what}: {dx} {dx_fused}");
        bounds.check(what, &Apart::of(&found, &expected));
        let fused = train(&mut on_device(&spec), &mut memory(&spec.arch), &spec, 1);
        bounds.check(&format!("{what}, and the fused kernels"), &Apart::of(&found, &fused));
        tally.case();
    }
}

/// A short run: losses, and what it learned.
#[test]
fn a_run_of_dequantized_weights_gives_the_cpu_backends_losses() {
    if !is_there() {
        return;
    }
    let tally = Tally::new("training, dequantized weights, 4 steps", 1);
    let mut spec = ModelSpec { states: StateFormat::Blockwise8, ..spec(config()) };
    spec.lora.dropout = 0.0;
    let expected = on_cpu(&spec, 4);
    let bounds = Bounds::measure(&spec, 4, &expected);
    let (found, _) = on_rows(&spec, 4);
    bounds.check("4 steps", &Apart::of(&found, &expected));
    let fused = train(&mut on_device(&spec), &mut memory(&spec.arch), &spec, 4);
    let apart = Apart::of(&found, &fused);
    bounds.check("4 steps, and the fused kernels", &apart);
    // Sums in another order round to another number here and there: the run is another one, and hardly.
    assert!(found != fused, "the row was not taken");
    println!("losses of the two rows are within {:.1e}", largest(&apart.losses));
    tally.case();
}

fn settings() -> Settings {
    Settings::from_yaml("linear: dequantize\ndevice: cuda\ndevice_memory: 40GiB\n", "rows.yaml", &[]).unwrap()
}

fn planned(spec: &ModelSpec) -> MemoryPlan {
    const BUDGET: Budget =
        Budget { limit: u64::MAX, in_use: 0, in_use_name: "", read_bytes: 0, host_limit: u64::MAX, sharers: 1 };
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let device = Device::choose_for_plan(&settings(), None).unwrap();
    plan(&device, spec, &stored, PlannedJob::Train, BUDGET).unwrap()
}

/// Activations kept, recomputed or in host memory, weights in host memory, batches in tiles, another schedule: the same
/// bits, in the memory that is planned, the operands of one product and the library's workspace among it.
#[test]
fn levers_give_the_same_bits_in_the_memory_that_is_planned() {
    if !is_there() {
        return;
    }
    use Activations::{Keep, Offload, Recompute};
    use Residency::{Device as OnDevice, Pinned};
    let tally = Tally::new("levers, dequantized weights", 4);
    let mut base = ModelSpec { tokens: 530, positions: 200, ..spec(Arch { num_layers: 2, ..small_config() }) };
    base.lora.dropout = 0.0;
    // Two tiles; what is not cut has few tokens, in as much memory.
    let lengths = |token_tile: Option<usize>| -> &'static [usize] {
        if token_tile.is_some() { &[100, 5, 150, 80, 194] } else { &[12, 7, 1] }
    };
    let run = |activations: [Activations; 2],
               residency: [Residency; 2],
               token_tile: Option<usize>,
               lengths: &[usize]| {
        let documents = Documents::random(lengths, base.arch.vocab_size, 3).weighted(4);
        let (activations, residency) = (activations.to_vec(), residency.to_vec());
        let spec = ModelSpec { activations, residency, token_tile, ..base.clone() };
        let plan = planned(&spec);
        for name in ["cuBLASLt's workspace", "dequantized weights of one product"] {
            assert!(plan.buffers.iter().any(|buffer| buffer.name == name && buffer.bytes > 0), "{:?}", plan.buffers);
        }
        let mut cuda = Cuda::new(0, dequantizing(&spec), &spec.arch, plan.run_bytes).unwrap();
        let trained = train_on(&mut cuda, &mut memory(&spec.arch), &spec, 1, &[documents.batch()]);
        assert_eq!(cuda.bytes(), plan.run_bytes, "{spec:?}");
        assert!(counts(&cuda).iter().all(|[dequantized, fused]| *dequantized > 0 && *fused == 0), "{spec:?}");
        trained
    };
    let [short, long] = [None, Some(512)].map(|tile| run([Keep; 2], [OnDevice; 2], None, lengths(tile)));
    for first in [&short, &long] {
        assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
    }
    let cases = [
        ([Recompute; 2], [OnDevice; 2], None),
        ([Recompute, Keep], [OnDevice; 2], Some(512)),
        ([Offload; 2], [Pinned; 2], None),
        ([Offload, Recompute], [Pinned; 2], Some(512)),
    ];
    for (seed, (activations, residency, token_tile)) in cases.into_iter().enumerate() {
        set_schedule(seed as u64);
        let first = if token_tile.is_some() { &long } else { &short };
        let found = run(activations, residency, token_tile, lengths(token_tile));
        assert!(*first == found, "{activations:?} {residency:?} {token_tile:?}");
        tally.case();
    }
}

/// Batches of few tokens, and a device without `dequantize`, neither plan nor take memory for it.
#[test]
fn what_is_not_dequantized_takes_no_memory_for_it() {
    let short = ModelSpec { tokens: 16, ..spec(small_config()) };
    let long = ModelSpec { tokens: 17, ..short.clone() };
    let is_line = |name: &str| name.contains("cuBLASLt") || name.contains("dequantized");
    let bytes = |spec: &ModelSpec| -> u64 {
        planned(spec).buffers.iter().filter(|buffer| is_line(&buffer.name)).map(|buffer| buffer.bytes).sum()
    };
    // Nothing but what lies between two buffers.
    assert!(bytes(&short) <= 256);
    assert!(bytes(&long) > 32 << 20);
    let [first, second] = micro_batches(long.arch.vocab_size);
    let mut cuda = on_device(&spec(small_config()));
    train_on(&mut cuda, &mut memory(&long.arch), &spec(small_config()), 1, &[first.batch(), second.batch()]);
    assert!(counts(&cuda).iter().all(|[dequantized, fused]| *dequantized == 0 && *fused > 0));
}

/// Inputs and gradients have room behind their rows, so that products copy none: what they are put together in does not
/// grow with the batch. The residual stream has none, where no norm stands between it and a linear layer.
#[test]
fn products_copy_no_input_that_a_norm_or_an_activation_made() {
    let bytes = |arch: Arch, tokens: usize| -> u64 {
        let plan = planned(&ModelSpec { tokens, ..spec(arch) });
        let line = plan.buffers.iter().find(|buffer| buffer.name == "dequantized weights of one product");
        line.expect("products are planned").bytes
    };
    assert_eq!(bytes(small_config(), 64), bytes(small_config(), 512));
    assert!(bytes(with_norms_after(small_config()), 64) < bytes(with_norms_after(small_config()), 512));
}

/// The setting is part of the run: it is recorded, resumed, and not exchanged for the other row.
#[test]
fn the_setting_is_said_recorded_and_kept() {
    if !is_there() {
        return;
    }
    let directory = Directory::small();
    let run = |out: &str, more: &str| directory.train(&format!("--output-dir {out} --device cuda {more}"));
    let errors = run("whole", "--linear dequantize");
    assert!(errors.contains("linear layers: dequantize + cuBLASLt"), "{errors}");
    // `auto` would say another row on a card that has one.
    assert!(!run("fused", "--linear fused").contains("linear layers:"));
    run("resumed", "--linear dequantize --resume-from-checkpoint whole/checkpoint-2");
    let adapter = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("resumed") && adapter("whole") != adapter("fused"));
    // Before anything was learned, the two differ by roundings alone.
    let [loss, fused] = ["whole", "fused"].map(|run| directory.losses(run)[0]);
    assert!((loss - fused).abs() < 2f64.powi(-8) * fused, "{loss} {fused}");
    let record = std::fs::read_to_string(directory.path("whole").join("run.json")).unwrap();
    assert!(record.contains("bf16, linear layers by dequantize + cuBLASLt"), "{record}");

    // Without a setting, a run resumes as it began.
    let errors = run("whole", "--resume-from-checkpoint true");
    let words = ["linear: dequantize, as the run in whole began", "this run is finished"];
    assert!(words.iter().all(|word| errors.contains(word)), "{errors}");

    let refused = |line: &str| {
        let output = directory.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {errors}");
        errors
    };
    let line = train_line("--output-dir fused --device cuda --linear dequantize --resume-from-checkpoint true");
    let errors = refused(&line);
    assert!(errors.contains("cuBLASLt"), "{errors}");
    let errors = refused(&train_line("--output-dir cpu --device cpu --linear fused"));
    assert!(errors.contains("`linear`: found fused, expected auto"), "{errors}");
}

/// The measurements of `bench` are printed by layer and pass.
#[test]
fn bench_says_what_computed_its_linear_layers() {
    let directory = Directory::new();
    let line = "bench --json --shape model/config.json --seq 30 --batch 2 --steps 1 --lora-r 8 --device cuda";
    let rows = |more: &str| -> Vec<String> {
        let (found, _) = directory.done(&format!("{line} {more}"));
        found["linear"].as_array().unwrap().iter().map(|row| row.as_str().unwrap().to_owned()).collect()
    };
    let fused = rows("");
    assert!(fused.len() == 8 && fused.iter().all(|row| row.ends_with(": fused")), "{fused:?}");
    if is_there() {
        let dequantized = rows("--linear dequantize");
        let of_library = dequantized.iter().filter(|row| row.ends_with(": dequantize + cuBLASLt"));
        assert_eq!(of_library.count(), 8, "{dequantized:?}");
        assert!(dequantized.iter().any(|row| row.starts_with("q_proj, k_proj, v_proj, N 512, K 192, dX")));
    }
}

/// Memory of another size leaves a plan with the linear layers of the GPU that is here, as a run on it has them.
#[test]
fn a_plan_without_a_name_has_the_rows_of_the_gpu_that_is_here() {
    let settings = |text: &str| Settings::from_yaml(text, "rows.yaml", &[]).unwrap();
    let run = Device::choose(&settings("device: cuda\n")).unwrap().arithmetic();
    let of_another = settings("device: cuda\ndevice_memory: 40GiB\n");
    let plan = |gpu: Option<&str>| Device::choose_for_plan(&of_another, gpu).unwrap().arithmetic();
    assert_eq!(plan(None), run);
    assert!(plan(Some("NVIDIA H100 80GB HBM3")).unwrap().contains("dequantize"));
    assert!(!plan(Some("NVIDIA GeForce RTX 4090")).unwrap().contains("dequantize"));
}
