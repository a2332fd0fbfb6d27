"""A user's own float module as a net of this project: same weights, same outputs, ready for `quantize_`."""

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from seriatim.algo.graph import GraphNet, Node
from seriatim.algo.layers import Layer
from seriatim.algo.reader import BATCH, Reader, Step
from seriatim.algo.tracing import where
from seriatim.errors import ConvertError

TOLERANCE = 1e-4
"""Largest difference, relative to a layer's largest output, between module and net; both compute in float64."""


def from_module(
    module: nn.Module,
    image_size: int,
    channels: int = 3,
    *,
    name: str | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> GraphNet:
    """The float net of a trained module, which stays as it is.

    The module takes float images (N, channels, image_size, image_size), where a pixel of 0..255 has become
    (pixel / 255 - mean) / std, and gives logits (N, classes), or their (log-)softmax, which is left out. The net takes the
    pixels: `mean`, `std` and a normalisation inside the module go into the weights of the first layer. Where that one pads, its
    border is then of black pixels, not of normalised zeros.

    Args:
        name: of the net in files and reports; by default the module's class in lower case.
        mean, std: one number, or one for each channel.

    Returns:
        A net in eval mode whose outputs equal the module's within `TOLERANCE`, compared layer by layer on random images.

    Raises:
        ConvertError: an operation that the integer network has no counterpart for, with its place in the module's source and the
            remedy; or a layer whose outputs differ.
    """
    twin = copy.deepcopy(module).float().cpu().eval()
    scale, shift = _normalisation(mean, std, channels)
    drawn = np.random.default_rng(0).integers(0, 256, (BATCH, channels, image_size, image_size))
    codes = torch.from_numpy(drawn).float()
    reader = Reader(twin, codes / 255 * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), scale, shift)
    steps = reader.read()
    net = _build(name or type(module).__name__.lower(), channels, image_size, steps)
    _compare(net, reader, steps, codes)
    return net


def _normalisation(mean, std, channels: int) -> tuple[Tensor, Tensor]:
    """(C,) scale and shift of (x - mean) / std."""
    try:
        mean, std = (torch.as_tensor(t, dtype=torch.float32).expand(channels) for t in (mean, std))
    except RuntimeError as error:
        raise ConvertError(f"mean {mean}, std {std}: give one number, or one for each of the {channels} channels") from error
    if not bool((std > 0).all()):
        raise ConvertError(f"std {std.tolist()}: a deviation is above 0")
    return 1 / std, -mean / std


def _build(name: str, channels: int, image_size: int, steps: list[Step]) -> GraphNet:
    """The net of the steps, with their weights and batch norms."""
    for step in steps:
        if step.kind != "layer":
            continue
        if "role" not in step.options and _below(step.inputs[0]).kind == "image":
            step.options["role"] = "stem"
        if step.options.get("role") != "classifier":
            step.options |= {"bn": False} if step.norm is None else {}
            step.options |= {} if step.relu else {"relu": False}
        for residual in step.inputs[1:]:
            source = _below(residual)
            if source.kind == "layer":
                source.options["wide"] = True
    nodes = [Node(s.name, s.kind, tuple(x.name for x in s.inputs), s.options) for s in steps]
    with torch.random.fork_rng():
        net = GraphNet(name, channels, image_size, nodes).to(memory_format=torch.channels_last).eval()
    with torch.no_grad():
        for step in steps:
            if step.kind == "layer":
                _load(net.get_submodule(step.name), step)
    return net


def _below(step: Step) -> Step:
    """What a chain of maximum pools reads."""
    while step.kind == "maxpool":
        step = step.inputs[0]
    return step


def _load(layer: Layer, step: Step) -> None:
    layer.weight.copy_(step.weight)
    if layer.bn is None:
        layer.bias.copy_(step.bias)
        return
    gamma, beta, mean, variance, eps = step.norm
    bn = layer.bn
    bn.weight.copy_(gamma * ((variance + bn.eps) / (variance + eps)).sqrt())
    for mine, value in ((bn.bias, beta), (bn.running_mean, mean), (bn.running_var, variance)):
        mine.copy_(value)


@torch.no_grad()
def _compare(net: GraphNet, reader: Reader, steps: list[Step], codes: Tensor) -> None:
    """Raises ConvertError at the first layer whose outputs differ from the module's."""
    found = {}
    twin = copy.deepcopy(net).double()
    hooks = []
    for step in steps:
        keep = partial(lambda name, module, args, y: found.update({name: y}), step.name)
        hooks.append(twin.get_submodule(step.name).register_forward_hook(keep))
    twin.simulate(codes.double())
    for hook in hooks:
        hook.remove()
    wanted = reader.values()
    for step in steps:
        want = wanted[step.tip].reshape(found[step.name].shape)
        want = want if step.clip is None else want.clamp(*step.clip)
        difference, largest = float((found[step.name] - want).abs().max()), float(want.abs().max())
        if not difference <= TOLERANCE * max(largest, 1e-6):
            raise ConvertError(
                f"{step.name}: its outputs differ from the module's by {difference:.3g}, where the largest is {largest:.3g} and "
                f"{TOLERANCE:g} of it is allowed: {where(step.tip)}; the module must give the same for the same images in eval "
                "mode"
            )
