//! Traces of a step: how long each kind of operation takes, or the first value that is not finite.

use super::OpWork;

/// The kind of clearing gradients and updating parameters, which is no operation on tokens.
pub const OPTIMIZER: &str = "optimizer";

/// The choice of values that are traced while a step runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceMode {
    #[default]
    Off,
    /// Times of each operation.
    Times,
    /// The first value that is not finite ends the step with an error that names it.
    Values,
}

/// A part of a step that a device may launch as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepPart {
    /// Gradients become zero.
    Clear,
    /// The forward pass of a micro-batch, up to the input of the loss
    Forward,
    /// Its backward pass, from the loss's gradient on
    Backward,
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

/// Time that all operations of one kind took, and their FLOPs: 0 where it is not the arithmetic that takes the time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpTime {
    pub name: &'static str,
    pub seconds: f64,
    pub flops: f64,
}

/// The traced values of a backend.
#[derive(Debug, Default)]
pub struct Trace {
    pub(super) mode: TraceMode,
    pub(super) scope: Scope,
    /// Names and FLOPs of the operations that an event was recorded after, in order.
    pub(super) kinds: Vec<(&'static str, f64)>,
    /// FLOPs of all operations, whatever is traced.
    pub(super) flops: f64,
    /// Operations of a dry run
    pub(super) work: Vec<OpWork>,
}

impl Trace {
    pub(super) fn restart(&mut self, mode: TraceMode) {
        self.mode = mode;
        self.kinds.clear();
    }

    /// Sums by kind, in the order of their first, from the seconds of each operation.
    pub(super) fn sums(&mut self, seconds: &[f64]) -> Vec<OpTime> {
        let mut times: Vec<OpTime> = Vec::new();
        for ((name, flops), &seconds) in std::mem::take(&mut self.kinds).into_iter().zip(seconds) {
            match times.iter_mut().find(|time| time.name == name) {
                Some(time) => {
                    time.seconds += seconds;
                    time.flops += flops;
                }
                None => times.push(OpTime { name, seconds, flops }),
            }
        }
        times
    }
}
