//! The time of a run's steps, measured on its whole model or on a few of its layers, with micro-batches like its own.

use super::{Measured, RowShape, Work, measure, step_flops};
use crate::arch::Arch;
use crate::backend::OPTIMIZER;
use crate::bail_usage;
use crate::config::{Checkpointing, InitLora, LayerNumbers, Pattern, Settings, TokenTile, WeightResidency};
use crate::error::{Error, Result};
use crate::model::{Activations, ModelSpec};
use crate::report::{count, status};
use crate::session::Device;

/// Numbers of layers that are measured of a model that is too large to be measured whole; their difference gives the
/// time of the others.
const MEASURED: [usize; 2] = [2, 8];
const STEPS: usize = 3;
/// Times that a sample is computed: the steps, one before and one after them, and its loss alone.
const PASSES: f64 = STEPS as f64 + 2.3;
/// Limit on the FLOPs of a measurement, where less can be measured: a minute on a few cores.
const MOST_FLOPS: f64 = 2e13;
/// Micro-batches of a sample: the first that is affordable is taken.
const SIZES: [usize; 3] = [4, 2, 1];
/// Work of the largest micro-batch over that of the smallest up to which any of them stands for all.
const ALIKE: f64 = 1.05;

/// Micro-batches that stand for all of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Rows of each
    pub micro_batches: Vec<Vec<RowShape>>,
    /// Work of a micro-batch of the run over that of one of these, on average
    pub scale: f64,
}

impl Sample {
    /// Samples of the micro-batches of a run, the best first. A sample of n has, of each n-th of all of them by their
    /// work, the one in the middle.
    pub fn of(arch: &Arch, all: &[Vec<RowShape>]) -> Vec<Self> {
        let mut by_work: Vec<(f64, &Vec<RowShape>)> =
            all.iter().map(|rows| (step_flops(arch, rows.iter().map(|row| row.length)), rows)).collect();
        by_work.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (Some(least), Some(most)) = (by_work.first(), by_work.last()) else { return Vec::new() };
        let are_alike = most.0 <= ALIKE * least.0;
        let mean = by_work.iter().map(|(work, _)| work).sum::<f64>() / by_work.len() as f64;
        let sample = |size: usize| {
            let chosen = (0..size).map(|part| by_work[(2 * part + 1) * by_work.len() / (2 * size)]);
            let work = chosen.clone().map(|(work, _)| work).sum::<f64>() / size as f64;
            Self { micro_batches: chosen.map(|(_, rows)| rows.clone()).collect(), scale: mean / work.max(1.0) }
        };
        let is_wanted = |size: &usize| *size == 1 || (*size <= by_work.len() && !are_alike);
        SIZES.into_iter().filter(is_wanted).map(sample).collect()
    }

    /// FLOPs of one pass over it.
    fn flops(&self, arch: &Arch) -> f64 {
        step_flops(arch, self.micro_batches.iter().flatten().map(|row| row.length))
    }
}

/// Seconds of the parts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Forward and backward pass of a micro-batch
    pub micro_batch: f64,
    /// Update of what is trained
    pub update: f64,
    /// Loss of the rows that are evaluated
    pub evaluation: f64,
}

impl StepTime {
    /// Subtracts the update from the steps, each of which is `micro_batches` micro-batches and one update.
    fn of(measured: &Measured, micro_batches: usize) -> Self {
        let mut seconds = measured.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let update: f64 = measured.kinds.iter().filter(|kind| kind.name == OPTIMIZER).map(|kind| kind.seconds).sum();
        let micro_batch = (seconds[seconds.len() / 2] - update).max(0.0) / micro_batches.max(1) as f64;
        Self { micro_batch, update, evaluation: measured.evaluation }
    }

    /// Sums over all layers, from the times of `few` and of `more` of them; each pair counts for the layers of the
    /// whole model that are like it.
    fn of_all(pairs: &[[Self; 2]], [few, more]: [usize; 2], layers: &[usize]) -> Self {
        let part = |of: fn(&Self) -> f64| {
            let mut seconds = 0.0;
            for ([less, all], layers) in pairs.iter().zip(layers) {
                let layer = (of(all) - of(less)).max(0.0) / (more - few).max(1) as f64;
                let rest = (of(less) - layer * few as f64).max(0.0) / pairs.len() as f64;
                seconds += rest + layer * *layers as f64;
            }
            seconds
        };
        Self {
            micro_batch: part(|time| time.micro_batch),
            update: part(|time| time.update),
            evaluation: part(|time| time.evaluation),
        }
    }
}

