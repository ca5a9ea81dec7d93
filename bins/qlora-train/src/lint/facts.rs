//! The facts that lints look at.

/// A run before its first step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Parameters of the base
    pub parameters: u64,
    /// Tokens of a row that the base was made for
    pub positions: usize,
    pub is_nf4: bool,
    /// Rank, alpha and scale of the adapters, each once
    pub terms: Vec<(usize, f64, f64)>,
    pub use_rslora: bool,
    /// Peak learning rates
    pub learning_rate_a: f64,
    pub learning_rate_b: f64,
    /// Names of the linear layers that get adapters, "q_proj"
    pub targets: Vec<String>,
    pub lora_parameters: u64,
    pub max_length: usize,
    /// None where the rows are not known.
    pub data: Option<DataFacts>,
}

/// Rows of a run, and the steps made of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataFacts {
    pub rows: usize,
    pub validation_rows: usize,
    /// Tokens of the longest row, for validation or not
    pub longest: usize,
    /// Training rows that are the same as another one before them, and validation rows that are trained on too
    pub duplicates: usize,
    pub overlap: usize,
    /// Tokens of the rows that are learned, each counted once
    pub supervised_tokens: usize,
    /// Rows with an answer that has no learned end
    pub open_ended: usize,
    /// Packs of an epoch, where rows are packed
    pub packs: Option<usize>,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
    /// `max_steps` sets the number of steps.
    pub steps_are_given: bool,
    /// Marks of a chosen chat template that are no tokens of the tokenizer
    pub foreign_marks: Vec<String>,
}

/// Losses of a run so far, by step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct History<'a> {
    pub losses: &'a [(u64, f64)],
    pub validation: &'a [(u64, f64)],
    pub total_steps: u64,
}

/// Norms of the gradients of each module's A and B, before the update of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModuleGradients {
    /// Steps done, this one included
    pub step: u64,
    /// The learning rate still rises: while B is small, so are the gradients of A.
    pub is_warming_up: bool,
    /// Module, norm of A's gradient, norm of B's
    pub modules: Vec<(String, f64, f64)>,
}

impl ModuleGradients {
    /// Norms over all modules: of A, of B.
    pub fn norms(&self) -> (f64, f64) {
        let norm = |of: fn(&(String, f64, f64)) -> f64| self.modules.iter().map(|m| of(m).powi(2)).sum::<f64>().sqrt();
        (norm(|module| module.1), norm(|module| module.2))
    }
}
