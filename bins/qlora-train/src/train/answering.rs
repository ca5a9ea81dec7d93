//! Evaluations of a run that trains: the loss of the validation rows, answers, and what they say of the run.

use super::names;
use super::record::LogEntry;
use super::steps::Run;
use crate::backend::Backend;
use crate::comm::{Communicator, from_first, is_first};
use crate::config::{BestMetric, Every};
use crate::error::{Context, Result};
use crate::files::failpoint;
use crate::infer::answers::Scores;
use crate::infer::evaluate::{Evaluation, evaluate, losses};
use crate::infer::questions::{Answered, Asked, scores};
use crate::report::{Bars, count, print_answers, printable_text, status, status_lines};
use crate::run_report::Sample;

/// Answers to validation rows that are logged as texts; all of the user's prompts are.
const LOGGED: usize = 8;
/// Answers that are printed, and characters of each
const PRINTED: usize = 3;
const PRINTED_CHARS: usize = 100;

/// Figures of one evaluation.
#[derive(Default)]
pub(super) struct Measured {
    loss: Option<f64>,
    scores: Option<Scores>,
}

impl Measured {
    fn figure(&self, metric: BestMetric) -> Option<f64> {
        let of = |figure: fn(&Scores) -> f64| self.scores.as_ref().map(figure);
        match metric {
            BestMetric::Loss => self.loss,
            BestMetric::ExactMatch => of(|scores| scores.exact),
            BestMetric::Contains => of(|scores| scores.contains),
            BestMetric::Match => self.scores.as_ref()?.pattern,
            BestMetric::RougeL => of(|scores| scores.rouge_l),
        }
    }
}

/// A value of the figure that a run is judged by, for people.
pub(super) fn shown(metric: BestMetric, value: f64) -> String {
    match metric {
        BestMetric::Loss | BestMetric::RougeL => format!("{value:.4}"),
        BestMetric::ExactMatch | BestMetric::Contains | BestMetric::Match => format!("{:.1}%", 100.0 * value),
    }
}

