//! The rows of each optimizer step: a pure function of the rows' lengths and the settings, so that the
//! memory plan can run through the whole of it beforehand and a resumed run can start anywhere.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use qlora_kernels::rng::RngStream;

use super::mix::Mix;
use super::pack::{pack, pack_in_order};
use crate::bail_usage;
use crate::error::Result;
use crate::report::count;

const ORDER_DOMAIN: u64 = 0x4F52_4445_0000_0000;

/// Number of rows that are shuffled and packed in about a second.
const MAX_WALKED_ROWS: usize = 1 << 21;

/// The rows of an epoch in the order they are trained on, shuffled by seed and epoch (counted from 0).
pub fn order(rows: usize, epoch: u64, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    RngStream::new(seed, ORDER_DOMAIN ^ epoch).shuffle(&mut order);
    order
}

/// Settings of the sampler, under the names of the run's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleOptions {
    /// Rows of a micro-batch, or packed bins when packing.
    pub per_device_train_batch_size: usize,
    /// Micro-batches of a step, of all ranks.
    pub gradient_accumulation_steps: usize,
    pub num_train_epochs: f64,
    /// Optimizer steps; overrides the epochs.
    pub max_steps: Option<u64>,
    pub packing: bool,
    /// Tokens of a packed bin.
    pub max_length: usize,
    /// Each epoch is shuffled anew; otherwise all keep the order of the rows.
    pub shuffle: bool,
    pub seed: u64,
}

impl ScheduleOptions {
    /// The rows of an epoch in their order.
    fn order(&self, mix: &Mix, epoch: u64) -> Vec<usize> {
        let order = if self.shuffle { order(mix.len(), epoch, self.seed) } else { (0..mix.len()).collect() };
        order.into_iter().map(|at| mix.row(at)).collect()
    }

    /// The packs of an epoch. Errors: a row longer than a pack.
    pub fn packs(&self, lengths: &[usize], mix: &Mix, epoch: u64) -> Result<Vec<Vec<usize>>> {
        let order = self.order(mix, epoch);
        let pack = if self.shuffle { pack } else { pack_in_order };
        pack(lengths, &order, self.max_length)
    }
}

/// The micro-batches of an epoch, some bytes for each row.
#[derive(Debug, Default)]
struct Epoch {
    rows: Vec<u32>,
    /// End of each micro-batch in `rows`
    ends: Vec<u32>,
}

impl Epoch {
    fn with_capacity(rows: usize) -> Self {
        Self { rows: Vec::with_capacity(rows), ends: Vec::new() }
    }

    /// Adds a micro-batch of these rows, whose numbers fit 32 bits, as those of an epoch do.
    fn push(&mut self, rows: impl Iterator<Item = usize>) {
        self.rows.extend(rows.map(|row| row as u32));
        self.ends.push(self.rows.len() as u32);
    }

    /// The number of micro-batches.
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn rows(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.rows[begin as usize..self.ends[at] as usize].iter().map(|&row| row as usize)
    }

    /// Micro-batches, those that there are.
    fn micro_batches(&self, of: Range<usize>) -> Vec<Vec<usize>> {
        (of.start..of.end.min(self.len())).map(|at| self.rows(at).collect()).collect()
    }
}

/// The micro-batches of a whole run.
#[derive(Clone, Debug)]
pub struct Schedule {
    lengths: Vec<usize>,
    /// The rows of an epoch
    mix: Mix,
    options: ScheduleOptions,
    /// Packs of an epoch. None: rows are not packed.
    packs: Option<usize>,
    /// The first epoch, which the start of a run needs several times
    first: Arc<Epoch>,
    /// Tokens of the largest micro-batch of the first epoch, of all ranks
    largest_of_first: usize,
    steps_per_epoch: u64,
    total_steps: u64,
}

/// The rows of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Counted from 0.
    pub index: u64,
    /// Epochs done after this step: 0.5 is half of the rows.
    pub epoch: f64,
    /// Row indices of each micro-batch, for all ranks, which take them in turn. The last step of an epoch may have
    /// fewer micro-batches, and its last micro-batch fewer rows; nothing is left out.
    pub micro_batches: Vec<Vec<usize>>,
}

