//! Settings of the data.

use std::fmt;
use std::str::FromStr;

/// What to do with a row longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLong {
    /// Leave the row out.
    Drop,
    /// Keep its first `max_length` tokens.
    Truncate,
    /// Refuse the data.
    Error,
}

impl TooLong {
    pub const NAMES: [&'static str; 3] = ["drop", "truncate", "error"];

    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TooLong {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [TooLong::Drop, TooLong::Truncate, TooLong::Error]
            .into_iter()
            .find(|choice| choice.name() == name)
            .ok_or_else(|| format!("{name:?} is none of {}", Self::NAMES.join(", ")))
    }
}

#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Tokens of a row at most.
    pub max_length: usize,
    pub too_long: TooLong,
    /// Token ids of the model: 0..vocab_size.
    pub vocab_size: usize,
}
