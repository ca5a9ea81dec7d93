//! `qlora-train preview`

use super::answer::Answer;
use crate::adapter::check_adapter;
use crate::bail_usage;
use crate::config::{Purpose, Settings, SettingsArgs};
use crate::data::{self, ChatTokenizer, Checks, Dataset, Row, SpecialTokens, UNSUPERVISED};
use crate::error::Result;
use crate::infer::Adapters;
use crate::report::{count, printable, printable_lines, status_lines};
use crate::session::host::set_threads;
use crate::session::model_spec::lora_spec;
use crate::session::training_data::{
    data_options, find_files, mix, names, schedule, schedule_options, training_options, validation_options,
    validation_rows,
};
use crate::session::untrained_tokens::warn_of_untrained_tokens;
use crate::session::{Loaded, replace_adapter_by_base};
use anstyle::{AnsiColor, Style};
use clap::Args;
use qlora_kernels::rng::RngStream;
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::IsTerminal;
use std::ops::Range;
use std::path::PathBuf;

#[derive(Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Number of rows to print, of those that would be trained on, in the order of the files
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
    /// Print one row: the N-th of those that would be trained on
    #[arg(long, value_name = "N", conflicts_with_all = ["longest", "random"])]
    row: Option<usize>,
    /// Print the longest rows
    #[arg(long, conflicts_with = "random")]
    longest: bool,
    /// Print random rows, drawn by the seed
    #[arg(long)]
    random: bool,
    /// Print which rows share a pack in the first epoch; --rows sets the number of packs
    #[arg(long)]
    packs: bool,
}

/// Keeps the draws of rows apart from those of training.
const PREVIEW_DOMAIN: u64 = 3 << 32;

/// Tokens of a row that are shown at most, of its beginning and of its end.
const SHOWN_TOKENS: usize = 16_384;
/// Those of them at its end
const SHOWN_AT_END: usize = 1_024;
/// Tokens of a row in the answer of `--json` at most, all of its beginning.
const ANSWERED_TOKENS: usize = 131_072;

/// Style in which the loss mask is shown.
#[derive(Clone, Copy, PartialEq)]
enum Marks {
    /// Supervised tokens green, special ones bold.
    Color,
    /// Supervised tokens in brackets that no text holds by chance.
    Brackets,
}

impl Marks {
    /// Color on a terminal, unless NO_COLOR or CLICOLOR_FORCE say otherwise.
    fn new() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let color = set("CLICOLOR_FORCE") || (std::io::stdout().is_terminal() && !set("NO_COLOR"));
        if color { Marks::Color } else { Marks::Brackets }
    }

    fn legend(self) -> String {
        match self {
            Marks::Color => styled("supervised", true, false),
            Marks::Brackets => "⟦supervised⟧".to_owned(),
        }
    }
}

fn styled(token: &str, supervised: bool, special: bool) -> String {
    let mut style = if special { Style::new().bold() } else { Style::new() };
    if supervised {
        style = style.fg_color(Some(AnsiColor::Green.into()));
    }
    format!("{style}{token}{style:#}")
}

/// The settings with a directory that `--adapter` names as the adapter whose base, template and form of rows are used.
/// In Axolotl's files the key `adapter` says how the base is quantized.
fn with_adapter(args: &SettingsArgs) -> Result<SettingsArgs> {
    let mut args = args.clone();
    for (name, value) in args.overrides.iter_mut().filter(|(name, _)| name == "adapter") {
        let dir = PathBuf::from(&*value);
        if dir.is_dir() || !["lora", "qlora"].contains(&value.trim()) {
            let named = Adapters::parse([&dir])?;
            (*name, *value) = ("init_adapter".to_owned(), named.dirs[0].display().to_string());
        }
    }
    Ok(args)
}

