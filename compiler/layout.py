"""How tensors, weights and params lie in memory: `seriatim.isa` gives the layouts, here they are packed and unpacked. NumPy only.

Codes are integers `(N, C, H, W)`: two's complement for `int`, the code itself for the other formats.
"""

import numpy as np

from seriatim.compiler.ir import Tensor
from seriatim.config import Config
from seriatim.errors import DataError


def channel_words(channels: int, config: Config) -> int:
    """K-lane words that hold the channels of one position."""
    return -(-channels // config.k)


def position_bytes(tensor: Tensor, config: Config) -> int:
    """Bytes from a position of a row to the next."""
    channels = tensor.shape[1]
    if tensor.layout == "image":
        return channels
    if tensor.layout == "int32":
        return -(-channels // config.n) * config.raw_words * config.word_bytes
    return channel_words(channels, config) * tensor.format.bits * config.word_bytes


def row_bytes(tensor: Tensor, config: Config) -> int:
    """Bytes from a row to the next: rows are whole beats."""
    size = tensor.shape[3] * position_bytes(tensor, config)
    return -(-size // config.axi_bytes) * config.axi_bytes


def tensor_bytes(tensor: Tensor, config: Config) -> int:
    return tensor.shape[0] * tensor.shape[2] * row_bytes(tensor, config)


def pack(tensor: Tensor, codes: np.ndarray, config: Config) -> bytes:
    """`codes` (N, C, H, W) as they lie in memory; lanes without a channel are 0. Raises DataError for a wrong shape or code."""
    codes = np.asarray(codes)
    if codes.shape != tensor.shape:
        raise DataError(f"{tensor.name} of shape {codes.shape}: this program takes {tensor.shape}")
    if codes.size and not tensor.lo <= codes.min() <= codes.max() <= tensor.hi:
        fmt = tensor.format or "int32"
        raise DataError(f"{tensor.name} holds {codes.min()} to {codes.max()}: {fmt} is {tensor.lo} to {tensor.hi}")
    n, c, h, w = tensor.shape
    if tensor.layout == "image":
        data = np.zeros((n, h, row_bytes(tensor, config)), np.uint8)
        data[:, :, :w * c] = codes.transpose(0, 2, 3, 1).reshape(n, h, w * c).astype(np.int16).astype(np.uint8)
        return data.tobytes()
    if tensor.layout == "int32":
        tiles, lanes = -(-c // config.n), config.raw_words * config.k // 32
        channels = np.zeros((n, h, w, tiles * config.n), "<i4")
        channels[..., :c] = codes.transpose(0, 2, 3, 1)
        data = np.zeros((n, h, w, tiles, lanes), "<i4")
        data[..., :config.n] = channels.reshape(n, h, w, tiles, config.n)
        return data.tobytes()
    bits, words = tensor.format.bits, channel_words(c, config)
    lanes = np.zeros((n, h, w, words * config.k), np.uint8 if bits <= 8 else np.uint16)
    lanes[..., :c] = codes.transpose(0, 2, 3, 1).astype(np.int32).astype(lanes.dtype)
    data = np.empty((n, h, w, words, bits, config.word_bytes), np.uint8)
    for plane in range(bits):
        bit = (lanes >> (bits - 1 - plane) & 1).astype(np.uint8)
        data[..., plane, :] = np.packbits(bit, axis=-1, bitorder="little").reshape(n, h, w, words, config.word_bytes)
    return data.tobytes()


def unpack(tensor: Tensor, data, config: Config) -> np.ndarray:
    """The int32 codes (N, C, H, W) that `pack` wrote; never a view of `data`."""
    n, c, h, w = tensor.shape
    data = np.frombuffer(data, np.uint8)
    if data.size != tensor_bytes(tensor, config):
        raise DataError(f"{tensor.name} in {data.size} bytes: {tensor.shape} takes {tensor_bytes(tensor, config)}")
    if tensor.layout == "image":
        codes = data.reshape(n, h, -1)[:, :, :w * c].reshape(n, h, w, c).astype(np.int32)
    elif tensor.layout == "int32":
        lanes = config.raw_words * config.k // 32
        codes = data.view("<i4").reshape(n, h, w, -1, lanes)[..., :config.n].reshape(n, h, w, -1)[..., :c]
    else:
        bits, words = tensor.format.bits, channel_words(c, config)
        planes = data.reshape(n, h, w, words, bits, config.word_bytes)
        codes = np.zeros((n, h, w, words * config.k), np.int32)
        for plane in range(bits):
            bit = np.unpackbits(planes[..., plane, :], axis=-1, bitorder="little").reshape(codes.shape)
            codes |= bit.astype(np.int32) << (bits - 1 - plane)
        codes = codes[..., :c]
    if tensor.format is not None and tensor.format.lo < 0:
        half = 1 << tensor.format.bits - 1
        codes = (codes & 2 * half - 1 ^ half) - half
    return codes.transpose(0, 3, 1, 2).astype(np.int32, order="C")


def pack_weights(codes: np.ndarray, bits: int, config: Config) -> bytes:
    """Unsigned codes `(column tile * N, tap, channel word * K)` as `[column tile][tap][channel word][plane][n]` words."""
    columns, taps, lanes = codes.shape
    codes = codes.reshape(columns // config.n, config.n, taps, lanes // config.k, config.k).transpose(0, 2, 3, 1, 4)
    data = np.empty((*codes.shape[:3], bits, config.n, config.word_bytes), np.uint8)
    for plane in range(bits):
        data[:, :, :, plane] = np.packbits((codes >> (bits - 1 - plane) & 1).astype(np.uint8), axis=-1, bitorder="little")
    return data.tobytes()


def pack_params(m: np.ndarray, b: np.ndarray, config: Config) -> bytes:
    """m and b of consecutive channels as param words; channels that fill the last word have m = b = 0."""
    words = -(-len(m) // config.n)
    data = np.zeros(words * config.n, [("b", "<i8"), ("m", "<i4"), ("zero", "<i4")])
    data["b"][:len(b)], data["m"][:len(m)] = b, m
    return data.tobytes()
