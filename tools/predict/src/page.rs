//! `docs/predicted.md`.

use crate::calibration::{self, Calibrated};
use crate::cards::{BLOCK_START, CARDS, Constant, LAUNCH_GAP, LAUNCH_RAMP};
use crate::goals::{Bound, Judged};
use crate::launches::{Kernels, predict};
use crate::measured::Compared;
use crate::measured_steps::{self, ComparedStep};
use crate::operations::{Operation, predicted_small_times, small_times};
use crate::steps::{PlannedStep, Products, memory_of, step};
use anyhow::{Context, Result};
use std::fmt::Write;

const HEAD: &str = "\
# Predicted speed

**Predicted, not measured.** No kernel has run on a GPU yet. `cargo xtask predict` makes this page from the machine code
that nvcc makes, and `cargo xtask test` checks that it is what the tool prints.

A warp's way through a kernel is followed in the machine code: addresses of shared and global memory, branches, and the
control codes that the hardware obeys. Warps of as many blocks as a multiprocessor holds then run it, cycle by cycle, on
four schedulers, with the tensor cores, the other units, the banks of shared memory, and a share of the L2 and of DRAM.
Blocks of the real grid are placed on the multiprocessors in order. Not modeled: the instruction cache, register banks,
hits in the L1 beyond a warp's own, clocks that fall. A branch whose way is not known is taken to skip what is not work.
";

/// The work whose kernels are shown: operations of the planned steps of a 70B, on as many tokens.
fn shown(steps: &[PlannedStep]) -> Result<Vec<(&'static str, Operation)>> {
    let of_70b = |tokens: usize, name: &str, is_it: &dyn Fn(&Operation) -> bool| {
        let of_step = |step: &&PlannedStep| step.shape == "llama-3-70b" && step.tokens == tokens;
        let mut operations = steps.iter().filter(of_step).flat_map(|step| &step.operations);
        let found = operations.find(|operation| operation.name == name && is_it(operation)).cloned();
        found.with_context(|| format!("no step of a 70B with {tokens} tokens has this operation: {name}"))
    };
    let gate_up = |name| of_70b(4096, name, &|operation| operation.k == 8192 && operation.segments.len() == 2);
    let any = |tokens, name| of_70b(tokens, name, &|_| true);
    // With the residual stream, which most of them have.
    let norm = |name| of_70b(4096, name, &|operation| operation.values == 4 * 8192);
    let few = |tokens| Ok::<_, anyhow::Error>(gate_up("linear")?.on(tokens));
    Ok(vec![
        ("gate and up, M 1", few(1)?),
        ("gate and up, M 16", few(16)?),
        ("gate and up, M 4096", gate_up("linear")?),
        ("gate and up, M 4096", gate_up("linear, backward")?),
        ("gate and up, M 4096", gate_up("LoRA X·Aᵀ")?),
        ("gate and up, M 4096", gate_up("LoRA dY·B")?),
        ("gate and up, M 4096", gate_up("LoRA gradients")?),
        ("2,048 tokens", any(2048, "attention")?),
        ("4,096 tokens", any(4096, "attention")?),
        ("2,048 tokens", any(2048, "attention, backward")?),
        ("4,096 tokens", any(4096, "attention, backward")?),
        ("1,024 tokens", any(2048, "output layer and loss")?.on(1024)),
        ("4,096 tokens", norm("norm")?),
        ("4,096 tokens", norm("norm, backward")?),
        ("4,096 tokens", any(4096, "rotary embedding")?),
        ("4,096 tokens", any(4096, "SwiGLU")?),
        ("4,096 tokens", any(4096, "SwiGLU, backward")?),
    ])
}

const COMPILED: &str = "Machine code of nvcc ";

/// The line that names the compiler.
fn compiled_by(compiler: &str) -> String {
    format!("{COMPILED}{compiler}.\n")
}

/// True if a page is of another compiler's machine code, with which it cannot be compared.
pub fn is_of_another_compiler(page: &str, compiler: &str) -> bool {
    page.contains(COMPILED) && !page.contains(&compiled_by(compiler))
}

