"""Huffman codes against their bounds and closed forms, indices and round trips, the report of nets."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim import cli
from seriatim.algo import compression
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.huffman import Huffman, entropy
from seriatim.algo.layers import SLB
from seriatim.algo.nets import build, quantize_
from seriatim.algo.quantisers.registry import METHODS, weight_quantiser
from seriatim.algo.trained import save_float
from seriatim.errors import ConfigError

SEED = 3
pytestmark = pytest.mark.unit


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40).filter(any))
def test_huffman_is_within_a_bit_of_the_entropy_and_comes_back(counts):
    code = Huffman(counts)
    total, bound = sum(counts), entropy(counts)
    assert bound * total <= code.bits + 1e-6 and code.bits <= (bound + 1) * total
    used = code.lengths[code.lengths > 0]
    assert (2.0**-used).sum() == (1 if len(used) else 0)  # Kraft: no word is wasted
    symbols = np.random.default_rng(SEED).permutation(np.repeat(np.arange(len(counts)), counts))
    bits = code.encode(symbols)
    assert len(bits) == code.bits
    np.testing.assert_array_equal(code.decode(bits, total), symbols)


@pytest.mark.parametrize("counts, lengths, bits", [
    ([8, 4, 2, 1, 1], [1, 2, 3, 4, 4], 1.875),  # halves: the entropy itself
    ([1] * 16, [4] * 16, 4.0),  # uniform
    ([0, 9, 0], [0, 0, 0], 0.0),  # certain
    ([5, 1, 1, 1], None, None),
])
def test_closed_forms(counts, lengths, bits):
    code = Huffman(counts)
    if lengths is None:
        assert sorted(code.lengths) == [1, 2, 3, 3] and code.bits == 13
        return
    assert code.lengths.tolist() == lengths and code.bits == bits * sum(counts)
    assert entropy(counts) == pytest.approx(bits)
    assert code.table_bits == 6 * len(counts)


def test_words_are_canonical():
    code = Huffman([1, 8, 4, 1, 2])
    words = {s: format(w, f"0{n}b") for s, (n, w) in enumerate(zip(code.lengths, code.words))}
    assert words == {1: "0", 2: "10", 4: "110", 0: "1110", 3: "1111"}


def test_geometric_counts_have_unary_words():
    """Shares 2^-1, 2^-2, ...: the longest words that so few symbols can have."""
    code = Huffman([2**k for k in range(40)])
    assert code.lengths.max() == 39 and code.bits == pytest.approx(2 * 2**40, rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), max_size=300), st.integers(2, 8))
def test_indices_locate_the_weights(mask, bits):
    mask = np.array(mask, dtype=bool)
    indices = compression.relative_indices(mask, bits)
    assert not len(indices) or 0 <= indices.min() and indices.max() < 2**bits
    np.testing.assert_array_equal(compression.places_of(indices, bits), np.flatnonzero(mask))


def test_a_long_gap_is_skipped():
    mask = np.zeros(40, dtype=bool)
    mask[[0, 39]] = True
    assert compression.relative_indices(mask, 3).tolist() == [0, 7, 7, 7, 7, 7, 3]


def test_the_largest_stay():
    weight = torch.tensor([[0.5, -3.0], [1.0, -0.1]])
    assert compression.keep_largest(weight, share=0.5).tolist() == [[False, True], [True, False]]
    assert compression.keep_largest(weight, deviations=1.0).tolist() == [[False, True], [False, False]]
    for bad, what in (({"share": 1.0}, "below 1"), ({"share": 0.5, "deviations": 1.0}, "not both"),
                      ({"deviations": 9.0}, "leaves no weight of 4")):
        with pytest.raises(ConfigError, match=what):
            compression.keep_largest(weight, **bad)


WEIGHTS = {name: 4 if name not in ("binaryconnect", "xnor") else 1 for name, method in METHODS.items() if method.weight}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("pruned", [False, True])
def test_sizes_of_every_quantiser(name, pruned):
    print("seed", SEED)
    torch.manual_seed(SEED)
    weight, bits = torch.randn(8, 16, 3, 3), WEIGHTS[name]
    kept, given = None, weight
    if pruned:
        mask = compression.keep_largest(weight, 0.8)
        kept, given = mask.flatten().numpy(), weight[mask][None]
    quantiser = weight_quantiser(name, given, bits)
    row = compression.weight_size("x", quantiser, kept)
    count = weight.numel()
    assert (row.weights, row.kept) == (count, round(count * 0.2) if pruned else count) and row.float32 == 32 * count
    assert row.bound <= row.huffman and row.code_entropy <= row.code_huffman + 1e-9 <= row.code_entropy + 1 + 2e-9
    least = row.kept * (row.code_bits + row.index_bits)
    assert row.quantised >= least + 32 and (not pruned or 3 <= row.index_bits <= 5)
    if not pruned:  # the codes are all that is needed: they come back, and give the weight
        codes = quantiser.codes().flatten().numpy()
        low = codes.min()
        code = Huffman(np.bincount(codes - low))
        np.testing.assert_array_equal(code.decode(code.encode(codes - low), count) + low, codes)
        assert code.bits == pytest.approx(row.code_huffman * count)


def test_binary_weights_gain_nothing_and_peaked_ones_do():
    torch.manual_seed(SEED)
    weight = torch.randn(64, 64)
    one = compression.weight_size("x", weight_quantiser("binaryconnect", weight, 1))
    assert one.quantised == 64 * 64 + 32 and one.huffman > one.quantised
    eight = compression.weight_size("x", weight_quantiser("uniform", weight**3, 8))
    assert eight.huffman < 0.8 * eight.quantised


def test_report_of_a_float_and_of_a_low_bit_net():
    net = build("digits")
    found = compression.report(net, "weq", 4, 4, share=0.75)
    total = found["total_bits"]
    weights = 16 * 9 + 2 * 16 * 16 * 9 + 16 * 10 * 16
    assert total["weights"] == weights and total["float32"] == 32 * weights
    assert total["kept"] == sum(row["weights"] - round(0.75 * row["weights"]) for row in found["weights"])
    elements = {"conv1": 1024, "conv2": 1024, "conv3": 1024, "maxpool": 256, "fc": 10}
    assert {row["name"]: row["elements"] for row in found["activations"]} == elements
    assert total["activations"] == 4 * (3 * 1024 + 256) + 320 and total["activations_float32"] == 32 * sum(elements.values())
    json.dumps(found)

    low = compression.report(quantize_(net, SLB(2, 4)), "slb", 2, 4)
    assert {row["code_bits"] for row in low["weights"]} == {2} and low["total_bits"]["kept"] == weights
    bits = {row["name"]: row["bits"] for row in low["activations"]}
    assert bits == {"conv1": 8, "conv2": 4, "conv3": 8, "maxpool": 8, "fc": 32}
    with pytest.raises(ConfigError, match="pruning of digits, which is low-bit"):
        compression.report(net, "slb", 2, 4, share=0.5)


def test_command(tmp_path, capsys):
    assert cli.main(["compress", "--net", "digits", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "digits W1A8 (slb), KiB" in out and "weights: " in out
    found = json.loads((tmp_path / "compression.json").read_text())
    assert found["net"] == "digits" and {row["code_bits"] for row in found["weights"]} == {1}
    save_float(build("digits"), Metadata("digits", 32, 32, "float"), tmp_path / "float.pt")
    assert cli.main(["compress", "--net", "digits", "--start", str(tmp_path / "float.pt"), "--w", "4", "--a", "4",
                     "--prune", "0.9", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "compression.json").read_text())
    total = found["total_bits"]
    assert found["pruned_share"] == 0.9 and total["kept"] == pytest.approx(0.1 * total["weights"], abs=4)
    assert cli.main(["compress", "--net", "digits", "--prune", "0.5", "--out", str(tmp_path)]) == 1
    with pytest.raises(SystemExit):
        cli.main(["compress", "--prune", "1.5"])
    assert "1.5 is out of range: the pruned share takes 0 up to 1" in capsys.readouterr().err
