"""What the tiler is given: regions of fused integer layers, as plain data. NumPy only, no TVM.

A region is what runs on the accelerator between two operations on the CPU. Its layers are in topological order, each writes one
tensor, and each computes one of

    Conv      out = requant(conv(value(x), w), res)        res is optional
    MaxPool   out = max of the codes of a window            padding is the smallest code
    SumPool   out = requant(sum of the values of a window)  padding contributes 0

`requant(acc, res) = clip((m * acc + m2 * value(res) + b) >> shift, lo, hi)`, 64 bits, floor; with thresholds, the number of those
that are not above it. The product of two log values has the sum of their exponents; `acc` is without the `drop` low bits of the
sum. A reader that is narrower than the tensor takes its top planes (`x_read`).
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from seriatim.formats import Format, Kind, residue_factor

INT32 = (-(1 << 31), (1 << 31) - 1)
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tensor:
    """A tensor of codes `(N, C, H, W)`.

    `layout` says how it lies in memory: `planes` (bit planes), `image` (uint8 bytes HWC, as the host hands them over: only the
    network's input) or `int32` (words, of values too wide for a format: `format` is None then).
    """

    name: str
    shape: tuple[int, int, int, int]
    format: Format | None
    layout: Literal["planes", "image", "int32"] = "planes"

    def __post_init__(self):
        assert len(self.shape) == 4, f"{self.name}: shape {self.shape} is not (N, C, H, W)"
        assert (self.format is None) == (self.layout == "int32"), f"{self.name}: {self.format} as {self.layout}"

    @property
    def lo(self) -> int:
        """Smallest code."""
        return INT32[0] if self.format is None else self.format.lo

    @property
    def hi(self) -> int:
        return INT32[1] if self.format is None else self.format.hi


@dataclass(frozen=True, eq=False)
class Requant:
    """Parameters of requantisation: `m` int32 and `b` int64, both `(C,)`, or `(C | 1, H, W)` where the window's share of padding
    decides (sum pools only). `thresholds`: ascending int32, for outputs whose levels are not evenly spaced."""

    m: np.ndarray
    b: np.ndarray
    shift: int
    lo: int
    hi: int
    m2: int = 0
    thresholds: np.ndarray | None = None

    @property
    def per_position(self) -> bool:
        return self.m.ndim == 3


def window_shape(shape, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    """Rows and columns that a window visits; the padding is (top, left, bottom, right)."""
    rows, columns = (
        (size + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, size in enumerate(shape[-2:])
    )
    return rows, columns


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution, requantised, with an optional residual. `w` holds values, not codes: int32 `(O, C / groups, KH, KW)`."""

    name: str
    x: Tensor
    x_read: Format
    w: np.ndarray
    w_format: Format
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    requant: Requant
    res: Tensor | None
    out: Tensor
    drop: int = 0

    def __post_init__(self):
        assert self.out.shape == (self.x.shape[0], self.w.shape[0], *self.out_hw), f"{self.name}: {self.out.shape}"
        assert self.x.shape[1] == self.w.shape[1] * self.groups, f"{self.name}: {self.x.shape}, {self.w.shape}, {self.groups}"
        assert self.res is None or self.res.shape == self.out.shape, f"{self.name}: residual {self.res}"

    @property
    def kernel(self) -> Pair:
        return self.w.shape[2], self.w.shape[3]

    @property
    def out_hw(self) -> Pair:
        return window_shape(self.x.shape, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def k(self) -> int:
        """Products summed in one accumulator."""
        return int(np.prod(self.w.shape[1:]))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the PyTorch layer, at any width."""
        return int(np.prod(self.out.shape)) * self.k

    @property
    def binary_macs(self) -> int:
        """The same as products of one weight bit and one activation bit."""
        return self.macs * self.w_format.bits * self.x_read.bits

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.res is None else (self.x, self.res)


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Largest code of each window; `out` has the format of `x`."""

    name: str
    x: Tensor
    kernel: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    out: Tensor
    macs: int = field(default=0, init=False)
    binary_macs: int = field(default=0, init=False)

    def __post_init__(self):
        assert self.out.shape == (*self.x.shape[:2], *self.out_hw), f"{self.name}: {self.out.shape}"
        assert self.out.format == self.x.format, f"{self.name}: {self.x.format} into {self.out.format}"

    @property
    def out_hw(self) -> Pair:
        return window_shape(self.x.shape, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class SumPool:
    """Sum of the values of each window, requantised: an average pool, whose divisor is in `requant.m`."""

    name: str
    x: Tensor
    x_read: Format
    kernel: Pair
    stride: Pair
    padding: Padding
    requant: Requant
    out: Tensor
    drop: int = 0
    macs: int = field(default=0, init=False)
    binary_macs: int = field(default=0, init=False)

    def __post_init__(self):
        assert self.out.shape == (*self.x.shape[:2], *self.out_hw), f"{self.name}: {self.out.shape}"

    @property
    def dilation(self) -> Pair:
        return 1, 1

    @property
    def out_hw(self) -> Pair:
        return window_shape(self.x.shape, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def k(self) -> int:
        """Values summed in one accumulator."""
        return self.kernel[0] * self.kernel[1]

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)


Layer = Conv | MaxPool | SumPool


@dataclass(frozen=True, eq=False)
class Region:
    """Layers that run on the accelerator in one go. Every name, of a tensor or a layer, is unique."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]

    def __post_init__(self):
        known = {tensor.name: tensor for tensor in self.inputs}
        assert len(known) == len(self.inputs), f"two inputs of one name: {[tensor.name for tensor in self.inputs]}"
        for layer in self.layers:
            assert all(known.get(tensor.name) == tensor for tensor in layer.reads), f"{layer.name} reads what is not there yet"
            assert layer.out.name not in known, f"{layer.out.name} is written twice"
            known[layer.out.name] = layer.out
        assert all(known.get(tensor.name) == tensor for tensor in self.outputs), "an output that no layer writes"

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, the inputs first, then in the order in which the layers write them."""
        return {tensor.name: tensor for tensor in (*self.inputs, *(layer.out for layer in self.layers))}

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def binary_macs(self) -> int:
        return sum(layer.binary_macs for layer in self.layers)

    def readers(self, tensor: Tensor) -> list[Layer]:
        """The layers that read `tensor`."""
        return [layer for layer in self.layers if tensor in layer.reads]


def read(codes: np.ndarray, stored: Format, reader: Format) -> np.ndarray:
    """int64 values that a reader of the top planes of `codes` sees."""
    if not reader.linear:
        return np.array(reader.values, np.int64)[codes]
    return reader.value(codes.astype(np.int64) >> (stored.bits - reader.bits))


def windows(x: np.ndarray, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, pad_value: int) -> np.ndarray:
    """View `(N, C, OH, OW, KH, KW)` of what each window of `x` sees."""
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad_value)
    extent = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def convolve(x: np.ndarray, w: np.ndarray, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> np.ndarray:
    """Exact int64 convolution of values `(N, C, H, W)`.

    A float64 matrix product where no sum of magnitudes reaches 2^53, so that every partial sum is exact; int64 otherwise.
    """
    n, c = x.shape[:2]
    o, per_group = w.shape[:2]
    seen = windows(x, w.shape[2:], stride, padding, dilation, 0)
    bound = int(np.abs(x).max(initial=0)) * int(np.abs(w.astype(np.int64)).sum(axis=(1, 2, 3)).max(initial=0))
    dtype = np.float64 if bound < 1 << 53 else np.int64
    out = np.empty((n, o, *seen.shape[2:4]), np.int64)
    step = o // groups
    for group in range(groups):
        patches = seen[:, group * per_group : (group + 1) * per_group].transpose(0, 2, 3, 1, 4, 5)
        patches = patches.reshape(-1, w[0].size).astype(dtype)
        rows = slice(group * step, (group + 1) * step)
        product = patches @ w[rows].reshape(step, -1).astype(dtype).T
        out[:, rows] = product.reshape(n, *seen.shape[2:4], step).transpose(0, 3, 1, 2).astype(np.int64)
    return out


def log_parts(values: np.ndarray, fmt: Format, residues: int) -> tuple[np.ndarray, np.ndarray]:
    """(+-2^octave, residue class), int64, of values of a log format in 1 / `residues` octaves; 0 for the value 0."""
    code = np.searchsorted(fmt.magnitudes, np.abs(values.astype(np.int64)))
    k = np.maximum(code - 1, 0) * (fmt.step * residues // fmt.residues)
    return np.where(code > 0, np.sign(values) << k // residues, 0), k % residues


def accumulate(x: np.ndarray, x_read: Format, w: np.ndarray, w_format: Format, *geometry) -> np.ndarray:
    """int64 accumulators of a convolution of values; `geometry` is (stride, padding, dilation, groups)."""
    residues = max(x_read.residues, w_format.residues)
    if residues == 1 or not x_read.kind is w_format.kind is Kind.LOG:
        return convolve(x, w, *geometry)
    total = 0
    (a, a_class), (w, w_class) = log_parts(x, x_read, residues), log_parts(w, w_format, residues)
    for i in np.unique(a_class):
        for j in np.unique(w_class):
            octave, residue = divmod(int(i + j), residues)
            part = convolve(np.where(a_class == i, a, 0), np.where(w_class == j, w, 0), *geometry)
            total = total + part * (residue_factor(residue, residues) << octave)
    return total


def _run(layer: Layer, tensors: dict[str, np.ndarray]) -> np.ndarray:
    from seriatim.sim.requant import encode, requant  # their one definition; `sim` is not needed to describe a region

    x = tensors[layer.x.name]
    if isinstance(layer, MaxPool):
        return windows(x, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.x.lo).max(axis=(4, 5))
    values = read(x, layer.x.format, layer.x_read)
    res = None
    if isinstance(layer, SumPool):
        acc = windows(values, layer.kernel, layer.stride, layer.padding, layer.dilation, 0).sum(axis=(4, 5))
    else:
        acc = accumulate(values, layer.x_read, layer.w, layer.w_format, layer.stride, layer.padding, layer.dilation, layer.groups)
        if layer.res is not None:
            res = read(tensors[layer.res.name], layer.res.format, layer.res.format)
    q = layer.requant
    m, b = (p if p.ndim == 3 else p.reshape(-1, 1, 1) for p in (q.m, q.b))
    out = requant(acc >> layer.drop, m, b, q.shift, q.lo, q.hi, res=res, m2=q.m2)
    return out if q.thresholds is None else encode(out, q.thresholds)


def interpret(region: Region, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """int32 codes of every tensor of `region`, by name, for the codes of its inputs: the compiler's reference for any format."""
    tensors = {}
    for tensor in region.inputs:
        codes = np.asarray(inputs[tensor.name])
        if codes.shape != tensor.shape:
            raise ValueError(f"{tensor.name} of shape {codes.shape}: this region takes {tensor.shape}")
        if codes.size and not tensor.lo <= codes.min() <= codes.max() <= tensor.hi:
            raise ValueError(
                f"{tensor.name} holds {codes.min()} to {codes.max()}: {tensor.format or 'int32'} holds {tensor.lo} to {tensor.hi}"
            )
        tensors[tensor.name] = codes.astype(np.int32)
    for layer in region.layers:
        tensors[layer.out.name] = _run(layer, tensors).astype(np.int32)
    return tensors