/// Measurements on GPUs beside what was predicted of them.
pub struct Measured<'a> {
    pub rows: &'a [Compared],
    pub steps: &'a [ComparedStep],
    pub calibrated: &'a [Calibrated<'a>],
}

/// The whole page.
pub fn page(
    compiler: &str,
    kernels: &Kernels,
    steps: &[PlannedStep],
    judged: &[Judged],
    measured: &Measured<'_>,
) -> Result<String> {
    let mut text = format!("{HEAD}\n{}", compiled_by(compiler));
    text += "\n## Steps\n\n";
    text += "Tokens a second of a training step, one row, r 16 on all linear layers, on the fused kernels. Copies to host\n\
             memory are taken to be hidden, and low-rank gradients where the last blocks of dX leave multiprocessors\n\
             idle.\n\n";
    steps_table(&mut text, kernels, steps, Products::Fused)?;
    text += "\nThe same with the frozen weights dequantized to a scratch and one product of a library for each group and pass, at\n\
             the library's speed that the constants below assume, and nothing beside it; all else as above:\n\n";
    steps_table(&mut text, kernels, steps, Products::Library)?;
    text += "\n## Goals\n\n";
    text += "A miss that is known is listed in `tools/predict/src/goals.rs`, may not grow worse, and goes once it is none.\n\n";
    goals_table(&mut text, judged);
    text += "\n## Kernels\n\n";
    text += "Llama 70B. Share: of the tensor cores' time in the main loop (`mma.sync`, sustained clock), or of a copy's\n\
             bandwidth. Beside: instructions of the loop beside each HMMA. Busy: multiprocessors, over the grid. Held:\n\
             blocks of a multiprocessor at once.\n\n";
    kernels_table(&mut text, kernels, steps)?;
    text += "\n## Tiles\n\n";
    text += "Times of small tiles, as percentages of a large tile's, by which the launchers choose between them. A cell has the\n\
             blocks that a multiprocessor holds, the time of that many together, and the time of one alone, where 8,192 products are\n\
             summed up. The launchers' numbers serve the forward pass and dX; those of the machine code stand beside them.\n\n";
    tiles_table(&mut text, kernels)?;
    text += "\n## Where a step's time goes\n\n";
    shares_table(&mut text, kernels, steps)?;
    text += "\n## Beside measurements\n\n";
    text += "Those that are farthest from their predictions come first.\n\n";
    text += &beside(measured.rows);
    text += "\n### Whole steps\n\n";
    text += "Whole: the mean of the timed steps of `qlora-train bench`. Operations: one more step, traced. Of a step just the\n\
             operations that it ran are predicted, with copies to host memory hidden: what they add shows in the whole alone.\n\
             Steps come by the ratio, operations by the seconds that they are off by. Kept, recomputed and offloaded are layers,\n\
             by their activations.\n\n";
    text += &measured_steps::tables(measured.steps);
    text += "\n### Single instructions\n\n";
    text += "Cycles of the bundle's micro-kernels, as the constants below that they are. `cargo xtask predict --calibrate FILE`\n\
             writes those of a record into `tools/predict/measured.json`.\n\n";
    text += &calibration::tables(measured.calibrated);
    text += "\n## Constants\n\n";
    constants(&mut text);
    Ok(text)
}

/// Predictions beside measurements.
pub fn beside(compared: &[Compared]) -> String {
    if compared.is_empty() {
        return "There is no record of a GPU yet.\n".to_owned();
    }
    let mut text =
        "| card | work | predicted | measured | measured over predicted |\n|---|---|---|---|---|\n".to_owned();
    for Compared { card, work, predicted, measured } in compared {
        let (expected, ratio) = match predicted {
            Some(predicted) => (format!("{:.3} ms", 1e3 * predicted), format!("{:.2}", measured / predicted)),
            None => ("not predicted".to_owned(), String::new()),
        };
        let _ = writeln!(text, "| {card} | {work} | {expected} | {:.3} ms | {ratio} |", 1e3 * measured);
    }
    text
}

