"""adamw.safetensors: 20 AdamW updates by bitsandbytes' AdamW8bit and by torch's AdamW, on gradients that a hash makes.

The gradients are not stored: every program that can multiply 32-bit integers makes the same ones, exactly.

bitsandbytes runs twice: as it is on a CPU, where 8-bit codes come from a table of 65,536 bins of equal width, too coarse for
second moments far below their block's largest; and with the project's choice of codes in the table's place: the binary
search of its CUDA kernels, but a second moment above 0 never takes the code of 0.
"""

import bitsandbytes as bnb
import numpy as np
import torch
from bitsandbytes.backends.cpu import ops as cpu

import own_rules

STEPS = 20
KEPT = {"table": (1, 20), "search": (1, 5, 20), "torch": (20,)}
BETAS, EPS = (0.9, 0.999), 1e-8
# name: (elements, rate, decay, binary orders of magnitude of the gradients in a block). The first keeps f32 states, the
# second ends in a short block, the third in a whole one.
TENSORS = {"small": (1000, 1e-3, 0.1, 10), "ragged": (4200, 4e-3, 0.0, 10), "whole": (4352, 1e-3, 0.1, 2)}


def uniform(elements, stream):
    """[elements] f32 in [-1, 1), multiples of 2^-23."""
    with np.errstate(over="ignore"):
        h = np.arange(elements, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(stream) * np.uint32(0x85EBCA77)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
        h = h ^ (h >> np.uint32(15))
    return ((h >> np.uint32(8)).astype(np.int64) - 2**23).astype(np.float32) * np.float32(2.0**-23)


def gradient(index, elements, step, orders):
    """Half of it the same in every step; sometimes exactly zero."""
    scale = np.float32(2.0) ** -(np.arange(elements) % orders).astype(np.float32)
    g = (uniform(elements, 1000 * index) + uniform(elements, 1000 * index + step)) * np.float32(0.5) * scale
    return torch.from_numpy(np.where((np.arange(elements) + step) % 17 == 0, np.float32(0.0), g).astype(np.float32))


def start(index, elements):
    return torch.from_numpy(uniform(elements, 1000 * index + 999) * np.float32(0.0625))


def trajectory(make, keep):
    params = {name: torch.nn.Parameter(start(i, n)) for i, (name, (n, *_)) in enumerate(TENSORS.items())}
    groups = [{"params": [p], "lr": TENSORS[name][1], "weight_decay": TENSORS[name][2]} for name, p in params.items()]
    optimizer = make(groups)
    kept = {}
    for step in range(1, STEPS + 1):
        for i, (name, p) in enumerate(params.items()):
            p.grad = gradient(i, p.numel(), step, TENSORS[name][3])
        optimizer.step()
        if step in keep:
            state = lambda p: {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
            kept[step] = {name: (p.detach().clone(), state(p)) for name, p in params.items()}
    return kept


def search(values, code, absmax_out, out, blocksize):
    """bitsandbytes' quantization of a state with the project's choice of codes."""
    codes, absmax = [], []
    for block in values.reshape(-1).split(blocksize):
        absmax.append(block.abs().max())
        # No block of these gradients is all zero.
        x = (block * (1 / absmax[-1])).numpy()
        nearest = own_rules.nested_codes(x, code.numpy())
        codes.append(np.maximum(nearest, (x > 0) & (code[0].item() == 0)).astype(np.uint8))
    out.copy_(torch.from_numpy(np.concatenate(codes)).reshape(out.shape))
    absmax_out.copy_(torch.stack(absmax))


def bitsandbytes(out, kind):
    theirs = trajectory(lambda groups: bnb.optim.AdamW8bit(groups, betas=BETAS, eps=EPS), KEPT[kind])
    for step, tensors in theirs.items():
        for name, (value, state) in tensors.items():
            if step == STEPS and not (name == "small" and kind == "search"):
                out[f"{kind}.{name}.{step}.value"] = value
            if name == "small":
                assert state["state1"].dtype == torch.float32, "a tensor under 4,096 elements keeps f32 states"
                continue
            for part, key in {"m": "state1", "m_absmax": "absmax1", "v": "state2", "v_absmax": "absmax2"}.items():
                out[f"{kind}.{name}.{step}.{part}"] = state[key].reshape(-1)


def make():
    out = {}
    bitsandbytes(out, "table")
    quantize = cpu._quant_blockwise_fp32_direct
    cpu._quant_blockwise_fp32_direct = search
    try:
        bitsandbytes(out, "search")
    finally:
        cpu._quant_blockwise_fp32_direct = quantize
    f32 = trajectory(lambda groups: torch.optim.AdamW(groups, betas=BETAS, eps=EPS, foreach=False, fused=False), KEPT["torch"])
    for name, (value, state) in f32[STEPS].items():
        if name != "ragged":
            out[f"torch.{name}.{STEPS}.value"] = value
        if name == "small":
            out[f"torch.{name}.{STEPS}.m"], out[f"torch.{name}.{STEPS}.v"] = state["exp_avg"], state["exp_avg_sq"]
    return {name: tensor.contiguous() for name, tensor in out.items()}
