//! `qlora-train chat`

use super::answer::Answer;
use super::model_args::{Chosen, ModelArgs};
use super::sampling_args::SamplingArgs;
use crate::backend::Backend;
use crate::bail_usage;
use crate::config::Settings;
use crate::data::{ChatTokenizer, Message, TextStream};
use crate::error::{Context, Error, Result};
use crate::infer::stop::{Stop, StopWatch};
use crate::infer::{Adapters, InferenceJob, InferenceModel, Together};
use crate::model::ModelSpec;
use crate::model::generate::generate;
use crate::report::{PrintableOut, status, warning};
use crate::session::chat_template::open_tokenizer;
use crate::session::host::set_threads;
use crate::session::{Device, DeviceJob, Loaded};
use clap::Args;
use serde_json::{Value, json};
use std::io::{self, BufRead, IsTerminal};

#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text of the system message [default: no system message]
    #[arg(long)]
    system: Option<String>,
    /// Maximum number of tokens in an answer
    #[arg(long, alias = "max-tokens", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Maximum number of tokens in the conversation; a longer one loses its oldest turns [default: 4096, or the model's
    /// limit]
    #[arg(long, alias = "ctx", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const CONTEXT: usize = 4096;
const HELP: &str = "/reset forgets the conversation, /quit ends";

pub fn run(args: &ChatArgs, to_program: bool) -> Result<Answer> {
    args.sampling.warn_of_unused();
    let Chosen { settings, adapters } = args.model.choose()?;
    if let (Together::OneByOne, [_, second, ..]) = (adapters.together(), &adapters.dirs[..]) {
        bail_usage!(
            "--adapter: found {} too, expected one at most: chat with one at a time, or with their sum, which weights \
             ask for: --adapter DIR:0.5",
            second.display()
        );
    }
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let mut loaded = Loaded::open(&settings)?;
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    loaded.check_size(&settings, &device)?;
    let checkpoint = &loaded.checkpoint;
    let tokenizer = open_tokenizer(settings.chat_template.as_deref(), checkpoint, &adapters.dirs)?;
    // A faulty template is reported before the model is loaded.
    tokenizer.prompt(&[Message::new("user", "x")])?;
    status!("chat template: {}", tokenizer.template_origin());
    let positions = checkpoint.arch().max_position_embeddings;
    let context = args.context.map_or(CONTEXT.min(positions), |context| context as usize);
    if context > positions {
        bail_usage!("--context: found {context}, expected at most the {positions} positions of the model");
    }
    let max_new_tokens = args.max_new_tokens as usize;
    if max_new_tokens >= context {
        bail_usage!("--max-new-tokens: found {max_new_tokens}, expected fewer than the {context} tokens of --context");
    }
    let stop = Stop::of_model(checkpoint.dir(), checkpoint.arch(), &tokenizer, true)?;
    let stop = stop.or_before(&args.sampling.stop);
    if let Some(note) = stop.note() {
        status!("{note}");
    }
    loaded.use_quantized(&settings)?;
    let job = Chat { args, settings, adapters, loaded, tokenizer, context, stop, device: device.clone(), to_program };
    device.run(job)
}

struct Chat<'a> {
    args: &'a ChatArgs,
    settings: Settings,
    adapters: Adapters,
    loaded: Loaded,
    tokenizer: ChatTokenizer,
    /// Tokens of the conversation with an answer.
    context: usize,
    stop: Stop,
    device: Device,
    to_program: bool,
}

impl DeviceJob for Chat<'_> {
    type Output = Answer;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Answer> {
        let Self { args, settings, adapters, loaded, tokenizer, context, stop, device, to_program } = self;
        let max_new_tokens = args.max_new_tokens as usize;
        let room = context - max_new_tokens;
        let job = InferenceJob::Text { prompts: vec![room], max_new_tokens };
        let checkpoint = &loaded.checkpoint;
        let mut model = InferenceModel::load(&settings, checkpoint, &adapters, job, context, context, &device, build)?;
        let interactive = io::stdin().is_terminal();
        if interactive {
            status!("{HELP}");
        }
        let mut turns = Turns { system: args.system.clone(), messages: Vec::new() };
        let mut said: Vec<Value> = Vec::new();
        let mut screen = TextStream::new(&tokenizer, Some(PrintableOut(io::stdout())));
        let mut lines = io::stdin().lock().lines();
        loop {
            if interactive {
                screen.write("> ")?;
            }
            let Some(line) = lines.next() else { break };
            let line = line.usage_context(|| "standard input".to_owned())?;
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" => break,
                "/reset" => {
                    turns.messages.clear();
                    continue;
                }
                "/help" => {
                    status!("{HELP}");
                    continue;
                }
                _ => turns.messages.push(Message::new("user", &line)),
            }
            let Some(prompt) = turns.prompt(&tokenizer, room)? else {
                warning!("this turn has more than the {room} tokens that --context leaves: it is not sent");
                turns.messages.pop();
                continue;
            };
            let streaming = !to_program && !stop.has_texts();
            let mut stream = TextStream::new(&tokenizer, streaming.then(|| PrintableOut(io::stdout())));
            let mut watch = StopWatch::new(&stop, &tokenizer, 1);
            let sampling = args.sampling.sampling();
            let answer = generate(
                &mut model.backend,
                &model.model,
                &[prompt],
                max_new_tokens,
                &stop.tokens,
                &sampling,
                &mut |answer, id| {
                    stream.push(id)?;
                    watch.go_on(answer, id)
                },
            )?;
            stream.finish()?;
            stream.write("\n")?;
            let whole = tokenizer.decode(&answer[0], true)?;
            let text = watch.cut(&whole).to_owned();
            if !streaming && !to_program {
                screen.write(&format!("{text}\n"))?;
            }
            turns.messages.push(Message::new("assistant", &text));
            said.push(json!({"prompt": line, "text": text}));
        }
        Ok(Answer { text: String::new(), json: json!({"turns": said}) })
    }
}

/// A conversation.
struct Turns {
    system: Option<String>,
    messages: Vec<Message>,
}

impl Turns {
    /// Tokens up to the next answer, at most `room`: the oldest turns are dropped, two at a time. `None`: the last turn
    /// alone is longer.
    fn prompt(&mut self, tokenizer: &ChatTokenizer, room: usize) -> Result<Option<Vec<u32>>> {
        loop {
            let system = self.system.iter().map(|text| Message::new("system", text));
            let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
            let ids = tokenizer.encode(&tokenizer.prompt(&messages)?)?;
            if ids.is_empty() {
                return Err(Error::Refused("this turn has no tokens".to_owned()));
            }
            if ids.len() <= room {
                return Ok(Some(ids));
            }
            if self.messages.len() < 3 {
                return Ok(None);
            }
            self.messages.drain(..2);
        }
    }
}
