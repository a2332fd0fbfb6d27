"""`quantize_`: quantisers in any PyTorch module, in place.

This project's nets, which become integer networks, pass codes between their `Layer`s; in any other module the linear and
convolution layers quantise their inputs and weights and pass real values.
"""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.algo.layers import AveragePool, Layer
from seriatim.algo.quantisers.base import ActivationQuantiser, WeightQuantiser
from seriatim.algo.quantisers.norm import keep_state_
from seriatim.algo.quantisers.registry import METHODS
from seriatim.algo.quantisers.scheme import Scheme, schemes
from seriatim.errors import ConfigError

TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
LAYERS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | TRANSPOSED


def _outputs_first(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (I, O / groups, ...) as (O, I / groups, ...)."""
    parts = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return parts.flatten(0, 1)


def _inputs_first(weight: Tensor, groups: int) -> Tensor:
    """The inverse of `_outputs_first`."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


class QuantisedLayer(nn.Module):
    """A linear or (transposed) convolution layer that quantises its input and its weight; the bias stays float.

    In eval mode the weight is the integer form. A method whose weights are normalised gets a learned factor, `gain`,
    that starts at the least-squares fit to the float weight.

    Attributes:
        weight, act: the quantisers, or None. The weight's has output channels first.
    """

    def __init__(self, layer: nn.Module, scheme: Scheme):
        super().__init__()
        self.weight = self.act = self.gain = None
        self.transposed = isinstance(layer, TRANSPOSED)
        if scheme.weight is not None:
            start = layer.weight.detach()
            start = _outputs_first(start, layer.groups) if self.transposed else start
            self.weight = scheme.weight_quantiser(start).to(start.device, start.dtype)
            if METHODS[scheme.weight].normalised:
                fit = self.weight.real().to(start.dtype)
                gain = (start * fit).sum() / fit.square().sum().clamp_min(1e-12)
                self.gain = nn.Parameter(gain.clamp_min(1e-6))
        if scheme.act is not None:
            self.act = scheme.activation().to(layer.weight.device)
        self.layer = layer
        self.train(layer.training)

    def adopt(self) -> None:
        """Drop the layer's float weight: the quantiser stands for it from now on."""
        if self.weight is not None:
            self.layer.weight = None

    def quantised_weight(self) -> Tensor:
        """The weight as the layer takes it."""
        if self.weight is None:
            return self.layer.weight
        if self.training:
            weight = self.weight()
        else:
            weight = self.weight.inference().to(next(self.weight.parameters()).dtype)
        weight = weight if self.gain is None else weight * self.gain
        return _inputs_first(weight, self.layer.groups) if self.transposed else weight

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`output_size` as PyTorch's transposed convolutions take it."""
        x = x if self.act is None else self.act(x)
        weight, layer = self.quantised_weight(), self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        if not self.transposed:
            return layer._conv_forward(x, weight, layer.bias)
        dims = weight.ndim - 2
        extra = layer._output_padding(x, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation)
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        return run(x, weight, layer.bias, layer.stride, layer.padding, extra, layer.groups, layer.dilation)


def quantisable(net: nn.Module) -> list[str]:
    """Names of the layers that `quantize_` takes, in the order of their definition.

    Raises:
        ConfigError: there is none, `net` is one itself, or two of them share a weight.
    """
    if isinstance(net, LAYERS):
        raise ConfigError(f"{type(net).__name__} alone cannot be replaced in place: put it into nn.Sequential first")
    own = [name for name, module in net.named_modules() if isinstance(module, Layer)]
    if own:
        if any(module.quantiser is not None for module in net.modules() if isinstance(module, Layer)):
            raise ConfigError(f"{type(net).__name__} is quantised already ({net.quantisation}): build a new net")
        return own
    names = {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}
    if any(isinstance(module, QuantisedLayer) for module in net.modules()):
        raise ConfigError(f"{type(net).__name__} is quantised already: quantise the float net with overrides instead")
    if not names:
        raise ConfigError(
            f"{type(net).__name__} has no layer to quantise: it takes nn.Linear, nn.Conv1d to nn.Conv3d and their transposes"
        )
    owners: dict[int, str] = {}
    for name, module in names.items():
        other = owners.setdefault(id(module.weight), name)
        if other != name:
            raise ConfigError(
                f"{other} and {name} share a weight, which quantising them apart would untie: give each its own, "
                "or use one module in both places"
            )
    return list(names)


def quantize_(
    net: nn.Module,
    scheme: Scheme,
    *,
    overrides: Mapping[str, Scheme | None] | None = None,
    first_last: int | bool | None = None,
) -> nn.Module:
    """Quantise the layers of any module in place, starting at their float weights; returns it.

    In this project's nets each layer's output is quantised, to codes. In other modules each layer's input is, but not the
    first one's, which is the net's (an override for it is taken as it stands).

    Args:
        overrides: more of `scheme.overrides`. first_last: in place of `scheme.first_last`.

    Raises:
        ConfigError: as `quantisable` and the registry; a pattern that matches no layer; a layer of this project's nets that is
            to stay float. `net` is then as it was.
    """
    names = quantisable(net)
    scheme = replace(scheme, overrides={**scheme.overrides, **(overrides or {})})
    if first_last is not None:
        scheme = replace(scheme, first_last=first_last)
    codes = isinstance(net.get_submodule(names[0]), Layer)
    (_quantize_codes if codes else _quantize_reals)(net, names, scheme)
    if scheme.batch_norm == "state":
        keep_state_(net, discrete=not codes)
    return net


def restore_(net: nn.Module, scheme: Scheme, weights: Mapping[str, WeightQuantiser]) -> nn.Module:
    """`quantize_` for a net of this project whose weights are there already, by layer name.

    Raises:
        ConfigError: as `quantize_`; no weights for a layer, or of another shape.
    """
    _quantize_codes(net, quantisable(net), scheme, weights)
    if scheme.batch_norm == "state":
        keep_state_(net, discrete=False)
    return net


def _quantize_codes(net: nn.Module, names: list[str], scheme: Scheme, weights: Mapping[str, WeightQuantiser] | None = None):
    edges = tuple(name for name in names if net.get_submodule(name).role != "body")
    pools = [name for name, module in net.named_modules() if isinstance(module, AveragePool)]
    chosen = schemes(names + pools, scheme, edges)
    prepared = {}
    for name in names:
        try:
            prepared[name] = net.get_submodule(name).quantisers(chosen[name], weights and weights[name])
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    for name, quantisers in prepared.items():
        net.get_submodule(name).adopt(quantisers)
    for name in pools:
        net.get_submodule(name).quantize_(chosen[name] or scheme)
    net.quantisation = scheme


def _quantize_reals(net: nn.Module, names: list[str], scheme: Scheme) -> None:
    chosen = schemes(names, scheme, (names[0], names[-1]))
    first = chosen[names[0]]
    if first is not None and not any(fnmatchcase(names[0], pattern) for pattern in scheme.overrides):
        chosen[names[0]] = replace(first, act=None)
    layers = {name: net.get_submodule(name) for name, own in chosen.items() if own is not None}
    made = {layer: QuantisedLayer(layer, chosen[name]) for name, layer in layers.items()}
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if module in made:
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, made[module])
    for layer in made.values():
        layer.adopt()


