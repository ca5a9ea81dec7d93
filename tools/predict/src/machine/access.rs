//! The cost of one access of a warp: cycles of the shared memory's banks, sectors of global memory.

use super::lanes::{LANES, Lanes};

/// Cycles of the banks. Addresses are of the first byte of each lane; `active` has a bit for each lane that takes part.
/// 32 banks of 4 bytes; 8-byte accesses run in two halves of the warp, 16-byte accesses in four quarters; lanes that
/// want one word share it.
pub fn wavefronts(addresses: &Lanes, active: u32, bytes: u32) -> u32 {
    let lanes_at_once = LANES / bytes.div_ceil(4).max(1) as usize;
    let mut total = 0;
    for first in (0..LANES).step_by(lanes_at_once) {
        let mut words: Vec<u32> = (first..first + lanes_at_once)
            .filter(|lane| active >> lane & 1 == 1)
            .flat_map(|lane| touched(addresses[lane], bytes, 4))
            .collect();
        words.sort_unstable();
        words.dedup();
        let of_bank = |bank: u32| words.iter().filter(|&&word| word % 32 == bank).count() as u32;
        total += (0..32).map(of_bank).max().unwrap_or(0);
    }
    total
}

/// The wavefronts of an access without conflicts in which every lane reads another address.
pub fn ideal_wavefronts(bytes: u32) -> u32 {
    bytes.div_ceil(4).max(1)
}

/// Bytes that global memory moves at once.
pub const SECTOR: u32 = 32;

/// Sectors that an access of a warp touches.
pub fn sectors(addresses: &Lanes, active: u32, bytes: u32) -> Vec<u32> {
    let mut sectors: Vec<u32> = (0..LANES)
        .filter(|lane| active >> lane & 1 == 1)
        .flat_map(|lane| touched(addresses[lane], bytes, SECTOR))
        .collect();
    sectors.sort_unstable();
    sectors.dedup();
    sectors
}

/// The units of `unit` bytes in which `bytes` bytes from an address lie.
fn touched(address: u32, bytes: u32, unit: u32) -> std::ops::RangeInclusive<u32> {
    address / unit..=address.saturating_add(bytes - 1) / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(of: impl Fn(u32) -> u32) -> Lanes {
        std::array::from_fn(|lane| of(lane as u32))
    }

    #[test]
    fn bank_conflicts_are_counted_by_the_width_of_the_access() {
        assert_eq!(wavefronts(&lanes(|lane| lane * 4), !0, 4), 1);
        assert_eq!(wavefronts(&lanes(|lane| lane * 8), !0, 4), 2);
        assert_eq!(wavefronts(&lanes(|lane| lane * 128), !0, 4), 32);
        // One word for all.
        assert_eq!(wavefronts(&lanes(|_| 64), !0, 4), 1);
        assert_eq!(wavefronts(&lanes(|lane| lane * 8), !0, 8), 2);
        assert_eq!(wavefronts(&lanes(|lane| lane * 16), !0, 16), 4);
        // Rows of 128 bytes, one chunk of each: all eight lanes of a quarter in the same banks. Then swizzled.
        assert_eq!(wavefronts(&lanes(|lane| lane * 128), !0, 16), 32);
        assert_eq!(wavefronts(&lanes(|lane| lane * 128 + (lane % 8) * 16), !0, 16), 4);
        assert_eq!(wavefronts(&lanes(|lane| lane * 4), 0, 4), 0);
        assert_eq!(wavefronts(&lanes(|lane| lane * 2), !0, 2), 1);
    }

    #[test]
    fn sectors_are_counted_once() {
        assert_eq!(sectors(&lanes(|lane| lane * 4), !0, 4).len(), 4);
        assert_eq!(sectors(&lanes(|lane| lane * 16), !0, 16).len(), 16);
        assert_eq!(sectors(&lanes(|lane| lane * 256), !0, 4).len(), 32);
        assert_eq!(sectors(&lanes(|lane| lane * 4 + 30), 1, 4).len(), 2);
    }
}
