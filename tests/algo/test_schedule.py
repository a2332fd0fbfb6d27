import math

import pytest

from seriatim.algo import schedule
from seriatim.errors import ConfigError


def test_golden_stick_closed_form_at_every_epoch():
    """T / t_start_val = t_factor^(min(epoch, floor(E t_end)) - floor(E t_start)), once past it."""
    epochs, start, end, factor = 100, 0.2, 0.6, 1.2
    for epoch in range(epochs):
        if epoch <= 20:
            expected = 1
        else:
            expected = factor ** (min(epoch, 60) - 20)
        found = schedule.golden_stick(epoch, epochs, start, end, factor)
        assert math.isclose(found, expected)


def test_authors_window_edges():
    assert schedule.window(39, 100, 0.4, 0.9, 1.05) == 1
    assert schedule.window(40, 100, 0.4, 0.9, 1.05) == 1
    assert math.isclose(schedule.window(41, 100, 0.4, 0.9, 1.05), 1.05)
    assert math.isclose(schedule.window(90, 100, 0.4, 0.9, 1.05), 1.05**50)
    assert schedule.window(100, 100, 0.4, 0.9) == schedule.window(90, 100, 0.4, 0.9)


def test_one_cycle_rises_and_falls_to_nothing():
    rates = [schedule.one_cycle(step, 100) for step in range(101)]
    assert rates[0] == 0.04 and rates[20] == 1 and abs(rates[100]) < 1e-12
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)


@pytest.mark.parametrize("kind", ["exponential", "linear", "cosine"])
def test_temperature_goes_from_start_to_end(kind):
    values = [schedule.temperature(kind, step, 10, 1.0, 0.1, 0.002) for step in range(11)]
    assert math.isclose(values[0], 0.1) and math.isclose(values[-1], 0.002)
    assert values == sorted(values, reverse=True)


def test_temperature_follows_the_rate():
    assert schedule.temperature("rate", 3, 10, 1.0, 0.1, 0.001) == 0.1
    assert math.isclose(schedule.temperature("rate", 3, 10, 0.5, 0.1, 0.001), 0.01)
    assert math.isclose(schedule.temperature("rate", 3, 10, 0.0, 0.1, 0.001), 0.001)


def test_refuses_nonsense():
    with pytest.raises(ConfigError, match="'sharp'.*choose"):
        schedule.temperature("sharp", 0, 1, 1, 0.1, 0.01)
    with pytest.raises(ConfigError, match="0.01 to 0.1"):
        schedule.temperature("linear", 0, 1, 1, 0.01, 0.1)
