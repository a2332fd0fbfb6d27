"""Trained nets by name: the shipped checkpoints, cached ones, or a short training.

`produce` is the whole recipe (float net, SLB, float reference, packed checkpoint); `load_or_train`
is what a simulation calls and never takes long.
"""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from seriatim.algo import checkpoint, data, recipes
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.data import Images
from seriatim.algo.export import IntegerNetwork, export_integer
from seriatim.algo.nets import NETS, Net, build, quantize_
from seriatim.algo.quantisers.model import per_layer, quantisable
from seriatim.algo.quantisers.scheme import SLB, Scheme, pair_name, pair_of
from seriatim.algo.quantisers.weq import layer_widths
from seriatim.algo.recipes import Plan, Recipe
from seriatim.algo.slb import TAU_START, SLBWeight, logits_for
from seriatim.algo.train import Run, accuracy, fit, read_state
from seriatim.errors import CheckpointError, ConfigError, DataError
from seriatim.sim import files

HERE = Path(__file__).parent
SHIPPED = HERE / "checkpoints"
SAMPLES = HERE / "samples" / "fashion-mnist-test256.npz"
CACHE = Path("build/train")


def check(net: str, quant: str, w: int, a: int, first_last: int | None = None) -> Scheme:
    """The quantisation that a command names, `quant` as `scheme.pair_of` takes it.

    Raises:
        ConfigError: an unknown net or quantiser, or a width that it has not.
    """
    if net not in NETS:
        raise ConfigError(f"net {net!r}: choose one of {', '.join(NETS)}")
    weight, act = pair_of(quant)
    scheme = SLB(w, a, first_last, act=act) if weight == "slb" else Scheme(weight, w, act, a, first_last=first_last)
    scheme.weight_quantiser(torch.linspace(-1, 1, 1024).view(2, 512))  # has it these widths?
    scheme.activation()
    return scheme


def settle(args) -> None:
    """Completes a command line: what it does not say of its network is as `--checkpoint` holds it, else resnet18 W1A8 by SLB.
    `--act-quant` joins `--quant` as a pair.

    Raises:
        CheckpointError: a checkpoint that cannot be used.
    """
    held = checkpoint.read_metadata(Path(args.checkpoint)) if args.checkpoint else Metadata("resnet18", 1, 8)
    for name in ("net", "quant", "w", "a", "first_last"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(held, name))
    if getattr(args, "act_quant", None) and args.quant != "float":
        args.quant, args.act_quant = pair_name(args.quant.partition("+")[0], args.act_quant), None


def name_of(net: str, quant: str, w: int, a: int, first_last: int | None = None) -> str:
    """File name, without suffix, of a checkpoint: resnet18-slb-w1a8, resnet20-dorefa+pact-w4a4."""
    return f"{net}-{quant}-w{w}a{a}" + (f"-fl{first_last}" if first_last else "")


