use super::*;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Text that would be markup, move the cursor or change the direction of writing, if it were not escaped.
const HOSTILE: &str = "</title></style><script>alert('x')</script>\" onload=\"x\u{1b}[31m\u{202e}{{ 7777 * 7 }}";

fn entry(step: u64, loss: f64) -> LogEntry {
    let seconds = Some(step as f64);
    LogEntry { loss: Some(loss), grad_norm: Some(1.0), learning_rate: Some(1e-4), seconds, ..LogEntry::new(step, 0.1) }
}

fn evaluated(step: u64, loss: f64) -> LogEntry {
    LogEntry { eval_loss: Some(loss), ..LogEntry::new(step, 0.1) }
}

fn run(name: &str) -> RunData<'static> {
    let mut history: Vec<LogEntry> = (1..=100).map(|step| entry(step, 3.0 - 0.02 * step as f64)).collect();
    history.insert(0, evaluated(0, 3.2));
    history.insert(51, evaluated(50, 2.0));
    history.push(evaluated(100, 1.1));
    let change = |layer: usize, name: &str| ModuleChange {
        module: format!("model.layers.{layer}.{name}"),
        norm: 1.0,
        relative: Some(0.01 * (1 + layer) as f64),
        singular_values: vec![4.0, 1.0, 0.5, 0.1, 0.0, 0.0, 0.0, 0.0],
    };
    let settings =
        json!({"model": "m", "output_dir": "out", "data": ["rows.jsonl"], "lora_r": 8, "seed": 1, "val_set_size": 0.1});
    RunData {
        name: name.to_owned(),
        run: json!({
            "settings": settings, "base": {"name": "base", "fingerprint": "f00"}, "version": "1",
            "identity": {"data": ["abc"], "val_data": [], "tokens": "t", "tokenizer": "k", "chat_template": null},
            "finished": {"steps": 100, "train_loss": 2.0, "eval_loss": 1.1, "tokens_per_second": 10.0, "peak_bytes": 1 << 30}
        }),
        history: history.into(),
        details: Cow::Owned(Details {
            command: vec!["qlora-train".into(), "train".into(), "a b.yaml".into()],
            total_steps: 100,
            trainable: 1000,
            warnings: vec![Warning { step: 50, name: "loss_spike".into(), message: "the loss jumps".into() }],
            data: DataDetails {
                files: vec!["rows.jsonl".into()],
                rows: 10,
                tokens: 100,
                supervised_tokens: 50,
                max_length: 64,
                left_out: vec![("too long".into(), 2)],
                lengths: vec![(1, 1, 3), (2, 4, 7)],
                examples: vec![vec![("question".into(), false), ("answer".into(), true)]],
                ..DataDetails::default()
            },
            memory: MemoryDetails {
                place: "host memory".into(),
                planned: 2 << 30,
                limit: 4 << 30,
                buffers: (0..20).map(|at| (format!("buffer {at}"), 1 << 20)).collect(),
            },
            operations: vec![("linear".into(), 0.01), ("attention".into(), 0.002)],
            modules: vec![change(0, "self_attn.q_proj"), change(1, "self_attn.q_proj"), change(1, "mlp.up_proj")],
            ..Details::default()
        }),
    }
}

