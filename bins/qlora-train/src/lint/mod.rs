//! Lints: warnings of known mistakes in a run, before the first step and during training.
//!
//! A lint is a row of [`LINTS`]: its name, its subject, its advice, and its check. The setting `allow` turns it off by
//! its name. None of them changes a run.

mod before;
mod during;
mod facts;

pub use facts::{DataFacts, Facts, History, ModuleGradients};

/// The input of a lint; the check returns its finding, without the cure.
#[derive(Clone, Copy)]
pub enum Check {
    /// The settings, model and rows of a run
    Facts(fn(&Facts) -> Option<String>),
    /// The losses so far, whenever one was logged
    History(fn(&History) -> Option<String>),
    /// The gradients of the adapters, at some of the steps
    Gradients(fn(&ModuleGradients) -> Option<String>),
}

/// A row of [`LINTS`].
pub struct Lint {
    pub name: &'static str,
    /// Its subject, for the list of all lints
    pub about: &'static str,
    /// Advice, which follows a semicolon
    pub cure: &'static str,
    pub check: Check,
}

/// A warning of a lint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub name: &'static str,
    pub message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} (allow: {})", self.message, self.name)
    }
}

/// Every lint, in the order in which they are checked.
pub const LINTS: &[Lint] = &[
    Lint {
        name: "few_steps",
        about: "fewer than 50 optimizer steps, unless `max_steps` asks for as few",
        cure: "give more rows, num_train_epochs, or a smaller max_length",
        check: Check::Facts(before::few_steps),
    },
    Lint {
        name: "learning_rate",
        about: "a learning rate below 5e-5 or above 1e-3; of B with LoRA+ above 2e-2",
        cure: "adapters learn best between 1e-4 and 5e-4, about ten times the rate of full fine-tuning",
        check: Check::Facts(before::learning_rate),
    },
    Lint {
        name: "alpha",
        about: "a scale (alpha / r, with rsLoRA alpha / √r) below 0.5, or above 4 (with rsLoRA 16)",
        cure: "lora_alpha of once or twice lora_r suits the usual learning rates",
        check: Check::Facts(before::alpha),
    },
    Lint {
        name: "attention_only",
        about: "adapters on attention alone, none on the MLP",
        cure: "`lora_target_modules: all-linear` with a smaller lora_r learns more with as many parameters",
        check: Check::Facts(before::attention_only),
    },
    Lint {
        name: "rank_for_rows",
        about: "a rank above 16 for fewer than 1,000 rows",
        cure: "lora_r of 8 or 16 is enough for so few rows and memorizes them later",
        check: Check::Facts(before::rank_for_rows),
    },
    Lint {
        name: "adapter_capacity",
        about: "more learned tokens than the adapters can hold, at 2 bits a parameter and 1 bit a token",
        cure: "raise lora_r, with lora_alpha in proportion",
        check: Check::Facts(before::adapter_capacity),
    },
    Lint {
        name: "large_batch",
        about: "more than 64 rows in an optimizer step, as far as the rows make more than one step of an epoch",
        cure: "LoRA loses more than full fine-tuning by large batches: lower gradient_accumulation_steps, \
               per_device_train_batch_size, or with packing max_length",
        check: Check::Facts(before::large_batch),
    },
    Lint {
        name: "small_model_in_4_bits",
        about: "a model below 1B parameters held in NF4",
        cure: "it loses more by 4 bits than it saves: `quantization: none` keeps its 16 bits",
        check: Check::Facts(before::small_model_in_4_bits),
    },
    Lint {
        name: "max_length",
        about: "rows longer than the model was made for, or a max_length so long that all rows fit into three packs",
        cure: "lower max_length",
        check: Check::Facts(before::max_length),
    },
    Lint {
        name: "open_turns",
        about: "answers that end without a token which is learned, so that the model will not learn to stop",
        cure: "choose a chat_template that ends turns, or let its `generation` marks hold the end",
        check: Check::Facts(before::open_turns),
    },
    Lint {
        name: "foreign_template",
        about: "a chosen chat template whose marks are no tokens of the tokenizer: it belongs to another model",
        cure: "leave chat_template out where the model has its own, or choose one whose marks it knows",
        check: Check::Facts(before::foreign_template),
    },
    Lint {
        name: "one_validation_row",
        about: "a single row to validate on",
        cure: "give a larger val_set_size or val_data",
        check: Check::Facts(before::one_validation_row),
    },
    Lint {
        name: "duplicates",
        about: "more than one training row in twenty that is the same as another one",
        cure: "they are learned as often as they are there: `deduplicate: true` leaves them out",
        check: Check::Facts(before::duplicates),
    },
    Lint {
        name: "validation_overlap",
        about: "validation rows that are trained on too",
        cure: "their loss only measures how well they are memorized: `deduplicate: true` leaves them out",
        check: Check::Facts(before::validation_overlap),
    },
    Lint {
        name: "loss_spike",
        about: "a training loss half a nat and six deviations above those of the 20 entries before it",
        cure: "look at the rows of that step (`preview`); lower learning_rate or max_grad_norm if it happens again",
        check: Check::History(during::loss_spike),
    },
    Lint {
        name: "plateau",
        about: "a training loss that no longer falls half way through the run, of at least 100 log entries, as far as its \
                noise would not hide a fall of a hundredth",
        cure: "double lora_r and keep alpha / r; or the rows hold no more to learn",
        check: Check::History(during::plateau),
    },
    Lint {
        name: "validation_rises",
        about: "two evaluations in a row above the lowest validation loss, by more than 1%",
        cure: "since then the run memorizes its rows: `load_best_model_at_end: true`, fewer num_train_epochs, more \
               rows, or a smaller lora_r",
        check: Check::History(during::validation_rises),
    },
    Lint {
        name: "still_modules",
        about: "linear layers whose adapters get no gradient, at some of the steps from 20 on",
        cure: "they stay as they began: leave them out of lora_target_modules, or look at the base's weights there",
        check: Check::Gradients(during::still_modules),
    },
    Lint {
        name: "gradient_scale",
        about: "gradients of A and of B that differ by more than a factor of 300, at some of the steps from 20 and \
                the end of the warm-up on",
        cure: "lower learning_rate or lora_alpha where A's are larger, raise them or loraplus_lr_ratio where B's are",
        check: Check::Gradients(during::gradient_scale),
    },
];

