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


def window(epoch: float, epochs: int, start=0.4, end=0.9, factor=1.05) -> float:
    """1 / tau relative to its start: times `factor` an epoch inside the window [start, end] (shares
    of all epochs), as SLB's authors do: 1.03 for W1/A1 to 1.06 for W4/A32, 1.05 on ImageNet."""
    return factor ** max(0.0, min(epoch, end * epochs) - start * epochs)


def golden_stick(epoch: int, epochs: int, start=0.2, end=0.6, factor=1.2) -> float:
    """MindSpore Golden Stick's T = 1 / tau relative to its start:
    factor^(min(epoch, floor(E end)) - floor(E start)) once epoch > floor(E start)."""
    begin = math.floor(epochs * start)
    if epoch <= begin:
        return 1.0
    return factor ** (min(epoch, math.floor(epochs * end)) - begin)


WINDOWS = {"window": window, "golden-stick": golden_stick}
"""Schedules of the temperature that go by whole epochs, a factor and a window."""

TEMPERATURES = ("rate", "exponential", "linear", "cosine", *WINDOWS)


def temperature(kind: str, step: float, steps: float, rate: float, start: float, end: float) -> float:
    """tau at `step` of `steps`, from `start` to `end`, for the kinds that are no WINDOWS.

    "rate" sharpens geometrically as the learning rate decays (`rate` is its share of the peak, 1 in
    the warm-up); "exponential", "linear" and "cosine" go by the share of steps done.

    Raises:
        ConfigError: an unknown kind, or temperatures that do not fall.
    """
    check_temperatures(kind, start, end)
    done = min(step / steps, 1)
    if kind == "rate":
        return start * (end / start) ** (1 - rate)
    if kind == "exponential":
        return start * (end / start) ** done
    if kind == "linear":
        return start + (end - start) * done
    return end + (start - end) * cosine(done, 1)


def check_temperatures(kind: str, start: float, end: float) -> None:
    """Raises ConfigError: an unknown kind, or temperatures that do not fall."""
    if kind not in TEMPERATURES:
        raise ConfigError(f"temperature schedule {kind!r}: choose {', '.join(TEMPERATURES)}")
    if not 0 < end <= start:
        raise ConfigError(f"temperatures {start} to {end}: both positive, falling; swap them")


def check_window(window: tuple[float, float], factor: float | None, hard_from: float | None) -> None:
    """Raises ConfigError: a window that is none, a factor that does not sharpen, a share outside 0..1."""
    if len(window) != 2 or not 0 <= window[0] < window[1] <= 1:
        raise ConfigError(f"window {window}: two shares of all epochs, 0 <= start < end <= 1")
    if factor is not None and factor <= 1:
        raise ConfigError(f"factor {factor}: 1 / tau is multiplied by it each epoch, so it must be above 1")
    if hard_from is not None and not 0 <= hard_from <= 1:
        raise ConfigError(f"hard_from {hard_from}: a share of all epochs, 0 to 1")
