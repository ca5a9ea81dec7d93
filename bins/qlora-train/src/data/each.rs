//! Callbacks that get the rows of a file one by one.

use serde_json::Value;

use crate::error::Result;

/// What a callback gets: the number of a row, and the row, or why it cannot be read.
pub(super) type EachOf<'a> = &'a mut dyn FnMut(usize, Result<Value, String>) -> Result<()>;
