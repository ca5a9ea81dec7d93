use super::*;
use crate::arch::Arch;
use crate::arch::Projection;
use crate::backend::Paging;
use crate::backend::cpu::Precision;
use crate::base::synthetic::tiny_arch;
use crate::config::{self, Bytes};
use crate::files::tensor::StoredType;
use crate::lora::{LoraKind, LoraSpec};
use crate::session::advice::{Asked, longest_row};
use crate::session::plan::refuse_unless_it_fits;
use crate::session::predicted::states_note;

const LAYERS: usize = 9;

fn spec() -> ModelSpec {
    let config = Arch { num_layers: LAYERS, ..tiny_arch() };
    let lora = LoraSpec::uniform(&config, &Projection::ALL, 4, 4.0, 0.0);
    ModelSpec { trainable: true, ..ModelSpec::new(lora, config, Quantization::NF4, 500) }
}

fn stored(_name: &str) -> TensorStorage {
    TensorStorage { dtype: StoredType::Bf16, resident_as: None }
}

fn budget(limit: u64) -> Budget {
    Budget { limit, in_use: 0, in_use_name: "", read_bytes: 0, host_limit: u64::MAX, sharers: 1 }
}

fn bytes(activations: Activations, kept: usize) -> u64 {
    let spec = ModelSpec { activations: activations.keeping(kept, LAYERS), ..spec() };
    plan(&Device::Cpu(Precision::F32), &spec, &stored, PlannedJob::Train, budget(u64::MAX)).unwrap().peak_bytes()
}

fn stored_in_nf4(_name: &str) -> TensorStorage {
    TensorStorage { dtype: StoredType::Bf16, resident_as: Some(Quantization::NF4) }
}

/// Weights are left on disk where there is not the memory for them, and only there.
#[test]
fn weights_stay_on_disk_where_they_do_not_fit() {
    let device = Device::Cpu(Precision::F32);
    let at = |weights, limit| {
        let mut spec = spec();
        let levers = Levers { weights, checkpointing: Checkpointing::On, ..Levers::AUTO };
        let plan = choose(&device, &mut spec, levers, &stored_in_nf4, budget(limit)).unwrap();
        (spec.is_streamed(), plan.fits(), plan.peak_bytes())
    };
    let (_, _, resident) = at(WeightResidency::Resident, 0);
    let (streamed, _, disk) = at(WeightResidency::Disk, 0);
    assert!(streamed && disk < resident, "{disk} {resident}");
    for (limit, expected) in [(u64::MAX, false), (resident, false), (resident - 1, true), (disk, true)] {
        let (streamed, fits, peak) = at(WeightResidency::Auto, limit);
        assert!(fits && streamed == expected && peak <= limit, "{limit}: {streamed} {fits} {peak}");
    }
    assert!(!at(WeightResidency::Auto, disk - 1).1);
    assert!(!at(WeightResidency::Resident, resident - 1).1);
    let levers = |weights| Levers { weights, ..Levers::AUTO };
    let mut short = ModelSpec { tokens: 200, positions: 200, ..spec() };
    let least = choose(&device, &mut short, levers(WeightResidency::Disk), &stored_in_nf4, budget(0)).unwrap();
    let limit = budget(least.peak_bytes());
    let longest = |weights| {
        let (device, spec, levers) = (&device, &short, levers(weights));
        longest_row(&Asked { device, spec, levers, stored: &stored_in_nf4, budget: limit, rows: 1 }).unwrap()
    };
    assert_eq!(longest(WeightResidency::Auto), 200);
    assert!(longest(WeightResidency::Resident) < 200);
    let disk = levers(WeightResidency::Disk);
    // What needs them otherwise than layer by layer keeps them in memory, and no other file of the base would help.
    let mut dora = spec();
    dora.lora.terms.values_mut().for_each(|term| term.kind = LoraKind::Dora);
    let mut pissa = spec();
    pissa.lora.init = config::InitLora::Pissa;
    let held = ModelSpec { quantization: Quantization::None, ..spec() };
    for (spec, told) in [(&dora, "`use_dora`"), (&pissa, "`init_lora_weights`"), (&held, "`quantization: none`")] {
        let refused = residencies(&device, spec, disk, &stored).unwrap_err().to_string();
        assert!(refused.contains(told) && !refused.contains("quantized_cache"), "{refused}");
    }
    assert!(residencies(&device, &dora, disk, &stored_in_nf4).unwrap_err().to_string().contains("`use_dora`"));
    let places = residencies(&device, &dora, levers(WeightResidency::Auto), &stored_in_nf4).unwrap();
    assert!(places.iter().all(|place| place[..LAYERS] == [Residency::Device; LAYERS]), "{places:?}");
    // Magnitudes of modules that are not in NF4 do not read the ones that are.
    let first_in_nf4 = |name: &str| if name.contains(".0.") { stored_in_nf4(name) } else { stored(name) };
    dora.lora.terms.retain(|module, _| !module.contains(".0."));
    assert!(residencies(&device, &dora, disk, &first_in_nf4).is_ok());
    let refused = residencies(&device, &spec(), disk, &stored).unwrap_err().to_string();
    assert!(refused.contains("quantize"), "{refused}");
    let refused = residencies(&Device::unopened(0), &spec(), disk, &stored_in_nf4).unwrap_err().to_string();
    assert!(refused.contains("GPU"), "{refused}");
}

