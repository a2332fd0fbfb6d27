"""What holds for every quantiser: the integer form is the forward pass, and bad input is refused with its reason."""

import math

import pytest
import torch

from seriatim.algo.quantisers.base import decode, levels_format, straight, table_unit
from seriatim.algo.quantisers.registry import METHODS, activation_quantiser, weight_quantiser
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit
SEED = 5

WEIGHTS = [
    ("slb", 1, {}), ("slb", 3, {}), ("uniform", 5, {}), ("lsq", 2, {}), ("lsq", 4, {}), ("binaryconnect", 1, {}), ("xnor", 1, {}),
    ("dorefa", 1, {}), ("dorefa", 3, {}), ("lqnet", 1, {}), ("lqnet", 3, {}), ("lqnet", 2, {"channelwise": False}),
    ("logquant", 4, {}), ("logquant", 4, {"root": 2}), ("logquant", 2, {"fsr": 0}), ("weq", 1, {}), ("weq", 3, {}),
    ("weq", 3, {"exact": True}), ("weq", 2, {"folded": False}), ("qn", 1, {}), ("qn", 2, {}),
    ("qn", 3, {"levels": (-4, -2, -1, 0, 1, 2, 4)}),
]
ACTIVATIONS = [
    ("slb", 4, {}), ("lsq", 2, {}), ("lsq", 8, {"signed": True}), ("uniform", 4, {}), ("xnor", 1, {}), ("dorefa", 2, {}),
    ("pact", 4, {}), ("lqnet", 2, {}), ("lqnet", 3, {}), ("logquant", 3, {}), ("logquant", 4, {"root": 2}), ("weq", 3, {}),
    ("weq", 4, {}), ("qn", 1, {}), ("qn", 2, {}),
]
MASTERED = [case for case in WEIGHTS if case[0] not in ("slb", "uniform")]


def named(cases):
    return [pytest.param(*case, id="-".join([case[0], str(case[1]), *map(str, case[2])])) for case in cases]


def tensor(*shape):
    """Heavy-tailed float64 values, as trained weights have."""
    print("seed", SEED)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x * x.abs() * 0.3


def trained(name, bits, options):
    """An activation quantiser that has seen a batch, in eval mode, and other activations."""
    act = activation_quantiser(name, bits, **options).double().train()
    act(tensor(40, 6, 3, 3))
    return act.eval(), tensor(50, 6, 3, 3)[40:] * 1.3


def table_values(codes, formats):
    """Value of each code by the format's table, one element at a time: independent of `decode`."""
    rows = formats if len(formats) > 1 else formats * len(codes)
    values = [[f.values[c & (2**f.bits - 1)] for c in row.flatten().tolist()] for row, f in zip(codes, rows)]
    return torch.tensor(values, dtype=torch.float64).view(codes.shape)


@pytest.mark.parametrize("name, bits, options", named(WEIGHTS))
def test_weights_are_exactly_scale_times_value_of_code(name, bits, options):
    quantiser = weight_quantiser(name, tensor(6, 4, 3, 3), bits, **options).double().eval()
    codes = quantiser.codes()
    assert codes.dtype == torch.int32 and codes.shape == (6, 4, 3, 3)
    assert len({f.bits for f in quantiser.formats}) == 1 and quantiser.formats[0].bits == bits
    value = table_values(codes, quantiser.formats) * quantiser.scale().view(-1, 1, 1, 1)
    assert torch.equal(value, quantiser.real())
    assert torch.equal(quantiser.integers().double(), table_values(codes, quantiser.formats))
    if name == "slb":
        quantiser.hard = True
    if name == "uniform":  # the nets' own forward pass, which adds the rounding to the float weight
        assert torch.allclose(quantiser(), value, rtol=0, atol=1e-15)
    elif name == "slb":  # divides by 2^b - 1 instead
        assert torch.allclose(quantiser(), value, rtol=1e-15)
    else:
        assert torch.equal(quantiser(), value)


@pytest.mark.parametrize("name, bits, options", named(ACTIVATIONS))
def test_activations_are_exactly_scale_times_value_of_code(name, bits, options):
    act, y = trained(name, bits, options)
    codes = act.codes(y)
    assert codes.dtype == torch.int32 and act.format.bits == bits
    assert len(codes.unique()) > 1
    assert torch.equal(act(y), table_values(codes, (act.format,)) * act.scale())