def sample_images(
    net: str | Net, n: int, image_size: int | None = None, file: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 codes (n, C, H, W), what the net's task compares its answers with: int64 labels (n,)) of held-out images, as `net`
    takes them; they repeat where there are fewer.

    Of `file` (`read_samples`), or else of the net's data set: the first 256 official Fashion-MNIST test images are shipped, the
    digits and the photographs come from scikit-learn.

    Raises:
        ConfigError: an unknown net, n below 1, or a data set of which no samples are at hand.
        DataError: a file that holds no images.
    """
    if isinstance(net, str):
        if net not in NETS:
            raise ConfigError(f"net {net!r}: choose one of {', '.join(NETS)}")
        net = NETS[net]
    if n < 1:
        raise ConfigError(f"{n} images: at least one is needed")
    if file is not None:
        found = read_samples(file)
    elif net.dataset == "fashion-mnist":
        found = read_samples(SAMPLES)
    elif net.dataset.startswith(("digits", "pictures")):
        found = data.load(net.dataset, False)
    else:
        raise ConfigError(f"net {net.name}: no images of its data set {net.dataset!r} are at hand; give some by --samples FILE")
    return found.sample(n, image_size or net.image_size, net.channels)


def read_samples(path: Path) -> Images:
    """Images of a NumPy archive: `images`, uint8 (N, C, H, W), and `labels` (N,).

    Raises:
        DataError: missing, damaged, or without such arrays.
    """
    form = "a NumPy archive (.npz) of images, uint8 (N, C, H, W), and labels (N,)"
    try:
        with np.load(path) as content:
            images, labels = content["images"], content["labels"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {error}; samples are {form}: give such a file, or install the package again if it is its own"
                        ) from error
    if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1] or not len(images):
        raise DataError(f"{path}: images {images.dtype} {images.shape}, labels {labels.shape}; samples are {form}")
    return Images(images, labels, int(labels.max()) + 1, Path(path).stem)


def write_samples(path: Path = SAMPLES, count: int = 256) -> None:
    """Make the shipped sample out of the official test files."""
    test = data.fashion_mnist(train=False)
    np.savez_compressed(
        path, images=test.images[:count], labels=test.labels[:count].astype(np.uint8)
    )


def train_float(
    plan: Plan, train: Images, folder: Path, log=print, run: Run = Run(), test=None, start: Path | None = None  # noqa: B008  frozen
) -> Net:
    """The float net of `plan`, from the one in `start` or as `plan` says; resumes from, and leaves its states in, `folder`."""
    if start is not None:
        model = load_float(start, plan.net, train.classes)
    elif plan.start is not None:
        model = train_float(recipes.load(plan.start), train, folder, log, run, test)
    else:
        torch.manual_seed(plan.stages[0].seed)
        model = build(plan.net, train.classes)
    for index, stage in enumerate(plan.stages):
        fit(model, train, stage, folder / f"{plan.name}.{index}.pt", test=test, log=log, run=run)
    return model


FLOAT_KIND = "seriatim float net"


def save_float(net: Net, metadata: Metadata, path: Path) -> Path:
    """Write a float net, which low-bit ones can start at; atomic.

    Raises:
        CheckpointError: a value that is not finite.
    """
    bad = [name for name, value in net.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{bad[0]} holds NaN or infinity: the training diverged")
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    with files.replacing(path) as temporary:
        torch.save({"kind": FLOAT_KIND, "metadata": dataclasses.asdict(metadata), "net": state}, temporary)
    return path


def load_float(path: Path, net: str, classes: int) -> Net:
    """The float net in `path`: what `seriatim train --quant float` wrote, or the state that such a training left.

    Raises:
        CheckpointError: missing, damaged, of another net or number of classes, or low-bit.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        if content.get("kind") == FLOAT_KIND:
            found = content["metadata"]["net"], "None"
        else:
            found = content["identity"]["net"], content["identity"]["quantisation"]
        state = content["net"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path}: no float net ({type(error).__name__}: {error}); write one by `seriatim train --quant float --out {path}`"
        ) from error
    if found != (net, "None"):
        what = found[0] if found[1] == "None" else f"{found[0]} with {found[1]}"
        raise CheckpointError(f"{path}: holds {what}, but a float {net} is asked for; name another file or --net")
    model = build(net, classes)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit {net} of {classes} classes ({error}); train it for this data set") from error
    return model


def copy_start(source: Net, config: Scheme) -> Net:
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
            if name.endswith("act.started"):  # other widths need other scales: found anew at the first batch
                twin, new = (module.get_submodule(name.removesuffix(".started")) for module in (source, net))
                kept[name] &= (twin.format, twin.reads) == (new.format, new.reads)
        net.load_state_dict({**state, **kept})
    return net


def finish(
    net: Net, metadata: Metadata, test: Images, path: Path, log: Callable[[str], None] = print
) -> Metadata:
    """Measure the integer network on `test`, pack the net into `path`; returns the full metadata."""
    share = accuracy(net.cpu(), test, metadata.image_size)
    log(f"integer network: {net.task.metric} {net.task.text(share)} on {len(test)} test images")
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
    plan: Plan | None = None,
    start: Path | None = None,
    out: Path | None = None,
    folder: Path = CACHE,
    dataset: str | None = None,
    data_folder: Path | None = None,
    reference: bool = False,
    command: str = "",
    log: Callable[[str], None] = print,
    run: Run = Run(progress=True),  # noqa: B008  frozen
) -> Metadata:
    """A whole recipe: float net, low-bit net from its weights, packed checkpoint in `out`; with `quant` "float" the float net
    alone, written by `save_float`.

    Every stage resumes from its state beside `out`.

    Args:
        plan: the recipe (default: the packaged one of the net).
        start: a float net to start at (`load_float`) in place of the one that the recipe names and that is trained first.
        reference: the float net goes on for the epochs that the low-bit one had (`recipes.alike`); its accuracy is written
            beside.

    Raises:
        ConfigError, DataError, CheckpointError: see `check`, `data.load`, `train.fit`, `load_float`; a recipe of another net,
            or of a float net where a low-bit one is asked for, or the other way round.
    """
    plan = plan or recipes.default(net, quant != "float")
    config = None if quant == "float" else check(net, quant, w, a, first_last)
    if plan.net != net or plan.quantised != (config is not None):
        kind = "low-bit" if plan.quantised else "float"
        raise ConfigError(f"recipe {plan.name} is for a {kind} {plan.net}, not for --net {net} --quant {quant}: choose another")
    dataset = dataset or plan.dataset
    train = data.load(dataset, True, data_folder, plan.size)
    test = data.load(dataset, False, data_folder, plan.size)
    if config is None:
        out = out or folder / f"{plan.name}.pt"
        model = train_float(dataclasses.replace(plan, name=out.stem), train, out.parent, log, run, test, start)
        share = accuracy(model, test, plan.size)
        metadata = Metadata(
            net, 32, 32, quant, None, dataset, plan.size, train.classes, share, share, len(test), command,
            {"recipe": repr(plan.stages)},
        )  # fmt: skip
        save_float(model, metadata, out)
        _note(metadata, out)
        return metadata
    name = name_of(net, quant, w, a, first_last)
    if plan.name != recipes.DEFAULTS.get(net):
        name = f"{plan.name}-{name.removeprefix(net + '-')}"
    out = out or folder / f"{name}.ckpt"
    notes = {quant: repr(plan.stages)}

    def begin() -> Net:
        if start is not None:
            return load_float(start, net, train.classes)
        if plan.start is None:
            torch.manual_seed(plan.stages[0].seed)
            return build(net, train.classes)
        first = recipes.load(plan.start)
        notes["float"] = repr(first.stages)
        return train_float(first, train, folder, log, run, test)

    model = begin().cpu()
    layers = quantisable(model)
    widths = layer_widths(plan.widths, len(layers), plan.widest, plan.narrowest) if plan.widths else []
    quantize_(model, config, overrides=per_layer(model, config, widths) if widths else None)
    for index, stage in enumerate(plan.stages):
        path, last = out.parent / f"{out.stem}.{index}.pt", index == len(plan.stages) - 1
        fit(model, train, stage, path, test=test, log=log, run=run, last=last)
    metadata = Metadata(
        net, w, a, quant, first_last, dataset, plan.size, train.classes, command=command, notes=notes
    )
    metadata = finish(model, metadata, test, out, log)
    if reference:
        twin = begin()
        alike = recipes.alike(plan.stages)
        for index, stage in enumerate(alike):
            fit(twin, train, stage, out.parent / f"{out.stem}-alike.{index}.pt", test=test, log=log, run=run)
        share = accuracy(twin, test, plan.size)
        log(f"float net trained alike: {share:.4f}")
        notes = {**metadata.notes, "alike": repr(alike)}
        metadata = dataclasses.replace(metadata, float_accuracy=share, notes=notes)
        checkpoint.save(model, metadata, out)
    _note(metadata, out)
    return metadata


