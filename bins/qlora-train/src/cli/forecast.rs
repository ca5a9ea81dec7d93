//! Forecast of a run: the time of a step, hours and cost, each with where its speed comes from.

use super::datasheet::peak_flops;
use super::run_size::RunSize;
use super::world::World;
use crate::backend::OpWork;
use crate::bench::layers::{StepTime, measure_layers};
use crate::config::{Settings, gpu_named};
use crate::error::Result;
use crate::model::ModelSpec;
use crate::refuse;
use crate::report::{count, duration, status, thousands};
use crate::session::Device;
use crate::session::plan::MemoryPlan;
use crate::session::predicted;
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Args)]
pub struct ForecastArgs {
    /// What a machine costs an hour, in any currency: the plan says what the run costs
    #[arg(long, value_name = "PRICE", value_parser = price)]
    price_per_hour: Option<f64>,
    /// Measure steps with random weights here, of the whole model or of a few of its layers, to say how long the run
    /// takes on this CPU
    #[arg(long)]
    measure: bool,
}

impl ForecastArgs {
    /// Whether steps are measured on this machine.
    pub fn measures(&self) -> bool {
        self.measure
    }
}

fn price(text: &str) -> std::result::Result<f64, String> {
    match text.trim().parse() {
        Ok(price) if (0.0..=1e9).contains(&price) => Ok(price),
        _ => Err("expected a number of at least 0, such as 2.49".to_owned()),
    }
}

/// Where a speed comes from.
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
            Self::Datasheet => "datasheet: its peak of dense bf16, so that no run is as fast",
        }
    }
}

struct Speed {
    machine: String,
    source: Source,
    /// Seconds of a token that is trained on, and of one that is evaluated
    token: f64,
    evaluated_token: f64,
    /// Seconds of an update where the tokens' do not hold it
    update: f64,
}

