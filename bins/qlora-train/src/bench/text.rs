//! Timed generation by a model of random weights: reading prompts, then the answers token by token.

use super::weights::RandomSource;
use super::{host_peak_bytes, stored_in_16_bits};
use crate::arch::{Arch, Projection};
use crate::backend::cpu::read_bandwidth;
use crate::backend::{Backend, OpTime, Quantization, StateFormat, TraceMode};
use crate::config::Settings;
use crate::error::Result;
use crate::lora::LoraSpec;
use crate::model::generate::{Sampling, generate};
use crate::model::{Llama, ModelSpec};
use crate::report::Bars;
use crate::session::host::set_threads;
use crate::session::model_spec::{model_spec_of, of_settings};
use crate::session::plan::{self, MemoryPlan, PlannedJob};
use crate::session::{Device, DeviceJob};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::rng::RngStream;
use std::time::Instant;

/// Tokens whose operations are timed one by one, after those of the answers.
const TRACED: usize = 8;

/// Prompts and answers that are measured.
#[derive(Clone, Debug)]
pub struct Text {
    pub arch: Arch,
    /// Tokens of a prompt
    pub prompt: usize,
    /// Prompts that are answered side by side
    pub prompts: usize,
    /// Tokens of an answer, two or more
    pub answer: usize,
    /// With adapters as the settings have them; otherwise the base alone
    pub with_lora: bool,
}

/// Measurements of prompts and answers.
#[derive(Clone, Debug)]
pub struct MeasuredText {
    pub plan: MemoryPlan,
    pub spec: ModelSpec,
    /// From the start to the first token of the answers
    pub prompt_seconds: f64,
    /// Seconds of every further token, of all answers together
    pub seconds: Vec<f64>,
    /// Every kind of operation in tokens that follow on almost none, the longest first
    pub kinds: Vec<OpTime>,
    /// Bytes of the weights that one token reads, whatever the number of prompts
    pub weight_bytes: u64,
    /// Bytes a second at which all threads read memory; none on a GPU
    pub read_bandwidth: Option<f64>,
    /// The most that the process held of the host's memory, where the system tells
    pub host_bytes: Option<u64>,
}

impl Text {
    fn tokens(&self) -> usize {
        self.prompts * (self.prompt + self.answer)
    }

    fn spec(&self, settings: &Settings) -> Result<ModelSpec> {
        let trained =
            model_spec_of(settings, &self.arch, of_settings(settings), self.tokens(), self.prompt + self.answer)?;
        let lora = if self.with_lora { trained.lora.clone() } else { LoraSpec::default() };
        Ok(ModelSpec { lora, trainable: false, states: StateFormat::F32, ..trained })
    }

    /// Linear weights of all layers and the output layer, which random weights have in 16 bits.
    fn weight_bytes(&self, quantization: Quantization) -> u64 {
        let bytes = |projection: Projection| {
            let (n, k) = projection.shape(&self.arch);
            match quantization {
                Quantization::Nf4 { block_size, double_quant } => {
                    Nf4Matrix::bytes_for(n, k, &Nf4Options { block_size, double_quant })
                }
                Quantization::None => 2 * n * k,
            }
        };
        let layer: usize = self.arch.names.all().map(bytes).sum();
        (self.arch.num_layers * layer + 2 * self.arch.vocab_size * self.arch.hidden_size) as u64
    }
}

/// Refused: prompts and answers that do not fit in memory.
pub fn bench(settings: &Settings, text: Text) -> Result<MeasuredText> {
    set_threads(settings.threads)?;
    let device = Device::choose(settings)?.for_model(settings, &text.arch);
    let (spec, budget) = (text.spec(settings)?, device.budget(settings)?);
    let (adapters, prompts) = ([spec.lora.clone()], vec![text.prompt; text.prompts]);
    let job = PlannedJob::Text { adapters: &adapters, prompts: &prompts, max_new_tokens: text.answer };
    let plan = plan::plan(&device, &spec, &stored_in_16_bits, job, budget)?;
    plan::refuse_unless_it_fits(&plan, text.tokens(), "Lower --seq, --batch or --generate")?;
    // Before the model takes memory.
    let read_bandwidth = device.is_cpu().then(read_bandwidth);
    device.run(TextBench { text, spec, plan, read_bandwidth, seed: settings.seed })
}

struct TextBench {
    text: Text,
    spec: ModelSpec,
    plan: MemoryPlan,
    read_bandwidth: Option<f64>,
    seed: u64,
}

impl DeviceJob for TextBench {
    type Output = MeasuredText;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<MeasuredText> {
        let Self { text, spec, plan, read_bandwidth, seed } = self;
        let mut backend = build(&spec, plan.run_bytes)?;
        let mut source = RandomSource::new(&text.arch, spec.quantization, seed);
        let mut bar = Bars::new("random weights", text.arch.num_layers as u64);
        let mut progress = |layer| bar.set(layer as u64, String::new());
        let model = Llama::build(&mut backend, &mut source, spec.clone(), &mut progress)?;
        bar.finish();
        drop(source);

        let mut stream = RngStream::new(seed, 1);
        let vocab = text.arch.vocab_size as u32;
        let mut prompts = |count: usize, len: usize| -> Vec<Vec<u32>> {
            (0..count).map(|_| (0..len).map(|_| stream.below(vocab)).collect()).collect()
        };
        let rows = prompts(text.prompts, text.prompt);
        let mut bar = Bars::new("tokens", text.answer as u64);
        let mut times = vec![Instant::now()];
        let mut answered = |row: usize, _| {
            if row == 0 {
                times.push(Instant::now());
                bar.set(times.len() as u64 - 1, String::new());
            }
            Ok(true)
        };
        generate(&mut backend, &model, &rows, text.answer, &[], &Sampling::GREEDY, &mut answered)?;
        bar.finish();
        let mut seconds = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64());
        let prompt_seconds = seconds.next().unwrap_or(f64::NAN);
        let seconds: Vec<f64> = seconds.collect();

        // A prompt of one token is read as a token of an answer is.
        let rows = prompts(text.prompts, 1);
        backend.trim();
        backend.set_trace(TraceMode::Times)?;
        let traced = TRACED.min(text.prompt + text.answer - 1);
        generate(&mut backend, &model, &rows, traced, &[], &Sampling::GREEDY, &mut |_, _| Ok(true))?;
        let mut kinds = backend.times()?;
        kinds.iter_mut().for_each(|kind| {
            kind.seconds /= traced as f64;
            kind.flops /= traced as f64;
        });
        kinds.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let weight_bytes = text.weight_bytes(spec.quantization);
        let host_bytes = host_peak_bytes();
        Ok(MeasuredText { plan, spec, prompt_seconds, seconds, kinds, weight_bytes, read_bandwidth, host_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::shapes::shape;

    #[test]
    fn a_token_reads_every_weight_once() {
        let text = Text { arch: shape("llama-3-8b").unwrap(), prompt: 1, prompts: 1, answer: 1, with_lora: false };
        // 6,979,321,856 parameters of the layers' linears and 128,256 x 4096 of the output layer.
        let (layers, head) = (6_979_321_856u64, 2 * 128_256 * 4096u64);
        assert_eq!(text.weight_bytes(Quantization::None), 2 * layers + head);
        let nf4 = Quantization::NF4;
        let per_parameter = (text.weight_bytes(nf4) - head) as f64 / layers as f64;
        // Half a byte, one byte for 64 of them, and four for 256 of those.
        assert!((per_parameter - (0.5 + 1.0 / 64.0 + 4.0 / 16_384.0)).abs() < 1e-4, "{per_parameter}");
    }
}
