//! Every system call that a run makes in its output directory fails once: what was saved before stays whole, the
//! message says what failed, and the next start goes on to the same bytes.
//!
//! `strace` makes them fail. `QLORA_FULL_GRID=1` tries every call with every error; else the first and the last call of
//! each kind (a call on a file of a name) fail, with the errors in turn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::sandbox::{Sandbox, train};

/// Two checkpoints, of which the second removes the first, and one that replaces itself; metrics, and the adapter.
const RUN: &str = "--max-steps 3 --packing false --per-device-train-batch-size 4 --save-steps 1 --save-total-limit 1 \
                   --lora-target-modules q_proj --threads 1 --chat-template chatml --data chat.jsonl \
                   --report false --resume-from-checkpoint";

/// Calls that touch files. Those that only ask are among them.
const CALLS: &str = "openat,openat2,creat,write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,\
                     unlink,unlinkat,rmdir,link,linkat,newfstatat,fstat,statx,getdents64,flock,ftruncate,fallocate,\
                     fchmod,fchmodat,statfs,fstatfs,lseek,copy_file_range,sendfile,read,pread64";

/// The error's name for strace, and what the system calls it.
const ERRORS: [(&str, &str); 3] =
    [("ENOSPC", "No space left on device"), ("EIO", "Input/output error"), ("EINTR", "Interrupted system call")];

fn strace(sandbox: &Sandbox, arguments: &[&str]) -> Command {
    let plain = sandbox.command(&train(RUN));
    let mut command = Command::new("strace");
    // Only the main thread writes.
    command.args(arguments).args(["-o", "trace", "-y", "-s", "0", "-e", "signal=none"]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(plain.get_current_dir().unwrap());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null());
    command
}

/// (system call, the how-many-th of its name) of each call in the output directory, in order, with the line of the
/// trace.
fn calls_in_output(trace: &str, out: &Path) -> Vec<(String, usize, String)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for line in trace.lines() {
        let Some((call, rest)) = line.split_once('(') else { continue };
        let count = counts.entry(call.to_owned()).or_default();
        *count += 1;
        if touches(rest, out) && !rest.contains("= ?") {
            found.push((call.to_owned(), *count, line.to_owned()));
        }
    }
    found
}

/// True for a call in the output directory: by an open file, by a path of it, or by the path that was given.
fn touches(call: &str, out: &Path) -> bool {
    call.contains(&format!("<{}", out.display())) || call.contains("\"out\"") || call.contains("\"out/")
}

/// The bytes of every file of every checkpoint.
fn checkpoints(sandbox: &Sandbox) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut files = sandbox.files();
    let out = sandbox.path("out");
    files.retain(|path, _| path.strip_prefix(&out).is_ok_and(|name| name.to_string_lossy().starts_with("checkpoint-")));
    files
}

/// The kind of a call and its file, without step, size and result.
fn kind(call: &str, line: &str, out: &Path) -> String {
    let out = out.display().to_string();
    let files = line.split(['<', '>', '"']).filter(|part| part.starts_with(&out) || part.starts_with("out"));
    let names = files.map(|file| file.rsplit('/').next().unwrap_or(file).replace(|c: char| c.is_ascii_digit(), "N"));
    // Names of temporary directories are drawn.
    let names = names.map(|name| if name.starts_with('.') { name[..name.len().min(6)].to_owned() } else { name });
    names.fold(call.to_owned(), |kind, name| format!("{kind} {name}"))
}

