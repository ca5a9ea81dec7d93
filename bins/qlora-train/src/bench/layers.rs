//! The time of a whole model's steps, from steps of a few of its layers.

use super::{Measured, Shape, measure};
use crate::arch::Arch;
use crate::config::{Checkpointing, InitLora, LayerNumbers, Pattern, Settings, TokenTile, WeightResidency};
use crate::error::Result;
use crate::model::{Activations, ModelSpec};
use crate::report::{count, status};
use crate::session::Device;

/// Layers that are measured: the time of the others follows from the difference.
const MEASURED: [usize; 2] = [2, 8];
const STEPS: usize = 5;

/// Rows of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub count: usize,
    /// Tokens of each
    pub length: usize,
    /// Tokens of each that are learned from
    pub learned: usize,
}

/// Seconds of the parts of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Forward and backward pass of a micro-batch
    pub micro_batch: f64,
    /// Update of what is trained
    pub update: f64,
}

impl StepTime {
    /// Takes the update out of the steps, each of which had one.
    fn of(measured: &Measured) -> Self {
        let mut seconds = measured.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let update: f64 = measured.kinds.iter().filter(|kind| kind.name == "optimizer").map(|kind| kind.seconds).sum();
        Self { micro_batch: (seconds[seconds.len() / 2] - update).max(0.0), update }
    }

    /// Sums over all layers, by the times of `few` and of `more` of them, each with as many layers of the whole as are
    /// like them.
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
        Self { micro_batch: part(|time| time.micro_batch), update: part(|time| time.update) }
    }
}

/// Measures steps of a few layers like those of `spec`, with random weights, on rows like `rows`. Errors: memory that
/// is too small even for them.
pub fn measure_layers(settings: &Settings, device: &Device, spec: &ModelSpec, rows: Rows) -> Result<StepTime> {
    let arch = &spec.arch;
    let [few, more] = MEASURED.map(|layers| layers.min(arch.num_layers));
    status!("measuring steps of {} and of {more} here", count(few as u64, "layer"));
    let kept = spec.activation_counts().keep;
    let ways = [(Activations::Keep, kept), (Activations::Recompute, arch.num_layers - kept)];
    let ways: Vec<_> = ways.into_iter().filter(|(_, layers)| *layers > 0).collect();
    let time = |layers: usize, way: Activations| {
        let settings = alike(settings, spec, way);
        // Empty where all layers are alike.
        let kinds = arch.layers.iter().take(layers).cloned().collect();
        let config = Arch { num_layers: layers, layers: kinds, ..arch.clone() };
        let Rows { count: batch, length: seq, learned } = rows;
        let shape = Shape { config, seq, learned, batch, steps: STEPS };
        let advice = "Leave --measure out, lower max_length or per_device_train_batch_size";
        measure(&settings, device.clone(), shape, advice).map(|measured| StepTime::of(&measured))
    };
    let of_way = |(way, _): &(Activations, usize)| Ok([time(few, *way)?, time(more, *way)?]);
    let pairs = ways.iter().map(of_way).collect::<Result<Vec<_>>>()?;
    let layers: Vec<usize> = ways.iter().map(|(_, layers)| *layers).collect();
    Ok(StepTime::of_all(&pairs, [few, more], &layers))
}

/// Settings under which a few layers do what those of `spec` do, all of them in one `way`.
fn alike(settings: &Settings, spec: &ModelSpec, way: Activations) -> Settings {
    Settings {
        gradient_checkpointing: if way == Activations::Keep { Checkpointing::Off } else { Checkpointing::On },
        token_tile: spec.token_tile.map_or(TokenTile::Off, TokenTile::Tokens),
        weights: WeightResidency::Resident,
        init_lora_weights: InitLora::Random,
        // What names single modules may name none of the few.
        layers_to_transform: LayerNumbers::default(),
        rank_pattern: Pattern::default(),
        alpha_pattern: Pattern::default(),
        ..settings.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_grows_with_layers_and_what_is_no_layer_counts_once() {
        let time = |micro_batch, update| StepTime { micro_batch, update };
        // 2 s and 0.1 s that are no layer, 1 s and 0.01 s a layer.
        let kept = [time(3.0, 0.11), time(6.0, 0.14)];
        let all = StepTime::of_all(&[kept], [1, 4], &[32]);
        assert!((all.micro_batch - 34.0).abs() < 1e-9 && (all.update - 0.42).abs() < 1e-9, "{all:?}");
        // A layer that is computed again takes 1.5 s.
        let again = [time(3.5, 0.11), time(8.0, 0.14)];
        let all = StepTime::of_all(&[kept, again], [1, 4], &[20, 12]);
        assert!((all.micro_batch - (2.0 + 20.0 + 18.0)).abs() < 1e-9 && (all.update - 0.42).abs() < 1e-9, "{all:?}");
        // A model of one layer is measured whole.
        assert_eq!(StepTime::of_all(&[[time(3.0, 0.5); 2]], [1, 1], &[1]), time(3.0, 0.5));
    }
}
