"""Trained nets by name: the shipped checkpoints, cached ones, or a short training.

`produce` is the whole recipe (float net, SLB, float reference, packed checkpoint); `load_or_train`
is what a simulation calls and never takes long.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from seriatim.algo import checkpoint, data, recipes
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.data import Images
from seriatim.algo.export import IntegerNetwork, export_integer
from seriatim.algo.images import resize, to_channels
from seriatim.algo.layers import SLB
from seriatim.algo.nets import NETS, Net, build, quantize_
from seriatim.algo.slb import SLBWeight, logits_for
from seriatim.algo.train import Recipe, accuracy, fit
from seriatim.errors import ConfigError, DataError
from seriatim.sim import files

HERE = Path(__file__).parent
SHIPPED = HERE / "checkpoints"
SAMPLES = HERE / "samples" / "fashion-mnist-test256.npz"
CACHE = Path("build/train")
DATASETS = {"resnet18": "fashion-mnist", "resnet20": "fashion-mnist", "digits": "digits"}


def check(net: str, quant: str, w: int, a: int, first_last: int | None = None) -> SLB:
    """The quantisation that a command names.

    Raises:
        ConfigError: an unknown net or quantiser, or a width outside 1..8.
    """
    if net not in NETS:
        raise ConfigError(f"net {net!r}: choose one of {', '.join(NETS)}")
    if quant != "slb":
        raise ConfigError(f"quant {quant!r}: this version has slb; choose it")
    return SLB(w, a, first_last)


def name_of(net: str, quant: str, w: int, a: int, first_last: int | None = None) -> str:
    """File name, without suffix, of a checkpoint: resnet18-slb-w1a8."""
    return f"{net}-{quant}-w{w}a{a}" + (f"-fl{first_last}" if first_last else "")


def sample_images(net: str, n: int, image_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 codes (n, C, H, W), int64 labels (n,)) of held-out images, as `net` takes them.

    The first 256 official Fashion-MNIST test images are shipped, and repeat after the 256th; the
    digits come from scikit-learn.

    Raises:
        ConfigError: an unknown net or n below 1.
    """
    if net not in NETS:
        raise ConfigError(f"net {net!r}: choose one of {', '.join(NETS)}")
    if n < 1:
        raise ConfigError(f"{n} images: at least one is needed")
    found = data.digits(train=False) if DATASETS[net] == "digits" else _shipped_images()
    index = np.arange(n) % len(found)
    images = resize(found.images[index], image_size or NETS[net].image_size)
    codes = to_channels(images, NETS[net].channels)
    return np.ascontiguousarray(codes), found.labels[index]


def _shipped_images() -> Images:
    try:
        with np.load(SAMPLES) as content:
            return Images(content["images"], content["labels"].astype(np.int64), 10, "fashion-mnist")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{SAMPLES}: {error}; install the package again") from error


def write_samples(path: Path = SAMPLES, count: int = 256) -> None:
    """Make the shipped sample out of the official test files."""
    test = data.fashion_mnist(train=False)
    np.savez_compressed(
        path, images=test.images[:count], labels=test.labels[:count].astype(np.uint8)
    )


def train_float(net: str, recipe: Recipe, train: Images, path: Path, log=print, **kw) -> Net:
    """The float net that SLB starts at; resumes from, and leaves its state in, `path`."""
    torch.manual_seed(recipe.seed)
    model = build(net, train.classes)
    fit(model, train, recipe, path, log=log, **kw)
    return model


