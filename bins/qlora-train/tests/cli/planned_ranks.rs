//! Plans of runs in several processes.

use serde_json::{Value, json};

use crate::launched::{command, ended, free_port, spawn};
use crate::sandbox::{Sandbox, assert_close};

fn plan(sandbox: &Sandbox, line: &str) -> Value {
    sandbox.run(&format!("plan --json {line}")).json()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key}: {value}"))
}

const ON_GPU: &str = "--model llama-3-8b --gpu h100 --max-length 2048 --max-steps 500 --price-per-hour 2.5 \
                      --host-memory 64GiB --gradient-accumulation-steps";

#[test]
fn processes_share_steps_and_each_has_its_memory_and_its_sums() {
    let sandbox = Sandbox::new();
    let alone = plan(&sandbox, &format!("{ON_GPU} 2"));
    let shared = plan(&sandbox, &format!("{ON_GPU} 2 --processes 8"));
    assert!(alone["processes"].is_null());
    // 41,943,040 gradients in f32, seven eighths of them twice.
    let expected = json!({
        "world_size": 8, "local_world_size": 8, "machines": 1, "micro_batches_per_step": 16, "rows_per_step": 16,
        "sum_bytes_per_step": 293_601_280,
    });
    assert_eq!(shared["processes"], expected);
    let ([one, of_eight], [before, after]) =
        ([&alone["forecast"], &shared["forecast"]], [&alone["host"], &shared["host"]]);
    // Each does what one process does alone, and all of them eight times as many tokens.
    for key in ["step_seconds", "hours", "cost"] {
        assert_close(number(of_eight, key), number(one, key), 1e-9);
    }
    assert_close(number(of_eight, "tokens"), 8.0 * number(one, "tokens"), 1e-9);
    assert_eq!(alone["device"], shared["device"]);
    // Sums are made in the host's memory, which the setting gives to each.
    let sums = number(before, "budget_bytes") - number(after, "budget_bytes");
    assert!(sums > 4.0 * 4096.0 * 16.0 && sums < 1e9, "{sums}");
    // Every machine costs.
    let two = plan(&sandbox, &format!("{ON_GPU} 2 --processes 8 --processes-per-machine 4"));
    assert_eq!((&two["processes"]["machines"], &two["processes"]["local_world_size"]), (&2.into(), &4.into()));
    assert_close(number(&two["forecast"], "cost"), 2.0 * number(one, "cost"), 1e-9);
    let text = sandbox.run(&format!("plan {ON_GPU} 2 --processes 8 --processes-per-machine 4")).ok().stdout;
    for words in [
        "8 processes on 2 machines: the plan is that of each; a step has 16 micro-batches of all of them",
        " (2 of each), of 1 row",
        "each process sends and receives 280.0 MiB",
        "GPU memory that NCCL takes for sums is not in the plan",
        "; at 2.5 an hour for a machine: ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// The rows come in the steps of one process with as much accumulation, and the memory of the machine is shared.
#[test]
fn processes_of_a_machine_share_its_memory_and_its_rows() {
    let sandbox = Sandbox::new();
    let line = "--model model --data rows.jsonl --device cpu --compute f32 --max-length 64 --packing false --allow all \
                --num-train-epochs 3 --measure --gradient-accumulation-steps";
    let one = plan(&sandbox, &format!("{line} 8"));
    let four = plan(&sandbox, &format!("{line} 2 --processes 4"));
    let of = |plan: &Value| ["steps", "tokens"].map(|key| number(&plan["forecast"], key));
    // 12 rows an epoch, in steps of eight and of four.
    assert_eq!((of(&one)[0], of(&four)), (6.0, of(&one)));
    let share = number(&four["host"], "budget_bytes") / number(&one["host"], "budget_bytes");
    assert!((0.15..0.4).contains(&share), "{share}");
    let names =
        |plan: &Value| plan["buffers"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert!(names(&one).contains(&"rows, tokenizer and program".into()), "{one}");
    assert!(names(&four).contains(&"rows, tokenizer, program, sums over processes".into()), "{four}");
    // What each is given is its own.
    let given = plan(&sandbox, "--model model --max-length 64 --device cpu --host-memory 1GiB --processes 4");
    assert_eq!(given["host"]["budget_bytes"], 1 << 30);
}

/// Rank 0 answers for the processes that a launcher started; flags do not say something else.
#[test]
fn a_plan_under_a_launcher_is_one_of_its_processes() {
    let sandbox = Sandbox::new();
    let line = "plan --json --model model --max-length 64 --device cpu";
    let all = |line: &str| {
        let port = free_port();
        ended(&sandbox, (0..2).map(|rank| spawn(&sandbox, command(&sandbox, line, rank, 2, port), rank)).collect())
    };
    let both = all(line);
    let (first, second) = (&both[0], &both[1]);
    assert_eq!((first.status, second.status), (Some(0), Some(0)), "{first:#?} {second:#?}");
    assert_eq!((second.stdout.as_str(), second.stderr.as_str()), ("", ""));
    let found: Value = serde_json::from_str(&first.stdout).unwrap();
    assert_eq!((&found["processes"]["world_size"], &found["processes"]["machines"]), (&2.into(), &1.into()));
    let other = all(&format!("{line} --processes 3"));
    assert_eq!(other[0].status, Some(2), "{other:#?}");
    assert!(other[0].stderr.contains("--processes: found 3, but torchrun started 2 processes"), "{other:#?}");
    assert_eq!(all(&format!("{line} --processes 2"))[0].status, Some(0));
    // The launcher says how many there are, the flag how they are spread.
    let spread = all(&format!("{line} --processes-per-machine 1"));
    let found: Value = serde_json::from_str(&spread[0].stdout).unwrap_or_else(|_| panic!("{spread:#?}"));
    assert_eq!((&found["processes"]["world_size"], &found["processes"]["machines"]), (&2.into(), &2.into()));
    sandbox.refused(
        "plan --model model --processes 2 --processes-per-machine 4",
        &["--processes-per-machine: found 4", "which is 2"],
    );
    for wrong in ["--processes 0", "--processes many", "--processes-per-machine 2"] {
        let done = sandbox.run(&format!("plan --model model {wrong}"));
        assert!(done.status == Some(2) && done.stderr.contains("--processes"), "{done:#?}");
    }
}
