//! Long rows cut as LLaMA-Factory cuts them: prompts and answers in proportion, turn by turn. The formula is that of
//! its `infer_seqlen`.

use std::ops::Range;

use super::UNSUPERVISED;
use super::row::Row;

/// Cuts a row to at most `most` tokens. Turns beyond that are left out, and so is any text after the last answer.
pub(super) fn cut_turns(row: &mut Row, most: usize) {
    let kept = kept(&row.labels, most);
    row.input_ids = pick(&row.input_ids, &kept);
    row.labels = pick(&row.labels, &kept);
    if !row.weights.is_empty() {
        row.weights = pick(&row.weights, &kept);
    }
}

fn pick<T: Copy>(values: &[T], kept: &[Range<usize>]) -> Vec<T> {
    kept.iter().flat_map(|range| &values[range.clone()]).copied().collect()
}

/// The tokens that are kept: for each turn the beginning of the prompt, then the beginning of the answer, which is the
/// learned part.
fn kept(labels: &[i32], most: usize) -> Vec<Range<usize>> {
    let next = |from: usize, is_context: bool| {
        let found = (from..labels.len()).find(|&at| (labels[at] == UNSUPERVISED) == is_context);
        found.unwrap_or(labels.len())
    };
    let (mut kept, mut total, mut begin) = (Vec::new(), 0, 0);
    while total < most {
        let answer = next(begin, false);
        if answer == labels.len() {
            break;
        }
        let end = next(answer, true);
        let (of_prompt, of_answer) = lengths(answer - begin, end - answer, most - total);
        kept.extend([begin..begin + of_prompt, answer..answer + of_answer]);
        total += of_prompt + of_answer;
        begin = end;
    }
    kept
}

/// Tokens of a prompt and of its answer that are kept of `most` in all: a short one of the two is kept whole.
fn lengths(prompt: usize, answer: usize, most: usize) -> (usize, usize) {
    let longest = if answer * 2 < most {
        most
    } else if prompt * 2 < most {
        most - prompt
    } else {
        (most as f64 * (answer as f64 / (prompt + answer) as f64)) as usize
    };
    let answer = answer.min(longest);
    (prompt.min(most - answer), answer)
}

#[cfg(test)]
mod tests;