fn steps_table(text: &mut String, kernels: &Kernels, steps: &[PlannedStep], products: Products) -> Result<()> {
    let names: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
    let _ = writeln!(text, "| step | {} |\n|---|{}", names.join(" | "), "---|".repeat(CARDS.len()));
    let mut rows: Vec<(&str, usize)> = steps.iter().map(|step| (step.shape.as_str(), step.tokens)).collect();
    rows.dedup();
    for (shape, tokens) in rows {
        let _ = write!(text, "| {shape}, {tokens} |");
        for card in CARDS.iter() {
            let planned = steps.iter().find(|step| {
                step.shape == shape && step.tokens == tokens && step.memory == memory_of(card) && step.fits
            });
            let _ = match planned {
                Some(planned) => {
                    let predicted = step(kernels, planned, card, products)?;
                    write!(text, " {:.0}{} |", tokens as f64 / predicted.seconds, kept(planned))
                }
                None => write!(text, " does not fit |"),
            };
        }
        text.push('\n');
    }
    Ok(())
}

/// " (16 of 80 kept)": layers whose activations wait for the backward pass.
fn kept(planned: &PlannedStep) -> String {
    let Some(activations) = &planned.activations else { return String::new() };
    let (all, kept) = (activations.values().sum::<usize>(), activations.get("keep").copied().unwrap_or_default());
    if kept == all { String::new() } else { format!(" ({kept} of {all} kept)") }
}

fn goals_table(text: &mut String, judged: &[Judged]) {
    text.push_str("| figure | card | predicted | goal | |\n|---|---|---|---|---|\n");
    for Judged { goal, card, value, bound } in judged {
        let shown = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        let wanted = match bound {
            Bound::AtLeast(bound) => format!("≥ {}", shown(*bound)),
            Bound::AtMost(bound) => format!("≤ {}", shown(*bound)),
        };
        let verdict = if bound.is_met(*value) { "met" } else { "**missed**" };
        let _ = writeln!(text, "| {goal} | {card} | {} | {wanted} | {verdict} |", shown(*value));
    }
}

fn kernels_table(text: &mut String, kernels: &Kernels, steps: &[PlannedStep]) -> Result<()> {
    text.push_str("| kernel | work | card | ms | TFLOP/s | GB/s | share | limit | beside | busy | held |\n");
    text.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
    let mut slow: Vec<String> = Vec::new();
    for (work, operation) in shown(steps)? {
        for card in CARDS.iter() {
            let launches = operation.launches(kernels, card);
            for launch in launches.with_context(|| format!("no launches are known of {}", operation.name))? {
                let found = predict(kernels, &launch, card)?;
                let name = &kernels.find(&launch.kernel, card)?.name;
                let share = match found.tensor_share {
                    // Kernels that are limited by their bytes are measured by them.
                    Some(share) if !operation.name.starts_with("LoRA") && operation.tokens > 16 => share,
                    _ => launch.bytes / found.seconds / card.copy_bandwidth(),
                };
                let beside = found.others_per_matrix.map_or(String::new(), |others| format!("{others:.1}"));
                let tflops = if launch.flops > 0.0 {
                    format!("{:.0}", launch.flops / found.seconds / 1e12)
                } else {
                    String::new()
                };
                let _ = writeln!(
                    text,
                    "| `{name}` | {work} | {} | {:.3} | {tflops} | {:.0} | {share:.2} | {} | {beside} | {:.2} | {} |",
                    card.name,
                    1e3 * found.seconds,
                    launch.bytes / found.seconds / 1e9,
                    found.limit,
                    found.busy,
                    found.resident,
                );
                for line in found.slowdowns.lines() {
                    let line = format!("- `{name}`, {}: {line}\n", card.architecture.code);
                    if !slow.contains(&line) {
                        slow.push(line);
                    }
                }
            }
        }
    }
    text.push_str("\nWhat slows a round of their loops, or the whole of those without matrix instructions:\n\n");
    slow.iter().for_each(|line| text.push_str(line));
    Ok(())
}

