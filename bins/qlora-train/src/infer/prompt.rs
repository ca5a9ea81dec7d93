//! Form of a prompt, and its tokens.

use crate::bail_usage;
use crate::config::PromptCompletion;
use crate::data::{ChatTokenizer, Message};
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A user turn, by the chat template
    Chat,
    /// Text as the prompt of a row, without the template
    Text,
    /// The text's own tokens
    Raw,
}

impl Form {
    /// Form of the prompts of rows that are trained on.
    pub fn of_rows(setting: PromptCompletion, tokenizer: &ChatTokenizer) -> Self {
        match setting {
            PromptCompletion::Chat => Self::Chat,
            PromptCompletion::Auto if tokenizer.template().is_some() => Self::Chat,
            PromptCompletion::Auto | PromptCompletion::Text => Self::Text,
        }
    }

    /// Token ids of a prompt. Refused: a prompt without tokens.
    pub fn encode(self, prompt: &str, system: Option<&str>, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
        let ids = match self {
            Self::Raw => tokenizer.encode(prompt)?,
            Self::Text => tokenizer.encode_prompt(prompt)?,
            Self::Chat => {
                let system = system.iter().map(|text| Message::new("system", text));
                let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
                let text = tokenizer.prompt(&messages).map_err(|error| match tokenizer.template() {
                    Some(_) => error,
                    None => Error::Refused(format!("{error}; --prompt-completion text asks without one")),
                })?;
                tokenizer.encode(&text)?
            }
        };
        if ids.is_empty() {
            bail_usage!("the prompt {prompt:?} has no tokens");
        }
        Ok(ids)
    }
}
