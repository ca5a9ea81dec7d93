//! Forecast of a run: the time of a step, hours and cost, each with the source of its speed.

use super::datasheet::peak_flops;
use super::run_size::RunSize;
use super::world::World;
use crate::backend::OpWork;
use crate::bail_usage;
use crate::bench::layers::{StepTime, measure_layers};
use crate::config::{Settings, gpu_named};
use crate::error::Result;
use crate::model::ModelSpec;
use crate::report::{count, duration, status, thousands};
use crate::session::Device;
use crate::session::plan::MemoryPlan;
use crate::session::predicted;
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Args)]
pub struct ForecastArgs {
    /// Price of a machine per hour, in any currency; the plan then shows the cost of the run
    #[arg(long, value_name = "PRICE", value_parser = price)]
    price_per_hour: Option<f64>,
    /// Measure training steps with random weights on this CPU, with the whole model or a few of its layers, to predict
    /// how long the run takes
    #[arg(long)]
    measure: bool,
}

impl ForecastArgs {
    /// True if steps are measured on this machine.
    pub fn measures(&self) -> bool {
        self.measure
    }
}

fn price(text: &str) -> std::result::Result<f64, String> {
    match text.trim().parse() {
        Ok(price) if (0.0..=1e9).contains(&price) => Ok(price),
        _ => Err("expected a number from 0 to 1000000000, such as 2.49".to_owned()),
    }
}

/// Source of a speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Measured,
    Predicted,
    Datasheet,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Predicted => "predicted",
            Self::Datasheet => "datasheet",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Measured => "by steps with random weights, measured here",
            Self::Predicted => "predicted, not measured",
            Self::Datasheet => "datasheet: the peak of dense bf16, which no run reaches",
        }
    }
}

struct Speed {
    machine: String,
    source: Source,
    /// Seconds of a token that is trained on, and of one that is evaluated
    token: f64,
    evaluated_token: f64,
    /// Seconds of an update, where the tokens' time does not include it
    update: f64,
}

impl Speed {
    fn of_gpu(name: &str, spec: &ModelSpec, plan: &MemoryPlan) -> Option<Self> {
        let predicted = predicted::step_seconds(spec, plan).into_iter().find(|(card, _)| is_card(name, card));
        // States are copied once a step, however many micro-batches it has.
        let paging = predicted.as_ref().map_or(0.0, |_| predicted::paging_seconds(spec));
        let (source, seconds) = match predicted {
            Some((_, seconds)) => (Source::Predicted, seconds - paging),
            None => (Source::Datasheet, plan.flops / peak_flops(name)?),
        };
        let token = seconds / spec.tokens.max(1) as f64;
        let evaluated_token = token * forward_share(plan);
        Some(Self { machine: name.to_owned(), source, token, evaluated_token, update: paging })
    }

    fn of_cpu(planned: &Planned, size: &RunSize) -> Result<Self> {
        let Planned { settings, device, spec, plan, .. } = planned;
        let StepTime { micro_batch, update, evaluation } =
            measure_layers(settings, device, spec, &size.samples, &size.evaluation)?;
        let token = micro_batch / size.micro_batch_tokens().max(1.0);
        let evaluated: usize = size.evaluation.iter().map(|row| row.length).sum();
        let evaluated_token = if evaluated > 0 { evaluation / evaluated as f64 } else { token * forward_share(plan) };
        Ok(Self { machine: device.in_words(), source: Source::Measured, token, evaluated_token, update })
    }
}

/// Part of the operations of a micro-batch that its forward pass has.
fn forward_share(plan: &MemoryPlan) -> f64 {
    let flops = |work: &[OpWork]| work.iter().map(|op| op.count as f64 * op.units).sum::<f64>();
    let (forward, all) = (flops(&plan.forward), flops(&plan.work));
    if all > 0.0 { forward / all } else { 1.0 / 3.0 }
}

/// A planned run, whose time and cost are to be forecast.
pub struct Planned<'a> {
    pub settings: &'a Settings,
    pub device: &'a Device,
    pub spec: &'a ModelSpec,
    pub plan: &'a MemoryPlan,
    /// The value of `gpu`
    pub gpu: Option<&'a str>,
    pub size: Option<RunSize>,
    pub world: World,
}

/// Time and cost of a planned run.
pub struct Forecast {
    speed: Speed,
    size: RunSize,
    price: Option<f64>,
    world: World,
}