def copy_start(source: Net, config: SLB) -> Net:
    """A net of other widths that starts at the argmax weights and scales of `source`.

    `source` has SLB weights of one bit: +-1 are the outermost levels of every wider format, so the weights say the
    same; activations of fewer bits need the training that follows.
    """
    net = build(source.name, source.get_submodule("fc").shape[0])
    twins = dict(source.named_modules())
    with torch.no_grad():
        for name, module in net.named_modules():
            if hasattr(module, "quantiser"):
                quantiser = twins[name].quantiser
                scale = quantiser.scale().float().view(-1, 1, 1, 1)
                module.weight.copy_(quantiser.integers() * scale)
        quantize_(net, config)
        for name, module in net.named_modules():
            if isinstance(module, SLBWeight):  # near its level, but free to leave it
                target = 0.9 * twins[name].integers() * float(twins[name].scale()[0])
                one = 2 * module.tau * torch.atanh(target) if module.bits == 1 else None
                start = logits_for(target, module.bits, module.tau) if one is None else one
                module.logits.copy_(start)
        state, old = net.state_dict(), source.state_dict()
        kept = {k: v for k, v in old.items() if k in state and "quantiser" not in k}
        for name in list(kept):
            if name.endswith("act.log_scale"):
                twin, new = twins[name.removesuffix(".log_scale")], net.get_submodule(name[:-10])
                kept[name] = kept[name] + np.log(twin.format.hi / new.format.hi)
        net.load_state_dict({**state, **kept})
    return net


def finish(
    net: Net, metadata: Metadata, test: Images, path: Path, log: Callable[[str], None] = print
) -> Metadata:
    """Measure the integer network on `test`, pack the net into `path`; returns the full metadata."""
    share = accuracy(net, test, metadata.image_size)
    log(f"integer network: {share:.4f} of {len(test)} test images right")
    metadata = dataclasses.replace(metadata, accuracy=share, test_images=len(test))
    checkpoint.save(net, metadata, path)
    log(f"{path}: {path.stat().st_size} bytes")
    return metadata


def produce(
    net: str,
    quant: str = "slb",
    w: int = 1,
    a: int = 8,
    first_last: int | None = None,
    *,
    out: Path | None = None,
    folder: Path = CACHE,
    stages: tuple[Recipe, ...] | None = None,
    dataset: str | None = None,
    data_folder: Path | None = None,
    reference: bool = False,
    command: str = "",
    log: Callable[[str], None] = print,
    progress: bool = True,
) -> Metadata:
    """The whole recipe: float net, SLB from its weights, packed checkpoint in `out`.

    Every stage resumes from its state in `folder`. With `reference` the float net goes on for the
    epochs that SLB had (`recipes.alike`) and its accuracy is written beside.

    Raises:
        ConfigError, DataError, CheckpointError: see `check`, `data.load`, `train.fit`.
    """
    config = check(net, quant, w, a, first_last)
    dataset = dataset or DATASETS[net]
    stages = stages or recipes.SLB[net]
    name = name_of(net, quant, w, a, first_last)
    out = out or folder / f"{name}.ckpt"
    size = stages[-1].sizes[-1][0]
    train = data.load(dataset, True, data_folder, size)
    test = data.load(dataset, False, data_folder, size)
    start = folder / f"{net}-float.pt"
    model = train_float(net, recipes.FLOAT[net], train, start, log=log, progress=progress)
    quantize_(model, config)
    for index, stage in enumerate(stages):
        path, last = folder / f"{name}.{index}.pt", index == len(stages) - 1
        fit(model, train, stage, path, log=log, progress=progress, last=last)
    metadata = Metadata(
        net, w, a, quant, first_last, dataset, size, train.classes, command=command,
        notes={"float": repr(recipes.FLOAT[net]), quant: repr(stages)},
    )  # fmt: skip
    metadata = finish(model, metadata, test, out, log)
    if reference:
        twin = train_float(net, recipes.FLOAT[net], train, start, log=log)
        alike = recipes.alike(stages)
        for index, stage in enumerate(alike):
            fit(twin, train, stage, folder / f"{net}-alike.{index}.pt", log=log, progress=progress)
        share = accuracy(twin, test, size)
        log(f"float net trained alike: {share:.4f}")
        notes = {**metadata.notes, "alike": repr(alike)}
        metadata = dataclasses.replace(metadata, float_accuracy=share, notes=notes)
        checkpoint.save(model, metadata, out)
    return metadata


