"""Data sets in their official formats, read without any download.

A set in memory is `Images`: uint8 codes (N, C, H, W) and int64 labels. Those that are read as they are needed
(`imagenet.ImageFiles`) or have images as targets (`superres.Pictures`) offer the same: `len`, `name`, `classes`, `at(size)`,
`part(index)`, `feed(recipe, channels, ...)` for a training, `batches(batch, channels)` for a measurement, `sample(count, size,
channels)` for a simulation. A missing, truncated or malformed file is a DataError that says what was found, what the format asks
for, and what to do.
"""

import gzip
import hashlib
import os
import pickle
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from seriatim.algo import imagenet, superres
from seriatim.algo.feed import Feed
from seriatim.algo.imagenet import ImageFiles
from seriatim.algo.images import batches, resize, to_channels
from seriatim.algo.recipes import Recipe
from seriatim.algo.superres import Pictures
from seriatim.errors import ConfigError, DataError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the official files."""

CACHE_VERSION = 1
"""Of how images of a folder are decoded and kept."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm")


@dataclass(frozen=True)
class Images:
    """uint8 images (N, C, H, W), int64 labels (N,), the number of classes and the set's name."""

    images: np.ndarray
    labels: np.ndarray
    classes: int
    name: str

    def __len__(self):
        return len(self.images)

    def at(self, size: int) -> "Images":
        """The same, scaled to `size` x `size` (`images.resize`)."""
        return replace(self, images=resize(self.images, size))

    def part(self, index: np.ndarray) -> "Images":
        """Those images alone, in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def feed(self, recipe: Recipe, channels: int, device="cpu", rank: int = 0, world: int = 1) -> Feed:
        """What a training by `recipe` reads: these images shuffled and augmented."""
        return Feed(self.images, self.labels, recipe, channels, device, rank, world)

    def sample(self, count: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` images as a net takes them, uint8 (count, channels, size, size), and their labels; they repeat
        after the last."""
        part = self.part(np.arange(count) % len(self)).at(size)
        return np.ascontiguousarray(to_channels(part.images, channels)), part.labels

    def batches(self, batch: int, **kw) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See `images.batches`."""
        return batches(self.images, self.labels, batch, **kw)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, plain or gzipped (the format of MNIST and Fashion-MNIST).

    Raises:
        DataError: missing, corrupt or truncated, or not an IDX file of bytes.
    """
    try:
        raw = Path(path).read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}; fetch the official file again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4:
        raise DataError(
            f"{path}: starts with {raw[:4].hex() or 'nothing'}; an IDX file of bytes starts with "
            "000008 and its number of dimensions, 01 to 04: give the official file"
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{path}: {len(raw)} bytes end inside the header; fetch the file again")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4))
    need = header + int(np.prod(shape, dtype=object))
    if len(raw) != need:
        raise DataError(
            f"{path}: {len(raw)} bytes, but {'x'.join(map(str, shape))} needs {need}: the file is "
            "truncated or damaged, fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _either(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(
        f"{folder / name}[.gz] is missing: install Debian's package dataset-fashion-mnist, or name "
        "a folder with the official IDX files by --data"
    )


def _checked(images: np.ndarray, labels: np.ndarray, classes: int, name: str) -> Images:
    if len(images) != len(labels):
        raise DataError(
            f"{name}: {len(images)} images but {len(labels)} labels: each image needs one; the "
            "files are not of the same set"
        )
    if len(labels) == 0:
        raise DataError(f"{name}: no images; give a folder that holds some")
    if int(labels.max()) >= classes:
        raise DataError(
            f"{name}: label {int(labels.max())}, but it has {classes} classes (0 to {classes - 1}): "
            "the file is damaged, fetch it again"
        )
    return Images(images, labels.astype(np.int64), classes, name)


def fashion_mnist(train: bool, folder: Path | None = None) -> Images:
    """Fashion-MNIST: 60,000 or 10,000 grey images (N, 1, 28, 28) of the official IDX files.

    Raises:
        DataError: a file is missing or malformed.
    """
    folder = FASHION_MNIST if folder is None else Path(folder)
    part = "train" if train else "t10k"
    images = read_idx(_either(folder, f"{part}-images-idx3-ubyte"))
    labels = read_idx(_either(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1:
        raise DataError(
            f"{folder}: images of {images.ndim} and labels of {labels.ndim} dimensions; the official "
            "files have 3 and 1"
        )
    return _checked(images[:, None], labels, 10, "fashion-mnist")


def cifar10(train: bool, folder: Path) -> Images:
    """CIFAR-10 in its official python or binary version: colour images (N, 3, 32, 32).

    `folder` holds data_batch_1.. and test_batch (python) or the same names with .bin. The python
    version is a pickle: only the plain types that it needs are loaded from it.

    Raises:
        DataError: a file is missing or malformed.
    """
    folder = Path(folder)
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    parts = []
    for name in names:
        if (folder / f"{name}.bin").exists():
            parts.append(_cifar_binary(folder / f"{name}.bin"))
        elif (folder / name).exists():
            parts.append(_cifar_python(folder / name))
        else:
            raise DataError(
                f"{folder / name}[.bin] is missing: unpack the official cifar-10-python or "
                "cifar-10-binary archive and name its folder by --data"
            )
    images = np.concatenate([images for images, _ in parts])
    return _checked(images, np.concatenate([labels for _, labels in parts]), 10, "cifar-10")


def _cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % 3073:
        raise DataError(
            f"{path}: {raw.size} bytes; the binary version holds records of 3073 bytes: fetch the "
            "file again"
        )
    raw = raw.reshape(-1, 3073)
    return raw[:, 1:].reshape(-1, 3, 32, 32), raw[:, 0]


class _PlainUnpickler(pickle.Unpickler):
    """Loads the containers and the NumPy arrays of CIFAR-10's files and nothing else."""

    def find_class(self, module, name):
        if (module.split(".")[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a CIFAR-10 file")


def _cifar_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(path, "rb") as file:
            content = _PlainUnpickler(file, encoding="bytes").load()
        images = np.asarray(content[b"data"], np.uint8)
        labels = np.asarray(content[b"labels"], np.int64)
        return images.reshape(-1, 3, 32, 32), labels
    except Exception as error:  # a damaged pickle can raise anything at all
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; the python version is a pickled dictionary "
            "with b'data' and b'labels': fetch the file again"
        ) from error


def image_folder(folder: Path, size: int) -> Images:
    """Colour images (N, 3, size, size) of FOLDER/CLASS/xxx.jpg; classes in alphabetical order.

    They are decoded once and kept in the cache; other names, sizes or times of the files make it anew.

    Raises:
        DataError: no folder, no class folders, no images, or an image that cannot be read.
    """
    from seriatim.sim import build

    folder = Path(folder)
    classes = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not classes:
        raise DataError(f"{folder}: holds no class folders; images are read from FOLDER/CLASS/xxx.jpg")
    files, labels, listing = [], [], []
    for label, path in enumerate(classes):
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.name.lower().endswith(IMAGE_SUFFIXES):
                files.append(Path(entry.path))
                labels.append(label)
                listing.append((path.name, entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
    if not files:
        raise DataError(f"{folder}: no images; supported are {', '.join(IMAGE_SUFFIXES)}")
    key = hashlib.sha256(repr((CACHE_VERSION, str(folder.resolve()), size, listing)).encode()).hexdigest()[:24]

    def decode(place: Path) -> None:
        images = np.empty((len(files), 3, size, size), np.uint8)
        for slot, file in zip(images, tqdm(files, f"decoding {folder.name}", unit="image", leave=False, disable=None)):
            slot[:] = _colour_image(file, size)
        np.savez(place / "images.npz", images=images)

    with np.load(build.cached("data", key, decode, None) / "images.npz") as content:
        return _checked(content["images"], np.array(labels), len(classes), folder.name)


def _colour_image(file: Path, size: int) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{file}: {error}; remove the file or replace it") from error
    return resize(pixels.transpose(2, 0, 1), size)


def digits(train: bool, every: int = 5) -> Images:
    """scikit-learn's 1797 digits (N, 1, 8, 8), 0..16 spread over 0..255. One image of `every` is a test image: for 5 there are
    359 of them, for 3 599."""
    from sklearn.datasets import load_digits

    content = load_digits()
    images = np.minimum(content.images * 16, 255).astype(np.uint8)[:, None]
    test = np.arange(len(images)) % every == every - 1
    chosen = ~test if train else test
    return _checked(images[chosen], content.target[chosen], 10, "digits")


KINDS = (
    "fashion-mnist", "cifar-10", "digits", "digits-599", "folder", "imagenet", "pictures-x2", "pictures-x3", "pictures-x4",
    "pictures-x234",
)  # fmt: skip


def load(name: str, train: bool, folder: Path | None = None, size: int = 64) -> Images | ImageFiles | Pictures:
    """The data set `name`: fashion-mnist, cifar-10, digits, digits-599 (another split), folder (FOLDER/{train,test}/CLASS, all in
    memory), imagenet (`imagenet.load`, read as it goes), or pictures-xSCALES (`superres.load`).

    Raises:
        ConfigError: an unknown name, or no folder where one is needed.
        DataError: a file is missing or malformed.
    """
    if name == "fashion-mnist":
        return fashion_mnist(train, folder)
    if name == "digits":
        return digits(train)
    if name == "digits-599":
        return digits(train, every=3)
    if name.startswith("pictures"):
        return superres.load(name, train, folder)
    if name not in KINDS:
        raise ConfigError(f"data set {name!r}: choose one of {', '.join(KINDS)}")
    if folder is None:
        raise ConfigError(f"data set {name}: name its folder by --data")
    if name == "cifar-10":
        return cifar10(train, folder)
    if name == "imagenet":
        return imagenet.load(folder, train, size)
    return image_folder(Path(folder) / ("train" if train else "test"), size)
