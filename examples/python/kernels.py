"""The part of the C interface that the engine uses, as ctypes structs and functions; and its memory."""

import ctypes
import sys

import numpy as np

u32, i64, f32, f64 = ctypes.c_uint32, ctypes.c_int64, ctypes.c_float, ctypes.c_double
pointer, size = ctypes.c_void_p, ctypes.c_size_t


class Nf4(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("layout", u32), ("n", i64), ("k", i64), ("block_size", u32), ("reserved", u32),
                ("codes", pointer), ("absmax_codes", pointer), ("absmax", pointer), ("nested_absmax", pointer),
                ("nested_map", pointer), ("offset", pointer)]


class Lora(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("r", u32), ("scale", f32), ("num_adapters", u32), ("a", pointer), ("b", pointer),
                ("adapter_index", pointer), ("scales", pointer)]


class Segment(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("reserved", u32), ("n", i64), ("nf4", ctypes.POINTER(Nf4)), ("dense", pointer),
                ("lora", ctypes.POINTER(Lora)), ("bias", pointer), ("y", pointer), ("ldy", i64)]


class Linear(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("num_segments", u32), ("m", i64), ("k", i64), ("x", pointer), ("ldx", i64),
                ("segments", ctypes.POINTER(Segment)), ("s", pointer), ("dropout", pointer)]


class SegmentBackward(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("reserved", u32), ("n", i64), ("nf4", ctypes.POINTER(Nf4)), ("dense", pointer),
                ("lora", ctypes.POINTER(Lora)), ("dy", pointer), ("lddy", i64), ("da", pointer), ("db", pointer)]


class LinearBackward(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("num_segments", u32), ("m", i64), ("k", i64), ("x", pointer), ("ldx", i64),
                ("dx", pointer), ("lddx", i64), ("accumulate", u32), ("reserved", u32),
                ("segments", ctypes.POINTER(SegmentBackward)), ("s", pointer), ("t", pointer), ("dropout", pointer)]


class AdamwTensor(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("rate", u32), ("n", i64), ("value", pointer), ("working", pointer), ("gradient", pointer),
                ("m", pointer), ("v", pointer), ("m_absmax", pointer), ("v_absmax", pointer)]


class AdamwRate(ctypes.Structure):
    _fields_ = [(name, f32) for name in ("decay", "step_size", "root", "beta1", "rest1", "beta2", "rest2", "epsilon")]


class GradientState(ctypes.Structure):
    _fields_ = [("norm", f64), ("scale", f32), ("tensor", ctypes.c_int32)]


class Adamw(ctypes.Structure):
    _fields_ = [("struct_size", u32), ("num_tensors", u32), ("tensors", ctypes.POINTER(AdamwTensor)), ("table", pointer),
                ("rates", pointer), ("num_rates", u32), ("reserved", u32), ("gradient_state", pointer)]


def sized(struct, **fields):
    return struct(struct_size=ctypes.sizeof(struct), **fields)


# Functions that return a status, and what they take. A struct is passed as it is: ctypes takes its address.
LINEAR, BACKWARD, ADAMW = (ctypes.POINTER(struct) for struct in (Linear, LinearBackward, Adamw))
TENSORS, SIZE = ctypes.POINTER(AdamwTensor), ctypes.POINTER(size)
FUNCTIONS = {
    "qk_absmax_transpose": [pointer, pointer, i64, i64, pointer],
    "qk_lora_columns": [LINEAR, ctypes.POINTER(i64)],
    "qk_lora_down": [LINEAR, pointer, pointer],
    "qk_linear_forward": [LINEAR, pointer, size, pointer],
    "qk_lora_dy_b": [BACKWARD, pointer, pointer],
    "qk_linear_dx": [BACKWARD, pointer, size, pointer],
    "qk_lora_gradients_workspace_size": [BACKWARD, SIZE],
    "qk_lora_gradients": [BACKWARD, pointer, size, pointer],
    "qk_adamw_table_size": [TENSORS, u32, SIZE],
    "qk_adamw_table": [TENSORS, u32, pointer, size],
    "qk_adamw_rate_of": [f64, f64, f64, f64, f64, ctypes.c_uint64, ctypes.POINTER(AdamwRate)],
    "qk_gradient_norm_workspace_size": [ADAMW, SIZE],
    "qk_gradient_norm": [ADAMW, f64, pointer, pointer, size, pointer],
    "qk_adamw_update": [ADAMW, pointer],
}


class Kernels:
    """The library. `kernels.qk_…(…)` ends the program with the name of a status that is not 0."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.qk_status_name.restype = ctypes.c_char_p
        self.library.qk_abi_version.restype = u32
        if self.library.qk_abi_version() != 3:
            sys.exit("python engine: the library has another version of the interface")
        for name, arguments in FUNCTIONS.items():
            getattr(self.library, name).argtypes = arguments

    def __getattr__(self, name):
        if name not in FUNCTIONS:
            raise AttributeError(name)

        def call(*arguments):
            status = getattr(self.library, name)(*arguments)
            if status != 0:
                sys.exit(f"python engine: {name}: {self.library.qk_status_name(status).decode()} ({status})")

        return call


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

    def replace(self, array, values):
        array[...] = values


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
        array = tensor.cpu().numpy()
        return array.view(np.uint16) if array.dtype == np.int16 else array

    def replace(self, tensor, values):
        signed = values.view(np.int16) if values.dtype == np.uint16 else values
        tensor.copy_(self.torch.from_numpy(signed))


def memory(kernels):
    if hasattr(kernels.library, "qk_emulation_message"):
        return Host()
    try:
        import torch
    except ImportError:
        sys.exit("python engine: this library needs a GPU, whose memory comes from torch: pip install torch")
    if not torch.cuda.is_available():
        sys.exit("python engine: this library needs a GPU; the emulated one does not")
    return Gpu(torch)