impl<B: Backend> Run<'_, B> {
    /// True if there is something to evaluate or to answer.
    pub fn evaluates(&self) -> bool {
        !self.data.validation.is_empty() || !self.questions.is_empty()
    }

    /// Evaluates the validation rows and answers the questions. True if the run is the best so far and is to be saved.
    pub fn evaluate(&mut self) -> Result<bool> {
        let measured = self.measure(true)?;
        Ok(self.judge(&measured))
    }

    /// Measures before the first step what the settings ask for.
    pub fn measure_at_start(&mut self) -> Result<()> {
        let with_loss = self.settings.eval_on_start;
        if (with_loss && !self.data.validation.is_empty()) || !self.questions.is_empty() {
            self.measure(with_loss)?;
        }
        Ok(())
    }

    /// Measures and logs.
    fn measure(&mut self, with_loss: bool) -> Result<Measured> {
        let step = self.state.global_step;
        let mut entry = LogEntry::new(step, self.state.epoch);
        let mut measured = Measured::default();
        let (mut lines, mut texts) = (Vec::new(), Vec::new());
        if with_loss && !self.data.validation.is_empty() {
            let evaluation = self.loss_of_validation()?;
            lines = evaluation.lines();
            lines[0].insert_str(0, &format!("validation after step {step}: "));
            measured.loss = Some(evaluation.loss);
            entry.eval_loss = measured.loss;
            entry.eval_file_losses = losses(&evaluation.files);
            entry.eval_task_losses = losses(&evaluation.tasks);
        }
        if !self.questions.is_empty() {
            let (answers, scores) = self.answer()?;
            measured.scores = scores;
            lines.push(scores_in_words(step, measured.scores.as_ref()));
            texts = self.texts(&answers);
            let of = |metric| measured.figure(metric);
            entry.eval_exact_match = of(BestMetric::ExactMatch);
            entry.eval_contains = of(BestMetric::Contains);
            entry.eval_match = of(BestMetric::Match);
            entry.eval_rouge_l = of(BestMetric::RougeL);
            let logged = self.questions.of_user + LOGGED;
            let sample = |(asked, answered): (&Asked, Answered)| Sample {
                prompt: asked.prompt.clone(),
                reference: asked.reference.clone(),
                answer: answered.text,
            };
            entry.samples = Some(self.questions.all.iter().zip(answers).take(logged).map(sample).collect());
        }
        failpoint::moment("evaluation");
        status_lines!(lines);
        print_answers(texts);
        self.log(entry)?;
        self.progress.evaluated_at = Some(step);
        Ok(measured)
    }

    fn loss_of_validation(&mut self) -> Result<Evaluation> {
        let (data, step) = (self.data, self.state.global_step);
        let mut bar = Bars::new("validation", data.validation.len() as u64);
        let mut done = 0;
        let (signs, mut signal) = (self.signs(), None);
        let mut go_on = |comm: &mut dyn Communicator, rows: usize| {
            done += rows as u64;
            bar.set(done, String::new());
            signal = signs().agreed(comm)?;
            Ok(signal.is_none())
        };
        let (backend, rows, files) = (&mut self.backend, &data.validation, &data.validation_files);
        let evaluation = evaluate(backend, &self.model, rows, files, data.tokens, self.comm, &mut go_on)
            .context(|| format!("validation after step {step}"))?;
        let Some(evaluation) = evaluation else { return Err(self.interrupted(signal)?) };
        bar.finish();
        Ok(evaluation)
    }

    /// The answers, on rank 0, and what they come to, on all ranks.
    fn answer(&mut self) -> Result<(Vec<Answered>, Option<Scores>)> {
        let answers = if is_first(self.comm) { self.answers()? } else { None };
        let found = (answers.is_some(), answers.as_deref().and_then(scores));
        // Without answers it was interrupted.
        let (answered, scores) = from_first(self.comm, "answers", || Ok(found))?;
        if !answered {
            let signal = from_first(self.comm, "signal", || Ok(self.interruption.signal()))?;
            return Err(self.interrupted(signal)?);
        }
        Ok((answers.unwrap_or_default(), scores))
    }

    /// None: interrupted.
    fn answers(&mut self) -> Result<Option<Vec<Answered>>> {
        let (questions, step) = (self.questions, self.state.global_step);
        let tokenizer = self.loaded.open_tokenizer()?;
        let mut bar = Bars::new("answering", questions.all.len() as u64);
        let interruption = self.interruption.clone();
        let mut go_on = |done: usize| {
            bar.set(done as u64, String::new());
            failpoint::moment("answer");
            interruption.signal().is_none()
        };
        let answers = questions
            .answer(&mut self.backend, &self.model, tokenizer, &mut go_on)
            .context(|| format!("answers after step {step}"))?;
        if answers.is_some() {
            bar.set(questions.all.len() as u64, String::new());
        }
        bar.finish();
        Ok(answers)
    }

    /// Some of the answers, a line each.
    fn texts(&self, answers: &[Answered]) -> Vec<String> {
        let line = |(asked, answered): (&Asked, &Answered)| {
            let expected = asked.reference.as_ref().map_or(String::new(), |text| format!(" (expected: {})", cut(text)));
            format!("  {} → {}{expected}", cut(last_line(&asked.prompt)), cut(&answered.text))
        };
        self.questions.all.iter().zip(answers).take(PRINTED).map(line).collect()
    }

    /// Keeps the best figure, and ends a run that has not had a better one for long.
    fn judge(&mut self, measured: &Measured) -> bool {
        let metric = self.settings.metric_for_best_model;
        let Some(value) = measured.figure(metric).filter(|_| self.settings.eval_steps != Every::Never) else {
            return false;
        };
        if self.state.best_metric.is_none_or(|best| metric.is_better(value, best)) {
            self.state.best_metric = Some(value);
            self.progress.without_improvement = 0;
            let kept = self.settings.load_best_model_at_end || self.settings.save_steps != Every::Never;
            self.state.best_model_checkpoint = kept.then(|| names::checkpoint(self.state.global_step));
            return kept;
        }
        self.progress.without_improvement += 1;
        if let Some(patience) = self.settings.early_stopping_patience.0
            && self.progress.without_improvement >= patience as u64
            && self.state.global_step < self.data.schedule.total_steps()
        {
            self.progress.stopped_early = true;
            status!(
                "stopping early after step {}: {} without a {} {} {}",
                self.state.global_step,
                count(patience as u64, "evaluation"),
                metric.in_words(),
                if metric.rises() { "above" } else { "below" },
                shown(metric, self.state.best_metric.unwrap_or(value))
            );
        }
        false
    }
}

/// The line above answers, with their scores if there are references.
fn scores_in_words(step: u64, scores: Option<&Scores>) -> String {
    let line = format!("answers after step {step}:");
    let Some(Scores { answers, exact, contains, pattern, rouge_l }) = scores else { return line };
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let pattern = pattern.map_or(String::new(), |share| format!("{} match, ", percent(share)));
    let (exact, contains) = (percent(*exact), percent(*contains));
    format!(
        "{line} {exact} exact, {contains} contain the reference, {pattern}ROUGE-L {rouge_l:.4}, over {answers} with a \
         reference"
    )
}

/// The last line that is more than marks of a chat template.
fn last_line(prompt: &str) -> &str {
    let is_said = |line: &&str| !line.trim().is_empty() && !line.contains("<|") && !line.contains("|>");
    prompt.lines().rev().find(is_said).unwrap_or(prompt)
}

/// The beginning of a text in one line.
fn cut(text: &str) -> String {
    let line = printable_text(text.trim()).into_owned();
    match line.char_indices().nth(PRINTED_CHARS) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}
