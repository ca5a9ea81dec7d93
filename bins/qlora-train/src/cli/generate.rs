//! `qlora-train generate`

use super::answer::Answer;
use super::model_args::{Chosen, ModelArgs};
use crate::backend::Backend;
use crate::config::{PromptCompletion, Settings};
use crate::data::{ChatTokenizer, Message, TextStream};
use crate::error::{Context, Error, Result};
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
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What the user says; several are answered side by side, and - reads one from standard input
    #[arg(short, long, required = true)]
    prompt: Vec<String>,
    /// What the system message says, if there is to be one
    #[arg(long)]
    system: Option<String>,
    /// Continue the prompt as it stands: no chat template, and no token that is not written out, not even BOS
    #[arg(long, conflicts_with_all = ["system", "chat_template", "prompt_completion"])]
    raw: bool,
    /// Tokens of an answer at most
    #[arg(long, alias = "max-tokens", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// 0 takes the most likely token; above, tokens are drawn: at 1 as often as the model says
    #[arg(long, alias = "temp", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Draw only from so many of the most likely tokens; 0: from all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw only from the most likely tokens whose probabilities reach this sum
    #[arg(long, default_value_t = 1.0, value_parser = top_p)]
    top_p: f32,
    /// Text before which an answer ends, beside the tokens that end one; repeated for several. Answers then appear
    /// whole, not as they grow
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Seed of the draws: the same seed gives the same text
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Form in which prompts are asked.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// A user turn, by the chat template
    Chat,
    /// Text of the prompt of a row that is read without the template
    Text,
    /// The text's own tokens
    Raw,
}

/// The prompts, of which - stands for standard input, less the line break at its end.
fn prompts(args: &[String]) -> Result<Vec<String>> {
    if args.iter().filter(|prompt| *prompt == "-").count() > 1 {
        refuse!("--prompt: found - twice, expected it once: standard input is one prompt");
    }
    let read = |prompt: &String| match prompt.as_str() {
        "-" => {
            let text =
                io::read_to_string(io::stdin().lock()).usage_context(|| "--prompt: standard input".to_owned())?;
            Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
        }
        prompt => Ok(prompt.to_owned()),
    };
    args.iter().map(read).collect()
}

/// Answers that end before a text. Tokens are looked at as they come; the text is cut when all are there.
struct StopTexts<'a> {
    texts: &'a [String],
    tokenizer: &'a ChatTokenizer,
    /// Tokens of each answer that a text may still begin in
    recent: Vec<VecDeque<u32>>,
}

impl<'a> StopTexts<'a> {
    fn new(texts: &'a [String], tokenizer: &'a ChatTokenizer, answers: usize) -> Self {
        Self { texts, tokenizer, recent: vec![VecDeque::new(); answers] }
    }

    /// Whether an answer goes on after a token. A token that adds no text, or part of a character, counts too: a few
    /// tokens more are kept than the longest text has bytes.
    fn go_on(&mut self, answer: usize, id: u32) -> Result<bool> {
        let Some(longest) = self.texts.iter().map(String::len).max() else { return Ok(true) };
        let recent = &mut self.recent[answer];
        recent.push_back(id);
        if recent.len() > longest + 16 {
            recent.pop_front();
        }
        let text = self.tokenizer.decode(recent.make_contiguous(), true)?;
        Ok(!self.texts.iter().any(|stop| text.contains(stop.as_str())))
    }

