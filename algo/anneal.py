"""SLB in a training loop of one's own: the temperature as a scheduler in PyTorch's habits, batch norm's calibration, W_q."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seriatim.algo.nets import set_hard, set_temperature, slb_weights
from seriatim.algo.quantisers.norm import StateBatchNorm, freeze_
from seriatim.algo.schedule import WINDOWS, check_temperatures, check_window, temperature
from seriatim.errors import CheckpointError, ConfigError

SHARP = 0.1
"""A weight whose W_c is further than this from its W_q has not decided yet."""


class TemperatureScheduler:
    """Sharpens the SLB weights of any module, by one `step()` behind each of the optimiser's (or behind each epoch).

    As with PyTorch's schedulers the temperature of the first step is set at once, and `state_dict` goes into a checkpoint.

    Args:
        model: holds SLB weights (`quantize_`).
        kind: "rate" (geometrically with the decay of the learning rate, from its peak on: needs `optimizer`), "exponential",
            "linear", "cosine" (of the share of steps done), "window" (SLB's authors: a factor an epoch inside the window),
            "golden-stick" (MindSpore Golden Stick's formula: T = 1 / tau).
        epochs: of the whole training; `steps_per_epoch`: calls of `step` in each.
        start, end: temperatures; Golden Stick's t_start_val is 1 / start.
        window: shares of all epochs between which it sharpens (t_start_time, t_end_time), for the last two kinds.
        factor: of 1 / tau for each epoch there (t_factor), or None for the one that ends at `end`.
        hard_from: share of all epochs from which the forward pass is one-hot (Golden Stick: t_end_time); its weights get no
            gradient then.
        optimizer: whose learning rate is followed, read from its first group.
        on_change: called with the scheduler whenever it has set a temperature.

    Raises:
        ConfigError: no SLB weights, an unknown kind, temperatures that do not fall, a window or factor out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str = "rate",
        *,
        epochs: int,
        steps_per_epoch: int = 1,
        start: float = 0.1,
        end: float = 0.003,
        window: tuple[float, float] = (0.4, 0.9),
        factor: float | None = None,
        hard_from: float | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        on_change: Callable[["TemperatureScheduler"], None] | None = None,
    ):
        check_temperatures(kind, start, end)
        if not slb_weights(model):
            raise ConfigError(f"{type(model).__name__} has no SLB weights: call quantize_ with SLB first")
        if kind == "rate" and optimizer is None:
            raise ConfigError("temperature schedule 'rate': it follows a learning rate, give the optimizer")
        if epochs < 1 or steps_per_epoch < 1:
            raise ConfigError(f"{epochs} epochs of {steps_per_epoch} steps: at least one of each is needed")
        check_window(window, factor, hard_from)
        self.model, self.kind, self.epochs, self.steps_per_epoch = model, kind, epochs, steps_per_epoch
        self.start, self.end, self.window, self.hard_from = start, end, window, hard_from
        self.factor = factor or (start / end) ** (1 / max(1e-9, (window[1] - window[0]) * epochs))
        self.optimizer, self.on_change = optimizer, on_change
        self.steps, self.peak = 0, 0.0
        self._apply()

    @property
    def epoch(self) -> int:
        """Whole epochs done (Golden Stick: has_trained_epoch, by which a training is continued; here `load_state_dict`)."""
        return self.steps // self.steps_per_epoch

    @property
    def hard(self) -> bool:
        """Whether the forward pass is one-hot."""
        return self.hard_from is not None and self.steps >= self.hard_from * self.epochs * self.steps_per_epoch

    def step(self) -> None:
        self.steps += 1
        self._apply()

    def get_last_tau(self) -> float:
        """The temperature that is set now."""
        return self.tau

    def state_dict(self) -> dict:
        return {"kind": self.kind, "steps": self.steps, "peak": self.peak, "tau": self.tau}

    def load_state_dict(self, state: dict) -> None:
        """Go on where another left off; sets the temperature.

        Raises:
            CheckpointError: no such state, or one of another kind of schedule.
        """
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise CheckpointError("no state of a temperature scheduler: give what its state_dict returned")
        if state["kind"] != self.kind:
            raise CheckpointError(f"the state of a schedule {state['kind']!r}, this one is {self.kind!r}: construct it alike")
        self.steps, self.peak = state["steps"], state["peak"]
        self._set(state["tau"])

    def _apply(self) -> None:
        if self.kind in WINDOWS:
            tau = self.start / WINDOWS[self.kind](self.epoch, self.epochs, *self.window, self.factor)
        else:
            tau = temperature(self.kind, self.steps, self.epochs * self.steps_per_epoch, self._share(), self.start, self.end)
        self._set(tau)

    def _share(self) -> float:
        """The learning rate as a share of its peak so far; 1 while it rises."""
        if self.kind != "rate":
            return 1.0
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.peak = max(self.peak, rate)
        return rate / self.peak if self.peak else 1.0

    def _set(self, tau: float) -> None:
        self.tau = tau
        set_temperature(self.model, tau)
        set_hard(self.model, self.hard)
        if self.on_change is not None:
            self.on_change(self)


@torch.no_grad()
def calibrate_batch_norm(model: nn.Module, inputs: Iterable) -> None:
    """Replace the running statistics of every batch norm by plain averages over `inputs` (what `model` takes, or tuples that
    begin with it; augmented as in training, whose statistics the net has learned with), under the weights it has now. Nothing of
    the calibration stays behind but the statistics. State batch norms have theirs already."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, StateBatchNorm)]
    if not norms:
        return
    modes = {m: m.training for m in model.modules()}
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        model.train()
        freeze_(model)
        for x in inputs:
            model(x[0] if isinstance(x, tuple | list) else x)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def discrete(model: nn.Module, inputs: Iterable | None = None) -> Iterator[None]:
    """Within it `model` runs with W_q, its batch norms calibrated on `inputs` if there are any; afterwards it is as before."""
    kept = {name: value.clone() for name, value in model.named_buffers()}
    hard = [module.hard for module in slb_weights(model)]
    try:
        set_hard(model)
        if inputs is not None:
            calibrate_batch_norm(model, inputs)
        yield
    finally:
        for module, value in zip(slb_weights(model), hard, strict=True):
            module.hard = value
        for name, value in model.named_buffers():
            value.copy_(kept[name])


@torch.no_grad()
def undecided(model: nn.Module) -> float:
    """Share of the SLB weights whose W_c is further than SHARP from W_q; 0 where there are none."""
    far, total = 0, 0
    for module in slb_weights(model):
        gap = module.expectation() - module.integers() / (2**module.bits - 1)
        far += int((gap.abs() > SHARP).sum())
        total += gap.numel()
    return far / max(total, 1)
