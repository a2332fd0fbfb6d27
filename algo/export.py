"""From a trained low-bit net to its integer network: the truth that every other level repeats."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import seriatim.algo.ops  # noqa: F401  registers the operators
from seriatim.algo.acts import Codes
from seriatim.algo.fold import Folded, Proof, Tail, fold, prove, refine
from seriatim.algo.layers import GlobalPool, Layer, MaxPool
from seriatim.errors import ConfigError

LOGIT_UNIT = 2.0**-16
"""Real value of one unit of the int32 logits."""

LOGIT_RANGE = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class LayerInfo:
    """One row of an integer network's layer table. `kind`: conv, maxpool or sumpool; `shift` and
    `residual_format` where it has them; shapes without the batch."""

    name: str
    kind: str
    x_format: str
    out_format: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    w_format: str = ""
    residual_format: str = ""
    shift: int = 0


class _Requantised(nn.Module):
    """What conv and sum layers share: the folded tail as buffers."""

    def __init__(self, info: LayerInfo, tail: Tail, folded: Folded):
        super().__init__()
        self.info, self.tail, self.folded = info, tail, folded
        self.register_buffer("m", torch.from_numpy(folded.m.astype(np.int32)))
        self.register_buffer("b", torch.from_numpy(folded.b))
        self.m2, self.shift, self.lo, self.hi = folded.m2, folded.shift, tail.lo, tail.hi

    def requant(self, acc: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            return torch.ops.seriatim.requant(
                acc, self.m, self.b, self.shift, self.lo, self.hi, self.info.name
            )
        return torch.ops.seriatim.requant_add(
            acc, residual, self.m, self.b, self.m2, self.shift, self.lo, self.hi,
            self.info.residual_format, self.info.name,
        )  # fmt: skip


class IntegerConv(_Requantised):
    """qconv2d, then requant or requant_add."""

    def __init__(self, info, tail, folded, weight: Tensor, stride: int, padding: int):
        super().__init__(info, tail, folded)
        self.register_buffer("w", weight)
        self.stride, self.padding = [stride] * 2, [padding] * 4

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        acc = torch.ops.seriatim.qconv2d(
            x, self.w, self.stride, self.padding, [1, 1], 1, self.info.x_format, self.info.w_format
        )
        return self.requant(acc, residual)


class IntegerSum(_Requantised):
    """qsumpool2d over the whole map, then requant."""

    def forward(self, x: Tensor) -> Tensor:
        size = list(self.info.in_shape[1:])
        acc = torch.ops.seriatim.qsumpool2d(x, size, size, [0] * 4, self.info.x_format)
        return self.requant(acc)


class IntegerMaxPool(nn.Module):
    """qmaxpool2d."""

    def __init__(self, info: LayerInfo, kernel: int, stride: int, padding: int):
        super().__init__()
        self.info = info
        self.kernel, self.stride, self.padding = [kernel] * 2, [stride] * 2, [padding] * 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.seriatim.qmaxpool2d(
            x, self.kernel, self.stride, self.padding, [1, 1], self.info.x_format, self.info.name
        )


class IntegerNetwork(nn.Module):
    """int32 image codes (N, channels, H, W), 0..255, to int32 logits (N, classes, 1, 1).

    Attributes:
        net_name, channels, image_size: of the net; the image size is fixed by the export.
        layers: `LayerInfo` of every layer, in order of execution.
        logit_unit: real value of one unit of the logits.
    """

    def __init__(self, body: nn.Module, layers: list[LayerInfo], image_size: int):
        super().__init__()
        self.body = body
        self.net_name, self.channels = body.name, body.channels
        self.layers, self.image_size, self.logit_unit = layers, image_size, LOGIT_UNIT
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body.graph(x)

    def tails(self) -> list[_Requantised]:
        """The layers that requantise to codes (not the classifier's logits), in order."""
        named = {m.info.name: m for m in self.modules() if isinstance(m, _Requantised)}
        found = [named[info.name] for info in self.layers if info.name in named]
        return [m for m in found if m.hi < LOGIT_RANGE[1]]

    def codes(self, x: Tensor) -> dict[str, Tensor]:
        """Output codes of every layer by name."""
        return _outputs(self, lambda: self(x), lambda m: hasattr(m, "info"))


def _outputs(root: nn.Module, run, wanted) -> dict:
    found, hooks = {}, []
    for name, module in root.named_modules():
        if wanted(module):
            key = name.removeprefix("body.")

            def keep(module, args, result, key=key):
                found[key] = result

            hooks.append(module.register_forward_hook(keep))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _double(net: nn.Module) -> nn.Module:
    """A float64 copy of the trained graph with W_q and fixed statistics."""
    from seriatim.algo.nets import set_hard

    net.__dict__.pop("_integer", None)
    twin = copy.deepcopy(net).double()
    for module in twin.modules():
        module.training = False
    set_hard(twin)
    return twin


@torch.no_grad()
def _trace(net, image_size: int) -> dict[str, tuple]:
    """{name: (args, result)} of each layer on one black image: formats, scales and shapes."""
    calls, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, Layer | MaxPool | GlobalPool):

            def keep(module, args, result, name=name):
                calls[name] = args, result

            hooks.append(module.register_forward_hook(keep))
    image = torch.zeros(1, net.channels, image_size, image_size, dtype=torch.float64)
    try:
        net.simulate(image)
    except RuntimeError as error:
        raise ConfigError(
            f"image size {image_size}: {net.name} cannot take it ({error}); its usual size is "
            f"{net.image_size}"
        ) from error
    for hook in hooks:
        hook.remove()
    return calls


