"""Training steps of one layer: forward, squared error, gradients of X, A and B, and LoRA+ AdamW, all but the error by the kernels.
The target is the same layer with another pair, the teacher's, so a pair that learns can reach it."""

import ctypes
from ctypes import pointer

import numpy as np
from checks import bf16, share, to_bf16, to_f64
from kernels import Adamw, AdamwRate, AdamwTensor, GradientState, Linear, LinearBackward, Lora, Segment, SegmentBackward, sized

STEPS, M, R, SCALE = 30, 24, 8, 2.0
RATE_A, RATIO = 1e-3, 16  # LoRA+: B learns faster than A
FALL = 10  # to less than a tenth


class Trainable:
    """A tensor in bf16, as the layer reads it, with an f32 master copy, a gradient and both moments."""

    def __init__(self, device, values):
        zeros = np.zeros(values.shape, np.float32)
        self.working = device.upload(values)
        self.value, self.gradient = device.upload(to_f64(values).astype(np.float32)), device.upload(zeros)
        self.moments = device.upload(zeros), device.upload(zeros)

    def struct(self, device, rate):
        m, v = map(device.address, self.moments)
        return sized(AdamwTensor, rate=rate, n=int(np.prod(self.value.shape)), value=device.address(self.value),
                     working=device.address(self.working), gradient=device.address(self.gradient), m=m, v=v)


def size_of(query, *arguments):
    size = ctypes.c_size_t()
    query(*arguments, size)
    return size.value


class Optimizer:
    """AdamW over all tensors in one launch, each with a learning rate of its own."""

    def __init__(self, kernels, device, trainables, learning_rates):
        self.kernels, self.device, self.learning_rates, self.steps = kernels, device, learning_rates, 0
        count = len(trainables)
        self.tensors = (AdamwTensor * count)(*[t.struct(device, i) for i, t in enumerate(trainables)])
        table = np.zeros(size_of(kernels.qk_adamw_table_size, self.tensors, count), np.uint8)
        kernels.qk_adamw_table(self.tensors, count, table.ctypes.data, table.nbytes)
        self.table = device.upload(table)
        self.rates = device.upload(np.zeros(count * ctypes.sizeof(AdamwRate), np.uint8))
        self.state = device.upload(np.zeros(ctypes.sizeof(GradientState), np.uint8))
        self.adamw = sized(Adamw, num_tensors=count, tensors=self.tensors, table=device.address(self.table),
                           rates=device.address(self.rates), num_rates=count, gradient_state=device.address(self.state))
        self.workspace = device.upload(np.zeros(size_of(kernels.qk_gradient_norm_workspace_size, self.adamw), np.uint8))

    def step(self):
        self.steps += 1
        rates = (AdamwRate * len(self.learning_rates))()
        for rate, learning_rate in zip(rates, self.learning_rates):
            self.kernels.qk_adamw_rate_of(learning_rate, 0.9, 0.999, 1e-8, 0, self.steps, rate)
        self.device.replace(self.rates, np.frombuffer(rates, np.uint8).copy())
        workspace, bytes = self.device.address(self.workspace), len(self.workspace)
        self.kernels.qk_gradient_norm(self.adamw, 1, self.device.address(self.state), workspace, bytes, self.device.stream)
        self.kernels.qk_adamw_update(self.adamw, self.device.stream)  # scales by what the norm says, on the device

    def found(self):
        return GradientState.from_buffer_copy(self.device.download(self.state).tobytes())