@pytest.mark.parametrize("name, bits, options", named(ACTIVATIONS))
def test_activations_are_idempotent_and_deterministic(name, bits, options):
    act, y = trained(name, bits, options)
    again, _ = trained(name, bits, options)
    assert torch.equal(act(y), again(y))
    if name not in ("qn", "xnor"):  # whose levels need not lie between their own thresholds
        assert torch.equal(act(act(y)), act(y))


@pytest.mark.parametrize("name, bits, options", named(MASTERED))
def test_weights_are_deterministic_and_float32_gives_the_same_codes(name, bits, options):
    w = tensor(6, 4, 3, 3).float()
    first = weight_quantiser(name, w, bits, **options).eval()
    assert torch.equal(first.codes(), weight_quantiser(name, w, bits, **options).codes())
    assert first().dtype == torch.float32 and torch.equal(first(), first.real().float())


@pytest.mark.parametrize("name, bits, options", named([
    ("logquant", 4, {"fsr": 1}), ("logquant", 5, {"root": 2, "fsr": 2}),
    ("binaryconnect", 1, {}), ("xnor", 1, {}), ("dorefa", 1, {}),
]))
def test_quantised_weights_quantise_to_themselves(name, bits, options):
    quantiser = weight_quantiser(name, tensor(6, 4, 3, 3), bits, **options).double()
    once = quantiser()
    assert torch.allclose(weight_quantiser(name, once, bits, **options).double()(), once, rtol=1e-12)


@pytest.mark.parametrize("name, bits, options", named([c for c in MASTERED if c[0] not in ("xnor", "dorefa", "lsq", "qn")]))
def test_the_gradient_goes_straight_through(name, bits, options):
    quantiser = weight_quantiser(name, tensor(6, 4, 3, 3), bits, **options).double().train()
    grad = tensor(6, 4, 3, 3).flip(0)
    quantiser().backward(grad)
    assert torch.equal(quantiser.weight.grad, grad)


def test_dorefas_gradient_is_that_of_its_tanh():
    quantiser = weight_quantiser("dorefa", tensor(3, 2, 1, 1), 3).double()
    quantiser().sum().backward()
    grad, step = quantiser.weight.grad.flatten(), 1e-6
    with torch.no_grad():
        flat = quantiser.weight.view(-1)
        for i in range(len(flat)):
            ends = []
            for move in (step, -step):
                moved = flat.clone()
                moved[i] += move
                ends.append((torch.tanh(moved) / torch.tanh(moved).abs().max()).sum())
            assert math.isclose(grad[i].item(), ((ends[0] - ends[1]) / (2 * step)).item(), rel_tol=1e-6)


def test_xnors_gradient_is_the_papers():
    w = tensor(3, 2, 2, 2) * 4
    quantiser = weight_quantiser("xnor", w, 1).double()
    grad = tensor(3, 2, 2, 2).flip(1)
    quantiser().backward(grad)
    alpha = w.abs().mean((1, 2, 3), keepdim=True)
    assert (w.abs() > 1).any()
    assert quantiser.weight.grad.allclose(grad * (1 / 8 + alpha * (w.abs() <= 1)))
    assert quantiser().allclose(alpha * torch.where(w >= 0, 1.0, -1.0).double())


def test_lsqs_gradients_are_the_papers():
    w = tensor(5, 4, 3, 3)
    quantiser = weight_quantiser("lsq", w, 3).double()
    assert abs(quantiser.step.item() - 2 * w.abs().mean().item() / 3**0.5) < 1e-12
    grad = tensor(5, 4, 3, 3).flip(0)
    quantiser().backward(grad)
    ratio = w / quantiser.step.detach()
    inside = (ratio > -4) & (ratio < 3)
    assert inside.any() and not inside.all()
    slope = torch.where(inside, torch.floor(ratio + 0.5) - ratio, ratio.clamp(-4, 3))
    assert quantiser.step.grad.allclose((grad * slope).sum() / (w.numel() * 3) ** 0.5)
    assert quantiser.weight.grad.allclose(grad * inside)


def test_pacts_gradients_are_the_papers():
    act = activation_quantiser("pact", 2, alpha=1.5).double()
    y = torch.tensor([-1.0, 0.2, 0.3, 1.4, 1.5, 9.0], dtype=torch.float64, requires_grad=True)
    out = act(y)
    assert out.tolist() == [0, 0, 0.5, 1.5, 1.5, 1.5]
    out.backward(torch.tensor([1.0, 2, 4, 8, 16, 32], dtype=torch.float64))
    assert y.grad.tolist() == [0, 2, 4, 8, 0, 0]
    assert act.alpha.grad.item() == 48