def _array(t: Tensor) -> np.ndarray:
    return t.detach().double().numpy()


def _conv(name: str, layer: Layer, x: Codes, residual: Codes | None, out) -> IntegerConv:
    integers = layer.quantiser.integers().contiguous()
    drop = x.format.bits - layer.read_bits
    read = x.format.top(layer.read_bits) if drop > 0 else x.format
    bound = _array(integers.abs().flatten(1).sum(1)) * max(abs(read.min_value), read.max_value)
    w_scale = _array(layer.quantiser.scale())
    if layer.bn is None:
        unit = float(x.scale) * 2.0 ** max(drop, 0) * float(layer.log_alpha.exp())
        scale, offset = unit * w_scale / LOGIT_UNIT, _array(layer.bias) / LOGIT_UNIT
        (lo, hi), out_format, shape = LOGIT_RANGE, "int32", tuple(out.shape[1:])
    else:
        slope = _array(layer.bn.weight) / np.sqrt(_array(layer.bn.running_var) + layer.bn.eps)
        shifted = _array(layer.bn.bias) - slope * _array(layer.bn.running_mean)
        scale, offset = slope * w_scale / float(out.scale), shifted / float(out.scale)
        lo, hi, out_format = out.format.lo, out.format.hi, str(out.format)
        shape = tuple(out.tensor.shape[1:])
    extra, residual_format = {}, ""
    if residual is not None:
        form = residual.format
        extra["residual"] = float(residual.scale) / float(out.scale)
        extra["residuals"] = form.value(np.arange(form.lo, form.hi + 1, dtype=np.int64))
        residual_format = str(form)
    tail = Tail(scale, offset, bound, lo, hi, **extra)
    folded = fold(tail, name)
    info = LayerInfo(
        name, "conv", f"{x.format}:{read}", out_format, tuple(x.tensor.shape[1:]), shape,
        str(layer.quantiser.format), residual_format, folded.shift,
    )  # fmt: skip
    return IntegerConv(info, tail, folded, integers, layer.stride, layer.padding)


def _sum(name: str, x: Codes, out: Codes) -> IntegerSum:
    channels, height, width = x.tensor.shape[1:]
    scale = np.full(channels, float(x.scale) / float(out.scale) / (height * width))
    bound = np.full(channels, float(height * width * x.format.max_value))
    tail = Tail(scale, np.zeros(channels), bound, out.format.lo, out.format.hi)
    folded = fold(tail, name)
    shapes = tuple(x.tensor.shape[1:]), tuple(out.tensor.shape[1:])
    info = LayerInfo(name, "sumpool", str(x.format), str(out.format), *shapes, shift=folded.shift)
    return IntegerSum(info, tail, folded)


@torch.no_grad()
def export_integer(net, image_size: int | None = None, *, exact: bool = False) -> IntegerNetwork:
    """The integer network of a trained low-bit net for images of `image_size`.

    One checkpoint serves every size: only the global average's multiplier depends on it.

    Args:
        exact: also move each channel's b to where every threshold agrees with the trained
            function (`fold.refine`; seconds for ResNet-18). The result does not depend on the
            machine either way.

    Raises:
        ConfigError: a float net, or a size that the net cannot take.
        CompileError: an accumulator that can leave 32 bits, or a sum that can leave 64.
    """
    if net.quantisation is None:
        raise ConfigError(f"{net.name} is a float net: call quantize_ and train it before the export")
    image_size = image_size or net.image_size
    twin = _double(net)
    calls = _trace(twin, image_size)
    body, layers = twin, []
    for name, (args, out) in calls.items():
        module, x = twin.get_submodule(name), args[0]
        if isinstance(module, Layer):
            new = _conv(name, module, x, args[1] if len(args) > 1 else None, out)
        elif isinstance(module, GlobalPool):
            new = _sum(name, x, out)
        else:
            shapes = tuple(x.tensor.shape[1:]), tuple(out.tensor.shape[1:])
            info = LayerInfo(name, "maxpool", str(x.format), str(out.format), *shapes)
            new = IntegerMaxPool(info, module.kernel, module.stride, module.padding)
        layers.append(new.info)
        parent, _, child = name.rpartition(".")
        setattr(body.get_submodule(parent), child, new)
    network = IntegerNetwork(body, layers, image_size)
    if exact:
        for layer in network.tails():
            layer.folded = refine(layer.tail, layer.folded)
            layer.b.copy_(torch.from_numpy(layer.folded.b))
    return network


def prove_network(network: IntegerNetwork) -> list[Proof]:
    """`fold.prove` of every layer that requantises to codes: all channels, all residual codes."""
    return [prove(layer.tail, layer.folded, layer.info.name) for layer in network.tails()]


@torch.no_grad()
def agreement(net, network: IntegerNetwork, images: Tensor) -> dict[str, float]:
    """Share of equal codes in each layer between the float64 graph and the integer network.

    `images`: integer codes (N, C, H, W). Both run from the image, so that a difference also counts
    in the layers behind it. Logits count as equal within one unit.
    """
    twin = _double(net)
    kinds = (Layer, MaxPool, GlobalPool)
    floats = _outputs(
        twin, lambda: twin.simulate(images.double()), lambda m: isinstance(m, kinds)
    )
    shares = {}
    for name, codes in network.codes(images.int()).items():
        other = floats[name]
        if isinstance(other, Codes):
            equal = codes == other.tensor
        else:
            equal = (codes - other / network.logit_unit).abs() <= 1
        shares[name] = float(equal.double().mean())
    return shares

