//! Activations of a layer: kept, recomputed or offloaded for the backward pass.

use std::fmt;

/// Part of a layer that waits for the backward pass. No bit of a run depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// All activations
    #[default]
    Keep,
    /// The layer's input, from which the activations are computed again
    Recompute,
    /// The layer's input in pinned host memory, where the device has memory of its own; activations are computed again
    Offload,
    /// The layer's input in a scratch file; activations are computed again
    Disk,
}

impl Activations {
    /// The last `kept` of `layers` layers keep theirs, the others are as `self` says. A layer that is needed sooner is
    /// kept for a shorter time, so the last come first.
    pub fn keeping(self, kept: usize, layers: usize) -> Vec<Self> {
        (0..layers).map(|layer| if layer + kept >= layers { Self::Keep } else { self }).collect()
    }
}

/// Numbers of layers by their activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActivationCounts {
    pub keep: usize,
    pub recompute: usize,
    pub offload: usize,
    pub disk: usize,
}

impl ActivationCounts {
    pub fn of(activations: impl IntoIterator<Item = Activations>) -> Self {
        let mut counts = Self::default();
        for activations in activations {
            match activations {
                Activations::Keep => counts.keep += 1,
                Activations::Recompute => counts.recompute += 1,
                Activations::Offload => counts.offload += 1,
                Activations::Disk => counts.disk += 1,
            }
        }
        counts
    }

    pub fn layers(&self) -> usize {
        self.keep + self.recompute + self.offload + self.disk
    }
}

/// "activations of 12 of 80 layers kept, of 68 recomputed", for plans.
impl fmt::Display for ActivationCounts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { keep, recompute, offload, disk } = *self;
        let layers = self.layers();
        let whole = [
            (keep, "activations kept"),
            (recompute, "activations recomputed"),
            (offload, "activations recomputed from inputs in host memory"),
            (disk, "activations recomputed from inputs on disk"),
        ];
        if let Some((_, all)) = whole.iter().find(|(count, _)| *count == layers) {
            return f.write_str(all);
        }
        write!(f, "activations of {keep} of {layers} layers kept")?;
        if recompute > 0 {
            write!(f, ", of {recompute} recomputed")?;
        }
        if offload > 0 {
            write!(f, ", of {offload} recomputed from inputs in host memory")?;
        }
        if disk > 0 {
            write!(f, ", of {disk} recomputed from inputs on disk")?;
        }
        Ok(())
    }
}

impl ActivationCounts {
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "keep": self.keep,
            "recompute": self.recompute,
            "offload": self.offload,
            "disk": self.disk,
        })
    }
}