def test_activation_gradients_pass_inside_the_range_only():
    y = torch.tensor([-0.5, 0.5, 0.9, 1.5], dtype=torch.float64, requires_grad=True)
    activation_quantiser("dorefa", 2)(y).sum().backward()
    assert y.grad.tolist() == [0, 1, 1, 0]
    y.grad = None
    activation_quantiser("xnor", 1)(y).sum().backward()
    assert y.grad.tolist() == [1, 1, 1, 0]


def test_dorefa_by_its_definition():
    w = tensor(4, 5)
    unit = torch.tanh(w) / (2 * torch.tanh(w).abs().max()) + 0.5
    assert weight_quantiser("dorefa", w, 2)().allclose(2 * torch.floor(unit * 3 + 0.5) / 3 - 1)
    assert weight_quantiser("dorefa", w, 1)().allclose(w.abs().mean() * w.sign())


def test_binaryconnect_draws_by_the_hard_sigmoid_and_clips_after_the_step():
    quantiser = weight_quantiser("binaryconnect", torch.full((1, 20000), 0.5), 1, stochastic=True).train()
    torch.manual_seed(SEED)
    drawn = quantiser()
    assert set(drawn.unique().tolist()) == {-1, 1}
    assert abs((drawn == 1).float().mean().item() - 0.75) < 0.015
    assert (quantiser.eval()() == 1).all()
    with torch.no_grad():
        quantiser.weight.fill_(-3)
    quantiser.after_step()
    assert (quantiser.weight == -1).all()


def test_straight_returns_the_second_with_the_gradient_of_the_first():
    x = torch.tensor([0.3], requires_grad=True)
    y = straight(x * 3, torch.tensor([7.0]))
    y.backward()
    assert (y.item(), x.grad.item()) == (7, 3)


@pytest.mark.parametrize("levels, text", [
    ([-1, 1], "bipolar1"), ([0, 1], "uint1"), ([-3, -1, 1, 3], "bipolar2"), ([-1, 0, 1], "int2"),
    ([-3, -2, -1, 0, 1, 2, 3], "int3"), ([-2, -1, 0, 1, 2], "codebook3[-2,-1,0,1,2,2,2,2]"), ([0, 3], "codebook1[0,3]"),
])
def test_levels_take_the_narrowest_format(levels, text):
    form = levels_format(levels)
    assert str(form) == text and set(levels) <= set(form.values)


def test_the_largest_entry_of_a_table_has_15_bits():
    for largest in (1e-30, 0.3, 0.5, 1.0, 3e5):
        assert 2**14 <= largest / table_unit(largest) <= 2**15


def test_channelwise_tables_decode_by_row():
    quantiser = weight_quantiser("lqnet", tensor(3, 7), 2)
    codes = torch.tensor([[0, 3], [1, 2], [3, 3]])
    tables = [f.values for f in quantiser.formats]
    assert decode(codes, quantiser.formats).tolist() == [[tables[r][c] for c in row] for r, row in enumerate(codes.tolist())]
    with pytest.raises(ConfigError, match="each output channel has its own.*channelwise=False"):
        _ = quantiser.format


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.weight])
def test_weights_refuse_bad_input(name):
    for bits in (0, 33, 2.0, True):
        with pytest.raises(ConfigError, match=f"{bits} bits"):
            weight_quantiser(name, tensor(3, 4), bits)
    low = {"uniform": 5, "logquant": 3, "lsq": 3}.get(name, 1)
    bad = tensor(3, 4)
    bad[1, 2] = float("nan")
    bad[2, 2] = float("inf")
    with pytest.raises(ConfigError, match="2 of 12 values are NaN or infinite.*learning rate"):
        weight_quantiser(name, bad, low)
    with pytest.raises(ConfigError, match=r"shape \(3,\).*one more axis"):
        weight_quantiser(name, tensor(3), low)
    with pytest.raises(ConfigError, match=r"shape \(0, 3\).*leave this layer out"):
        weight_quantiser(name, tensor(0, 3), low)
    with pytest.raises(ConfigError, match="torch.int64.*float"):
        weight_quantiser(name, torch.ones(3, 4).long(), low)
    with pytest.raises(ConfigError, match=f"{name} has no weight option 'colour'"):
        weight_quantiser(name, tensor(3, 4), low, colour=1)


