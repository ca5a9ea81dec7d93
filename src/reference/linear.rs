//! A frozen linear layer with a low-rank term: `Y = X·Wᵀ + scale·(D∘X)·Aᵀ·Bᵀ + bias`, where D holds the dropout
//! factors.

use super::{Real, axpy, dot};

/// The low-rank term of one linear layer (LoRA, Hu et al. 2021).
#[derive(Clone, Copy, Debug)]
pub struct LoraTerm<'a, T> {
    /// `[r, K]`
    pub a: &'a [T],
    /// `[N, r]`
    pub b: &'a [T],
    /// The rank
    pub r: usize,
    /// alpha / r, or alpha / √r with rsLoRA
    pub scale: T,
}

/// `S = scale·(D∘X)·Aᵀ`
pub fn lora_down<T: Real>(
    x: &[T],               // [M, K]
    dropout: Option<&[T]>, // [M, K] factors
    lora: &LoraTerm<T>,
    s: &mut [T], // [M, r]
    k: usize,
) {
    for (m, s) in s.chunks_exact_mut(lora.r).enumerate() {
        let mut row = x[m * k..(m + 1) * k].to_vec();
        if let Some(factors) = dropout {
            row.iter_mut().zip(&factors[m * k..]).for_each(|(x, &f)| *x = *x * f);
        }
        for (j, s) in s.iter_mut().enumerate() {
            *s = lora.scale * dot(&row, &lora.a[j * k..(j + 1) * k]);
        }
    }
}

/// `Y = X·Wᵀ + S·Bᵀ + bias`
pub fn linear<T: Real>(
    x: &[T],                                // [M, K]
    w: &[T],                                // [N, K]
    bias: Option<&[T]>,                     // [N]
    lora: Option<(&[T], &LoraTerm<'_, T>)>, // S [M, r]
    y: &mut [T],                            // [M, N]
    n: usize,
    k: usize,
) {
    for (m, y) in y.chunks_exact_mut(n).enumerate() {
        let x = &x[m * k..(m + 1) * k];
        for (j, y) in y.iter_mut().enumerate() {
            *y = dot(x, &w[j * k..(j + 1) * k]);
            if let Some((s, lora)) = lora {
                *y += dot(&s[m * lora.r..(m + 1) * lora.r], &lora.b[j * lora.r..(j + 1) * lora.r]);
            }
            if let Some(bias) = bias {
                *y += bias[j];
            }
        }
    }
}

/// `T = scale·dY·B`, the gradient of `(D∘X)·Aᵀ`.
pub fn lora_dy_b<T: Real>(
    dy: &[T], // [M, N]
    lora: &LoraTerm<T>,
    t: &mut [T], // [M, r]
    n: usize,
) {
    let r = lora.r;
    t.fill(T::ZERO);
    for (m, t) in t.chunks_exact_mut(r).enumerate() {
        for j in 0..n {
            axpy(lora.scale * dy[m * n + j], &lora.b[j * r..(j + 1) * r], t);
        }
    }
}

/// `dX += dY·W + D∘(T·A)`
pub fn linear_dx<T: Real>(
    dy: &[T],                               // [M, N]
    w: &[T],                                // [N, K]
    lora: Option<(&[T], &LoraTerm<'_, T>)>, // T [M, r]
    dropout: Option<&[T]>,                  // [M, K] factors
    dx: &mut [T],                           // [M, K]
    n: usize,
    k: usize,
) {
    for (m, dx) in dx.chunks_exact_mut(k).enumerate() {
        for j in 0..n {
            axpy(dy[m * n + j], &w[j * k..(j + 1) * k], dx);
        }
        if let Some((t, lora)) = lora {
            let mut low_rank = vec![T::ZERO; k];
            for j in 0..lora.r {
                axpy(t[m * lora.r + j], &lora.a[j * k..(j + 1) * k], &mut low_rank);
            }
            if let Some(factors) = dropout {
                low_rank.iter_mut().zip(&factors[m * k..]).for_each(|(x, &f)| *x = *x * f);
            }
            axpy(T::ONE, &low_rank, dx);
        }
    }
}

/// `dA += Tᵀ·(D∘X)` and `dB += dYᵀ·S`
pub fn lora_gradients<T: Real>(
    x: &[T],               // [M, K]
    dropout: Option<&[T]>, // [M, K] factors
    dy: &[T],              // [M, N]
    s: &[T],               // [M, r], from lora_down
    t: &[T],               // [M, r], from lora_dy_b
    da: &mut [T],          // [r, K]
    db: &mut [T],          // [N, r]
    n: usize,
    k: usize,
    r: usize,
) {
    for m in 0..x.len() / k {
        let mut row = x[m * k..(m + 1) * k].to_vec();
        if let Some(factors) = dropout {
            row.iter_mut().zip(&factors[m * k..]).for_each(|(x, &f)| *x = *x * f);
        }
        for j in 0..r {
            axpy(t[m * r + j], &row, &mut da[j * k..(j + 1) * k]);
        }
        for j in 0..n {
            axpy(dy[m * n + j], &s[m * r..(m + 1) * r], &mut db[j * r..(j + 1) * r]);
        }
    }
}