def load_net(
    net: str,
    quant: str = "slb",
    w: int = 1,
    a: int = 8,
    first_last: int | None = None,
    *,
    path: Path | None = None,
    folder: Path = CACHE,
    log: Callable[[str], None] = print,
    progress: bool = True,
) -> tuple[Net, Metadata]:
    """The low-bit net at these widths, and what is known of its checkpoint.

    In this order: `path`, the checkpoint shipped, one cached in `folder`, or a short training (at
    most a few minutes, its accuracy is measured on 1000 images and logged) that starts at the
    shipped W1A8 net and is cached; one process trains where several want the same.
    `seriatim train` runs the whole recipe instead.

    Raises:
        ConfigError: an unknown net or quantiser, or a width outside 1..8.
        CheckpointError: a checkpoint that cannot be used.
    """
    config = check(net, quant, w, a, first_last)
    name = name_of(net, quant, w, a, first_last) + ".ckpt"
    if path is not None:
        model, metadata = checkpoint.load(Path(path), net)
        found = metadata.w, metadata.a, metadata.first_last
        if found != (w, a, first_last):
            raise ConfigError(
                f"{path}: W, A, FIRST_LAST = {found}, but {(w, a, first_last)} were asked for; ask "
                "for what it holds or name another checkpoint"
            )
    else:
        for candidate in (SHIPPED / name, Path(folder) / name):
            if candidate.exists():
                return checkpoint.load(candidate, net)
        with files.locked(Path(folder, name + ".lock"), f"training {name}"):
            if Path(folder, name).exists():
                return checkpoint.load(Path(folder, name), net)
            return _short(net, config, Path(folder), log, progress)
    return model, metadata


def load_or_train(
    net: str, *args, image_size: int | None = None, **kw
) -> tuple[IntegerNetwork, Metadata]:
    """`load_net`, exported for images of `image_size` (default: the net's own).

    Raises:
        ConfigError: also an image size that the net cannot take.
    """
    model, metadata = load_net(net, *args, **kw)
    return export_integer(model, image_size), metadata


SHORT = {"resnet18": (2560, 64), "resnet20": (12800, 128), "digits": (1437, 64)}
"""Images and batch of the short training."""


def _short(net: str, config: SLB, folder: Path, log, progress) -> tuple[Net, Metadata]:
    name = name_of(net, "slb", config.weight_bits, config.act_bits, config.first_last)
    shipped = SHIPPED / f"{name_of(net, 'slb', 1, 8)}.ckpt"
    log(f"{name}: no checkpoint, training briefly (`seriatim train` runs the whole recipe)")
    dataset, size = DATASETS[net], NETS[net].image_size
    try:
        train, test = data.load(dataset, True), data.load(dataset, False)
    except DataError as error:
        log(f"{error}; only the shipped sample is used")
        train = test = _shipped_images()
    count, batch = SHORT[net]
    recipe = Recipe(
        ((size, 30 if net == "digits" else 1),), batch, 1e-3, 0.0, "adam", tau=(0.05, 0.003),
        shift=0 if net == "digits" else 2, flip=net != "digits", calibration=1024,
    )  # fmt: skip
    if shipped.exists():
        model = copy_start(checkpoint.load(shipped, net)[0], config)
    else:
        torch.manual_seed(recipe.seed)
        model = quantize_(build(net, train.classes), config)
    part = Images(train.images[:count], train.labels[:count], train.classes, train.name)
    fit(model, part, recipe, log=log, progress=progress)
    held = Images(test.images[:1000], test.labels[:1000], test.classes, test.name)
    metadata = Metadata(
        net, config.weight_bits, config.act_bits, "slb", config.first_last, dataset, size,
        train.classes, command="short training of load_or_train", notes={"slb": repr(recipe)},
    )  # fmt: skip
    metadata = finish(model, metadata, held, folder / f"{name}.ckpt", log)
    return model.eval(), metadata
