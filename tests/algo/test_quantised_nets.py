"""Every quantiser in this project's nets: trained, exported, compared with the contract in plain integers, saved."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from seriatim.algo import checkpoint, recipes, trained
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.export import agreement, export_integer, prove_network
from seriatim.algo.nets import build, quantize_, set_hard
from seriatim.algo.quantisers.model import after_step_, on_epoch_, per_layer, quantisable
from seriatim.algo.quantisers.norm import StateBatchNorm
from seriatim.algo.quantisers.registry import METHODS
from seriatim.algo.quantisers.scheme import SLB, Scheme, default_act, pair_name, pair_of
from seriatim.algo.quantisers.weq import layer_widths
from seriatim.algo.slb import SLBWeight
from seriatim.errors import CompileError, ConfigError
from seriatim.formats import Format

SEED = 7
ROOT2 = {"root": 2}
CASES = {
    "slb": SLB(2, 2), "slb+pact": SLB(3, 4, act="pact"), "lsq": Scheme("lsq", 4, "lsq", 4),
    "uniform": Scheme("uniform", 3, "uniform", 3), "dorefa": Scheme("dorefa", 4, "dorefa", 4),
    "binaryconnect": Scheme("binaryconnect", 1, "lsq", 4), "xnor": Scheme("xnor", 1, "xnor", 1),
    "logquant": Scheme("logquant", 4, "logquant", 4), "logquant, root 2": Scheme("logquant", 4, "logquant", 4, ROOT2, ROOT2),
    "weq": Scheme("weq", 3, "weq", 3), "qn": Scheme("qn", 2, "qn", 2), "lqnet": Scheme("lqnet", 2, "lqnet", 2),
    "lsq+logquant": Scheme("lsq", 4, "logquant", 3),
}  # fmt: skip


def images(n=16):
    print("seed", SEED)
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(SEED)).float()


def made(scheme, **changes):
    """A digits net after two steps of training, and images."""
    torch.manual_seed(SEED)
    net, x = quantize_(build("digits"), scheme, **changes), images()
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    for epoch in range(2):
        on_epoch_(net.train(), epoch, 2)
        loss = nn.functional.cross_entropy(net(x), torch.arange(16) % 10)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        after_step_(net)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    set_hard(net)
    return net.eval(), x


@pytest.fixture(scope="module", params=CASES)
def case(request):
    net, x = made(CASES[request.param])
    return net, x, export_integer(net)


def value(code: int, form: Format) -> int | tuple[int, int, int]:
    """Value of a code by the contract's table of formats; (sign, k, r) of a log that is not 0."""
    if str(form).startswith("log"):
        sign = -1 if form.signed and code >> form.bits - 1 else 1
        place = (code & (1 << form.bits - form.signed) - 1) - 1
        return 0 if place < 0 else (sign, place * form.step, form.residues)
    return form.value(code) if form.linear else form.table[code]


