"""An engine in Python: ctypes over numpy arrays (emulated library) or torch tensors (on a GPU).

    python engine.py P/lib/libqlora_kernels.so tests/golden/nf4.safetensors

Computes Y = X deq(W)^T + bf16(scale X A^T) B^T from bitsandbytes' bytes and checks it against numpy in double precision; then
trains the pair A, B (train.py). Prints `ok` and the largest error as a share of its bound, and how far the loss fell, or ends with
status 1. kernels.py is the C interface.
"""

import ctypes
import json
import sys
from ctypes import pointer

import numpy as np
from checks import bf16, share, to_f64
from kernels import Kernels, Linear, Lora, Nf4, Segment, memory, sized
from train import train


def read(path, names):
    data = open(path, "rb").read()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    types = {"U8": np.uint8, "F32": np.float32, "BF16": np.uint16}
    found = []
    for name in names:
        first, last = header[name]["data_offsets"]
        values = np.frombuffer(data[start + first:start + last], types[header[name]["dtype"]])
        found.append(values.reshape(header[name]["shape"]))
    return found


def main(library_path, weights_path):
    kernels = Kernels(library_path)
    device = memory(kernels)

    codes, absmax, nested, nested_map, offset, expected_weight = read(weights_path, [
        "up.b64.codes", "up.b64.nested.codes", "up.b64.nested.absmax", "dynamic_map_signed", "up.b64.nested.offset",
        "up.b64.nested.dequantized_bf16"])  # the last is bitsandbytes' own: the check's weight
    (n, k), r, scale = expected_weight.shape, 8, 2.0
    random = np.random.default_rng(0)
    a, b = bf16(random, (r, k), 1 / 16), bf16(random, (n, r), 1 / 16)
    parts = [device.upload(array) for array in (codes, absmax, nested, nested_map, offset, a, b)]
    transposed = device.upload(np.zeros_like(absmax))
    address = [device.address(part) for part in parts]
    kernels.qk_absmax_transpose(address[1], device.address(transposed), n, k // 64, device.stream)
    weight = sized(Nf4, layout=1, n=n, k=k, block_size=64, codes=address[0], absmax_codes=device.address(transposed),
                   nested_absmax=address[2], nested_map=address[3], offset=address[4])
    lora = sized(Lora, r=r, scale=scale, num_adapters=1, a=address[5], b=address[6])

    for m in (1, 24):
        x = bf16(random, (m, k), 1)
        device_x = device.upload(x)
        device_s, device_y = device.upload(np.zeros((m, r), np.uint16)), device.upload(np.zeros((m, n), np.uint16))
        segment = sized(Segment, n=n, nf4=pointer(weight), lora=pointer(lora), y=device.address(device_y), ldy=n)
        linear = sized(Linear, num_segments=1, m=m, k=k, x=device.address(device_x), ldx=k, segments=pointer(segment))
        columns = ctypes.c_int64()
        kernels.qk_lora_columns(linear, columns)
        if columns.value != r:
            sys.exit(f"python engine: S has {columns.value} columns, expected {r}")
        kernels.qk_lora_down(linear, device.address(device_s), device.stream)
        linear.s = device.address(device_s)
        kernels.qk_linear_forward(linear, None, 0, device.stream)
        s, y = device.download(device_s), device.download(device_y)
        down = share(to_f64(s), to_f64(x) * scale, to_f64(a))
        error = max(down, share(to_f64(y), to_f64(x), to_f64(expected_weight), (to_f64(s), to_f64(b))))
        verdict = "ok" if error <= 1 else "WRONG"
        print(f"{verdict} python engine: M {m}, N {n}, K {k}, r {r}: largest error {error:.3f} of its bound")
        if not error <= 1:
            sys.exit(1)
    if not train(kernels, device, weight, expected_weight):
        sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: engine.py LIBRARY.so FILE.safetensors")
    main(*sys.argv[1:])
