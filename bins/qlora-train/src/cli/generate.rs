//! `qlora-train generate`

use super::{Answer, ModelArgs};
use crate::data::{ChatTokenizer, Message};
use crate::error::Result;
use crate::refuse;
use crate::report::Bars;
use crate::train::generate::generate;
use crate::train::{Loaded, ReadOnly, memory};
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What the user says; several are answered side by side
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// What the system message says, if there is to be one
    #[arg(long)]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
}

pub fn run(args: &GenerateArgs) -> Result<Answer> {
    let settings = args.model.settings()?;
    memory::set_threads(settings.threads)?;
    let loaded = Loaded::open(&settings, &[])?;
    loaded.check_size(&settings)?;
    let checkpoint = &loaded.checkpoint;
    let tokenizer = ChatTokenizer::open(checkpoint.dir(), settings.chat_template.as_deref())?;
    let max_new_tokens = args.max_new_tokens as usize;
    let mut prompts = Vec::with_capacity(args.prompt.len());
    for prompt in &args.prompt {
        let system = args.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
        let ids = tokenizer.encode(&tokenizer.prompt(&messages)?)?;
        if ids.is_empty() {
            refuse!("--prompt {prompt:?}: the chat template made no token of it");
        }
        prompts.push(ids);
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + max_new_tokens;
    let limit = checkpoint.config().max_position_embeddings;
    if longest > limit {
        refuse!(
            "prompt and --max-new-tokens together reach {longest} tokens, the model has {limit} positions: shorten the \
             prompt or lower --max-new-tokens"
        );
    }
    let tokens = prompts.iter().map(|p| p.len() + max_new_tokens).sum();
    let mut model = ReadOnly::load(&settings, checkpoint, args.model.adapter.as_deref(), tokens, longest)?;
    let mut stop = checkpoint.config().eos_token_ids.clone();
    stop.extend(tokenizer.eos_token_id());
    let mut bar = Bars::new("generating", max_new_tokens as u64);
    let mut done = 0;
    let answers = generate(&mut model.backend, &model.model, &prompts, max_new_tokens, &stop, || {
        done += 1;
        bar.set(done, String::new());
    })?;
    bar.finish();
    let mut texts = Vec::with_capacity(answers.len());
    for answer in &answers {
        texts.push(tokenizer.decode(answer, true)?);
    }
    let completions: Vec<_> =
        args.prompt.iter().zip(&texts).map(|(prompt, text)| json!({"prompt": prompt, "text": text})).collect();
    Ok(Answer { text: texts.join("\n---\n"), json: json!({"completions": completions}) })
}
