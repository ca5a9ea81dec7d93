//! Sizes of memory as users write them: GB is 10⁹ bytes, GiB 2³⁰.

const UNITS: [(&str, u64); 9] = [
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Bytes in `"44.4GiB"`, `"24 GB"`, `"8gib"` or `"4096"`; a fraction of a byte is dropped.
///
/// None if it is no such size, is zero, or does not fit 63 bits. `"8G"` is not a size: it would leave the reader to
/// guess between two numbers 7% apart.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_uppercase();
    let (number, unit) = match UNITS.iter().find(|(name, _)| text.ends_with(name)) {
        Some((name, unit)) => (text[..text.len() - name.len()].trim_end(), *unit),
        None => (text.as_str(), 1),
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(unit)?,
        // Saturates at u64::MAX, which the limit below refuses.
        Err(_) => (number.parse::<f64>().ok()? * unit as f64) as u64,
    };
    (1..=i64::MAX as u64).contains(&bytes).then_some(bytes)
}

/// `"44.4 GiB"`, `"512.0 MiB"`, `"100 B"`: binary units, one decimal, for people. [`parse_bytes`] reads it back to
/// within half of the last digit shown.
pub fn format_bytes(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            return format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{bytes} B")
}