/// The rows are read, checked and tokenized as `train` would, all of them, so that a wrong one is found here.
pub fn run(args: &PreviewArgs) -> Result<Answer> {
    let mut settings = with_adapter(&args.settings)?.load()?;
    settings.validate(Purpose::Preview)?;
    set_threads(settings.threads)?;
    replace_adapter_by_base(&mut settings)?;
    settings.init_adapter.as_deref().map(check_adapter).transpose()?;
    find_files(&mut settings)?;
    let loaded = Loaded::open(&settings)?;
    let options = data_options(&settings, &loaded);
    let training = training_options(&settings, options.clone());
    let dataset = data::load_once(&settings.data, &|| loaded.open_tokenizer(), &training)?;
    status_lines!(dataset.report.lines());
    if !settings.val_data.is_empty() {
        let of_validation = validation_rows(&settings, options.clone());
        let of_validation = validation_options(&settings, of_validation, &dataset.rows);
        let validation = data::load_once(&settings.val_data, &|| loaded.open_tokenizer(), &of_validation)?;
        status_lines!(validation.report.validation_lines());
    }
    let trained = lora_spec(&settings, loaded.checkpoint.arch()).unwrap_or_default();
    warn_of_untrained_tokens(&loaded, &trained, &dataset.rows)?;
    let tokenizer = loaded.tokenizer();
    let special = SpecialTokens::new(tokenizer, &options.eos_token_ids);
    let checks = Checks::of(&dataset.rows, &special);
    let schedule = schedule(&settings, &dataset.rows)?;
    let (packing, mix) = (schedule.packing(), schedule.mix());
    let packs = if args.packs { packs(&settings, &dataset, args.rows)? } else { Vec::new() };

    let shown = chosen(args, &dataset.rows, settings.seed)?;
    let marks = Marks::new();
    let texts = shown.iter().map(|row| text_of(row, &dataset, tokenizer, &special, marks));
    let mut text: Vec<String> = texts.collect::<Result<_>>()?;
    text.push(format!("{} of {}; {}", shown.len(), count(dataset.rows.len() as u64, "row"), marks.legend()));
    text.push(printable_lines(&checks.to_string()).into_owned());
    let read = count(dataset.report.rows_read as u64, "row");
    text.push(format!("lengths of the {read} read:\n{}", dataset.report.lengths));
    text.extend(mix.line(&names(&settings.data)));
    text.extend(packing.map(|packing| packing.to_string()));
    for (at, pack) in packs.iter().enumerate() {
        let tokens: usize = pack.iter().map(|row| row.len()).sum();
        let place = |row: &Row| printable(&dataset.report.place(row.file, row.line)).into_owned();
        let line = |row: &&Row| format!("  {}: {} tokens", place(row), row.len());
        let lines: Vec<String> = pack.iter().map(line).collect();
        text.push(format!("pack {}: {tokens} of {} tokens\n{}", at + 1, settings.max_length, lines.join("\n")));
    }

    let report = &dataset.report;
    let rows: Vec<Value> = shown.iter().map(|row| json_of(row, &dataset, tokenizer)).collect();
    let lengths = report.lengths.buckets().into_iter();
    let place = |row: &&Row| json!({"file": file_of(row, &dataset), "line": row.line, "length": row.len()});
    let packs = packs.iter().map(|pack| pack.iter().map(place).collect::<Vec<_>>());
    let template = tokenizer.and_then(|tokenizer| Some((tokenizer, tokenizer.template()?)));
    let json = json!({
        "rows": rows,
        "rows_in_all": dataset.rows.len(),
        "files": report.files.iter().map(|file| json!({
            "path": file.path.display().to_string(),
            "rows": file.rows,
            "notes": file.notes.lines(file.unit.name()),
            "formats": file.kinds.iter().map(|(kind, rows)| (kind.name().to_owned(), json!(rows)))
                .collect::<serde_json::Map<_, _>>(),
        })).collect::<Vec<_>>(),
        "counts": {
            "read": report.rows_read, "kept": report.rows_kept, "dropped": report.dropped,
            "truncated": report.truncated, "unsupervised": report.unsupervised, "open_ended": report.open_ended,
            "tokens": report.tokens, "supervised_tokens": report.supervised_tokens, "weighted": report.weighted,
        },
        "checks": {
            "expects_bos": checks.expects_bos, "without_bos": checks.without_bos, "double_bos": checks.double_bos,
            "without_end": checks.without_end, "masked_eos": checks.masked_eos,
        },
        "lengths": lengths.map(|(from, to, rows)| json!({"from": from, "to": to, "rows": rows})).collect::<Vec<_>>(),
        "mix": mix.parts().iter().map(|part| json!({
            "file": settings.data.get(part.file).map(|path| path.display().to_string()),
            "weight": part.weight, "rows": part.rows, "rows_in_epoch": part.in_epoch,
        })).collect::<Vec<_>>(),
        "packing": packing.map(|packing| json!({
            "packs": packing.packs, "max_length": packing.max_length, "efficiency": packing.efficiency(),
        })),
        "packs": packs.collect::<Vec<_>>(),
        "chat_template": template.map(|(tokenizer, template)| json!({
            "origin": tokenizer.template_origin(), "source": template.source(),
        })),
    });
    Ok(Answer { text: text.join("\n\n"), json })
}

