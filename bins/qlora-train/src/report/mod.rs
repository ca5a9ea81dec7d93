//! Output for people: lines and bars on standard error.

mod bar;
mod console;
mod sparkline;

pub use bar::Bars;
pub(crate) use bar::duration;
pub use console::{PrintableOut, Verbosity, printable, printable_json, printable_lines, printable_text, set_verbosity};
pub(crate) use console::{
    detail, in_part, print, print_answers, print_error, print_status, print_text, section, set_rank, speaks, status,
    status_lines, warning,
};
pub use sparkline::sparkline;

/// A count with thousands separated: 41,943,040.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// "1 step", "2 steps": a count with its noun, which takes an s.
pub fn count(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// The line that PEFT's `print_trainable_parameters` prints; `all` includes the trainable ones.
pub fn trainable_line(trainable: u64, all: u64) -> String {
    format!(
        "trainable params: {} || all params: {} || trainable%: {:.4}",
        thousands(trainable),
        thousands(all),
        100.0 * trainable as f64 / all as f64
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_thousands_separated() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1000), "1,000");
        assert_eq!(thousands(8_072_204_288), "8,072,204,288");
    }

    #[test]
    fn the_trainable_line_reads_as_pefts() {
        assert_eq!(
            trainable_line(41_943_040, 8_072_204_288),
            "trainable params: 41,943,040 || all params: 8,072,204,288 || trainable%: 0.5196"
        );
    }
}
