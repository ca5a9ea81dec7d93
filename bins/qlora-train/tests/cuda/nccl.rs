//! Gradients that several ranks add up on their devices: by the stand-in for NCCL in the emulation, by the library on
//! GPUs that have it, where these tests are asked for by `--ignored`.

use crate::commands::{Directory, free_port, train};
use std::process::Output;

/// All ranks of a run; `more` are the variables that one of them has beside the launcher's.
fn ranks(
    directory: &Directory,
    line: &str,
    world: usize,
    more: impl Fn(usize) -> Vec<(&'static str, &'static str)> + Sync,
) -> Vec<Output> {
    let (port, size, more) = (&free_port().to_string(), &world.to_string(), &more);
    std::thread::scope(|scope| {
        let one = |rank: usize| {
            scope.spawn(move || {
                let own = rank.to_string();
                let mut variables = vec![("RANK", own.as_str()), ("LOCAL_RANK", own.as_str())];
                variables.extend([("WORLD_SIZE", size.as_str()), ("MASTER_PORT", port.as_str())]);
                variables.extend([("MASTER_ADDR", "127.0.0.1"), ("QLORA_JOIN_SECONDS", "60")]);
                variables.extend(more(rank));
                directory.run_with(line, &variables)
            })
        };
        let threads: Vec<_> = (0..world).map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two steps, each of two micro-batches of every rank.
fn line(out: &str, more: &str) -> String {
    train(&format!("--output-dir {out} --device cuda {more}")).replace("--max-steps 4", "--max-steps 2")
}

/// The adapter of a run that all ranks bring to its good end, and what rank 0 said.
#[track_caller]
fn trained(
    directory: &Directory,
    out: &str,
    world: usize,
    more: impl Fn(usize) -> Vec<(&'static str, &'static str)> + Sync,
) -> (Vec<u8>, String) {
    let all = ranks(directory, &line(out, ""), world, more);
    assert!(all.iter().all(|output| output.status.success()), "{:?}", all.iter().map(errors).collect::<Vec<_>>());
    (std::fs::read(directory.path(out).join("adapter_model.safetensors")).unwrap(), errors(&all[0]))
}

/// The sum of one rank changes nothing, and all calls are made.
#[test]
#[cfg_attr(not(feature = "emulation"), ignore = "needs NCCL, which the GPU bundle's stage of this name asks for")]
fn a_run_in_one_process_adds_up_by_itself() {
    let directory = Directory::small();
    let plain = directory.run(&line("plain", ""));
    assert!(plain.status.success(), "{}", errors(&plain));
    let summed = directory.run_with(&line("summed", ""), &[("QLORA_SUMS", "nccl")]);
    let said = errors(&summed);
    assert!(summed.status.success() && said.contains("added up on the GPUs, by NCCL"), "{said}");
    println!("{}", said.lines().find(|line| line.contains("NCCL")).unwrap_or_default());
    let adapter = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("plain") == adapter("summed"));
}

/// Two gradients have one sum, in whatever order: the bytes are those of sums in the host's memory.
#[cfg(not(feature = "emulation"))]
#[test]
#[ignore = "needs NCCL and two GPUs, which the GPU bundle's stage of this name asks for"]
fn two_gpus_give_the_bytes_of_sums_in_the_memory_of_the_host() {
    if qlora_kernels::device::Device::open_at(1).is_err() {
        println!("NOT RUN: this machine has one GPU");
        return;
    }
    let directory = Directory::small();
    let (on_host, _) = trained(&directory, "host", 2, |_| vec![("QLORA_SUMS", "host")]);
    let (on_gpus, said) = trained(&directory, "gpus", 2, |_| vec![]);
    assert!(said.contains("added up on the GPUs, by NCCL"), "{said}");
    assert!(on_host == on_gpus);
}

/// NCCL has no two ranks on one GPU: they are refused before it is asked, or add up in the memory of the host.
#[cfg(not(feature = "emulation"))]
#[test]
#[ignore = "needs NCCL, which the GPU bundle's stage of this name asks for"]
fn two_ranks_on_one_gpu_are_refused_where_nccl_is_asked_for() {
    let directory = Directory::small();
    let shown = ("CUDA_VISIBLE_DEVICES", "0");
    for output in ranks(&directory, &line("out", ""), 2, |_| vec![shown, ("QLORA_SUMS", "nccl")]) {
        let said = errors(&output);
        assert!(output.status.code() == Some(2) && said.contains("share one GPU, which NCCL does not allow"), "{said}");
    }
    let (_, said) = trained(&directory, "out", 2, |_| vec![shown]);
    assert!(said.contains("in the memory of the host (rank 0 (") && said.contains("share one GPU"), "{said}");
}

#[cfg(feature = "emulation")]
mod emulated {
    use super::*;
    use crate::sources::{ROOM, memory, small_config, spec};
    use qlora_kernels::device::{Device, Nccl, emulation};
    use qlora_train::backend::cuda::Cuda;
    use qlora_train::backend::{Batch, Optimizer};
    use qlora_train::comm::{Communicator, Signs, SingleProcess, Watched};
    use qlora_train::error::{Error, Result};
    use qlora_train::files::failpoint;
    use qlora_train::model::optimizer_step::{Accumulated, StepReport, accumulate, update};
    use qlora_train::model::{Llama, ModelSpec};
    use std::rc::Rc;
    use trainer_lab::model::Documents;
    use trainer_lab::ranks::of_ranks;

    /// A variable of the environment by which something goes wrong, and its value
    type Fault = (&'static str, &'static str);

    type Stepped = (StepReport, Vec<Vec<f32>>, Vec<Vec<f32>>);

    /// One step of all ranks as one of them does it: its report, the gradients and the values after it.
    fn stepped(spec: &ModelSpec, comm: &mut dyn Communicator, batches: &[Batch], on_device: bool) -> Stepped {
        let device = Rc::new(Device::open().unwrap());
        let group = on_device.then(|| {
            let (rank, world_size) = (comm.rank(), comm.world_size());
            let id = Nccl::unique_id().unwrap();
            Nccl::join(&device, &id, rank, world_size, &mut Watched::new(&mut *comm)).unwrap()
        });
        let cuda = Cuda::on_device(device, spec.run_shape(), &spec.arch, ROOM).unwrap();
        let mut cuda = cuda.adding_up(group);
        let mut model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
        let (begun, count) = (Accumulated::default(), batches.len());
        let done = accumulate(&mut cuda, &mut model, comm, 3, count, batches, begun, &Signs::default).unwrap().0;
        let hyper = &crate::runs::HYPER;
        let report = update(&mut cuda, &mut model, comm, hyper, 3, count, 1.0, batches, done.loss).unwrap();
        let gradients = model.params_mut().into_iter().map(|(_, param)| cuda.gradient(param).unwrap()).collect();
        let values = model.param_values(&cuda).unwrap().into_iter().map(|(_, _, values)| values).collect();
        (report, gradients, values)
    }

    /// [`stepped`] on a device that does the work of its streams when something waits for it.
    fn stepped_late(spec: &ModelSpec, comm: &mut dyn Communicator, batches: &[Batch], on_device: bool) -> Stepped {
        emulation::run_late(true);
        stepped(spec, comm, batches, on_device)
    }

    /// Buckets whose sums begin beside the backward pass and are made then or when they are waited for, also where some
    /// ranks have no micro-batch in the last round.
    #[test]
    fn sums_on_the_devices_give_the_bits_of_those_in_the_memory_of_the_host() {
        let spec = spec(small_config());
        for (world, rows) in [(1, 2), (2, 2), (2, 3), (3, 4)] {
            let row = |row: usize| Documents::random(&[7 + 3 * row], spec.arch.vocab_size, row as u64);
            let rows: Vec<Documents> = (0..rows).map(row).collect();
            let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
            let (on_host, _) = of_ranks(world, true, |comm| stepped(&spec, comm, &all, false));
            let (on_device, sums) = of_ranks(world, true, |comm| stepped(&spec, comm, &all, true));
            assert!(on_device.iter().chain(&on_host).all(|rank| *rank == on_host[0]), "{world} ranks");
            // That of joining, that of the second layer, and that of the first with what is outside of them.
            assert_eq!((sums.all, sums.beside), (3 * world, 0));
            let (late, _) = of_ranks(world, true, |comm| stepped_late(&spec, comm, &all, true));
            assert!(late.iter().all(|rank| *rank == on_host[0]), "{world} ranks, late");
        }
    }

    /// Gradients that go through the host's memory while other layers compute, or afterwards.
    #[test]
    fn sums_in_the_memory_of_the_host_give_the_same_bits_beside_the_backward_pass_and_after_it() {
        let spec = spec(small_config());
        for (world, rows) in [(2, 3), (3, 4)] {
            let row = |row: usize| Documents::random(&[7 + 3 * row], spec.arch.vocab_size, row as u64);
            let rows: Vec<Documents> = (0..rows).map(row).collect();
            let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
            let (after, of_after) = of_ranks(world, false, |comm| stepped(&spec, comm, &all, false));
            let (beside, of_beside) = of_ranks(world, true, |comm| stepped(&spec, comm, &all, false));
            assert!(beside.iter().chain(&after).all(|rank| *rank == after[0]), "{world} ranks");
            let (late, _) = of_ranks(world, true, |comm| stepped_late(&spec, comm, &all, false));
            assert!(late.iter().all(|rank| *rank == after[0]), "{world} ranks, late");
            assert_eq!((of_after.beside, of_beside.beside, of_beside.all), (0, of_after.all, of_after.all));
            // Several buckets of each rank.
            assert!(of_after.all >= 4 * world, "{of_after:?}");
        }
    }

    /// One of two ranks, whose sums fail after a number of them.
    struct Ending(usize);

    impl Communicator for Ending {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            2
        }

        fn on_this_machine(&self) -> (usize, usize) {
            (0, 2)
        }

        fn bucket(&self) -> usize {
            300
        }

        fn beside(&mut self) -> Option<&mut (dyn Communicator + Send)> {
            Some(self)
        }

        fn all_reduce_sum(&mut self, _gradients: &mut [f32], _totals: &mut [f64]) -> Result<()> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| Error::Failed("rank 1 is gone".to_owned()))?;
            Ok(())
        }

        fn all_gather(&mut self, _what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
            Ok(vec![own.to_vec(); 2])
        }

        fn broadcast(&mut self, _what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
            Ok(own)
        }
    }

    /// Gradients on their way are where they were when the sums have failed, and a step begins anew.
    #[test]
    fn gradients_are_back_when_a_sum_beside_the_backward_pass_fails() {
        let spec = spec(small_config());
        let rows =
            [Documents::random(&[9], spec.arch.vocab_size, 1), Documents::random(&[12], spec.arch.vocab_size, 2)];
        let all = rows.each_ref().map(Documents::batch);
        let (alone, _) = of_ranks(1, false, |comm| stepped(&spec, comm, &all, false));
        let mut cuda = Cuda::on_device(Rc::new(Device::open().unwrap()), spec.run_shape(), &spec.arch, ROOM).unwrap();
        let mut model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
        for sums in [0, 1, 3] {
            let begun = Accumulated::default();
            let comm = &mut Ending(sums);
            let failed = accumulate(&mut cuda, &mut model, comm, 3, 2, &all, begun, &Signs::default).unwrap_err();
            assert_eq!(failed.to_string(), "rank 1 is gone", "{sums}");
            for (id, param) in model.params_mut() {
                assert_eq!(cuda.gradient_len(param), cuda.param_values(param).unwrap().len(), "{id}");
            }
        }
        let (comm, begun) = (&mut SingleProcess, Accumulated::default());
        let done = accumulate(&mut cuda, &mut model, comm, 3, 2, &all, begun, &Signs::default).unwrap().0;
        let hyper = &crate::runs::HYPER;
        let report = update(&mut cuda, &mut model, comm, hyper, 3, 2, 1.0, &all, done.loss).unwrap();
        assert_eq!(report, alone[0].0);
    }

    #[test]
    fn ranks_that_add_up_on_their_devices_give_the_bytes_of_sums_over_tcp() {
        let directory = Directory::small();
        for world in [2, 3] {
            let (host, gpus) = (format!("host{world}"), format!("gpus{world}"));
            let (on_host, said) = trained(&directory, &host, world, |_| vec![("QLORA_SUMS", "host")]);
            assert!(said.contains("added up in the memory of the host (QLORA_SUMS=host)"), "{said}");
            let (after, _) = trained(&directory, &format!("after{world}"), world, |rank| match rank {
                0 => vec![("QLORA_SUMS", "host")],
                _ => vec![("QLORA_SUMS", "host"), ("QLORA_OVERLAP", "off")],
            });
            assert!(on_host == after, "{world} ranks");
            let (on_gpus, said) = trained(&directory, &gpus, world, |_| vec![("QLORA_SUMS", "nccl")]);
            assert!(said.contains("added up on the GPUs, by NCCL"), "{said}");
            assert!(on_host == on_gpus, "{world} ranks");
        }
        // The place of sums is part of a run's identity; one process has no sums.
        for output in ranks(&directory, &line("gpus2", ""), 2, |_| vec![("QLORA_SUMS", "host")]) {
            let said = errors(&output);
            assert_eq!(output.status.code(), Some(2), "{said}");
            let words = "gradients of the processes were added up by NCCL and are in the order of the processes now";
            assert!(said.contains(words), "{said}");
        }
        // Without a word the run adds up as it began.
        let again = ranks(&directory, &line("gpus2", ""), 2, |_| vec![]);
        assert!(again.iter().all(|output| output.status.success()), "{}", errors(&again[0]));
        assert!(errors(&again[0]).contains("this run is finished"), "{}", errors(&again[0]));
    }

    /// A process alone has no order of sums, and the processes after it add up as those before it.
    #[test]
    fn a_run_that_was_in_one_process_keeps_its_way_of_adding_up() {
        let directory = Directory::small();
        let line = |out: &str, more: &str| line(out, more).replace("--save-steps 2", "--save-steps 1");
        let nccl = |_: usize| vec![("QLORA_SUMS", "nccl")];
        let began = ranks(&directory, &line("began", ""), 2, nccl);
        assert!(began.iter().all(|output| output.status.success()), "{}", errors(&began[0]));
        let alone = directory.run(&line("alone", "--resume-from-checkpoint began/checkpoint-1"));
        assert!(alone.status.success(), "{}", errors(&alone));
        for output in ranks(&directory, &line("alone", ""), 2, |_| vec![("QLORA_SUMS", "host")]) {
            let said = errors(&output);
            assert_eq!(output.status.code(), Some(2), "{said}");
            let words = "gradients of the processes were added up by NCCL and are in the order of the processes now";
            assert!(said.contains(words), "{said}");
        }
        let again = ranks(&directory, &line("alone", ""), 2, |_| vec![]);
        assert!(errors(&again[0]).contains("this run is finished"), "{}", errors(&again[0]));
    }

    #[test]
    fn a_library_that_is_missing_is_refused_where_it_is_asked_for_and_else_told() {
        let directory = Directory::small();
        let missing = ("QLORA_EMULATION_NCCL", "missing");
        for output in ranks(&directory, &line("out", ""), 2, |_| vec![missing, ("QLORA_SUMS", "nccl")]) {
            let said = errors(&output);
            assert_eq!(output.status.code(), Some(2), "{said}");
            for words in ["QLORA_SUMS: found \"nccl\", which cannot be used", "no NCCL: libnccl.so.2", "unset it"] {
                assert!(said.contains(words), "{words}: {said}");
            }
        }
        assert!(!directory.path("out").exists());
        let (_, said) = trained(&directory, "out", 2, |_| vec![missing]);
        assert!(said.contains("in the memory of the host (rank 0 (") && said.contains("libnccl.so.2"), "{said}");
        let output =
            directory.run_with(&line("cpu", "").replace("--device cuda", "--device cpu"), &[("QLORA_SUMS", "nccl")]);
        assert!(output.status.code() == Some(2) && errors(&output).contains("computes on the CPU"), "{output:?}");
    }

    /// Failures of a sum, and ranks that die within one: all end by the name of the rank, and the run goes on.
    #[test]
    fn a_rank_that_fails_or_dies_within_a_sum_ends_all_by_its_name() {
        let directory = Directory::small();
        let (whole, _) = trained(&directory, "whole", 2, |_| vec![("QLORA_SUMS", "nccl")]);
        let nccl: &[(Fault, &str)] = &[
            (("QLORA_EMULATION_NCCL", "fails:1"), "a sum of gradients: unhandled system error"),
            (("QLORA_EMULATION_NCCL", "fails:3"), "a sum of gradients: unhandled system error"),
            ((failpoint::VARIABLE, "sum:2"), "is gone"),
            ((failpoint::VARIABLE, "sum:3"), "is gone"),
        ];
        let host: &[(Fault, &str)] = &[((failpoint::VARIABLE, "sum:1"), "is gone")];
        for (sums, faults) in [("nccl", nccl), ("host", host)] {
            for &(fault, words) in faults {
                let of_rank = |rank: usize| -> Vec<Fault> {
                    let own = if rank == 1 { Some(fault) } else { None };
                    [("QLORA_SUMS", sums)].into_iter().chain(own).collect()
                };
                let all = ranks(&directory, &line(sums, "--resume-from-checkpoint"), 2, of_rank);
                let said = errors(&all[0]);
                assert!(all.iter().all(|output| !output.status.success()), "{fault:?}: {said}");
                assert!(said.contains("rank 1 (") && said.contains(words), "{fault:?}: {said}");
            }
            let on = ranks(&directory, &line(sums, "--resume-from-checkpoint"), 2, |_| vec![("QLORA_SUMS", sums)]);
            assert!(on.iter().all(|output| output.status.success()), "{}", errors(&on[0]));
            assert!(std::fs::read(directory.path(sums).join("adapter_model.safetensors")).unwrap() == whole);
        }
    }
}
