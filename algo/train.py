"""The training loop: seeded, resumable at any step, the same for float and low-bit nets."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

import numpy as np
import torch

from seriatim.algo import parallel, recipes, schedule
from seriatim.algo.anneal import TemperatureScheduler, calibrate_batch_norm, discrete, undecided
from seriatim.algo.curves import Board, draw, table
from seriatim.algo.data import Images
from seriatim.algo.nets import NETS, Net, set_hard, slb_weights
from seriatim.algo.quantisers.model import after_step_, on_epoch_
from seriatim.algo.quantisers.qn import Phase, set_phase_
from seriatim.algo.recipes import Recipe
from seriatim.errors import CheckpointError, ConfigError
from seriatim.sim import files

STATE_VERSION = 2

@dataclass(frozen=True)
class Run:
    """Where and how a training runs; nothing here changes what is learned but the precision, by its rounding.

    Args:
        device: "cpu", "cuda", "cuda:1", ...
        precision: of the convolutions (autocast): "float32", "bf16", "fp16" (with a scaled loss), or "auto": bf16 where the
            device has it.
        compile: the step through torch.compile.
        tensorboard: folder for TensorBoard's events, or None.
        save_seconds: seconds between two saved states within an epoch; one is saved after each epoch anyway.
        progress: show a bar.
        on_step: called after every step with the `Trainer`; what it raises ends the training.
    """

    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    tensorboard: Path | None = None
    save_seconds: float = 300.0
    progress: bool = False
    on_step: Callable[["Trainer"], None] | None = None


PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(name: str) -> torch.device:
    """The device `name`.

    Raises:
        ConfigError: this machine, or this PyTorch, has none of that name.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r}: {reason}; choose cpu, or cuda on a machine that has a GPU") from error
    return device


def precision_of(name: str, device: torch.device) -> tuple[str, str]:
    """The precision that "auto" stands for on `device`, or `name` itself, and a note for the log.

    On a CPU bf16 pays only with instructions of its own (AMX or AVX512-BF16).

    Raises:
        ConfigError: an unknown precision, or fp16 on a CPU.
    """
    if name != "auto" and name not in PRECISIONS:
        raise ConfigError(f"precision {name!r}: choose auto, {', '.join(PRECISIONS)}")
    if device.type == "cpu":
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        if name == "fp16":
            raise ConfigError("precision fp16 on a CPU: choose bf16, float32 or auto")
    else:
        has = torch.cuda.is_bf16_supported()
    if name == "auto":
        return ("bf16", "") if has else ("float32", f"precision auto: this {device.type} has no bf16, float32 is taken")
    slow = name == "bf16" and not has
    return name, f"precision bf16: this {device.type} only emulates it, float32 would be faster" if slow else ""


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
    last: bool = True,
    run: Run = Run(),  # noqa: B008  frozen
) -> list[dict]:
    """Train `net` in place; returns one record for each epoch.

    With a `path`, the state is saved there after every epoch and every `run.save_seconds`, and a run that finds one of the
    same recipe goes on from it, to the same bits as a run without interruption on the same machine; the records lie beside
    it as CSV. The last step of a low-bit net is the calibration of its batch norms with W_q; it is left hard (not where
    another recipe follows: `last` False). With `test`, `recipe.evaluate` says how often it is measured on.

    Raises:
        CheckpointError: `path` holds another recipe's state or is damaged.
        ConfigError: images that do not fit the net.
    """
    trainer = Trainer(net, data, recipe, path, test=test, log=log, run=run)
    trainer.train()
    if net.quantisation is not None and last:
        set_hard(net)
        calibrate(net, data, recipe)
    return trainer.history


