//! Sections of the page of a run.

use super::answers::answers;
use super::changes::changes;
use super::page::{Section, bars, chart, clean, code, details, table, text};
use super::records::LogEntry;
use super::run_data::RunData;
use super::svg::{Chart, series, short, smoothed};
use crate::files::units::format_bytes;
use crate::report::{count, thousands};
use minijinja::{Value, context};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of bars in a chart; the rest is one more.
const MOST_BARS: usize = 10;

pub fn all(run: &RunData) -> Vec<Section> {
    let section =
        |id, title, blocks: Vec<Option<Value>>| Section { id, title, blocks: blocks.into_iter().flatten().collect() };
    vec![
        section("losses", "Learning", losses(run)),
        section("tasks", "Files and tasks", parts(run)),
        section("answers", "Answers", answers(run)),
        section("data", "Data", data(run)),
        section("modules", "What the adapter changed", changes(&run.details)),
        section("memory", "Memory", memory(run)),
        section("time", "Time", time(run)),
        section("next", "What to do next", next(run)),
        section("repeat", "To repeat it", repeat(run)),
    ]
}

fn losses(run: &RunData) -> Vec<Option<Value>> {
    let loss = run.curve(|entry| entry.loss);
    let validation = run.curve(|entry| entry.eval_loss);
    let marks: Vec<(f64, String)> =
        run.details.warnings.iter().filter(|w| w.step > 0).map(|w| (w.step as f64, w.name.clone())).collect();
    let lowest = validation.iter().min_by(|one, other| one.1.total_cmp(&other.1)).copied();
    let curves = [
        series("training, each entry", "one faint", loss.clone(), false),
        series("training, smoothed", "one", smoothed(&loss), false),
        series("validation", "two", validation, true),
    ];
    let (x, nats) = ("optimizer step", "loss, nats per learned token");
    let svg = Chart { title: "Loss", x, y: nats, series: &curves, marks: &marks }.svg();
    let caption = match lowest {
        Some((step, loss)) => format!("The lowest validation loss is {loss:.4}, at step {step}. Lower is better."),
        None => "Lower is better. No rows were evaluated.".to_owned(),
    };
    let norms = [
        series("all", "one", run.curve(|entry| entry.grad_norm), false),
        series("A", "three", run.curve(|entry| entry.grad_norm_a), true),
        series("B", "four", run.curve(|entry| entry.grad_norm_b), true),
    ];
    let clip = run.run.pointer("/settings/max_grad_norm").and_then(Json::as_f64).filter(|norm| *norm > 0.0);
    let clip = clip.map_or_else(|| "They are not clipped.".to_owned(), |norm| format!("Clipped to {}.", short(norm)));
    let has_two = run.history.iter().any(|entry| entry.learning_rate_b != entry.learning_rate);
    let rates = [
        series(if has_two { "A" } else { "A and B" }, "three", run.curve(|entry| entry.learning_rate), false),
        series(
            "B",
            "four",
            run.curve(|entry| entry.learning_rate_b.filter(|b| Some(*b) != entry.learning_rate)),
            false,
        ),
    ];
    let few = run.history.is_empty().then(|| text("Nothing is logged yet."));
    vec![
        few,
        chart(svg, caption),
        chart(
            Chart { title: "Gradient norm", x, y: "L2 norm", series: &norms, marks: &[] }.svg(),
            format!("Norm of the gradients before clipping. {clip}"),
        ),
        chart(
            Chart { title: "Learning rate", x, y: "learning rate", series: &rates, marks: &[] }.svg(),
            "The schedule of the learning rate.",
        ),
    ]
}

type Losses = BTreeMap<String, f64>;

/// Losses of files and tasks, at the first and the last evaluation.
fn parts(run: &RunData) -> Vec<Option<Value>> {
    let of = |kind: &str, get: fn(&LogEntry) -> Option<&Losses>| {
        let all: Vec<(u64, &Losses)> = run.history.iter().filter_map(|entry| Some((entry.step, get(entry)?))).collect();
        let ((first_step, first), (last_step, last)) = (*all.first()?, *all.last()?);
        let mut names: Vec<&String> = last.keys().collect();
        names.sort_by(|one, other| last[*other].total_cmp(&last[*one]));
        let row = |name: &String| {
            let before = first.get(name).filter(|_| first_step < last_step);
            let change = before.map_or("–".to_owned(), |before| format!("{:+.4}", last[name] - before));
            vec![
                name.clone(),
                before.map_or("–".to_owned(), |loss| format!("{loss:.4}")),
                format!("{:.4}", last[name]),
                change,
            ]
        };
        let (before, after) = (format!("loss at step {first_step}"), format!("loss at step {last_step}"));
        table(
            "Validation loss of each part, the highest first",
            &[kind, &before, &after, "change"],
            names.into_iter().map(row).collect(),
        )
    };
    vec![of("file", |entry| entry.eval_file_losses.as_ref()), of("task", |entry| entry.eval_task_losses.as_ref())]
}