impl Forecast {
    /// None where nothing is asked for. Refused: a price or a measurement without what it needs.
    pub fn make(args: &ForecastArgs, planned: &Planned) -> Result<Option<Self>> {
        let ForecastArgs { price_per_hour: price, measure } = *args;
        let Planned { device, spec, plan, gpu, world, .. } = *planned;
        let gpu = gpu.and_then(gpu_named).map(|(name, _)| name).filter(|_| !device.is_cpu());
        let speed_is_known = gpu.is_some() || (measure && device.is_cpu());
        if measure && !device.is_cpu() {
            bail_usage!("--measure measures this CPU, and the plan is for a GPU: leave it out, or give `--device cpu`");
        }
        let on_disk = [
            (spec.is_streamed(), "weights", "--weights resident"),
            (spec.head_on_disk(), "weights", "--lm-head resident"),
            (plan.fits() && plan.disk_bytes() > 0, "layers' inputs", "--gradient-checkpointing true"),
        ];
        if let Some((_, what, give)) = on_disk.into_iter().find(|(is_so, ..)| measure && *is_so) {
            bail_usage!(
                "--measure measures layers that are in memory, and {what} of this run are on disk: leave it out, or \
                 give `{give}`"
            );
        }
        if let Some(name) = gpu.filter(|name| Speed::of_gpu(name, spec, plan).is_none()) {
            if price.is_some() {
                bail_usage!("--price-per-hour: {}", unknown_speed(name));
            }
            status!("{}", unknown_speed(name));
            return Ok(None);
        }
        let Some(size) = planned.size.clone().filter(|_| speed_is_known) else {
            return match (price.is_some() || measure).then(|| missing(speed_is_known, device.is_cpu())) {
                Some(missing) => bail_usage!("{missing}"),
                None => Ok(None),
            };
        };
        let speed = match gpu {
            Some(name) => Speed::of_gpu(name, spec, plan),
            None => Some(Speed::of_cpu(planned, &size)?),
        };
        Ok(speed.map(|speed| Self { speed, size, price, world }))
    }

    /// Time of a step where it was measured, in seconds; None where it is predicted
    pub fn measured_step_seconds(&self) -> Option<f64> {
        matches!(self.speed.source, Source::Measured).then(|| self.step_seconds())
    }

    fn step_seconds(&self) -> f64 {
        let tokens = self.size.tokens * self.size.busiest;
        self.speed.token * tokens / self.size.steps.max(1) as f64 + self.speed.update
    }

    fn evaluation_seconds(&self) -> f64 {
        self.speed.evaluated_token * self.size.evaluated / self.world.size as f64
    }

    /// Time of all steps and evaluations
    fn seconds(&self) -> f64 {
        self.step_seconds() * self.size.steps as f64 + self.evaluation_seconds()
    }

    fn hours(&self) -> f64 {
        self.seconds() / 3600.0
    }

    /// Cost of the run on all machines.
    fn cost(&self) -> Option<f64> {
        self.price.map(|price| price * self.hours() * self.world.machines() as f64)
    }

    pub fn text(&self) -> String {
        let RunSize { steps, tokens, .. } = self.size;
        let shown = |seconds: f64| match seconds {
            seconds if seconds < 10.0 => format!("{seconds:.3} s"),
            seconds if seconds < 3600.0 => duration(Duration::from_secs_f64(seconds)),
            seconds => format!("{:.2} hours", seconds / 3600.0),
        };
        let Speed { machine, source, .. } = &self.speed;
        let mut text = format!("forecast, {machine}: {} a step ({})", shown(self.step_seconds()), source.in_words());
        text += &format!(
            "\nforecast, {machine}: {} of {} tokens in all: {}{}",
            count(steps, "step"),
            thousands(tokens as u64),
            shown(self.seconds()),
            match self.evaluation_seconds() {
                seconds if seconds > 0.0 => format!(", {} of them evaluations", shown(seconds)),
                _ => String::new(),
            }
        );
        if let (Some(price), Some(cost)) = (self.price, self.cost()) {
            let each = if self.world.machines() > 1 { " for a machine" } else { "" };
            text += &format!("; at {price} an hour{each}: {}", amount(cost));
        }
        text
    }

    pub fn json(&self) -> Value {
        json!({
            "machine": self.speed.machine,
            "source": self.speed.source.name(),
            "step_seconds": self.step_seconds(),
            "steps": self.size.steps,
            "tokens": self.size.tokens,
            "evaluation_seconds": self.evaluation_seconds(),
            "hours": self.hours(),
            "price_per_hour": self.price,
            "cost": self.cost(),
        })
    }
}

/// A price with cents, or, where it is less than ten of them, with two significant digits.
fn amount(cost: f64) -> String {
    match cost {
        cost if cost <= 0.0 || cost >= 0.0995 => format!("{cost:.2}"),
        cost if cost < 1e-6 => format!("{cost:.1e}"),
        cost => {
            let decimals = (1.0 - cost.log10().floor()) as usize;
            format!("{cost:.decimals$}")
        }
    }
}

/// True if a card whose speed is predicted is the GPU of this name. H100 is not the H100 PCIe.
fn is_card(name: &str, card: &str) -> bool {
    name.rsplit(' ').next() == Some(card)
}

/// Words for a GPU of which nothing but its memory is known.
fn unknown_speed(name: &str) -> String {
    format!("no time is predicted for the {name}: its speed is not known, only its memory")
}

/// The reason why a forecast cannot be made.
fn missing(speed_is_known: bool, is_cpu: bool) -> &'static str {
    match (speed_is_known, is_cpu) {
        (true, _) => "how long a run takes follows from its steps: give `--data`, or `--max-steps`",
        (_, true) => "--price-per-hour needs the time of a step: give `--gpu`, or measure this CPU with `--measure`",
        (_, false) => "--price-per-hour needs the time of a step, which is known of the GPUs that `--gpu` names",
    }
}

#[cfg(test)]
mod tests;
