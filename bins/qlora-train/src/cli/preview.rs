//! `qlora-train preview`

use super::Answer;
use crate::config::{Purpose, SettingsArgs};
use crate::data::{self, ChatTokenizer, Dataset, Row};
use crate::error::Result;
use crate::report::say;
use crate::train::Loaded;
use crate::train::inputs::data_options;
use anstyle::{AnsiColor, Style};
use clap::Args;
use serde_json::{Value, json};
use std::io::IsTerminal;

#[derive(Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Rows to print, of those that would be trained on, in the order of the files
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
}

/// What surrounds supervised tokens.
struct Marks {
    open: String,
    close: String,
}

impl Marks {
    /// Colour on a terminal, brackets that no text holds by chance elsewhere.
    fn new() -> Self {
        if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) {
            let green = Style::new().fg_color(Some(AnsiColor::Green.into()));
            return Self { open: green.render().to_string(), close: green.render_reset().to_string() };
        }
        Self { open: "⟦".to_owned(), close: "⟧".to_owned() }
    }
}

/// The rows are read, checked and tokenised as `train` would, all of them, so that a wrong one is found here.
pub fn run(args: &PreviewArgs) -> Result<Answer> {
    let settings = args.settings.load()?;
    settings.validate(Purpose::Preview)?;
    let loaded = Loaded::open(&settings, &settings.data)?;
    let tokenizer = loaded.tokenizer.as_ref();
    let dataset = data::load(&settings.data, tokenizer, &data_options(&settings, &loaded))?;
    say!("{}", dataset.report);
    let shown = &dataset.rows[..args.rows.min(dataset.rows.len())];
    let marks = Marks::new();
    let mut text: Vec<String> = shown.iter().map(|row| text_of(row, &dataset, tokenizer, &marks)).collect();
    text.push(format!("{} of {} rows; {}supervised{}", shown.len(), dataset.rows.len(), marks.open, marks.close));
    let rows: Vec<Value> = shown.iter().map(|row| json_of(row, &dataset, tokenizer)).collect();
    Ok(Answer { text: text.join("\n\n"), json: json!({"rows": rows, "rows_in_all": dataset.rows.len()}) })
}

fn file_of(row: &Row, dataset: &Dataset) -> String {
    dataset.report.files[row.file].path.display().to_string()
}

fn text_of(row: &Row, dataset: &Dataset, tokenizer: Option<&ChatTokenizer>, marks: &Marks) -> String {
    let (file, line) = (file_of(row, dataset), row.line);
    let mut text = format!("{file} line {line}: {} tokens, {} supervised\n", row.len(), row.supervised());
    let mut inside = false;
    for (at, (token, supervised)) in data::describe(row, tokenizer).iter().enumerate() {
        if inside && !supervised {
            text += &marks.close;
        }
        if at > 0 {
            text.push(' ');
        }
        if !inside && *supervised {
            text += &marks.open;
        }
        inside = *supervised;
        text += &printable(token);
    }
    if inside {
        text += &marks.close;
    }
    text
}

/// A token without what could move the cursor or colour the terminal.
fn printable(token: &str) -> String {
    token.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn json_of(row: &Row, dataset: &Dataset, tokenizer: Option<&ChatTokenizer>) -> Value {
    let tokens: Vec<String> = data::describe(row, tokenizer).into_iter().map(|(token, _)| token).collect();
    json!({
        "file": file_of(row, dataset),
        "line": row.line,
        "length": row.len(),
        "supervised": row.supervised(),
        "input_ids": row.input_ids,
        "labels": row.labels,
        "tokens": tokens,
    })
}
