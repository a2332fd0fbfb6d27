"""The integer operations of an exported net, as torch custom operators `seriatim::...`.

Codes, weights and accumulators are int32 tensors, `b` is int64. The CPU implementations are exact:
convolutions run in floating point only where every partial sum is an integer that the type holds.
`x_format` "STORED:READ" (`uint8:uint4`) says how a tensor is stored and what its reader takes: the
top planes, code >> (8 - 4).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.errors import ConfigError
from seriatim.formats import Format, factors


def parse_x_format(text: str) -> tuple[Format, Format]:
    """(stored, read) of "uint8:uint4"; "uint8" alone reads all planes.

    Raises:
        ConfigError: malformed, or a reader that is wider or of another kind.
    """
    stored_text, _, read_text = text.partition(":")
    stored = Format.parse(stored_text)
    read = Format.parse(read_text) if read_text else stored
    if stored.top(read.bits) != read:
        raise ConfigError(f"x_format {text!r}: a reader takes top planes, {stored.top(read.bits)} here")
    return stored, read


def _values(x: Tensor, text: str) -> Tensor:
    stored, read = parse_x_format(text)
    if not read.linear:
        return _look_up(read.values, x)
    return read.value(x >> (stored.bits - read.bits))


def _look_up(table: Sequence[int], codes: Tensor) -> Tensor:
    """int64 entries of a table."""
    return torch.tensor(table, dtype=torch.int64, device=codes.device)[codes.long()]


def _mapped(values: Tensor, images: dict[int, int]) -> Tensor:
    """int64 image of each value."""
    keys = sorted(images)
    place = torch.searchsorted(torch.tensor(keys, device=values.device), values.long())
    return _look_up([images[key] for key in keys], place)


def _out_size(size: int, before: int, after: int, kernel: int, stride: int, dilation: int = 1) -> int:
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _pad(x: Tensor, padding: Sequence[int], value: float = 0) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


@torch.library.custom_op("seriatim::qconv2d", mutates_args=())
def qconv2d(
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    x_format: str,
    w_format: str,
    drop: int = 0,
) -> Tensor:
    """Exact int32 convolution of the codes' values, its lowest `drop` bits left out (floor); padding (top, left, bottom, right)
    has value 0.

    Float32 holds every partial sum below 2^24, float64 below 2^53: the type is chosen by the bound
    max|x| * max_o sum|w_o|, so the order in which a library adds does not matter. The product of two logs is that of
    `formats.factors`.

    Args:
        x: int32 codes (N, C, H, W). w: int32 values (O, C / groups, KH, KW), not codes.

    Returns:
        int32 accumulators (N, O, OH, OW). They must fit: `export_integer` proves it.
    """
    read, w_read = parse_x_format(x_format)[1], Format.parse(w_format)
    if read.linear:
        largest = max(-read.min_value, read.max_value)
        acc = _convolve(_values(x, x_format), w, largest, stride, padding, dilation, groups)
        return (acc.long() >> drop).int() if drop else acc.int()
    total = 0
    for table, images in factors(w_read, read):
        some = w if images is None else _mapped(w, images)
        largest = max(map(abs, table))
        total = total + _convolve(_look_up(table, x), some, largest, stride, padding, dilation, groups).long()
    return (total >> drop).int()


def _convolve(values: Tensor, w: Tensor, largest: int, stride, padding, dilation, groups) -> Tensor:
    bound = largest * int(w.long().abs().flatten(1).sum(1).max()) if w.numel() else 0
    kind = torch.float32 if bound < 1 << 24 else torch.float64
    values = _pad(values.to(kind), padding)
    with torch.backends.nnpack.flags(enabled=False):  # it may transform (Winograd): not exact
        return F.conv2d(values, w.to(kind), None, tuple(stride), 0, tuple(dilation), groups)


@qconv2d.register_fake
def _(x, w, stride, padding, dilation, groups, x_format, w_format, drop=0):
    height = _out_size(x.shape[2], padding[0], padding[2], w.shape[2], stride[0], dilation[0])
    width = _out_size(x.shape[3], padding[1], padding[3], w.shape[3], stride[1], dilation[1])
    return x.new_empty((x.shape[0], w.shape[0], height, width), dtype=torch.int32)


def _per_channel(t: Tensor) -> Tensor:
    return t.long().view(-1, 1, 1) if t.ndim == 1 else t.long()


@torch.library.custom_op("seriatim::requant", mutates_args=())
def requant(acc: Tensor, m: Tensor, b: Tensor, shift: int, lo: int, hi: int, name: str) -> Tensor:
    """clip((m * acc + b) >> shift, lo, hi) in int64, floor shift, as int32.

    m (int32), b (int64): (C,), or broadcastable like (C or 1, H, W). `name` is the layer's.
    """
    total = acc.long() * _per_channel(m) + _per_channel(b)
    return (total >> shift).clamp_(lo, hi).int()


@requant.register_fake
def _(acc, m, b, shift, lo, hi, name):
    return torch.empty_like(acc, dtype=torch.int32)


@torch.library.custom_op("seriatim::requant_add", mutates_args=())
def requant_add(
    acc: Tensor,
    res: Tensor,
    m: Tensor,
    b: Tensor,
    m2: int,
    shift: int,
    lo: int,
    hi: int,
    res_format: str,
    name: str,
) -> Tensor:
    """clip((m * acc + m2 * value(res) + b) >> shift, lo, hi) in int64, floor shift, as int32."""
    value = Format.parse(res_format).value(res.long())
    total = acc.long() * _per_channel(m) + value * m2 + _per_channel(b)
    return (total >> shift).clamp_(lo, hi).int()


@requant_add.register_fake
def _(acc, res, m, b, m2, shift, lo, hi, res_format, name):
    return torch.empty_like(acc, dtype=torch.int32)


def _reached(total: Tensor, thresholds: Tensor, shift: int) -> Tensor:
    return torch.searchsorted(thresholds.long(), total >> shift, right=True, out_int32=True)


@torch.library.custom_op("seriatim::requant_table", mutates_args=())
def requant_table(acc: Tensor, m: Tensor, b: Tensor, thresholds: Tensor, shift: int, name: str) -> Tensor:
    """How many of the ascending int32 thresholds (T,) (m * acc + b) >> shift has reached, as int32 codes 0..T."""
    return _reached(acc.long() * _per_channel(m) + _per_channel(b), thresholds, shift)


@requant_table.register_fake
def _(acc, m, b, thresholds, shift, name):
    return torch.empty_like(acc, dtype=torch.int32)


@torch.library.custom_op("seriatim::requant_add_table", mutates_args=())
def requant_add_table(
    acc: Tensor, res: Tensor, m: Tensor, b: Tensor, thresholds: Tensor, m2: int, shift: int, res_format: str, name: str
) -> Tensor:
    """How many thresholds (m * acc + m2 * value(res) + b) >> shift has reached, as `requant_table`."""
    value = Format.parse(res_format).value(res.long())
    return _reached(acc.long() * _per_channel(m) + value * m2 + _per_channel(b), thresholds, shift)


@requant_add_table.register_fake
def _(acc, res, m, b, thresholds, m2, shift, res_format, name):
    return torch.empty_like(acc, dtype=torch.int32)


@torch.library.custom_op("seriatim::qmaxpool2d", mutates_args=())
def qmaxpool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    x_format: str,
    name: str,
) -> Tensor:
    """Maximum of int32 codes over windows; padding (top, left, bottom, right) is the smallest code.

    Exact: codes have at most 16 bits, which float32 holds.
    """
    lowest = parse_x_format(x_format)[0].lo
    padded = _pad(x.float(), padding, lowest)
    return F.max_pool2d(padded, tuple(kernel), tuple(stride), 0, tuple(dilation)).int()


@qmaxpool2d.register_fake
def _(x, kernel, stride, padding, dilation, x_format, name):
    height = _out_size(x.shape[2], padding[0], padding[2], kernel[0], stride[0], dilation[0])
    width = _out_size(x.shape[3], padding[1], padding[3], kernel[1], stride[1], dilation[1])
    return x.new_empty((x.shape[0], x.shape[1], height, width), dtype=torch.int32)


@torch.library.custom_op("seriatim::qsumpool2d", mutates_args=())
def qsumpool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], x_format: str, drop: int = 0
) -> Tensor:
    """int32 sum of the values in each window, its lowest `drop` bits left out (floor); padding has value 0. Exact: sums stay
    below 2^53."""
    values = _pad(_values(x, x_format).double(), padding)
    area = kernel[0] * kernel[1]
    sums = F.avg_pool2d(values, tuple(kernel), tuple(stride), 0, divisor_override=1)
    assert values.abs().max() * area < 2**53 if values.numel() else True
    return (sums.long() >> drop).int()


@qsumpool2d.register_fake
def _(x, kernel, stride, padding, x_format, drop=0):
    height = _out_size(x.shape[2], padding[0], padding[2], kernel[0], stride[0])
    width = _out_size(x.shape[3], padding[1], padding[3], kernel[1], stride[1])
    return x.new_empty((x.shape[0], x.shape[1], height, width), dtype=torch.int32)
