"""Image scaling and batches, in integers: the part of a run that lies outside the network.

Scaling is bilinear with half-pixel centres and clamped borders, computed in exact integers, so the
codes that enter the network are the same on every machine.
"""

from collections.abc import Iterator

import numpy as np
import torch

from seriatim.errors import ConfigError


def _taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Left source index and weight of the right neighbour, in units of 1 / (2 size_out)."""
    position = (2 * np.arange(size_out) + 1) * size_in - size_out
    position = np.clip(position, 0, (size_in - 1) * 2 * size_out)
    left = np.minimum(position // (2 * size_out), max(size_in - 2, 0))
    return left, position - left * 2 * size_out


def resize(images: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Scale uint8 images (..., H, W) to (..., height, width), bilinear, rounding half up.

    Every intermediate is an integer below 255 * (2 size)^2, far inside 64 bits.

    Raises:
        ConfigError: a size below 1.
    """
    width = height if width is None else width
    if height < 1 or width < 1:
        raise ConfigError(f"image size {height}x{width}: both sides must be at least 1")
    if images.shape[-2:] == (height, width):
        return images
    wide = 2 * np.int64(width)
    tall = 2 * np.int64(height)
    left, weight = _taps(images.shape[-1], width)
    right = np.minimum(left + 1, images.shape[-1] - 1)
    top, down_weight = _taps(images.shape[-2], height)
    down = np.minimum(top + 1, images.shape[-2] - 1)
    result = np.empty((*images.shape[:-2], height, width), np.uint8)
    flat_in, flat_out = images.reshape(-1, *images.shape[-2:]), result.reshape(-1, height, width)
    for start in range(0, len(flat_in), 1024):
        part = flat_in[start : start + 1024].astype(np.int32)
        part = part[..., left] * (wide - weight).astype(np.int32) + part[..., right] * weight.astype(
            np.int32
        )
        part = part.astype(np.int64)
        rows = part[:, top] * (tall - down_weight)[:, None] + part[:, down] * down_weight[:, None]
        flat_out[start : start + 1024] = (2 * rows + wide * tall) // (2 * wide * tall)
    return result


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images (N, 1, H, W) repeated to `channels`; images that have them already unchanged."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return np.broadcast_to(images, (len(images), channels, *images.shape[2:]))
    raise ConfigError(
        f"images of {images.shape[1]} channels: the net takes {channels} and only grey images (1) "
        "are repeated; convert the data set or choose another net"
    )


def batches(
    images: np.ndarray, labels: np.ndarray, batch: int, *, channels: int = 3
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (float32 codes (N, channels, H, W) in channels_last memory, int64 labels), in order, the last one shorter.
    Trainings shuffle and augment: `feed.Feed`."""
    for start in range(0, len(images), batch):
        part = torch.from_numpy(np.ascontiguousarray(to_channels(images[start : start + batch], channels))).float()
        yield part.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels[start : start + batch])
