"""How a network is quantised, as data: what `quantize_` takes and a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import Tensor

from seriatim.algo.acts import Activation
from seriatim.algo.quantisers.base import ActivationQuantiser, WeightQuantiser
from seriatim.algo.quantisers.registry import METHODS, activation_quantiser, method_of, weight_quantiser
from seriatim.algo.slb import MAX_SLB_BITS, TAU_START
from seriatim.errors import ConfigError

STREAM_BITS = 8
"""Fewest bits of a tensor that feeds a residual add, and of one that has a sign."""

BATCH_NORMS = ("calibrate", "state")


@dataclass(frozen=True)
class Scheme:
    """Names, widths and options of `registry`, for a whole network or (in `overrides`) one layer.

    Args:
        weight, weight_bits: 1..8; `slb` has levels to search for 1..4 and is `uniform` above. None leaves weights float.
        act, act_bits: likewise, 1..8. In this project's nets the most planes that a layer reads, and what it writes.
        weight_options, act_options: of the quantisers.
        first_last: None treats the first and last layer as the others; 8 gives them `uniform` weights of 8 bits; False
            leaves them float.
        batch_norm: "calibrate" or "state": keep a second set of running statistics, of the discrete weights, while training
            (SLB's State Batch Norm).
        overrides: shell-style patterns of layer names to schemes of their own, or None to leave them float; of several that
            match the last one counts.

    None and False are for modules that need not become integer networks.

    Raises:
        ConfigError: an unknown name, a width that the method has not, another first_last or batch_norm.
    """

    weight: str | None = "slb"
    weight_bits: int = 1
    act: str | None = "lsq"
    act_bits: int = 8
    weight_options: Mapping = field(default_factory=dict)
    act_options: Mapping = field(default_factory=dict)
    first_last: int | bool | None = None
    batch_norm: str = "calibrate"
    overrides: Mapping[str, "Scheme | None"] = field(default_factory=dict)

    def __post_init__(self):
        for name, half, bits in (("W", self.weight, self.weight_bits), ("A", self.act, self.act_bits)):
            if half is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8):
                raise ConfigError(f"{name}={bits}: widths are 1 to 8 bits; choose one of these")
        for name, half in ((self.weight, "weight"), (self.act, "activation")):
            if name is not None:
                method_of(name, half)
        if self.first_last not in (None, 8, False) or self.first_last is True:
            raise ConfigError(
                f"FIRST_LAST={self.first_last}: leave it out (the first and last layers get W bits) or set 8 "
                "(False leaves them float, where no integer network is wanted)"
            )
        if self.batch_norm not in BATCH_NORMS:
            raise ConfigError(f"batch_norm {self.batch_norm!r}: choose {' or '.join(BATCH_NORMS)}")

    def edge(self) -> "Scheme | None":
        """The scheme of the first and last layers."""
        if self.first_last is None:
            return self
        if self.first_last is False:
            return None
        return replace(self, weight="uniform", weight_bits=self.first_last, weight_options={})

    def weight_quantiser(self, start: Tensor) -> WeightQuantiser:
        """A weight quantiser for one layer, starting at its float weight."""
        name, options = self.weight, self.weight_options
        if name == "slb" and self.weight_bits > MAX_SLB_BITS:
            name, options = "uniform", {}
        return weight_quantiser(name, start, self.weight_bits, **options)

    def activation(self) -> ActivationQuantiser:
        """An activation quantiser as it is named."""
        return activation_quantiser(self.act, self.act_bits, **self.act_options)

    def output(self, *, signed: bool, stream: bool) -> ActivationQuantiser:
        """The activation quantiser of a layer's output.

        A signed output and a residual stream are linear codes of at least 8 bits under every method: that of the method where
        it is evenly spaced (and has a sign), else LSQ's.
        """
        if not signed and not stream:
            return self.activation()
        method, bits = METHODS[self.act], max(self.act_bits, STREAM_BITS)
        if signed and method.signed:
            return activation_quantiser(self.act, STREAM_BITS, signed=True)
        if not signed and method.stream:
            made = activation_quantiser(self.act, bits, **self.act_options)
        else:
            made = Activation(STREAM_BITS if signed else bits, signed=signed)
        if isinstance(made, Activation) and not signed:
            made.reads = self.act_bits
        return made

    def to_dict(self) -> dict:
        """Plain data, which `from_dict` takes."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        own |= {name: dict(own[name]) for name in ("weight_options", "act_options")}
        return own | {"overrides": {k: s and s.to_dict() for k, s in self.overrides.items()}}

    @classmethod
    def from_dict(cls, data: dict) -> "Scheme":
        """Raises ConfigError: fields that there are not."""
        try:
            overrides = {k: s and cls.from_dict(s) for k, s in data.get("overrides", {}).items()}
            return cls(**data | {"overrides": overrides})
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"no quantisation: {error}") from error


def SLB(  # noqa: N802  a scheme by its method's name
    weight_bits: int = 1,
    act_bits: int = 8,
    first_last: int | bool | None = None,
    *,
    act: str = "lsq",
    tau: float = TAU_START,
    start: str = "weight",
    channel_scale: bool = False,
    batch_norm: str = "calibrate",
) -> Scheme:
    """Quantisation by SLB.

    Args:
        weight_bits: 1..4 SLB levels, 5..8 uniform int weights.
        act_bits: 1..8, what every layer but the first reads. act: the activation quantiser.
        first_last, batch_norm: see `Scheme`.
        tau: temperature that the logits start at.
        start: of the logits: "weight" (W_c is the float weight), "normal" or "he" (from scratch).
        channel_scale: a learned scale for each output channel, which starts at the float weight's.

    Raises:
        ConfigError: as `Scheme`.
    """
    options = {"tau": tau, "start": start, "channel_scale": channel_scale}
    return Scheme("slb", weight_bits, act, act_bits, options, first_last=first_last, batch_norm=batch_norm)


def default_act(weight: str) -> str:
    """The activation quantiser that goes with a method: its own, LSQ's for `slb` and where it has none.

    Raises:
        ConfigError: an unknown name.
    """
    method = method_of(weight, "weight")
    return weight if method.activation and weight != "slb" else "lsq"


def pair_of(quant: str) -> tuple[str, str]:
    """Weight and activation quantiser of a name as commands give it: "dorefa", or a pair, "dorefa+pact".

    Raises:
        ConfigError: an unknown name, or one without that half.
    """
    weight, _, act = quant.partition("+")
    act = act or default_act(weight)
    method_of(weight, "weight")
    method_of(act, "activation")
    return weight, act


def pair_name(weight: str, act: str | None) -> str:
    """The inverse of `pair_of`, as short as can be."""
    return weight if act in (None, default_act(weight)) else f"{weight}+{act}"


def schemes(names: list[str], scheme: Scheme, edges: tuple[str, ...]) -> dict[str, Scheme | None]:
    """The scheme of each layer, or None where it stays float. `edges` are the first and the last.

    Raises:
        ConfigError: an override that matches no layer.
    """
    for pattern in scheme.overrides:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"override {pattern!r} matches no layer: there are {', '.join(names)}")
    chosen = {}
    for name in names:
        own = scheme.edge() if name in edges else scheme
        for pattern, other in scheme.overrides.items():
            own = other if fnmatchcase(name, pattern) else own
        chosen[name] = own
    return chosen