def per_layer(net: nn.Module, scheme: Scheme, widths: list[int]) -> dict[str, Scheme]:
    """Overrides that give each layer its own width for weights and activations, as WEQ's Table 2 (`weq.layer_widths`).

    Raises:
        ConfigError: not one width for each layer.
    """
    names = quantisable(net)
    if len(widths) != len(names):
        raise ConfigError(f"{len(widths)} widths for {len(names)} layers: give one for each of {', '.join(names)}")
    own = [replace(scheme, weight_bits=bits, act_bits=bits, overrides={}) for bits in widths]
    codes = isinstance(net.get_submodule(names[0]), Layer)
    return {name: s if i or codes else replace(s, act=None) for i, (name, s) in enumerate(zip(names, own))}


def on_epoch_(net: nn.Module, epoch: int, epochs: int) -> None:
    """Call before each epoch, counted from 0: what the methods do then (Quantization Networks sharpen)."""
    for module in net.modules():
        if isinstance(module, WeightQuantiser | ActivationQuantiser):
            module.on_epoch(epoch, epochs)


def after_step_(net: nn.Module) -> None:
    """Call after each step of the optimiser: what the methods do then (BinaryConnect clips)."""
    for module in net.modules():
        if isinstance(module, WeightQuantiser):
            module.after_step()