/// An output layer that is large beside what layers need waits where it does not fit, and costs its copy.
#[test]
fn an_output_layer_waits_in_host_memory_where_it_does_not_fit() {
    let device = Device::unopened(0);
    let arch = Arch { head_dim: 64, vocab_size: 4096, ..spec().arch };
    // Tokens that need as much in a layer as the output layer has.
    let spec = ModelSpec { arch, tokens: 3000, positions: 3000, ..spec() };
    let at = |head, limit| {
        let mut spec = spec.clone();
        let (checkpointing, weights) = (Checkpointing::On, WeightResidency::Resident);
        let states = StateResidency::Resident;
        let levers = Levers { checkpointing, weights, head, states, token_tile: TokenTile::Off };
        let plan = choose(&device, &mut spec, levers, &stored, budget(limit)).unwrap();
        (Speed::of(&device).step_seconds(&spec, &plan), spec, plan)
    };
    let [resident, host] = [HeadResidency::Resident, HeadResidency::Host].map(|head| at(head, 0));
    let (peak, least) = (resident.2.peak_bytes(), host.2.peak_bytes());
    assert!(!resident.1.head_waits() && host.1.head_waits() && least < peak, "{least} {peak}");
    // The device has them only while the loss is computed.
    let bytes = (2 * spec.arch.vocab_size * spec.arch.hidden_size) as u64;
    assert_eq!((resident.2.weights_on_host, host.2.weights_on_host), (0, bytes));
    assert!((host.0 - resident.0 - bytes as f64 / 16e9).abs() < 1e-9, "{} {}", host.0, resident.0);
    for (limit, waits) in [(u64::MAX, false), (peak, false), (peak - 1, true), (least, true)] {
        let (_, spec, plan) = at(HeadResidency::Auto, limit);
        assert!(plan.fits() && spec.head_waits() == waits, "{limit} of {peak} and {least}");
        assert_eq!(head_note(&spec, &stored, &plan).unwrap().is_some(), waits);
    }
    assert!(!at(HeadResidency::Auto, least - 1).2.fits() && !at(HeadResidency::Resident, peak - 1).2.fits());
    let note = head_note(&host.1, &stored, &host.2).unwrap().unwrap();
    let saved = format!("lm_head: host (−{}, +", format_bytes(peak - least));
    assert!(note.starts_with(&saved) && note.ends_with("% time)"), "{note}");
    // The embedding's rows are where they are in either case.
    let arch = Arch { tie_word_embeddings: true, ..spec.arch.clone() };
    let tied = ModelSpec { arch, ..spec.clone() };
    let levers = |head| Levers { head, ..Levers::AUTO };
    let [resident, host] = [HeadResidency::Resident, HeadResidency::Host].map(|head| {
        let mut spec = tied.clone();
        choose(&device, &mut spec, levers(head), &stored, budget(u64::MAX)).unwrap()
    });
    assert_eq!((host.host_bytes() - resident.host_bytes(), host.weights_on_host), (bytes, 0));
    // A trained output layer stays.
    let refused = |device: &Device, spec: &ModelSpec| {
        residencies(device, spec, levers(HeadResidency::Host), &stored).unwrap_err().to_string()
    };
    for module in ["lm_head", "model.embed_tokens"] {
        for is_whole in [true, false] {
            let mut trained = tied.clone();
            match is_whole {
                true => _ = trained.lora.whole.insert(module.to_owned()),
                false => _ = trained.lora.tokens.insert(module.to_owned(), vec![3, 5]),
            }
            let places = residencies(&device, &trained, Levers::AUTO, &stored).unwrap();
            assert!(places.iter().all(|place| place.last() == Some(&Residency::Device)), "{module}");
            assert!(refused(&device, &trained).contains("`modules_to_save`"), "{module}");
        }
    }
    assert!(refused(&Device::Cpu(Precision::F32), &spec).contains("the CPU computes"));
}

