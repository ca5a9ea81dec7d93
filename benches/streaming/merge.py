#!/usr/bin/env python3
"""`merge` of a checkpoint with random weights of a large model's shape: its memory beside its bound, and its numbers.

    python3 benches/streaming/merge.py llama-3-70b SCRATCH [--layers 8] [--bf16-layers 4]

Makes the checkpoint in NF4 with checkpoint.py, a random adapter on all linear layers of it, and merges: into the dequantized
NF4 weights; then, for a checkpoint in bf16 of --bf16-layers layers, into these as they are, and into NF4 that they are
quantized to (`--base nf4`). Measured of each: seconds, bytes read and written, and the most anonymous memory of the process
(RssAnon, every 5 ms) beside the bound that is computed here from the shapes: the adapter in f32, the tensor that takes most,
and 32 MiB. A linear weight takes 6 bytes an element (f32 and bf16 at once), a tensor that stays as it is 2. The process may
not take more than the bound and --slack: RLIMIT_DATA, which the kernel enforces. What the program
says before it begins that it takes at most is held against the memory too.

Checked with numpy: rows of every linear weight of the first and the last layer against `W + scale · B · A` in f64, within half
a unit of bf16 and the rounding of the sum in f32; all bytes of the tensors that stay. With `--base nf4`, W is what `quantize`
writes. Ends with an error where anything differs or more was held. Writes records/merge-<shape>-<layers>.json beside this file;
what was made is deleted. Needs numpy.
"""

import argparse
import datetime
import json
import math
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import time

import numpy

import checkpoint
from run import ROOT, anonymous, machine

HERE = pathlib.Path(__file__).parent
RANK, ALPHA = 16, 32
OVERHEAD = 32 << 20
ROWS = 32
PIECE = 1 << 26
PREFIX = "base_model.model."


def make_adapter(c, directory, seed):
    """A and B of all linear layers, uniform with a standard deviation of 0.02, as bf16; returns their bytes in f32."""
    tensors = []
    for layer in range(c["num_hidden_layers"]):
        for name, (rows, columns) in checkpoint.matrices(c).items():
            at = f"{PREFIX}model.layers.{layer}.{name}"
            tensors += checkpoint.dense(seed, f"{at}.lora_A.weight", [RANK, columns])
            tensors += checkpoint.dense(seed, f"{at}.lora_B.weight", [rows, RANK])
    directory.mkdir()
    checkpoint.write_shard(directory / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none",
              "target_modules": sorted({name.rsplit(".", 1)[1] for name in checkpoint.matrices(c)})}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return sum(4 * math.prod(tensor[2]) for tensor in tensors)


def bound(c, adapter_bytes):
    """The adapter, the tensor that takes most, and what else a process has."""
    largest = max(6 * rows * columns for rows, columns in checkpoint.matrices(c).values())
    return adapter_bytes + max(largest, 2 * c["vocab_size"] * c["hidden_size"]) + OVERHEAD