fn text_of(
    row: &Row,
    dataset: &Dataset,
    tokenizer: Option<&ChatTokenizer>,
    special: &SpecialTokens,
    marks: Marks,
) -> Result<String> {
    let place = dataset.report.place(row.file, row.line);
    let shown = Shown { row, tokenizer, special, marks };
    let head = format!("{}: {} tokens, {} supervised", printable(&place), row.len(), row.supervised());
    let Some(left_out) = row.len().checked_sub(SHOWN_TOKENS).filter(|&left_out| left_out > 0) else {
        return Ok(format!("{head}\n{}", shown.part(0..row.len())?));
    };
    let (begin, end) = (SHOWN_TOKENS - SHOWN_AT_END, row.len() - SHOWN_AT_END);
    let left_out = count(left_out as u64, "token");
    Ok(format!("{head}\n{}\n… {left_out} left out here …\n{}", shown.part(0..begin)?, shown.part(end..row.len())?))
}

/// A row that is shown as text.
struct Shown<'a> {
    row: &'a Row,
    tokenizer: Option<&'a ChatTokenizer>,
    special: &'a SpecialTokens,
    marks: Marks,
}

impl Shown<'_> {
    /// For one token: whether it is learned, its weight in the loss, and whether it is shown as a special token.
    fn kind(&self, at: usize) -> (bool, f32, bool) {
        let learned = at > 0 && self.row.labels[at] != UNSUPERVISED;
        let special = self.marks == Marks::Color && self.special.added.contains(&self.row.input_ids[at]);
        (learned, self.row.weight(at), special)
    }

    /// The text of some tokens that follow each other.
    fn part(&self, tokens: Range<usize>) -> Result<String> {
        let ids = &self.row.input_ids;
        let (mut text, mut at, mut before) = (String::new(), tokens.start, tokens.start);
        let mut blocks = Blocks::default();
        while at < tokens.end {
            let (supervised, weight, bold) = self.kind(at);
            let end = (at..tokens.end).find(|&i| self.kind(i) != (supervised, weight, bold)).unwrap_or(tokens.end);
            let part = match self.tokenizer {
                // Decoded with the part before, on which blanks and characters of several tokens depend.
                Some(tokenizer) => {
                    let known = tokenizer.decode(&ids[before..at], false)?.len();
                    let both = tokenizer.decode(&ids[before..end], false)?;
                    before = at;
                    match both.get(known..) {
                        Some(part) => part.to_owned(),
                        // The part before ends within a character.
                        None => tokenizer.decode(&ids[at..end], false)?,
                    }
                }
                None => {
                    text += if at > tokens.start { " " } else { "" };
                    ids[at..end].iter().map(|id| format!("<{id}>")).collect::<Vec<_>>().join(" ")
                }
            };
            let part = part.split('\n').map(printable).collect::<Vec<_>>().join("\n");
            if self.tokenizer.is_some() {
                blocks.begin(&mut text, supervised, &part);
            }
            match (self.marks, supervised) {
                (Marks::Color, _) => text += &styled(&part, supervised, bold),
                (Marks::Brackets, true) => text = text + "⟦" + &part + "⟧",
                (Marks::Brackets, false) => text += &part,
            }
            if supervised && weight != 1.0 {
                let _ = write!(text, "×{weight}");
            }
            at = end;
        }
        Ok(text)
    }
}

