"""nf4.safetensors and quantized.json / quantized.safetensors: what bitsandbytes makes of real and of crafted weights."""

import copy
import hashlib

import bitsandbytes.functional as bnb
import numpy as np
import torch

import own_rules
from source_model import linears

BLOCK_SIZES = (64, 128)


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def bf16_hashes(model):
    """SHA-256 over the little-endian bf16 bytes, row-major, of every tensor of the full model."""
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"]), "the tie was lost"
    names = [n for n in state if n != "lm_head.weight"]
    return {n: {"shape": list(state[n].shape), "sha256": sha256(state[n].to(torch.bfloat16))} for n in names}


def real_cases(model):
    weights = {name: module.weight.data for name, module in linears(model)}
    return {
        # 297 blocks of 64: two blocks of nested absmax, the last one short.
        "up": weights["model.layers.0.mlp.up_proj"][:33],
        # 2304 elements; at block size 128 every second row begins inside a block.
        "query": weights["model.layers.15.self_attn.q_proj"][:4],
        "down": weights["model.layers.29.mlp.down_proj"][:4],
        # Rows of 100: blocks straddle rows, and 700 elements leave a last block of 60.
        "straddle": weights["model.layers.14.self_attn.k_proj"][:7, :100],
        # 129 elements: a last block of one element and a last byte of one nibble.
        "odd": weights["model.layers.3.self_attn.v_proj"][:3, :43],
    }


def crafted_cases():
    rng = np.random.default_rng(11)
    nf4 = bnb.get_4bit_type("nf4", device="cpu").numpy()
    ties = (nf4[:-1] + nf4[1:]) / np.float32(2)
    above, below = np.nextafter(ties, np.float32(2)), np.nextafter(ties, np.float32(-2))
    block = lambda *parts: np.concatenate([np.atleast_1d(p) for p in parts]).astype(np.float32)
    normal = lambda n: rng.standard_normal(n).astype(np.float32)
    exact = block(1.0, ties, above, below, nf4, 0.0, -0.0)  # 1 + 45 + 16 + 2 = 64
    scales = np.array([0.37, 1.7e-3, 0.0923, 5.3, 1e-6, 1234.5, 0.7, 0.011], dtype=np.float32)
    # absmax is the scale; the other values lie on ties times the scale and a few last places beside them.
    beside = lambda x, towards: np.nextafter(x, np.float32(towards))
    near = [
        block(s, ties * s, beside(ties * s, 9e9), beside(ties * s, -9e9), normal(18).clip(-1, 1) * s) for s in scales
    ]
    denormal = np.float32(1e-40)
    edges = [
        np.zeros(64, dtype=np.float32),
        exact,
        exact * np.float32(2),
        exact * np.float32(2**-7) * np.float32(-1),
        block(np.full(64, -0.5)),
        block(np.full(63, 0.25), -0.25),
        block(1.0, np.full(62, denormal), -denormal),
        block(-0.0, np.full(62, 0.0), 1e-20),
        *near,
    ]
    huge = [normal(64), block(normal(31), 3e38, normal(32)), normal(64), block(-1e30, np.full(63, 1e-30))]
    # Blocks 1 and 2 (of 64) have an absmax under 1e-38, where bitsandbytes' CPU path divides by 1e-38 instead.
    tiny = [
        (normal(64).clip(-1, 1) * np.float32(2e-38)),
        (normal(64).clip(-1, 1) * np.float32(9e-39)),
        block(rng.integers(-60000, 60000, 64) * np.float32(1e-45)),
        normal(64),
    ]
    shape = lambda blocks: torch.from_numpy(np.stack(blocks).astype(np.float32))
    return {"edges": shape(edges), "huge": shape(huge), "tiny": shape(tiny)}


def quantize(weight, blocksize, nested):
    codes, state = bnb.quantize_4bit(weight, blocksize=blocksize, compress_statistics=nested, quant_type="nf4")
    return codes, state


def dequantize(codes, state, dtype):
    """bitsandbytes' dequantized weight, asked for as one flat row where the element count is even.

    Its AVX-512 kernel (0.50.2) takes the wrong absmax in blocks that straddle rows, for instance [33, 576] at block size
    128; an odd count goes through its generic path, which is right. The check below would catch either going wrong.
    """
    state = copy.copy(state)
    shape, state.dtype = state.shape, dtype
    if shape.numel() % 2 == 0:
        state.shape = torch.Size([shape.numel()])
    weight = bnb.dequantize_4bit(codes, state).reshape(shape)
    if dtype == torch.float32:
        absmax = state.absmax.numpy()
        if state.nested:
            nested = state.state2
            absmax = own_rules.dequantize_absmax(absmax, nested.absmax.numpy(), state.offset.item(), nested.code.numpy())
        expected = own_rules.dequantize(codes.numpy().reshape(-1), absmax, state.blocksize, shape, state.code.numpy())
        assert np.array_equal(expected.view(np.uint32), weight.numpy().view(np.uint32)), "bitsandbytes dequantized wrongly"
    return weight