impl Speed {
    fn of_gpu(name: &str, spec: &ModelSpec, plan: &MemoryPlan) -> Option<Self> {
        let predicted = predicted::step_seconds(spec, plan).into_iter().find(|(card, _)| is_card(name, card));
        // States come once a step, of however many micro-batches.
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

/// What is known of a run that is to be forecast.
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

/// What a plan says of time and cost.
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
            refuse!("--measure measures this CPU, and the plan is for a GPU: leave it out, or give `--device cpu`");
        }
        if measure && spec.is_streamed() {
            refuse!(
                "--measure measures layers that are in memory, and weights of this run stay on disk: leave it out, or \
                 give `--weights resident`"
            );
        }
        if let Some(name) = gpu.filter(|name| Speed::of_gpu(name, spec, plan).is_none()) {
            if price.is_some() {
                refuse!("--price-per-hour: {}", unknown_speed(name));
            }
            status!("{}", unknown_speed(name));
            return Ok(None);
        }
        let Some(size) = planned.size.clone().filter(|_| speed_is_known) else {
            return match (price.is_some() || measure).then(|| missing(speed_is_known, device.is_cpu())) {
                Some(missing) => refuse!("{missing}"),
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

    /// That of all machines.
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

/// Whether a card whose speed is predicted is the GPU of this name, as H100 is not the H100 PCIe.
fn is_card(name: &str, card: &str) -> bool {
    name.rsplit(' ').next() == Some(card)
}

/// Words for a GPU of which nothing but its memory is known.
fn unknown_speed(name: &str) -> String {
    format!("no time is predicted for the {name}: its speed is not known, only its memory")
}

/// What keeps a forecast that is asked for from being made.
fn missing(speed_is_known: bool, is_cpu: bool) -> &'static str {
    match (speed_is_known, is_cpu) {
        (true, _) => "how long a run takes follows from its steps: give `--data`, or `--max-steps`",
        (_, true) => "--price-per-hour needs the time of a step: give `--gpu`, or measure this CPU with `--measure`",
        (_, false) => "--price-per-hour needs the time of a step, which is known of the GPUs that `--gpu` names",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GPUS;

    fn forecast(source: Source, price: Option<f64>, update: f64) -> Forecast {
        let speed = Speed { machine: "H100".to_owned(), source, token: 1e-4, evaluated_token: 0.5e-4, update };
        let (samples, evaluation) = (Vec::new(), Vec::new());
        let (steps, tokens, evaluated, micro_batches) = (100, 36_000_000.0, 3_600_000.0, 1.0);
        let size = RunSize { steps, tokens, evaluated, micro_batches, busiest: 1.0, samples, evaluation };
        Forecast { speed, size, price, world: World::ALONE }
    }

    #[test]
    fn processes_share_the_time_and_each_machine_costs() {
        let alone = forecast(Source::Predicted, Some(2.5), 0.6);
        let size = RunSize { busiest: 0.25, ..alone.size.clone() };
        let world = World { size: 4, here: 2 };
        let shared = Forecast { size, world, ..forecast(Source::Predicted, Some(2.5), 0.6) };
        let number = |forecast: &Forecast, key: &str| forecast.json()[key].as_f64().unwrap();
        // 36 s of tokens, and the update, which each process does.
        for (key, expected) in [("step_seconds", [36.6, 9.6]), ("evaluation_seconds", [180.0, 45.0])] {
            let found = [&alone, &shared].map(|forecast| number(forecast, key));
            assert!(found.iter().zip(expected).all(|(found, of)| (found - of).abs() < 1e-9), "{key}: {found:?}");
        }
        assert!((number(&shared, "cost") - 2.0 * 2.5 * (960.0 + 45.0) / 3600.0).abs() < 1e-9);
        assert!(shared.text().ends_with("; at 2.5 an hour for a machine: 1.40"), "{}", shared.text());
    }

    #[test]
    fn hours_and_cost_follow_from_tokens_and_say_where_they_come_from() {
        let text = forecast(Source::Predicted, Some(2.5), 0.0).text();
        assert_eq!(
            text,
            "forecast, H100: 36s a step (predicted, not measured)\nforecast, H100: 100 steps of 36,000,000 tokens in all: \
             1.05 hours, 3m00s of them evaluations; at 2.5 an hour: 2.62"
        );
        let json = forecast(Source::Datasheet, None, 0.0).json();
        assert_eq!(
            (json["source"].as_str(), json["hours"].as_f64(), json["cost"].as_f64()),
            (Some("datasheet"), Some(1.05), None)
        );
        // 100 updates of 3.6 s.
        let json = forecast(Source::Measured, None, 3.6).json();
        assert_eq!((json["source"].as_str(), json["hours"].as_f64()), (Some("measured"), Some(1.15)));
    }

    #[test]
    fn a_small_price_is_not_shown_as_nothing() {
        let amounts = [0.0, 2.5, 0.0999, 0.05, 0.0012, 3.5e-5, 2e-9].map(amount);
        assert_eq!(amounts, ["0.00", "2.50", "0.10", "0.050", "0.0012", "0.000035", "2.0e-9"]);
        let text = forecast(Source::Predicted, Some(0.001), 0.0).text();
        assert!(text.ends_with("; at 0.001 an hour: 0.0011") || text.ends_with(": 0.0010"), "{text}");
    }

    #[test]
    fn a_predicted_card_is_that_of_its_whole_name_and_a_peak_is_no_other_cards() {
        let cards = ["A100", "A6000", "L40S", "4090", "H100", "5090"];
        let predicted = |name: &str| cards.iter().any(|card| is_card(name, card));
        let named: Vec<&str> = GPUS.iter().map(|gpu| gpu.name).filter(|name| predicted(name)).collect();
        assert_eq!(named, ["L40S", "RTX A6000", "RTX 4090", "RTX 5090", "A100", "H100"]);
        for (name, peak) in [
            ("H100 PCIe", Some(756e12)),
            ("H200", Some(989e12)),
            ("RTX 3090 Ti", Some(80e12)),
            ("RTX A4000", Some(77e12)),
            ("RTX A5000", None),
            ("RTX 4090 D", None),
            ("RTX 5090 D", None),
            ("H20", None),
            ("RTX PRO 6000", None),
            ("L4", None),
        ] {
            assert_eq!(peak_flops(name), peak, "{name}");
        }
    }
}
