//! Runs in several processes: the run of one process with as much accumulation, and all end together, however one ends.

use std::process::Command;
use std::time::{Duration, Instant};

use qlora_kernels::rng::RngStream;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::files::failpoint::VARIABLE;
use serde_json::Value;

use crate::launched::{Left, Rank, command, ended, free_port, run, spawn, start};
use crate::sandbox::{Sandbox, train};

/// An epoch of nine rows, so that its last step has one micro-batch of four: ranks without any. Masks, folded B, losses
/// logged over several steps, evaluations. Arithmetic in f32: of bf16 values a last bit of a sum is one in 256.
const RUN: &str = "--max-steps 8 --packing false --lora-dropout 0.1 --lora-r 3 --use-rslora --loraplus-lr-ratio 2 \
                   --learning-rate 1e-3 --logging-steps 1 --val-set-size 3 --eval-steps 3 --eval-on-start \
                   --save-steps 2 --threads 1 --compute f32";
/// Micro-batches of a step, of all processes
pub const OF_STEP: usize = 4;

/// A run into `out` whose processes have `each` micro-batches of a step.
pub fn line(out: &str, each: usize, more: &str) -> String {
    train(&format!("--output-dir {out} {RUN} --gradient-accumulation-steps {each} {more}"))
}

/// Two runs came to the same: losses and evaluations to 1e-6, norms of gradients to 1e-3.
///
/// The gradients of a step are the same terms in another order: each sum differs by some 2⁻²⁴ of its terms. AdamW moves
/// a weight whose terms cancel by up to its rate, whatever is left of them; the loss hardly depends on such a weight,
/// the gradient of others a little more.
#[track_caller]
pub fn assert_close(sandbox: &Sandbox, one: &str, other: &str) {
    let (one, other) = (sandbox.metrics(one), sandbox.metrics(other));
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        for (key, value) in one.as_object().unwrap() {
            let (a, b) = (value, &other[key]);
            let close = match key.as_str() {
                "loss" | "eval_loss" => {
                    let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                    (a - b).abs() <= 1e-6 * b.abs().max(1.0)
                }
                "grad_norm" | "grad_norm_a" | "grad_norm_b" => {
                    let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                    (a - b).abs() <= 1e-3 * b.abs()
                }
                _ => a == b,
            };
            assert!(close, "{key}: {a} and {b} in {one} and {other}");
        }
    }
}

/// Nothing of the work is left over.
#[track_caller]
fn assert_tidy(sandbox: &Sandbox, out: &str) {
    for name in sandbox.names(out) {
        assert!(name == ".lock" || !name.starts_with('.'), "{out}/{name} is left over");
    }
}

#[test]
fn several_processes_train_as_one_with_as_much_accumulation() {
    let sandbox = Sandbox::new();
    sandbox.run(&line("alone", OF_STEP, "")).ok();
    for world in [2, 4] {
        let (out, again) = (format!("of{world}"), format!("again{world}"));
        let all = run(&sandbox, &line(&out, OF_STEP / world, ""), world);
        assert_close(&sandbox, &out, "alone");
        assert_tidy(&sandbox, &out);
        // Evaluations of the same adapter are the same to the bit: that of the start.
        let start = |out: &str| sandbox.metrics(out)[0]["eval_loss"].clone();
        assert_eq!(start(&out), start("alone"));
        // Rank 0 alone speaks.
        let answer: Value = serde_json::from_str(&all[0].stdout).unwrap();
        assert_eq!(answer["steps"], 8);
        assert!(all[0].stderr.contains(&format!("{world} processes: a step has 4 micro-batches")), "{:#?}", all[0]);
        for left in &all[1..] {
            assert_eq!((left.stdout.as_str(), left.stderr.as_str()), ("", ""));
        }
        run(&sandbox, &line(&again, OF_STEP / world, ""), world);
        sandbox.assert_same_result(&again, &out);
        let card = sandbox.read(&format!("{out}/README.md"));
        let sums = format!(" Gradients of {world} processes were added up in the order of the processes: with another");
        assert!(card.contains(&sums), "{card}");
    }
    assert!(!sandbox.read("alone/README.md").contains("processes"));
    // With one micro-batch of a step for each rank, the sum is in the order of one process.
    assert!(sandbox.bytes("of4/adapter_model.safetensors") == sandbox.bytes("alone/adapter_model.safetensors"));
}

