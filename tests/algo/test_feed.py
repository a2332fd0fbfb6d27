from dataclasses import replace

import numpy as np
import pytest
import torch

from seriatim.algo.feed import Feed
from seriatim.algo.recipes import Recipe
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit

RECIPE = Recipe(((32, 1),), batch=8, shift=4)
IMAGES = np.random.default_rng(1).integers(1, 256, (50, 3, 32, 32), np.uint8)
LABELS = np.arange(50)


def test_every_image_is_a_shifted_mirrored_copy_of_its_own():
    """Against plain NumPy: pad with zeros, cut out, mirror."""
    shifts, mirrors = set(), set()
    for x, y in Feed(IMAGES, LABELS, RECIPE, 3).epoch(0):
        assert x.is_contiguous(memory_format=torch.channels_last)
        for image, label in zip(x.numpy(), y.tolist()):
            padded = np.pad(IMAGES[label], ((0, 0), (4, 4), (4, 4)))
            found = [(dy, dx, flip) for dy in range(9) for dx in range(9) for flip in (1, -1)
                     if (padded[:, dy : dy + 32, dx : dx + 32][:, :, ::flip] == image).all()]
            assert len(found) == 1
            shifts |= {found[0][:2]}
            mirrors |= {found[0][2]}
    assert len(shifts) > 30 and mirrors == {1, -1}


def test_an_epoch_takes_each_image_once_and_another_has_another_order():
    feed = Feed(IMAGES, LABELS, replace(RECIPE, shift=0, flip=False), 3)
    order = [torch.cat([y for _, y in feed.epoch(epoch)]).tolist() for epoch in (0, 1, 0)]
    assert feed.steps == 6 and all(len(set(o)) == 48 for o in order) and order[0] == order[2] != order[1]
    x, y = next(feed.epoch(0))
    assert (x.numpy() == IMAGES[y.numpy()]).all()
    few = Feed(IMAGES, LABELS, replace(RECIPE, images=20), 3)
    assert few.steps == 2 and Feed(IMAGES[:3], LABELS[:3], RECIPE, 3).steps == 1


def test_an_epoch_is_entered_at_any_step():
    feed = Feed(IMAGES, LABELS, RECIPE, 3)
    whole = list(feed.epoch(2))
    for first in range(feed.steps):
        for (x, y), (u, v) in zip(whole[first:], feed.epoch(2, first), strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


def test_processes_share_each_batch():
    alone = Feed(IMAGES, LABELS, RECIPE, 3).epoch(1)
    shares = [Feed(IMAGES, LABELS, RECIPE, 3, rank=rank, world=4).epoch(1) for rank in range(4)]
    for (x, y), *parts in zip(alone, *shares, strict=True):
        assert torch.equal(x, torch.cat([u for u, _ in parts])) and torch.equal(y, torch.cat([v for _, v in parts]))
    with pytest.raises(ConfigError, match="batch 8 on 3 processes.*multiple of 3"):
        Feed(IMAGES, LABELS, RECIPE, 3, world=3)


def test_grey_images_are_repeated_and_others_must_fit():
    x, _ = next(Feed(IMAGES[:, :1], LABELS, RECIPE, 3).epoch(0))
    assert x.shape == (8, 3, 32, 32) and torch.equal(x[:, 0], x[:, 2])
    with pytest.raises(ConfigError, match="3 channels: the net takes 1"):
        Feed(IMAGES, LABELS, RECIPE, 1)
