//! Sums of gradients beside the backward pass, in processes that a launcher started.

use std::process::Command;

use qlora_train::files::failpoint::VARIABLE;

use crate::launched::{ended, run, start};
use crate::sandbox::{Sandbox, train};

/// An epoch of twelve rows in steps of up to six micro-batches, of which the processes have three each, or fewer.
fn line(out: &str, more: &str) -> String {
    train(&format!(
        "--output-dir {out} --max-steps 5 --packing false --lora-dropout 0.1 --lora-r 3 --logging-steps 1 --save-steps 2 \
         --threads 1 --compute f32 --gradient-accumulation-steps 3 {more}"
    ))
}

/// Each process may make its sums while other layers compute, or afterwards.
#[test]
fn sums_beside_the_backward_pass_change_no_byte() {
    let sandbox = Sandbox::new();
    for world in [2, 3] {
        let (beside, after, mixed) = (format!("beside{world}"), format!("after{world}"), format!("mixed{world}"));
        run(&sandbox, &line(&beside, ""), world);
        for (out, from) in [(&after, 0), (&mixed, 1)] {
            let all = ended(
                &sandbox,
                start(&sandbox, &line(out, ""), world, |rank, command| {
                    if rank >= from {
                        command.env("QLORA_OVERLAP", "off");
                    }
                }),
            );
            assert!(all.iter().all(|left| left.status == Some(0)), "{all:#?}");
            sandbox.assert_same_result(out, &beside);
        }
    }
    let wrong = |_: usize, command: &mut Command| {
        command.env("QLORA_OVERLAP", "maybe");
    };
    for left in ended(&sandbox, start(&sandbox, &line("wrong", ""), 2, wrong)) {
        assert_eq!(left.status, Some(2), "{left:#?}");
        let words = "environment variable QLORA_OVERLAP: found \"maybe\", expected \"on\" or \"off\"";
        assert!(left.stderr.contains(words), "{left:#?}");
    }
    // A variable of one rank alone ends all, and nobody waits for it.
    let of_one = |rank: usize, command: &mut Command| {
        if rank == 1 {
            wrong(rank, command);
        }
    };
    for left in ended(&sandbox, start(&sandbox, &line("wrong", ""), 3, of_one)) {
        assert_eq!(left.status, Some(2), "{left:#?}");
        let words = ["rank 1", "environment variable QLORA_OVERLAP: found \"maybe\""];
        assert!(words.iter().all(|word| left.stderr.contains(word)), "{left:#?}");
    }
}

/// One that has given its part to some of the others, and to some not.
#[test]
fn a_rank_that_dies_within_a_sum_ends_all_by_its_name() {
    let sandbox = Sandbox::new();
    run(&sandbox, &line("whole", ""), 3);
    for of in [0, 1, 2] {
        for place in ["sum:1", "sum:4"] {
            let dies = |rank: usize, command: &mut Command| {
                if rank == of {
                    command.env(VARIABLE, place);
                }
            };
            let all = ended(&sandbox, start(&sandbox, &line("out", ""), 3, dies));
            assert_eq!(all[of].status, None, "{all:#?}");
            for (_, left) in all.iter().enumerate().filter(|(rank, _)| *rank != of) {
                assert_eq!(left.status, Some(1), "{all:#?}");
                let words = [format!("rank {of} ("), "is gone".to_owned()];
                assert!(words.iter().all(|word| left.stderr.contains(word)), "{all:#?}");
            }
            run(&sandbox, &line("out", "--resume-from-checkpoint"), 3);
            sandbox.assert_same_result("out", "whole");
            std::fs::remove_dir_all(sandbox.path("out")).unwrap();
        }
    }
}

/// A loss that is not finite: the rank that has it says where it came from, and all end with its words.
#[test]
fn a_rank_whose_loss_is_not_finite_ends_all_by_its_name() {
    let sandbox = Sandbox::new();
    let absurd = "--learning-rate 10 --weight-decay 100 --lr-scheduler-type constant";
    let line = line("out", absurd).replace("--max-steps 5", "--max-steps 100").replace("-steps 3", "-steps 1");
    let all = ended(&sandbox, start(&sandbox, &line, 2, |_, _| ()));
    for left in &all {
        assert_eq!(left.status, Some(1), "{all:#?}");
        assert!(left.stderr.contains("nothing was updated"), "{all:#?}");
    }
}
