"""All quantisers by name: their weight and activation halves, the source, and how to make one."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from seriatim.algo.acts import Activation
from seriatim.algo.quantisers.base import ActivationQuantiser, WeightQuantiser, check_bits, check_weight
from seriatim.algo.quantisers.binary import BinaryConnectWeight, SignActivation, XNORWeight
from seriatim.algo.quantisers.logarithm import LogQuantActivation, LogQuantWeight
from seriatim.algo.quantisers.lqnet import LQNetActivation, LQNetWeight
from seriatim.algo.quantisers.qn import QNActivation, QNWeight
from seriatim.algo.quantisers.uniform import (
    DoReFaActivation,
    DoReFaWeight,
    LSQWeight,
    PACTActivation,
)  # fmt: skip
from seriatim.algo.quantisers.weq import WEQActivation, WEQWeight
from seriatim.algo.slb import TAU_START, SLBWeight, UniformWeight
from seriatim.errors import ConfigError


def _slb(
    weight: Tensor,
    bits: int,
    tau: float = TAU_START,
    start: str = "weight",
    deviation: float | None = None,
    channel_scale: bool = False,
) -> SLBWeight:
    return SLBWeight(weight.shape, bits, weight, tau, start=start, deviation=deviation, channel_scale=channel_scale)


def _uniform(weight: Tensor, bits: int) -> UniformWeight:
    return UniformWeight(weight.shape, bits, weight)


def _learned(bits: int, signed: bool = False) -> Activation:
    return Activation(bits, signed)


def _calibrated(bits: int, signed: bool = False) -> Activation:
    return Activation(bits, signed, learned=False)


@dataclass(frozen=True)
class Method:
    """One published method. `weight(weight, bits, **options)`, `activation(bits, **options)`: None where it has no such half.
    `normalised`: its weights forget the scale of the float weight, which something behind them must bring back. `stream`: its
    activations, of 8 bits, serve for tensors that feed a residual add; `signed`: they may have a sign. `uneven`:
    its levels are a log format's, a codebook's or a table's, for which the machine has an engine of its own."""

    source: str
    weight: Callable[..., WeightQuantiser] | None = None
    activation: Callable[..., ActivationQuantiser] | None = None
    normalised: bool = False
    stream: bool = False
    signed: bool = False
    uneven: bool = False


METHODS = {
    "slb": Method("Yang et al., NeurIPS 2020", _slb, _learned, normalised=True, stream=True, signed=True),
    "logquant": Method("Miyashita et al., 2016", LogQuantWeight, LogQuantActivation, uneven=True),
    "weq": Method("Park et al., CVPR 2017", WEQWeight, WEQActivation, uneven=True),
    "qn": Method("Yang et al., CVPR 2019", QNWeight, QNActivation, uneven=True),
    "binaryconnect": Method("Courbariaux et al., NeurIPS 2015", BinaryConnectWeight, normalised=True),
    "xnor": Method("Rastegari et al., ECCV 2016", XNORWeight, SignActivation),
    "dorefa": Method("Zhou et al., 2016", DoReFaWeight, DoReFaActivation, normalised=True),
    "lqnet": Method("Zhang et al., ECCV 2018", LQNetWeight, LQNetActivation, uneven=True),
    "pact": Method("Choi et al., 2018", None, PACTActivation, stream=True),
    "lsq": Method("Esser et al., ICLR 2020", LSQWeight, _learned, stream=True, signed=True),
    "uniform": Method("straight-through, scale of the largest value", _uniform, _calibrated, stream=True, signed=True),
}


def method_of(name: str, half: str) -> Method:
    """The method `name`, which has this half: "weight" or "activation".

    Raises:
        ConfigError: an unknown name, or a method without that half.
    """
    having = ", ".join(n for n, m in METHODS.items() if getattr(m, half))
    if name not in METHODS:
        raise ConfigError(f"quantiser {name!r}: choose one of {having}")
    if getattr(METHODS[name], half) is None:
        raise ConfigError(f"quantiser {name!r} has none for {half}s: choose one of {having}")
    return METHODS[name]


def uneven(quant: str) -> bool:
    """Whether a quantiser, or one of a pair "weights+activations", has codes that the bit-serial engine does not take."""
    return any(name in METHODS and METHODS[name].uneven for name in quant.split("+"))


def _maker(name: str, half: str, fixed: int, options: dict) -> Callable:
    """The callable of one half of a method, its options checked; its first `fixed` parameters are no options."""
    make = getattr(method_of(name, half), half)
    known = list(inspect.signature(make).parameters)[fixed:]
    for option in options:
        if option not in known:
            raise ConfigError(f"{name} has no {half} option {option!r}: there are {', '.join(known) or 'none'}")
    return make


def weight_quantiser(name: str, weight: Tensor, bits: int, **options) -> WeightQuantiser:
    """The weight quantiser `name` for a layer, starting at its float weight (O, ...).

    Raises:
        ConfigError: an unknown name or option, a width that the method has not, or a weight of fewer than two
            axes, empty, no floating point, or with NaN or infinity.
    """
    make = _maker(name, "weight", 2, options)
    check_bits(bits, 1, 8, f"{name}: weights")
    check_weight(weight, name)
    return make(weight, bits, **options)


def activation_quantiser(name: str, bits: int, **options) -> ActivationQuantiser:
    """The activation quantiser `name`.

    Raises:
        ConfigError: an unknown name or option, or a width that the method has not.
    """
    return _maker(name, "activation", 1, options)(bits, **options)