def _note(metadata: Metadata, out: Path) -> None:
    """What was measured, beside the net: the metadata and the record of the last epoch, as JSON."""
    stages = sorted(out.parent.glob(f"{out.stem}.*.pt"))
    last = read_state(stages[-1])["history"][-1] if stages else {}
    files.write(out.with_suffix(".json"), json.dumps(dataclasses.asdict(metadata) | {"last": last}, indent=1) + "\n")


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
    shipped W1A8 net (SLB's; others at a float net that is trained as briefly) and is cached; one process trains where several
    want the same.
    `seriatim train` runs the whole recipe instead.

    Raises:
        ConfigError: an unknown net or quantiser, or a width outside 1..8.
        CheckpointError: a checkpoint that cannot be used.
    """
    name = name_of(net, quant, w, a, first_last) + ".ckpt"
    if path is not None:
        model, metadata = checkpoint.load(Path(path), net)
        found = metadata.quant, metadata.w, metadata.a, metadata.first_last
        if found != (quant, w, a, first_last):
            raise ConfigError(
                f"{path}: QUANT, W, A, FIRST_LAST = {found}, but {(quant, w, a, first_last)} were asked for; ask "
                "for what it holds or name another checkpoint"
            )
    else:
        config = check(net, quant, w, a, first_last)
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


def _short(net: str, config: Scheme, folder: Path, log, progress) -> tuple[Net, Metadata]:
    quant = pair_name(config.weight, config.act)
    name = name_of(net, quant, config.weight_bits, config.act_bits, config.first_last)
    shipped = SHIPPED / f"{name_of(net, 'slb', 1, 8)}.ckpt"
    log(f"{name}: no checkpoint, training briefly (`seriatim train` runs the whole recipe)")
    dataset, size = NETS[net].dataset, NETS[net].image_size
    try:
        train, test = data.load(dataset, True), data.load(dataset, False)
    except DataError as error:
        log(f"{error}; only the shipped sample is used")
        train = test = read_samples(SAMPLES)
    fields = {"epochs": 1, **NETS[net].short}
    recipe = Recipe(
        ((size, fields.pop("epochs")),), rate=1e-3, weight_decay=0.0, optimizer="adam",
        tau=(0.05 if shipped.exists() else TAU_START, 0.003), calibration=1024, **fields,
    )  # fmt: skip
    if quant == "slb" and shipped.exists():
        model = copy_start(checkpoint.load(shipped, net)[0], config)
    else:
        torch.manual_seed(recipe.seed)
        model = build(net, train.classes)
        fit(model, train, recipe, log=log, run=Run(progress=progress))
        quantize_(model, config)
    fit(model, train, recipe, log=log, run=Run(progress=progress))
    held = test.part(np.arange(min(1000, len(test))))
    metadata = Metadata(
        net, config.weight_bits, config.act_bits, quant, config.first_last, dataset, size,
        train.classes, command="short training of load_or_train", notes={quant: repr(recipe)},
    )  # fmt: skip
    metadata = finish(model, metadata, held, folder / f"{name}.ckpt", log)
    return model.eval(), metadata
