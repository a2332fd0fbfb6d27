import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim.compiler import layout
from seriatim.compiler.ir import Tensor
from seriatim.config import Config
from seriatim.errors import DataError
from seriatim.formats import Format

pytestmark = pytest.mark.unit
CONFIGS = [Config(), Config(2, 4, 32, 32), Config(4, 16, 128, 64), Config(3, 2, 64, 64)]


def random_codes(seed: int, tensor: Tensor) -> np.ndarray:
    return np.random.default_rng(seed).integers(tensor.lo, tensor.hi + 1, tensor.shape)


def plane_bit(data: bytes, tensor: Tensor, config: Config, n, c, h, w, plane) -> int:
    """One bit by the layout's definition, address by address."""
    _, channels, height, width = tensor.shape
    words = -(-channels // config.k)
    word = (((n * height + h) * width + w) * words + c // config.k) * tensor.format.bits + plane
    lane = c % config.k
    return data[word * config.k // 8 + lane // 8] >> lane % 8 & 1


@given(st.integers(1, 3), st.integers(1, 150), st.integers(1, 4), st.integers(1, 4), st.sampled_from(CONFIGS),
       st.sampled_from(["uint1", "uint8", "uint8z3", "int1", "int5", "bipolar3", "uint16", "int16"]), st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=60)
def test_planes_round_trip_and_bits(n, c, h, w, config, fmt, seed):
    tensor = Tensor("t", (n, c, h, w), Format.parse(fmt))
    codes = random_codes(seed, tensor)
    data = layout.pack(tensor, codes, config)
    assert len(data) == layout.tensor_bytes(tensor, config)
    assert np.array_equal(layout.unpack(tensor, data, config), codes)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        at = tuple(int(rng.integers(size)) for size in tensor.shape)
        bits = [plane_bit(data, tensor, config, *at, plane) for plane in range(tensor.format.bits)]
        assert int("".join(map(str, bits)), 2) == codes[at] & (1 << tensor.format.bits) - 1
    last = -(-c // config.k) * config.k - 1
    if last >= c:
        assert not any(plane_bit(data, tensor, config, 0, last, 0, 0, plane) for plane in range(tensor.format.bits))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_image_rows_are_whole_beats(config):
    tensor = Tensor("image", (2, 3, 5, 7), Format.parse("uint8"), "image")
    codes = random_codes(0, tensor)
    data = np.frombuffer(layout.pack(tensor, codes, config), np.uint8)
    pitch = layout.row_bytes(tensor, config)
    assert pitch % config.axi_bytes == 0 and 21 <= pitch < 21 + config.axi_bytes
    assert data[pitch * 5 + 2 * pitch + 4 * 3 + 1] == codes[1, 1, 2, 4]
    assert np.array_equal(layout.unpack(tensor, data, config), codes)


def test_image_bytes_stay_close_to_the_pixels():
    tensor = Tensor("image", (1, 3, 224, 224), Format.parse("uint8"), "image")
    assert layout.tensor_bytes(tensor, Config()) <= 1.1 * 224 * 224 * 3


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_int32_words(config):
    tensor = Tensor("logits", (2, 21, 2, 1), None, "int32")
    codes = random_codes(1, tensor)
    codes[0, 0, 0, 0], codes[1, 20, 1, 0] = tensor.lo, tensor.hi
    data = layout.pack(tensor, codes, config)
    assert np.array_equal(layout.unpack(tensor, data, config), codes)
    lanes = config.raw_words * config.k // 32
    word = np.frombuffer(data, "<i4")
    tile, n = divmod(20, config.n)
    tiles = -(-21 // config.n)
    assert word[((1 * 2 + 1) * tiles + tile) * lanes + n] == codes[1, 20, 1, 0]


def test_weights_and_params_by_definition():
    config = Config(2, 4, 32, 32)
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 8, (8, 6, 64)).astype(np.uint16)  # 2 column tiles, 6 taps, 2 channel words
    data = np.frombuffer(layout.pack_weights(codes, 3, config), np.uint8)
    for _ in range(50):
        tile, n, tap, word, lane, plane = (int(rng.integers(size)) for size in (2, 4, 6, 2, 32, 3))
        at = ((((tile * 6 + tap) * 2 + word) * 3 + plane) * 4 + n) * 32 + lane
        assert data[at // 8] >> at % 8 & 1 == codes[tile * 4 + n, tap, word * 32 + lane] >> 2 - plane & 1
    params = layout.pack_params(np.array([1, -2, 3, -4, 5]), np.array([10, -20, 1 << 40, 0, -1]), config)
    assert len(params) == 2 * config.prm_word_bytes
    assert int.from_bytes(params[16:24], "little", signed=True) == -20
    assert int.from_bytes(params[24:28], "little", signed=True) == -2
    assert not any(params[5 * 16:])


def test_refuses_wrong_shapes_and_codes():
    tensor = Tensor("t", (1, 2, 2, 2), Format.parse("uint4"))
    with pytest.raises(DataError, match=r"t of shape \(1, 2, 2, 1\)"):
        layout.pack(tensor, np.zeros((1, 2, 2, 1), int), Config())
    with pytest.raises(DataError, match="holds 0 to 16"):
        layout.pack(tensor, np.array([0, 16] * 4).reshape(tensor.shape), Config())
    with pytest.raises(DataError, match="takes 128"):
        layout.unpack(tensor, bytes(8), Config())


def test_large_tensors_are_quick():
    tensor = Tensor("t", (1, 64, 112, 112), Format.parse("uint8"))
    codes = random_codes(2, tensor)
    start = time.perf_counter()
    data = layout.pack(tensor, codes, Config())
    middle = time.perf_counter()
    layout.unpack(tensor, data, Config())
    assert middle - start < 0.5 and time.perf_counter() - middle < 0.5
    print(f"pack {middle - start:.3f} s, unpack {time.perf_counter() - middle:.3f} s")