/// Plans that are left out of the search would be no faster, whichever levers are set.
#[test]
fn the_fastest_of_all_that_fits_is_found() {
    const LAYERS: usize = 5;
    let device = Device::unopened(0);
    let arch = Arch { num_layers: LAYERS, hidden_size: 512, intermediate_size: 1792, ..spec().arch };
    let arch = Arch { num_heads: 8, num_kv_heads: 2, head_dim: 64, vocab_size: 128_000, ..arch };
    let lora = LoraSpec::uniform(&arch, &Projection::ALL, 64, 64.0, 0.0);
    let spec = ModelSpec { arch, lora, tokens: 6144, positions: 6144, ..spec() };
    let of = |&on_host: &OptimizerOnHost| [Activations::Recompute, Activations::Offload].map(|of| (of, on_host));
    let what: Vec<_> = Levers::AUTO.states(&device).unwrap().iter().flat_map(of).collect();
    for head in [HeadResidency::Auto, HeadResidency::Host] {
        let levers = Levers { head, ..Levers::AUTO };
        let (mut all, mut limits) = (Vec::new(), Vec::new());
        let places = residencies(&device, &spec, levers, &stored).unwrap();
        let tiles = levers.tiles(spec.tokens);
        for (residency, token_tile) in places.iter().flat_map(|place| tiles.iter().map(move |&tile| (place, tile))) {
            for &(others, optimizer_on_host) in &what {
                // A layer more takes more memory.
                let mut bytes = 0;
                for kept in 0..=LAYERS {
                    let (residency, activations) = (residency.clone(), others.keeping(kept, LAYERS));
                    let spec = ModelSpec { residency, activations, optimizer_on_host, token_tile, ..spec.clone() };
                    let plan = plan(&device, &spec, &stored, PlannedJob::Train, budget(u64::MAX)).unwrap();
                    bytes = plan.peak_bytes().max(bytes);
                    all.push((bytes, Speed::of(&device).step_seconds(&spec, &plan)));
                    if spec.pinned_layers() == LAYERS
                        && token_tile.is_none()
                        && optimizer_on_host == OptimizerOnHost::Nothing
                    {
                        limits.push(bytes);
                    }
                }
            }
        }
        assert!(limits.len() > LAYERS);
        for limit in limits {
            let fitting = all.iter().filter(|(bytes, _)| *bytes <= limit);
            let fastest = fitting.map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
            let mut spec = spec.clone();
            let plan = choose(&device, &mut spec, levers, &stored, budget(limit)).unwrap();
            let seconds = Speed::of(&device).step_seconds(&spec, &plan);
            assert!(plan.fits() && seconds <= fastest * (1.0 + 1e-9), "{head:?}, {limit}: {seconds} {fastest}");
        }
    }
}

/// The bound by which a search is cut short holds for inputs in memory that is not pinned too, whose copies take longer
/// than all that is computed.
#[test]
fn no_step_takes_less_than_the_bound_where_more_layers_keep_their_activations() {
    let settings = Settings {
        device: Some(config::Device::Cuda(99)),
        device_memory: Some(Bytes(40 << 30)),
        pinned_memory: Some(Bytes(1)),
        ..Settings::default()
    };
    let unpinned = Device::choose_for_plan(&settings, None).unwrap();
    let spec = ModelSpec { arch: Arch { head_dim: 64, ..spec().arch }, ..spec() };
    for device in [Device::unopened(0), unpinned] {
        let mut search = Search::new(&device, &spec, &stored, budget(u64::MAX), true);
        for others in [Activations::Recompute, Activations::Offload] {
            let start = search.keeping(&spec, others, 0).unwrap();
            let are_pinned = device.pinned_limit().is_none() || others == Activations::Recompute;
            assert_eq!(start.plan.unpinned_bytes() == 0, are_pinned, "{others:?}");
            let least = search.least_seconds(&spec, &start.plan, 0, 0);
            for kept in 1..=LAYERS {
                let seconds = search.keeping(&spec, others, kept).unwrap().seconds;
                assert!(0.0 < least && least <= seconds, "{others:?}, {kept} kept: {least} {seconds}");
            }
        }
    }
}