#[test]
fn a_page_has_what_there_is_to_know_and_stands_alone() {
    let page = html(&[run("out")]);
    for part in [
        "The validation loss fell from 3.2000 to 1.1000. 100 steps in 1m40s.",
        "<svg class=\"chart\"",
        "aria-label=\"Loss: ",
        "loss, nats per learned token",
        "the loss jumps",
        "<mark>answer</mark>",
        "buffer 3",
        "the rest",
        "10.0 ms, 83%",
        "In the median module, 1 of 8 ranks carry 90%",
        "1&#x2f;8",
        "2.00%",
        "qlora-train train &#x27;a b.yaml&#x27;",
        "qlora-train chat --model m --adapter out",
        "--max-lora-rank 8",
        "lora_r: 8",
        "prefers-color-scheme: dark",
        "@media print",
        "lang=\"en\"",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    for outside in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(is_report(page.as_bytes()) && !is_report(b"<html></html>"));
}

#[test]
fn text_of_files_is_never_markup() {
    let mut one = run(HOSTILE);
    let hostile = || HOSTILE.to_owned();
    one.run["base"]["name"] = HOSTILE.into();
    one.run["settings"]["model"] = HOSTILE.into();
    one.run["settings"]["output_dir"] = HOSTILE.into();
    one.run["identity"]["tokens"] = HOSTILE.into();
    let details = one.details.to_mut();
    details.command.push(hostile());
    (details.device, details.quantization) = (hostile(), hostile());
    details.warnings[0] = Warning { step: 3, name: hostile(), message: hostile() };
    details.data.examples = vec![vec![(hostile(), true), (hostile(), false)]];
    (details.data.files[0], details.data.chat_template, details.data.packing) =
        (hostile(), Some(hostile()), Some(hostile()));
    details.data.left_out[0].0 = hostile();
    (details.memory.place, details.memory.buffers[0].0) = (hostile(), hostile());
    details.operations[0].0 = hostile();
    details.modules[0].module = hostile();
    details.tensors = vec![TensorChange { module: hostile(), norm: 1.0, ..TensorChange::default() }];
    let losses = BTreeMap::from([(hostile(), 1.0)]);
    one.history.to_mut().last_mut().unwrap().eval_task_losses = Some(losses.clone());
    one.history.to_mut().last_mut().unwrap().eval_file_losses = Some(losses);
    for page in [html(&[one.clone()]), html(&[one.clone(), run("b"), one])] {
        for bad in ["<script", "onload=\"", "\u{1b}", "\u{202e}", "</title></style>", "54439"] {
            assert!(
                !page.contains(bad),
                "{bad:?}: {}",
                &page[page.find(bad).unwrap_or(0).saturating_sub(200)..][..400]
            );
        }
        assert_eq!(page.matches("<title>").count(), page.matches("</title>").count());
        assert_eq!(page.matches("</style>").count(), 1);
    }
}

#[test]
fn what_is_not_known_is_left_out() {
    let empty = RunData { name: "out".into(), run: json!({}), ..RunData::default() };
    let page = html(std::slice::from_ref(&empty));
    assert!(page.contains("No step is done yet.") && page.contains("Nothing is logged yet."), "{page}");
    for title in ["Memory", "What the adapter changed", "Data"] {
        assert!(!page.contains(&format!(">{title}</h2>")), "{title}");
    }
    let mut old = run("old");
    old.details = Cow::default();
    let page = html(&[old]);
    assert!(page.contains("fell from 3.2000 to 1.1000") && page.contains("<svg"), "{page}");
    // Values that are not finite draw nothing.
    let mut odd = empty;
    odd.history = vec![entry(1, f64::NAN), entry(2, f64::INFINITY)].into();
    odd.details.to_mut().modules = vec![ModuleChange { module: "x".into(), ..ModuleChange::default() }];
    let page = html(&[odd]);
    assert!(!page.contains("NaN") && page.contains("0&#x2f;0"), "{page}");
}

/// Numbers of a damaged record are shown, however large.
#[test]
fn numbers_that_no_run_has_are_shown() {
    let mut one = run("out");
    one.run["settings"]["lora_r"] = u64::MAX.into();
    one.run["finished"]["steps"] = u64::MAX.into();
    one.history.to_mut().push(LogEntry {
        loss: Some(f64::MAX),
        eval_loss: Some(f64::MIN),
        seconds: Some(f64::MAX),
        memory_bytes: Some(u64::MAX),
        ..LogEntry::new(u64::MAX, f64::MAX)
    });
    one.details.to_mut().total_steps = u64::MAX;
    let page = html(std::slice::from_ref(&one));
    assert!(page.contains(&format!("--max-lora-rank {}", u64::MAX)), "{page}");
    assert!(html(&[one.clone(), one]).contains("runs"));
}

#[test]
fn verdicts_tell_what_came_of_a_run() {
    let of = |change: &dyn Fn(&mut RunData)| {
        let mut one = run("out");
        change(&mut one);
        super::verdict::verdict(&one)
    };
    let unfinished = |one: &mut RunData| drop(one.run.as_object_mut().unwrap().remove("finished"));
    assert!(of(&unfinished).ends_with("Not finished: step 100 of 100."));
    let early = of(&|one| one.details.to_mut().total_steps = 200);
    assert!(early.ends_with("Stopped early after 100 steps of 200, in 1m40s."), "{early}");
    let rises = of(&|one| one.history.to_mut().last_mut().unwrap().eval_loss = Some(3.5));
    assert!(
        rises.starts_with("The validation loss rose from 3.2000 to 3.5000 (it was lowest at step 50: 2.0000)."),
        "{rises}"
    );
    let best = of(&|one| {
        one.history.to_mut().last_mut().unwrap().eval_loss = Some(3.5);
        one.run["settings"]["load_best_model_at_end"] = true.into();
    });
    assert!(
        best.starts_with("The validation loss fell from 3.2000 to 2.0000, that of step 50, which is kept."),
        "{best}"
    );
    let first = of(&|one| {
        let history = one.history.to_mut();
        history[0].eval_loss = Some(1.0);
        one.run["settings"]["load_best_model_at_end"] = true.into();
    });
    assert!(
        first.starts_with("The validation loss did not fall below 1.0000, that of step 0, which is kept."),
        "{first}"
    );
    let alone = of(&|one| one.history.to_mut().retain(|entry| entry.eval_loss.is_none()));
    assert!(alone.contains("no rows are held back, so its loss on new rows is not known."), "{alone}");
    // Two processes: the clock begins anew.
    let seconds = |seconds: f64| LogEntry { seconds: Some(seconds), ..LogEntry::default() };
    let twice = RunData { history: [1.0, 5.0, 2.0, 3.0].map(seconds).to_vec().into(), ..RunData::default() };
    assert_eq!(twice.seconds(), 8.0);
}

#[test]
fn runs_side_by_side_show_what_differs() {
    let (one, mut other) = (run("one"), run("other"));
    other.run["settings"]["lora_r"] = 16.into();
    other.run["finished"]["eval_loss"] = 0.9.into();
    let page = html(&[one.clone(), other]);
    for part in [
        "2 runs",
        "other has the lowest validation loss, 0.9000.",
        "<th scope=\"row\">lora_r</th><td>8</td><td>16</td>",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("<th scope=\"row\">seed</th>"));
    assert!(html(&[one.clone(), one.clone()]).contains("Their settings are the same."));
    let on_the_same = |change: &dyn Fn(&mut Value)| {
        let mut other = one.clone();
        change(&mut other.run);
        !html(&[one.clone(), other]).contains("not evaluated on the same tokens")
    };
    assert!(on_the_same(&|run| run["settings"]["lora_r"] = 16.into()));
    // Rows that are held back are others with another seed or other files, and losses others with another tokenizer.
    for (key, value) in [("seed", json!(2)), ("val_set_size", json!(0.2))] {
        assert!(!on_the_same(&|run| run["settings"][key] = value.clone()), "{key}");
    }
    for key in ["data", "val_data", "tokens", "tokenizer", "chat_template"] {
        assert!(!on_the_same(&|run| run["identity"][key] = json!(["x"])), "{key}");
        assert!(!on_the_same(&|run| drop(run["identity"].as_object_mut().unwrap().remove(key))), "{key}");
    }
    let mut unknown = one.clone();
    unknown.run["identity"] = json!({});
    assert!(html(&[unknown.clone(), unknown]).contains("not evaluated on the same tokens"));
}

#[test]
fn a_rank_is_only_advised_where_all_have_it_and_something_changed() {
    let module = |values: &[f64]| {
        let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        ModuleChange { module: "m.q_proj".into(), norm, relative: None, singular_values: values.to_vec() }
    };
    let said = |changes: &[ModuleChange]| {
        let mut one = run("one");
        one.details.to_mut().modules = changes.to_vec();
        html(&[one])
    };
    let (few, still) = (module(&[4.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), module(&[0.0; 8]));
    assert!(said(&[few.clone(), still.clone()]).contains("1 of 8 ranks carry 90%"));
    assert!(said(std::slice::from_ref(&few)).contains("A smaller lora_r, such as 2, would do."));
    // A pattern gave some a rank of their own.
    let mixed = said(&[few.clone(), few, module(&[1.0; 4])]);
    assert!(mixed.contains("In the median module") && !mixed.contains("lora_r, such as"), "{mixed}");
    for nothing in [still, module(&[]), ModuleChange { norm: f64::NAN, ..module(&[]) }] {
        assert!(!said(&[nothing]).contains("In the median module"));
    }
}

/// Beside the low-rank terms or without any, as shares of the base's norms where all of them have one.
#[test]
fn tensors_that_were_trained_whole_or_in_rows_are_shown() {
    let tensor = |module: &str, rows, norm, relative| TensorChange { module: module.into(), rows, norm, relative };
    let mut one = run("one");
    one.details.to_mut().tensors = vec![
        tensor("model.embed_tokens", Some(3), 0.5, Some(0.0425)),
        tensor("model.layers.0.input_layernorm", None, 0.25, Some(0.01)),
        tensor("lm_head", Some(1), 0.125, Some(0.03)),
    ];
    let page = html(&[one.clone()]);
    for part in [
        "Trained beside the low-rank terms, whole or in the rows of single tokens: ‖Δ‖ &#x2f; ‖W‖",
        "<th scope=\"col\">embed_tokens</th>",
        "4.25%<small>3 rows</small>",
        "3.00%<small>1 row</small>",
        "1.00%<small></small>",
        "model.layers.0.input_layernorm: the whole tensor, ‖Δ‖ 0.25",
        "model.embed_tokens: 3 rows of single tokens, ‖Δ‖ 0.5",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let details = one.details.to_mut();
    details.modules.clear();
    // Rows that were all zeros have no norm to be measured by.
    (details.tensors[0].relative, details.tensors[0].norm) = (None, 0.75);
    let page = html(&[one.clone()]);
    assert!(page.contains(">What the adapter changed</h2>") && page.contains("‖Δ‖, the norm of each"), "{page}");
    assert!(page.contains("0.75<small>3 rows</small>") && !page.contains("4.25%"), "{page}");
    one.details.to_mut().tensors.clear();
    assert!(!html(&[one]).contains("Trained beside"));
}

#[test]
fn ranks_that_carry_a_share_are_counted() {
    let of =
        |values: &[f64]| ModuleChange { singular_values: values.to_vec(), ..ModuleChange::default() }.ranks_for(0.9);
    assert_eq!([of(&[1.0, 1.0, 1.0, 1.0]), of(&[10.0, 1.0]), of(&[0.0, 0.0]), of(&[])], [4, 1, 0, 0]);
}

#[test]
fn records_are_read_and_what_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = || RunData::read(dir.path()).unwrap_err().to_string();
    assert!(RunData::read(&dir.path().join("none")).unwrap_err().to_string().contains("no such directory"));
    assert!(refused().contains("found no run.json"));
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    for (text, words) in [("[]", "found no object"), ("{", "cannot be read as a record")] {
        write("run.json", text);
        assert!(refused().contains(words), "{text}: {}", refused());
    }
    write("run.json", "{\"settings\": {}}");
    assert_eq!(RunData::read(dir.path()).unwrap().history.len(), 0);
    // A line that a killed process began is left out.
    write("metrics.jsonl", "{\"step\": 1, \"epoch\": 0.5, \"loss\": 2.0}\n{\"step\": 2, \"ep");
    assert_eq!(RunData::read(dir.path()).unwrap().history.len(), 1);
    write("metrics.jsonl", "{\"step\": 1, \"epoch\": 0.5}\nnonsense\n");
    assert!(refused().contains("metrics.jsonl line 2"), "{}", refused());
    write("metrics.jsonl", "");
    write("report.json", "{\"warnings\": 3}");
    assert!(refused().contains("report.json"), "{}", refused());
    write("report.json", "{}");
    assert_eq!(RunData::read(dir.path()).unwrap().details.as_ref(), &Details::default());
}

#[test]
fn answers_are_side_by_side_with_their_references() {
    let sample = |prompt: &str, reference: Option<&str>, answer: &str| Sample {
        prompt: prompt.into(),
        reference: reference.map(str::to_owned),
        answer: answer.into(),
    };
    let answered = |step: u64, exact: f64, answer: &str| LogEntry {
        eval_exact_match: Some(exact),
        eval_rouge_l: Some(exact / 2.0),
        samples: Some(vec![sample("how <much>?", Some("#### 72"), answer), sample("who?", None, HOSTILE)]),
        ..LogEntry::new(step, 0.1)
    };
    let mut run = run("out");
    let mut history = run.history.to_vec();
    history.extend([answered(0, 0.0, "before"), answered(50, 0.75, "best"), answered(100, 0.5, "after")]);
    run.history = history.into();
    run.run["settings"]["metric_for_best_model"] = "eval_exact_match".into();
    run.run["settings"]["load_best_model_at_end"] = true.into();
    let page = html(&[run.clone()]);
    for part in [
        "<th scope=\"col\">at step 0</th><th scope=\"col\">at step 100</th>",
        "how &lt;much&gt;?</th><td>#### 72</td><td>before</td><td>after</td>",
        "The best exact match is 0.7500, that of step 50, which is kept.",
        "aria-label=\"Answers: ",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("<script") && !page.contains("that of step 100, which is kept"), "{page}");
    // An answer that is there once has nothing before it.
    run.history = vec![answered(7, 1.0, "only")].into();
    assert!(html(&[run]).contains("<td>#### 72</td><td>–</td><td>only</td>"));
}
