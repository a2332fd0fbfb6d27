import gzip
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from seriatim.algo import data
from seriatim.errors import ConfigError, DataError


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(2)
    images, labels = rng.integers(0, 256, (5, 28, 28)), rng.integers(0, 10, 5)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path, images, labels


def test_reads_idx_files_plain_and_gzipped(fashion):
    folder, images, labels = fashion
    found = data.load("fashion-mnist", False, folder)
    assert found.images.shape == (5, 1, 28, 28) and found.classes == 10
    assert (found.images[:, 0] == images).all() and (found.labels == labels).all()


def test_idx_errors_say_what_to_do(fashion):
    folder, images, labels = fashion
    file = folder / "t10k-labels-idx1-ubyte"
    for content, words in (
        (idx(labels)[:-1], "12 bytes, but 5 needs 13"),
        (b"hello", "68656c6c.*official file"),
        (b"", "nothing"),
        (idx(labels)[:6], "inside the header"),
        (idx(labels[:3]), "5 images but 3 labels"),
        (idx(np.full(5, 11)), "label 11.*10 classes"),
        (gzip.compress(idx(labels))[:-4], "fetch"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=words):
            data.fashion_mnist(False, folder)
    file.unlink()
    with pytest.raises(DataError, match="missing.*dataset-fashion-mnist"):
        data.fashion_mnist(False, folder)


def cifar_part(rng):
    return rng.integers(0, 256, (4, 3072), np.uint8), rng.integers(0, 10, 4)


def test_reads_both_versions_of_cifar10(tmp_path):
    rng = np.random.default_rng(3)
    for kind in ("python", "binary"):
        folder = tmp_path / kind
        folder.mkdir()
        parts = []
        for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
            images, labels = cifar_part(rng)
            parts.append((images, labels))
            if kind == "python":
                content = {b"data": images, b"labels": [int(n) for n in labels]}
                (folder / name).write_bytes(pickle.dumps(content, protocol=2))
            else:
                records = np.concatenate([labels[:, None].astype(np.uint8), images], 1)
                (folder / f"{name}.bin").write_bytes(records.tobytes())
        train, test = data.load("cifar-10", True, folder), data.load("cifar-10", False, folder)
        assert train.images.shape == (20, 3, 32, 32)
        assert (test.images.reshape(4, -1) == parts[5][0]).all()
        assert (train.labels[4:8] == parts[1][1]).all()


def test_cifar10_errors_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="missing.*archive"):
        data.cifar10(False, tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": []})[:-3])
    with pytest.raises(DataError, match="fetch the file again"):
        data.cifar10(False, tmp_path)
    (tmp_path / "test_batch").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match="posix.system does not belong"):
        data.cifar10(False, tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 3000)
    with pytest.raises(DataError, match="3000 bytes.*3073"):
        data.cifar10(False, tmp_path)


def test_reads_image_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("SERIATIM_CACHE", str(tmp_path / "cache"))
    for part, name, colour in (("test", "cat", (255, 0, 0)), ("test", "dog", (0, 0, 255))):
        folder = tmp_path / part / name
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 10), colour).save(folder / "a.png")
    found = data.load("folder", False, tmp_path, size=8)
    assert found.images.shape == (2, 3, 8, 8) and found.classes == 2
    assert found.images[0, :, 0, 0].tolist() == [255, 0, 0] and found.labels.tolist() == [0, 1]
    with monkeypatch.context() as later:
        later.setattr(data, "_colour_image", None)  # a second time nothing is decoded
        again = data.load("folder", False, tmp_path, size=8)
    assert (again.images == found.images).all() and again.labels.tolist() == [0, 1]
    Image.new("RGB", (20, 10), (0, 255, 0)).save(tmp_path / "test" / "dog" / "a.png")
    changed = data.load("folder", False, tmp_path, size=8)
    assert changed.images[1, :, 0, 0].tolist() == [0, 255, 0]
    (tmp_path / "test" / "dog" / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="b.jpg.*replace"):
        data.image_folder(tmp_path / "test", 8)
    with pytest.raises(DataError, match="class folders"):
        data.image_folder(tmp_path / "train", 8)


def test_digits_split_and_range():
    train, test = data.digits(True), data.digits(False)
    assert len(train) + len(test) == 1797 and train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    train, test = data.load("digits-599", True), data.load("digits-599", False)
    assert len(train) == 1198 and len(test) == 599


def test_refuses_unknown_sets():
    with pytest.raises(ConfigError, match="'mnist'.*fashion-mnist"):
        data.load("mnist", True)
    with pytest.raises(ConfigError, match="folder"):
        data.load("cifar-10", True)
