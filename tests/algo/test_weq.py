"""WEQ: the weighted entropy, Algorithm 1 against the optimum, the search for activation levels."""

import itertools
import math

import numpy as np
import pytest
import torch

from seriatim.algo.quantisers.weq import (
    MAX_SHIFT,
    Importances,
    WEQActivation,
    WEQWeight,
    layer_widths,
    possible_steps,
    search_levels,
)
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit
SEED = 21


def draw(law: str, n: int) -> np.ndarray:
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    return {"gaussian": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n),
            "student": lambda n: rng.standard_t(2, size=n)}[law](n)


def entropy(s, cuts):
    """S by its formula: I the mean importance, P the share."""
    parts = [s[a:b] for a, b in itertools.pairwise(cuts)]
    return -sum(np.mean(p) * (len(p) / len(s)) * math.log(len(p) / len(s)) for p in parts)


def test_entropy_by_its_formula():
    data = Importances([4.0, 1.0, 3.0, 2.0])
    assert data.sorted.tolist() == [1, 2, 3, 4]
    assert math.isclose(data.entropy(np.array([0, 2, 4])), (1.5 + 3.5) / 2 * math.log(2))
    assert math.isclose(data.entropy(np.array([0, 3, 4])), -(2 * 0.75 * math.log(0.75) + 4 * 0.25 * math.log(0.25)))


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("law", ["gaussian", "student"])
def test_the_optimum_is_that_of_trying_all(law, n):
    data = Importances(np.square(draw(law, n)))
    for clusters in range(1, n + 1):
        trials = [(0, *inner, n) for inner in itertools.combinations(range(1, n), clusters - 1)]
        best = max(entropy(data.sorted, cuts) for cuts in trials)
        cuts = data.optimum(clusters)
        assert cuts[0] == 0 and cuts[-1] == n and (np.diff(cuts) > 0).all() and len(cuts) == clusters + 1
        assert math.isclose(entropy(data.sorted, cuts), best, rel_tol=1e-12)
        assert math.isclose(data.entropy(cuts), best, rel_tol=1e-12, abs_tol=1e-15)


@pytest.mark.parametrize("values", [[0.0] * 9, [1.0] * 9, [0.0] * 6 + [1.0] * 3, [2.0**-k for k in range(10)]])
def test_the_optimum_with_ties_and_zeros(values):
    data, n = Importances(values), len(values)
    for clusters in (1, 2, 3, 4):
        best = max(entropy(data.sorted, (0, *c, n)) for c in itertools.combinations(range(1, n), clusters - 1))
        assert math.isclose(data.entropy(data.optimum(clusters)), best, rel_tol=1e-12, abs_tol=1e-15)


@pytest.mark.parametrize("n", [200, 777])
def test_divided_solving_equals_the_whole_table(n):
    data = Importances(np.square(draw("laplace", n)))
    i, j = np.arange(n + 1)[:, None], np.arange(n + 1)[None]
    part = np.where(i < j, data.part(np.minimum(i, j), j), -np.inf)
    best = part[0]
    for clusters in range(2, 9):
        best = (best[:, None] + part).max(0)
        assert math.isclose(data.entropy(data.optimum(clusters)), best[n], rel_tol=1e-12)


@pytest.mark.parametrize("law, least", [("gaussian", 0.997), ("laplace", 0.99), ("student", 0.95)])
@pytest.mark.parametrize("clusters", [2, 4, 8])
def test_algorithm_1_never_beats_the_optimum(law, least, clusters):
    data = Importances(np.square(draw(law, 3000)))
    found, optimum = data.search(clusters), data.optimum(clusters)
    ratio = data.entropy(found) / data.entropy(optimum)
    print(f"{law}, {clusters} clusters: Algorithm 1 reaches {ratio:.5f} of the optimum")
    assert least <= ratio <= 1 + 1e-12
    start = data.entropy(np.linspace(0, data.n, clusters + 1).astype(int))
    assert data.entropy(found) >= start


def test_algorithm_1_stops_where_no_cut_alone_improves():
    data = Importances(np.square(draw("student", 300)))
    cuts = data.search(4)
    best = data.entropy(cuts)
    for k in (1, 2, 3):
        for place in range(cuts[k - 1] + 1, cuts[k + 1]):
            trial = cuts.copy()
            trial[k] = place
            assert data.entropy(trial) <= best * (1 + 1e-12)


def test_scaled_weights_scale_the_entropy_by_the_square():
    w = draw("gaussian", 500)
    one, three = Importances(np.square(w)), Importances(np.square(3 * w))
    cuts = one.optimum(4)
    assert np.array_equal(cuts, three.optimum(4))
    assert math.isclose(three.entropy(cuts), 9 * one.entropy(cuts), rel_tol=1e-12)


def test_levels_and_boundaries():
    data = Importances([16.0, 1.0, 9.0, 4.0])
    levels, boundaries = data.levels(np.array([0, 2, 4]))
    assert levels.tolist() == pytest.approx([math.sqrt(2.5), math.sqrt(12.5)])
    assert boundaries.tolist() == [3]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_each_weight_takes_its_clusters_representative(exact, folded):
    w = torch.from_numpy(draw("laplace", 400)).view(20, 20) + 0.2
    quantiser = WEQWeight(w, 3, exact=exact, folded=folded).double()
    out = quantiser()
    assert torch.equal(out < 0, w < 0)
    for side in ([w.abs() >= 0] if folded else [w < 0, w >= 0]):
        data = Importances(w[side].square().numpy())
        levels, boundaries = data.levels(data.optimum(4) if exact else data.search(4))
        place = (w[side].abs()[:, None] >= torch.from_numpy(boundaries)).sum(1)
        expected = torch.from_numpy(levels)[place]
        assert (out[side].abs() - expected).abs().max() <= quantiser.scale()[0] / 2
    table = np.array(quantiser.format.table)
    assert (np.diff(table) > 0).all()
    assert np.array_equal(table, -table[::-1]) is folded