def nf4_tensors(model):
    out = {
        "nf4_map": bnb.get_4bit_type("nf4", device="cpu"),
        "dynamic_map_signed": bnb.create_dynamic_map(signed=True),
        "dynamic_map_unsigned": bnb.create_dynamic_map(signed=False),
    }
    for case, weight in {**real_cases(model), **crafted_cases()}.items():
        weight = weight.contiguous().clone()
        out[f"{case}.input"] = weight
        for blocksize in BLOCK_SIZES:
            key = f"{case}.b{blocksize}"
            codes, state = quantize(weight, blocksize, nested=False)
            out[f"{key}.codes"] = codes.reshape(-1)
            out[f"{key}.absmax"] = state.absmax
            out[f"{key}.dequantized"] = dequantize(codes, state, torch.float32)
            codes_again, state = quantize(weight, blocksize, nested=True)
            assert torch.equal(codes, codes_again), key
            out[f"{key}.nested.codes"] = state.absmax
            out[f"{key}.nested.absmax"] = state.state2.absmax
            out[f"{key}.nested.offset"] = state.offset.reshape(1)
            out[f"{key}.nested.dequantized"] = dequantize(codes, state, torch.float32)
            out[f"{key}.nested.dequantized_bf16"] = dequantize(codes, state, torch.bfloat16)
            assert torch.equal(state.state2.code, out["dynamic_map_signed"]), key
    return {name: tensor.clone().contiguous() for name, tensor in out.items()}


def own_double_quantization(weight, blocksize=64):
    """(codes, absmax, own nested codes, own nested absmax, own offset, the weight dequantized by the own rules)."""
    code_map = bnb.create_dynamic_map(signed=True).numpy()
    nf4_map = bnb.get_4bit_type("nf4", device="cpu").numpy()
    codes, state = quantize(weight, blocksize, nested=False)
    absmax = state.absmax.numpy()
    own_codes, own_nested, own_offset = own_rules.double_quantize(absmax, code_map)
    back = own_rules.dequantize_absmax(own_codes, own_nested, own_offset, code_map)
    own_weight = own_rules.dequantize(codes.numpy().reshape(-1), back, blocksize, weight.shape, nf4_map)
    return codes, absmax, own_codes, own_nested, own_offset, torch.from_numpy(own_weight)


def compare_all(model, keep_layers):
    """Both double quantizations of every linear weight of the full model: facts per tensor, totals, and bitsandbytes' states.

    The states are kept for the first `keep_layers` blocks only.
    """
    tensors, states = {}, {}
    for name, module in linears(model):
        weight = module.weight.data
        codes, absmax, own_codes, own_nested, own_offset, own_weight = own_double_quantization(weight)
        codes_bnb, state = quantize(weight, 64, nested=True)
        bf16_codes, _ = quantize(weight.to(torch.bfloat16), 64, nested=False)
        assert torch.equal(codes, codes_bnb) and torch.equal(codes, bf16_codes), name
        theirs = dequantize(codes, state, torch.float32)
        offset = np.float32(state.offset.item())
        difference = (own_weight - theirs).abs()
        tensors[name + ".weight"] = {
            "shape": list(weight.shape),
            "codes_sha256": sha256(codes),
            "absmax_sha256": hashlib.sha256(absmax.tobytes()).hexdigest(),
            "nested_offset": float(offset),
            "own_nested_codes_sha256": hashlib.sha256(own_codes.tobytes()).hexdigest(),
            "own_nested_absmax_sha256": hashlib.sha256(own_nested.tobytes()).hexdigest(),
            "own_nested_offset": float(own_offset),
            "own_dequantized_sha256": sha256(own_weight),
            "nested_codes": int(own_codes.size),
            "nested_codes_differing": int((own_codes != state.absmax.numpy()).sum()),
            "largest_dequantized_difference": float(difference.max()),
            "largest_absmax": float(absmax.max()),
        }
        if int(name.split(".")[2]) < keep_layers:
            states[f"{name}.nested.codes"] = state.absmax.clone()
            states[f"{name}.nested.absmax"] = state.state2.absmax.clone()
            states[f"{name}.nested.offset"] = state.offset.reshape(1).clone()
    count = sum(t["nested_codes"] for t in tensors.values())
    differing = sum(t["nested_codes_differing"] for t in tensors.values())
    worst = max(tensors, key=lambda n: tensors[n]["largest_dequantized_difference"])
    summary = {
        "nested_codes": count,
        "nested_codes_differing": differing,
        "share_differing": differing / count,
        "offsets_differing": sum(t["nested_offset"] != t["own_nested_offset"] for t in tensors.values()),
        "largest_dequantized_difference": tensors[worst]["largest_dequantized_difference"],
        "largest_dequantized_difference_tensor": worst,
        "largest_dequantized_difference_over_absmax": max(
            t["largest_dequantized_difference"] / t["largest_absmax"] for t in tensors.values()
        ),
    }
    return {"summary": summary, "tensors": tensors}, states
