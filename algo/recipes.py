"""Recipes: how a net is trained, as data files (TOML) that ship in `recipes/` or that a user writes.

    description = "what it is for"
    net = "resnet20"
    dataset = "folder"                    # as --dataset; the command may name another
    quantised = true                      # false: a float net
    start = "cifar10-resnet20-float"      # the recipe of the float net to start at (a float net too); without it, from scratch

    [[stages]]                            # one after the other, each with the fields of `Recipe`
    sizes = [[32, 100]]
    batch = 128
"""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from seriatim.algo import schedule
from seriatim.errors import ConfigError

FOLDER = Path(__file__).parent / "recipes"

PHASES = ("weights", "activations", "both")

DEFAULTS = {
    "resnet18": "fashion-resnet18-slb", "resnet20": "fashion-resnet20-slb", "digits": "digits-slb", "vdsr": "pictures-vdsr-slb",
}  # fmt: skip
"""The packaged recipe of a net: of a shipped one, that which it was made by."""


@dataclass(frozen=True)
class Recipe:
    """One stage of a training.

    Args:
        sizes: ((image size, epochs), ...) in order: small images first are cheaper.
        batch, rate, weight_decay, optimizer ("sgd" with momentum 0.9, or "adam"), schedule (of
            the learning rate, `schedule.RATES`).
        tau, tau_schedule, window, factor, hard_from: the temperature from, to, and how (see `anneal.TemperatureScheduler`).
        phase: what Quantization Networks quantise in this stage, "weights", "activations" or "both": the paper trains the three
            one after the other, the last with "both".
        shift, flip: augmentation: shift in pixels of a 32-pixel image, and mirroring.
        calibration: images whose statistics replace those of batch norm at the end, with W_q.
        images: how many of the training images one epoch takes (another draw each time), or None for all.
        stop: epochs that are really run of the schedule (another stage goes on), or None.
        evaluate: epochs between two measurements on held-out images, which cost time and decide nothing; 0: none.
        seed: of the order, the augmentation and torch.

    Raises:
        ConfigError: an unknown optimizer or schedule, a value out of range, or no epochs.
    """

    sizes: tuple[tuple[int, int], ...]
    batch: int = 256
    rate: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    schedule: str = "one-cycle"
    tau: tuple[float, float] = (0.1, 0.003)
    tau_schedule: str = "rate"
    window: tuple[float, float] = (0.4, 0.9)
    factor: float | None = None
    hard_from: float | None = None
    phase: str = "both"
    shift: int = 2
    flip: bool = True
    calibration: int = 8192
    images: int | None = None
    stop: int | None = None
    evaluate: int = 0
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
        if self.phase not in PHASES:
            raise ConfigError(f"phase {self.phase!r}: choose {', '.join(PHASES)}")
        if self.epochs < 1:
            raise ConfigError(f"{self.epochs} epochs: at least one is needed")
        if self.batch < 1 or self.rate <= 0 or self.weight_decay < 0 or self.shift < 0 or self.evaluate < 0:
            raise ConfigError(
                f"batch {self.batch}, rate {self.rate}, weight_decay {self.weight_decay}, shift {self.shift}, evaluate "
                f"{self.evaluate}: batch and rate must be positive, the others not negative"
            )
        schedule.check_temperatures(self.tau_schedule, *self.tau)
        schedule.check_window(self.window, self.factor, self.hard_from)

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.sizes)

    def size_of(self, epoch: int) -> int:
        for size, epochs in self.sizes:
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.sizes[-1][0]


