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
        "8 processes on 2 machines: the plan is for each; a step has 16 micro-batches of all of them",
        " (2 of each), of 1 row",
        "each process sends and receives 280.0 MiB",
        "GPU memory that NCCL takes for sums is not in the plan",
        "; at 2.5 an hour for a machine: ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// NCCL adds up on the GPUs, and takes nothing of what the setting gives to each process.
#[test]
fn sums_by_nccl_take_none_of_the_memory_of_the_host() {
    let sandbox = Sandbox::new();
    let plan = |more: &str, sums: &str| {
        sandbox.run_with(&format!("plan --json {ON_GPU} 2 {more}"), &[("QLORA_SUMS", sums)]).json()
    };
    let bytes = |plan: Value| number(&plan["host"], "budget_bytes");
    assert_eq!(bytes(plan("--processes 8", "nccl")), bytes(plan("", "")));
    let on_host = bytes(plan("--processes 8", "host"));
    assert_eq!(on_host, bytes(plan("--processes 2", "host")));
    assert!(on_host < bytes(plan("", "host")));
    let text =
        |sums: &str| sandbox.run_with(&format!("plan {ON_GPU} 2 --processes 8"), &[("QLORA_SUMS", sums)]).ok().stdout;
    let words = "sums in the memory of the host, as without NCCL, are in the plan: ";
    assert!(text("host").contains(words) && !text("nccl").contains(words));
    // With sums in host memory, there is no NCCL that takes GPU memory.
    let of_nccl = "GPU memory that NCCL takes for sums is not in the plan";
    assert!(!text("host").contains(of_nccl) && text("nccl").contains(of_nccl) && text("").contains(of_nccl));
    let on_cpu = "plan --model model --max-length 64 --device cpu --compute f32 --processes 2";
    let refused = [("nccl", "cannot be used: it computes on the CPU"), ("tree", "expected \"nccl\" or \"host\"")];
    for (sums, words) in refused {
        sandbox.run_with(on_cpu, &[("QLORA_SUMS", sums)]).ended(2, &["QLORA_SUMS", words]);
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
    // A given limit is for each process alone.
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

/// Weights that wait in host memory are one copy for all processes of a machine, and each counts its part.
#[test]
fn processes_of_a_machine_have_one_copy_of_weights_in_host_memory() {
    let sandbox = Sandbox::new();
    let line =
        |host: &str| format!("--model llama-3-70b --gpu l40s --max-length 2048 --weights host --host-memory {host}");
    let of_weights = |plan: &Value| -> u64 {
        let buffers = plan["buffers"].as_array().unwrap().iter();
        let of_name = |one: &&Value| one["name"] == "layers' weights in host memory";
        buffers.filter(of_name).map(|one| one["bytes"].as_u64().unwrap()).sum()
    };
    let alone = plan(&sandbox, &line("64GiB"));
    let all = of_weights(&alone);
    assert!(alone["shared_weights"].is_null());
    let four = plan(&sandbox, &format!("{} --processes 8 --processes-per-machine 4", line("64GiB")));
    assert_eq!(four["shared_weights"], json!({"bytes": all, "processes": 4}));
    assert_eq!((of_weights(&four), of_weights(&four) * 4), (all / 4, all));
    let spread = plan(&sandbox, &format!("{} --processes 4 --processes-per-machine 1", line("64GiB")));
    assert!(spread["shared_weights"].is_null() && of_weights(&spread) == all);
    // On the second machine two hold what four do on the first.
    let uneven = plan(&sandbox, &format!("{} --processes 6 --processes-per-machine 4", line("64GiB")));
    assert_eq!(uneven["shared_weights"], json!({"bytes": all, "processes": 2}));
    // Host memory for a part of each process, and not for a copy of each.
    assert_eq!(sandbox.run(&format!("plan {}", line("24GiB"))).status, Some(1));
    let done = sandbox.run(&format!("plan {} --processes 4", line("24GiB"))).ok().stdout;
    let told =
        "one copy of 32.9 GiB of weights in host memory is shared by 4 processes of a machine: each counts 8.2 GiB";
    assert!(done.contains(told), "{done}");
}
