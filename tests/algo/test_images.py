from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch

from seriatim.algo.images import batches, resize, to_channels
from seriatim.errors import ConfigError


def exact(image, height, width):
    """Bilinear with half-pixel centres and clamped borders, in rationals."""

    def weights(size_in, size_out):
        for i in range(size_out):
            place = Fraction(2 * i + 1, 2) * size_in / size_out - Fraction(1, 2)
            place = min(max(place, Fraction(0)), Fraction(size_in - 1))
            left = min(floor(place), size_in - 1)
            right = min(left + 1, size_in - 1)
            yield left, right, place - left

    result = np.zeros((height, width), np.uint8)
    for y, (top, down, v) in enumerate(weights(image.shape[0], height)):
        for x, (left, right, h) in enumerate(weights(image.shape[1], width)):
            upper = (1 - h) * int(image[top, left]) + h * int(image[top, right])
            lower = (1 - h) * int(image[down, left]) + h * int(image[down, right])
            result[y, x] = floor((1 - v) * upper + v * lower + Fraction(1, 2))
    return result


@pytest.mark.parametrize("shape, size", [((7, 5), (16, 9)), ((28, 28), (64, 64)), ((9, 9), (4, 6)),
                                         ((1, 3), (2, 2))])  # fmt: skip
def test_resize_is_exact(shape, size):
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert (resize(image, *size) == exact(image, *size)).all()


def test_resize_is_near_torchs():
    image = np.random.default_rng(1).integers(0, 256, (2, 1, 28, 28), np.uint8)
    other = torch.nn.functional.interpolate(
        torch.from_numpy(image).double(), (64, 64), mode="bilinear", align_corners=False
    )
    assert np.abs(resize(image, 64) - other.numpy()).max() <= 0.5 + 1e-3


def test_refuses_no_size():
    with pytest.raises(ConfigError, match="0x0"):
        resize(np.zeros((4, 4), np.uint8), 0)


def test_channels():
    grey = np.zeros((2, 1, 4, 4), np.uint8)
    assert to_channels(grey, 3).shape == (2, 3, 4, 4) and to_channels(grey, 1) is grey
    with pytest.raises(ConfigError, match="3 channels.*takes 1"):
        to_channels(np.zeros((2, 3, 4, 4), np.uint8), 1)


def test_batches_are_whole_and_in_order():
    images = np.random.default_rng(1).integers(0, 256, (10, 1, 8, 8), np.uint8)
    plain = list(batches(images, np.arange(10), 4))
    assert [len(x) for x, _ in plain] == [4, 4, 2] and plain[0][0].shape == (4, 3, 8, 8)
    assert (torch.cat([x for x, _ in plain])[:, :1].numpy() == images).all()
    assert torch.cat([y for _, y in plain]).tolist() == list(range(10))
