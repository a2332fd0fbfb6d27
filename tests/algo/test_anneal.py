import math

import pytest
import torch
from torch import nn

from seriatim.algo.anneal import TemperatureScheduler, calibrate_batch_norm, discrete, undecided
from seriatim.algo.nets import set_temperature, slb_weights
from seriatim.algo.quantisers.model import Scheme, quantize_
from seriatim.algo.schedule import golden_stick, window
from seriatim.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.unit


def net(bits=1):
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return quantize_(layers, Scheme("slb", bits, act=None))


def taus(kind, steps, **kw):
    scheduler, found = TemperatureScheduler(net(), kind, **kw), []
    for _ in range(steps):
        found.append(scheduler.get_last_tau())
        assert {module.tau for module in slb_weights(scheduler.model)} == {found[-1]}
        scheduler.step()
    return found


@pytest.mark.parametrize("kind, formula", [("golden-stick", golden_stick), ("window", window)])
def test_epoch_schedules_are_their_formulas(kind, formula):
    found = taus(kind, 40, epochs=20, steps_per_epoch=2, start=0.5, window=(0.2, 0.6), factor=1.2)
    assert found == [0.5 / formula(step // 2, 20, 0.2, 0.6, 1.2) for step in range(40)]


def test_without_a_factor_the_window_ends_at_the_end():
    found = taus("window", 20, epochs=20, start=0.1, end=0.002, window=(0.25, 0.75))
    assert found[0] == found[5] == 0.1 and math.isclose(found[15], 0.002) and found[15] == found[19]


def test_it_follows_the_decay_of_the_rate_and_not_its_rise():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    scheduler = TemperatureScheduler(model, "rate", epochs=4, start=0.1, end=0.001, optimizer=optimizer)
    found = []
    for rate in (0.5, 1.0, 0.5, 0.0):
        optimizer.param_groups[0]["lr"] = rate
        scheduler.step()
        found.append(scheduler.get_last_tau())
    assert found[:2] == [0.1, 0.1] and math.isclose(found[2], 0.01) and math.isclose(found[3], 0.001)


def test_hooks_see_every_temperature_and_the_forward_pass_gets_hard():
    seen, model = [], net()
    scheduler = TemperatureScheduler(model, "linear", epochs=4, start=0.4, end=0.1, hard_from=0.5,
                                     on_change=lambda s: seen.append((s.epoch, round(s.tau, 6), s.hard)))  # fmt: skip
    for _ in range(3):
        scheduler.step()
    assert seen == [(0, 0.4, False), (1, 0.325, False), (2, 0.25, True), (3, 0.175, True)]
    weight = slb_weights(model)[0]
    assert set(weight().unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("kind", ["rate", "exponential", "golden-stick"])
def test_a_state_continues_to_the_same_bits(kind):
    def run(model, steps, state=None):
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        scheduler = TemperatureScheduler(model, kind, epochs=10, start=0.2, end=0.01, optimizer=optimizer, hard_from=0.8)
        for _ in range(state["steps"] if state else 0):
            optimizer.step()
            rates.step()
        if state:
            scheduler.load_state_dict(state)
        found = []
        for _ in range(steps):
            optimizer.step()
            rates.step()
            scheduler.step()
            found.append((scheduler.get_last_tau(), slb_weights(model)[0].tau, slb_weights(model)[0].hard))
        return found, scheduler.state_dict()

    whole, _ = run(net(), 10)
    first, state = run(net(), 4)
    rest, _ = run(net(), 6, state)
    assert first + rest == whole and whole[-1][2]


def test_foreign_states_are_refused():
    scheduler = TemperatureScheduler(net(), "linear", epochs=2)
    with pytest.raises(CheckpointError, match="no state of a temperature scheduler"):
        scheduler.load_state_dict({"last_epoch": 3})
    with pytest.raises(CheckpointError, match="'cosine', this one is 'linear'"):
        scheduler.load_state_dict(TemperatureScheduler(net(), "cosine", epochs=2).state_dict())


@pytest.mark.parametrize("words, arguments", [
    ("'sharp': choose rate", dict(kind="sharp")),
    ("0.01 to 0.1", dict(start=0.01, end=0.1)),
    ("give the optimizer", dict(kind="rate")),
    ("0 epochs", dict(epochs=0)),
    ("window", dict(window=(0.9, 0.4))),
    ("factor 0.9", dict(factor=0.9)),
    ("hard_from 2", dict(hard_from=2)),
])  # fmt: skip
def test_refuses_nonsense(words, arguments):
    with pytest.raises(ConfigError, match=words):
        TemperatureScheduler(net(), **{"kind": "linear", "epochs": 3, **arguments})


def test_a_net_without_slb_weights_has_no_temperature():
    with pytest.raises(ConfigError, match="Sequential has no SLB weights"):
        TemperatureScheduler(nn.Sequential(nn.Linear(2, 2)), "linear", epochs=1)


def test_discrete_is_batch_norm_on_argmax_weights_and_leaves_nothing_behind():
    model = net(2).train()
    x = torch.randn(64, 1, 4, 4)
    model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with discrete(model, [x]):
        weight = model[0].weight.integers() / 3 * model[0].gain
        y = nn.functional.conv2d(x, weight, model[0].layer.bias)
        assert model[1].running_mean.allclose(y.mean((0, 2, 3)), atol=1e-5)
        assert model[1].running_var.allclose(y.var((0, 2, 3)), rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model[1].momentum == 0.1 and not model[0].weight.hard


def test_calibration_averages_and_restores_modes():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.0)).train()
    model[1].eval()
    calibrate_batch_norm(model, [(torch.full((4, 3), 2.0), None), (torch.full((4, 3), 4.0), None)])
    assert model[0].running_mean.tolist() == [3.0] * 3
    assert model[0].training and not model[1].training and model[0].momentum == 0.1
    with pytest.raises(RuntimeError):
        calibrate_batch_norm(model, [torch.zeros(2, 5)])
    assert model[0].momentum == 0.1 and not model[1].training


def test_undecided_weights_are_counted():
    model = net()
    for module in slb_weights(model):
        module.logits.data.fill_(1.0)
    assert undecided(model) == 0 == undecided(nn.Linear(2, 2))
    set_temperature(model, 10.0)
    assert undecided(model) == 1
    model[0].weight.logits.data[0].fill_(1000.0)
    assert 0 < undecided(model) < 1
