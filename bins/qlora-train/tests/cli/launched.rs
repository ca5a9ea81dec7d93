//! Processes that a launcher of several started, and the environment that it gives them.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::sandbox::{Sandbox, train};

/// More than any group of these tests takes on a busy machine
const PATIENCE: Duration = Duration::from_secs(120);

/// A port that nobody listens at, nor at the next, below those that the system gives to connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = (std::process::id() as u16).wrapping_mul(131).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + number % 5_000 * 2;
        if [port, port + 1].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
    }
}

/// One process of a group, of which a test may hold any.
pub struct Rank {
    pub child: Child,
    rank: usize,
    name: String,
}

/// Remains of a process of a group: its exit status, none if a signal ended it, and all that it said.
#[derive(Debug)]
pub struct Left {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A command with torchrun's variables for one rank.
pub fn command(sandbox: &Sandbox, line: &str, rank: usize, world: usize, port: u16) -> Command {
    let mut command = sandbox.command(line);
    let variables = [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", world.to_string()),
        ("LOCAL_WORLD_SIZE", world.to_string()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
    ];
    command.envs(variables).env_remove("TORCHELASTIC_USE_AGENT_STORE").env("QLORA_JOIN_SECONDS", "30");
    command
}

/// Starts a process; what it says goes to files, so that nobody has to read it meanwhile.
pub fn spawn(sandbox: &Sandbox, mut command: Command, rank: usize) -> Rank {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let name = format!("said-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let file = |kind: &str| File::create(sandbox.path(&format!("{name}.{kind}"))).unwrap();
    command.stdout(file("out")).stderr(file("err")).stdin(Stdio::null());
    Rank { child: command.spawn().unwrap(), rank, name }
}

/// Starts all ranks of a group; `change` is what one of them has of its own.
pub fn start(sandbox: &Sandbox, line: &str, world: usize, change: impl Fn(usize, &mut Command)) -> Vec<Rank> {
    let port = free_port();
    let one = |rank| {
        let mut command = command(sandbox, line, rank, world, port);
        change(rank, &mut command);
        spawn(sandbox, command, rank)
    };
    (0..world).map(one).collect()
}

impl Rank {
    pub fn said(&self, sandbox: &Sandbox) -> String {
        sandbox.read(&format!("{}.err", self.name))
    }

    /// Waits until the process has said something.
    pub fn wait_for(&mut self, sandbox: &Sandbox, words: &str) {
        let begun = Instant::now();
        while !self.said(sandbox).contains(words) {
            let status = self.child.try_wait().unwrap();
            assert!(status.is_none(), "rank {} ended without {words:?}: {}", self.rank, self.said(sandbox));
            assert!(begun.elapsed() < PATIENCE, "rank {}: no {words:?} in {}", self.rank, self.said(sandbox));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn end(mut self, sandbox: &Sandbox) -> Left {
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
                None => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    panic!("rank {} does not end: {}", self.rank, self.said(sandbox));
                }
            }
        };
        Left { status, stdout: sandbox.read(&format!("{}.out", self.name)), stderr: self.said(sandbox) }
    }
}

/// Waits for all of a group.
pub fn ended(sandbox: &Sandbox, group: Vec<Rank>) -> Vec<Left> {
    group.into_iter().map(|rank| rank.end(sandbox)).collect()
}

/// Runs a group to its good end.
#[track_caller]
pub fn run(sandbox: &Sandbox, line: &str, world: usize) -> Vec<Left> {
    let all = ended(sandbox, start(sandbox, line, world, |_, _| ()));
    assert!(all.iter().all(|left| left.status == Some(0)), "{all:#?}");
    all
}

#[test]
fn a_process_that_is_alone_needs_no_meeting() {
    let sandbox = Sandbox::new();
    let mut alone = command(&sandbox, &train(""), 0, 1, 1);
    assert!(alone.output().unwrap().status.success());
    assert!(sandbox.path("out/adapter_config.json").exists());
}

#[test]
fn processes_that_cannot_meet_are_refused_and_write_nothing() {
    let sandbox = Sandbox::new();
    let line = train("");
    let refused = |mut command: Command, words: &[&str]| {
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
        assert!(!sandbox.path("out").exists());
    };
    let port = free_port();
    // Nobody else was started.
    let mut one = command(&sandbox, &line, 0, 3, port);
    one.env("QLORA_JOIN_SECONDS", "0.3");
    refused(one, &["ranks 1, 2 of 3 did not come", "within 0.3 s", "torchrun started 3 processes"]);
    let mut one = command(&sandbox, &line, 1, 2, port);
    one.env("QLORA_JOIN_SECONDS", "0.3");
    refused(one, &["error: rank 1: found no rank 0 at 127.0.0.1", "MASTER_PORT"]);
    let mut one = command(&sandbox, &line, 1, 2, port);
    one.env_remove("MASTER_ADDR").env_remove("LOCAL_WORLD_SIZE");
    refused(one, &["variable MASTER_ADDR: found none", "torchrun"]);
    let mut one = command(&sandbox, &line, 0, 2, port);
    one.env("QLORA_SILENCE_SECONDS", "soon");
    refused(one, &["variable QLORA_SILENCE_SECONDS: found \"soon\""]);
    // Somebody else listens there.
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let one = command(&sandbox, &line, 0, 2, taken.local_addr().unwrap().port());
    refused(one, &["rank 0 cannot listen at 127.0.0.1", "choose another port"]);
}

/// Ranks that do not belong together, each named with what it is.
#[test]
fn ranks_of_another_launch_are_refused_by_all() {
    let sandbox = Sandbox::new();
    let line = train("");
    let refused = |change: &dyn Fn(usize, &mut Command), words: &[&str]| {
        for left in ended(&sandbox, start(&sandbox, &line, 2, change)) {
            assert_eq!(left.status, Some(2), "{left:#?}");
            assert!(words.iter().all(|word| left.stderr.contains(word)), "{words:?} in {left:#?}");
        }
        assert!(!sandbox.path("out").exists());
    };
    let of_three = |rank: usize, command: &mut Command| {
        if rank == 1 {
            command.env("WORLD_SIZE", "3");
        }
    };
    refused(&of_three, &["rank 1 (", "was started as one of 3 processes", "as one of 2"]);
    // Rank 0 goes on waiting for one of its own.
    let of_another_job = |rank: usize, command: &mut Command| {
        command.env("TORCHELASTIC_RUN_ID", if rank == 1 { "b" } else { "a" }).env("QLORA_JOIN_SECONDS", "3");
    };
    refused(&of_another_job, &["rank 1 (", "of another job (\"b\"", "\"a\""]);
}

/// Rank 0 knows who is missing, and those that came wait to hear it.
#[test]
fn a_rank_that_is_missing_is_named_by_all_that_came() {
    let sandbox = Sandbox::new();
    let (line, port) = (train(""), free_port());
    let one = |rank: usize| {
        let mut command = command(&sandbox, &line, rank, 3, port);
        command.env("QLORA_JOIN_SECONDS", "3");
        spawn(&sandbox, command, rank)
    };
    // Rank 1 began to wait before rank 0 did.
    let second = one(1);
    let first = one(0);
    for left in ended(&sandbox, vec![first, second]) {
        assert_eq!(left.status, Some(2), "{left:#?}");
        assert!(left.stderr.contains("rank 2 of 3 did not come"), "{left:#?}");
    }
    assert!(!sandbox.path("out").exists());
}

/// Two jobs at one port: the run that has it is not ended by a rank of the other.
#[test]
fn a_rank_of_another_job_does_not_end_a_run() {
    let sandbox = Sandbox::new();
    let (line, port) = (train("--threads 1"), free_port());
    let of_job = |rank: usize, job: &str| {
        let mut command = command(&sandbox, &line, rank, 2, port);
        command.env("TORCHELASTIC_RUN_ID", job);
        spawn(&sandbox, command, rank)
    };
    let first = of_job(0, "own");
    let stranger = of_job(1, "other").end(&sandbox);
    assert_eq!(stranger.status, Some(2), "{stranger:#?}");
    assert!(stranger.stderr.contains("of another job (\"other\""), "{stranger:#?}");
    let second = of_job(1, "own");
    for left in ended(&sandbox, vec![first, second]) {
        assert_eq!(left.status, Some(0), "{left:#?}");
    }
}

/// Processes find each other and print the speed of their sums, whichever launcher starts them.
#[test]
fn processes_of_each_launcher_find_each_other() {
    let sandbox = Sandbox::new();
    let port = free_port();
    for (name, [rank, size, local_rank, local_size]) in [
        ("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
        (
            "OpenMPI",
            [
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE",
            ],
        ),
        ("MPICH", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
        ("SLURM", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NNODES"]),
    ] {
        let one = |number: usize| {
            let mut command = sandbox.command("doctor --json");
            command.env("MASTER_PORT", port.to_string()).env("QLORA_JOIN_SECONDS", "30");
            command.env(rank, number.to_string()).env(size, "2").env(local_rank, number.to_string());
            command.env(local_size, if name == "SLURM" { "1" } else { "2" });
            command.env("TORCHELASTIC_USE_AGENT_STORE", if name == "torchrun" { "True" } else { "False" });
            spawn(&sandbox, command, number)
        };
        // torchrun listens at its port itself, and says so.
        let _torchrun = (name == "torchrun").then(|| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let all = ended(&sandbox, vec![one(0), one(1)]);
        assert!(all.iter().all(|left| left.status == Some(0)), "{name}: {all:#?}");
        let found: serde_json::Value = serde_json::from_str(&all[0].stdout).unwrap();
        let found = &found["processes"];
        assert_eq!(
            (&found["launcher"], &found["world_size"], &found["machines"]),
            (&name.into(), &2.into(), &1.into())
        );
        assert!(found["bytes_per_second"].as_f64().unwrap() > 0.0, "{found}");
        assert_eq!(all[1].stdout, "");
    }
}

/// A connection to a port, as soon as somebody listens there.
fn knock(port: u16) -> TcpStream {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(_) => assert!(begun.elapsed() < PATIENCE, "nobody listens"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A stranger that knocks at the port is not taken for a rank.
#[test]
fn strangers_at_the_port_are_left_standing() {
    let sandbox = Sandbox::new();
    let (line, port) = (train("--threads 1"), free_port());
    let first = spawn(&sandbox, command(&sandbox, &line, 0, 2, port), 0);
    let mut stranger = knock(port);
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n").unwrap();
    let second = spawn(&sandbox, command(&sandbox, &line, 1, 2, port), 1);
    for left in ended(&sandbox, vec![first, second]) {
        assert_eq!(left.status, Some(0), "{left:#?}");
    }
}

/// Nor does one that never comes to the end of its first word keep the ranks from each other.
#[test]
fn a_stranger_that_drips_is_left_standing() {
    let sandbox = Sandbox::new();
    let (line, port) = (train("--threads 1"), free_port());
    let first = spawn(&sandbox, command(&sandbox, &line, 0, 2, port), 0);
    let mut stranger = knock(port);
    // The header of an introduction of as many bytes as one may have.
    let numbers = [0u64, 1 << 20, 0].map(u64::to_le_bytes);
    stranger.write_all(&[&b"QLR1"[..], &1u32.to_le_bytes()[..], numbers.as_flattened()].concat()).unwrap();
    let drips = std::thread::spawn(move || {
        while stranger.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let second = spawn(&sandbox, command(&sandbox, &line, 1, 2, port), 1);
    for left in ended(&sandbox, vec![first, second]) {
        assert_eq!(left.status, Some(0), "{left:#?}");
    }
    drips.join().unwrap();
}
