//! Callbacks that get the rows of a file one by one.

use serde_json::Value;

use crate::error::Result;

/// A callback that gets the number of a row, and the row, or the reason why it cannot be read.
pub(super) type EachOf<'a> = &'a mut dyn FnMut(usize, Result<Value, String>) -> Result<()>;