class Trainer:
    """One stage of a training as it goes.

    Attributes:
        net, recipe, run, optimizer.
        epoch, step: epochs completed, steps done in the one that runs.
        feed, size: of the epoch that runs.
        temperature: the scheduler, or None in a net without SLB weights; tau: the temperature of the last step.
        history: the records so far.
    """

    def __init__(self, net, data, recipe, path, *, test, log, run):
        torch.manual_seed(recipe.seed)
        self.device = device_of(run.device)
        self.precision, note = precision_of(run.precision, self.device)
        if note:
            log(note)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        net.to(self.device)
        set_hard(net, False)
        set_phase_(net, Phase(recipe.phase))
        self.net, self.data, self.recipe, self.path, self.test, self.log, self.run = net, data, recipe, path, test, log, run
        self.optimizer = make_optimizer(net, recipe)
        self.history: list[dict] = []
        self.epoch = self.step = 0
        self.feed, self.drawn = None, time.monotonic()
        self.first = parallel.rank() == 0  # the process that saves and shows
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, metric, 1: each times the images
        self.one = torch.ones((), dtype=torch.float64, device=self.device)
        self.seconds = 0.0
        state = self._found() if path is not None and path.exists() else None
        self._enter(state["epoch"] if state else 0)
        if parallel.world() > 1 and state is None:
            whole = data.at(self.size).feed(recipe, net.channels, self.device)
            parallel.prime(net, next(iter(whole.epoch(0)))[0])
        self.graph = parallel.wrapped(net, self.device, recipe.hard_from is not None)
        if run.compile:
            self.graph = torch.compile(self.graph)
        self._set_rate()
        self.temperature = self._scheduler()
        if state:
            self._restore(state)
            log(f"{path}: goes on after epoch {self.epoch} of {recipe.epochs}, step {self.step}")
        self.board = None
        if run.tensorboard and self.first:
            self.board = Board(run.tensorboard / path.stem if path else run.tensorboard, self.epoch + 1)

    def train(self) -> None:
        for epoch in range(self.epoch, self.recipe.stop or self.recipe.epochs):
            self._enter(epoch)
            self._epoch()
            self._end()
        if self.path is not None and self.history and self.first:
            draw(self.history, self.path.with_suffix(".svg"), self.path.stem)
        if self.board is not None:
            self.board.close()
        parallel.wait()  # what the first process has saved can be read now

    def _enter(self, epoch: int) -> None:
        """The images of `epoch`, at its size."""
        size = self.recipe.size_of(epoch)
        if self.feed is None or size != self.size:
            self.size, self.feed = size, self.data.at(size).feed(
                self.recipe, self.net.channels, self.device, parallel.rank(), parallel.world()
            )
        on_epoch_(self.net, epoch, self.recipe.epochs)

    def _scheduler(self) -> TemperatureScheduler | None:
        recipe = self.recipe
        if not slb_weights(self.net):
            return None
        return TemperatureScheduler(
            self.net, recipe.tau_schedule, epochs=recipe.epochs, steps_per_epoch=self.feed.steps, start=recipe.tau[0],
            end=recipe.tau[1], window=recipe.window, factor=recipe.factor, hard_from=recipe.hard_from,
            optimizer=self.optimizer,
        )  # fmt: skip

    def _set_rate(self) -> None:
        """The learning rate of the step that comes."""
        done, total = self.epoch * self.feed.steps + self.step, self.recipe.epochs * self.feed.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * schedule.RATES[self.recipe.schedule](done, total)

    def _epoch(self) -> None:
        self.net.train()
        start = saved = time.monotonic()
        earlier = self.seconds
        with _Bar(self) as bar:
            for x, y in self.feed.epoch(self.epoch, self.step):
                self._step(x, y)
                now = time.monotonic()
                self.seconds = earlier + now - start
                if now - saved >= self.run.save_seconds and self.step < self.feed.steps:
                    self._save()
                    saved = now
                bar.show()
                if self.run.on_step is not None:
                    self.run.on_step(self)

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with parallel.sharded():
            with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "float32"):
                output = self.graph(x)
            output = output.float()
            loss = self.net.task.loss(output, y)
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        after_step_(self.net)
        found = torch.stack((loss.detach().double(), self.net.task.measure(output, y), self.one)) * len(y)
        self.sums += parallel.total(found)
        self.step += 1
        self._set_rate()
        if self.temperature is not None:
            self.tau = self.temperature.get_last_tau()
            self.temperature.step()

    def _end(self) -> None:
        """The record of a whole epoch, written and shown."""
        loss, metric, seen = self.sums.tolist()
        record = {"epoch": self.epoch + 1, "size": self.size, "loss": loss / seen, "train": metric / seen}
        record["seconds"] = round(self.seconds, 1)
        if self.temperature is not None:
            record |= {"tau": self.tau, "undecided": undecided(self.net)}
        every, done = self.recipe.evaluate, self.epoch + 1
        if self.test is not None and every and (done % every == 0 or done == self.recipe.epochs):
            record |= self.measure()
        self.history.append(record)
        self.epoch, self.step, self.seconds = done, 0, 0.0
        self.sums.zero_()
        self.log(" ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
        if self.path is not None and self.first:
            self._save()
            files.write(self.path.with_suffix(".csv"), table(self.history))
            if time.monotonic() - self.drawn > self.run.save_seconds:
                draw(self.history, self.path.with_suffix(".svg"), self.path.stem)
                self.drawn = time.monotonic()
        if self.board is not None:
            self.board.add(record)

    def measure(self) -> dict[str, float]:
        """Held-out metric of the trained graph; of a low-bit net with W_q, batch norm's statistics estimated for it on
        `recipe.calibration` training images, and the quantisation gap: the metric with W_c minus that.

        Leaves the net as it was.
        """
        soft = graph_accuracy(self.net, self.test, self.size)
        if self.net.quantisation is None:
            return {"test": soft}
        inputs = calibration_batches(self.net, self.data, self.recipe, self.size)
        with discrete(self.net, inputs):
            hard = graph_accuracy(self.net, self.test, self.size)
        return {"test": hard, "gap": soft - hard}

    def _identity(self) -> dict:
        """What a state must agree in to go on from it."""
        return {
            "net": self.net.name, "quantisation": repr(self.net.quantisation), "images": len(self.data),
            "precision": self.precision, **asdict(self.recipe),
        }  # fmt: skip

    def _save(self) -> None:
        if self.path is None or not self.first:
            return
        state = {
            "version": STATE_VERSION, "identity": self._identity(), "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(), "history": self.history, "epoch": self.epoch, "step": self.step,
            "sums": self.sums, "seconds": self.seconds, "random": random_state(),
            "temperature": self.temperature and self.temperature.state_dict(), "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        with files.replacing(self.path) as temporary:
            torch.save(state, temporary)

    def _found(self) -> dict:
        """The state at `path`, of this very run."""
        state = read_state(self.path)
        defaults = {"precision": "float32"} | {field.name: field.default for field in fields(Recipe)}  # of older states
        wanted, found = self._identity(), defaults | state["identity"]
        differing = [k for k in {**wanted, **found} if wanted.get(k) != found.get(k)]
        if differing:
            has, asked = ({k: which.get(k) for k in differing} for which in (found, wanted))
            raise CheckpointError(f"{self.path}: holds a run of {has}, not of {asked}; name another file or delete this one")
        return state

    def _restore(self, state: dict) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.temperature is not None:
            self.temperature.load_state_dict(state.get("temperature"))
        self.scaler.load_state_dict(state.get("scaler", {}))
        self.history, self.epoch, self.step = state["history"], state["epoch"], state["step"]
        self.sums.copy_(state["sums"])
        self.seconds = state["seconds"]
        set_random_state(state["random"])


def read_state(path: Path) -> dict:
    """The state that a training left.

    Raises:
        CheckpointError: missing, damaged, of another kind or version.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        version = state["version"]
        if version == STATE_VERSION:
            state["net"], state["optimizer"], state["identity"], state["random"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path}: no state of a training ({type(error).__name__}: {error}); delete it to train from the start"
        ) from error
    if version != STATE_VERSION:
        raise CheckpointError(
            f"{path}: a state of version {version}, this program has {STATE_VERSION}; delete it to train from the start"
        )
    return state


def random_state() -> dict:
    """Generators of torch, NumPy and Python, as plain types and tensors."""
    _, keys, *place = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "numpy": [torch.from_numpy(keys.astype(np.int64)), *place]}
    version, words, following = random.getstate()
    state["python"] = [version, list(words), following]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    keys, *place = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *place))
    version, words, following = state["python"]
    random.setstate((version, tuple(words), following))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class _Bar:
    """A progress bar over the whole stage: loss and accuracy of the epoch so far, temperature, gap, time left."""

    SECONDS = 0.5

    def __init__(self, trainer: Trainer):
        from tqdm import tqdm

        self.trainer, self.shown = trainer, 0.0
        epochs, steps = trainer.recipe.epochs, trainer.feed.steps
        self.bar = tqdm(
            desc=f"epoch {trainer.epoch + 1}/{epochs}", total=steps * epochs, unit="step", leave=False,
            initial=trainer.epoch * steps + trainer.step, disable=not (trainer.run.progress and trainer.first),
        )  # fmt: skip

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *raised) -> None:
        """Also where an interrupt ends the epoch: what is printed then stands on a line of its own."""
        self.bar.close()

    def show(self) -> None:
        if self.bar.disable:
            return
        self.bar.update()
        now = time.monotonic()
        if now - self.shown < self.SECONDS:
            return
        self.shown = now
        loss, metric, seen = self.trainer.sums.tolist()
        values = {"loss": f"{loss / seen:.3f}", "train": f"{metric / seen:.4g}"}
        if self.trainer.temperature is not None:
            values["tau"] = f"{self.trainer.tau:.3g}"
        last = self.trainer.history[-1] if self.trainer.history else {}
        texts = {"undecided": "{:.1%}".format, "gap": self.trainer.net.task.text, "test": self.trainer.net.task.text}
        values |= {name: text(last[name]) for name, text in texts.items() if name in last}
        self.bar.set_postfix(values, refresh=False)


def calibrate(net: Net, data: Images, recipe: Recipe) -> None:
    """Replace the running statistics of every batch norm by averages over `recipe.calibration` training images of its last size,
    under the weights the net has now (W_q after `set_hard`)."""
    calibrate_batch_norm(net, calibration_batches(net, data, recipe, recipe.sizes[-1][0]))


def calibration_batches(net: Net, data: Images, recipe: Recipe, size: int) -> Iterator[torch.Tensor]:
    """At least `recipe.calibration` training images, on the net's device, moved and mirrored as in training: the net has learned
    with the statistics of such images, and means are others where an image's border comes in."""
    feed, seen = data.at(size).feed(recipe, net.channels, next(net.parameters()).device), 0
    for epoch in count(recipe.epochs):
        for x, _ in feed.epoch(epoch):
            yield x
            seen += len(x)
            if seen >= recipe.calibration:
                return


def accuracy(net, data: Images, size: int, batch: int = 250) -> float:
    """The metric of the net's task (a classifier's share of right answers) on `data`, in eval mode."""
    return _measured(net, net, data, size, batch)


def graph_accuracy(net: Net, data: Images, size: int, batch: int = 250) -> float:
    """`accuracy` of the graph that is trained, with batch norm's running statistics: no integer network."""
    return _measured(net, net.simulate, data, size, batch)


@torch.no_grad()
def _measured(net: Net, run: Callable, data: Images, size: int, batch: int) -> float:
    training, device = net.training, next(net.parameters()).device
    net.eval()
    total = 0.0
    for x, y in data.at(size).batches(batch, channels=net.channels):
        total += float(net.task.measure(run(x.to(device)), y.to(device))) * len(y)
    net.train(training)
    return total / len(data)


def main(args) -> int:
    """`seriatim train`: the whole recipe for one net, resumable; prints where the result lies."""
    from seriatim.algo import trained

    if args.list_recipes:
        return list_recipes()
    trained.settle(args)
    quantised = args.quant != "float"
    plan = recipes.load(args.recipe) if args.recipe else recipes.default(args.net, quantised)
    plan = plan.changed(epochs=args.epochs, image=args.image, seed=args.seed)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with parallel.group(args.device) as device:
        metadata = trained.produce(
            args.net, args.quant, args.w, args.a, args.first_last, plan=plan, start=args.start and Path(args.start),
            out=args.out and Path(args.out), dataset=args.dataset, data_folder=args.data and Path(args.data),
            reference=args.reference, command=command_of(args), log=print if parallel.rank() == 0 else _silent,
            run=Run(
                device, args.precision, args.compile, args.tensorboard and Path(args.tensorboard), args.save_seconds,
                progress=not args.quiet,
            ),
        )  # fmt: skip
        if parallel.rank() == 0:
            what = f"{metadata.net} W{metadata.w}A{metadata.a}" if quantised else f"{metadata.net} float"
            task = NETS[args.net].task
            print(f"{what}: {task.metric} {task.text(metadata.accuracy)} on {metadata.test_images} held-out images"
                  + (", integer network" if quantised else ""))  # fmt: skip
    return 0


def _silent(_) -> None:
    pass


def list_recipes() -> int:
    from rich.console import Console
    from rich.table import Table

    listing = Table(box=None, pad_edge=False)
    for column in ("recipe", "net", "data", "epochs", "what"):
        listing.add_column(column, no_wrap=column != "what")
    for plan in recipes.packaged():
        epochs = sum(stage.stop or stage.epochs for stage in plan.stages)
        listing.add_row(plan.name, plan.net, plan.dataset, str(epochs), plan.description)
    Console().print(listing)
    return 0


def command_of(args) -> str:
    """The command line that repeats this run."""
    quant = args.quant.replace("+", " --act-quant ")  # a pair
    text = f"seriatim train --net {args.net} --quant {quant} --w {args.w} --a {args.a}"
    for name in ("first_last", "image", "epochs", "recipe", "dataset"):
        value = getattr(args, name, None)
        if value is not None:
            text += f" --{name.replace('_', '-')} {value}"
    return text + (f" --seed {args.seed}" if args.seed else "")