@dataclass(frozen=True)
class Plan:
    """A whole recipe file: stages that follow each other.

    Attributes:
        name: of the file, without suffix.
        net, dataset: what it is for.
        quantised: False for a float net.
        start: name of the recipe whose float net it starts at, or None for one from scratch.
        widths: "dec", "inc", "concave" or "convex": widths of weights and activations for each layer from `widest` to `narrowest`
            in that order (WEQ's Table 2) in place of the command's; "" for none.
    """

    name: str
    net: str
    dataset: str
    stages: tuple[Recipe, ...]
    quantised: bool = True
    start: str | None = None
    widths: str = ""
    widest: int = 6
    narrowest: int = 2
    description: str = ""

    @property
    def size(self) -> int:
        """The image size that it ends with."""
        return self.stages[-1].sizes[-1][0]

    def changed(self, *, epochs: int | None = None, image: int | None = None, seed: int | None = None) -> "Plan":
        """Another seed, image size (of the last epochs), or number of epochs (one stage then, by the first's fields)."""
        stages = self.stages
        if seed:
            stages = tuple(replace(stage, seed=seed) for stage in stages)
        if epochs is not None:
            stages = (replace(stages[0], sizes=((image or self.size, epochs),), stop=None),)
        elif image:
            sizes = (*stages[-1].sizes[:-1], (image, stages[-1].sizes[-1][1]))
            stages = (*stages[:-1], replace(stages[-1], sizes=sizes))
        return replace(self, stages=stages)


def packaged() -> list[Plan]:
    """Every recipe that ships, by name."""
    return [_read(path) for path in sorted(FOLDER.glob("*.toml"))]


def load(name: str | Path) -> Plan:
    """A packaged recipe by its name, or one of the user's by its file.

    Raises:
        ConfigError: no such recipe, unreadable, or with fields that do not exist or values out of range.
    """
    return _read(find(FOLDER, name, "recipe", "`seriatim train --list-recipes` lists those"))


def find(folder: Path, name: str | Path, what: str, remedy: str) -> Path:
    """The data file `name` of the package's `folder`, or the user's own.

    Raises:
        ConfigError: there is neither.
    """
    for path in (folder / f"{name}.toml", Path(name)):
        if path.exists():
            return path
    raise ConfigError(f"{what} {str(name)!r}: neither a file nor packaged; {remedy}")


def default(net: str, quantised: bool = True) -> Plan:
    """The packaged recipe of `net`; that of the float net which it starts at where `quantised` is false.

    Raises:
        ConfigError: the net has none.
    """
    if net not in DEFAULTS:
        raise ConfigError(f"net {net} has no recipe of its own: name one by --recipe (--list-recipes lists those packaged)")
    plan = load(DEFAULTS[net])
    return plan if quantised else load(plan.start)


def _read(path: Path) -> Plan:
    rule = "a recipe is a TOML file with net, dataset and [[stages]] of Recipe's fields, at least sizes = [[image size, epochs]]"
    try:
        content = tomllib.loads(path.read_text())
        stages = tuple(_stage(dict(stage)) for stage in content.pop("stages"))
        known = {field.name for field in fields(Plan)} - {"name", "stages"}
        if unknown := sorted(set(content) - known):
            raise ValueError(f"unknown field {', '.join(unknown)}: there are {', '.join(sorted(known))}")
        if not stages:
            raise ValueError("no stages")
        return Plan(path.stem, stages=stages, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"recipe {path}: {error}; {rule}") from error


def _stage(content: dict) -> Recipe:
    known = [field.name for field in fields(Recipe)]
    if unknown := sorted(set(content) - set(known)):
        raise ValueError(f"unknown field {', '.join(unknown)} in a stage: there are {', '.join(known)}")
    content["sizes"] = tuple((int(size), int(epochs)) for size, epochs in content["sizes"])
    for pair in {"tau", "window"} & set(content):
        content[pair] = tuple(content[pair])
    return Recipe(**content)


def alike(stages: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
    """The float reference of SLB's `stages`: the same start, images, sizes, augmentation and batches, with the float net's
    own optimizer (SGD with weight decay, which gives it the better accuracy) and no quantisers."""
    own = {"optimizer": "sgd", "weight_decay": 5e-4, "rate": 0.02}
    return tuple(replace(stage, **own) for stage in stages)
