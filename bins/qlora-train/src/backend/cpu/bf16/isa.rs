//! Instructions of AVX-512-BF16, each behind a safe function that a scalar twin computes as well.
//!
//! `vdpbf16ps` adds a pair of products to an f32 as two fused multiply-adds, the odd element's first. The twin does the
//! same and gives the same bits; numbers that are subnormal are zero in both, where they are read and where they are
//! written.

#![allow(unsafe_code)]

use super::amx;
use super::fused::{fused, halves};
use super::pairs::WIDTH;
use crate::backend::cpu::gemm::simd::vectorized;
use half::bf16;

/// Columns of a vector of sums.
pub const LANES: usize = 16;

/// Number of the order in which this build adds up in bf16, in the identity of a run: it rises where the last bits of a
/// run change.
pub const ORDER_OF_SUMS: u32 = 2;

/// A way of computing products of bf16 numbers that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tiles for the products, AVX-512 for the rest
    Amx,
    Avx512Bf16,
    /// `Amx` with the twin of its tiles, on any processor: for tests
    AmxTwin,
    /// The twin of `Avx512Bf16`, on any processor: for tests
    Scalar,
}

impl Isa {
    /// The twin of AVX-512-BF16, which no run chooses.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The twin of AMX, which no run chooses: products and panels of tiles, without the tiles.
    pub const AMX_TWIN: Self = Self(Kind::AmxTwin);

    /// The fastest of this processor that is worth using.
    pub fn detect() -> Option<Self> {
        Self::amx().or(Self::avx512_bf16())
    }

    pub fn amx() -> Option<Self> {
        (Self::avx512_bf16().is_some() && amx::available()).then_some(Self(Kind::Amx))
    }

    pub fn avx512_bf16() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if x86::available() {
            return Some(Self(Kind::Avx512Bf16));
        }
        None
    }

    /// Columns that lie side by side in a panel of `width` columns: all, or those of a tile.
    pub fn panel_tile(self, width: usize) -> usize {
        match self.0 {
            Kind::Amx | Kind::AmxTwin => amx::TILE,
            Kind::Avx512Bf16 | Kind::Scalar => width,
        }
    }

    /// True if values are laid out, and dot products computed, by vectors of AVX-512: then the processor has its
    /// instructions and those of AVX-512-BF16.
    pub(super) fn has_vectors(self) -> bool {
        match self.0 {
            Kind::Amx | Kind::Avx512Bf16 => true,
            Kind::AmxTwin => Self::avx512_bf16().is_some(),
            Kind::Scalar => false,
        }
    }

    /// The name in messages and in the identity of a run.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Amx => "AMX",
            Kind::Avx512Bf16 => "AVX-512-BF16",
            Kind::AmxTwin => "twin of AMX",
            Kind::Scalar => "twin of AVX-512-BF16",
        }
    }
}

/// `sums[row][column] (+)= Σ left[row][2p..2p+2] · panel[p][column]` for `rows` rows of `width` columns.
///
/// `left` holds rows of `2·pairs` values, `stride` apart; `sums` rows of [`WIDTH`] values; `panel` `[pairs, width]`, in
/// parts of [`Isa::panel_tile`] columns one after the other.
/// Every sum runs over the pairs in order, starting from what `sums` holds where `add` is set: one chain, or on tiles a
/// sum of the chains of each [`amx::PAIRS`].
pub fn multiply(
    isa: Isa,
    left: &[bf16],
    stride: usize,
    rows: usize,
    panel: &[u32],
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    let pairs = panel.len() / width;
    assert!(
        width.is_multiple_of(LANES) && width <= WIDTH && panel.len() == pairs * width,
        "a panel of {width} columns"
    );
    assert!(rows > 0 && stride >= 2 * pairs && left.len() >= (rows - 1) * stride + 2 * pairs, "rows out of bounds");
    assert!(sums.len() >= (rows - 1) * WIDTH + width, "sums out of bounds");
    match isa.0 {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Kind::Amx => amx::multiply(left, stride, rows, panel, width, sums, add),
        // SAFETY: `detect` found the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512Bf16 => unsafe { x86::multiply(left, stride, rows, panel, width, sums, add) },
        Kind::AmxTwin => amx::twin(left, stride, rows, panel, width, sums, add),
        _ => {
            for row in 0..rows {
                let sums = &mut sums[row * WIDTH..][..width];
                if !add {
                    sums.fill(0.0);
                }
                twin_row(left[row * stride..][..2 * pairs].as_chunks::<2>().0, panel, sums);
            }
        }
    }
}