/// Indices of the first and the last call of each kind, in order.
fn of_each_kind(calls: &[(String, usize, String)], out: &Path) -> Vec<usize> {
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (at, (call, _, line)) in calls.iter().enumerate() {
        kinds.entry(kind(call, line, out)).and_modify(|(_, last)| *last = at).or_insert((at, at));
    }
    let mut chosen: Vec<usize> = kinds.into_values().flat_map(|(first, last)| [first, last]).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn is_whole(sandbox: &Sandbox, checkpoint: &str) -> bool {
    let sums = std::fs::read_to_string(sandbox.path(&format!("{checkpoint}/SHA256SUMS"))).unwrap_or_default();
    let is_true = |line: &str| {
        let (sum, name) = line.split_once("  ").unwrap();
        let hash = |bytes: Vec<u8>| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        std::fs::read(sandbox.path(&format!("{checkpoint}/{name}"))).is_ok_and(|bytes| hash(bytes) == sum)
    };
    sums.lines().count() > 2 && sums.lines().all(is_true)
}

#[test]
fn every_system_call_in_the_output_directory_fails_once() {
    let sandbox = Sandbox::chat();
    if !strace(&sandbox, &["-e", "trace=none"]).output().is_ok_and(|output| output.status.success()) {
        return println!("not run: strace is not there, or may not trace");
    }
    sandbox.run(&format!("{} --overwrite-output-dir", train(RUN).replace("--resume-from-checkpoint", ""))).ok();
    std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    assert!(strace(&sandbox, &["-e", &format!("trace={CALLS}")]).output().unwrap().status.success());
    let out = sandbox.path("out").canonicalize().unwrap();
    let calls = calls_in_output(&sandbox.read("trace"), &out);
    std::fs::rename(sandbox.path("out"), sandbox.path("whole")).unwrap();
    assert!(calls.len() > 150, "{} calls", calls.len());
    let full = std::env::var_os("QLORA_FULL_GRID").is_some();
    let chosen = if full { (0..calls.len()).collect() } else { of_each_kind(&calls, &out) };
    assert!(chosen.len() > 60, "{} kinds of calls", chosen.len());
    let (mut tried, mut ended, mut survived) = (0, 0, 0);
    let mut by_call: BTreeMap<&str, usize> = BTreeMap::new();
    for (call, nth, line) in chosen.into_iter().map(|at| &calls[at]) {
        let turn = by_call.get(call.as_str()).copied().unwrap_or(0) % 3;
        let errors = if full { &ERRORS[..] } else { &ERRORS[turn..][..1] };
        for (name, words) in errors {
            let inject = format!("inject={call}:error={name}:when={nth}");
            let case = format!("{name} of {line}");
            let mut tries = 0;
            let output = loop {
                let output = strace(&sandbox, &["-e", &format!("trace={call}"), "-e", &inject]).output().unwrap();
                let trace = sandbox.read("trace");
                let injected = trace.lines().find(|line| line.contains("(INJECTED)"));
                let injected = injected.unwrap_or_else(|| panic!("{case}: nothing was injected"));
                tries += 1;
                // A busy machine has more calls before it: looks at a clock, at the time of a thread.
                if tries == 4 || touches(injected, &out) {
                    break output;
                }
                let _ = std::fs::remove_dir_all(sandbox.path("out"));
            };
            let said = String::from_utf8_lossy(&output.stderr);
            tried += 1;
            *by_call.entry(call).or_default() += 1;
            match output.status.code() {
                // It was tried again, or only costs room; or it was asked and answered another way.
                Some(0) => survived += 1,
                Some(status @ (1 | 2)) => {
                    ended += 1;
                    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
                    assert_eq!(errors.len(), 1, "{case}: {said}");
                    assert!(errors[0].contains("out"), "{case}: {said}");
                    // A refusal says what it means.
                    assert!(errors[0].contains(words) || status == 2, "{case}: {said}");
                    // Calls that change something are tried again; those that ask are never interrupted by the kernel.
                    let asks = ["statx", "newfstatat", "fstat", "flock", "read", "lseek"].contains(&call.as_str());
                    assert!(asks || *name != "EINTR", "{case}: not tried again: {said}");
                }
                status => panic!("{case}: {status:?} {said}"),
            }
            // Every checkpoint that is there is whole.
            if sandbox.path("out").exists() {
                for checkpoint in sandbox.names("out").iter().filter(|name| name.starts_with("checkpoint-")) {
                    assert!(is_whole(&sandbox, &format!("out/{checkpoint}")), "{case}: {checkpoint} is damaged");
                }
            }
            let before = checkpoints(&sandbox);
            sandbox.run(&train(RUN)).ok();
            sandbox.assert_same_result("out", "whole");
            let newest = before.keys().filter_map(|path| path.parent()).max();
            assert!(newest.is_none_or(|_| is_whole(&sandbox, "out/checkpoint-3")), "{case}");
            let left: Vec<String> = sandbox.names("out").into_iter().filter(|name| name.starts_with('.')).collect();
            assert_eq!(left, [".lock"], "{case}");
            std::fs::remove_dir_all(sandbox.path("out")).unwrap();
        }
    }
    println!("{tried} failures of {} calls: {ended} ended the run, {survived} did not; {by_call:?}", calls.len());
    assert!(ended > 20 && survived > 20, "{ended} {survived}");
}

/// A write of half of what was asked for is no failure.
#[test]
fn short_and_interrupted_writes_change_no_byte() {
    let sandbox = Sandbox::chat();
    let line = train(RUN);
    let traced = sandbox.run_at_fault(&line, "trace").ok();
    std::fs::rename(sandbox.path("out"), sandbox.path("whole")).unwrap();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for place in traced.stderr.lines().filter_map(|line| line.strip_prefix("fault point write/")) {
        *places.entry(place).or_default() += 1;
    }
    let mut tried = 0;
    for (place, times) in places {
        for nth in [1, times] {
            for action in ["short", "interrupted"] {
                sandbox.run_at_fault(&line, &format!("write/{place}:{nth}:{action}")).ok();
                sandbox.assert_same_result("out", "whole");
                assert!(is_whole(&sandbox, "out") && is_whole(&sandbox, "out/checkpoint-3"), "{place} {nth} {action}");
                std::fs::remove_dir_all(sandbox.path("out")).unwrap();
                tried += 1;
            }
        }
    }
    assert!(tried >= 40, "{tried}");
}
