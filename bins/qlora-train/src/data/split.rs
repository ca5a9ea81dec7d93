//! Rows that are held back for validation, drawn at random.

use qlora_kernels::rng::RngStream;

use crate::bail_usage;
use crate::error::Result;
use crate::report::count;

const SPLIT_DOMAIN: u64 = 0x5350_4C49_0000_0000;

/// For each of `total` rows, whether it is held back: a share of them if below 1 (rounded up), otherwise that many. The
/// same seed draws the same rows. Refused: a size that leaves no row, or is no valid size.
pub(super) fn held_out(total: usize, val_set_size: f64, seed: u64) -> Result<Vec<bool>> {
    if !(val_set_size.is_finite() && val_set_size >= 0.0) || (val_set_size > 1.0 && val_set_size.fract() != 0.0) {
        bail_usage!("val_set_size is {val_set_size}; expected a share below 1 or a number of rows");
    }
    let drawn = if val_set_size < 1.0 { (total as f64 * val_set_size).ceil() as usize } else { val_set_size as usize };
    if drawn >= total && drawn > 0 {
        bail_usage!(
            "val_set_size is {val_set_size}: that leaves no row to train on, there {} {}",
            if total == 1 { "is" } else { "are" },
            count(total as u64, "row")
        );
    }
    let mut shuffled: Vec<usize> = (0..total).collect();
    RngStream::new(seed, SPLIT_DOMAIN).shuffle(&mut shuffled);
    let mut is_validation = vec![false; total];
    for &at in &shuffled[..drawn] {
        is_validation[at] = true;
    }
    Ok(is_validation)
}
