"""Small integer networks with full-range random weights whose tensors use all of their codes, and a stand-in for the machine."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import seriatim.algo.ops  # noqa: F401  registers torch.ops.seriatim
from seriatim.compiler import ir
from seriatim.formats import Format

Q = torch.ops.seriatim
SHIFT = 20


class Layer(nn.Module):
    """Requantisation to codes `lo..hi`. The first call outside of export fits m and b, so that the codes are well spread."""

    def __init__(self, rng, name, channels, out, relu):
        super().__init__()
        self.rng, self.name, self.fitted = rng, name, False
        self.shift = 0 if out == "int32" else SHIFT
        fmt = None if out == "int32" else Format.parse(out)
        self.lo, self.hi = ir.INT32 if fmt is None else (0 if relu else fmt.lo, fmt.hi)
        self.register_buffer("m", torch.ones(channels, dtype=torch.int32))
        self.register_buffer("b", torch.zeros(channels, dtype=torch.int64))

    def fit(self, acc, residual=0.0):
        """Spread each channel's accumulators over lo..hi, a few of them beyond, each channel a little differently."""
        if self.fitted or self.shift == 0 or torch.compiler.is_exporting():
            return
        acc = acc.double().transpose(0, 1).flatten(1)
        spread, mean = acc.std(1).clamp(min=1) if acc.shape[1] > 1 else acc.abs()[:, 0] / 2 + 1, acc.mean(1)
        vary = torch.tensor(self.rng.uniform(0.7, 1.3, len(mean)))
        m = ((self.hi - self.lo + 1) / (5 * spread) * vary * 2**SHIFT).round().clamp(max=2**31 - 1)
        self.m.copy_(m.int())
        self.b.copy_(((self.hi + self.lo + 1) / 2 * vary * 2**SHIFT - m * mean * vary - residual).long())
        self.fitted = True


class Conv(Layer):
    """Convolution, and where `res` is a format, a residual in that format."""

    def __init__(self, rng, name, cin, cout, kernel=3, stride=1, padding=None, x="uint8", w="int4", out="uint8", res=None,
                 dilation=1, groups=1, relu=False):
        super().__init__(rng, name, cout, out, relu)
        self.x, self.w_format, self.res, self.groups = x, w, res, groups
        self.stride, self.dilation = [stride] * 2, [dilation] * 2
        pad = dilation * (kernel - 1) // 2 if padding is None else padding
        self.padding = [pad] * 4 if isinstance(pad, int) else list(pad)
        fmt = Format.parse(w)
        values = fmt.value(rng.integers(fmt.lo, fmt.hi + 1, (cout, cin // groups, kernel, kernel)))
        self.register_buffer("w", torch.tensor(values, dtype=torch.int32))
        self.m2 = 1 << SHIFT - 1

    def forward(self, x, res=None):
        acc = Q.qconv2d(x, self.w, self.stride, self.padding, self.dilation, self.groups, self.x, self.w_format)
        self.fit(acc, 0 if res is None else self.m2 * res.double().mean())
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
    """Average of windows from format `x` to `out`; `counts` (H, W) are the divisors where they differ by position."""

    def __init__(self, name, channels, kernel, x, out, stride=None, padding=0, counts=None):
        super().__init__()
        self.name, self.x, self.kernel, self.out = name, x, [kernel] * 2, Format.parse(out)
        self.stride, self.padding = [stride or kernel] * 2, [padding] * 4
        divisor = np.full(channels, kernel**2) if counts is None else counts[None]
        scale = (self.out.hi + 1) / (Format.parse(x.partition(":")[2] or x).hi + 1)
        self.register_buffer("m", torch.tensor(np.round((1 << SHIFT) * scale / divisor).astype(np.int32)))
        self.register_buffer("b", torch.full(self.m.shape, 1 << SHIFT - 1, dtype=torch.int64))

    def forward(self, x):
        acc = Q.qsumpool2d(x, self.kernel, self.stride, self.padding, self.x)
        return Q.requant(acc, self.m, self.b, SHIFT, self.out.lo, self.out.hi, self.name)


class Block(nn.Module):
    """Residual block with a wide stream of `bits` planes and convolutions that read its top `a` planes."""

    def __init__(self, rng, name, cin, cout, stride=1, a=4, w="int4", bits=8):
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
    """ResNet-18 where `widths` and `blocks` are left as they are."""

    def __init__(self, rng, image=64, widths=(64, 128, 256, 512), blocks=2, classes=10, a=4, w="int4", bits=8):
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
        self.average = AveragePool("average", cin, image // (4 << len(widths) - 1), stream, f"uint{a}")
        self.fc = Conv(rng, "fc", cin, classes, 1, x=f"uint{a}", w=w, out="int32")

    def forward(self, x):
        return self.fc(self.average(self.layers(self.pool(self.stem(x)))))


def codes(rng, shape, fmt="uint8") -> torch.Tensor:
    """Full-range random codes of a format."""
    fmt = Format.parse(fmt)
    return torch.tensor(rng.integers(fmt.lo, fmt.hi + 1, shape), dtype=torch.int32)


def generate(region: ir.Region, config=None) -> bytes:
    """Stands for the code generator: the program is the region itself."""
    return pickle.dumps(region)


def execute(program: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Stands for the machine: interprets the region."""
    region = pickle.loads(program)
    tensors = ir.interpret(region, {tensor.name: array for tensor, array in zip(region.inputs, inputs)})
    return [tensors[tensor.name] for tensor in region.outputs]


@pytest.fixture
def rng():
    seed = 20240601
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def nets():
    """The classes and functions of this file."""
    names = (Conv, MaxPool, AveragePool, Block, ResNet, codes, generate, execute)
    return SimpleNamespace(Q=Q, **{item.__name__: item for item in names})
