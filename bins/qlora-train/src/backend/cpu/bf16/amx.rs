//! Tiles of AMX: `tdpbf16ps`, and a scalar twin of its results.
//!
//! One instruction adds 16 pairs of a contraction to a sum: the products of even elements and those of odd ones are two
//! chains of fused multiply-adds from zero, which are added together and then to the sum. The result therefore differs
//! from that of AVX-512-BF16 in its last bits (docs/numerics.md has the bound). The twin is written from the operation
//! of TDPBF16PS in Intel's Software Developer's Manual and gives the same bits; numbers that are subnormal are zero in
//! both, where they are read and where they are written.

#![allow(unsafe_code)]

use super::fused::{flushed, fused, halves};
use super::pairs::WIDTH;
use crate::backend::cpu::gemm::simd::vectorized;
use half::bf16;

/// Pairs that one instruction adds.
pub const PAIRS: usize = 16;
/// Rows and columns of a tile of sums.
pub const TILE: usize = 16;

/// Scalar twin of the tiles' product; the operands are those of [`super::isa::multiply`].
pub fn twin(left: &[bf16], stride: usize, rows: usize, panel: &[u32], width: usize, sums: &mut [f32], add: bool) {
    let pairs = panel.len() / width;
    for row in 0..rows {
        let sums = &mut sums[row * WIDTH..][..width];
        if !add {
            sums.fill(0.0);
        }
        let left = left[row * stride..][..2 * pairs].as_chunks::<2>().0;
        for (panel, sums) in panel.chunks_exact(pairs * TILE).zip(sums.as_chunks_mut::<TILE>().0) {
            twin_row(left, panel, sums);
        }
    }
}

vectorized! {
    /// One row of a tile of sums.
    fn twin_row<'a>(left: &'a [[bf16; 2]], panel: &'a [u32], sums: &'a mut [f32; TILE]) {
        for (left, panel) in left.chunks(PAIRS).zip(panel.chunks(PAIRS * TILE)) {
            let (mut even, mut odd) = ([0.0f32; TILE], [0.0f32; TILE]);
            for (x, panel) in left.iter().zip(panel.as_chunks::<TILE>().0) {
                let (x0, x1) = (x[0].to_f32(), x[1].to_f32());
                for column in 0..TILE {
                    let (y0, y1) = halves(panel[column]);
                    even[column] = fused(x0, y0, even[column]);
                    odd[column] = fused(x1, y1, odd[column]);
                }
            }
            for column in 0..TILE {
                sums[column] = flushed(flushed(sums[column]) + flushed(even[column] + odd[column]));
            }
        }
    }
}

/// True if processor and operating system let this process use the tiles, and the tiles have the twin's results.
pub fn available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        return *AVAILABLE.get_or_init(|| x86::permitted() && agrees());
    }
    #[allow(unreachable_code)]
    false
}

/// A product of the hardware beside the twin's, with whole tiles and with parts of tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn agrees() -> bool {
    use super::pairs::pair;
    [(32, 16, 32), (37, 21, 48)].into_iter().all(|(rows, pairs, width)| {
        let value = |i: usize| bf16::from_f32((i * 37 % 101) as f32 / 64.0 - 0.75);
        let left: Vec<bf16> = (0..rows * 2 * pairs).map(value).collect();
        let panel: Vec<u32> = (0..pairs * width).map(|i| pair(value(3 * i + 1), value(5 * i + 2))).collect();
        let (mut found, mut expected) = (vec![0.5; rows * WIDTH], vec![0.5; rows * WIDTH]);
        multiply(&left, 2 * pairs, rows, &panel, width, &mut found, true);
        twin(&left, 2 * pairs, rows, &panel, width, &mut expected, true);
        found == expected
    })
}

