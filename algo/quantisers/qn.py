"""Quantization Networks: steps relaxed into a sum of sigmoids that training sharpens.

Yang et al., "Quantization Networks", CVPR 2019, sections 3.1 and 3.2:
y = alpha (sum_i s_i sigmoid(T (beta x - b_i)) - o), s_i = Y_{i+1} - Y_i of the integer levels Y; o = sum(s) / 2
for weights, 0 for activations. T grows linearly with the epoch, inference has steps. alpha and beta are
learned, the thresholds b are the midpoints of a k-means, and fixed. The gradient is that of this function.
"""

from enum import Enum

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from seriatim.algo.codes import Codes
from seriatim.algo.quantisers.base import (
    ActivationQuantiser,
    MasterWeight,
    check_finite,
    encode,
    levels_format,
    place,
)  # fmt: skip
from seriatim.errors import ConfigError
from seriatim.formats import Format

SAMPLE = 65536
"""Most values that a k-means sees, evenly spaced over the tensor."""


class Phase(Enum):
    """What is quantised: the paper trains the three one after the other."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    BOTH = "both"


def temperature(epoch: int, slope: float = 10.0) -> float:
    """T of an epoch, counted from 0: slope (epoch + 1)."""
    return slope * (epoch + 1)


def midpoints(values: Tensor, count: int) -> list[float]:
    """`count` thresholds: half way between the centres of count + 1 clusters (k-means from quantiles).

    Raises:
        ConfigError: fewer distinct values than clusters.
    """
    flat = values.detach().double().flatten().cpu().numpy()
    flat = flat[:: max(1, len(flat) // SAMPLE)]
    distinct = np.unique(flat)
    if len(distinct) <= count:
        raise ConfigError(
            f"Quantization Networks: {len(distinct)} distinct values for {count + 1} levels: use fewer "
            "bits, or leave this layer out"
        )
    seeds = distinct[np.linspace(0, len(distinct) - 1, count + 1).astype(int)]
    centres = KMeans(count + 1, init=seeds[:, None], n_init=1).fit(flat[:, None]).cluster_centers_
    ordered = np.sort(centres.ravel())
    return ((ordered[1:] + ordered[:-1]) / 2).tolist()


class Sigmoids(nn.Module):
    """The function itself, for integer levels.

    Args:
        levels: ascending integers; for `centred`, symmetric to 0.
        centred: o = sum(s) / 2 (weights), else 0 with a first level of 0 (activations).

    Raises:
        ConfigError: levels that are not so.
    """

    def __init__(self, levels: list[int], centred: bool):
        super().__init__()
        fits = levels == [-l for l in reversed(levels)] if centred else levels[:1] == [0]
        if len(levels) < 2 or levels != sorted(set(levels)) or not fits:
            start = "symmetric to 0" if centred else "start at 0"
            raise ConfigError(f"Quantization Networks: levels {levels}: they ascend strictly and are {start}")
        self.levels, self.centred = levels, centred
        self.register_buffer("biases", torch.zeros(len(levels) - 1))
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def start(self, values: Tensor) -> None:
        """beta = 5 p / (4 q) with the largest magnitudes p of the levels and q of the values,
        alpha = 1 / beta, thresholds at the k-means' midpoints."""
        found = torch.tensor(midpoints(values, len(self.levels) - 1), dtype=torch.float64)
        beta = 5 * max(abs(l) for l in self.levels) / (4 * float(values.abs().max()))
        self.beta.fill_(beta)
        self.alpha.fill_(1 / beta)
        self.biases.copy_(found * beta)

    def soft(self, x: Tensor, t: float) -> Tensor:
        scaled = self.beta * x
        total = 0.0
        for bias, low, high in zip(self.biases, self.levels, self.levels[1:]):
            total = total + (high - low) * torch.sigmoid(t * (scaled - bias))
        return self.alpha * (total + self.levels[0])

    @torch.no_grad()
    def thresholds(self) -> Tensor:
        """(levels - 1,) float64: the x of the steps."""
        return self.biases.double() / self.beta.double()