/// States wait where they do not fit, and master copies where that is not enough; they cost one copy each way at the
/// same time.
#[test]
fn states_and_masters_wait_in_host_memory_where_they_do_not_fit() {
    let device = Device::unopened(0);
    let arch = Arch { head_dim: 64, ..spec().arch };
    let lora = LoraSpec::uniform(&arch, &Projection::ALL, 64, 64.0, 0.0);
    let spec = ModelSpec { arch, lora, ..spec() };
    let at = |states, limit| {
        let mut spec = spec.clone();
        let (checkpointing, weights) = (Checkpointing::On, WeightResidency::Resident);
        let levers =
            Levers { checkpointing, weights, head: HeadResidency::Resident, states, token_tile: TokenTile::Off };
        let plan = choose(&device, &mut spec, levers, &stored, budget(limit)).unwrap();
        (Speed::of(&device).step_seconds(&spec, &plan), spec, plan)
    };
    use StateResidency::{Auto, Host, HostWithMasters, Resident};
    let [resident, host, with_masters] = [Resident, Host, HostWithMasters].map(|states| at(states, 0));
    let [most, peak, least] = [&resident, &host, &with_masters].map(|(.., plan)| plan.peak_bytes());
    assert!(resident.1.paging().is_none());
    for (found, before) in [(&host, most), (&with_masters, peak)] {
        let Paging { bytes, .. } = found.1.paging().unwrap();
        let here = found.2.peak_bytes();
        assert!(here + bytes / 5 < before, "{here} {before} {bytes}");
        assert!((found.0 - resident.0 - bytes as f64 / 16e9).abs() < 1e-9, "{} {}", found.0, resident.0);
        let pinned = found.2.host_bytes() - resident.2.host_bytes();
        assert!((bytes..bytes + bytes / 4).contains(&pinned), "{pinned} {bytes}");
    }
    let paging = |states: u64| Some(Paging::new(4 * states * spec.trained_parameters(), states == 3));
    assert_eq!((host.1.paging(), with_masters.1.paging()), (paging(2), paging(3)));
    use OptimizerOnHost::{Nothing, States, StatesAndMasters};
    for (limit, waits) in [
        (u64::MAX, Nothing),
        (most, Nothing),
        (most - 1, States),
        (peak, States),
        (peak - 1, StatesAndMasters),
        (least, StatesAndMasters),
    ] {
        let (_, spec, plan) = at(Auto, limit);
        assert!(plan.fits() && spec.optimizer_on_host == waits, "{limit} of {least}, {peak} and {most}");
        let note = states_note(&spec, limit).unwrap_or_default();
        assert_eq!((note.is_empty(), note.contains("master")), (waits == Nothing, waits == StatesAndMasters), "{note}");
    }
    assert!(!at(Auto, least - 1).2.fits() && !at(Host, peak - 1).2.fits() && !at(Resident, most - 1).2.fits());
    // States that save hardly anything are not told of.
    let few = |of: &[Projection], r| {
        let lora = LoraSpec::uniform(&spec.arch, of, r, 1.0, 0.0);
        ModelSpec { lora, optimizer_on_host: States, ..spec.clone() }
    };
    let (little, nothing) = (few(&Projection::ALL, 4), few(&[Projection::Q], 1));
    let Paging { bytes, piece, .. } = little.paging().unwrap();
    let saved = bytes - 2 * piece as u64;
    assert!((1000..1 << 20).contains(&saved), "{saved}");
    let told = [saved, saved + 1, 24 << 20].map(|part| states_note(&little, 1000 * part).is_some());
    assert_eq!((told, states_note(&nothing, 1)), ([true, false, false], None));
    for states in [Host, HostWithMasters] {
        let on_cpu = Levers { states, ..Levers::AUTO }.states(&Device::Cpu(Precision::F32));
        let errors = on_cpu.unwrap_err().to_string();
        assert!(errors.contains("the CPU updates") && errors.contains(&format!("found {},", states.name())));
    }
}

/// The peak is that of reading the rows, where it is the higher one, and then only less to read helps.
#[test]
fn reading_counts_where_it_takes_more_than_the_run() {
    let spec = ModelSpec { activations: Activations::Recompute.keeping(0, LAYERS), ..spec() };
    let at = |limit, read_bytes| {
        // What saving takes of it is a part of the plan.
        let budget = Budget { read_bytes: read_bytes + Budget::SAVING_ON_HOST, ..budget(limit) };
        plan(&Device::Cpu(Precision::F32), &spec, &stored, PlannedJob::Train, budget).unwrap()
    };
    let run = at(u64::MAX, 0).peak_bytes();
    for (read, peak) in [(0, run), (run, run), (run + 1, run + 1), (3 * run, 3 * run)] {
        let plan = at(u64::MAX, read);
        let sum: u64 = plan.buffers.iter().map(|buffer| buffer.bytes).sum();
        assert_eq!((plan.peak_bytes(), sum), (peak, peak), "{read}");
        assert!(at(peak, read).fits() && !at(peak - 1, read).fits(), "{read}");
    }
    let refused = |limit, read| refuse_unless_it_fits(&at(limit, read), 500, "advice").unwrap_err().to_string();
    let (reading, running) = (refused(2 * run, 3 * run), refused(run - 1, 0));
    assert!(reading.contains("reading the tokenizer and the rows takes"), "{reading}");
    assert!(running.contains("the run needs") && running.contains("(short by 1 byte)"), "{running}");
    assert!(running.contains("advice"), "{running}");
}

