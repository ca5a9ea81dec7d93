#!/usr/bin/env python3
"""A Llama of random weights in NF4, as bitsandbytes stores it, from a seed: for runs on shapes whose models are not at hand.

    python3 benches/streaming/checkpoint.py llama-3-8b DIRECTORY [--layers N] [--seed 1] [--bf16]
    python3 benches/streaming/checkpoint.py --verify DIRECTORY

Codes and scales are random bytes, with a standard deviation of the weights of about 0.02, so that activations stay finite;
embedding and output layer are bf16, and with --bf16 the linear layers too. A tensor depends on the seed and its own name: with fewer layers the others are the
same. SHA256SUMS beside the weights has the hash of every file; --verify reads them again and compares, and makes the first
tensor anew from the seed. The same seed gives the same bytes on every machine. llama-3-8b takes 5.7 GB, llama-3-70b 39 GB.
Standard library only.
"""

import argparse
import hashlib
import json
import math
import pathlib
import random
import shutil
import struct
import sys

#        hidden, intermediate, layers, heads
SHAPES = {"tiny": (256, 512, 6, 4), "llama-3-8b": (4096, 14336, 32, 32), "llama-3-70b": (8192, 28672, 80, 64)}
VOCABULARY, TINY_VOCABULARY, KV_HEADS = 128_256, 512, 8
BLOCK, NESTED_BLOCK = 64, 256
PIECE = 1 << 24
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]


def config(shape, layers, bf16=False):
    hidden, intermediate, all_layers, heads = SHAPES[shape]
    made = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "vocab_size": TINY_VOCABULARY if shape == "tiny" else VOCABULARY, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers or all_layers, "num_attention_heads": heads,
        "num_key_value_heads": min(KV_HEADS, heads), "head_dim": hidden // heads, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
        },
    }
    if bf16:
        del made["quantization_config"]
    return made


def bytes_of(seed, name, count):
    """Random bytes of one tensor, piece by piece."""
    stream = random.Random(f"{seed} {name}")
    while count:
        piece = min(count, PIECE)
        yield stream.randbytes(piece)
        count -= piece


def bf16_of(seed, name, values):
    """Uniform values of a standard deviation of 0.02, of 256 that bf16 has."""
    spread = 0.02 * math.sqrt(3)
    table = [struct.pack("<f", spread * (i - 127.5) / 127.5)[2:] for i in range(256)]
    low, high = bytes(pair[0] for pair in table), bytes(pair[1] for pair in table)
    for piece in bytes_of(seed, name, values):
        out = bytearray(2 * len(piece))
        out[0::2], out[1::2] = piece.translate(low), piece.translate(high)
        yield bytes(out)


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def dense(seed, name, shape):
    count = math.prod(shape)
    if "norm" in name:
        return [(name, "BF16", shape, lambda: [struct.pack("<f", 1.0)[2:] * count])]
    return [(name, "BF16", shape, lambda: bf16_of(seed, name, count))]


