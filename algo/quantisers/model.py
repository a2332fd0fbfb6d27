"""Quantisers in any PyTorch module: its linear and convolution layers, in place.

The nets of this project, which become integer networks, have `seriatim.algo.nets.quantize_` instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.algo.quantisers.base import WeightQuantiser
from seriatim.algo.quantisers.registry import METHODS, activation_quantiser, weight_quantiser
from seriatim.errors import ConfigError

LAYERS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantised: names, widths and options of `registry`; None leaves that half float."""

    weight: str | None = "slb"
    weight_bits: int = 1
    act: str | None = "lsq"
    act_bits: int = 8
    weight_options: Mapping = field(default_factory=dict)
    act_options: Mapping = field(default_factory=dict)


class QuantisedLayer(nn.Module):
    """A linear or convolution layer that quantises its input and its weight; the bias stays float.

    In eval mode the weight is the integer form. A method whose weights are normalised gets a learned factor, `gain`,
    that starts at the least-squares fit to the float weight.

    Attributes:
        weight, act: the quantisers, or None.
    """

    def __init__(self, layer: nn.Module, scheme: Scheme):
        super().__init__()
        self.weight = self.act = self.gain = None
        if scheme.weight is not None:
            start = layer.weight
            made = weight_quantiser(scheme.weight, start, scheme.weight_bits, **scheme.weight_options)
            self.weight = made.to(start.device, start.dtype)
            if METHODS[scheme.weight].normalised:
                fit = self.weight.real().to(start.dtype)
                with torch.no_grad():
                    gain = (start * fit).sum() / fit.square().sum().clamp_min(1e-12)
                self.gain = nn.Parameter(gain.clamp_min(1e-6))
        if scheme.act is not None:
            self.act = activation_quantiser(scheme.act, scheme.act_bits, **scheme.act_options).to(layer.weight.device)
        self.layer = layer
        self.train(layer.training)

    def adopt(self) -> None:
        """Drop the layer's float weight: the quantiser stands for it from now on."""
        if self.weight is not None:
            self.layer.weight = None

    def quantised_weight(self) -> Tensor:
        if self.weight is None:
            return self.layer.weight
        if self.training:
            weight = self.weight()
        else:
            weight = self.weight.inference().to(next(self.weight.parameters()).dtype)
        return weight if self.gain is None else weight * self.gain

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.act is None else self.act(x)
        weight = self.quantised_weight()
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)


def quantisable(net: nn.Module) -> list[str]:
    """Names of the layers that `quantize_` takes, in the order of their definition.

    Raises:
        ConfigError: there is none, `net` is one itself, or two of them share a weight.
    """
    if isinstance(net, LAYERS):
        raise ConfigError(f"{type(net).__name__} alone cannot be replaced in place: put it into nn.Sequential first")
    names = {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}
    if any(isinstance(module, QuantisedLayer) for module in net.modules()):
        raise ConfigError(f"{type(net).__name__} is quantised already: quantise the float net with overrides instead")
    if not names:
        raise ConfigError(f"{type(net).__name__} has no layer to quantise: it takes nn.Linear and nn.Conv1d to nn.Conv3d")
    owners: dict[int, str] = {}
    for name, module in names.items():
        other = owners.setdefault(id(module.weight), name)
        if other != name:
            raise ConfigError(
                f"{other} and {name} share a weight, which quantising them apart would untie: give each its own, "
                "or use one module in both places"
            )
    return list(names)


def quantize_(net: nn.Module, scheme: Scheme, *, overrides: Mapping[str, Scheme | None] | None = None, first_last: bool = True):
    """Quantise the layers of any module in place, starting at their float weights; returns it.

    Each layer's input is quantised, but not the first one's, which is the net's (an override for it is taken as it stands).

    Args:
        overrides: shell-style patterns of layer names to a scheme of their own, or None to leave them float; of several that
            match the last one counts.
        first_last: False leaves the first and the last layer float, where no override says otherwise.

    Raises:
        ConfigError: as `quantisable` and the registry; a pattern that matches no layer. `net` is then as it was.
    """
    names, overrides = quantisable(net), dict(overrides or {})
    for pattern in overrides:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"override {pattern!r} matches no layer: there are {', '.join(names)}")
    chosen: dict[str, Scheme] = {}
    for i, name in enumerate(names):
        own = replace(scheme, act=None) if i == 0 else scheme
        if not first_last and i in (0, len(names) - 1):
            own = None
        for pattern, other in overrides.items():
            own = other if fnmatchcase(name, pattern) else own
        if own is not None:
            chosen[name] = own
    made = {net.get_submodule(name): QuantisedLayer(net.get_submodule(name), own) for name, own in chosen.items()}
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if module in made:
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, made[module])
    for layer in made.values():
        layer.adopt()
    return net


def per_layer(net: nn.Module, scheme: Scheme, widths: list[int]) -> dict[str, Scheme]:
    """Overrides that give each layer its own width for weights and activations, as WEQ's Table 2 (`weq.layer_widths`).

    Raises:
        ConfigError: not one width for each layer.
    """
    names = quantisable(net)
    if len(widths) != len(names):
        raise ConfigError(f"{len(widths)} widths for {len(names)} layers: give one for each of {', '.join(names)}")
    schemes = [replace(scheme, weight_bits=bits, act_bits=bits) for bits in widths]
    return {name: s if i else replace(s, act=None) for i, (name, s) in enumerate(zip(names, schemes))}


def after_step_(net: nn.Module) -> None:
    """Call after each step of the optimiser: what the methods do then (BinaryConnect clips)."""
    for module in net.modules():
        if isinstance(module, WeightQuantiser):
            module.after_step()
