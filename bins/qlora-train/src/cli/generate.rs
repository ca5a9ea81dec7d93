//! `qlora-train generate`

use super::answer::Answer;
use super::model_args::{Chosen, ModelArgs};
use super::sampling_args::SamplingArgs;
use crate::backend::Backend;
use crate::bail_usage;
use crate::config::{PromptCompletion, Settings, path_from_home};
use crate::data::{ChatTokenizer, TextStream};
use crate::error::{Context, Result};
use crate::files::json::read_bounded;
use crate::infer::prompt::Form;
use crate::infer::stop::{Stop, StopWatch};
use crate::infer::{Adapters, InferenceJob, InferenceModel};
use crate::model::ModelSpec;
use crate::model::generate::generate_by_row;
use crate::report::{Bars, PrintableOut, count, printable, status, warning};
use crate::session::chat_template::open_tokenizer;
use crate::session::host::set_threads;
use crate::session::untrained_tokens::{rows_of_adapters, warn_of_untrained_ids};
use crate::session::{Device, DeviceJob, Loaded};
use clap::Args;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt to answer; repeat the flag to answer several together; - reads one from standard input
    #[arg(short, long, required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// File of prompts, answered after those of --prompt: one per line, or in a .jsonl file the text under `prompt` in
    /// each line
    #[arg(long, value_name = "FILE", value_parser = path_from_home())]
    prompts: Option<PathBuf>,
    /// Each line of a .jsonl file of prompts names its adapter under `adapter` (no name: the base alone); all are
    /// answered in one batch
    #[arg(long, requires = "prompts")]
    adapter_by_row: bool,
    /// Text of the system message [default: no system message]
    #[arg(long)]
    system: Option<String>,
    /// Continue the prompt exactly as it is: no chat template and no added tokens, not even BOS
    #[arg(long, conflicts_with_all = ["system", "chat_template", "prompt_completion"])]
    raw: bool,
    /// Maximum number of tokens in an answer
    #[arg(long, alias = "max-tokens", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const MAX_PROMPTS_BYTES: u64 = 64 << 20;

/// A prompt, and the adapter that its line names.
struct Prompt {
    text: String,
    adapter: Option<String>,
}

/// The prompts of the command line, where - is standard input without its last line break, and those of the file.
fn prompts(args: &GenerateArgs) -> Result<Vec<Prompt>> {
    if args.prompt.iter().filter(|prompt| *prompt == "-").count() > 1 {
        bail_usage!("--prompt: found - twice, expected it once: standard input is one prompt");
    }
    let read = |prompt: &String| -> Result<Prompt> {
        let text = match prompt.as_str() {
            "-" => {
                let text =
                    io::read_to_string(io::stdin().lock()).usage_context(|| "--prompt: standard input".to_owned())?;
                let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
                line.unwrap_or(&text).to_owned()
            }
            prompt => prompt.to_owned(),
        };
        Ok(Prompt { text, adapter: None })
    };
    let mut prompts = args.prompt.iter().map(read).collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.prompts {
        prompts.extend(prompts_of(path)?);
    }
    Ok(prompts)
}

/// The prompts of a file. Empty lines hold none.
fn prompts_of(path: &Path) -> Result<Vec<Prompt>> {
    let shown = path.display();
    let text = String::from_utf8(read_bounded(path, MAX_PROMPTS_BYTES)?);
    let text = text.usage_context(|| format!("{shown}: not a text"))?;
    let is_rows = path.extension().is_some_and(|ending| ending == "jsonl");
    let mut prompts = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        prompts.push(match is_rows {
            false => Prompt { text: line.to_owned(), adapter: None },
            true => {
                let row: Value = serde_json::from_str(line).usage_context(|| format!("{shown}, line {}", at + 1))?;
                let Some(prompt) = row.get("prompt").and_then(Value::as_str) else {
                    bail_usage!("{shown}, line {}: found no text under `prompt`, expected one", at + 1)
                };
                let adapter = match row.get("adapter") {
                    None | Some(Value::Null) => None,
                    Some(Value::String(name)) => Some(name.trim().to_owned()).filter(|name| !name.is_empty()),
                    Some(other) => bail_usage!(
                        "{shown}, line {}: `adapter`: found {other:.80}, expected the name of an adapter",
                        at + 1
                    ),
                };
                Prompt { text: prompt.to_owned(), adapter }
            }
        });
    }
    if prompts.is_empty() {
        bail_usage!("{shown}: found no prompt, expected one a line");
    }
    Ok(prompts)
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
            bail_usage!(
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
}