/// With every amount of memory the planner keeps as many of the last layers as fit, and computes the others again.
#[test]
fn as_many_layers_keep_their_activations_as_fit() {
    let (most, least) = (bytes(Activations::Keep, 0), bytes(Activations::Recompute, 0));
    assert!(least < most, "{least} {most}");
    let mut flops = f64::INFINITY;
    for kept in [0, 1, 4, LAYERS - 1, LAYERS] {
        let limit = bytes(Activations::Recompute, kept);
        let mut spec = spec();
        let plan = choose(&Device::Cpu(Precision::F32), &mut spec, Levers::AUTO, &stored, budget(limit)).unwrap();
        let counts = spec.activation_counts();
        assert!(plan.fits() && plan.peak_bytes() == limit && counts.keep >= kept, "{kept}: {counts}");
        assert!(spec.activations[LAYERS - counts.keep..].iter().all(|&layer| layer == Activations::Keep));
        if counts.keep < LAYERS {
            assert!(bytes(Activations::Recompute, counts.keep + 1) > limit, "{counts}");
        }
        assert!(plan.flops < flops || counts.keep == 1, "{kept}: {} {flops}", plan.flops);
        flops = plan.flops;
    }
    let mut spec = spec();
    let levers = Levers { checkpointing: Checkpointing::On, head: HeadResidency::Resident, ..Levers::AUTO };
    let refused = choose(&Device::Cpu(Precision::F32), &mut spec, levers, &stored, budget(least - 1)).unwrap();
    assert!(!refused.fits() && refused.peak_bytes() == least);
}

/// Every budget gets a plan that is within it, or one that does not fit; of two that fit, the one with more memory
/// is no slower, whichever memory it has more of.
#[test]
fn no_plan_exceeds_its_budget_and_more_memory_never_makes_a_run_slower() {
    const STEPS: u64 = 4;
    for (device, tokens) in
        [(Device::Cpu(Precision::F32), 1500), (Device::unopened(0), 700), (Device::unopened(0), 3000)]
    {
        let arch = Arch { head_dim: 64, ..spec().arch };
        let spec = ModelSpec { arch, tokens, positions: tokens, ..spec() };
        let planned = |limit, host_limit| {
            let (mut spec, budget) = (spec.clone(), Budget { host_limit, ..budget(limit) });
            let plan = choose(&device, &mut spec, Levers::AUTO, &stored_in_nf4, budget).unwrap();
            let seconds = Speed::of(&device).step_seconds(&spec, &plan);
            (plan, seconds)
        };
        let (most, least) = (planned(u64::MAX, u64::MAX).0, planned(0, u64::MAX).0);
        assert!(most.fits() && least.peak_bytes() < most.peak_bytes() * 2 / 3);
        let steps = |least: u64, most: u64| (0..=STEPS).map(move |i| least + (most - least) * i / STEPS);
        let limits: Vec<u64> = steps(least.peak_bytes() * 9 / 10, most.peak_bytes()).collect();
        let host_limits: Vec<u64> = steps(most.host_bytes(), least.host_bytes().max(most.host_bytes())).collect();
        let mut fitting = 0;
        let mut shorter_host = vec![f64::INFINITY; limits.len()];
        for &host_limit in &host_limits {
            let mut shorter_device = f64::INFINITY;
            for (&limit, shorter_host) in limits.iter().zip(&mut shorter_host) {
                let (plan, seconds) = planned(limit, host_limit);
                if !plan.fits() {
                    assert!(shorter_device.is_infinite() && shorter_host.is_infinite(), "{limit} {host_limit}");
                    continue;
                }
                assert!(plan.peak_bytes() <= limit && plan.host_bytes() <= host_limit, "{limit} {host_limit}");
                assert!(seconds <= shorter_device && seconds <= *shorter_host, "{limit} {host_limit}: {seconds}");
                (shorter_device, *shorter_host) = (seconds, seconds);
                fitting += 1;
            }
        }
        assert!(fitting > limits.len() * host_limits.len() / 3, "{fitting}");
    }
}
