use super::*;
use crate::arch::{Arch, Projection};
use crate::backend::cpu::Precision;
use crate::backend::{PlannedBuffer, Quantization};
use crate::base::synthetic::tiny_arch;
use crate::config::{HeadResidency, StateResidency, TokenTile, WeightResidency};
use crate::files::tensor::StoredType;
use crate::lora::LoraSpec;
use crate::model::ModelSpec;
use crate::session::plan::TensorStorage;
use crate::session::planner::{Levers, choose};
use crate::session::{Budget, Device};

const LAYERS: usize = 9;

fn spec() -> ModelSpec {
    let arch = Arch { num_layers: LAYERS, head_dim: 64, ..tiny_arch() };
    let lora = LoraSpec::uniform(&arch, &Projection::ALL, 4, 4.0, 0.0);
    ModelSpec { trainable: true, ..ModelSpec::new(lora, arch, Quantization::NF4, 500) }
}

/// The plan with these levers, with everything but activations in the memory that it is computed in.
fn planned(device: &Device, checkpointing: Checkpointing, limit: u64, host_limit: u64) -> (ModelSpec, MemoryPlan) {
    let budget = Budget { limit, in_use: 0, in_use_name: "", read_bytes: 0, host_limit, sharers: 1 };
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let levers = Levers {
        checkpointing,
        weights: WeightResidency::Resident,
        head: HeadResidency::Resident,
        states: StateResidency::Resident,
        token_tile: TokenTile::Off,
    };
    let mut spec = spec();
    let plan = choose(device, &mut spec, levers, &stored, budget).unwrap();
    (spec, plan)
}

/// Beside what layers work on, one input is in memory: the seven others of those that leave are on disk.
#[test]
fn on_the_cpu_inputs_go_to_disk_where_nothing_else_fits() {
    let device = Device::Cpu(Precision::F32);
    let at = |checkpointing, limit| planned(&device, checkpointing, limit, 0);
    let [in_memory, on_disk] = [Checkpointing::On, Checkpointing::Disk].map(|checkpointing| at(checkpointing, 0).1);
    let (most, least) = (in_memory.peak_bytes(), on_disk.peak_bytes());
    let input = 4 * (500 * spec().arch.hidden_size) as u64;
    assert!(least + 5 * input <= most && most <= least + LAYERS as u64 * input, "{least} {most}");
    assert_eq!((in_memory.disk_bytes(), on_disk.disk_bytes()), (0, 8 * input.next_multiple_of(4096)));
    for (limit, disk) in [(u64::MAX, false), (most, false), (most - 1, true), (least, true)] {
        let (spec, plan) = at(Checkpointing::Auto, limit);
        assert!(plan.fits() && plan.peak_bytes() <= limit && (plan.disk_bytes() > 0) == disk, "{limit}");
        assert_eq!(spec.activation_counts().disk, if disk { LAYERS } else { 0 });
    }
    assert!(!at(Checkpointing::Auto, least - 1).1.fits());
}

/// Beside a GPU they do so where host memory is short; the GPU has as little of them as with `offload`.
#[test]
fn beside_a_gpu_inputs_go_to_disk_where_host_memory_is_short() {
    let device = Device::unopened(0);
    let at = |checkpointing, limit, host_limit| planned(&device, checkpointing, limit, host_limit);
    let [offload, disk] = [Checkpointing::Offload, Checkpointing::Disk].map(|checkpointing| at(checkpointing, 0, 0).1);
    let (limit, host) = (offload.peak_bytes(), offload.host_bytes());
    assert!(disk.peak_bytes() == limit && disk.host_bytes() < host, "{} {host}", disk.host_bytes());
    for (host_limit, on_disk) in [(u64::MAX, 0), (host, 0), (host - 1, LAYERS), (disk.host_bytes(), LAYERS)] {
        let (spec, plan) = at(Checkpointing::Auto, limit, host_limit);
        let found = spec.activation_counts();
        assert!(plan.fits() && found.disk == on_disk && (found.offload > 0) == (on_disk == 0), "{host_limit}: {found}");
    }
    assert!(!at(Checkpointing::Auto, limit, disk.host_bytes() - 1).1.fits());
}

#[test]
fn room_on_disk_is_looked_for_and_a_file_system_in_memory_is_told() {
    let (_, plan) = planned(&Device::Cpu(Precision::F32), Checkpointing::Disk, 0, 0);
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("not/made/yet");
    let asked = Settings { gradient_checkpointing: Checkpointing::Disk, ..Settings::default() };
    assert_eq!(dir(&asked, &output), place.path());
    assert_eq!(check(&asked, &plan, &output, 3, |_| Ok(0)).unwrap(), 3 * plan.disk_bytes());
    let nothing = MemoryPlan { on_disk: Vec::new(), ..plan.clone() };
    let elsewhere = Settings { scratch_dir: Some(place.path().join("missing")), ..asked.clone() };
    assert_eq!(check(&elsewhere, &nothing, &output, 1, |_| Ok(0)).unwrap(), 0);
    let error = check(&elsewhere, &plan, &output, 1, |_| Ok(0)).unwrap_err();
    assert!(error.exit_status() == 2 && error.to_string().contains("missing: the scratch file there"), "{error}");
    let line = PlannedBuffer { name: "layers' inputs on disk".to_owned(), bytes: 1 << 60 };
    let huge = MemoryPlan { on_disk: vec![line], ..plan.clone() };
    let error = check(&asked, &huge, &output, 2, |_| Ok(0)).unwrap_err();
    assert!(error.exit_status() == 2 && error.to_string().contains("in 2 processes"), "{error}");
    // What is written there first takes room too.
    let error = check(&asked, &plan, place.path(), 1, |_| Ok(1 << 60)).unwrap_err();
    assert!(error.exit_status() == 2 && error.to_string().contains("for the base in NF4"), "{error}");
    let memory = Path::new("/dev/shm");
    if cfg!(target_os = "linux") && memory.is_dir() {
        let in_memory = Settings { scratch_dir: Some(memory.to_owned()), ..asked };
        assert!(check(&in_memory, &plan, &output, 1, |_| Ok(0)).is_ok());
        let unasked = Settings { gradient_checkpointing: Checkpointing::Auto, ..in_memory };
        let error = check(&unasked, &plan, &output, 1, |_| Ok(0)).unwrap_err().to_string();
        assert!(error.starts_with("/dev/shm: is in memory") && error.contains("`scratch_dir`"), "{error}");
    }
    assert!(place.path().read_dir().unwrap().next().is_none());
}