class QNWeight(MasterWeight):
    """Weights through the sigmoids in training, through the steps in eval mode or with `hard`.

    Args:
        levels: integers symmetric to 0, at most 2^bits; None for -1, 1 of one bit, else the 2^b - 1 from
            -(2^(b-1) - 1) on. The paper also uses powers of two, as (-4, -2, -1, 0, 1, 2, 4).

    Attributes:
        temperature: T.
        enabled: False passes the float weight (`set_phase_`).
    """

    def __init__(self, weight: Tensor, bits: int, levels=None):
        super().__init__(weight, bits)
        if levels is None:
            top = 2 ** (bits - 1) - 1
            levels = [-1, 1] if bits == 1 else range(-top, top + 1)
        levels = list(levels)
        if len(levels) > 2**bits:
            raise ConfigError(f"Quantization Networks: {len(levels)} levels need more than {bits} bits")
        self.sigmoids = Sigmoids(levels, centred=True)
        self.sigmoids.start(self.weight)
        self.temperature, self.hard, self.enabled = temperature(0), False, True

    @property
    def format(self) -> Format:
        return levels_format(self.sigmoids.levels)

    @torch.no_grad()
    def codes(self) -> Tensor:
        places = place(self.master(), self.sigmoids.thresholds())
        if not self.format.linear:
            return places
        return encode(torch.tensor(self.sigmoids.levels, device=places.device)[places], self.format)

    def scale(self) -> Tensor:
        return self.shared(self.sigmoids.alpha.detach().double())

    def surrogate(self) -> Tensor:
        return self.sigmoids.soft(self.weight, self.temperature)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.temperature = temperature(epoch)

    def inference(self) -> Tensor:
        return self.real() if self.enabled else self.master()

    def forward(self) -> Tensor:
        if not self.enabled:
            return self.weight
        if self.training and not self.hard:
            return self.surrogate()
        return super().forward()


class QNActivation(ActivationQuantiser):
    """uint activations through the sigmoids in training, the steps in eval mode or with `hard`.

    The first training batch sets beta, alpha and the thresholds. `temperature`, `enabled`: see `QNWeight`.
    """

    even = False

    def __init__(self, bits: int):
        super().__init__(bits)
        self.sigmoids = Sigmoids(list(range(2**bits)), centred=False)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.temperature, self.hard, self.enabled = temperature(0), False, True

    @property
    def format(self) -> Format:
        return levels_format(self.sigmoids.levels)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.temperature = temperature(epoch)

    def observe(self, y: Tensor) -> None:
        if not self.started:
            self.sigmoids.start(y.clamp_min(0))
            self.started.fill_(True)

    def thresholds(self) -> Tensor:
        return self.sigmoids.thresholds()

    def scale(self) -> Tensor:
        return self.sigmoids.alpha.detach().double()

    def surrogate(self, y: Tensor) -> Tensor:
        return self.sigmoids.soft(y, self.temperature)

    @property
    def _steps(self) -> bool:
        return self.enabled and (self.hard or not self.training)

    def _relaxed(self, y: Tensor) -> Tensor:
        if not self.enabled:
            return y
        self.observe(y.detach())
        return self.surrogate(y)

    def quantise(self, y: Tensor) -> Codes:
        if self._steps:
            return super().quantise(y)
        real, scale = self._relaxed(y), self.scale().to(y.device, y.dtype)
        return Codes(real / scale, scale, self.format)

    def forward(self, y: Tensor) -> Tensor:
        if self._steps:
            return super().forward(y)
        check_finite(y, "QNActivation: activations")
        return self._relaxed(y)


def set_phase_(net: nn.Module, phase: Phase) -> None:
    """Quantise the weights, the activations or both of every QN quantiser in `net`."""
    for module in net.modules():
        if isinstance(module, QNWeight):
            module.enabled = phase is not Phase.ACTIVATIONS
        elif isinstance(module, QNActivation):
            module.enabled = phase is not Phase.WEIGHTS


def set_temperature_(net: nn.Module, t: float) -> None:
    """T of every QN quantiser in `net`.

    Raises:
        ConfigError: t not positive.
    """
    if not t > 0:
        raise ConfigError(f"Quantization Networks: temperature {t}: it is positive and grows")
    for module in net.modules():
        if isinstance(module, QNWeight | QNActivation):
            module.temperature = t
