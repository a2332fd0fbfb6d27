import pytest
import torch

from seriatim.algo.acts import Activation
from seriatim.algo.codes import Codes
from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind

SEED = 3


def test_rounds_half_up_and_clips():
    act = Activation(2)
    act.started.fill_(True)
    y = torch.tensor([-1.0, 0.49, 0.5, 1.5, 2.5, 2.49, 9.0])
    assert act.quantise(y).tensor.tolist() == [0, 0, 1, 2, 3, 2, 3]
    signed = Activation(8, signed=True)
    signed.started.fill_(True)
    assert signed.quantise(torch.tensor([-200.0, -1.5, -0.5, 127.6])).tensor.tolist() == [-128, -1, 0, 127]


@pytest.mark.parametrize("bits, signed", [(1, False), (4, False), (8, False), (8, True)])
def test_gradients_are_those_of_lsq(bits, signed):
    """The gradient of s in y -> s * code is code - y / s inside and the bound outside (LSQ, eq. 3)."""
    torch.manual_seed(SEED)
    act = Activation(bits, signed).double()
    act.started.fill_(True)
    with torch.no_grad():
        act.log_scale.fill_(-1.3)
    y = (torch.randn(400, dtype=torch.float64) * 2**bits / 4).requires_grad_()
    codes = act.quantise(y)
    grad = torch.randn_like(y)
    codes.real().backward(grad)
    s, lo, hi = act.scale().item(), act.format.lo, act.format.hi
    ratio = y.detach() / s
    inside = (ratio > lo - 0.5) & (ratio < hi + 0.5)
    assert y.grad.allclose(grad * inside)
    slope = torch.where(inside, torch.floor(ratio + 0.5) - ratio, ratio.clamp(lo, hi))
    expected = (grad * slope).sum() * s / (400 * hi) ** 0.5
    assert act.log_scale.grad.allclose(expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_starts_near_the_best_step(bits):
    torch.manual_seed(SEED)
    act = Activation(bits)
    y = torch.randn(20000)
    codes = act.train().quantise(y)
    assert act.started
    error = (codes.real() - y.clamp_min(0)).square().mean()
    for factor in (0.7, 1.4):
        with torch.no_grad():
            step = act.scale() * factor
            other = torch.floor(y / step + 0.5).clamp(0, act.format.hi) * step
        assert error <= (other - y.clamp_min(0)).square().mean()


@pytest.mark.parametrize("reads", [1, 2, 4])
def test_a_stream_starts_where_its_readers_see_most(reads):
    """No other step within a factor of 2 goes better with what is read; at one plane both codes occur."""
    torch.manual_seed(SEED)
    act = Activation(8)
    act.reads = reads
    y = torch.randn(20000)
    real = y.clamp_min(0)

    def fit(step):
        seen = torch.floor(torch.floor(y / step + 0.5).clamp(0, 255) / 2 ** (8 - reads))
        return torch.corrcoef(torch.stack((seen, real)))[0, 1]

    seen = act.train().quantise(y).read(reads)
    for factor in (0.5, 0.8, 1.25, 2):
        assert fit(act.scale().float()) >= fit(act.scale().float() * factor) - 1e-3
    assert 0.15 < (seen == 2**reads - 1).float().mean() < 0.5 if reads == 1 else seen.unique().numel() == 2**reads


def test_an_unstarted_state_starts_anew_and_half_precision_is_widened():
    fresh = Activation(4).state_dict()
    fresh = {name: value.clone() for name, value in fresh.items()}
    act = Activation(4).train()
    y = torch.randn(1000, generator=torch.Generator().manual_seed(SEED))
    act.quantise(y)
    first = act.log_scale.item()
    act.quantise(9 * y)
    assert act.log_scale.item() == first
    act.load_state_dict(fresh)
    assert act.quantise((9 * y).bfloat16()).tensor.dtype == torch.float32
    assert act.log_scale.item() > first + 1


def test_calibrated_scale_follows_the_data():
    torch.manual_seed(SEED)
    act = Activation(8, learned=False, momentum=0.5).train()
    for _ in range(30):
        act(torch.rand(5000) * 4)
    assert abs(act.scale().item() - 4 / 255) < 0.02 * 4 / 255
    assert not act.log_scale.requires_grad


def test_a_reader_takes_the_top_planes():
    stored = Codes(torch.arange(256.0, requires_grad=True), torch.ones(()), Format(Kind.UINT, 8))
    read = stored.read(3)
    assert read.tolist() == [code >> 5 for code in range(256)]
    read.sum().backward()
    assert (stored.tensor.grad == 2**-5).all()
    assert stored.read(8) is stored.tensor


@pytest.mark.parametrize("bits", [0, 9])
def test_refuses_other_widths(bits):
    with pytest.raises(ConfigError, match=f"{bits} bits: choose 1 to 8"):
        Activation(bits)
