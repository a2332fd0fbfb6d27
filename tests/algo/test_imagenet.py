"""Image files read as they are needed: what a crop holds, the order and draws of a training, and labels beside flat files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from seriatim.algo import data
from seriatim.algo.imagenet import centre, random_crop
from seriatim.algo.layers import SLB, AveragePool, Layer
from seriatim.algo.nets import Net, quantize_
from seriatim.algo.recipes import Recipe
from seriatim.algo.train import accuracy, fit
from seriatim.errors import ConfigError, DataError

CLASSES = {"n01": (250, 10, 10), "n02": (10, 250, 10), "n03": (10, 10, 250)}


@pytest.fixture
def folder(tmp_path):
    print("seed 4")
    rng = np.random.default_rng(4)
    for part, count in (("train", 8), ("val", 2)):
        for name, colour in CLASSES.items():
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for number in range(count):
                width, height = (int(n) for n in rng.integers(40, 90, 2))
                pixels = np.clip(rng.normal(colour, 5, (height, width, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{part}_{name}_{number}.JPEG", quality=95)
    return tmp_path


def gradient(width, height):
    """Red tells the column, green the row, each over 0..255."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((x, y, 0 * x), -1).round().astype(np.uint8))


def test_a_test_image_is_the_middle_of_the_shorter_side_at_256():
    found = centre(gradient(512, 256), 224).astype(int)
    assert found.shape == (3, 224, 224)
    columns, rows = (144 + np.arange(224)) * 255 / 511, (16 + np.arange(224)) * 255 / 255
    assert np.abs(found[0] - columns).max() <= 1 and np.abs(found[1] - rows[:, None]).max() <= 1
    assert centre(gradient(30, 90), 56).shape == (3, 56, 56)


def test_random_crops_have_their_share_of_area_and_ratio():
    picture, shares, mirrored = gradient(400, 300), [], 0
    for seed in range(300):
        red, green, _ = random_crop(picture, 32, np.random.default_rng(seed), True).astype(float)
        wide, tall = (abs(red[:, -1] - red[:, 0]).mean(), abs(green[-1] - green[0]).mean())
        shares.append((wide * 400 * 32 / 31 / 255, tall * 300 * 32 / 31 / 255))
        mirrored += red[0, 0] > red[0, -1]
    wide, tall = np.array(shares).T
    area, ratio = wide * tall / (400 * 300), wide / tall
    assert 0.06 < area.min() < 0.15 and 0.7 < area.max() < 1.1
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.42
    assert 110 < mirrored < 190
    long = random_crop(gradient(400, 10), 32, np.random.default_rng(0), False)
    assert long.shape == (3, 32, 32) and np.ptp(long[1].astype(int)) > 200  # no crop fits: a square of the shorter side


