//! Layers' inputs on disk: the bits of a run that keeps them on the device, in the memory that is planned.

use crate::planning::whole_plan;
use crate::runs::train_short;
use crate::sources::{memory, small_config, spec};
use lab::device::{Tally, set_schedule};
use qlora_kernels::device::MemoryEnd;
use qlora_train::arch::Arch;
use qlora_train::backend::Memory;
use qlora_train::backend::cuda::Cuda;
use qlora_train::model::{Activations, ModelSpec};
use std::path::Path;

/// Every micro-batch has fewer tokens than the longest, and there are two of them in each step: what was written for
/// the one before is not read.
#[test]
fn inputs_on_disk_give_the_same_bits_in_the_memory_that_is_planned() {
    use Activations::{Disk, Keep, Offload, Recompute};
    let tally = Tally::new("training, inputs on disk", 4);
    let scratch = tempfile::tempdir().unwrap();
    let base = spec(Arch { num_layers: 5, ..small_config() });
    let run = |seed, activations: [Activations; 5]| {
        set_schedule(seed);
        let spec = ModelSpec { activations: activations.to_vec(), ..base.clone() };
        let plan = whole_plan(&spec);
        let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
        cuda.set_scratch_dir(scratch.path());
        let trained = train_short(&mut cuda, &mut memory(&spec.arch), &spec, 2);
        assert_eq!(cuda.bytes(), plan.run_bytes, "{activations:?}");
        assert_eq!(cuda.planned_on_host(), plan.on_host, "{activations:?}");
        assert_eq!(cuda.planned_on_disk(), plan.on_disk, "{activations:?}");
        // The last layer's input does not leave.
        let on_disk = activations[..4].iter().filter(|&&activations| activations == Disk).count() as u64;
        let place = ((2 * spec.tokens * spec.arch.hidden_size) as u64).next_multiple_of(4096);
        assert_eq!(plan.disk_bytes(), on_disk * place, "{activations:?}");
        // Two micro-batches of 20 and 19 tokens in two steps, to and fro.
        let bytes = 2 * (20 + 19) * 2 * (2 * spec.arch.hidden_size) as u64;
        assert_eq!(cuda.scratch_traffic().map_or(0, |moved| moved.bytes), on_disk * bytes, "{activations:?}");
        (trained, plan)
    };
    let (first, recomputed) = run(0, [Recompute; 5]);
    assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
    let (offloaded, in_host_memory) = run(0, [Offload; 5]);
    assert!(first == offloaded);
    let cases = [
        (1, [Disk; 5]),
        (2, [Disk, Recompute, Disk, Disk, Keep]),
        (3, [Keep, Disk, Offload, Disk, Recompute]),
        (4, [Offload, Disk, Keep, Recompute, Disk]),
    ];
    for (seed, activations) in cases {
        let (found, plan) = run(seed, activations);
        assert!(first == found, "{activations:?}");
        if activations == [Disk; 5] {
            assert_eq!(plan.run_bytes, in_host_memory.run_bytes);
            assert!(plan.run_bytes < recomputed.run_bytes && plan.host_bytes() < in_host_memory.host_bytes());
        }
        tally.case();
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

/// Copies have no room behind their rows.
#[test]
fn inputs_with_room_behind_their_rows_do_not_leave_the_device() {
    let spec = spec(small_config());
    let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, whole_plan(&spec).run_bytes).unwrap();
    for to_disk in [false, true] {
        let (tokens, width) = (spec.tokens, spec.arch.hidden_size);
        let input = cuda.alloc_with_room(MemoryEnd::Low, "residual stream", tokens, width, 8).unwrap();
        let gone = if to_disk { cuda.offload_to_disk(input) } else { cuda.offload(input) };
        let said = gone.err().unwrap().to_string();
        assert!(said.contains("rows of 128 values, 192 apart"), "{said}");
    }
}

#[test]
fn a_scratch_file_that_cannot_be_made_ends_the_step() {
    let spec = spec(Arch { num_layers: 3, ..small_config() });
    let spec = ModelSpec { activations: vec![Activations::Disk; 3], ..spec };
    let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, whole_plan(&spec).run_bytes).unwrap();
    cuda.set_scratch_dir(Path::new("/no/such/directory"));
    let run = std::panic::AssertUnwindSafe(|| train_short(&mut cuda, &mut memory(&spec.arch), &spec, 1));
    let said = std::panic::catch_unwind(run).err().unwrap();
    let said = said.downcast_ref::<String>().unwrap();
    assert!(said.contains("/no/such/directory") && said.contains("scratch"), "{said}");
}