fn data(run: &RunData) -> Vec<Option<Value>> {
    let data = &run.details.data;
    if data.rows == 0 {
        return vec![];
    }
    let share = 100.0 * data.supervised_tokens as f64 / data.tokens.max(1) as f64;
    let mut said = format!(
        "{} to train on, {} held back for validation: {} tokens, of which {} ({share:.1}%) are learned.",
        count(data.rows as u64, "row"),
        thousands(data.validation_rows as u64),
        thousands(data.tokens as u64),
        thousands(data.supervised_tokens as u64),
    );
    if let Some(template) = &data.chat_template {
        said += &format!(" Chat template: {template}.");
    }
    if let Some(packing) = &data.packing {
        said += &format!(" {}.", packing.replacen("packing", "Packing", 1));
    }
    let left_out = data.left_out.iter().map(|(why, rows)| vec![why.clone(), thousands(*rows as u64)]).collect();
    let lengths = data.lengths.iter().map(|&(from, to, rows)| {
        let range = if from == to { from.to_string() } else { format!("{from} to {to}") };
        (format!("{range} tokens"), rows as f64, count(rows as u64, "row"))
    });
    let examples = data.examples.iter().map(|pieces| {
        let pieces: Vec<(String, bool)> = pieces.iter().map(|(text, learned)| (clean(text), *learned)).collect();
        Some(context! { kind => "row", pieces => pieces })
    });
    let mut blocks = vec![
        Some(text(said)),
        table("Rows that were left out or changed", &["why", "rows"], left_out),
        bars(
            &format!("Lengths of the rows as they were read; max_length is {}", thousands(data.max_length as u64)),
            lengths.collect(),
        ),
        (!data.examples.is_empty()).then(|| text("The first rows, as the model sees them. Learned parts are marked.")),
    ];
    blocks.extend(examples);
    blocks
}

/// The largest of them, and the rest as one.
fn largest(mut parts: Vec<(String, f64)>, figure: impl Fn(f64) -> String) -> Vec<(String, f64, String)> {
    parts.sort_by(|one, other| other.1.total_cmp(&one.1));
    let rest: f64 = parts.iter().skip(MOST_BARS).map(|part| part.1).sum();
    parts.truncate(MOST_BARS);
    parts.extend((rest > 0.0).then(|| ("the rest".to_owned(), rest)));
    parts.into_iter().map(|(name, value)| (name, value, figure(value))).collect()
}

fn memory(run: &RunData) -> Vec<Option<Value>> {
    let memory = &run.details.memory;
    if memory.planned == 0 {
        return vec![];
    }
    let held = run.finished().map(|finished| finished.peak_bytes);
    let held = held.or_else(|| run.history.iter().filter_map(|entry| entry.memory_bytes).max());
    let compared: Vec<(String, f64, String)> =
        [("planned", Some(memory.planned)), ("held by the run", held), ("may be used", Some(memory.limit))]
            .into_iter()
            .filter_map(|(name, bytes)| Some((name.to_owned(), bytes? as f64, format_bytes(bytes?))))
            .collect();
    let buffers = memory.buffers.iter().map(|(name, bytes)| (name.clone(), *bytes as f64)).collect();
    vec![
        bars(&format!("Plan and run, {}; the plan includes memory from before the run", memory.place), compared),
        bars("Parts of the plan", largest(buffers, |bytes| format_bytes(bytes as u64))),
    ]
}

fn time(run: &RunData) -> Vec<Option<Value>> {
    let speed = [series("tokens per second", "one", run.curve(|entry| entry.tokens_per_second), false)];
    let total: f64 = run.details.operations.iter().map(|operation| operation.1).sum();
    let figure = |seconds: f64| format!("{:.1} ms, {:.0}%", 1e3 * seconds, 100.0 * seconds / total.max(1e-12));
    vec![
        bars("Time of one optimizer step by operation", largest(run.details.operations.clone(), figure)),
        chart(
            Chart { title: "Speed", x: "optimizer step", y: "tokens per second", series: &speed, marks: &[] }.svg(),
            "Tokens per second so far, without evaluations and checkpoints.",
        ),
    ]
}

/// A word quoted for a shell.
fn quoted(word: &str) -> String {
    crate::files::shell::quoted(word)
}

