//! Traces of a step: how long each kind of operation takes, or the first value that is not finite.

/// What is traced while a step runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceMode {
    #[default]
    Off,
    /// How long each operation takes.
    Times,
    /// The first value that is not finite ends the step with an error that names it.
    Values,
}

/// The part of a step that runs, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Before the first layer
    #[default]
    Input,
    Layer(usize),
    /// After the last layer
    Output,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Input => f.write_str("before the first layer"),
            Self::Layer(layer) => write!(f, "in layer {layer} (model.layers.{layer})"),
            Self::Output => f.write_str("after the last layer"),
        }
    }
}

/// What a backend has traced.
#[derive(Debug, Default)]
pub struct Trace {
    pub(super) mode: TraceMode,
    pub(super) scope: Scope,
    /// Names of the operations that an event was recorded after, in order.
    pub(super) kinds: Vec<&'static str>,
    /// FLOPs of all operations, whatever is traced.
    pub(super) flops: f64,
}

impl Trace {
    pub(super) fn restart(&mut self, mode: TraceMode) {
        self.mode = mode;
        self.kinds.clear();
    }

    /// Seconds by kind, in the order of their first, from those of each operation.
    pub(super) fn sums(&mut self, seconds: &[f64]) -> Vec<(&'static str, f64)> {
        let mut times: Vec<(&'static str, f64)> = Vec::new();
        for (kind, &seconds) in std::mem::take(&mut self.kinds).into_iter().zip(seconds) {
            match times.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, sum)) => *sum += seconds,
                None => times.push((kind, seconds)),
            }
        }
        times
    }
}