def product(w, x) -> int:
    """Of two values, as the contract says; logs are (sign, k, r), or 0."""
    if w == 0 or x == 0:
        return 0
    (sw, kw, rw), (sx, kx, rx) = (v if isinstance(v, tuple) else (None, None, None) for v in (w, x))
    if sw is None and sx is None:
        return w * x
    classes = max(rw or 1, rx or 1)
    position = (kw * classes // rw if sw else 0) + (kx * classes // rx if sx else 0)
    factor = round(2 ** (position % classes / classes) * 2**14) if classes > 1 else 1
    return (sw or w) * (sx or x) * (factor << position // classes)


def test_conv3_is_the_contract_in_plain_integers(case):
    """conv3 reads conv2's codes and adds conv1's: its output again from codes, formats, m, b, S and D alone."""
    net, x, network = case
    layer, info = network.body.conv3, next(i for i in network.layers if i.name == "conv3")
    codes = {name: c.numpy() for name, c in network.codes(x[:1].int()).items()}
    read = Format.parse(info.x_format.partition(":")[2])
    stored = Format.parse(info.x_format.partition(":")[0])
    quantiser = net.conv3.quantiser
    forms = quantiser.formats
    w_codes = quantiser.codes().numpy()
    seen = np.pad(codes["conv2"][0] >> stored.bits - read.bits, ((0, 0), (1, 1), (1, 1)), constant_values=-99)
    for o, y, z in [(0, 0, 0), (3, 4, 4), (15, 7, 2), (9, 3, 7)]:
        form, total = forms[o if len(forms) > 1 else 0], 0
        for c, i, j in np.ndindex(16, 3, 3):
            if seen[c, y + i, z + j] != -99:  # padding has the value 0
                total += product(value(int(w_codes[o, c, i, j]), form), value(int(seen[c, y + i, z + j]), read))
        acc = total >> info.drop
        assert -(2**31) <= acc < 2**31
        v = (int(layer.m[o]) * acc + layer.m2 * int(codes["conv1"][0, o, y, z]) + int(layer.b[o])) >> layer.shift
        assert codes["conv3"][0, o, y, z] == min(max(v, layer.lo), layer.hi)


def test_conv2_counts_the_thresholds_where_levels_are_uneven(case):
    net, x, network = case
    info = next(i for i in network.layers if i.name == "conv2")
    layer, act = network.body.conv2, net.conv2.act
    assert (layer.thresholds is None) == act.even
    if not act.even:
        assert len(layer.thresholds) == 2**act.bits - 1 and (layer.thresholds.diff() >= 0).all()
        ratio = layer.thresholds.double() / layer.thresholds[-1]
        assert ratio.allclose(act.thresholds() / act.thresholds()[-1], atol=1e-6)
    assert len(network.codes(x.int())["conv2"].unique()) > 1
    assert info.out_format == str(act.format)


def test_eval_mode_is_the_integer_network_and_agrees_with_the_float64_graph(case):
    net, x, network = case
    assert torch.equal(net(x), network(x.int()).flatten(1) * network.unit)
    shares = agreement(net, network, x)
    assert min(shares.values()) > 0.98, shares
    assert len(prove_network(network)) == 3


def test_a_checkpoint_holds_it_to_the_bit(case, tmp_path):
    net, x, network = case
    scheme = net.quantisation
    metadata = Metadata("digits", scheme.weight_bits, scheme.act_bits, pair_name(scheme.weight, scheme.act), image_size=8)
    path = checkpoint.save(net, metadata, tmp_path / "net.ckpt")
    other, found = checkpoint.load(path, "digits")
    assert found == metadata and other.quantisation == scheme
    old, new = (dict(n.named_buffers()) for n in (network, export_integer(other)))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert checkpoint.save(other, found, tmp_path / "again.ckpt").read_bytes() == path.read_bytes()


def test_overrides_first_last_and_widths():
    net, _ = made(Scheme("lsq", 4, "lsq", 4), overrides={"conv[23]": Scheme("slb", 2, "pact", 3)}, first_last=8)
    table = {i.name: i for i in export_integer(net).layers}
    assert [table[n].w_format for n in ("conv1", "conv2", "conv3", "fc")] == ["int8", "bipolar2", "bipolar2", "int8"]
    assert table["conv2"].x_format == "uint8:uint3" and table["conv2"].out_format == "uint3"
    net = build("digits")
    widths = layer_widths("convex", len(quantisable(net)))
    quantize_(net, Scheme("lsq", 4, "lsq", 4), overrides=per_layer(net, Scheme("lsq", 4, "lsq", 4), widths))
    assert [net.get_submodule(name).quantiser.bits for name in quantisable(build("digits"))] == widths


def test_an_integer_net_has_no_float_layers_and_is_left_alone():
    net = build("digits")
    for changes, words in (
        ({"overrides": {"conv2": None}}, "conv2: .*cannot stay float"), ({"first_last": False}, "conv1: .*float"),
        ({"overrides": {"conv9": None}}, "matches no layer: there are conv1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            quantize_(net, SLB(1, 8), **changes)
        assert net.quantisation is None and all(net.get_submodule(n).quantiser is None for n in ("conv1", "conv2", "fc"))


@pytest.mark.parametrize("arguments, words", [
    ({"weight": "gptq"}, "'gptq': choose one of slb"), ({"weight": "pact"}, "'pact' has none for weights"),
    ({"act": "binaryconnect"}, "none for activations"), ({"weight_bits": 9}, "W=9"), ({"act_bits": 0}, "A=0"),
    ({"first_last": 4}, "FIRST_LAST=4"), ({"batch_norm": "both"}, "'both': choose calibrate or state"),
])  # fmt: skip
def test_schemes_refuse_what_there_is_not(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Scheme(**arguments)


def test_pairs_have_short_names():
    for name in [n for n, m in METHODS.items() if m.weight]:
        assert pair_of(name) == (name, default_act(name)) and pair_name(*pair_of(name)) == name
    assert pair_of("dorefa+pact") == ("dorefa", "pact") and pair_name("dorefa", "pact") == "dorefa+pact"
    assert trained.check("digits", "dorefa+pact", 4, 4).act == "pact"
    assert Scheme.from_dict(Scheme("weq", overrides={"a": SLB(), "b": None}).to_dict()) == Scheme(
        "weq", overrides={"a": SLB(), "b": None}
    )


def test_a_sum_beyond_48_bits_is_refused():
    with pytest.raises(CompileError, match="48 bits.*fewer bits"):
        export_integer(made(Scheme("logquant", 6, "logquant", 5))[0])


def test_state_batch_norm_follows_the_discrete_weights():
    """Its second statistics are those of an ordinary batch norm in the net with W_q, and its first those without it."""
    torch.manual_seed(SEED)
    x, momenta = images(), 0.1
    start = build("digits")
    net = quantize_(start, SLB(1, 8, batch_norm="state")).train()
    norm = net.conv1.bn
    assert isinstance(norm, StateBatchNorm)
    before = norm.running_mean.clone()
    net(x)
    quantiser = net.conv1.quantiser
    for weight, mean in ((quantiser.expectation(), norm.running_mean), (quantiser.integers().float(), norm.hard_mean)):
        y = nn.functional.conv2d(x, weight, padding=1)
        assert mean.allclose((1 - momenta) * before + momenta * y.mean((0, 2, 3)), rtol=1e-4)
    assert not norm.hard and not quantiser.hard
    set_hard(net.eval())
    assert agreement(net, export_integer(net), x)["conv1"] == 1
    assert torch.equal(norm.statistics[0], norm.hard_mean)


@pytest.mark.parametrize("bits", [1, 3])
def test_slb_starts_and_channel_scales(bits):
    torch.manual_seed(SEED)
    weight = torch.randn(6, 4, 3, 3) * torch.rand(6, 1, 1, 1)
    scaled = SLBWeight(weight.shape, bits, weight, channel_scale=True)
    limit = 0.98 * 2 * weight.flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
    assert scaled().allclose(weight.clamp(-limit, limit), atol=1e-3)
    scaled.hard = True
    assert scaled().double().allclose(scaled.real(), rtol=1e-5)
    random = SLBWeight((64, 32, 3, 3), bits, weight, start="he")
    assert abs(random.logits.std().item() / math.sqrt((2 if bits == 1 else 1) * 2 / 288) - 1) < 0.05
    normal = SLBWeight((64, 32, 3, 3), bits, start="normal", deviation=0.5)
    assert abs(normal.logits.std().item() / (0.5 * (2**0.5 if bits == 1 else 1)) - 1) < 0.05
    for changes, words in (({"start": "zero"}, "'zero'"), ({"tau": 0}, "temperature 0")):
        with pytest.raises(ConfigError, match=words):
            SLBWeight((1, 1), bits, **changes)


@pytest.mark.parametrize("layer, shape", [
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (2, 4, 5, 5)), (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    (nn.Conv3d(2, 4, 3, groups=2), (1, 2, 4, 4, 4)),
])  # fmt: skip
def test_transposed_and_other_convolutions(layer, shape):
    torch.manual_seed(SEED)
    x, expected = torch.randn(shape), layer.weight.detach().clone()
    net = nn.Sequential(layer)
    plain = net(x)
    quantize_(net, Scheme("uniform", 8, "lsq", 8))
    assert (net(x) - plain).abs().max() < 0.03 * plain.abs().max()
    channels = {"ConvTranspose": 6}.get(type(layer).__name__[:13], 4)
    assert net[0].weight.codes().shape[0] == channels
    assert net[0].quantised_weight().allclose(expected, atol=expected.abs().max().item() / 100)
    net(x).sum().backward()
    assert net[0].weight.weight.grad.isfinite().all()


def test_qn_sharpens_with_the_epochs_and_takes_phases():
    net = quantize_(build("digits"), Scheme("qn", 2, "qn", 2))
    on_epoch_(net, 4, 9)
    assert net.conv2.quantiser.temperature == net.conv2.act.temperature == 50
    with pytest.raises(ConfigError, match="phase 'none': choose weights"):
        recipes.Recipe(((8, 1),), phase="none")
