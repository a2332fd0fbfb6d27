"""Learning-rate and temperature schedules, in closed form of the step or epoch."""

import math

from seriatim.errors import ConfigError


def cosine(step: float, steps: float, floor: float = 0.0) -> float:
    """1 at step 0, `floor` at `steps`, half a cosine between."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))


def one_cycle(step: float, steps: float, warm: float = 0.2) -> float:
    """Linear from 0.04 to 1 over the first `warm` share, then cosine to 0."""
    up = warm * steps
    if step < up:
        return 0.04 + 0.96 * step / up
    return cosine(step - up, steps - up)


RATES = {"one-cycle": one_cycle, "cosine": cosine, "constant": lambda step, steps: 1.0}


def exponential(epoch: float, epochs: int, start=0.4, end=0.9, factor=1.05) -> float:
    """1 / tau relative to its start: times `factor` an epoch inside the window [start, end] (shares
    of all epochs), as SLB's authors do: 1.03 for W1/A1 to 1.06 for W4/A32, 1.05 on ImageNet."""
    return factor ** max(0.0, min(epoch, end * epochs) - start * epochs)


def golden_stick(epoch: int, epochs: int, start=0.2, end=0.6, first=1.0, factor=1.2) -> float:
    """MindSpore Golden Stick's T = 1 / tau:
    first * factor^(min(epoch, floor(E end)) - floor(E start)) once epoch > floor(E start)."""
    begin = math.floor(epochs * start)
    if epoch <= begin:
        return first
    return first * factor ** (min(epoch, math.floor(epochs * end)) - begin)


def temperature(kind: str, step: float, steps: float, rate: float, start: float, end: float) -> float:
    """tau at `step` of `steps`, from `start` to `end`.

    "rate" sharpens geometrically as the learning rate decays (`rate` is its share of the peak, 1 in
    the warm-up); "exponential", "linear" and "cosine" go by the share of steps done.

    Raises:
        ConfigError: an unknown kind, or temperatures that do not fall.
    """
    if not 0 < end <= start:
        raise ConfigError(f"temperatures {start} to {end}: both positive, falling; swap them")
    done = min(step / steps, 1)
    if kind == "rate":
        return start * (end / start) ** (1 - rate)
    if kind == "exponential":
        return start * (end / start) ** done
    if kind == "linear":
        return start + (end - start) * done
    if kind == "cosine":
        return end + (start - end) * cosine(done, 1)
    raise ConfigError(f"temperature schedule {kind!r}: choose rate, exponential, linear or cosine")