    fn cut<'b>(&self, text: &'b str) -> &'b str {
        let end = self.texts.iter().filter_map(|stop| text.find(stop.as_str())).min();
        &text[..end.unwrap_or(text.len())]
    }
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
    /// The form in which prompts are asked, and a line that says so. Refused: a system message without the template.
    fn form(&self, settings: &Settings, tokenizer: &ChatTokenizer, adapters: &[PathBuf]) -> Result<(Form, String)> {
        let template = tokenizer.template().is_some();
        let form = match settings.prompt_completion {
            _ if self.raw => Form::Raw,
            PromptCompletion::Text => Form::Text,
            // Rows that an adapter learned from had no template either.
            PromptCompletion::Auto if !template && !adapters.is_empty() => Form::Text,
            PromptCompletion::Auto | PromptCompletion::Chat => Form::Chat,
        };
        if form == Form::Text && self.system.is_some() {
            refuse!(
                "--system: prompts are asked as they stand, without the chat template that would write it; \
                 --prompt-completion chat asks through the template"
            );
        }
        let line = match form {
            Form::Chat => format!(
                "prompts are asked as user turns, by the chat template ({}); --prompt-completion text does without",
                tokenizer.template_origin()
            ),
            Form::Text if template => {
                "prompts are asked as they stand, without the chat template (prompt_completion: text); \
                 --prompt-completion chat uses it"
                    .to_owned()
            }
            Form::Text => "prompts are asked as they stand: the model has no chat template".to_owned(),
            Form::Raw => "prompts are continued as they stand: without the chat template, and without BOS".to_owned(),
        };
        Ok((form, line))
    }

    /// Token ids of a prompt.
    fn encode(&self, prompt: &str, form: Form, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
        let ids = match form {
            Form::Raw => tokenizer.encode(prompt)?,
            Form::Text => tokenizer.encode_prompt(prompt)?,
            Form::Chat => {
                let system = self.system.iter().map(|text| Message::new("system", text));
                let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
                let text = tokenizer.prompt(&messages).map_err(|error| match tokenizer.template() {
                    Some(_) => error,
                    None => Error::Refused(format!("{error}; --prompt-completion text asks without one")),
                })?;
                tokenizer.encode(&text)?
            }
        };
        if ids.is_empty() {
            refuse!("--prompt {prompt:?}: no token was made of it");
        }
        Ok(ids)
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
    let texts = prompts(&args.prompt)?;
    let (form, line) = args.form(&settings, &tokenizer, &adapters)?;
    let encode = |prompt: &String| args.encode(prompt, form, &tokenizer);
    let prompts = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    status!("{line}");
    warn_of_untrained_ids(checkpoint, &tokenizer, prompts.iter().flatten().copied())?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + max_new_tokens;
    let limit = checkpoint.arch().max_position_embeddings;
    if longest > limit {
        refuse!(
            "prompt and --max-new-tokens together reach {longest} tokens, the model has {limit} positions: shorten the \
             prompt or lower --max-new-tokens"
        );
    }
    let stop = stop_tokens(checkpoint.dir(), checkpoint.arch(), &tokenizer, form == Form::Chat)?;
    device.clone().run(Generate {
        args,
        settings,
        adapters,
        loaded,
        tokenizer,
        texts,
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
    /// The prompts, and their tokens.
    texts: Vec<String>,
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
        let Self {
            args,
            settings,
            adapters,
            loaded,
            tokenizer,
            texts: asked,
            prompts,
            longest,
            stop,
            device,
            to_program,
        } = self;
        let (checkpoint, max_new_tokens) = (&loaded.checkpoint, args.max_new_tokens as usize);
        let tokens = prompts.iter().map(|p| p.len() + max_new_tokens).sum();
        let adapters = &adapters[..];
        let job = InferenceJob::Text { prompts: prompts.iter().map(Vec::len).collect(), max_new_tokens };
        let mut model = InferenceModel::load(&settings, checkpoint, adapters, job, tokens, longest, &device, build)?;
        let GenerateArgs { temperature, top_k, top_p, seed, .. } = *args;
        let sampling = Sampling { temperature, top_k, top_p, seed };

        // Answers side by side cannot be written as they grow.
        let streaming = !to_program && prompts.len() == 1 && args.stop.is_empty();
        let (mut completions, mut text) = (Vec::new(), Vec::new());
        for index in 0..adapters.len().max(1) {
            if index > 0 {
                model.activate_adapter(checkpoint, index)?;
            }
            let name = adapters.get(index).map(|path| path.display().to_string());
            let heading = name.as_ref().filter(|_| adapters.len() > 1).map(|name| format!("== {}\n", printable(name)));
            let mut stream = TextStream::new(&tokenizer, streaming.then(|| PrintableOut(io::stdout())));
            stream.write(heading.as_deref().unwrap_or(""))?;
            let mut bar = (!streaming).then(|| Bars::new("generating", (max_new_tokens * prompts.len()) as u64));
            let start = Instant::now();
            let mut done = 0;
            let mut stop_texts = StopTexts::new(&args.stop, &tokenizer, prompts.len());
            let answers = generate(
                &mut model.backend,
                &model.model,
                &prompts,
                max_new_tokens,
                &stop,
                &sampling,
                &mut |answer, id| {
                    done += 1;
                    if let Some(bar) = &mut bar {
                        bar.set(done, String::new());
                    }
                    stream.push(id)?;
                    stop_texts.go_on(answer, id)
                },
            )?;
            if let Some(mut bar) = bar {
                // Answers that stop early leave the rest of it.
                bar.set((max_new_tokens * prompts.len()) as u64, String::new());
                bar.finish();
            }
            stream.finish()?;
            stream.write("\n")?;
            let whole: Vec<String> = answers.iter().map(|ids| tokenizer.decode(ids, true)).collect::<Result<_>>()?;
            let texts: Vec<&str> = whole.iter().map(|text| stop_texts.cut(text)).collect();
            for (prompt, text) in asked.iter().zip(&texts) {
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