class Tensors:
    """The tensors of a directory, read by rows."""

    def __init__(self, directory):
        self.places = {}
        for path in sorted(directory.glob("*.safetensors")):
            with open(path, "rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, info in header.items():
                self.places[name] = (path, 8 + length + info["data_offsets"][0], info)

    def bytes(self, name, begin=0, count=None):
        path, offset, info = self.places[name]
        first, last = info["data_offsets"]
        with open(path, "rb") as file:
            file.seek(offset + begin)
            return file.read(last - first - begin if count is None else count)

    def size(self, name):
        first, last = self.places[name][2]["data_offsets"]
        return last - first

    def floats(self, name):
        kinds = {"F32": numpy.float32, "BF16": numpy.uint16}
        return widened(numpy.frombuffer(self.bytes(name), kinds[self.places[name][2]["dtype"]])).reshape(self.places[name][2]["shape"])

    def rows(self, name, first, columns):
        """ROWS rows from `first` in f32, dequantized where they are in NF4."""
        count = ROWS * columns
        if f"{name}.absmax" not in self.places:
            return widened(numpy.frombuffer(self.bytes(name, 2 * first * columns, 2 * count), numpy.uint16)).reshape(ROWS, columns)
        codes = numpy.frombuffer(self.bytes(name, first * columns // 2, count // 2), numpy.uint8)
        nibbles = numpy.stack([codes >> 4, codes & 15], axis=1).reshape(-1)
        state = json.loads(self.bytes(f"{name}.quant_state.bitsandbytes__nf4"))
        block = first * columns // state["blocksize"]
        scales = numpy.frombuffer(self.bytes(f"{name}.absmax", block, count // state["blocksize"]), numpy.uint8)
        nested = self.floats(f"{name}.nested_absmax")[(block + numpy.arange(len(scales))) // state["nested_blocksize"]]
        absmax = self.floats(f"{name}.nested_quant_map")[scales] * nested + numpy.float32(state["nested_offset"])
        return (self.floats(f"{name}.quant_map")[nibbles].reshape(-1, state["blocksize"]) * absmax[:, None]).reshape(ROWS, columns)


def widened(values):
    return (values.astype(numpy.uint32) << 16).view(numpy.float32) if values.dtype == numpy.uint16 else values


def check(c, base, adapter, merged):
    """Ends with an error where the merged model is not the sum; returns how much was compared."""
    changed = elements = 0
    for layer in sorted({0, c["num_hidden_layers"] - 1}):
        for short, (rows, columns) in checkpoint.matrices(c).items():
            name = f"model.layers.{layer}.{short}"
            a, b = (adapter.floats(f"{PREFIX}{name}.lora_{half}.weight").astype(numpy.float64) for half in "AB")
            for first in (0, rows - ROWS):
                w = base.rows(f"{name}.weight", first, columns).astype(numpy.float64)
                found = merged.rows(f"{name}.weight", first, columns).astype(numpy.float64)
                own = b[first : first + ROWS]
                expected = w + ALPHA / RANK * (own @ a)
                sizes = numpy.abs(w) + ALPHA / RANK * (numpy.abs(own) @ numpy.abs(a))
                half_unit = 2.0 ** (numpy.floor(numpy.log2(numpy.maximum(numpy.abs(expected), 1e-300))) - 8)
                off = numpy.abs(found - expected) - half_unit - (RANK + 5) * 2.0**-24 * sizes
                if off.max() > 0:
                    sys.exit(f"{name}, rows from {first}: an element is {off.max()} further off than rounding explains")
                changed += int((found != w).sum())
                elements += found.size
    if changed < elements / 2:
        sys.exit(f"the adapter changed {changed} of {elements} elements")
    kept = [name for name in merged.places if "norm" in name or "layers" not in name]
    for name in kept:
        size = merged.size(name)
        for begin in range(0, size, PIECE):
            piece = min(PIECE, size - begin)
            if merged.bytes(name, begin, piece) != base.bytes(name, begin, piece):
                sys.exit(f"{name}: differs from the base")
    return {"elements_compared": elements, "elements_changed": changed, "tensors_kept": len(kept)}


class Merges:
    def __init__(self, args):
        self.args, self.merges = args, []

    def run(self, model, adapter, out, limit, *more):
        """The answer of `merge`, with its peak and its seconds."""
        line = [self.args.binary, "merge", "--json", "--model", model, "--adapter", adapter, "--output-dir", out, *more]
        said, begun, peak = self.args.scratch / "said", time.monotonic(), 0
        with open(said, "w") as err:
            process = subprocess.Popen([str(word) for word in line], stdout=subprocess.PIPE, stderr=err, text=True,
                                       preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.005)
        text, seconds = process.stdout.read(), time.monotonic() - begun
        if process.returncode != 0:
            sys.exit(f"{said.read_text()}\nended with {process.returncode}")
        return json.loads(text), peak, seconds

    def measured(self, name, model, adapter, c, adapter_bytes, base, *more):
        """One merge, checked; `base` holds the weights that the adapter is added to."""
        out, allowed = self.args.scratch / "merged", bound(c, adapter_bytes)
        answer, peak, seconds = self.run(model, adapter, out, allowed + self.args.slack, *more)
        read = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        record = {
            "what": name, "layers": c["num_hidden_layers"], "read_bytes": read, "written_bytes": answer["bytes"],
            "seconds": seconds, "gb_per_second": (read + answer["bytes"]) / seconds / 1e9, "changed": answer["changed"],
            "adapter_bytes": adapter_bytes, "bound_bytes": allowed, "said_bytes": answer["memory"]["bytes"],
            "anonymous_bytes": peak, "measured_over_bound": peak / allowed, "data_limit_bytes": allowed + self.args.slack,
            "checked": check(c, Tensors(base), Tensors(adapter), Tensors(out)),
        }
        shutil.rmtree(out)
        print(json.dumps(record, indent=1), flush=True)
        self.merges.append(record)

    def checkpoint(self, layers, bf16=False):
        """A checkpoint and an adapter for it."""
        args = self.args
        model, adapter = args.scratch / "model", args.scratch / "adapter"
        total = checkpoint.make(args.shape, model, layers, args.seed, bf16)
        c = json.loads((model / "config.json").read_text())
        print(f"{total / 1e9:.2f} GB made: {checkpoint.sum_of(model)}", flush=True)
        return model, adapter, c, make_adapter(c, adapter, args.seed)

    def remove(self):
        for name in ("model", "adapter", "quantized", "merged"):
            shutil.rmtree(self.args.scratch / name, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(checkpoint.SHAPES))
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("--layers", type=int, help="of the checkpoint in NF4 (default: all)")
    parser.add_argument("--bf16-layers", type=int, help="of the checkpoint in bf16 (default: --layers)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slack", type=int, default=256 << 20, help="bytes of RLIMIT_DATA beyond the bound: stacks, code")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/qlora-train")
    parser.add_argument("--note", help="a sentence for the record")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True)
    merges = Merges(args)
    try:
        model, adapter, c, size = merges.checkpoint(args.layers)
        merges.measured("NF4, dequantized", model, adapter, c, size, model)
        merges.remove()
        model, adapter, c, size = merges.checkpoint(args.bf16_layers or args.layers, bf16=True)
        merges.measured("bf16", model, adapter, c, size, model)
        quantized = args.scratch / "quantized"
        subprocess.run([str(args.binary), "quantize", "--model", str(model), "--output-dir", str(quantized)], check=True,
                       stdout=subprocess.DEVNULL)
        merges.measured("bf16, quantized to NF4 and dequantized", model, adapter, c, size, quantized, "--base", "nf4")
    finally:
        merges.remove()
    whole = checkpoint.config(args.shape, None)
    elements = whole["num_hidden_layers"] * sum(RANK * (rows + columns) for rows, columns in checkpoint.matrices(whole).values())
    record = {
        "shape": args.shape, "layers_of_the_model": checkpoint.SHAPES[args.shape][2], "seed": args.seed, "lora_r": RANK,
        "bound_bytes_of_the_whole_model": bound(whole, 4 * elements), "merges": merges.merges, "machine": machine(),
        "note": args.note, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    path = HERE / "records" / f"merge-{args.shape}-{merges.merges[0]['layers']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)
    for merge in merges.merges:
        if merge["anonymous_bytes"] > merge["bound_bytes"]:
            sys.exit(f"more was held than the bound: {merge['anonymous_bytes']} of {merge['bound_bytes']} bytes")
        if merge["anonymous_bytes"] > merge["said_bytes"]:
            sys.exit(f"more was held than was said: {merge['anonymous_bytes']} of {merge['said_bytes']} bytes")
    shutil.rmtree(args.scratch)


if __name__ == "__main__":
    main()
