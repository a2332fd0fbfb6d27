"""ImageNet, or any large set of image files: decoded as they are read, by worker processes, never all in memory.

    FOLDER/train/CLASS/*.JPEG
    FOLDER/val/CLASS/*.JPEG       or FOLDER/val/*.JPEG with FOLDER/val.txt, lines of "FILE CLASS" (its name, or its number in the
                                  alphabetical order of the class folders, from 0)

Training reads random resized crops, mirrored at random (Szegedy et al., CVPR 2015, section 6); a test scales the shorter side to
256 / 224 of the size and takes the middle. Both scale bilinearly with antialiasing (Pillow's).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seriatim.algo.recipes import Recipe
from seriatim.errors import ConfigError, DataError

SUFFIXES = (".jpeg", ".jpg", ".png")
WORKERS = min(8, os.cpu_count() or 1)
"""Processes that decode; 0 decodes in the process that trains."""

BOX = Image.Resampling.BILINEAR
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of a random crop: its share of the image's area, width over height, and attempts to find one that fits."""


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: {error}; remove the file or replace it") from error


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).transpose(2, 0, 1)


def centre(picture: Image.Image, size: int) -> np.ndarray:
    """uint8 (3, size, size): the shorter side scaled to size * 256 / 224 (rounded), the middle of it."""
    short = round(size * 256 / 224)
    width, height = (max(short, round(side * short / min(picture.size))) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return _pixels(picture.resize((width, height), BOX).crop((left, top, left + size, top + size)))


def random_crop(picture: Image.Image, size: int, rng: np.random.Generator, flip: bool) -> np.ndarray:
    """uint8 (3, size, size): a random part of the image, its area and ratio drawn by AREA and RATIO, mirrored half the time."""
    width, height = picture.size
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = np.exp(rng.uniform(*np.log(RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = h = min(width, height)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    found = _pixels(picture.resize((size, size), BOX, (left, top, left + w, top + h)))
    return found[:, :, ::-1] if flip and rng.random() < 0.5 else found


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels; `size` is what they are scaled to when they are read."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: int
    name: str
    size: int = 224
    workers: int = WORKERS

    def __len__(self):
        return len(self.files)

    def at(self, size: int) -> "ImageFiles":
        return replace(self, size=size)

    def part(self, index: np.ndarray) -> "ImageFiles":
        """Those images alone, in that order."""
        return replace(self, files=tuple(self.files[i] for i in index), labels=self.labels[index])

    def sample(self, count: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` images, uint8 (count, 3, size, size), and their labels; they repeat after the last."""
        index = np.arange(count) % len(self)
        return np.stack([centre(_open(self.files[i]), size) for i in index]), self.labels[index]

    def batches(self, batch: int, channels: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
        """(float32 codes (N, 3, size, size), int64 labels) of the middle of each image, in order, the last batch shorter."""
        places = [range(at, min(at + batch, len(self))) for at in range(0, len(self), batch)]
        return _read(_Decoder(self, None, False), [[(i, None) for i in place] for place in places], self.workers)

    def feed(self, recipe: Recipe, channels: int, device="cpu", rank: int = 0, world: int = 1) -> "FileFeed":
        """What a training by `recipe` reads."""
        return FileFeed(self, recipe, channels, device, rank, world)


class _Decoder(Dataset):
    """(number, epoch) to the image's codes and its label: the middle of it without an epoch, a random crop that follows from
    seed, epoch and number alone with one."""

    def __init__(self, data: ImageFiles, seed: int | None, flip: bool):
        self.data, self.seed, self.flip = data, seed, flip

    def __getitem__(self, item):
        number, epoch = item
        picture, size = _open(self.data.files[number]), self.data.size
        if epoch is None:
            pixels = centre(picture, size)
        else:
            pixels = random_crop(picture, size, np.random.default_rng((self.seed, epoch, number)), self.flip)
        return torch.from_numpy(np.ascontiguousarray(pixels)), int(self.data.labels[number])


def _read(decoder: _Decoder, places: list, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        for pixels, labels in DataLoader(decoder, batch_sampler=places, num_workers=min(workers, len(places))):
            yield pixels.float().contiguous(memory_format=torch.channels_last), labels
    except DataError as error:  # a worker's comes with the text of its traceback, whose last line says it
        raise DataError(str(error).strip().splitlines()[-1].removeprefix(f"{DataError.__module__}.DataError: ")) from error


class FileFeed:
    """Random crops of image files, in an order and with draws that follow from the seed and the epoch alone, as `feed.Feed`.

    Raises:
        ConfigError: a batch that `world` does not divide, or a net that takes no colour images.
    """

    def __init__(self, data: ImageFiles, recipe: Recipe, channels: int, device="cpu", rank=0, world=1):
        if channels != 3:
            raise ConfigError(f"colour images: the net takes {channels} channel(s); choose another net")
        if recipe.batch % world:
            raise ConfigError(f"batch {recipe.batch} on {world} processes: choose a multiple of {world}")
        self.data, self.recipe, self.device, self.rank, self.world = data, recipe, torch.device(device), rank, world
        count = min(recipe.images or len(data), len(data))
        self.batch = min(recipe.batch, count)
        self.steps = count // self.batch
        self.decoder = _Decoder(data, recipe.seed, recipe.flip)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch` from step `first` on."""
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.data))
        share, places = self.batch // self.world, []
        for step in range(first, self.steps):
            begin = step * self.batch + self.rank * share
            places.append([(int(i), epoch) for i in order[begin : begin + share]])
        for x, y in _read(self.decoder, places, self.data.workers):
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def load(folder: Path, train: bool, size: int = 224) -> ImageFiles:
    """The training or the validation images of `folder`; see above.

    Raises:
        DataError: a folder or file is missing, no images, or labels that do not fit the files.
    """
    folder = Path(folder)
    names = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir()) if (folder / "train").is_dir() else []
    if not names:
        raise DataError(f"{folder / 'train'}: holds no class folders; images are read from FOLDER/train/CLASS/*.JPEG")
    part = folder / ("train" if train else "val")
    if not part.is_dir():
        raise DataError(f"{part} is missing: images to measure on are read from FOLDER/val/CLASS/*.JPEG or FOLDER/val/*.JPEG")
    own = sorted(p.name for p in part.iterdir() if p.is_dir())
    if own:
        unknown = sorted(set(own) - set(names))
        if unknown:
            raise DataError(f"{part / unknown[0]}: no such class in {folder / 'train'}; the two must have the same classes")
        found = [(path, names.index(name)) for name in own for path in _images_in(part / name)]
    else:
        found = _labelled(folder / "val.txt", _images_in(part), names)
    if not found:
        raise DataError(f"{part}: no images ({', '.join(SUFFIXES)}); give a folder that holds some")
    files, labels = zip(*found)
    return ImageFiles(files, np.array(labels, np.int64), len(names), folder.name, size)


def _labelled(path: Path, files: list[Path], names: list[str]) -> list[tuple[Path, int]]:
    """Each file with its label by `val.txt`."""
    if not path.exists():
        raise DataError(f"{path} is missing: images without class folders need it, lines of \"FILE CLASS\"")
    classes = {name: number for number, name in enumerate(names)} | {str(number): number for number in range(len(names))}
    labels = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if len(words) != 2 or words[1] not in classes:
            raise DataError(f"{path}:{number}: {line!r}; a line holds a file and its class, one of {len(names)} (name or number)")
        labels[Path(words[0]).name] = classes[words[1]]
    missing = next((file for file in files if file.name not in labels), None)
    if missing is not None:
        raise DataError(f"{path}: has no line for {missing.name}; each image needs one")
    return [(file, labels[file.name]) for file in files]