def matrices(c):
    """Rows and columns of the linear layers of a block, by the ends of their names."""
    h, i, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["head_dim"]
    return {"self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (i, h), "mlp.up_proj": (i, h), "mlp.down_proj": (h, i)}


def linear(seed, name, rows, columns):
    blocks = rows * columns // BLOCK
    nested = -(-blocks // NESTED_BLOCK)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": [rows, columns],
             "nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.035}
    text = json.dumps(state).encode().ljust(256)
    codes = rows * columns // 2
    # Scales from 0.025 to 0.045.
    parts = [
        ("", "U8", [codes, 1], lambda: bytes_of(seed, name, codes)),
        (".absmax", "U8", [blocks], lambda: bytes_of(seed, name + ".absmax", blocks)),
        (".nested_absmax", "F32", [nested], lambda: [floats([0.01] * nested)]),
        (".nested_quant_map", "F32", [256], lambda: [floats([(i - 127.5) / 127.5 for i in range(256)])]),
        (".quant_map", "F32", [16], lambda: [floats(NF4)]),
        (".quant_state.bitsandbytes__nf4", "U8", [256], lambda: [text]),
    ]
    return [(name + suffix, dtype, shape, make) for suffix, dtype, shape, make in parts]


def shards(c, seed):
    """The tensors of each file: one of a layer, and one of all else."""
    h = c["hidden_size"]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        tensors = []
        for name, shape in matrices(c).items():
            name = f"{at}{name}.weight"
            tensors += linear(seed, name, *shape) if "quantization_config" in c else dense(seed, name, list(shape))
        for name in ["input_layernorm", "post_attention_layernorm"]:
            tensors += dense(seed, f"{at}{name}.weight", [h])
        yield tensors
    yield (dense(seed, "model.embed_tokens.weight", [c["vocab_size"], h]) + dense(seed, "model.norm.weight", [h])
           + dense(seed, "lm_head.weight", [c["vocab_size"], h]))


SIZES = {"U8": 1, "BF16": 2, "F32": 4}


def size(tensor):
    return math.prod(tensor[2]) * SIZES[tensor[1]]


def write_shard(path, tensors):
    # Large elements first: every tensor begins at a multiple of its element's size.
    tensors = sorted(tensors, key=lambda tensor: -SIZES[tensor[1]])
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, _ in tensors:
        end = begin + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        def put(piece):
            file.write(piece)
            digest.update(piece)
        put(struct.pack("<Q", len(text)) + text)
        for _, _, _, make in tensors:
            for piece in make():
                put(piece)
    return digest.hexdigest()


def make(shape, directory, layers=None, seed=1, bf16=False):
    """Writes the checkpoint; returns its size in bytes."""
    c = config(shape, layers, bf16)
    files = list(shards(c, seed))
    total = sum(size(tensor) for tensors in files for tensor in tensors)
    directory.mkdir(parents=True)
    free = shutil.disk_usage(directory).free
    if total > free:
        directory.rmdir()
        sys.exit(f"{directory}: {total / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; give --layers")
    sums, index = {}, {}
    for number, tensors in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        sums[name] = write_shard(directory / name, tensors)
        index.update({tensor[0]: name for tensor in tensors})
    texts = {"config.json": c, "random.json": {"shape": shape, "layers": c["num_hidden_layers"], "seed": seed},
             "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": index}}
    for name, value in texts.items():
        text = json.dumps(value, indent=1).encode()
        (directory / name).write_bytes(text)
        sums[name] = hashlib.sha256(text).hexdigest()
    (directory / "SHA256SUMS").write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    return total


def sum_of(directory):
    """One hash of all of it: that of SHA256SUMS."""
    return hashlib.sha256((directory / "SHA256SUMS").read_bytes()).hexdigest()


def verify(directory):
    """Ends with an error where a file is not what was written, or the first tensor not what the seed makes."""
    for line in (directory / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split("  ", 1)
        with open(directory / name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            sys.exit(f"{directory / name}: found SHA-256 {found}, expected {expected}: make it again")
    made = json.loads((directory / "random.json").read_text())
    c = json.loads((directory / "config.json").read_text())
    tensors = sorted(next(shards(c, made["seed"])), key=lambda tensor: -SIZES[tensor[1]])
    with open(directory / f"model-00001-of-{made['layers'] + 1:05}.safetensors", "rb") as file:
        file.seek(struct.unpack("<Q", file.read(8))[0], 1)
        for name, _, _, make_tensor in tensors:
            for piece in make_tensor():
                if file.read(len(piece)) != piece:
                    sys.exit(f"{directory}: tensor {name} is not what seed {made['seed']} makes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", choices=list(SHAPES))
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="the linear layers in bf16 instead of NF4")
    parser.add_argument("--verify", action="store_true")
    args = parser.parse_args()
    if args.verify:
        verify(args.directory)
    elif args.shape is None:
        parser.error(f"give a shape: {', '.join(SHAPES)}")
    elif args.directory.exists():
        parser.error(f"{args.directory}: is there already; choose another directory")
    elif args.layers is not None and not 1 <= args.layers <= SHAPES[args.shape][2]:
        parser.error(f"--layers: found {args.layers}, expected a number from 1 to {SHAPES[args.shape][2]}")
    else:
        total = make(args.shape, args.directory, args.layers, args.seed, args.bf16)
        print(f"{total / 1e9:.2f} GB in {args.directory}")
    print(f"SHA-256 of SHA256SUMS: {sum_of(args.directory)}")


if __name__ == "__main__":
    main()
