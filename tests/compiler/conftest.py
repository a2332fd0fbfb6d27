"""Small integer networks with random full-range weights, and an executor that interprets regions."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from seriatim.compiler import ir
from seriatim.formats import Format

try:
    import seriatim.algo.ops  # noqa: F401  registers torch.ops.seriatim
except ImportError:
    import torch_ops_stub  # noqa: F401

Q = torch.ops.seriatim
IMAGE = "uint8"


def weights(rng, fmt: str, shape) -> torch.Tensor:
    """Full-range random values of a weight format."""
    fmt = Format.parse(fmt)
    return torch.tensor(fmt.value(rng.integers(fmt.lo, fmt.hi + 1, shape)), dtype=torch.int32)


def spread(rng, channels, spread_of_acc: float, lo: int, hi: int, shift: int = 24):
    """m and b that spread accumulators of a given standard deviation over lo..hi, differently for each channel."""
    m = (hi - lo) / (4 * spread_of_acc) * 2**shift * rng.uniform(0.5, 1.5, channels)
    b = ((lo + hi) / 2 + rng.uniform(-0.2, 0.2, channels) * (hi - lo)) * 2**shift
    return torch.tensor(np.maximum(m, 1).astype(np.int32)), torch.tensor(b.astype(np.int64))


class Conv(nn.Module):
    """Convolution with requantisation to `out`, and with a residual in `res` format where one is given."""

    def __init__(self, rng, name, cin, cout, kernel=3, stride=1, padding=None, x="uint8", w="int4", out="uint8", res=None,
                 dilation=1, groups=1, m2=None, relu=False):
        super().__init__()
        self.name, self.x, self.w_format, self.res, self.groups = name, x, w, res, groups
        self.stride, self.dilation = [stride] * 2, [dilation] * 2
        pad = dilation * (kernel - 1) // 2 if padding is None else padding
        self.padding = [pad] * 4 if isinstance(pad, int) else list(pad)
        self.register_buffer("w", weights(rng, w, (cout, cin // groups, kernel, kernel)))
        if out == "int32":
            self.lo, self.hi, self.shift = *ir.INT32, 0
            m, b = torch.ones(cout, dtype=torch.int32), torch.zeros(cout, dtype=torch.int64)
        else:
            out, self.shift = Format.parse(out), 24
            self.lo, self.hi = 0 if relu else out.lo, out.hi
            read = Format.parse(x.partition(":")[2] or x)
            deviation = (cin // groups) ** 0.5 * kernel * (1 << read.bits) * 0.3 * float(self.w.abs().float().mean() + 0.1)
            m, b = spread(rng, cout, deviation, self.lo, self.hi)
        self.m2 = (1 << 23) if m2 is None else m2
        self.register_buffer("m", m)
        self.register_buffer("b", b)

    def forward(self, x, res=None):
        acc = Q.qconv2d(x, self.w, self.stride, self.padding, self.dilation, self.groups, self.x, self.w_format)
        if res is None:
            return Q.requant(acc, self.m, self.b, self.shift, self.lo, self.hi, self.name)
        return Q.requant_add(acc, res, self.m, self.b, self.m2, self.shift, self.lo, self.hi, self.res, self.name)


class MaxPool(nn.Module):
    def __init__(self, name, fmt, kernel=3, stride=2, padding=1):
        super().__init__()
        self.arguments = [kernel] * 2, [stride] * 2, [padding] * 4, [1, 1], fmt, name

    def forward(self, x):
        return Q.qmaxpool2d(x, *self.arguments)


class AveragePool(nn.Module):
    """Average of whole images, or of windows with the positions' own divisors."""

    def __init__(self, name, channels, kernel, out, x, stride=None, padding=0, positions=None):
        super().__init__()
        self.name, self.x, self.kernel, self.out = name, x, [kernel] * 2, Format.parse(out)
        self.stride, self.padding = [stride or kernel] * 2, [padding] * 4
        if positions is None:
            m = torch.full((channels,), round((1 << 20) / kernel**2), dtype=torch.int32)
        else:
            m = torch.tensor(np.round((1 << 20) / positions).astype(np.int32)[None])
        self.register_buffer("m", m)
        self.register_buffer("b", torch.full(m.shape, 1 << 19, dtype=torch.int64))

    def forward(self, x):
        acc = Q.qsumpool2d(x, self.kernel, self.stride, self.padding, self.x)
        return Q.requant(acc, self.m, self.b, 20, self.out.lo, self.out.hi, self.name)


class Block(nn.Module):
    """Residual block with a wide stream of `bits` planes and convolutions that read its top `a` planes."""

    def __init__(self, rng, name, cin, cout, stride, a, w, bits):
        super().__init__()
        stream, narrow = f"uint{bits}", f"uint{a}"
        self.conv1 = Conv(rng, f"{name}.conv1", cin, cout, 3, stride, x=f"{stream}:{narrow}", w=w, out=narrow)
        self.down = None
        if stride != 1 or cin != cout:
            self.down = Conv(rng, f"{name}.down", cin, cout, 1, stride, x=f"{stream}:{narrow}", w=w, out=stream)
        self.conv2 = Conv(rng, f"{name}.conv2", cout, cout, 3, 1, x=narrow, w=w, out=stream, res=stream)

    def forward(self, x):
        return self.conv2(self.conv1(x), self.down(x) if self.down else x)


class ResNet(nn.Module):
    """ResNet-18 in shape where `widths` and `blocks` are left as they are."""

    def __init__(self, rng, image=64, widths=(64, 128, 256, 512), blocks=2, classes=10, a=4, w="int4", bits=8, head="flatten"):
        super().__init__()
        stream = f"uint{bits}"
        self.stem = Conv(rng, "stem", 3, widths[0], 7, 2, 3, x="uint8:uint8", w=w, out=stream)
        self.pool = MaxPool("pool", stream)
        layers, cin = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(rng, f"layer{stage + 1}.{block}", cin, width, 2 if stage and not block else 1, a, w, bits))
                cin = width
        self.layers = nn.Sequential(*layers)
        self.average = AveragePool("average", cin, image // (4 << len(widths) - 1), f"uint{a}", stream)
        self.fc = Conv(rng, "fc", cin, classes, 1, x=f"uint{a}", w=w, out="int32")

    def forward(self, x):
        return self.fc(self.average(self.layers(self.pool(self.stem(x)))))


def generate(region: ir.Region, config) -> bytes:
    """Stands for the code generator: the program is the region itself."""
    return pickle.dumps(region)


def execute(blob: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Stands for the machine: interprets the region."""
    region = pickle.loads(blob)
    tensors = ir.interpret(region, {tensor.name: codes for tensor, codes in zip(region.inputs, inputs)})
    return [tensors[tensor.name] for tensor in region.outputs]


@pytest.fixture
def rng(request):
    seed = 20240601
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def nets():
    return SimpleNamespace(
        Conv=Conv, MaxPool=MaxPool, AveragePool=AveragePool, Block=Block, ResNet=ResNet, weights=weights, generate=generate,
        execute=execute, Q=Q,
    )
