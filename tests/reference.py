"""The big-integer reference: one layer, computed with plain Python integers, from the number contract alone.

It imports nothing of Seriatim and shares no line with it, so that a common mistake cannot hide. Tensors are nested lists
`[image][channel][row][column]` of Python integers; formats are their names (`uint8z3`, `int4`, `bipolar2`). Nothing here can
overflow: a result that does not fit the machine's accumulators or sums is an error of whoever made the layer.
"""

import re
from functools import cache, partial
from operator import mul


def planes(code: int, bits: int) -> list[int]:
    """The bits of a code as they lie in memory: most significant first, two's complement where it is negative."""
    return [code >> j & 1 for j in reversed(range(bits))]


LOG = re.compile(r"log(\d+)r(\d)(?:k(\d+))?(s?)")


def power(k: int, residues: int) -> int:
    """2^(k / residues): exact without residue classes, else in units of 2^-14, a class' constant times a power of two."""
    return 2**k if residues == 1 else round(2 ** (k % residues / residues) * 2**14) * 2 ** (k // residues)


@cache
def log_code(code: int, name: str) -> tuple[int, int]:
    """(sign, k) of a log code; the sign of the value 0 is 0."""
    bits, _, step, signed = LOG.fullmatch(name).groups()
    sign = 1
    if signed and code >= 2 ** (int(bits) - 1):
        sign, code = -1, code - 2 ** (int(bits) - 1)
    return (sign if code else 0), int(step or 1) * max(code - 1, 0)


@cache
def log_value(value: int, name: str) -> tuple[int, int]:
    """(sign, k) of a value of a log format."""
    bits, residues = (int(n) for n in LOG.fullmatch(name).groups()[:2])
    codes = [log_code(code, name) for code in range(2**bits)]
    return next((sign, k) for sign, k in codes if sign * power(k, residues) == value)


def log_product(a: tuple[int, int], w: tuple[int, int], a_residues: int, w_residues: int) -> int:
    """The product of two logs: their exponents add up, in the finer one's steps."""
    residues = max(a_residues, w_residues)
    return a[0] * w[0] * power(a[1] * residues // a_residues + w[1] * residues // w_residues, residues)


@cache
def seen(code: int, stored: str, bits: int) -> int:
    """Value of a stored code to a reader of its top `bits` planes: those planes are a code of the narrower format."""
    if stored.startswith("codebook"):
        return [int(entry) for entry in stored.partition("[")[2][:-1].split(",")][code]
    if stored.startswith("log"):
        sign, k = log_code(code, stored)
        return sign * power(k, int(LOG.fullmatch(stored)[2]))
    kind, width, zero = re.fullmatch(r"(uint|int|bipolar)(\d+)(?:z(\d+))?", stored).groups()
    width, zero = int(width), int(zero or 0)
    assert 1 <= bits <= width, f"{bits} planes of {stored}"
    top = planes(code, width)[:bits]
    if kind == "bipolar":  # each plane is -1 or +1, weighed by its significance
        return sum((1 if bit else -1) * 2 ** (bits - 1 - i) for i, bit in enumerate(top))
    total = sum(bit * 2 ** (bits - 1 - i) for i, bit in enumerate(top))
    if kind == "int":
        return total - 2**bits * top[0]
    assert zero % 2 ** (width - bits) == 0, f"the zero point of {stored} is no code of its top {bits} planes"
    return total - zero // 2 ** (width - bits)


def window_count(size: int, before: int, after: int, kernel: int, stride: int, dilation: int) -> int:
    """How many windows fit into `before + size + after` positions, one every `stride`."""
    count, last = 0, dilation * (kernel - 1)
    while count * stride + last < before + size + after:
        count += 1
    return count


def windows(image, kernel, stride, padding, dilation, outside):
    """Yields (row, column, one flat list of codes for each channel) for each window of an image `[channel][row][column]`."""
    top, left, bottom, right = padding
    height, width = len(image[0]), len(image[0][0])
    for y in range(window_count(height, top, bottom, kernel[0], stride[0], dilation[0])):
        rows = [y * stride[0] - top + r * dilation[0] for r in range(kernel[0])]
        for x in range(window_count(width, left, right, kernel[1], stride[1], dilation[1])):
            columns = [x * stride[1] - left + t * dilation[1] for t in range(kernel[1])]
            yield y, x, [
                [plane[r][t] if 0 <= r < height and 0 <= t < width else outside for r in rows for t in columns] for plane in image
            ]


def conv(x, x_format, a_bits, w, stride, padding, dilation, groups, w_format):
    """Accumulators `[image][out channel][row][column]`. `x` holds codes, `w` values `[out][channel of its group][row][column]`.

    Padding has the value 0.
    """
    per_group = len(w[0])
    assert len(x[0]) == per_group * groups and len(w) % groups == 0
    kernel = len(w[0][0]), len(w[0][0][0])
    flat = [[value for channel in out for row in channel for value in row] for out in w]
    step = len(w) // groups
    multiply, outside, read = mul, 0, partial(seen, stored=x_format, bits=a_bits)
    if x_format.startswith("log") and w_format.startswith("log"):
        residues = [int(LOG.fullmatch(name)[2]) for name in (x_format, w_format)]
        multiply, outside = partial(log_product, a_residues=residues[0], w_residues=residues[1]), (0, 0)
        flat, read = [[log_value(value, w_format) for value in out] for out in flat], partial(log_code, name=x_format)
    result = []
    for image in x:
        values = [[[read(code) for code in row] for row in plane] for plane in image]
        out = [[] for _ in w]
        for y, _, channels in windows(values, kernel, stride, padding, dilation, outside):
            for group in range(groups):
                patch = [value for c in range(per_group) for value in channels[group * per_group + c]]
                for o in range(group * step, (group + 1) * step):
                    if len(out[o]) == y:
                        out[o].append([])
                    out[o][y].append(sum(map(multiply, patch, flat[o])))
        result.append(out)
    return result


def without_low_bits(acc, drop):
    """Sums of 48 bits at most, divided by 2^drop and rounded down."""
    for image in acc:
        for plane in image:
            assert all(-(2**47) <= value < 2**47 for row in plane for value in row), "a sum beyond 48 bits"
    return [[[[value // 2**drop for value in row] for row in plane] for plane in image] for image in acc]


def sum_pool(x, x_format, a_bits, kernel, stride, padding):
    """Sums of the values of each window; padding contributes nothing."""
    result = []
    for image in x:
        values = [[[seen(code, x_format, a_bits) for code in row] for row in plane] for plane in image]
        out = [[] for _ in image]
        for y, _, channels in windows(values, kernel, stride, padding, (1, 1), 0):
            for rows, window in zip(out, channels):
                if len(rows) == y:
                    rows.append([])
                rows[y].append(sum(window))
        result.append(out)
    return result


def max_pool(x, x_format, kernel, stride, padding, dilation):
    """Greatest code of each window (formats are monotone); padding is the format's smallest code."""
    bits = int(re.search(r"\d+", x_format).group())
    smallest = -(2 ** (bits - 1)) if x_format.startswith("int") else 0
    result = []
    for image in x:
        out = [[] for _ in image]
        for y, _, channels in windows(image, kernel, stride, padding, dilation, smallest):
            for rows, window in zip(out, channels):
                if len(rows) == y:
                    rows.append([])
                rows[y].append(max(window))
        result.append(out)
    return result


def requant(acc, m, b, shift, lo, hi, res=None, res_format=None, m2=0, thresholds=None):
    """clip(floor((m acc + m2 res + b) / 2^shift), lo, hi) for each accumulator, or the number of thresholds not above it.

    `m` and `b` are given for each channel as an
    integer, or as `[row][column]` where they differ by position; `res` holds codes of `res_format`."""
    def at(parameter, y, x):
        return parameter if isinstance(parameter, int) else parameter[y][x]

    result = []
    for i, image in enumerate(acc):
        out = []
        for c, plane in enumerate(image):
            rows = []
            for y, row in enumerate(plane):
                codes = []
                for x, value in enumerate(row):
                    assert -(2**31) <= value < 2**31, f"accumulator {value} does not fit 32 bits"
                    total = at(m[c], y, x) * value + at(b[c], y, x)
                    if res is not None:
                        bits = int(re.search(r"\d+", res_format).group())
                        total += m2 * seen(res[i][c][y][x], res_format, bits)
                    assert -(2**63) <= total < 2**63, f"sum {total} does not fit 64 bits"
                    reached = total // 2**shift
                    codes.append(min(max(reached, lo), hi) if thresholds is None else sum(t <= reached for t in thresholds))
                rows.append(codes)
            out.append(rows)
        result.append(out)
    return result
