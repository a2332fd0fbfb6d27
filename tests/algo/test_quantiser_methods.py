"""LogQuant, LQ-Net and Quantization Networks against their definitions."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from seriatim.algo.quantisers import lqnet
from seriatim.algo.quantisers.logarithm import LogQuantActivation, LogQuantWeight, power
from seriatim.algo.quantisers.qn import (
    Phase,
    QNActivation,
    QNWeight,
    Sigmoids,
    midpoints,
    set_phase_,
    set_temperature_,
    temperature,
)
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit
SEED = 9


def normal(*shape):
    print("seed", SEED)
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)


def test_logquant_weights_by_hand():
    """Four bits with sign, FSR 1: exponents -6 to 0, as e <= FSR - 2^3 = -7 is 0 and the top is FSR - 1."""
    w = torch.tensor([[0.0, 1.0, -1.0, 0.75, 0.7, -0.3, 3.0, 2**-6, 0.012, 0.011, -0.25 * 2**0.5, 1e-9]], dtype=torch.float64)
    quantiser = LogQuantWeight(w, 4, fsr=1).double()
    assert quantiser().flatten().tolist() == [0, 1, -1, 1, 0.5, -0.25, 1, 2**-6, 2**-6, 0, -0.5, 0]
    assert quantiser.codes().flatten().tolist() == [0, 7, 15, 7, 6, 13, 7, 1, 1, 0, 14, 0]
    assert str(quantiser.format) == "log4r1s"


def test_logquant_activations_have_every_power_but_the_range_above():
    """Two bits, FSR 3: 2^0, 2^1, 2^2, since e <= 3 - 2^2 = -1 is 0."""
    act = LogQuantActivation(2, fsr=3)
    y = torch.tensor([-4.0, 0.0, 0.7, 0.72, 1.41, 1.42, 2.8, 2.9, 900.0])
    assert act(y).tolist() == [0, 0, 0, 1, 1, 2, 2, 4, 4]
    assert str(act.format) == "log2r1" and act.scale() == 1


def test_the_boundary_is_the_root_of_two_exactly():
    below = math.nextafter(math.sqrt(0.5), 0)
    act = LogQuantActivation(2, fsr=3)
    assert act.codes(torch.tensor([below, math.nextafter(below, 1)], dtype=torch.float64)).tolist() == [0, 1]
    assert below * below < 0.5 < math.nextafter(below, 1) ** 2


@pytest.mark.parametrize("position", [*range(-40, 41), 500])
def test_powers_are_the_smallest_not_below(position):
    found, target = power(position), Fraction(2) ** position
    assert Fraction(found) ** 16 >= target > Fraction(math.nextafter(found, 0)) ** 16


@pytest.mark.parametrize("root", [1, 2])
def test_doubling_doubles_within_the_range(root):
    w = normal(30, 20)
    quantiser = LogQuantWeight(w, 5, root=root, fsr=4 * root)
    twice = LogQuantWeight(2 * w, 5, root=root, fsr=4 * root)
    once = quantiser.double()()
    inside = (once != 0) & (once.abs() < once.abs().max() / 1.9)
    assert inside.sum() > 100
    assert torch.equal(twice.double()()[inside], 2 * once[inside])


def test_base_root_two_rounds_twice_the_logarithm():
    w = normal(40, 10)
    quantiser = LogQuantWeight(w, 6, root=2, fsr=5).double()
    e = torch.floor(2 * w.abs().log2() + 0.5)
    expected = torch.where(e <= 5 - 32, 0.0, w.sign() * 2 ** (e.clamp(max=4) / 2))
    assert quantiser().allclose(expected, rtol=4e-5)  # 2^(1/2) has 14 fraction bits
    assert str(quantiser.format) == "log6r2s"


def test_the_range_follows_the_largest_weight():
    assert LogQuantWeight(torch.tensor([[0.3, -5.0]]), 3)().flatten().tolist() == [0.0, -4.0]
    assert LogQuantWeight(torch.tensor([[1.1, -5.0]]), 3)().flatten().tolist() == [1.0, -4.0]
    assert (LogQuantWeight(torch.zeros(2, 2), 3)() == 0).all()


def test_the_first_batch_sets_the_best_range():
    act = LogQuantActivation(2).train()
    y = normal(4000).abs()
    y[0] = 60
    act(y)
    error = (act.real(y) - y).square().sum()
    chosen = int(act.fsr)
    for other in (chosen - 1, chosen + 1):
        act.fsr.fill_(other)
        assert (act.real(y) - y).square().sum() >= error


def test_bad_roots():
    with pytest.raises(ConfigError, match="root=3: the base is 2"):
        LogQuantWeight(torch.ones(2, 2), 3, root=3)


@pytest.mark.parametrize("bits, low", [(1, -1), (2, -1), (3, -1), (2, 0), (3, 0)])
def test_qem_never_raises_the_error_and_codes_are_nearest(bits, low):
    x = normal(3, 200) if low else normal(3, 200).abs()
    basis = 2.0 ** torch.arange(bits).double().expand(3, bits) * 0.4

    def error(basis):
        levels, unit = lqnet.tables(basis, low)
        codes = lqnet.nearest(x / unit, levels)
        nearest = (x[..., None] - levels[:, None] * unit).abs().amin(-1)
        found = levels.double().gather(1, codes) * unit
        assert (x - found).abs().allclose(nearest)
        return (x - found).square().sum(1)

    errors = [error(basis)]
    for _ in range(6):
        basis = lqnet.qem(x, basis, low)
        errors.append(error(basis))
    assert all((b <= a + 1e-3).all() for a, b in itertools.pairwise(errors))  # the basis' 15 bits
    assert (errors[-1] < errors[0]).all()


def test_fit_is_least_squares():
    x, codes = normal(2, 60), torch.arange(120).view(2, 60) % 4
    signs = lqnet.patterns(2, -1)
    for row, found in enumerate(lqnet.fit(x, codes, 2, -1)):
        assert found.allclose(torch.linalg.lstsq(signs[codes[row]], x[row]).solution, atol=1e-6)


def test_lqnets_levels_are_sums_of_their_basis():
    table = lqnet.LQNetWeight(normal(2, 50), 2).formats[1].values
    assert table[0] == -table[3] and table[1] == -table[2]
    act = lqnet.LQNetActivation(3).train()
    act(normal(500))
    values = act.format.values
    assert values[0] == 0 and values[7] == values[1] + values[2] + values[4] and values[5] == values[1] + values[4]


def test_lqnet_averages_its_basis_in_training_only():
    quantiser = lqnet.LQNetWeight(normal(2, 50), 2)
    with torch.no_grad():
        quantiser.weight.mul_(2)
    before = quantiser.basis.clone()
    quantiser.eval()()
    assert torch.equal(quantiser.basis, before)
    quantiser.train()()
    moved = lqnet.qem(quantiser.master(), before, -1)
    assert quantiser.basis.double().allclose(0.9 * before + 0.1 * moved, rtol=1e-6)


LEVELS = [[-1, 1], [-1, 0, 1], [-4, -2, -1, 0, 1, 2, 4]]


def sigmoids(levels, centred=True):
    function = Sigmoids(levels, centred).double()
    function.start(normal(4000) if centred else normal(4000).clamp_min(0))
    return function


@pytest.mark.parametrize("levels", LEVELS)
def test_qns_gradients_equal_finite_differences(levels):
    function = sigmoids(levels)
    x = normal(20).requires_grad_()

    def run(x, alpha, beta):
        scaled = beta * x
        total = sum((b - a) * torch.sigmoid(3.0 * (scaled - t)) for a, b, t in zip(levels, levels[1:], function.biases))
        return alpha * (total - (levels[-1] - levels[0]) / 2)

    assert function.soft(x, 3.0).allclose(run(x, function.alpha, function.beta))
    assert torch.autograd.gradcheck(lambda x: function.soft(x, 3.0), (x,))
    function.soft(x, 3.0).sum().backward()
    for parameter in (function.alpha, function.beta):
        step = 1e-6
        with torch.no_grad():
            parameter += step
            up = function.soft(x, 3.0).sum()
            parameter -= 2 * step
            down = function.soft(x, 3.0).sum()
            parameter += step
        assert abs(parameter.grad.item() - ((up - down) / (2 * step)).item()) < 1e-5 * max(1, abs(parameter.grad.item()))


@pytest.mark.parametrize("levels", LEVELS)
def test_qn_becomes_its_steps(levels):
    quantiser = QNWeight(normal(40, 10), 3, levels).double()
    quantiser.temperature = 1e6
    soft, hard = quantiser.train()(), quantiser.eval()()
    distance = (quantiser.weight[..., None] * quantiser.sigmoids.beta - quantiser.sigmoids.biases).abs().amin(-1)
    clear = distance > 1e-4
    assert clear.sum() > 390
    assert soft[clear].allclose(hard[clear])
    expected = torch.tensor(levels).double() * quantiser.sigmoids.alpha
    assert set(hard.unique().tolist()) <= set(expected.tolist())


def test_qn_starts_as_the_paper_says():
    w = normal(40, 10)
    quantiser = QNWeight(w, 2).double()
    beta = 5 * 1 / (4 * w.abs().max())
    assert quantiser.sigmoids.beta.allclose(beta) and quantiser.sigmoids.alpha.allclose(1 / beta)
    assert (quantiser.sigmoids.biases / beta).tolist() == pytest.approx(midpoints(w, 2), rel=1e-6)
    assert not quantiser.sigmoids.biases.requires_grad


def test_midpoints_separate_clusters():
    values = torch.cat([centre + 0.01 * normal(50) for centre in (-2, 0.5, 3)])
    assert midpoints(values, 2) == pytest.approx([-0.75, 1.75], abs=0.01)
    with pytest.raises(ConfigError, match="2 distinct values for 3 levels"):
        midpoints(torch.tensor([1.0, 2.0, 1.0]), 2)


def test_qn_activations_start_at_the_first_batch_and_end_in_uint():
    act = QNActivation(2).double().train()
    y = normal(2000)
    act(y)
    first = act.sigmoids.biases.clone()
    act(3 * y)
    assert torch.equal(act.sigmoids.biases, first)
    codes = act.eval().codes(y)
    assert str(act.format) == "uint2" and codes.unique().tolist() == [0, 1, 2, 3]
    assert (codes[y <= 0] == 0).all()


def test_phases_and_temperature():
    net = torch.nn.ModuleList([QNWeight(normal(4, 9), 1), QNActivation(1)]).double().train()
    y = normal(50)
    net[1](y)
    for phase, weights, activations in ((Phase.WEIGHTS, True, False), (Phase.ACTIVATIONS, False, True), (Phase.BOTH, True, True)):
        set_phase_(net, phase)
        assert torch.equal(net[0](), net[0].weight) is not weights
        assert torch.equal(net[1](y), y) is not activations
    assert [temperature(e) for e in range(3)] == [10, 20, 30]
    set_temperature_(net, 40)
    assert net[0].temperature == net[1].temperature == 40
    with pytest.raises(ConfigError, match="temperature 0"):
        set_temperature_(net, 0)


@pytest.mark.parametrize("levels, centred", [([1, 2], True), ([-1, -1, 1, 1], True), ([1, 2], False), ([0], False)])
def test_levels_that_do_not_fit(levels, centred):
    with pytest.raises(ConfigError, match="ascend strictly"):
        Sigmoids(levels, centred)


def test_more_levels_than_codes():
    with pytest.raises(ConfigError, match="3 levels need more than 1 bits"):
        QNWeight(normal(4, 9), 1, (-1, 0, 1))