/// The micro-batch of a run that needs the most memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Longest {
    pub tokens: usize,
    pub rows: Vec<usize>,
    /// The first step that has one of this size, and its place among the micro-batches of that step.
    pub step: u64,
    pub micro: usize,
}

/// Summary of the packing of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    pub rows: usize,
    pub packs: usize,
    /// Tokens of all rows.
    pub tokens: usize,
    /// Maximum number of tokens in a pack.
    pub max_length: usize,
}

impl Packing {
    /// The share of the packs that tokens fill, at most 1.
    pub fn efficiency(&self) -> f64 {
        self.tokens as f64 / (self.packs.max(1) as f64 * self.max_length as f64)
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (rows, packs) = (count(self.rows as u64, "row"), count(self.packs as u64, "pack"));
        let share = 100.0 * self.efficiency();
        write!(f, "packing: {rows} in {packs} of {} tokens, {share:.1}% full", self.max_length)
    }
}

impl Schedule {
    /// `lengths` are the tokens of the training rows, each of which an epoch has once. Errors: no rows, a setting that
    /// gives no step.
    pub fn new(lengths: Vec<usize>, options: ScheduleOptions) -> Result<Self> {
        let mix = Mix::all(lengths.len());
        Self::mixed(lengths, mix, options)
    }

    /// [`new`](Self::new) with epochs of the rows of `mix`.
    pub fn mixed(lengths: Vec<usize>, mix: Mix, options: ScheduleOptions) -> Result<Self> {
        if mix.is_empty() {
            bail_usage!("there is no row to train on");
        }
        if u32::try_from(mix.len()).is_err() {
            bail_usage!("{} rows in an epoch; at most {} are supported", mix.len(), u32::MAX);
        }
        if options.per_device_train_batch_size == 0 {
            bail_usage!("per_device_train_batch_size is 0; expected at least 1");
        }
        if options.gradient_accumulation_steps == 0 {
            bail_usage!("gradient_accumulation_steps is 0; expected at least 1");
        }
        let longest = if options.packing { options.max_length } else { lengths.iter().copied().max().unwrap_or(0) };
        let all = mix.rows().map(|row| lengths[row]).sum();
        let bound = options.per_device_train_batch_size.saturating_mul(longest).min(all);
        if u32::try_from(bound).is_err() {
            bail_usage!("a micro-batch could hold {bound} tokens; lower per_device_train_batch_size or max_length");
        }
        let epochs = options.num_train_epochs;
        if options.max_steps.is_none() && !(epochs.is_finite() && epochs > 0.0) {
            bail_usage!("num_train_epochs is {epochs}; expected a number above 0");
        }
        if options.max_steps == Some(0) {
            bail_usage!("max_steps is 0; expected at least 1");
        }
        let (packs, first, largest_of_first, steps_per_epoch, total_steps) = (None, Arc::default(), 0, 0, 0);
        let schedule = Self { lengths, mix, options, packs, first, largest_of_first, steps_per_epoch, total_steps };
        schedule.counted()
    }

    /// This schedule with its number of steps.
    fn counted(mut self) -> Result<Self> {
        // Packing places rows by length or in their order, so every epoch has the same number of bins.
        let (packs, first) = self.packs_and_micro_batches(0)?;
        self.packs = packs;
        let tokens = |at: usize| first.rows(at).map(|row| self.lengths[row]).sum::<usize>();
        self.largest_of_first = (0..first.len()).map(tokens).max().unwrap_or(0);
        self.steps_per_epoch = first.len().div_ceil(self.options.gradient_accumulation_steps) as u64;
        self.first = Arc::new(first);
        let epochs = self.options.num_train_epochs;
        self.total_steps =
            self.options.max_steps.unwrap_or_else(|| (epochs * self.steps_per_epoch as f64).ceil() as u64);
        Ok(self)
    }