@pytest.mark.parametrize("w", [[[1.0, 1.0]], [[0.0, 0.0]], [[3.0, -2.0]], [[1.0, 2.0]]])
@pytest.mark.parametrize("folded", [False, True])
def test_fewer_weights_than_levels(w, folded):
    w = torch.tensor(w)
    assert torch.allclose(WEQWeight(w, 4, exact=True, folded=folded)(), w, rtol=1e-4)


def test_one_bit_is_the_root_mean_square():
    w = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    assert WEQWeight(w, 1)().flatten().tolist() == pytest.approx([math.sqrt(12.5), -math.sqrt(12.5)], rel=1e-4)


def levels_entropy(a, fsr, step, bits):
    """S of Algorithm 2 as it is printed, one activation at a time."""
    top, counts = 2**bits - 1, [0] * 2**bits
    for x in a:
        index = math.floor((16 * math.log2(x) - fsr) / step + 0.5) + 1 if x > 0 else 0
        counts[min(max(index, 0), top)] += 1
    share = [c / len(a) for c in counts]
    value = [0.0, *(2 ** ((fsr + step * i) / 16) for i in range(top))]
    return -sum(v * p * math.log(p) for v, p in zip(value, share) if p)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_search_finds_the_largest_entropy(bits):
    a = np.abs(draw("gaussian", 60))
    fsr, step, found = search_levels(torch.from_numpy(a), bits, 15)
    assert math.isclose(found, levels_entropy(a, fsr, step, bits), rel_tol=1e-9)
    trials = [levels_entropy(a, f, s, bits) for s in range(2, 33, 2) if s * (2**bits - 2) <= 240 for f in range(-120, 40)]
    assert -120 < fsr < 40 and math.isclose(found, max(trials), rel_tol=1e-9)


def test_doubled_activations_move_fsr_by_an_octave():
    a = torch.from_numpy(np.abs(draw("laplace", 5000)))
    fsr, step, found = search_levels(a, 4, 14)
    assert search_levels(2 * a, 4, 14) == (fsr + 16, step, 2 * found)


def test_the_shifters_width_bounds_the_step():
    assert possible_steps(4, 14) == list(range(2, 17, 2))
    assert possible_steps(1, 1)[-1] == 32
    with pytest.raises(ConfigError, match="8 bits with max_shift=15.*31.75 octaves"):
        WEQActivation(8)
    with pytest.raises(ConfigError, match="max_shift=33"):
        WEQActivation(2, max_shift=MAX_SHIFT + 1)


def test_activation_levels_by_algorithm_2():
    act = WEQActivation(2).eval()
    act.fsr.fill_(-16)
    act.step.fill_(16)
    assert act(torch.tensor([-3.0, 0.0, 0.35, 0.36, 0.7, 0.71, 1.4, 1.5, 50])).tolist() == [0, 0, 0, 0.5, 0.5, 1, 1, 2, 2]
    assert str(act.format) == "log2r1"
    for step, text in ((32, "log2r1k2"), (8, "log2r2"), (24, "log2r2k3"), (20, "log2r4k5"), (6, "log2r8k3")):
        act.step.fill_(step)
        assert str(act.format) == text
        levels = torch.tensor([0.0, *(2 ** ((-16 + step * i) / 16) for i in range(3))], dtype=torch.float64)
        assert act(levels).allclose(levels, rtol=1e-4)


def test_a_batch_of_zeros_leaves_the_levels_and_cannot_be_searched():
    act = WEQActivation(2).train()
    act(torch.rand(100, generator=torch.Generator().manual_seed(SEED)))
    before = int(act.fsr), int(act.step)
    assert (act(-torch.ones(4)) == 0).all()
    assert (int(act.fsr), int(act.step)) == before
    with pytest.raises(ConfigError, match="no activation is positive"):
        search_levels(torch.zeros(4), 2, 15)


def test_layer_widths():
    assert layer_widths("dec", 8) == [6, 5, 5, 4, 4, 3, 3, 2]
    for layers in range(1, 12):
        found = {scheme: layer_widths(scheme, layers) for scheme in ("dec", "inc", "convex", "concave")}
        assert len({tuple(sorted(widths)) for widths in found.values()}) == 1
        assert found["inc"] == found["dec"][::-1]
        low, high = np.argmin(found["convex"]), np.argmax(found["concave"])
        assert (np.diff(found["convex"][: low + 1]) <= 0).all() and (np.diff(found["convex"][low:]) >= 0).all()
        assert (np.diff(found["concave"][: high + 1]) >= 0).all() and (np.diff(found["concave"][high:]) <= 0).all()
    for bad in (("round", 8), ("dec", 0), ("dec", 8, 2, 6), ("dec", 8, 9, 1)):
        with pytest.raises(ConfigError, match="layer widths"):
            layer_widths(*bad)