def train(kernels, device, weight, weight_values):
    """Prints how it went; whether all is well. `weight_values`: the weight as bf16 [N, K], for the checks."""
    (n, k), random = weight_values.shape, np.random.default_rng(1)
    stream = device.stream
    x = bf16(random, (M, k), 1)
    teacher = [device.upload(bf16(random, shape, 1 / 16)) for shape in ((R, k), (n, R))]
    # The pair that learns begins with B = 0.
    a, b = Trainable(device, bf16(random, (R, k), 1 / 16)), Trainable(device, np.zeros((n, R), np.uint16))
    shapes = {"s": (M, R), "t": (M, R), "y": (M, n), "dy": (M, n), "dx": (M, k)}
    buffers = {name: device.upload(np.zeros(shape, np.uint16)) for name, shape in shapes.items()}
    at = {name: device.address(buffer) for name, buffer in buffers.items()}
    device_x = device.upload(x)

    def forward(pair):
        lora = sized(Lora, r=R, scale=SCALE, num_adapters=1, a=device.address(pair[0]), b=device.address(pair[1]))
        segment = sized(Segment, n=n, nf4=pointer(weight), lora=pointer(lora), y=at["y"], ldy=n)
        linear = sized(Linear, num_segments=1, m=M, k=k, x=device.address(device_x), ldx=k, segments=pointer(segment), s=at["s"])
        kernels.qk_lora_down(linear, at["s"], stream)
        kernels.qk_linear_forward(linear, None, 0, stream)
        return to_f64(device.download(buffers["y"]))

    lora = sized(Lora, r=R, scale=SCALE, num_adapters=1, a=device.address(a.working), b=device.address(b.working))
    segment = sized(SegmentBackward, n=n, nf4=pointer(weight), lora=pointer(lora), dy=at["dy"], lddy=n,
                    da=device.address(a.gradient), db=device.address(b.gradient))
    backward = sized(LinearBackward, num_segments=1, m=M, k=k, x=device.address(device_x), ldx=k, dx=at["dx"], lddx=k,
                     segments=pointer(segment), s=at["s"], t=at["t"])
    bytes = size_of(kernels.qk_lora_gradients_workspace_size, backward)
    workspace = device.upload(np.zeros(bytes + 16, np.uint8))  # it may ask for none
    optimizer = Optimizer(kernels, device, [a, b], [RATE_A, RATE_A * RATIO])

    target = forward(teacher)
    losses = []
    for step in range(1, STEPS + 1):
        error = forward([a.working, b.working]) - target
        losses.append(np.mean(error**2))
        if step == 1 or step % 10 == 0:
            print(f"   python engine: step {step:2}, loss {losses[-1]:.6f}")
        device.replace(buffers["dy"], to_bf16(2 * error / error.size))
        for trainable in (a, b):
            device.replace(trainable.gradient, np.zeros(trainable.gradient.shape, np.float32))
        kernels.qk_lora_dy_b(backward, at["t"], stream)
        kernels.qk_linear_dx(backward, None, 0, stream)  # for the layer below, which there is not
        kernels.qk_lora_gradients(backward, device.address(workspace), bytes, stream)
        if step == STEPS:  # B is not zero any more
            s, t, dy, dx = (to_f64(device.download(buffers[name])) for name in ("s", "t", "dy", "dx"))
            a_values, b_values = (to_f64(device.download(trainable.working)) for trainable in (a, b))
            worst = max(
                share(t, dy * SCALE, b_values.T),
                share(dx, dy, to_f64(weight_values).T, (t, a_values.T)),
                share(device.download(a.gradient), t.T, to_f64(x).T, rounding=2.0**-24),
                share(device.download(b.gradient), dy.T, s.T, rounding=2.0**-24),
            )
        optimizer.step()

    print(f"{'ok' if worst <= 1 else 'WRONG'} python engine: T, dX, dA and dB: largest error {worst:.3f} of its bound")
    not_finite = optimizer.found().tensor
    if not_finite >= 0:
        print(f"   python engine: the gradient of tensor {not_finite} is not finite")
    learned = losses[-1] < losses[0] / FALL
    print(f"{'ok' if learned else 'WRONG'} python engine: {STEPS} steps, loss {losses[0]:.6f} to {losses[-1]:.6f}, 1/{FALL} of it asked for")
    return worst <= 1 and not_finite < 0 and learned
