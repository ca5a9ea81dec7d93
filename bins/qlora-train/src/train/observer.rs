//! The observer of a run writes what is seen of it while it works: `report.html` with the details it is made from, and
//! TensorBoard's event files. Neither changes the run, and none that cannot be written ends it.

use super::names::EVENTS_DIR;
use super::record::{LogEntry, RunRecord};
use super::tensor_changes::tensor_changes;
use super::trained_adapter::exported_values;
use crate::backend::{Backend, OpTime};
use crate::base::Checkpoint;
use crate::config::Settings;
use crate::data::{ChatTokenizer, Row, UNSUPERVISED};
use crate::error::Result;
use crate::files::dir::Dir;
use crate::files::json::read_bounded;
use crate::lint::Finding;
use crate::lora::ParamKind;
use crate::lora::start::Factors;
use crate::model::{Llama, ModelSpec};
use crate::report::warning;
use crate::run_report::spectrum::{norm_of, singular_values};
use crate::run_report::tensorboard::EventFile;
use crate::run_report::{
    DETAILS_FILE, DataDetails, Details, MemoryDetails, ModuleChange, REPORT_FILE, RunData, Warning, html,
};
use crate::session::model_spec::base_quantization;
use crate::session::plan::MemoryPlan;
use crate::session::{Loaded, TrainingData};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two pages that only the log asks for
const INTERVAL: Duration = Duration::from_secs(20);
/// Rows that the page shows, and tokens of each
const EXAMPLES: usize = 3;
const EXAMPLE_TOKENS: usize = 400;
const MAX_DETAILS_BYTES: u64 = 256 << 20;

pub(super) struct Observer {
    /// None: no report is asked for.
    details: Option<Details>,
    events: Option<EventFile>,
    written: Instant,
    /// The last write failed, which is reported once
    failed: bool,
}

impl Observer {
    /// `step`: steps that earlier processes did.
    pub fn new(settings: &Settings, details: Details, output: &Dir, step: u64) -> Self {
        let others = settings.report_to.others.join(", ");
        if !others.is_empty() {
            warning!("report_to: {others}: nothing is written for it; `tensorboard` writes event files");
        }
        if settings.logging_dir.is_some() && !settings.report_to.tensorboard {
            warning!("logging_dir: nothing is written there without `report_to: tensorboard`");
        }
        let events = settings.report_to.tensorboard.then(|| {
            let dir = match &settings.logging_dir {
                Some(path) => Dir::create(path),
                None => events_dir(output),
            };
            EventFile::create(&dir?, step)
        });
        let events = events.transpose().unwrap_or_else(|error| {
            let dir = settings.logging_dir.clone().unwrap_or_else(|| output.join(EVENTS_DIR));
            warning!("{}: cannot be written, TensorBoard is told nothing: {error}", dir.display());
            None
        });
        let details = settings.report.then_some(details);
        Self { details, events, written: Instant::now(), failed: false }
    }

    /// Writes nothing: for a rank that is not the first.
    pub fn silent() -> Self {
        Self { details: None, events: None, written: Instant::now(), failed: false }
    }

    pub fn log(&mut self, entry: &LogEntry) {
        if let Some(events) = &mut self.events
            && let Err(error) = events.log(entry)
        {
            warning!("{}: cannot be written, TensorBoard is told no more: {error}", events.path().display());
            self.events = None;
        }
    }

    /// Names of the lints that an earlier process of the run was warned by.
    pub fn told(&self) -> impl Iterator<Item = &str> {
        self.details.iter().flat_map(|details| &details.warnings).map(|warning| warning.name.as_str())
    }

    /// Prints what a lint found, and keeps it for the page.
    pub fn warn(&mut self, step: u64, findings: &[Finding]) {
        for finding in findings {
            warning!("{finding}");
            if let Some(details) = &mut self.details {
                let Finding { name, message } = finding.clone();
                details.warnings.push(Warning { step, name: name.to_owned(), message });
            }
        }
    }

    /// True if the times of a step are still to be taken.
    pub fn wants_times(&self) -> bool {
        self.details.as_ref().is_some_and(|details| details.operations.is_empty())
    }

    pub fn set_times(&mut self, times: &[OpTime]) {
        if let Some(details) = &mut self.details {
            details.operations = times.iter().map(|time| (time.name.to_owned(), time.seconds)).collect();
        }
    }

    /// Measures what the adapter changes, a module in memory at a time.
    pub fn measure<B: Backend>(
        &mut self,
        backend: &B,
        model: &Llama<B>,
        starts: &BTreeMap<String, Factors>,
        norms: &BTreeMap<String, f64>,
        checkpoint: &Checkpoint,
    ) -> Result<()> {
        let Some(details) = &mut self.details else { return Ok(()) };
        details.modules.clear();
        details.tensors = tensor_changes(backend, model, checkpoint)?;
        let (mut a, exported) = (Vec::new(), model.spec().lora.exported());
        for (id, shape, param) in model.params() {
            let (ParamKind::LoraA | ParamKind::LoraB, &[_, columns]) = (id.kind(), &shape[..]) else { continue };
            let columns = if starts.contains_key(id.module()) { 2 * columns } else { columns };
            let values = exported_values(model, backend, starts, &id, param)?;
            // A of a module comes before its B.
            if id.kind() == ParamKind::LoraA {
                a = values;
                continue;
            }
            let scale = exported.of(id.module()).map_or(1.0, |(_, scale)| f64::from(scale));
            let singular_values = singular_values(&a, &values, columns, scale);
            let norm = norm_of(&singular_values);
            let relative = norms.get(id.module()).filter(|base| **base > 0.0).map(|base| norm / base);
            details.modules.push(ModuleChange { module: id.module().to_owned(), norm, relative, singular_values });
        }
        Ok(())
    }