fn tiles_table(text: &mut String, kernels: &Kernels) -> Result<()> {
    text.push_str("| weights | card | launchers | forward | dX |\n|---|---|---|---|---|\n");
    let shown = |[held, together, alone]: [usize; 3]| format!("{held}: {together}, {alone}");
    for (weights, dense) in [("NF4", false), ("bf16", true)] {
        for card in CARDS.iter() {
            let [forward, dx] = [false, true].map(|is_dx| predicted_small_times(kernels, card, is_dx, dense));
            let (assumed, forward, dx) = (shown(small_times(card, dense)), shown(forward?), shown(dx?));
            let _ = writeln!(text, "| {weights} | {} | {assumed} | {forward} | {dx} |", card.name);
        }
    }
    Ok(())
}

fn shares_table(text: &mut String, kernels: &Kernels, steps: &[PlannedStep]) -> Result<()> {
    let mut columns = Vec::new();
    for name in ["A6000", "L40S", "H100"] {
        let card = crate::cards::card(name).with_context(|| format!("no card {name}"))?;
        for (shape, tokens) in
            [("llama-3-8b", 2048), ("llama-3-8b", 16_384), ("llama-3-70b", 2048), ("llama-3-70b", 16_384)]
        {
            let planned = steps.iter().find(|step| {
                step.shape == shape && step.tokens == tokens && step.memory == memory_of(card) && step.fits
            });
            if let Some(planned) = planned {
                let size = shape.rsplit('-').next().unwrap_or(shape).to_uppercase();
                columns.push((
                    format!("{name}, {size} {}k", tokens / 1024),
                    step(kernels, planned, card, Products::Fused)?,
                ));
            }
        }
    }
    let heads: Vec<&str> = columns.iter().map(|(head, _)| head.as_str()).collect();
    let _ = writeln!(text, "| operation | {} |\n|---|{}", heads.join(" | "), "---|".repeat(columns.len()));
    let mut kinds: Vec<&str> = Vec::new();
    for (_, column) in &columns {
        for (kind, _) in &column.kinds {
            if !kinds.contains(&kind.as_str()) {
                kinds.push(kind);
            }
        }
    }
    for kind in kinds {
        let _ = write!(text, "| {kind} |");
        for (_, column) in &columns {
            let seconds = column.kinds.iter().find(|(other, _)| other == kind).map_or(0.0, |(_, seconds)| *seconds);
            let _ = write!(text, " {:.1}% |", 100.0 * seconds / column.seconds);
        }
        text.push('\n');
    }
    let _ = write!(text, "| seconds a step |");
    columns.iter().for_each(|(_, column)| {
        let _ = write!(text, " {:.2} |", column.seconds);
    });
    text.push('\n');
    Ok(())
}

fn constants(text: &mut String) {
    text.push_str(
        "Cycles are of the multiprocessor's clock, intervals of one scheduler. What is marked documented was\n",
    );
    text.push_str("written down from memory of these papers, and has not been compared with them since.\n\n");
    text.push_str("| constant | of | value | | source |\n|---|---|---|---|---|\n");
    let mut row = |what: &str, of: &str, constant: &Constant| {
        let _ = writeln!(text, "| {what} | {of} | {} | {} | {} |", constant.value, constant.mark, constant.source);
    };
    for card in CARDS.iter() {
        card.constants().iter().for_each(|(what, constant)| row(what, card.name, constant));
    }
    for card in CARDS.iter().filter(|card| card.name != "4090") {
        let of = card.name;
        card.architecture.constants().iter().for_each(|(what, constant)| row(what, of, constant));
    }
    row("seconds between two kernels", "all", &LAUNCH_GAP);
    row("seconds of a grid's ends", "all", &LAUNCH_RAMP);
    row("cycles to a block's first instruction", "all", &BLOCK_START);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_compared_with_the_code_of_its_own_compiler() {
        let page = format!("# x\n{}", compiled_by("13.0.88"));
        assert!(!is_of_another_compiler(&page, "13.0.88"));
        assert!(is_of_another_compiler(&page, "12.9.1"));
        assert!(!is_of_another_compiler("no page yet", "12.9.1"));
    }
}