pub fn run(args: &GenerateArgs, to_program: bool) -> Result<Answer> {
    args.sampling.warn_of_unused();
    let Chosen { settings, adapters } = args.model.choose()?;
    let adapters = if args.adapter_by_row { adapters.by_row()? } else { adapters };
    let prompts = prompts(args)?;
    let numbers: Vec<i32> = match adapters.is_by_row() {
        true => prompts.iter().map(|prompt| adapters.number(prompt.adapter.as_deref())).collect::<Result<_>>()?,
        false => Vec::new(),
    };
    if !adapters.is_by_row() && !adapters.is_empty() && prompts.iter().any(|prompt| prompt.adapter.is_some()) {
        warning!("prompts name adapters, which are ignored without --adapter-by-row");
    }
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let mut loaded = Loaded::open(&settings)?;
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    loaded.check_size(&settings, &device)?;
    let checkpoint = &loaded.checkpoint;
    let tokenizer = open_tokenizer(settings.chat_template.as_deref(), checkpoint, &adapters.dirs)?;
    let max_new_tokens = args.max_new_tokens as usize;
    let (form, line) = args.form(&settings, &tokenizer, &adapters.dirs)?;
    let encode = |Prompt { text, .. }: &Prompt| {
        form.encode(text, args.system.as_deref(), &tokenizer).context(|| format!("--prompt {text:?}"))
    };
    let (asked, prompts) = (&prompts, prompts.iter().map(encode).collect::<Result<Vec<_>>>()?);
    status!("{line}");
    let trained = rows_of_adapters(&adapters.dirs);
    warn_of_untrained_ids(checkpoint, &tokenizer, &trained, prompts.iter().flatten().copied())?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + max_new_tokens;
    let limit = checkpoint.arch().max_position_embeddings;
    if longest > limit {
        bail_usage!(
            "prompt and --max-new-tokens together reach {longest} tokens, the model has {limit} positions: shorten the \
             prompt or lower --max-new-tokens"
        );
    }
    let stop = Stop::of_model(checkpoint.dir(), checkpoint.arch(), &tokenizer, form == Form::Chat)?;
    let stop = stop.or_before(&args.sampling.stop);
    if let Some(note) = stop.note() {
        status!("{note}");
    }
    loaded.use_quantized(&settings)?;
    device.clone().run(Generate {
        args,
        settings,
        adapters,
        loaded,
        tokenizer,
        asked,
        numbers,
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
    adapters: Adapters,
    loaded: Loaded,
    tokenizer: ChatTokenizer,
    asked: &'a [Prompt],
    /// Number of each prompt's adapter, where each names its own; otherwise empty.
    numbers: Vec<i32>,
    /// Tokens of the prompts.
    prompts: Vec<Vec<u32>>,
    /// Tokens of the longest prompt with its answer.
    longest: usize,
    stop: Stop,
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
            asked,
            numbers,
            prompts,
            longest,
            stop,
            device,
            to_program,
        } = self;
        let (checkpoint, max_new_tokens) = (&loaded.checkpoint, args.max_new_tokens as usize);
        let tokens = prompts.iter().map(|p| p.len() + max_new_tokens).sum();
        let job = InferenceJob::Text { prompts: prompts.iter().map(Vec::len).collect(), max_new_tokens };
        let mut model = InferenceModel::load(&settings, checkpoint, &adapters, job, tokens, longest, &device, build)?;
        let sampling = args.sampling.sampling();

        // Answers of a batch cannot be printed as they grow.
        let streaming = !to_program && prompts.len() == 1 && !stop.has_texts();
        let (mut completions, mut text) = (Vec::new(), Vec::new());
        let passes = adapters.passes();
        let several = passes.len() > 1;
        for (index, name) in passes.into_iter().enumerate() {
            if index > 0 {
                model.activate_adapter(checkpoint, index)?;
            }
            let name = name.filter(|_| several);
            let heading = name.as_ref().map(|name| format!("== {}\n", printable(name)));
            let mut stream = TextStream::new(&tokenizer, streaming.then(|| PrintableOut(io::stdout())));
            stream.write(heading.as_deref().unwrap_or(""))?;
            let mut bar = (!streaming).then(|| Bars::new("generating", (max_new_tokens * prompts.len()) as u64));
            let start = Instant::now();
            let mut done = 0;
            let mut watch = StopWatch::new(&stop, &tokenizer, prompts.len());
            let answers = generate_by_row(
                &mut model.backend,
                &model.model,
                &prompts,
                &numbers,
                max_new_tokens,
                &stop.tokens,
                &sampling,
                &mut |answer, id| {
                    done += 1;
                    if let Some(bar) = &mut bar {
                        bar.set(done, String::new());
                    }
                    stream.push(id)?;
                    watch.go_on(answer, id)
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
            let texts: Vec<&str> = whole.iter().map(|text| watch.cut(text)).collect();
            for (prompt, text) in asked.iter().zip(&texts) {
                let mut completion = json!({"prompt": prompt.text, "text": text});
                let own = prompt.adapter.as_ref().filter(|_| adapters.is_by_row());
                if let Some(name) = name.as_ref().or(own) {
                    completion["adapter"] = name.as_str().into();
                }
                completions.push(completion);
            }
            if !streaming {
                text.push(heading.unwrap_or_default() + &texts.join("\n---\n"));
            }
            let seconds = start.elapsed().as_secs_f64();
            status!(
                "{} in {seconds:.1} s, {:.1} tokens/s with the prompts read",
                count(done, "token"),
                done as f64 / seconds.max(1e-9)
            );
        }
        Ok(Answer { text: text.join("\n"), json: json!({"completions": completions}) })
    }
}
