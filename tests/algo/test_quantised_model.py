"""`quantize_` on modules that know nothing of it."""

import copy

import pytest
import torch
from torch import nn

from seriatim.algo.quantisers.model import QuantisedLayer, after_step_, per_layer, quantisable, quantize_
from seriatim.algo.quantisers.qn import Phase, set_phase_
from seriatim.algo.quantisers.registry import METHODS
from seriatim.algo.quantisers.scheme import Scheme
from seriatim.algo.quantisers.weq import layer_widths
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit
SEED = 13
NAMES = ["conv", "body.0", "body.2", "head"]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(torch.relu(self.conv(x))).mean((2, 3)))


def small():
    torch.manual_seed(SEED)
    return Small()


def images(n=16):
    print("seed", SEED)
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("weight", [n for n, m in METHODS.items() if m.weight])
@pytest.mark.parametrize("act", ["lsq", "weq"])
def test_every_method_trains_and_evaluates_to_its_integer_form(weight, act):
    bits = 1 if weight in ("binaryconnect", "xnor") else 3
    net = quantize_(small(), Scheme(weight, bits, act, 3))
    assert [n for n, m in net.named_modules() if isinstance(m, QuantisedLayer)] == NAMES
    x, y = images(64), torch.arange(64) % 4
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        after_step_(net)
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    assert min(losses[-5:]) < losses[0]
    layer = net.eval().body[0]
    quantiser = layer.weight
    expected = quantiser.integers().double() * quantiser.scale().view(-1, 1, 1, 1)
    assert torch.equal(layer.quantised_weight(), expected.float() * (1 if layer.gain is None else layer.gain))
    assert torch.equal(net(x), net(x))
    again = quantize_(small(), Scheme(weight, bits, act, 3)).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


def test_wide_quantisers_stay_near_the_float_net():
    net, x = small().eval(), 20 * images()
    expected = net(x)
    twin = quantize_(copy.deepcopy(net), Scheme("uniform", 8, "uniform", 8)).train()
    twin(x)
    assert (twin.eval()(x) - expected).abs().max() < 0.05 * (expected - expected.mean(0)).abs().max()


def test_the_gain_brings_back_the_weights_scale():
    net = small()
    start = net.head.weight.detach().clone()
    layer = quantize_(net, Scheme("binaryconnect", 1, None)).head
    assert torch.allclose(layer.gain, start.abs().mean())
    assert layer.eval().quantised_weight().allclose(start.abs().mean() * start.sign())


def schemes(net):
    layers = {name: module for name, module in net.named_modules() if isinstance(module, QuantisedLayer)}
    return {name: (layer.weight and layer.weight.bits, layer.act and layer.act.bits) for name, layer in layers.items()}


def test_first_and_last_and_overrides():
    scheme = Scheme("lsq", 4, "pact", 5)
    assert schemes(quantize_(small(), scheme)) == {"conv": (4, None), "body.0": (4, 5), "body.2": (4, 5), "head": (4, 5)}
    assert list(schemes(quantize_(small(), scheme, first_last=False))) == ["body.0", "body.2"]
    wide = Scheme("lsq", 8, "lsq", 8, act_options={"signed": True})
    found = schemes(quantize_(small(), scheme, first_last=False, overrides={"body.*": None, "body.2": wide, "conv": wide}))
    assert found == {"conv": (8, 8), "body.2": (8, 8)}


def test_widths_for_each_layer():
    net, scheme = small(), Scheme("weq", 4, "weq", 4)
    widths = layer_widths("convex", len(quantisable(net)))
    assert widths == [6, 3, 2, 5]
    quantize_(net, scheme, overrides=per_layer(net, scheme, widths))
    assert schemes(net) == {"conv": (6, None), "body.0": (3, 3), "body.2": (2, 2), "head": (5, 5)}
    with pytest.raises(ConfigError, match="3 widths for 4 layers: .*conv, body.0"):
        per_layer(small(), scheme, [1, 2, 3])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_qns_phases_reach_the_layers(mode):
    net, x = quantize_(small(), Scheme("qn", 2, "qn", 2)), images()
    net(x)
    float_weight = net.head.weight.weight
    getattr(net, mode)()
    set_phase_(net, Phase.ACTIVATIONS)
    assert torch.equal(net.head.quantised_weight(), float_weight)
    set_phase_(net, Phase.BOTH)
    assert not torch.equal(net.head.quantised_weight(), float_weight)


def test_a_module_used_twice_is_replaced_in_both_places():
    shared = nn.Linear(5, 5)
    net = quantize_(nn.Sequential(shared, nn.ReLU(), shared), Scheme("lsq", 4, None))
    assert net[0] is net[2] and isinstance(net[0], QuantisedLayer)
    assert net(torch.ones(2, 5)).shape == (2, 5)


def test_a_refused_net_stays_as_it_was():
    net, x = small(), images()
    before = net(x)
    with pytest.raises(ConfigError, match="8 bits"):
        quantize_(net, Scheme("lsq", 4, "lsq", 4), overrides={"head": Scheme("logquant", 8)})
    assert torch.equal(net(x), before)


def test_what_cannot_be_quantised_says_why():
    scheme = Scheme("lsq", 4)
    with pytest.raises(ConfigError, match="'stem' matches no layer: there are conv, body.0, body.2, head"):
        quantize_(small(), scheme, overrides={"stem": None})
    with pytest.raises(ConfigError, match="Linear alone.*nn.Sequential"):
        quantize_(nn.Linear(2, 2), scheme)
    with pytest.raises(ConfigError, match="quantised already"):
        quantize_(quantize_(small(), scheme), scheme)
    with pytest.raises(ConfigError, match="no layer to quantise"):
        quantize_(nn.Sequential(nn.ReLU()), scheme)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ConfigError, match="0 and 1 share a weight"):
        quantize_(tied, scheme)
    with pytest.raises(ConfigError, match="'ternary'"):
        quantize_(small(), Scheme("ternary", 2))