/// [`multiply`] without a panel: the right operand is [`WIDTH`] columns of `2·pairs` rows of bf16 numbers,
/// `right_stride` apart. False, and nothing is done, where there are no instructions for it.
pub fn multiply_rows(
    isa: Isa,
    left: &[bf16],
    stride: usize,
    rows: usize,
    right: &[bf16],
    right_stride: usize,
    pairs: usize,
    sums: &mut [f32],
) -> bool {
    if isa.0 != Kind::Avx512Bf16 {
        return false;
    }
    assert!(rows > 0 && stride >= 2 * pairs && left.len() >= (rows - 1) * stride + 2 * pairs, "rows out of bounds");
    assert!(pairs > 0 && right.len() >= (2 * pairs - 1) * right_stride + WIDTH, "right operand out of bounds");
    assert!(sums.len() >= rows * WIDTH, "sums out of bounds");
    // SAFETY: `detect` found the instructions; the bounds were checked above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        x86::multiply_rows(left, stride, rows, right, right_stride, pairs, sums);
    }
    true
}

vectorized! {
    /// The twin of `vdpbf16ps`, for one row of sums.
    fn twin_row<'a>(left: &'a [[bf16; 2]], panel: &'a [u32], sums: &'a mut [f32]) {
        for (panel, x) in panel.chunks_exact(sums.len()).zip(left) {
            let (x0, x1) = (x[0].to_f32(), x[1].to_f32());
            for (sum, &y) in sums.iter_mut().zip(panel) {
                let (y0, y1) = halves(y);
                *sum = fused(x0, y0, fused(x1, y1, *sum));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::pairs::{PAIRS_OF_TWO, WIDTH};
    use super::LANES;
    use half::bf16;
    use std::arch::x86_64::*;

    pub fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
    }

    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::multiply`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn multiply(
        left: &[bf16],
        stride: usize,
        rows: usize,
        panel: &[u32],
        width: usize,
        sums: &mut [f32],
        add: bool,
    ) {
        let (left, sums, pairs) = (left.as_ptr(), sums.as_mut_ptr(), panel.len() / width);
        let mut row = 0;
        // SAFETY: every block of rows lies inside the operands, by the caller's checks.
        unsafe {
            while row < rows {
                let (left, sums) = (left.add(row * stride), sums.add(row * WIDTH));
                let count = (rows - row).min(BLOCKS[width / LANES - 1]);
                dispatch(count, width / LANES, left, stride, panel.as_ptr(), pairs, sums, add);
                row += count;
            }
        }
    }

    /// Rows whose sums fill the registers, by vectors in a row of the panel.
    const BLOCKS: [usize; 4] = [24, 12, 8, 6];

    /// # Safety
    /// Those of [`multiply`] hold, for `count` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn dispatch(
        count: usize,
        vectors: usize,
        left: *const bf16,
        stride: usize,
        panel: *const u32,
        pairs: usize,
        sums: *mut f32,
        add: bool,
    ) {
        macro_rules! rows {
            ($vectors:literal: $($rows:literal)*) => {
                match count {
                    // SAFETY: passed on from the caller.
                    $($rows => unsafe { block::<$rows, $vectors>(left, stride, panel, pairs, sums, add) },)*
                    _ => unreachable!("a block of {count} rows"),
                }
            };
        }
        match vectors {
            1 => rows!(1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24),
            2 => rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
            3 => rows!(3: 1 2 3 4 5 6 7 8),
            4 => rows!(4: 1 2 3 4 5 6),
            _ => unreachable!("a panel of {vectors} vectors"),
        }
    }

    /// Rows of a right operand by which it is asked for before it is read: rows far apart are no stream that the
    /// processor sees.
    const AHEAD: usize = 32;

    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::multiply_rows`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn multiply_rows(
        left: &[bf16],
        stride: usize,
        rows: usize,
        right: &[bf16],
        right_stride: usize,
        pairs: usize,
        sums: &mut [f32],
    ) {
        // Blocks of even size; the sums of twelve rows fill the registers.
        let block = rows.div_ceil(rows.div_ceil(12));
        for column in (0..WIDTH).step_by(2 * LANES) {
            let right = right.as_ptr().wrapping_add(column);
            let mut row = 0;
            while row < rows {
                let (left, sums) =
                    (left.as_ptr().wrapping_add(row * stride), sums.as_mut_ptr().wrapping_add(row * WIDTH + column));
                let count = (rows - row).min(block);
                macro_rules! blocks {
                    ($($rows:literal)*) => {
                        match count {
                            // SAFETY: the block lies inside the operands, by the caller's checks.
                            $($rows => unsafe { rows_block::<$rows>(left, stride, right, right_stride, pairs, sums) },)*
                            _ => unreachable!("a block of {count} rows"),
                        }
                    };
                }
                blocks!(1 2 3 4 5 6 7 8 9 10 11 12);
                row += count;
            }
        }
    }

    /// # Safety
    /// Those of [`multiply_rows`] hold, for `R` rows and two vectors of columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn rows_block<const R: usize>(
        left: *const bf16,
        stride: usize,
        right: *const bf16,
        right_stride: usize,
        pairs: usize,
        sums: *mut f32,
    ) {
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        // SAFETY: the caller's bounds.
        unsafe {
            let order = [0, 1].map(|i| PAIRS_OF_TWO[i].as_ptr());
            let (first, second) = (_mm512_loadu_si512(order[0].cast()), _mm512_loadu_si512(order[1].cast()));
            let rows: [usize; R] = std::array::from_fn(|i| i.wrapping_mul(stride));
            let (mut left, mut low) = (left, right);
            for _ in 0..pairs {
                let high = low.wrapping_add(right_stride);
                for ahead in [low, high] {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(AHEAD.wrapping_mul(right_stride)).cast());
                }
                let (x, y) = (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(high.cast()));
                let b = [_mm512_permutex2var_epi16(x, first, y), _mm512_permutex2var_epi16(x, second, y)];
                for i in 0..R {
                    let x = left.wrapping_add(rows[i]).cast::<i32>().read_unaligned();
                    let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x));
                    for v in 0..2 {
                        acc[i][v] = _mm512_dpbf16_ps(acc[i][v], x, std::mem::transmute::<__m512i, __m512bh>(b[v]));
                    }
                }
                left = left.wrapping_add(2);
                low = high.wrapping_add(right_stride);
            }
            for i in 0..R {
                for v in 0..2 {
                    _mm512_storeu_ps(sums.add(i * WIDTH + v * LANES), acc[i][v]);
                }
            }
        }
    }

    /// # Safety
    /// Those of [`multiply`] hold, for `R` rows and a panel of `V` vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn block<const R: usize, const V: usize>(
        left: *const bf16,
        stride: usize,
        panel: *const u32,
        pairs: usize,
        sums: *mut f32,
        add: bool,
    ) {
        let mut acc = [[_mm512_setzero_ps(); V]; R];
        // SAFETY: the caller's bounds.
        unsafe {
            if add {
                for i in 0..R {
                    for v in 0..V {
                        acc[i][v] = _mm512_loadu_ps(sums.add(i * WIDTH + v * LANES));
                    }
                }
            }
            // Pointers move on; computing each address would cost as much as the products.
            let rows: [usize; R] = std::array::from_fn(|i| i.wrapping_mul(stride));
            let (mut left, mut panel) = (left, panel);
            for _ in 0..pairs {
                let mut b = [_mm512_setzero_si512(); V];
                for v in 0..V {
                    b[v] = _mm512_loadu_si512(panel.wrapping_add(v * LANES).cast());
                }
                for i in 0..R {
                    let x = left.wrapping_add(rows[i]).cast::<i32>().read_unaligned();
                    let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x));
                    for v in 0..V {
                        acc[i][v] = _mm512_dpbf16_ps(acc[i][v], x, std::mem::transmute::<__m512i, __m512bh>(b[v]));
                    }
                }
                left = left.wrapping_add(2);
                panel = panel.wrapping_add(V * LANES);
            }
            for i in 0..R {
                for v in 0..V {
                    _mm512_storeu_ps(sums.add(i * WIDTH + v * LANES), acc[i][v]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
