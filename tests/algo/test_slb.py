import math

import pytest
import torch

from seriatim.algo.slb import (
    SLBWeight,
    UniformWeight,
    gap_bound,
    level_values,
    levels,
    logits_for,
    normalise,
)  # fmt: skip
from seriatim.errors import ConfigError

SEED = 11


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_odd_and_span_one(bits):
    found = levels(bits)
    assert found.tolist() == [2 * i - (2**bits - 1) for i in range(2**bits)]
    assert level_values(bits, torch.float64).allclose(
        torch.linspace(-1, 1, 2**bits, dtype=torch.float64)
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_formula_autograd_and_finite_differences_agree(bits):
    print("seed", SEED)
    torch.manual_seed(SEED)
    tau, values = 0.37, level_values(bits, torch.float64)
    layer = SLBWeight((3, 2, 1, 1), bits, tau=tau).double()
    logits = layer.logits.detach().clone().requires_grad_()
    probability = torch.softmax(logits / tau, -1)
    assert probability.sum(-1).allclose(torch.ones((), dtype=torch.float64))
    expected = (probability * values).sum(-1)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    weight = layer()
    weight.backward(grad)
    assert weight.allclose(expected)
    assert layer.logits.grad.allclose(logits.grad)
    formula = probability * (values - expected[..., None]) / tau
    assert layer.logits.grad.allclose(formula * grad[..., None])
    step = 1e-6
    with torch.no_grad():
        layer.logits[1, 1, 0, 0, 1] += step
        up = layer()[1, 1, 0, 0]
        layer.logits[1, 1, 0, 0, 1] -= 2 * step
        difference = (up - layer()[1, 1, 0, 0]) / (2 * step)
    assert math.isclose(difference.item(), formula[1, 1, 0, 0, 1].item(), rel_tol=1e-6)


def test_one_bit_is_the_softmax_of_two_logits():
    torch.manual_seed(SEED)
    tau = 0.2
    pair = torch.randn(40, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.softmax(pair / tau, -1) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
    expected.sum().backward()
    layer = SLBWeight((40, 1, 1, 1), 1, tau=tau).double()
    with torch.no_grad():
        layer.logits.copy_((pair[:, 1] - pair[:, 0]).view(40, 1, 1, 1))
    weight = layer()
    weight.sum().backward()
    assert weight.flatten().allclose(expected)
    assert layer.logits.grad.flatten().allclose(pair.grad[:, 1])
    assert (layer.integers().flatten() == torch.where(expected >= 0, 1, -1)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tau", [1.0, 0.2, 0.02])
def test_gap_bound_holds(bits, tau):
    torch.manual_seed(SEED)
    layer = SLBWeight((50, 4, 1, 1), bits, tau=tau).double()
    with torch.no_grad():
        layer.logits.normal_()
    gap = (layer() - layer.integers().double() / (2**bits - 1)).abs()
    assert (gap <= gap_bound(layer.logits, bits, tau) + 1e-12).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_starts_at_the_normalised_float_weight(bits):
    torch.manual_seed(SEED)
    weight = torch.randn(8, 4, 3, 3) * torch.rand(8, 1, 1, 1)
    layer = SLBWeight(weight.shape, bits, weight)
    assert (layer() - normalise(weight)).abs().max() < 1e-4


def test_start_is_peaked_at_a_level_beside_the_weight():
    target = torch.linspace(-0.9, 0.9, 91)
    best = level_values(2)[logits_for(target, 2, 0.1).argmax(-1)]
    assert (best - target).abs().max() <= 0.5 * 2 / 3 + 0.1


@pytest.mark.parametrize("bits", [1, 3])
def test_hard_is_the_argmax(bits):
    layer = SLBWeight((4, 2, 1, 1), bits)
    layer.hard = True
    assert torch.equal(layer(), layer.integers().float() / (2**bits - 1))
    assert layer.scale().tolist() == [1 / (2**bits - 1)] * 4


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_uniform_weights_round_and_pass_the_gradient(bits):
    torch.manual_seed(SEED)
    layer = UniformWeight((6, 3, 3, 3), bits)
    weight = layer()
    integers, scale = layer.integers(), layer.scale().float().view(-1, 1, 1, 1)
    assert integers.abs().flatten(1).amax(1).tolist() == [2 ** (bits - 1) - 1] * 6
    assert weight.allclose(integers * scale, atol=1e-6)
    assert ((weight - layer.weight).abs() <= scale / 2 + 1e-6).all()
    weight.sum().backward()
    assert (layer.weight.grad == 1).all()
    assert str(layer.format) == f"int{bits}"


@pytest.mark.parametrize("bits", [0, 5])
def test_refuses_other_widths(bits):
    with pytest.raises(ConfigError, match=f"{bits} bits.*1 to 4"):
        SLBWeight((1, 1, 1, 1), bits)
