"""The training loop: seeded, resumable after every epoch, the same for float and low-bit nets."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from seriatim.algo import schedule
from seriatim.algo.data import Images
from seriatim.algo.nets import Net, set_hard, set_temperature
from seriatim.errors import CheckpointError, ConfigError
from seriatim.sim import files


@dataclass(frozen=True)
class Recipe:
    """How a net is trained.

    Args:
        sizes: ((image size, epochs), ...) in order: small images first are cheaper.
        batch, rate, weight_decay, optimizer ("sgd" with momentum 0.9, or "adam"), schedule (of
            the learning rate, `schedule.RATES`).
        tau, tau_schedule: temperature from, to (see `schedule.temperature`).
        shift, flip: augmentation: shift in pixels of a 32-pixel image, and mirroring.
        calibration: images whose statistics replace those of batch norm at the end, with W_q.
        stop: epochs that are really run of the schedule (another recipe goes on), or None.
        images: how many of the training images one epoch takes (another draw each time), or None
            for all: short epochs save the state more often.
        seed: of the order, the augmentation and torch.

    Raises:
        ConfigError: an unknown optimizer or schedule, or no epochs.
    """

    sizes: tuple[tuple[int, int], ...]
    batch: int = 256
    rate: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    schedule: str = "one-cycle"
    tau: tuple[float, float] = (0.1, 0.003)
    tau_schedule: str = "rate"
    shift: int = 2
    flip: bool = True
    calibration: int = 8192
    images: int | None = None
    stop: int | None = None
    seed: int = 1

    def __post_init__(self):
        if self.optimizer not in ("sgd", "adam"):
            raise ConfigError(f"optimizer {self.optimizer!r}: choose sgd or adam")
        if self.schedule not in schedule.RATES:
            raise ConfigError(f"schedule {self.schedule!r}: choose {', '.join(schedule.RATES)}")
        if self.schedule == "constant" and self.tau_schedule == "rate":
            raise ConfigError(
                "schedule constant with tau_schedule rate: the rate never decays, so the weights would "
                "never sharpen; choose another of the two"
            )
        if self.epochs < 1:
            raise ConfigError(f"{self.epochs} epochs: at least one is needed")

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.sizes)

    def size_of(self, epoch: int) -> int:
        for size, epochs in self.sizes:
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.sizes[-1][0]


def make_optimizer(net: Net, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay acts on weights and logits, not on batch norm, biases or scales."""
    matrices = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, recipe.rate, weight_decay=0, fused=True)
    return torch.optim.SGD(groups, recipe.rate, momentum=0.9, weight_decay=0, fused=True)