def test_workers_and_resumed_epochs_read_the_same(folder):
    files = data.load("imagenet", True, folder, size=24)
    assert len(files) == 24 and files.classes == 3 and files.name == folder.name
    recipe = Recipe(((24, 2),), batch=8)
    feeds = [replace(files, workers=workers).feed(recipe, 3) for workers in (0, 2)]
    assert feeds[0].steps == 3
    alone, many = (list(feed.epoch(1)) for feed in feeds)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, many))
    assert alone[0][0].shape == (8, 3, 24, 24) and alone[0][0].dtype == torch.float32
    assert torch.equal(next(iter(feeds[0].epoch(1, 2)))[0], alone[2][0])
    assert not torch.equal(next(iter(feeds[0].epoch(0)))[0], alone[0][0])
    halves = [next(iter(replace(files, workers=0).feed(recipe, 3, rank=rank, world=2).epoch(1))) for rank in (0, 1)]
    assert torch.equal(torch.cat([x for x, _ in halves]), alone[0][0])
    labels = torch.cat([y for _, y in alone])
    assert sorted(labels.tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    colours = torch.cat([x for x, _ in alone]).mean((2, 3)).argmax(1)
    assert torch.equal(colours, labels)


def test_validation_images_in_class_folders_or_flat(folder):
    found = data.load("imagenet", False, folder, size=24)
    (codes, labels), = found.at(16).batches(10)
    assert codes.shape == (6, 3, 16, 16) and labels.tolist() == [0, 0, 1, 1, 2, 2]
    sampled, answers = found.part(np.array([5, 0])).sample(3, 16, 3)
    assert (sampled[0] == codes[5].numpy()).all() and answers.tolist() == [2, 0, 2]
    lines = []
    for number, name in enumerate(CLASSES):
        for file in sorted((folder / "val" / name).iterdir()):
            file.rename(folder / "val" / file.name)
            lines.append(f"{file.name} {name if number else 0}")
        (folder / "val" / name).rmdir()
    (folder / "val.txt").write_text("\n".join(reversed(lines)))
    flat = data.load("imagenet", False, folder)
    assert flat.labels.tolist() == [0, 0, 1, 1, 2, 2] and flat.size == 64
    for text, words in (
        (lines[0], "val.txt: has no line for val_n01_1.JPEG"),
        ("a.JPEG n09", "val.txt:1: 'a.JPEG n09'; a line holds a file and its class, one of 3"),
        ("a.JPEG", "val.txt:1: 'a.JPEG'"),
    ):
        (folder / "val.txt").write_text(text)
        with pytest.raises(DataError, match=words):
            data.load("imagenet", False, folder)
    (folder / "val.txt").unlink()
    with pytest.raises(DataError, match="val.txt is missing.*FILE CLASS"):
        data.load("imagenet", False, folder)


def test_what_is_missing_or_broken_is_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="imagenet: name its folder by --data"):
        data.load("imagenet", True)
    with pytest.raises(DataError, match="none/train: holds no class folders"):
        data.load("imagenet", True, tmp_path / "none")
    files = data.load("imagenet", True, folder, size=24)
    with pytest.raises(ConfigError, match=r"the net takes 1 channel\(s\)"):
        files.feed(Recipe(((24, 1),)), 1)
    with pytest.raises(ConfigError, match="batch 256 on 3 processes"):
        files.feed(Recipe(((24, 1),)), 3, world=3)
    broken = folder / "train" / "n02" / "broken.JPEG"
    broken.write_bytes(b"no image")
    files = data.load("imagenet", True, folder, size=24)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^[^\n]*broken.JPEG[^\n]*remove the file or replace it$"):
            list(replace(files, workers=workers).batches(30))
    (folder / "val" / "n99").mkdir()
    with pytest.raises(DataError, match="n99: no such class"):
        data.load("imagenet", False, folder)
    for file in folder.glob("val/*/*"):
        file.unlink()
    (folder / "val" / "n99").rmdir()
    with pytest.raises(DataError, match="val: no images"):
        data.load("imagenet", False, folder)


class Tiny(Net):
    name = "tiny"

    def __init__(self, classes: int = 3):
        super().__init__()
        self.stem, self.pool = Layer(3, 12, 3, 2, 1, role="stem"), AveragePool()
        self.fc = Layer(12, classes, 1, role="classifier")

    def graph(self, x):
        return self.fc(self.pool(self.stem(x)))


def test_a_net_learns_from_files(folder):
    torch.manual_seed(0)
    files = replace(data.load("imagenet", True, folder), workers=0)
    test = replace(data.load("imagenet", False, folder), workers=0)
    net, recipe = Tiny(), Recipe(((32, 12),), batch=8, rate=3e-2, optimizer="adam", weight_decay=0, calibration=24)  # fmt: skip
    fit(net, files, recipe, log=lambda line: None)
    fit(quantize_(net, SLB(2, 8)), files, recipe, log=lambda line: None)
    share = accuracy(net, test, 32)
    print(share)
    assert share >= 5 / 6
