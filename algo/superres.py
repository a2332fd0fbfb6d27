"""Super-resolution as the literature measures it: luma, bicubic scaling, patches, PSNR and SSIM.

Images are made as the papers' MATLAB scripts make them: the luma of an image, cropped to a multiple of the scale, is scaled down
and up again by `imresize`'s bicubic with antialiasing, in floating point in between, and rounded to 8 bits at the end. What a
net reads is that blurred luma at full size; its target is the luma itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seriatim.algo.recipes import Recipe
from seriatim.errors import ConfigError, DataError

SCALES = (2, 3, 4)
SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")


def luma(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W) luma of uint8 (H, W, 3) RGB by ITU-R BT.601, 16..235, rounded half up: MATLAB's rgb2ycbcr. A grey image
    (H, W) is its own luma."""
    if pixels.ndim == 2:
        return pixels
    weights = np.array([65481, 128553, 24966], np.int64)  # exact: 255000 units for each code
    return ((2 * (pixels.astype(np.int64) @ weights + 16 * 255000) + 255000) // 510000).astype(np.uint8)


def _cubic(x: Fraction) -> Fraction:
    """Keys' cubic convolution kernel with a = -1/2 (Keys 1981)."""
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x < 2:
        return Fraction(-1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


@cache
def _phase(offset: Fraction, stretch: Fraction) -> tuple[int, tuple[Fraction, ...]]:
    """(first tap, weights) about a centre that lies `offset` behind a sample; the weights' sum is 1."""
    first = -int((2 * stretch - offset) // 1)
    weights = [_cubic((first + i - offset) / stretch) for i in range(int(4 * stretch) + 2)]
    total = sum(weights)
    return first, tuple(weight / total for weight in weights)


def taps(size: int, scale: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and float64 weights, both (ceil(size * scale), taps), of MATLAB's imresize(..., 'bicubic').

    The kernel is stretched by 1 / scale where the image shrinks; outside, the image is mirrored.
    """
    stretch = max(Fraction(1), 1 / scale)
    indices, weights = [], []
    for place in range(-int(-size * scale // 1)):
        centre = (place + Fraction(1, 2)) / scale - Fraction(1, 2)
        first, row = _phase(centre % 1, stretch)
        indices.append(int(centre // 1) + first + np.arange(len(row)))
        weights.append([float(weight) for weight in row])
    mirrored = np.array(indices) % (2 * size)
    return np.minimum(mirrored, 2 * size - 1 - mirrored), np.array(weights)


def bicubic(image: np.ndarray, scale: Fraction | int) -> np.ndarray:
    """float64 (ceil(H * scale), ceil(W * scale)) of an image (H, W).

    Raises:
        ConfigError: a scale that is not positive.
    """
    scale = Fraction(scale)
    if scale <= 0:
        raise ConfigError(f"scale {scale}: it must be positive")
    for axis in (0, 1):
        index, weight = taps(image.shape[axis], scale)
        moved = np.moveaxis(image.astype(np.float64), axis, 0)
        image = np.moveaxis(np.einsum("otw,ot->ow", moved[index], weight), 0, axis)
    return image


def to_codes(image: np.ndarray) -> np.ndarray:
    """uint8, rounded half up."""
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def modcrop(image: np.ndarray, scale: int) -> np.ndarray:
    """The upper left part whose sides are multiples of `scale`."""
    height, width = (side - side % scale for side in image.shape[:2])
    return image[:height, :width]


def degrade(image: np.ndarray, scale: int) -> np.ndarray:
    """uint8 luma of the same size, scaled down by `scale` and up again; the sides must be multiples of it."""
    return to_codes(bicubic(bicubic(image, Fraction(1, scale)), scale))


def shave(image, border: int):
    """`image` (..., H, W) without `border` pixels on each side."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit images in dB: 10 log10(255^2 / mean squared error)."""
    error = np.mean((found.astype(np.float64) - wanted.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(found: np.ndarray, wanted: np.ndarray) -> float:
    """Structural similarity of 8-bit images (H, W): Wang et al. 2004, the mean over all 11x11 Gaussian windows (sigma 1.5)
    that lie inside, K1 = 0.01, K2 = 0.03.

    Raises:
        DataError: a side below 11.
    """
    if min(found.shape) < 11:
        raise DataError(f"images of {found.shape[0]}x{found.shape[1]}: SSIM takes windows of 11x11; give larger ones")
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(image):
        rows = np.lib.stride_tricks.sliding_window_view(image, 11, 0) @ window
        return np.lib.stride_tricks.sliding_window_view(rows, 11, 1) @ window

    x, y = found.astype(np.float64), wanted.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


class SuperResolution:
    """Luma (N, 1, H, W) in 0..1 against codes 0..255: squared error; PSNR in dB, the mean over the images. A target without its
    border leaves out the output's."""

    metric, unit, units = "PSNR", "dB", 1

    @staticmethod
    def text(value: float) -> str:
        return f"{value:.2f} dB"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Half the mean squared error, in units of 255."""
        return 0.5 * (self._inner(output, target) - target / 255).square().mean()

    @torch.no_grad()
    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """The metric: a float64 scalar on the device."""
        codes = (self._inner(output, target).double() * 255 + 0.5).floor().clamp(0, 255)
        error = (codes - target).square().mean((1, 2, 3)).clamp_min(1e-10)
        return (10 * torch.log10(255**2 / error)).mean()

    @staticmethod
    def _inner(output: Tensor, target: Tensor) -> Tensor:
        return shave(output, (output.shape[-1] - target.shape[-1]) // 2)


@dataclass(frozen=True)
class Pair:
    """The blurred and the true uint8 luma (H, W) of an image at one scale."""

    low: np.ndarray
    high: np.ndarray
    scale: int


@dataclass(frozen=True)
class Pictures:
    """Images for super-resolution, at all of their scales.

    Whole images are what is measured (`batches`); a training reads patches of `size` x `size` (`feed`).
    """

    pairs: tuple[Pair, ...]
    name: str
    size: int = 41
    classes: int = 1

    def __len__(self):
        return len(self.pairs)

    def at(self, size: int) -> "Pictures":
        """The same with patches of `size` x `size`.

        Raises:
            DataError: an image that is smaller.
        """
        smallest = min(min(pair.high.shape) for pair in self.pairs)
        if smallest < size:
            raise DataError(f"{self.name}: an image with a side of {smallest} holds no patch of {size}x{size}; choose a smaller")
        return replace(self, size=size)

    def part(self, index: np.ndarray) -> "Pictures":
        """Those images alone, in that order."""
        return replace(self, pairs=tuple(self.pairs[i] for i in index))

    def sample(self, count: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` patches spread over the images, uint8 (count, 1, size, size), and their targets without a border as wide as the
        largest scale; they repeat where more are asked for than lie side by side.

        Raises:
            DataError: see `at`.
        """
        patches = []
        for pair in self.at(size).pairs:
            both = np.stack((pair.low, pair.high))
            rows, columns = (range(0, side - size + 1, size) for side in pair.high.shape)
            patches += [both[:, None, top : top + size, left : left + size] for top in rows for left in columns]
        low, high = np.stack([patches[i * max(len(patches), count) // count % len(patches)] for i in range(count)], 1)
        return low, np.ascontiguousarray(shave(high, max(pair.scale for pair in self.pairs)))

    def batches(self, batch: int, channels: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Each image for itself: (float32 codes (1, 1, H, W), codes without a border as wide as the scale)."""
        for pair in self.pairs:
            low, high = (torch.from_numpy(image)[None, None].float() for image in (pair.low, pair.high))
            yield low, shave(high, pair.scale)

    def feed(self, recipe: Recipe, channels: int = 1, device="cpu", rank: int = 0, world: int = 1) -> "Patches":
        """What a training by `recipe` reads."""
        return Patches(self, recipe, device, rank, world)


class Patches:
    """Random patches of `Pictures`, turned and mirrored where `recipe.flip`: float32 codes and targets (N, 1, size, size).

    An epoch has `recipe.images` patches, by default as many as fill the images. What it draws follows from the seed and the
    epoch alone, as in `feed.Feed`; of each batch process `rank` of `world` gets its share, in order.

    Raises:
        ConfigError: a batch that `world` does not divide.
    """

    def __init__(self, data: Pictures, recipe: Recipe, device="cpu", rank=0, world=1):
        if recipe.batch % world:
            raise ConfigError(f"batch {recipe.batch} on {world} processes: choose a multiple of {world}")
        self.recipe, self.device, self.rank, self.world = recipe, torch.device(device), rank, world
        self.size = data.size
        self.images = [torch.from_numpy(np.stack((pair.low, pair.high))) for pair in data.pairs]
        areas = np.array([pair.high.size for pair in data.pairs])
        self.chances = areas / areas.sum()
        count = recipe.images or int(areas.sum()) // data.size**2
        self.batch = min(recipe.batch, count)
        self.steps = count // self.batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch` from step `first` on."""
        rng = np.random.default_rng((self.recipe.seed, epoch))
        total = self.steps * self.batch
        chosen = rng.choice(len(self.images), total, p=self.chances)
        places, turns = rng.random((total, 2)), rng.integers(0, 8, total) * self.recipe.flip
        share = self.batch // self.world
        for step in range(first, self.steps):
            begin = step * self.batch + self.rank * share
            part = torch.stack([self._patch(chosen[i], places[i], turns[i]) for i in range(begin, begin + share)])
            part = part.to(self.device, non_blocking=True).float()
            yield part[:, :1], part[:, 1:]

    def _patch(self, index: int, place: np.ndarray, turn: int) -> Tensor:
        image, size = self.images[index], self.size
        top, left = (int(share * (side - size + 1)) for share, side in zip(place, image.shape[1:]))
        patch = image[:, top : top + size, left : left + size].rot90(turn % 4, (1, 2))
        return patch.flip(2) if turn >= 4 else patch


def pairs_of(images: list[np.ndarray], scales: tuple[int, ...]) -> tuple[Pair, ...]:
    """Blurred and true luma of uint8 images (H, W[, 3]) at each scale."""
    found = []
    for image in images:
        for scale in scales:
            high = modcrop(luma(image), scale).copy()
            found.append(Pair(degrade(high, scale), high, scale))
    return tuple(found)


def read_folder(folder: Path) -> list[np.ndarray]:
    """uint8 RGB (H, W, 3) or grey (H, W) images of a folder, by name.

    Raises:
        DataError: no such folder, no images in it, one that cannot be read or has a side below 16.
    """
    from PIL import Image, UnidentifiedImageError

    folder = Path(folder)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: holds no images ({', '.join(SUFFIXES)}); name a folder that does by --data")
    images = []
    for file in files:
        try:
            with Image.open(file) as picture:
                images.append(np.asarray(picture if picture.mode == "L" else picture.convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{file}: {error}; remove the file or replace it") from error
        if min(images[-1].shape[:2]) < 16:
            raise DataError(f"{file}: {images[-1].shape[1]}x{images[-1].shape[0]} pixels; each side must have at least 16")
    return images


def photographs(train: bool) -> list[np.ndarray]:
    """The photograph of scikit-learn to train on, or the other one."""
    from sklearn.datasets import load_sample_image

    return [load_sample_image("china.jpg" if train else "flower.jpg")]


def scales_of(dataset: str) -> tuple[int, ...]:
    """The scales that a name as "pictures-x2" or "pictures-x234" says.

    Raises:
        ConfigError: others than 2, 3 and 4, or no such name.
    """
    match = re.fullmatch(r"pictures-x([2-4]+)", dataset)
    if not match or len(set(match[1])) < len(match[1]):
        raise ConfigError(f"data set {dataset!r}: pictures-x2, -x3, -x4, or several scales as in pictures-x234")
    return tuple(map(int, match[1]))


def load(dataset: str, train: bool, folder: Path | None = None) -> Pictures:
    """`dataset` "pictures-xSCALES": the images of FOLDER/train or FOLDER/test; of FOLDER itself where it has no such folders
    (then every tenth is held out); scikit-learn's photographs without a folder.

    Raises:
        ConfigError: see `scales_of`. DataError: see `read_folder`, or one image where some are to be held out.
    """
    scales = scales_of(dataset)
    if folder is None:
        return Pictures(pairs_of(photographs(train), scales), dataset)
    part = Path(folder) / ("train" if train else "test")
    if part.is_dir():
        return Pictures(pairs_of(read_folder(part), scales), dataset)
    images = read_folder(folder)
    if len(images) < 2:
        raise DataError(f"{folder}: one image; give two at least, to train on one and measure on the other")
    chosen = [image for number, image in enumerate(images) if (number % 10 == 1) != train]
    return Pictures(pairs_of(chosen, scales), dataset)