/// Puts learned and other parts of a row into separate blocks of lines.
#[derive(Default)]
struct Blocks {
    /// The last piece: whether it was learned, and whether it ended its line. None: there was no piece.
    last: Option<(bool, bool)>,
}

impl Blocks {
    /// Goes to a new line where a piece begins another block.
    fn begin(&mut self, text: &mut String, learned: bool, piece: &str) {
        if let Some((before, false)) = self.last
            && before != learned
        {
            text.push_str(GOES_ON);
            text.push('\n');
        }
        self.last = Some((learned, piece.ends_with('\n')));
    }
}

/// Mark at the end of a printed line whose text continues.
const GOES_ON: &str = "¬";

/// The first packs of the first epoch. Refused: packing is off.
fn packs<'a>(settings: &Settings, dataset: &'a Dataset, most: usize) -> Result<Vec<Vec<&'a Row>>> {
    if !settings.packing {
        bail_usage!("--packs shows which rows share a pack, and `packing` is off: leave one of the two out");
    }
    let packs = schedule_options(settings).packs(&dataset.lengths(), &mix(settings, &dataset.rows), 0)?;
    Ok(packs.into_iter().take(most).map(|pack| pack.into_iter().map(|row| &dataset.rows[row]).collect()).collect())
}

fn file_of(row: &Row, dataset: &Dataset) -> String {
    dataset.report.files[row.file].path.display().to_string()
}

/// The rows that were asked for. Refused: a number that no row has.
fn chosen<'a>(args: &PreviewArgs, rows: &'a [Row], seed: u64) -> Result<Vec<&'a Row>> {
    if let Some(number) = args.row {
        return match number.checked_sub(1).and_then(|at| rows.get(at)) {
            Some(row) => Ok(vec![row]),
            None => bail_usage!("--row: found {number}, expected a number from 1 to {}", rows.len()),
        };
    }
    let mut order: Vec<&Row> = rows.iter().collect();
    if args.longest {
        order.sort_by_key(|row| std::cmp::Reverse(row.len()));
    } else if args.random {
        let mut stream = RngStream::new(seed, PREVIEW_DOMAIN);
        for last in (1..order.len()).rev() {
            order.swap(last, stream.below(u32::try_from(last + 1).unwrap_or(u32::MAX)) as usize);
        }
    }
    order.truncate(args.rows);
    Ok(order)
}

fn json_of(row: &Row, dataset: &Dataset, tokenizer: Option<&ChatTokenizer>) -> Value {
    let answered = row.len().min(ANSWERED_TOKENS);
    let first = Row {
        input_ids: row.input_ids[..answered].to_vec(),
        labels: row.labels[..answered].to_vec(),
        weights: row.weights.get(..answered).unwrap_or_default().to_vec(),
        task: None,
        ..*row
    };
    let tokens: Vec<String> = data::describe(&first, tokenizer).into_iter().map(|(token, _)| token).collect();
    let mut json = json!({
        "file": file_of(row, dataset),
        "line": row.line,
        "length": row.len(),
        "supervised": row.supervised(),
        "input_ids": first.input_ids,
        "labels": first.labels,
        "tokens": tokens,
    });
    if let Some(text) = tokenizer.and_then(|tokenizer| tokenizer.decode(&first.input_ids, false).ok()) {
        json["text"] = text.into();
    }
    if !first.weights.is_empty() {
        json["weights"] = first.weights.into();
    }
    if answered < row.len() {
        json["left_out"] = (row.len() - answered).into();
    }
    json
}
