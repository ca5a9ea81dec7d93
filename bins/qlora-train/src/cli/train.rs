//! `qlora-train train`

use super::Answer;
use crate::config::SettingsArgs;
use crate::config::memory::format_bytes;
use crate::error::Result;
use crate::train;
use serde_json::json;

pub fn run(args: &SettingsArgs) -> Result<Answer> {
    let settings = args.load()?;
    train::memory::set_threads(settings.threads)?;
    let outcome = train::train(settings)?;
    let eval = outcome.eval_loss.map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
    Ok(Answer {
        text: format!(
            "{} steps, training loss {:.4}{eval}, {:.0} tokens/s, {} held; adapter in {}",
            outcome.steps,
            outcome.train_loss,
            outcome.tokens_per_second,
            format_bytes(outcome.peak_bytes),
            outcome.adapter.display()
        ),
        json: json!({
            "steps": outcome.steps,
            "train_loss": outcome.train_loss,
            "eval_loss": outcome.eval_loss,
            "tokens_per_second": outcome.tokens_per_second,
            "peak_bytes": outcome.peak_bytes,
            "adapter": outcome.adapter,
        }),
    })
}
