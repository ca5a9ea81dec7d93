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

/// The run waits at a fault point until its standard input ends. Signals that these tests were started to ignore, as
/// under nohup, are not ignored there.
pub fn paused(sandbox: &Sandbox, line: &str, place: &str) -> Child {
    let plain = sandbox.command(line);
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,TERM").arg(plain.get_program()).args(plain.get_args());
    command.current_dir(plain.get_current_dir().unwrap()).stdin(Stdio::piped());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env(VARIABLE, format!("{place}:wait")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    wait_for(&mut child, "fault point reached");
    child
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Sends a signal to a run that waits, and returns what it says to that.
pub fn asked_to_stop(child: &mut Child, name: &str) -> String {
    signal(child, name);
    wait_for(child, "a second one leaves at once")
}

/// Asks a run that waits to stop, and lets it go on.
pub fn stopped(mut child: Child, name: &str) -> (Option<i32>, String) {
    let said = asked_to_stop(&mut child, name);
    let (status, rest) = end(child);
    (status, said + &rest)
}

/// Lets the run go on where it waits, to its end.
pub fn end(mut child: Child) -> (Option<i32>, String) {
    drop(child.stdin.take());
    let mut rest = String::new();
    child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}
