//! The formats that a row can have, and their keys.

use serde::{Deserialize, Serialize};

/// Masks and weights of tokens in tokenized rows: 0 is not learned.
pub(super) const MASKS: [&str; 6] =
    ["weight", "loss_weight", "loss_mask", "completion_mask", "assistant_masks", "assistant_mask"];

/// The format of a row. The rows of one file may differ in it; they are counted by format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RowKind {
    /// `messages`: a conversation of `role` / `content` turns, written by the model's chat template.
    Messages,
    /// `conversations`: the same with `from` / `value`.
    ShareGpt,
    /// `prompt` + `completion`: two texts (with `history`: those of earlier turns), or two lists of turns.
    PromptCompletion,
    /// `instruction`, `output`, optional `input`, `system`, `history`: a conversation.
    Alpaca,
    /// `text`: supervised from its first token to its EOS.
    Text,
    /// `input_ids`, optional `labels` with −100 for unsupervised: needs no tokenizer.
    Tokenized,
}

impl RowKind {
    pub const ALL: [RowKind; 6] = [
        RowKind::Messages,
        RowKind::ShareGpt,
        RowKind::PromptCompletion,
        RowKind::Alpaca,
        RowKind::Text,
        RowKind::Tokenized,
    ];

    pub fn name(self) -> &'static str {
        match self {
            RowKind::Messages => "messages",
            RowKind::ShareGpt => "ShareGPT",
            RowKind::PromptCompletion => "prompt + completion",
            RowKind::Alpaca => "Alpaca",
            RowKind::Text => "text",
            RowKind::Tokenized => "tokenized",
        }
    }

    /// The keys that every row of this format has, and no row of another one.
    pub(super) fn keys(self) -> &'static [&'static str] {
        match self {
            RowKind::Messages => &["messages"],
            RowKind::ShareGpt => &["conversations"],
            RowKind::PromptCompletion => &["prompt", "completion"],
            RowKind::Alpaca => &["instruction", "output"],
            RowKind::Text => &["text"],
            RowKind::Tokenized => &["input_ids"],
        }
    }

    /// Settings that choose this format.
    pub(super) fn flags(self) -> &'static str {
        match self {
            RowKind::Messages => "`--messages-column messages`",
            RowKind::ShareGpt => "`--messages-column conversations`",
            RowKind::PromptCompletion => "`--prompt-column prompt --completion-column completion`",
            RowKind::Alpaca => "`--prompt-column instruction --completion-column output`",
            RowKind::Text => "`--text-column text`",
            RowKind::Tokenized => "without the other key",
        }
    }

    /// Further keys that are read in a row of this format.
    pub(super) fn optional_keys(self) -> &'static [&'static str] {
        match self {
            RowKind::Messages | RowKind::ShareGpt => &["system", "tools", "functions", "chat_template_kwargs"],
            RowKind::PromptCompletion => &["system", "history", "tools", "functions", "chat_template_kwargs"],
            RowKind::Alpaca => &["input", "system", "history", "tools", "functions", "chat_template_kwargs"],
            RowKind::Text => &["tools", "functions"],
            RowKind::Tokenized => {
                &["labels", "attention_mask", "position_ids", "token_type_ids", MASKS[3], MASKS[4], MASKS[5]]
            }
        }
    }
}