    /// Writes the page, if it is asked for and `INTERVAL` has passed since the last, or it is `due`.
    pub fn write(&mut self, record: &RunRecord, history: &[LogEntry], due: bool) {
        let Some(details) = self.details.as_ref().filter(|_| due || self.written.elapsed() >= INTERVAL) else { return };
        self.written = Instant::now();
        let write = || -> Result<()> {
            let mut files = record.files()?;
            super::record::add_json(&mut files, DETAILS_FILE, details)?;
            let run = RunData {
                name: record.dir().path().display().to_string(),
                run: record.run().clone(),
                history: history.into(),
                details: Cow::Borrowed(details),
            };
            files.add(REPORT_FILE, |to| std::io::Write::write_all(to, html(&[run]).as_bytes()))?;
            files.commit()
        };
        if let Err(error) = write()
            && !std::mem::replace(&mut self.failed, true)
        {
            warning!("the report cannot be written, the run goes on: {error}");
        }
    }
}

/// The run's own directory of event files, made if need be. Failed: the name is taken, by a link too.
fn events_dir(output: &Dir) -> io::Result<Dir> {
    match output.create_sub(EVENTS_DIR) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => output.sub(EVENTS_DIR),
        made => made,
    }
}

/// Details of a run before its first step. The times of an earlier process of the run, which `output` holds, are kept,
/// and its warnings up to the `step` that this one goes on from.
pub(super) fn details(
    settings: &Settings,
    loaded: &Loaded,
    spec: &ModelSpec,
    plan: &MemoryPlan,
    data: &TrainingData,
    device: String,
    earlier: Option<(&Path, u64)>,
) -> Result<Details> {
    let mut kept = Details::default();
    if let Some((output, step)) = earlier {
        let bytes = read_bounded(&output.join(DETAILS_FILE), MAX_DETAILS_BYTES).ok();
        kept = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        kept.warnings.retain(|warning| warning.step <= step);
    }
    Ok(Details {
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        device,
        quantization: base_quantization(settings, &loaded.checkpoint).to_string(),
        parameters: loaded.parameters(),
        trainable: spec.trained_parameters(),
        total_steps: data.schedule.total_steps(),
        warnings: kept.warnings,
        data: data_details(settings, loaded, data)?,
        memory: MemoryDetails {
            place: plan.place().to_owned(),
            planned: plan.peak_bytes(),
            limit: plan.budget.limit,
            buffers: plan.buffers.iter().map(|buffer| (buffer.name.clone(), buffer.bytes)).collect(),
        },
        operations: kept.operations,
        modules: Vec::new(),
        tensors: Vec::new(),
    })
}

fn data_details(settings: &Settings, loaded: &Loaded, data: &TrainingData) -> Result<DataDetails> {
    let report = &data.report;
    let left_out = [
        (format!("longer than max_length {}, left out", report.max_length), report.dropped),
        (format!("cut to max_length {}", report.max_length), report.truncated),
        (format!("texts cut into rows of max_length {}", report.max_length), report.chunked),
        ("the same as another one, left out (deduplicate)".to_owned(), report.duplicates),
        ("no learned token, left out".to_owned(), report.unsupervised),
        ("cannot be trained on, skipped (on_bad_row)".to_owned(), report.skipped),
    ];
    let example = |row: Result<Cow<Row>>| -> Result<_> {
        let row = row?;
        Ok(pieces(&row, loaded.tokenizer()))
    };
    Ok(DataDetails {
        files: settings.data.iter().map(|path| path.display().to_string()).collect(),
        rows: data.rows.len(),
        validation_rows: data.validation.len(),
        tokens: data.rows.lengths().sum(),
        supervised_tokens: data.rows.supervised_tokens(),
        max_length: settings.max_length,
        left_out: left_out.into_iter().filter(|(_, rows)| *rows > 0).collect(),
        lengths: report.lengths.buckets(),
        chat_template: loaded.tokenizer().map(|tokenizer| tokenizer.template_origin().to_owned()),
        packing: data.schedule.packing().map(|packing| packing.to_string()),
        examples: data.rows.iter().take(EXAMPLES).map(example).collect::<Result<_>>()?,
    })
}

/// A row as text, in pieces that are learned or not; its ids where there is no tokenizer.
fn pieces(row: &Row, tokenizer: Option<&ChatTokenizer>) -> Vec<(String, bool)> {
    let ids = &row.input_ids[..row.len().min(EXAMPLE_TOKENS)];
    let learned = |at: usize| row.labels[at] != UNSUPERVISED;
    let text = |ids: &[u32]| match tokenizer.and_then(|tokenizer| tokenizer.decode(ids, false).ok()) {
        Some(text) => text,
        None => ids.iter().map(|id| format!("{id} ")).collect(),
    };
    let mut pieces = Vec::new();
    let mut start = 0;
    for at in 1..=ids.len() {
        if at == ids.len() || learned(at) != learned(start) {
            pieces.push((text(&ids[start..at]), learned(start)));
            start = at;
        }
    }
    let more = row.len() - ids.len();
    pieces.extend((more > 0).then(|| (format!(" … {more} more tokens"), false)));
    pieces
}