def fit(
    net: Net,
    data: Images,
    recipe: Recipe,
    path: Path | None = None,
    *,
    test: Images | None = None,
    log: Callable[[str], None] = print,
    progress: bool = False,
    last: bool = True,
) -> list[dict]:
    """Train `net` in place; returns one record for each epoch.

    With a `path`, the state is saved there after every epoch and a run that finds one of the same
    recipe goes on from it, to the same bits as a run without interruption on the same machine.
    The last step of a low-bit net is the calibration of its batch norms with W_q; it is left hard
    (not where another recipe follows: `last` False).

    Raises:
        CheckpointError: `path` holds another recipe's state or is damaged.
        ConfigError: images that do not fit the net.
    """
    torch.manual_seed(recipe.seed)
    set_hard(net, False)
    optimizer = make_optimizer(net, recipe)
    history: list[dict] = []
    if path is not None and path.exists():
        history = _resume(net, optimizer, recipe, path)
        log(f"{path}: goes on after epoch {len(history)} of {recipe.epochs}")
    scaled, at = None, None
    for epoch in range(len(history), recipe.stop or recipe.epochs):
        size = recipe.size_of(epoch)
        if at != size:
            scaled, at = data.at(size), size
        record = _epoch(net, optimizer, scaled, size, recipe, epoch, progress)
        if test is not None:
            record["test"] = accuracy(net, test, size)
        history.append(record)
        log(" ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
        if path is not None:
            with files.replacing(path) as temporary:
                torch.save(_state(net, optimizer, recipe, history), temporary)
    if net.quantisation is not None and last:
        set_hard(net)
        calibrate(net, data, recipe.sizes[-1][0], recipe.calibration, recipe.seed)
    return history


def _epoch(net, optimizer, data, size, recipe, epoch, progress) -> dict:
    net.train()
    count = min(recipe.images or len(data), len(data))
    steps = max(count // recipe.batch, 1)
    total = steps * recipe.epochs
    seed = recipe.seed * 100003 + epoch
    shift = round(recipe.shift * size / 32)
    feed = data.batches(
        recipe.batch, channels=net.channels, seed=seed, shift=shift, flip=recipe.flip, count=count
    )
    if progress:
        from tqdm import tqdm

        feed = tqdm(feed, f"epoch {epoch + 1}/{recipe.epochs}", steps, leave=False)
    start, loss_sum, metric, seen, tau = time.time(), 0.0, 0.0, 0, 0.0
    for index, (x, y) in enumerate(feed):
        step = epoch * steps + index
        share = schedule.RATES[recipe.schedule](step, total)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * share
        if net.quantisation is not None:
            falling = share if step > 0 and _decays(recipe, step, total) else 1.0
            tau = schedule.temperature(recipe.tau_schedule, step, total, falling, *recipe.tau)
            set_temperature(net, tau)
        output = net(x)
        loss = net.task.loss(output, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(y)
        metric += net.task.measure(output, y) * len(y)
        seen += len(y)
    record = {"epoch": epoch + 1, "size": size, "loss": loss_sum / seen}
    record |= {"train": metric / seen, "seconds": round(time.time() - start, 1)}
    return record | ({"tau": tau} if net.quantisation is not None else {})


def _decays(recipe: Recipe, step: int, total: int) -> bool:
    rate = schedule.RATES[recipe.schedule]
    return rate(step, total) < rate(step - 1, total)


def _state(net, optimizer, recipe, history) -> dict:
    return {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "recipe": repr(recipe),
        "name": net.name,
        "quantisation": repr(net.quantisation),
        "history": history,
        "torch": torch.get_rng_state(),
    }


def _resume(net, optimizer, recipe, path) -> list[dict]:
    try:
        state = torch.load(path, weights_only=True)
        found = state["name"], state["quantisation"], state["recipe"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(f"{path}: {error}; delete it to train from the start") from error
    wanted = net.name, repr(net.quantisation), repr(recipe)
    if found != wanted:
        raise CheckpointError(
            f"{path}: holds a run of {found}, not of {wanted}; name another file or delete this one"
        )
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch"])
    return state["history"]


@torch.no_grad()
def calibrate(net: Net, data: Images, size: int, count: int = 8192, seed: int = 1) -> None:
    """Replace the running statistics of every batch norm by averages over `count` training images,
    under the weights the net has now (W_q after `set_hard`). Unaugmented images in seeded order."""
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    chosen = np.random.default_rng(seed).permutation(len(data))[:count]
    training = net.training
    net.train()
    for x, _ in data.part(chosen).at(size).batches(256, channels=net.channels):
        if len(x) > 1:
            net(x)
    net.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def accuracy(net, data: Images, size: int, batch: int = 250) -> float:
    """The metric of the net's task (a classifier's share of right answers) on `data`, in eval mode."""
    training = net.training
    net.eval()
    total = 0.0
    for x, y in data.at(size).batches(batch, channels=net.channels):
        total += net.task.measure(net(x), y) * len(y)
    net.train(training)
    return total / len(data)


def read_recipe(path: Path) -> Recipe:
    """A recipe from a JSON file of `Recipe`'s fields; `sizes` is [[image size, epochs], ...].

    Raises:
        ConfigError: unreadable, or not such fields.
    """
    try:
        fields = json.loads(Path(path).read_text())
        fields["sizes"] = tuple((int(size), int(epochs)) for size, epochs in fields["sizes"])
        if "tau" in fields:
            fields["tau"] = tuple(fields["tau"])
        return Recipe(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"recipe {path}: {error}; it is a JSON object of Recipe's fields, with at least "
            '"sizes": [[image size, epochs], ...]'
        ) from error


def main(args) -> int:
    """`seriatim train`: the whole recipe for one net, resumable; prints where the result lies."""
    from seriatim.algo import recipes, trained

    config = trained.check(args.net, args.quant, args.w, args.a, args.first_last)
    wanted = getattr(args, "recipe", None)
    stages = (read_recipe(wanted),) if wanted else recipes.SLB[args.net]
    if args.seed:
        stages = tuple(replace(stage, seed=args.seed) for stage in stages)
    image, epochs = args.image, args.epochs
    size = image or stages[-1].sizes[-1][0]
    if epochs is not None:
        stages = (replace(stages[0], sizes=((size, epochs),), stop=None),)
    elif image:
        sizes = (*stages[-1].sizes[:-1], (size, stages[-1].sizes[-1][1]))
        stages = (*stages[:-1], replace(stages[-1], sizes=sizes))
    torch.set_num_threads(getattr(args, "threads", None) or torch.get_num_threads())
    folder = getattr(args, "data", None)
    metadata = trained.produce(
        args.net, args.quant, config.weight_bits, config.act_bits, config.first_last,
        out=Path(args.out) if args.out else None, stages=stages,
        dataset=getattr(args, "dataset", None), data_folder=Path(folder) if folder else None,
        reference=getattr(args, "reference", False), command=command_of(args),
    )  # fmt: skip
    print(f"{metadata.net} W{metadata.w}A{metadata.a}: {metadata.accuracy:.2%} of "
          f"{metadata.test_images} held-out images, integer network")  # fmt: skip
    return 0


def command_of(args) -> str:
    """The command line that repeats this run."""
    text = f"seriatim train --net {args.net} --quant {args.quant} --w {args.w} --a {args.a}"
    for name in ("first_last", "image", "epochs", "recipe", "dataset"):
        value = getattr(args, name, None)
        if value is not None:
            text += f" --{name.replace('_', '-')} {value}"
    return text + (f" --seed {args.seed}" if args.seed else "")
