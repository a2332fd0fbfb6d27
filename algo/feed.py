"""Training images on a device, shuffled and augmented there: one gather for each batch, no work for each image.

What an epoch draws (order, shifts, mirroring) follows from the seed and the epoch alone, so that it can be entered at any step
and dealt out to any number of processes.
"""

from collections.abc import Iterator

import numpy as np
import torch

from seriatim.algo.recipes import Recipe
from seriatim.errors import ConfigError

RESIDENT_BYTES = 4 << 30
"""Larger sets stay on the host (where they may be memory-mapped) and travel batch by batch."""


class Feed:
    """Batches of (float32 codes (N, channels, H, W) in channels_last memory, int64 labels).

    Every image is moved by up to `shift` pixels (of a 32-pixel image; zero border) and mirrored at random. The last partial
    batch is dropped. Of each batch process `rank` of `world` gets its share, in order.

    Args:
        images, labels: uint8 (N, C, H, W) at their final size, int64 (N,).
        channels: that the net takes; grey images are repeated.

    Raises:
        ConfigError: a batch that `world` does not divide, or images whose channels do not fit.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, recipe: Recipe, channels: int, device="cpu", rank=0, world=1):
        if images.shape[1] not in (1, channels):
            raise ConfigError(
                f"images of {images.shape[1]} channels: the net takes {channels} and only grey images (1) are repeated; "
                "convert the data set or choose another net"
            )
        if recipe.batch % world:
            raise ConfigError(f"batch {recipe.batch} on {world} processes: choose a multiple of {world}")
        self.recipe, self.channels, self.device, self.rank, self.world = recipe, channels, torch.device(device), rank, world
        self.count = min(recipe.images or len(images), len(images))
        self.batch = min(recipe.batch, self.count)
        self.steps = self.count // self.batch
        self.shift = round(recipe.shift * images.shape[-1] / 32)
        home = self.device if images.nbytes <= RESIDENT_BYTES else torch.device("cpu")
        self.images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))).to(home)
        self.labels = torch.from_numpy(labels).to(home)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of `epoch` from step `first` on."""
        rng = np.random.default_rng((self.recipe.seed, epoch))
        total = self.steps * self.batch
        order = rng.permutation(len(self.images))[:total]
        moves = rng.integers(-self.shift, self.shift + 1, (2, total))
        mirrored = (rng.random(total) < 0.5) & self.recipe.flip
        home = self.images.device
        order, moves, mirrored = (torch.from_numpy(drawn).to(home) for drawn in (order, moves, mirrored))
        share = self.batch // self.world
        for step in range(first, self.steps):
            begin = step * self.batch + self.rank * share
            part = slice(begin, begin + share)
            yield self._batch(order[part], moves[:, part], mirrored[part])

    def _batch(self, index, moves, mirrored) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = self.images.shape[1:3]
        rows = torch.arange(height, device=index.device) + moves[0][:, None]
        columns = torch.arange(width, device=index.device)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + moves[1][:, None]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        x = self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]] * inside[..., None]
        x = x.to(self.device, non_blocking=True).float().expand(-1, -1, -1, self.channels).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last), self.labels[index].to(self.device, non_blocking=True)