@pytest.mark.parametrize("name, bits, options", named(MASTERED))
def test_weights_that_diverged_are_refused(name, bits, options):
    quantiser = weight_quantiser(name, tensor(6, 4, 3, 3), bits, **options)
    with torch.no_grad():
        quantiser.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConfigError, match="1 of 216 values are NaN"):
        quantiser.eval()()


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.activation])
def test_activations_refuse_bad_input(name):
    for bits in (0, 9, 2.0):
        with pytest.raises(ConfigError, match=f"{bits} bits"):
            activation_quantiser(name, bits)
    act = activation_quantiser(name, 1)
    for module in (act.train(), act.eval()):
        with pytest.raises(ConfigError, match="1 of 3 values are NaN"):
            module(torch.tensor([1.0, float("nan"), 2.0]))
        with pytest.raises(ConfigError, match="nothing to quantise"):
            module(torch.ones(0))
        with pytest.raises(ConfigError, match="torch.int64"):
            module.codes(torch.ones(3).long())


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="'ternary': choose one of slb, logquant, weq"):
        weight_quantiser("ternary", tensor(3, 4), 2)
    with pytest.raises(ConfigError, match="'pact' has none for weights"):
        weight_quantiser("pact", tensor(3, 4), 2)
    with pytest.raises(ConfigError, match="'binaryconnect' has none for activations: .*pact"):
        activation_quantiser("binaryconnect", 1)


def differences(function, x, step=1e-6):
    """Central differences of a sum over x, an element at a time, and where the function has no kink (both sides agree)."""
    flat, slopes, smooth = x.detach().clone().flatten(), [], []
    for i in range(len(flat)):
        ends = []
        for move in (step, 0, -step):
            moved = flat.clone()
            moved[i] += move
            ends.append(function(moved.view(x.shape)).item())
        right, left = (ends[0] - ends[1]) / step, (ends[1] - ends[2]) / step
        slopes.append((right + left) / 2)
        smooth.append(math.isclose(right, left, rel_tol=1e-3, abs_tol=1e-4))
    return torch.tensor(slopes, dtype=torch.float64).view(x.shape), torch.tensor(smooth).view(x.shape)


@pytest.mark.parametrize("name, bits, options", named([c for c in ACTIVATIONS if c[0] not in ("slb", "lsq", "uniform")]))
def test_activations_gradients_are_the_differences_of_their_surrogate(name, bits, options):
    """Behind the rounding and for the codes of the nets alike; LSQ's, whose surrogate is none, is in test_acts."""
    act, _ = trained(name, bits, options)
    y = tensor(3, 7).requires_grad_()
    weights = tensor(3, 7).flip(0)
    slopes, smooth = differences(lambda x: (act.surrogate(x) * weights).sum(), y)
    assert smooth.sum() > 15
    (act(y) * weights).sum().backward()
    assert y.grad[smooth].allclose(slopes[smooth], rtol=1e-4, atol=1e-7)
    found, y.grad = y.grad, None
    codes = act.quantise(y)
    assert torch.equal(codes.real(), act(y)) or codes.real().allclose(act(y), rtol=1e-14)
    (codes.real() * weights).sum().backward()
    assert y.grad.allclose(found)
    for parameter in act.parameters():
        def at(value, parameter=parameter):
            with torch.no_grad():
                kept = parameter.clone()
                parameter.copy_(value.view(()))
                total = (act.surrogate(y) * weights).sum()
                parameter.copy_(kept)
            return total
        slope, _ = differences(at, parameter.view(1))
        assert parameter.grad.view(1).allclose(slope * 2, rtol=1e-3, atol=1e-6)  # of both backward passes


@pytest.mark.parametrize("name, bits, options", named([c for c in MASTERED if c[0] not in ("lsq", "xnor")]))
def test_weights_gradients_are_the_differences_of_their_surrogate(name, bits, options):
    """LSQ's, whose step has a gradient of its own, and XNOR's, whose alpha has none, are compared with their papers' above."""
    quantiser = weight_quantiser(name, tensor(4, 6), bits, **options).double().train()
    weights = tensor(4, 6).flip(0)

    def at(value):
        with torch.no_grad():
            kept = quantiser.weight.clone()
            quantiser.weight.copy_(value)
            total = (quantiser.surrogate() * weights).sum()
            quantiser.weight.copy_(kept)
        return total

    slopes, smooth = differences(at, quantiser.weight)
    (straight(quantiser.surrogate(), quantiser.surrogate().detach()) * weights).sum().backward()
    assert smooth.sum() > 15 and quantiser.weight.grad[smooth].allclose(slopes[smooth], rtol=1e-3, atol=1e-6)
