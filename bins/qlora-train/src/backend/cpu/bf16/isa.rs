//! Instructions of AVX-512-BF16, each behind a safe function that a scalar twin computes as well.
//!
//! `vdpbf16ps` adds a pair of products to an f32 as two fused multiply-adds, the odd element's first. The twin does the
//! same, so both give the same bits, except where a number is subnormal: the instruction takes and gives zero for it.

#![allow(unsafe_code)]

use super::amx;
use super::pairs::WIDTH;
use half::bf16;

/// Columns of a vector of sums.
pub const LANES: usize = 16;

/// A way of computing products of bf16 numbers that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tiles for the products, AVX-512 for the rest
    Amx,
    Avx512Bf16,
    /// One number after the other, on any processor: for tests.
    Scalar,
}

impl Isa {
    pub const SCALAR: Self = Self(Kind::Scalar);

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
            Kind::Amx => amx::TILE,
            Kind::Avx512Bf16 | Kind::Scalar => width,
        }
    }

    /// The name in messages and in the identity of a run.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Amx => "AMX",
            Kind::Avx512Bf16 => "AVX-512-BF16",
            Kind::Scalar => "scalar",
        }
    }
}

fn halves(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000))
}

/// `sums[row][column] (+)= Σ left[row][2p..2p+2] · panel[p][column]` for `rows` rows of `width` columns.
///
/// `left` holds rows of `2·pairs` values, `stride` apart; `sums` rows of [`WIDTH`] values; `panel` `[pairs, width]`, in
/// parts of [`Isa::panel_tile`] columns one after the other.
/// The chain of every sum runs over the pairs in order, starting from what `sums` holds where `add` is set.
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
    assert!(sums.len() >= rows * WIDTH, "sums out of bounds");
    match isa.0 {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Kind::Amx => amx::multiply(left, stride, rows, panel, width, sums, add),
        // SAFETY: `detect` found the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512Bf16 => unsafe { x86::multiply(left, stride, rows, panel, width, sums, add) },
        _ => {
            for row in 0..rows {
                let left = &left[row * stride..][..2 * pairs];
                let sums = &mut sums[row * WIDTH..][..width];
                if !add {
                    sums.fill(0.0);
                }
                for (panel, x) in panel.chunks_exact(width).zip(left.as_chunks::<2>().0) {
                    let (x0, x1) = (x[0].to_f32(), x[1].to_f32());
                    for (sum, &y) in sums.iter_mut().zip(panel) {
                        let (y0, y1) = halves(y);
                        *sum = x0.mul_add(y0, x1.mul_add(y1, *sum));
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::pairs::WIDTH;
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
    /// Like [`multiply`], for `count` rows.
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

    /// # Safety
    /// Like [`multiply`], for `R` rows and a panel of `V` vectors.
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
            // Pointers move on; addresses counted anew would cost as much as the products.
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
mod tests {
    use super::super::drawn::values;
    use super::super::pairs::pair;
    use super::*;

    /// On a processor without the instructions this compares the twin with itself.
    #[test]
    fn products_equal_their_twins_bit_for_bit() {
        for (rows, pairs, width) in [(1, 1, 16), (7, 9, 64), (24, 32, 16), (25, 8, 16), (13, 3, 32), (17, 40, 48)] {
            let stride = 2 * pairs + 6;
            let left = values(rows * stride, 1);
            let numbers = values(2 * pairs * width, 2);
            let panel: Vec<u32> = numbers.as_chunks::<2>().0.iter().map(|x| pair(x[0], x[1])).collect();
            for add in [false, true] {
                let run = |isa| {
                    let mut sums = vec![0.5; rows * WIDTH];
                    multiply(isa, &left, stride, rows, &panel, width, &mut sums, add);
                    sums
                };
                assert!(
                    run(Isa::avx512_bf16().unwrap_or(Isa::SCALAR)) == run(Isa::SCALAR),
                    "{rows} x {pairs} pairs x {width}"
                );
            }
        }
    }

    #[test]
    fn a_product_is_the_sum_of_exact_products() {
        let (rows, pairs) = (3, 21);
        let (left, right) = (values(rows * 2 * pairs, 3), values(2 * pairs * 16, 4));
        let panel: Vec<u32> =
            (0..pairs * 16).map(|i| pair(right[i / 16 * 32 + i % 16], right[i / 16 * 32 + 16 + i % 16])).collect();
        let mut sums = vec![0.0; rows * WIDTH];
        multiply(Isa::avx512_bf16().unwrap_or(Isa::SCALAR), &left, 2 * pairs, rows, &panel, 16, &mut sums, false);
        for row in 0..rows {
            for column in 0..16 {
                let terms: Vec<f64> = (0..2 * pairs)
                    .map(|k| left[row * 2 * pairs + k].to_f64() * right[k * 16 + column].to_f64())
                    .collect();
                let (exact, size) = (terms.iter().sum::<f64>(), terms.iter().map(|x| x.abs()).sum::<f64>());
                let found = f64::from(sums[row * WIDTH + column]);
                // Each of the 2·pairs additions rounds once, to 2⁻²⁴ of a partial sum.
                assert!((found - exact).abs() <= 2.0 * pairs as f64 * size * f64::from(f32::EPSILON) / 2.0);
            }
        }
    }
}