/// Measures steps of a model like that of `spec`, with random weights, on one of `samples`, and the loss of rows like
/// `evaluated`. The whole model is measured if that takes little time, otherwise a few of its layers. Errors: there is
/// no sample; memory that is too small even for a few layers.
pub fn measure_layers(
    settings: &Settings,
    device: &Device,
    spec: &ModelSpec,
    samples: &[Sample],
    evaluated: &[RowShape],
) -> Result<StepTime> {
    let arch = &spec.arch;
    let kept = spec.activation_counts().keep;
    let ways = [(Activations::Keep, kept), (Activations::Recompute, arch.num_layers - kept)];
    let ways: Vec<_> = ways.into_iter().filter(|(_, layers)| *layers > 0).collect();
    let time = |sample: &Sample, layers: usize, way: Activations, is_whole: bool| {
        let settings = alike(settings, spec, way, is_whole);
        // Empty where all layers are alike.
        let kinds = arch.layers.iter().take(layers).cloned().collect();
        let work = Work {
            arch: Arch { num_layers: layers, layers: kinds, ..arch.clone() },
            micro_batches: sample.micro_batches.clone(),
            evaluated: evaluated.to_vec(),
            steps: STEPS,
        };
        let advice = "Leave --measure out, lower max_length or per_device_train_batch_size";
        let measured = measure(&settings, device.clone(), work, advice)?;
        Ok::<StepTime, Error>(StepTime::of(&measured, sample.micro_batches.len()))
    };
    let scaled = |sample: &Sample, time: StepTime| StepTime { micro_batch: time.micro_batch * sample.scale, ..time };
    if let ([(way, _)], Some(sample)) = (&ways[..], affordable(arch, samples, 1.0)) {
        status!("measuring steps of the whole model here, with random weights");
        match time(sample, arch.num_layers, *way, true) {
            Ok(whole) => return Ok(scaled(sample, whole)),
            // The run may be for another machine's memory.
            Err(error) if error.is_usage() && arch.num_layers > MEASURED[1] => {}
            Err(error) => return Err(error),
        }
    }
    let [few, more] = MEASURED.map(|layers| layers.min(arch.num_layers));
    let part = (ways.len() * (few + more)) as f64 / arch.num_layers.max(1) as f64;
    let Some(sample) = affordable(arch, samples, part).or(samples.last()) else {
        bail_usage!("--measure: found no micro-batch that could be measured");
    };
    status!("measuring steps of {} and of {more} here", count(few as u64, "layer"));
    let of_way =
        |(way, _): &(Activations, usize)| Ok([time(sample, few, *way, false)?, time(sample, more, *way, false)?]);
    let pairs = ways.iter().map(of_way).collect::<Result<Vec<_>>>()?;
    let layers: Vec<usize> = ways.iter().map(|(_, layers)| *layers).collect();
    Ok(scaled(sample, StepTime::of_all(&pairs, [few, more], &layers)))
}

/// The best of `samples` that takes little to measure, where a pass takes this `part` of one of the whole model.
fn affordable<'a>(arch: &Arch, samples: &'a [Sample], part: f64) -> Option<&'a Sample> {
    samples.iter().find(|sample| PASSES * part * sample.flops(arch) <= MOST_FLOPS)
}

/// Settings under which layers compute as those of `spec` do, all with activations handled in one `way`.
fn alike(settings: &Settings, spec: &ModelSpec, way: Activations, is_whole: bool) -> Settings {
    let own = Settings {
        gradient_checkpointing: if way == Activations::Keep { Checkpointing::Off } else { Checkpointing::On },
        token_tile: spec.token_tile.map_or(TokenTile::Off, TokenTile::Tokens),
        weights: WeightResidency::Resident,
        init_lora_weights: InitLora::Random,
        ..settings.clone()
    };
    if is_whole {
        return own;
    }
    // Settings for single modules may name none of the few layers.
    let (rank_pattern, alpha_pattern) = (Pattern::default(), Pattern::default());
    Settings { layers_to_transform: LayerNumbers::default(), rank_pattern, alpha_pattern, ..own }
}

#[cfg(test)]
mod tests;
