"""An engine in Python: ctypes over numpy arrays (emulated library) or torch tensors (on a GPU).

    python engine.py P/lib/libqlora_kernels.so tests/golden/nf4.safetensors

Computes Y = X deq(W)^T + bf16(scale X A^T) B^T from bitsandbytes' bytes and checks it against numpy in double precision. Prints
`ok` and the largest error as a share of its bound, or ends with status 1.
"""

import ctypes
import json
import sys

import numpy as np

u32, i64, f32, pointer = ctypes.c_uint32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Nf4(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("layout", u32), ("n", i64), ("k", i64), ("block_size", u32), ("reserved", u32),
                ("codes", pointer), ("absmax_codes", pointer), ("absmax", pointer), ("nested_absmax", pointer),
                ("nested_code", pointer), ("offset", pointer)]


class Lora(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("r", u32), ("scale", f32), ("num_adapters", u32), ("a", pointer), ("b", pointer),
                ("adapter_index", pointer), ("scales", pointer)]


class Segment(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("reserved", u32), ("n", i64), ("nf4", ctypes.POINTER(Nf4)), ("dense", pointer),
                ("lora", ctypes.POINTER(Lora)), ("bias", pointer), ("y", pointer), ("ldy", i64)]


class Linear(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("num_segments", u32), ("m", i64), ("k", i64), ("x", pointer), ("ldx", i64),
                ("segments", ctypes.POINTER(Segment)), ("s", pointer), ("dropout", pointer)]


def sized(struct, **fields):
    return struct(struct_size=ctypes.sizeof(struct), **fields)


def load(path):
    library = ctypes.CDLL(path)
    library.qk_status_name.restype = ctypes.c_char_p
    library.qk_lora_columns.restype = i64
    library.qk_abi_version.restype = u32
    library.qk_absmax_transpose.argtypes = [pointer, pointer, i64, i64, pointer]
    library.qk_lora_down.argtypes = [ctypes.POINTER(Linear), pointer, pointer]
    library.qk_linear_forward.argtypes = [ctypes.POINTER(Linear), pointer, ctypes.c_size_t, pointer]
    if library.qk_abi_version() != 2:
        sys.exit("python engine: the library has another version of the interface")
    return library


class Host:
    """numpy memory, for the emulated library."""

    stream = None

    def upload(self, array):
        room = np.empty(array.nbytes + 16, np.uint8)
        start = -room.ctypes.data % 16
        room = room[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
        room[...] = array
        return room

    def address(self, array):
        return array.ctypes.data

    def download(self, array):
        return array.copy()


class Gpu:
    """torch memory and torch's current stream."""

    def __init__(self, torch):
        self.torch = torch
        self.stream = torch.cuda.current_stream().cuda_stream

    def upload(self, array):
        # numpy has no bf16: it travels as its 16 bits.
        signed = array.view(np.int16) if array.dtype == np.uint16 else array
        return self.torch.from_numpy(signed.copy()).cuda()

    def address(self, tensor):
        return tensor.data_ptr()

    def download(self, tensor):
        return tensor.cpu().numpy().view(np.uint16)


def memory(library):
    if hasattr(library, "qk_emulation_message"):
        return Host()
    try:
        import torch
    except ImportError:
        sys.exit("python engine: this library needs a GPU, whose memory comes from torch: pip install torch")
    if not torch.cuda.is_available():
        sys.exit("python engine: this library needs a GPU; the emulated one does not")
    return Gpu(torch)


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


def to_f64(bf16):
    return (bf16.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def bf16(random, shape, size):
    """Uniform in (-size, size), cut to bf16."""
    values = ((random.random(shape) * 2 - 1) * size).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def share(found, left, right, *more):
    """Largest |error| / bound of found = left right^T (+ ...): f32 sums in any order (2^-23 a term, as tensor cores cut), one
    rounding to bf16 (2^-8)."""
    pairs = [(left, right), *more]
    expected = sum(l @ r.T for l, r in pairs)
    size = sum(np.abs(l) @ np.abs(r).T for l, r in pairs)
    terms = sum(l.shape[1] for l, _ in pairs)
    shares = np.abs(to_f64(found) - expected) / (2.0**-8 * np.abs(expected) + terms * 2.0**-23 * size)
    return np.inf if np.isnan(shares).any() else shares.max()


def main(library_path, weights_path):
    library = load(library_path)
    device = memory(library)

    def check(status, what):
        if status != 0:
            sys.exit(f"python engine: {what}: {library.qk_status_name(status).decode()} ({status})")

    codes, absmax, nested, nested_code, offset, expected_weight = read(weights_path, [
        "up.b64.codes", "up.b64.nested.codes", "up.b64.nested.absmax", "dynamic_map_signed", "up.b64.nested.offset",
        "up.b64.nested.dequantised_bf16"])  # the last is bitsandbytes' own: the check's weight
    (n, k), r, scale = expected_weight.shape, 8, 2.0
    random = np.random.default_rng(0)
    a, b = bf16(random, (r, k), 1 / 16), bf16(random, (n, r), 1 / 16)
    parts = [device.upload(array) for array in (codes, absmax, nested, nested_code, offset, a, b)]
    transposed = device.upload(np.zeros_like(absmax))
    address = [device.address(part) for part in parts]
    check(library.qk_absmax_transpose(address[1], device.address(transposed), n, k // 64, device.stream), "qk_absmax_transpose")
    weight = sized(Nf4, layout=1, n=n, k=k, block_size=64, codes=address[0], absmax_codes=device.address(transposed),
                   nested_absmax=address[2], nested_code=address[3], offset=address[4])
    lora = sized(Lora, r=r, scale=scale, num_adapters=1, a=address[5], b=address[6])

    for m in (1, 24):
        x = bf16(random, (m, k), 1)
        device_x = device.upload(x)
        device_s, device_y = device.upload(np.zeros((m, r), np.uint16)), device.upload(np.zeros((m, n), np.uint16))
        segment = sized(Segment, n=n, nf4=ctypes.pointer(weight), lora=ctypes.pointer(lora), y=device.address(device_y), ldy=n)
        linear = sized(Linear, num_segments=1, m=m, k=k, x=device.address(device_x), ldx=k, segments=ctypes.pointer(segment))
        if library.qk_lora_columns(ctypes.byref(linear)) != r:
            sys.exit("python engine: qk_lora_columns")
        check(library.qk_lora_down(linear, device.address(device_s), device.stream), "qk_lora_down")
        linear.s = device.address(device_s)
        check(library.qk_linear_forward(linear, None, 0, device.stream), "qk_linear_forward")
        s, y = device.download(device_s), device.download(device_y)
        down = share(s, to_f64(x) * scale, to_f64(a))
        error = max(down, share(y, to_f64(x), to_f64(expected_weight), (to_f64(s), to_f64(b))))
        verdict = "ok" if error <= 1 else "WRONG"
        print(f"{verdict} python engine: M {m}, N {n}, K {k}, r {r}: largest error {error:.3f} of its bound")
        if not error <= 1:
            sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: engine.py LIBRARY.so FILE.safetensors")
    main(*sys.argv[1:])