fn setting<'a>(run: &'a RunData, name: &str) -> Option<&'a Json> {
    run.run.get("settings")?.get(name)
}

fn next(run: &RunData) -> Vec<Option<Value>> {
    let text_of = |name: &str| setting(run, name).and_then(Json::as_str).map(quoted);
    let (Some(model), Some(adapter)) = (text_of("model"), text_of("output_dir")) else { return vec![] };
    if run.finished().is_none() {
        return vec![Some(text("The run is not finished: there is no adapter yet."))];
    }
    let r = setting(run, "lora_r").and_then(Json::as_u64).unwrap_or(16).max(8);
    let r = r.checked_next_power_of_two().unwrap_or(r);
    let data = setting(run, "val_data").and_then(|data| data.get(0)).or_else(|| setting(run, "data")?.get(0));
    let data = data.and_then(Json::as_str).map_or("ROWS".to_owned(), quoted);
    let peft = format!(
        "from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained({:?})",
        setting(run, "output_dir").and_then(Json::as_str).unwrap_or_default()
    );
    vec![
        Some(code("Talk to it:", &format!("qlora-train chat --model {model} --adapter {adapter}"))),
        Some(code(
            "Compare it with its base:",
            &format!("qlora-train eval --model {model} --adapter {adapter} --data {data} --with-base"),
        )),
        Some(code(
            "Merge it, or write it for llama.cpp and Ollama:",
            &format!(
                "qlora-train merge --model {model} --adapter {adapter} --output-dir MERGED\nqlora-train export gguf --model {model} \
             --adapter {adapter} --output-dir GGUF --type q8_0"
            ),
        )),
        Some(code(
            "Serve it:",
            &format!("vllm serve {model} --enable-lora --max-lora-rank {r} --lora-modules mine={adapter}"),
        )),
        Some(code("In Python:", &peft)),
    ]
}

fn repeat(run: &RunData) -> Vec<Option<Value>> {
    let command = (!run.details.command.is_empty()).then(|| {
        let words: Vec<String> = run.details.command.iter().map(|word| quoted(word)).collect();
        code("The command:", &words.join(" "))
    });
    let yaml = run.run.get("settings").and_then(|settings| serde_saphyr::to_string(settings).ok());
    let identity = run.run.get("identity");
    let hash = |name: &str| identity.and_then(|identity| identity.get(name)).and_then(Json::as_str).map(str::to_owned);
    let mut rows =
        vec![vec!["qlora-train".to_owned(), run.run.get("version").and_then(Json::as_str).unwrap_or("?").to_owned()]];
    let base = |name: &str| run.run.pointer(&format!("/base/{name}")).and_then(Json::as_str).map(str::to_owned);
    let named = [
        ("base", base("name")),
        ("revision of the base", base("revision")),
        ("fingerprint of the base", base("fingerprint")),
        ("tokenizer.json", hash("tokenizer")),
        ("chat template", hash("chat_template")),
        ("tokens of all rows", hash("tokens")),
    ];
    rows.extend(named.into_iter().filter_map(|(name, value)| Some(vec![name.to_owned(), value?])));
    let hashes = identity.and_then(|identity| identity.get("data")).and_then(Json::as_array).into_iter().flatten();
    let files = run.details.data.files.iter().map(Some).chain(std::iter::repeat(None));
    for (hash, file) in hashes.filter_map(Json::as_str).zip(files) {
        rows.push(vec![file.cloned().unwrap_or_else(|| "data".to_owned()), hash.to_owned()]);
    }
    vec![
        command,
        table("Versions and hashes (SHA-256)", &["what", "is"], rows),
        yaml.map(|yaml| details("All settings, as a file that `qlora-train train` takes", &yaml)),
        Some(details("All figures (metrics.jsonl)", &metrics(&run.history))),
    ]
}

fn metrics(history: &[LogEntry]) -> String {
    // A page stays one that a browser opens.
    const MOST: usize = 2000;
    // Answers have a section of their own.
    let line =
        |entry: &LogEntry| serde_json::to_string(&LogEntry { samples: None, ..entry.clone() }).unwrap_or_default();
    let kept: BTreeSet<usize> = match history.len() {
        len if len <= MOST => (0..len).collect(),
        len => (0..MOST).map(|at| at * len / MOST).chain([len - 1]).collect(),
    };
    let lines: Vec<String> = kept.iter().map(|&at| line(&history[at])).collect();
    let left = history.len() - kept.len();
    let more = if left > 0 { format!("\n({left} lines between these are in metrics.jsonl)") } else { String::new() };
    lines.join("\n") + &more
}
