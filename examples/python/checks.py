"""bf16 as its 16 bits, and the bound of a sum of products."""

import numpy as np


def to_f64(bf16):
    return (bf16.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def bf16(random, shape, size):
    """Uniform in (-size, size), cut to bf16."""
    values = ((random.random(shape) * 2 - 1) * size).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def to_bf16(values):
    """To the nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def share(found, left, right, *more, rounding=2.0**-8):
    """Largest |error| / bound of found = left right^T (+ ...): f32 sums in any order (2^-23 a term, as tensor cores cut), one
    rounding to bf16 unless `rounding` says otherwise."""
    pairs = [(left, right), *more]
    expected = sum(l @ r.T for l, r in pairs)
    size = sum(np.abs(l) @ np.abs(r).T for l, r in pairs)
    terms = sum(l.shape[1] for l, _ in pairs)
    shares = np.abs(found - expected) / (rounding * np.abs(expected) + terms * 2.0**-23 * size)
    return np.inf if np.isnan(shares).any() else shares.max()
