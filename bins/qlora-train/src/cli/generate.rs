//! `qlora-train generate`

use super::answer::Answer;
use super::model_args::{Chosen, ModelArgs};
use crate::backend::Backend;
use crate::config::Settings;
use crate::data::{ChatTokenizer, Message, TextStream};
use crate::error::Result;
use crate::infer::stop::stop_tokens;
use crate::infer::{InferenceJob, InferenceModel};
use crate::model::ModelSpec;
use crate::model::generate::{Sampling, generate};
use crate::refuse;
use crate::report::{Bars, PrintableOut, printable, status};
use crate::session::chat_template::open_tokenizer;
use crate::session::host::set_threads;
use crate::session::untrained_tokens::warn_of_untrained_ids;
use crate::session::{Device, DeviceJob, Loaded};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What the user says; several are answered side by side
    #[arg(short, long, required = true)]
    prompt: Vec<String>,
    /// What the system message says, if there is to be one
    #[arg(long)]
    system: Option<String>,
    /// Continue the prompt as it stands: no chat template, and no token that is not written out
    #[arg(long, conflicts_with_all = ["system", "chat_template"])]
    raw: bool,
    /// Tokens of an answer at most
    #[arg(long, alias = "max-tokens", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// 0 takes the most likely token; above, tokens are drawn: at 1 as often as the model says
    #[arg(long, alias = "temp", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Draw only from the most likely tokens whose probabilities reach this sum
    #[arg(long, default_value_t = 1.0, value_parser = top_p)]
    top_p: f32,
    /// Seed of the draws: the same seed gives the same text
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse().map_err(|_| "expected a number")?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err("expected 0 to 100".to_owned()) }
}

fn top_p(text: &str) -> Result<f32, String> {
    let value = text.parse().map_err(|_| "expected a number")?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err("expected a number above 0, at most 1".to_owned()) }
}

impl GenerateArgs {
    /// Token ids of every prompt.
    fn encode(&self, tokenizer: &ChatTokenizer) -> Result<Vec<Vec<u32>>> {
        let mut prompts = Vec::with_capacity(self.prompt.len());
        for prompt in &self.prompt {
            let ids = if self.raw {
                tokenizer.encode(prompt)?
            } else {
                let system = self.system.iter().map(|text| Message::new("system", text));
                let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
                tokenizer.encode(&tokenizer.prompt(&messages)?)?
            };
            if ids.is_empty() {
                refuse!("--prompt {prompt:?}: no token was made of it");
            }
            prompts.push(ids);
        }
        Ok(prompts)
    }
}

pub fn run(args: &GenerateArgs, to_program: bool) -> Result<Answer> {
    let Chosen { settings, adapters } = args.model.choose()?;
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let loaded = Loaded::open(&settings)?;
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    loaded.check_size(&settings, &device)?;
    let checkpoint = &loaded.checkpoint;
    let tokenizer = open_tokenizer(settings.chat_template.as_deref(), checkpoint, &adapters)?;
    let max_new_tokens = args.max_new_tokens as usize;
    let prompts = args.encode(&tokenizer)?;
    warn_of_untrained_ids(checkpoint, &tokenizer, prompts.iter().flatten().copied())?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + max_new_tokens;
    let limit = checkpoint.arch().max_position_embeddings;
    if longest > limit {
        refuse!(
            "prompt and --max-new-tokens together reach {longest} tokens, the model has {limit} positions: shorten the \
             prompt or lower --max-new-tokens"
        );
    }
    let stop = stop_tokens(checkpoint.dir(), checkpoint.arch(), &tokenizer, !args.raw)?;
    device.clone().run(Generate {
        args,
        settings,
        adapters,
        loaded,
        tokenizer,
        prompts,
        longest,
        stop,
        device,
        to_program,
    })
}

struct Generate<'a> {
    args: &'a GenerateArgs,
    settings: Settings,
    adapters: Vec<PathBuf>,
    loaded: Loaded,
    tokenizer: ChatTokenizer,
    prompts: Vec<Vec<u32>>,
    /// Tokens of the longest prompt with its answer.
    longest: usize,
    stop: Vec<u32>,
    device: Device,
    to_program: bool,
}

impl DeviceJob for Generate<'_> {
    type Output = Answer;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Answer> {
        let Self { args, settings, adapters, loaded, tokenizer, prompts, longest, stop, device, to_program } = self;
        let (checkpoint, max_new_tokens) = (&loaded.checkpoint, args.max_new_tokens as usize);
        let tokens = prompts.iter().map(|p| p.len() + max_new_tokens).sum();
        let adapters = &adapters[..];
        let job = InferenceJob::Text { prompts: prompts.iter().map(Vec::len).collect(), max_new_tokens };
        let mut model = InferenceModel::load(&settings, checkpoint, adapters, job, tokens, longest, &device, build)?;
        let sampling = Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed };

        // Answers side by side cannot be written as they grow.
        let streaming = !to_program && prompts.len() == 1;
        let (mut completions, mut text) = (Vec::new(), Vec::new());
        for index in 0..adapters.len().max(1) {
            if index > 0 {
                model.activate_adapter(checkpoint, index)?;
            }
            let name = adapters.get(index).map(|path| path.display().to_string());
            let heading = name.as_ref().filter(|_| adapters.len() > 1).map(|name| format!("== {}\n", printable(name)));
            let mut stream = TextStream::new(&tokenizer, streaming.then(|| PrintableOut(std::io::stdout())));
            stream.write(heading.as_deref().unwrap_or(""))?;
            let mut bar = (!streaming).then(|| Bars::new("generating", (max_new_tokens * prompts.len()) as u64));
            let start = Instant::now();
            let mut done = 0;
            let answers = generate(
                &mut model.backend,
                &model.model,
                &prompts,
                max_new_tokens,
                &stop,
                &sampling,
                &mut |_, id| {
                    done += 1;
                    if let Some(bar) = &mut bar {
                        bar.set(done, String::new());
                    }
                    stream.push(id)
                },
            )?;
            if let Some(mut bar) = bar {
                // Answers that stop early leave the rest of it.
                bar.set((max_new_tokens * prompts.len()) as u64, String::new());
                bar.finish();
            }
            stream.finish()?;
            stream.write("\n")?;
            let texts: Vec<String> = answers.iter().map(|ids| tokenizer.decode(ids, true)).collect::<Result<_>>()?;
            for (prompt, text) in args.prompt.iter().zip(&texts) {
                let mut completion = json!({"prompt": prompt, "text": text});
                if let (Value::Object(fields), Some(name)) =
                    (&mut completion, name.as_ref().filter(|_| adapters.len() > 1))
                {
                    fields.insert("adapter".to_owned(), name.as_str().into());
                }
                completions.push(completion);
            }
            if !streaming {
                text.push(heading.unwrap_or_default() + &texts.join("\n---\n"));
            }
            let seconds = start.elapsed().as_secs_f64();
            status!(
                "{done} tokens in {seconds:.1} s, {:.1} tokens/s with the prompts read",
                done as f64 / seconds.max(1e-9)
            );
        }
        Ok(Answer { text: text.join("\n"), json: json!({"completions": completions}) })
    }
}
