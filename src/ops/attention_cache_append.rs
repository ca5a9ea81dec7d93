//! Keys and values of new tokens, copied to where attention over a cache reads them.

use super::attention_cache::{NewTokens, check};
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// Copies the new tokens' keys and values to row `starts[d] + position` of `cache` `[rows, width]`. A token whose row
/// is beyond the cache is left out.
pub fn attention_cache_append(new: &NewTokens<'_>, cache: ViewMut<'_, bf16>, stream: Stream) -> Result<()> {
    let (operation, args) = check("attention_cache_append", new, cache.len())?;
    let args = sys::qk_attention_cache_args { cache: cache.address().cast(), ..args };
    // SAFETY: every length was checked against the shape; `args` is read before the return. The values of boundaries,
    // starts and positions are the caller's: a kernel writes no row that is beyond the cache.
    operation.status(unsafe { call!(qk_attention_cache_append(&args, stream.as_raw())) })
}