/// The run is its effective batch, not the number of processes: the same command goes on in any number of them.
#[test]
fn a_run_goes_on_in_another_number_of_processes() {
    let sandbox = Sandbox::new();
    run(&sandbox, &line("whole", 2, ""), 2);
    let stopped = |out: &str, world: usize, each: usize| {
        let all = ended(
            &sandbox,
            start(&sandbox, &line(out, each, ""), world, |rank, command| {
                if rank == 0 {
                    command.env(VARIABLE, "step:5");
                }
            }),
        );
        assert_eq!(all[0].status, None, "{all:#?}");
        all[1..].iter().for_each(|left| assert_eq!(left.status, Some(1), "{left:#?}"));
    };
    for (world, each) in [(2, 2), (1, 2), (4, 2), (3, 2), (4, 1)] {
        let out = format!("in{world}of{each}");
        stopped(&out, 2, 2);
        let on = run(&sandbox, &line(&out, each, "--resume-from-checkpoint"), world);
        assert!(on[0].stderr.contains("resuming after step 4 of 8"), "{}", on[0].stderr);
        if world == 2 {
            sandbox.assert_same_result(&out, "whole");
        }
        assert_close(&sandbox, &out, "whole");
        assert_tidy(&sandbox, &out);
        // It is the same run, however it is asked about.
        let said = run(&sandbox, &line(&out, 2, ""), 2);
        assert!(said[0].stderr.contains("this run is finished (8 steps)"), "{}", said[0].stderr);
    }
    // One process began it.
    assert_eq!(sandbox.run_at_fault(&line("alone", 4, ""), "step:5").status, None);
    let on = run(&sandbox, &line("alone", 4, "--resume-from-checkpoint"), 2);
    assert!(on[0].stderr.contains("keeps the 4 micro-batches"), "{}", on[0].stderr);
    assert_close(&sandbox, "alone", "whole");
    // Another effective batch is another run.
    for left in ended(&sandbox, start(&sandbox, &line("whole", 3, ""), 2, |_, _| ())) {
        assert_eq!(left.status, Some(2), "{left:#?}");
        assert!(left.stderr.contains("`gradient_accumulation_steps` was 4 and is 6 now"), "{left:#?}");
    }
}

/// The rest of a group ends by itself, in time, and says who was at fault; `of` is that rank.
#[track_caller]
fn ended_by(sandbox: &Sandbox, group: Vec<Rank>, of: usize, words: &str) -> Vec<Left> {
    let begun = Instant::now();
    let all = ended(sandbox, group);
    assert!(begun.elapsed() < Duration::from_secs(60), "{all:#?}");
    for (_, left) in all.iter().enumerate().filter(|(rank, _)| *rank != of) {
        assert_eq!(left.status, Some(1), "{all:#?}");
        assert!(left.stderr.contains(&format!("rank {of} (")) && left.stderr.contains(words), "{words}: {all:#?}");
    }
    all
}