/// True if `name` is that of a lint.
pub fn is_lint(name: &str) -> bool {
    LINTS.iter().any(|lint| lint.name == name)
}

fn findings(allowed: &[&str], check: impl Fn(&Check) -> Option<String>) -> Vec<Finding> {
    let found = |lint: &'static Lint| {
        let what = check(&lint.check)?;
        Some(Finding { name: lint.name, message: format!("{what}; {}", lint.cure) })
    };
    LINTS.iter().filter(|lint| !allowed.contains(&lint.name)).filter_map(found).collect()
}

/// Findings about a run that has not begun.
pub fn before(facts: &Facts, allowed: &[&str]) -> Vec<Finding> {
    findings(allowed, |check| match check {
        Check::Facts(check) => check(facts),
        _ => None,
    })
}

/// Findings about the losses so far.
pub fn during(history: &History, allowed: &[&str]) -> Vec<Finding> {
    findings(allowed, |check| match check {
        Check::History(check) => check(history),
        _ => None,
    })
}

/// Findings about the gradients of a step.
pub fn gradients(gradients: &ModuleGradients, allowed: &[&str]) -> Vec<Finding> {
    findings(allowed, |check| match check {
        Check::Gradients(check) => check(gradients),
        _ => None,
    })
}

/// The list of all lints, in Markdown.
pub fn lints_markdown() -> String {
    let mut table = String::from("| lint | warns of | when |\n|---|---|---|\n");
    for lint in LINTS {
        let when = match lint.check {
            Check::Facts(_) => "before the first step",
            Check::History(_) | Check::Gradients(_) => "while it trains",
        };
        table.push_str(&format!("| `{}` | {} | {when} |\n", lint.name, lint.about));
    }
    table
}

#[cfg(test)]
mod tests;
