//! Runs that a launcher of several processes started.

use crate::sandbox::{Sandbox, train};

#[test]
fn one_of_several_processes_is_refused_and_writes_nothing() {
    let sandbox = Sandbox::new();
    let launched = |rank: &str, world: &str| {
        let variables = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world)];
        let output = sandbox.command(&train("")).envs(variables).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, stderr) = launched("1", "2");
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("error: torchrun started 2 processes (WORLD_SIZE=2)"), "{stderr}");
    assert!(!sandbox.path("out").exists());
    let (status, stderr) = launched("0", "1");
    assert_eq!(status, Some(0), "{stderr}");
    assert!(sandbox.path("out/adapter_config.json").exists());
}