#[test]
fn a_rank_that_dies_ends_all_by_its_name() {
    let sandbox = Sandbox::new();
    run(&sandbox, &line("whole", 2, ""), 2);
    for (of, place) in [(0, "micro-batch:5"), (1, "micro-batch:5"), (1, "step:3")] {
        let dies = |rank: usize, command: &mut Command| {
            if rank == of {
                command.env(VARIABLE, place);
            }
        };
        let all = ended_by(&sandbox, start(&sandbox, &line("out", 2, ""), 2, dies), of, "is gone");
        assert_eq!(all[of].status, None);
        run(&sandbox, &line("out", 2, "--resume-from-checkpoint"), 2);
        sandbox.assert_same_result("out", "whole");
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

/// A process that is stopped keeps its connections: only its silence tells.
#[test]
fn a_rank_that_hangs_ends_all_by_its_name() {
    let sandbox = Sandbox::new();
    let with_hanging = |of: usize| {
        let hangs = |rank: usize, command: &mut Command| {
            command.env("QLORA_SILENCE_SECONDS", "4");
            if rank == of {
                command.env(VARIABLE, "micro-batch:3:pause:600000");
            }
        };
        let out = format!("out{of}");
        let mut group = start(&sandbox, &line(&out, 1, ""), 3, hangs);
        group[of].wait_for(&sandbox, "fault point reached");
        let process = group[of].child.id().to_string();
        assert!(Command::new("kill").args(["-STOP", &process]).status().unwrap().success());
        let stopped = group.remove(of);
        (of, group, stopped)
    };
    // Both groups wait at the same time.
    for (of, group, mut stopped) in [0, 1].map(with_hanging) {
        for left in ended(&sandbox, group) {
            assert_eq!(left.status, Some(1), "{left:#?}");
            let words = [format!("rank {of} ("), "has not answered for 4 s".to_owned()];
            assert!(words.iter().all(|word| left.stderr.contains(word)), "{left:#?}");
        }
        stopped.child.kill().unwrap();
        stopped.child.wait().unwrap();
    }
}

/// A computation that hangs: its process lives, and is ended like all others.
#[test]
fn a_rank_whose_work_hangs_ends_all_by_its_name() {
    let sandbox = Sandbox::new();
    let hangs = |rank: usize, command: &mut Command| {
        command.env("QLORA_STALL_SECONDS", "4").env("QLORA_SILENCE_SECONDS", "4");
        if rank == 1 {
            command.env(VARIABLE, "micro-batch:3:pause:600000");
        }
    };
    for left in ended(&sandbox, start(&sandbox, &line("out", 1, ""), 3, hangs)) {
        assert_eq!(left.status, Some(1), "{left:#?}");
        let words = ["rank 1 (", "lives, but did not come to the others", "for 4 s"];
        assert!(words.iter().all(|word| left.stderr.contains(word)), "{left:#?}");
    }
}

#[test]
fn an_error_of_one_rank_is_the_end_of_all() {
    let sandbox = Sandbox::new();
    let full = |rank: usize, command: &mut Command| {
        if rank == 0 {
            command.env(VARIABLE, "write/metrics.jsonl:3:full");
        }
    };
    let all = ended_by(&sandbox, start(&sandbox, &line("out", 2, ""), 2, full), 0, "ended the run: ");
    assert_eq!(all[0].status, Some(1));
    assert!(all.iter().all(|left| left.stderr.contains("out/metrics.jsonl: cannot be written")), "{all:#?}");
    // Refused by rank 0, which alone looks at the output directory.
    for left in ended(&sandbox, start(&sandbox, &line("rows.jsonl", 2, ""), 2, |_, _| ())) {
        assert_eq!(left.status, Some(2), "{left:#?}");
        assert!(left.stderr.contains("rows.jsonl: found something that is not a directory"), "{left:#?}");
    }
}

#[test]
fn ranks_that_differ_are_refused_with_what_differs() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("others.jsonl", 12, 2);
    Synthetic::new(tiny_arch(), 2).write(&sandbox.path("other")).unwrap();
    for (more, words) in [
        ("--seed 43", "in `seed`: 43 there, 42 here"),
        ("--save-steps 3", "in `save_steps`: 3 there, 2 here"),
        ("--data others.jsonl", "in the contents of `data`: "),
        ("--model other", "in the base's weights: "),
    ] {
        let port = free_port();
        let one = |rank: usize| {
            let own = if rank == 1 { line("out", 2, more) } else { line("out", 2, "") };
            // A flag is given once.
            let own =
                own.replace("--save-steps 2 ", if more.contains("save") && rank == 1 { "" } else { "--save-steps 2 " });
            spawn(&sandbox, command(&sandbox, &own, rank, 2, port), rank)
        };
        for left in ended(&sandbox, vec![one(0), one(1)]) {
            assert_eq!(left.status, Some(2), "{more}: {left:#?}");
            let told = left.stderr.contains("rank 1 (") && left.stderr.contains(words);
            assert!(told, "{more}: {words:?} in {left:#?}");
        }
        assert!(!sandbox.path("out").exists(), "{more}");
    }
}

/// Any rank may be the one that is asked to stop: all save and stop together.
#[test]
fn a_signal_to_one_rank_stops_all_of_them() {
    let sandbox = Sandbox::new();
    run(&sandbox, &line("whole", 2, ""), 2);
    for (of, place, step) in [(1, "micro-batch:3", 1), (0, "step:3", 3)] {
        let pauses = |rank: usize, command: &mut Command| {
            if rank == of {
                command.env(VARIABLE, format!("{place}:pause:500"));
            }
        };
        let mut group = start(&sandbox, &line("out", 2, ""), 2, pauses);
        group[of].wait_for(&sandbox, "fault point reached");
        let process = group[of].child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
        let all = ended(&sandbox, group);
        assert!(all.iter().all(|left| left.status == Some(143)), "{all:#?}");
        assert!(all[0].stderr.contains(&format!("stopped after step {step} of 8; saved in out/")), "{all:#?}");
        run(&sandbox, &line("out", 2, "--resume-from-checkpoint"), 2);
        sandbox.assert_same_result("out", "whole");
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

/// Rank 0 decides about the directory of a run: the others need not know it by the same name.
#[test]
fn a_resumed_run_is_stopped_where_it_stands_whatever_its_ranks_call_the_directory() {
    let sandbox = Sandbox::new();
    let dies = |rank: usize, command: &mut Command| {
        if rank == 0 {
            command.env(VARIABLE, "step:5");
        }
    };
    ended_by(&sandbox, start(&sandbox, &line("out", 2, ""), 2, dies), 0, "is gone");
    let port = free_port();
    let one = |rank: usize| {
        let own = line(if rank == 0 { "out" } else { "elsewhere" }, 2, "--resume-from-checkpoint");
        let mut command = command(&sandbox, &own, rank, 2, port);
        if rank == 1 {
            command.env(VARIABLE, "micro-batch:1:pause:500");
        }
        spawn(&sandbox, command, rank)
    };
    let mut group = vec![one(0), one(1)];
    group[1].wait_for(&sandbox, "fault point reached");
    let process = group[1].child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    let all = ended(&sandbox, group);
    assert!(all.iter().all(|left| left.status == Some(143)), "{all:#?}");
    assert!(all[0].stderr.contains("stopped after step 4 of 8; saved in out/checkpoint-4"), "{all:#?}");
    assert!(!sandbox.path("elsewhere").exists());
    run(&sandbox, &line("whole", 2, ""), 2);
    run(&sandbox, &line("out", 2, "--resume-from-checkpoint"), 2);
    sandbox.assert_same_result("out", "whole");
}

/// Answers are given by rank 0 and judged by all: the run ends early, with its best checkpoint, on every rank.
#[test]
fn runs_that_are_judged_end_together() {
    let sandbox = Sandbox::chat();
    let judged = |out: &str, each: usize| {
        train(&format!(
            "--output-dir {out} --data chat.jsonl --val-data chat.jsonl --max-steps 40 --packing false --threads 1 \
             --compute f32 --learning-rate 1 --eval-steps 1 --eval-answers 2 --eval-max-new-tokens 2 \
             --metric-for-best-model rouge_l --early-stopping-patience 2 --load-best-model-at-end \
             --gradient-accumulation-steps {each}"
        ))
    };
    sandbox.run(&judged("alone", 2)).ok();
    run(&sandbox, &judged("of2", 1), 2);
    let samples = |out: &str| sandbox.metrics(out)[0]["samples"].clone();
    assert!(samples("alone").is_array() && samples("alone") == samples("of2"));
    let steps = |out: &str| sandbox.json(&format!("{out}/trainer_state.json"))["global_step"].as_u64().unwrap();
    assert_eq!(steps("of2"), steps("alone"));
    assert!(steps("of2") < 40);
    assert_tidy(&sandbox, "of2");
}

/// Kills of the campaign: `QLORA_RANK_KILLS`, else 4.
fn kills_wanted() -> usize {
    std::env::var("QLORA_RANK_KILLS").map_or(4, |number| number.parse().expect("QLORA_RANK_KILLS is a number"))
}

/// Each time in another number of processes, by the same command, any of which is killed at any moment.
#[test]
fn a_run_of_which_any_rank_is_killed_at_any_moment_goes_on_in_any_number_of_processes() {
    let wanted = kills_wanted();
    let sandbox = Sandbox::new();
    let mut stream = RngStream::new(std::process::id().into(), 23);
    let begun = Instant::now();
    run(&sandbox, &line("whole", 2, ""), 2);
    let whole = begun.elapsed();
    let (mut kills, mut finished, mut deaths) = (0, 0, 0);
    while kills < wanted {
        let world = 1 + stream.below(3) as usize;
        let group = line("out", 2, "--resume-from-checkpoint");
        let bound = |_: usize, command: &mut Command| {
            command.env("QLORA_JOIN_SECONDS", "5").env("QLORA_SILENCE_SECONDS", "10");
        };
        // The first to begin it decides how many micro-batches a step has.
        let world = if sandbox.path("out/run.json").exists() { world } else { 2 };
        let mut group = start(&sandbox, &group, world, bound);
        std::thread::sleep(whole.mul_f32(stream.uniform() * 1.1));
        let of = stream.below(world as u32) as usize;
        group[of].child.kill().unwrap();
        let all = ended(&sandbox, group);
        let died = all[of].status.is_none();
        deaths += usize::from(died);
        for (rank, left) in all.iter().enumerate() {
            // After the last meeting a rank ends well, whatever becomes of the others.
            let ended_well = left.status == Some(0) || (rank == of && left.status.is_none());
            let told = [Some(1), Some(2)].contains(&left.status) && left.stderr.contains("rank ");
            assert!(ended_well || told, "{rank} of {world}: {all:#?}");
        }
        kills += usize::from(died);
        if all[0].status == Some(0) {
            finished += 1;
            assert_close(&sandbox, "out", "whole");
            std::fs::remove_dir_all(sandbox.path("out")).unwrap();
        }
    }
    run(&sandbox, &line("out", 2, "--resume-from-checkpoint"), 2);
    assert_close(&sandbox, "out", "whole");
    assert_tidy(&sandbox, "out");
    println!("{deaths} kills, {finished} runs that finished on the way: nothing lost");
}