    /// Optimizer steps of the run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// The steps from the given one (counted from 0) to the end of the run.
    pub fn steps(&self, from: u64) -> Steps<'_> {
        Steps { schedule: self, next: from, epoch: None }
    }

    /// The largest micro-batch of the whole run, the first of equals. Walks through all of it.
    pub fn longest(&self) -> Longest {
        let mut longest = Longest { tokens: 0, rows: Vec::new(), step: 0, micro: 0 };
        for step in self.steps(0) {
            for (micro, rows) in step.micro_batches.into_iter().enumerate() {
                let tokens = self.tokens(&rows);
                if tokens > longest.tokens {
                    longest = Longest { tokens, rows, step: step.index, micro };
                }
            }
        }
        longest
    }

    /// Summary of the packs of the first epoch. None without packing.
    pub fn packing(&self) -> Option<Packing> {
        let (packs, tokens) = (self.packs?, self.tokens_of_epoch());
        Some(Packing { rows: self.mix.len(), packs, tokens, max_length: self.options.max_length })
    }

    /// Tokens of the largest micro-batch of the whole run; of a run too long to walk through, the most that one can
    /// have.
    pub fn max_tokens(&self) -> usize {
        let bound = self.most_tokens();
        if self.total_steps >= self.steps_per_epoch {
            // No later epoch has to be walked through, or there is none.
            if self.largest_of_first == bound || self.total_steps == self.steps_per_epoch {
                return self.largest_of_first;
            }
        }
        let (mut largest, mut rows) = (0, 0);
        for batch in self.steps(0).flat_map(|step| step.micro_batches) {
            largest = largest.max(self.tokens(&batch));
            rows += batch.len();
            if largest == bound || rows > MAX_WALKED_ROWS {
                return bound;
            }
        }
        largest
    }

    /// Upper bound on the tokens of a micro-batch.
    fn most_tokens(&self) -> usize {
        let batch = self.options.per_device_train_batch_size;
        if self.options.packing {
            return batch.saturating_mul(self.options.max_length).min(self.tokens_of_epoch());
        }
        let mut lengths: Vec<usize> = self.mix.rows().map(|row| self.lengths[row]).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.iter().take(batch).sum()
    }

    fn tokens_of_epoch(&self) -> usize {
        self.mix.rows().map(|row| self.lengths[row]).sum()
    }

    /// The rows of an epoch.
    pub fn mix(&self) -> &Mix {
        &self.mix
    }

    pub fn tokens(&self, rows: &[usize]) -> usize {
        rows.iter().map(|&row| self.lengths[row]).sum()
    }

    /// The micro-batches of an epoch.
    fn epoch(&self, epoch: u64) -> Result<Arc<Epoch>> {
        if epoch == 0 {
            return Ok(self.first.clone());
        }
        self.packs_and_micro_batches(epoch).map(|(_, micro_batches)| Arc::new(micro_batches))
    }

    /// The number of packs in an epoch, where rows are packed, and its micro-batches.
    fn packs_and_micro_batches(&self, epoch: u64) -> Result<(Option<usize>, Epoch)> {
        let options = &self.options;
        let batch = options.per_device_train_batch_size;
        let mut micro_batches = Epoch::with_capacity(self.mix.len());
        if options.packing {
            let packs = options.packs(&self.lengths, &self.mix, epoch)?;
            packs.chunks(batch).for_each(|packs| micro_batches.push(packs.iter().flatten().copied()));
            Ok((Some(packs.len()), micro_batches))
        } else {
            let order = options.order(&self.mix, epoch);
            order.chunks(batch).for_each(|rows| micro_batches.push(rows.iter().copied()));
            Ok((None, micro_batches))
        }
    }
}

/// Iterates over the steps of a [`Schedule`]; holds the micro-batches of one epoch.
#[derive(Clone, Debug)]
pub struct Steps<'a> {
    schedule: &'a Schedule,
    next: u64,
    epoch: Option<(u64, Arc<Epoch>)>,
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let schedule = self.schedule;
        let index = self.next;
        if index >= schedule.total_steps {
            return None;
        }
        let per_step = schedule.options.gradient_accumulation_steps;
        let (epoch, within) = (index / schedule.steps_per_epoch, index % schedule.steps_per_epoch);
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            // Lengths were checked when the schedule was made: an epoch cannot fail any more.
            self.epoch = Some((epoch, schedule.epoch(epoch).ok()?));
        }
        let (_, all) = self.epoch.as_ref()?;
        let begin = within as usize * per_step;
        let micro_batches = all.micro_batches(begin..begin.saturating_add(per_step));
        self.next += 1;
        let done = epoch as f64 + (within + 1) as f64 / schedule.steps_per_epoch as f64;
        Some(Step { index, epoch: done, micro_batches })
    }
}
