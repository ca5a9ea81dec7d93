//! The table of steps that saved memory: their peak beside the plan, their speed, and whether they computed the same
//! bits as the others on their rows.

use crate::steps::{GIB, Link, Steps};
use std::fmt::Write;

/// True if one's steps are the first ones of the other's, or the other way round.
fn are_alike(one: &Steps, other: &Steps) -> bool {
    one.reports.iter().zip(&other.reports).all(|(one, other)| one == other)
}

/// True if both computed on the same rows with the same code.
fn are_of_one_work(one: &Steps, other: &Steps) -> bool {
    let work = |steps: &Steps| {
        let Steps { shape, seq, batch, lora_r, linear, built, .. } = steps;
        (steps.gpu().to_owned(), shape.clone(), *seq, *batch, *lora_r, linear.clone(), built.clone())
    };
    work(one) == work(other)
}

/// "as 3 others", or what is wrong.
fn bits(steps: &Steps, all: &[Steps]) -> String {
    let is_other = |other: &&Steps| other.file != steps.file && !other.reports.is_empty();
    let others: Vec<&Steps> = all.iter().filter(is_other).filter(|other| are_of_one_work(steps, other)).collect();
    let differ = others.iter().filter(|other| !are_alike(steps, other)).count();
    match others.len() {
        _ if steps.reports.is_empty() => "not known".to_owned(),
        0 => "no other".to_owned(),
        _ if differ > 0 => format!("**other than {differ}**"),
        1 => "as 1 other".to_owned(),
        count => format!("as {count} others"),
    }
}

/// Markdown of all steps that had a limit or a lever, the newest first; nothing where there are none.
pub fn table(all: &[Steps], hash: &str) -> String {
    let saving: Vec<&Steps> = all.iter().filter(|steps| !steps.is_unlimited()).collect();
    if saving.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\nSteps that save memory. Planned seconds are those of the trainer's planner for an H100, with copies at 16 GB/s; \
         the last column\ncompares losses and norms of the gradients, to the bit, with those of other runs on the same \
         rows.\n\n\
         | GPU | step | tokens/s | s a step | planned, s | copies to / from the GPU, GB/s | GPU memory, GiB | planned, GiB | \
         host memory planned, GiB | bits |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for steps in saving {
        let gib = |bytes: u64| bytes as f64 / GIB;
        let planned = steps.predicted_step_seconds.get("H100").map_or(String::new(), |seconds| format!("{seconds:.2}"));
        let link = |Link { to_gpu_gb_per_s, from_gpu_gb_per_s }: Link| {
            format!("{to_gpu_gb_per_s:.1} / {from_gpu_gb_per_s:.1}")
        };
        let device = &steps.device;
        let over = if device.peak_bytes > device.planned_bytes { ", **more than planned**" } else { "" };
        let old = if steps.is_of(hash) == Some(true) { "" } else { ", of other kernels" };
        let _ = writeln!(
            text,
            "| {} | [{}](../benches/records/steps/{}){old} | {:.0} | {:.2} | {planned} | {} | {:.2}{over} | {:.2} | {:.2} \
             | {} |",
            steps.gpu(),
            steps.work(),
            steps.file,
            steps.tokens_per_second,
            steps.step_seconds,
            steps.link.map_or(String::new(), link),
            gib(device.peak_bytes),
            gib(device.planned_bytes),
            gib(steps.host.planned_bytes),
            bits(steps, all),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::tests::made;
    use serde_json::{Value, json};

    fn steps(file: &str, change: impl Fn(&mut Value)) -> Steps {
        let mut value = made();
        value["steps"] = json!([{"loss": 11.5, "grad_norm": 0.25}, {"loss": 11.25, "grad_norm": 0.5}]);
        change(&mut value);
        let mut steps: Steps = serde_json::from_value(value).unwrap();
        file.clone_into(&mut steps.file);
        steps
    }

    #[test]
    fn runs_that_save_memory_are_told_with_their_plans_and_bits() {
        let resident = steps("resident.json", |_| ());
        assert_eq!(table(std::slice::from_ref(&resident), "now"), "");
        let streamed = steps("streamed.json", |value| {
            value["levers"]["weights"] = "host".into();
            value["levers"]["pinned_layers"] = 80.into();
            value["device"] =
                json!({"planned_bytes": 23u64 << 30, "peak_bytes": 45u64 << 29, "limit_bytes": 47u64 << 29});
            value["host"] = json!({"planned_bytes": 35u64 << 30, "peak_bytes": null, "limit_bytes": null});
            value["link"] = json!({"to_gpu_gb_per_s": 51.5, "from_gpu_gb_per_s": 49.0});
            value["predicted_step_seconds"] = json!({"H100": 3.5});
            // A single step, the first of the others'.
            value["steps"].as_array_mut().unwrap().truncate(1);
        });
        let all = [resident, streamed];
        let text = table(&all, "now");
        let row = "| NVIDIA H100 | [llama-3-70b, 1 × 2048 tokens, r 16, 80 offloaded, weights of 80 in host memory, in 23.5 \
                   GiB](../benches/records/steps/streamed.json) | 1400 | 1.50 | 3.50 | 51.5 / 49.0 | 22.50 | 23.00 | 35.00 | \
                   as 1 other |";
        assert!(text.contains(row) && !text.contains("resident.json"), "{text}");
        assert!(table(&all, "later").contains("streamed.json), of other kernels |"));

        let [resident, streamed] = all;
        let other = steps("other.json", |value| {
            value["levers"]["lm_head"] = "host".into();
            value["device"]["peak_bytes"] = (44u64 << 30).into();
            value["steps"][1]["grad_norm"] = 0.500_000_000_000_1.into();
        });
        let elsewhere = steps("elsewhere.json", |value| {
            value["levers"]["token_tile"] = 512.into();
            value["gpu"] = "NVIDIA L40S".into();
        });
        let text = table(&[resident, streamed, other, elsewhere], "now");
        let of = |file: &str| text.lines().find(|line| line.contains(file)).unwrap();
        assert!(of("other.json").ends_with("| **other than 1** |"), "{text}");
        assert!(of("other.json").contains("| 44.00, **more than planned** | 43.00 |"), "{text}");
        assert!(
            of("streamed.json").ends_with("| as 2 others |") && of("elsewhere.json").ends_with("| no other |"),
            "{text}"
        );
    }
}