/// With the tiles, which [`available`] has found; operands as in [`super::isa::multiply`], which has checked them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn multiply(left: &[bf16], stride: usize, rows: usize, panel: &[u32], width: usize, sums: &mut [f32], add: bool) {
    let pairs = panel.len() / width;
    assert!(x86::permitted(), "AMX was not found");
    assert!(width.is_multiple_of(TILE) && width <= WIDTH && stride >= 2 * pairs, "a panel of {width} columns");
    assert!(rows > 0 && left.len() >= (rows - 1) * stride + 2 * pairs);
    assert!(sums.len() >= (rows - 1) * WIDTH + width);
    // SAFETY: the tiles are permitted, and every tile lies inside the operands.
    unsafe { x86::multiply(left.as_ptr(), stride, rows, panel.as_ptr(), pairs, width, sums.as_mut_ptr(), add) }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use super::{PAIRS, TILE, WIDTH};
    use half::bf16;
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    /// The processor has the instructions, the system saves the tiles, and it gave this process leave to use them.
    pub fn permitted() -> bool {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        *PERMITTED.get_or_init(|| {
            const AMX_BF16: u32 = 1 << 22;
            const AMX_TILE: u32 = 1 << 24;
            const BOTH_STATES: u64 = 3 << 17;
            let leaf = __cpuid_count(7, 0);
            if leaf.edx & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE || !is_x86_feature_detected!("xsave") {
                return false;
            }
            // SAFETY: the processor has xsave.
            let saved = unsafe { xgetbv() };
            saved & BOTH_STATES == BOTH_STATES && request_tiles()
        })
    }

    #[target_feature(enable = "xsave")]
    unsafe fn xgetbv() -> u64 {
        // SAFETY: the caller found xsave.
        unsafe { _xgetbv(0) }
    }

    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`: for all threads of the process.
    fn request_tiles() -> bool {
        const ARCH_PRCTL: u64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XTILEDATA: u64 = 18;
        let status: i64;
        // SAFETY: the call reads and writes no memory of ours.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => status,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        status == 0
    }

    /// Palette 1: rows and bytes in a row of each of the eight tiles.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// Sums in tiles 0 to 3 (two of rows, two of columns), left operands in 4 and 5, right ones in 6 and 7.
    fn config(rows: [usize; 2], pairs: usize) -> Config {
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let mut tile = |i: usize, rows: usize, values: usize| {
            (config.rows[i], config.bytes[i]) = (rows.max(1) as u8, 4 * values as u16);
        };
        for i in 0..2 {
            tile(2 * i, rows[i], TILE);
            tile(2 * i + 1, rows[i], TILE);
            tile(4 + i, rows[i], pairs);
            tile(6 + i, pairs, TILE);
        }
        config
    }

    /// Setting up tiles takes as long as a dozen products, so it is done for all blocks of one kind together. Half a
    /// panel lies in the nearest cache while all rows are multiplied with it.
    ///
    /// # Safety
    /// [`permitted`] is true, and the operands have the bounds that [`super::multiply`] checks.
    pub unsafe fn multiply(
        left: *const bf16,
        stride: usize,
        rows: usize,
        panel: *const u32,
        pairs: usize,
        width: usize,
        sums: *mut f32,
        add: bool,
    ) {
        const ROWS: usize = 2 * TILE;
        let whole = rows / ROWS * ROWS;
        let (steps, rest) = (pairs / PAIRS, pairs % PAIRS);
        for (first, steps, of) in [(0, steps, PAIRS), (steps * PAIRS, 1, rest)] {
            if steps == 0 || of == 0 {
                continue;
            }
            let add = add || first > 0;
            for blocks in [0..whole, whole..rows] {
                let here = blocks.len().min(ROWS);
                if here == 0 {
                    continue;
                }
                let config = config([here.min(TILE), here.saturating_sub(TILE)], of);
                // SAFETY: the configuration is valid: at most 16 rows of at most 64 bytes.
                unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
                for column in (0..width).step_by(2 * TILE) {
                    for row in blocks.clone().step_by(ROWS) {
                        // SAFETY: rows `row..`, columns `column..` and pairs `first..` lie inside the operands.
                        unsafe {
                            let left = left.add(row * stride + 2 * first);
                            let panel = panel.add(column * pairs + first * TILE);
                            let sums = sums.add(row * WIDTH + column);
                            let rows = here > TILE;
                            match column + TILE < width {
                                true => block(rows, left, stride, panel, pairs, steps, sums, add),
                                false => narrow_block(rows, left, stride, panel, steps, sums, add),
                            }
                        }
                    }
                }
            }
        }
        // SAFETY: leaves the tiles in their initial state, so that they are not saved any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// `steps` instructions' worth of pairs for two tiles of columns, and two of rows where there is a second one.
    ///
    /// # Safety
    /// Those of [`multiply`] hold, for the rows and pairs of the configuration.
    unsafe fn block(
        second_row: bool,
        left: *const bf16,
        stride: usize,
        panel: *const u32,
        pairs: usize,
        steps: usize,
        sums: *mut f32,
        add: bool,
    ) {
        // Without a second tile of rows, a row of the first is read twice, and the result is not stored.
        let left1 = if second_row { left.wrapping_add(TILE * stride) } else { left };
        let panel1 = panel.wrapping_add(pairs * TILE);
        let (left_bytes, sum_bytes) = (2 * stride, 4 * WIDTH);
        let (right, down) = (sums.wrapping_add(TILE), sums.wrapping_add(TILE * WIDTH));
        let corner = down.wrapping_add(TILE);
        // SAFETY: the caller's bounds. What is not stored has one row of what exists.
        unsafe {
            if add {
                asm!("tileloadd tmm0, [{s} + {b}]", "tileloadd tmm1, [{r} + {b}]", s = in(reg) sums, r = in(reg) right,
                    b = in(reg) sum_bytes, out("tmm0") _, out("tmm1") _, options(nostack, readonly));
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack, nomem));
            }
            if add && second_row {
                asm!("tileloadd tmm2, [{s} + {b}]", "tileloadd tmm3, [{r} + {b}]", s = in(reg) down, r = in(reg) corner,
                    b = in(reg) sum_bytes, out("tmm2") _, out("tmm3") _, options(nostack, readonly));
            }
            // One piece of assembly, so that nothing comes between the tiles' instructions.
            asm!(
                "2:",
                "tileloadd tmm4, [{l0} + {lb}]",
                "tileloadd tmm6, [{p0} + {pb}]",
                "tileloadd tmm7, [{p1} + {pb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{l1} + {lb}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {l0}, 64",
                "add {l1}, 64",
                "add {p0}, 1024",
                "add {p1}, 1024",
                "dec {n}",
                "jnz 2b",
                l0 = inout(reg) left => _,
                l1 = inout(reg) left1 => _,
                p0 = inout(reg) panel => _,
                p1 = inout(reg) panel1 => _,
                lb = in(reg) left_bytes,
                pb = in(reg) 4 * TILE,
                n = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
            asm!("tilestored [{s} + {b}], tmm0", "tilestored [{r} + {b}], tmm1", s = in(reg) sums, r = in(reg) right,
                b = in(reg) sum_bytes, options(nostack));
            if second_row {
                asm!("tilestored [{s} + {b}], tmm2", "tilestored [{r} + {b}], tmm3", s = in(reg) down,
                    r = in(reg) corner, b = in(reg) sum_bytes, options(nostack));
            }
        }
    }

    /// [`block`] for one tile of columns.
    ///
    /// # Safety
    /// Those of [`block`] hold.
    unsafe fn narrow_block(
        second_row: bool,
        left: *const bf16,
        stride: usize,
        panel: *const u32,
        steps: usize,
        sums: *mut f32,
        add: bool,
    ) {
        let left1 = if second_row { left.wrapping_add(TILE * stride) } else { left };
        let (left_bytes, sum_bytes) = (2 * stride, 4 * WIDTH);
        let down = sums.wrapping_add(TILE * WIDTH);
        // SAFETY: the caller's bounds. What is not stored has one row of what exists.
        unsafe {
            if add {
                asm!("tileloadd tmm0, [{s} + {b}]", s = in(reg) sums, b = in(reg) sum_bytes, out("tmm0") _,
                    options(nostack, readonly));
            } else {
                asm!("tilezero tmm0", "tilezero tmm2", out("tmm0") _, out("tmm2") _, options(nostack, nomem));
            }
            if add && second_row {
                asm!("tileloadd tmm2, [{s} + {b}]", s = in(reg) down, b = in(reg) sum_bytes, out("tmm2") _,
                    options(nostack, readonly));
            }
            asm!(
                "2:",
                "tileloadd tmm6, [{p} + {pb}]",
                "tileloadd tmm4, [{l0} + {lb}]",
                "tileloadd tmm5, [{l1} + {lb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {l0}, 64",
                "add {l1}, 64",
                "add {p}, 1024",
                "dec {n}",
                "jnz 2b",
                l0 = inout(reg) left => _,
                l1 = inout(reg) left1 => _,
                p = inout(reg) panel => _,
                lb = in(reg) left_bytes,
                pb = in(reg) 4 * TILE,
                n = inout(reg) steps => _,
                out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack, readonly),
            );
            asm!("tilestored [{s} + {b}], tmm0", s = in(reg) sums, b = in(reg) sum_bytes, options(nostack));
            if second_row {
                asm!("tilestored [{s} + {b}], tmm2", s = in(reg) down, b = in(reg) sum_bytes, options(nostack));
            }
        }
    }
}

#[cfg(test)]
mod tests;
