//! A run that waits at a fault point, and signals to it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use qlora_train::files::failpoint::VARIABLE;

use crate::sandbox::Sandbox;

/// Reads standard error up to the line that holds `words`; returns it all. One byte at a time, as what follows is read
/// by others.
pub fn wait_for(child: &mut Child, words: &str) -> String {
    let mut read = String::new();
    let mut lines = BufReader::with_capacity(1, child.stderr.as_mut().unwrap());
    loop {
        let before = read.len();
        assert!(lines.read_line(&mut read).unwrap() > 0, "no {words:?} in {read}");
        if read[before..].contains(words) {
            return read;
        }
    }
}

/// The run waits at a fault point. Signals that these tests were started to ignore, as under nohup, are not ignored
/// there.
pub fn paused(sandbox: &Sandbox, line: &str, place: &str, milliseconds: u64) -> Child {
    let plain = sandbox.command(line);
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,TERM").arg(plain.get_program()).args(plain.get_args());
    command.current_dir(plain.get_current_dir().unwrap()).stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env(VARIABLE, format!("{place}:pause:{milliseconds}")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    wait_for(&mut child, "fault point reached");
    child
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

pub fn end(mut child: Child) -> (Option<i32>, String) {
    let mut rest = String::new();
    child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}
