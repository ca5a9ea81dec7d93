"""The project's own NF4 double quantization, written with numpy in float32, one rounding per operation.

It differs from bitsandbytes' CPU path in two places only: the offset is the float64 mean of the absmax rounded to float32
(bitsandbytes takes a float32 mean whose last bit depends on the number of threads), and the 8-bit codes come from a binary
search (bitsandbytes' CPU path looks them up in a table with coarser bins).
"""

import numpy as np

F32 = np.float32
NESTED_BLOCK = 256


def nested_codes(x, code_map):
    """Index of the map entry for every normalized x (float32): binary search from 127, then the midpoint decides."""
    pivot = np.full(x.shape, 127)
    upper = np.full(x.shape, 255)
    lower = np.zeros(x.shape, dtype=np.int64)
    for step in (64, 32, 16, 8, 4, 2, 1):
        up = x > code_map[pivot]
        lower = np.where(up, pivot, lower)
        upper = np.where(up, upper, pivot)
        pivot = np.where(up, pivot + step, pivot - step)
    here = code_map[pivot]
    up = x > here
    mid_above = (code_map[upper] + here) * F32(0.5)
    mid_below = (code_map[lower] + here) * F32(0.5)
    return np.where(up, np.where(x > mid_above, upper, pivot), np.where(x < mid_below, lower, pivot)).astype(np.uint8)


def double_quantize(absmax, code_map):
    """absmax [blocks] f32 -> (codes [blocks] u8, nested absmax [ceil(blocks/256)] f32, offset f32)."""
    offset = F32(np.mean(absmax.astype(np.float64)))
    centered = absmax - offset
    codes = np.empty(absmax.size, dtype=np.uint8)
    nested = np.empty(-(-absmax.size // NESTED_BLOCK), dtype=F32)
    for i in range(nested.size):
        block = centered[i * NESTED_BLOCK : (i + 1) * NESTED_BLOCK]
        nested[i] = np.max(np.abs(block))
        codes[i * NESTED_BLOCK : i * NESTED_BLOCK + block.size] = nested_codes(block * (F32(1) / nested[i]), code_map)
    return codes, nested, offset


def dequantize_absmax(codes, nested, offset, code_map):
    """Back to absmax [blocks] f32 by two roundings: the product, then the sum."""
    product = code_map[codes] * np.repeat(nested, NESTED_BLOCK)[: codes.size]
    return product + F32(offset)


def dequantize(packed, absmax, blocksize, shape, nf4_map):
    """Packed nibbles (high first) and absmax -> the weight, f32, of that shape."""
    nibbles = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: int(np.prod(shape))]
    return (nf4_map[nibbles] * np.repeat(absmax, blocksize)[: nibbles.size]).reshape(shape)
