"""From a trained low-bit net to its integer network: the truth that every other level repeats."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import seriatim.algo.ops  # noqa: F401  registers the operators
from seriatim.algo.codes import Codes
from seriatim.algo.fold import EDGE_BITS, Folded, Proof, Tail, dropped, fold, prove, refine
from seriatim.algo.layers import IMAGE, AveragePool, Layer, MaxPool
from seriatim.algo.quantisers.base import ActivationQuantiser, decode
from seriatim.algo.quantisers.norm import statistics
from seriatim.errors import ConfigError
from seriatim.formats import Format, factors, product_unit

LOGIT_UNIT = 2.0**-16
"""Real value of one unit of the int32 logits."""

LOGIT_RANGE = -(2**31), 2**31 - 1
"""Codes of logits: int32 words."""

OUTPUT_UNIT = {"classifier": LOGIT_UNIT, "image": 1 / 255}
"""By role of the layer that gives the output: real value of one unit of it."""


@dataclass(frozen=True)
class LayerInfo:
    """One row of an integer network's layer table. `kind`: conv, maxpool or sumpool; `shift` and
    `residual_format` where it has them; `drop`: bits that its accumulators leave out; shapes without the batch."""

    name: str
    kind: str
    x_format: str
    out_format: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    w_format: str = ""
    residual_format: str = ""
    shift: int = 0
    drop: int = 0


class _Requantised(nn.Module):
    """What conv and sum layers share: the folded tail as buffers."""

    def __init__(self, info: LayerInfo, tail: Tail, folded: Folded):
        super().__init__()
        self.info, self.tail, self.folded = info, tail, folded
        self.register_buffer("m", torch.from_numpy(folded.m.astype(np.int32)))
        self.register_buffer("b", torch.from_numpy(folded.b))
        table = None if tail.edges is None else torch.from_numpy(tail.thresholds.astype(np.int32))
        self.register_buffer("thresholds", table)
        self.m2, self.shift, self.lo, self.hi = folded.m2, folded.shift, tail.lo, tail.hi

    def requant(self, acc: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            if self.thresholds is not None:
                return torch.ops.seriatim.requant_table(acc, self.m, self.b, self.thresholds, self.shift, self.info.name)
            return torch.ops.seriatim.requant(
                acc, self.m, self.b, self.shift, self.lo, self.hi, self.info.name
            )
        if self.thresholds is not None:
            return torch.ops.seriatim.requant_add_table(
                acc, residual, self.m, self.b, self.thresholds, self.m2, self.shift, self.info.residual_format, self.info.name
            )
        return torch.ops.seriatim.requant_add(
            acc, residual, self.m, self.b, self.m2, self.shift, self.lo, self.hi,
            self.info.residual_format, self.info.name,
        )  # fmt: skip


class IntegerConv(_Requantised):
    """qconv2d, then requant or requant_add, or their variants with a table."""

    def __init__(self, info, tail, folded, weight: Tensor, layer: Layer):
        super().__init__(info, tail, folded)
        self.register_buffer("w", weight)
        self.window = list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
        self.formats = info.x_format, info.w_format, *((info.drop,) if info.drop else ())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        acc = torch.ops.seriatim.qconv2d(x, self.w, *self.window, *self.formats)
        return self.requant(acc, residual)


class IntegerSum(_Requantised):
    """qsumpool2d, then requant."""

    def __init__(self, info, tail, folded, kernel, stride, padding):
        super().__init__(info, tail, folded)
        self.window = list(kernel), list(stride), list(padding) * 2
        self.formats = info.x_format, *((info.drop,) if info.drop else ())

    def forward(self, x: Tensor) -> Tensor:
        return self.requant(torch.ops.seriatim.qsumpool2d(x, *self.window, *self.formats))


class IntegerMaxPool(nn.Module):
    """qmaxpool2d."""

    def __init__(self, info: LayerInfo, pool: MaxPool):
        super().__init__()
        self.info = info
        self.window = list(pool.kernel), list(pool.stride), list(pool.padding) * 2, [1, 1]

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.seriatim.qmaxpool2d(x, *self.window, self.info.x_format, self.info.name)


class IntegerNetwork(nn.Module):
    """int32 image codes (N, channels, H, W), 0..255, to int32 logits (N, classes, 1, 1), or to image codes.

    Attributes:
        net_name, channels: of the net.
        image_size: H and W, fixed by the export: one number where they are equal.
        layers: `LayerInfo` of every layer, in order of execution.
        unit: real value of one unit of the output.
    """

    def __init__(self, body: nn.Module, layers: list[LayerInfo], image_size: tuple[int, int], unit: float):
        super().__init__()
        self.body = body
        self.net_name, self.channels = body.name, body.channels
        height, width = image_size
        self.image_size = height if height == width else image_size
        self.layers, self.unit = layers, unit
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
def _trace(net, image_size: tuple[int, int]) -> dict[str, tuple]:
    """{name: (args, result)} of each layer on one black image: formats, scales and shapes."""
    calls, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, Layer | MaxPool | AveragePool):

            def keep(module, args, result, name=name):
                calls[name] = args, result

            hooks.append(module.register_forward_hook(keep))
    said = "x".join(map(str, image_size))
    usual = f"its usual size is {net.image_size}"
    try:
        result = net.graph(Codes(torch.zeros(1, net.channels, *image_size).double(), torch.tensor(1 / 255).double(), IMAGE))
    except RuntimeError as error:
        raise ConfigError(f"image size {said}: {net.name} cannot take it ({error}); {usual}") from error
    finally:
        for hook in hooks:
            hook.remove()
    *_, (name, _) = calls.items()
    if net.get_submodule(name).role == "classifier" and result.shape[2:] != (1, 1):
        raise ConfigError(
            f"image size {said}: {net.name} would give logits at {result.shape[2]}x{result.shape[3]} places; {usual}"
        )
    return calls


def _array(t: Tensor) -> np.ndarray:
    return t.detach().double().numpy()


def _output(act: ActivationQuantiser, out: Codes) -> dict:
    """What a tail says of the codes that it writes: `unit` (of its scale and offset), `bias` (of the offset), lo, hi, edges."""
    if act.even:
        return {"unit": float(out.scale), "bias": act.bias, "lo": out.format.lo, "hi": out.format.hi, "edges": None}
    edges = _array(act.thresholds())
    unit = 2.0 ** (np.frexp(np.abs(edges).max())[1] - EDGE_BITS)
    return {"unit": unit, "bias": 0.0, "lo": 0, "hi": len(edges), "edges": edges / unit}


def _largest_product(w: Tensor, w_format: Format, x_format: Format) -> Tensor:
    """(O,) sum over the weights of the largest product that each can have with a code of x."""
    if x_format.linear:
        return w.abs().flatten(1).sum(1) * max(-x_format.min_value, x_format.max_value)
    for table, images in factors(w_format, x_format):
        if table[-1]:  # the largest code of an ascending format
            factor = w if images is None else w.clone().apply_(images.__getitem__)
            return factor.abs().flatten(1).sum(1) * table[-1]
    raise AssertionError(x_format)


def _conv(name: str, layer: Layer, x: Codes, residual: Codes | None, out) -> IntegerConv:
    integers = layer.quantiser.integers().long().contiguous()
    read, w_format = x.seen(layer.read_bits), layer.quantiser.export_format
    bound = _array(_largest_product(integers, w_format, read))
    w_scale = _array(layer.quantiser.scale()) * product_unit(w_format, read)
    if layer.bn is None:
        slope = float(x.unit(layer.read_bits)) * _array(layer.factor(layer.quantiser()))
        shifted = _array(layer.bias)
    else:
        mean, var = statistics(layer.bn)
        slope = _array(layer.bn.weight) / np.sqrt(_array(var) + layer.bn.eps)
        shifted = _array(layer.bn.bias) - slope * _array(mean)
    if layer.gives_output:
        unit, bias, tensor, edges = OUTPUT_UNIT[layer.role], 0.0, out, None
        (lo, hi), out_format = (LOGIT_RANGE, "int32") if layer.role == "classifier" else ((IMAGE.lo, IMAGE.hi), str(IMAGE))
    else:
        unit, bias, lo, hi, edges = _output(layer.act, out).values()
        tensor, out_format = out.tensor, str(out.format)
    scale, offset = slope * w_scale / unit, shifted / unit + bias
    extra, residual_format = {}, ""
    if residual is not None:
        form = residual.format
        extra["residual"] = float(residual.scale) / unit
        extra["residuals"] = form.value(np.arange(form.lo, form.hi + 1, dtype=np.int64))
        residual_format = str(form)
    tail, drop = dropped(Tail(scale, offset, bound, lo, hi, **extra, edges=edges), read.linear and w_format.linear, name)
    folded = fold(tail, name)
    info = LayerInfo(
        name, "conv", f"{x.format}:{read}", out_format, tuple(x.tensor.shape[1:]), tuple(tensor.shape[1:]),
        str(w_format), residual_format, folded.shift, drop,
    )  # fmt: skip
    return IntegerConv(info, tail, folded, integers.int(), layer)


def _sum(name: str, pool: AveragePool, x: Codes, out: Codes) -> IntegerSum:
    channels, *size = x.tensor.shape[1:]
    kernel, stride = pool.kernel or size, pool.stride or size
    area = kernel[0] * kernel[1]
    unit, bias, lo, hi, edges = _output(pool.act, out).values()
    scale = np.full(channels, float(x.scale) / unit / area)
    bound = np.full(channels, float(area * max(abs(x.format.min_value), x.format.max_value)))
    tail, drop = dropped(Tail(scale, np.full(channels, bias), bound, lo, hi, edges=edges), x.format.linear, name)
    folded = fold(tail, name)
    shapes = tuple(x.tensor.shape[1:]), tuple(out.tensor.shape[1:])
    info = LayerInfo(name, "sumpool", str(x.format), str(out.format), *shapes, shift=folded.shift, drop=drop)
    return IntegerSum(info, tail, folded, kernel, stride, pool.padding)


@torch.no_grad()
def export_integer(
    net, image_size: int | tuple[int, int] | None = None, *, exact: bool = False
) -> IntegerNetwork:
    """The integer network of a trained low-bit net for images of `image_size`.

    One checkpoint serves every size: only the global average's multiplier depends on it.

    Args:
        image_size: the edge of square images, or (H, W).
        exact: also move each channel's b to where every threshold agrees with the trained
            function (`fold.refine`; seconds for ResNet-18). The result does not depend on the
            machine either way.

    Raises:
        ConfigError: a float net, or a size that the net cannot take.
        CompileError: an accumulator that can leave 32 bits (48 of log and codebook formats), or a sum that can leave 64.
    """
    if net.quantisation is None:
        raise ConfigError(f"{net.name} is a float net: call quantize_ and train it before the export")
    image_size = image_size or net.image_size
    image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    twin = _double(net)
    calls = _trace(twin, image_size)
    body, layers = twin, []
    for name, (args, out) in calls.items():
        module, x = twin.get_submodule(name), args[0]
        if isinstance(module, Layer):
            new = _conv(name, module, x, args[1] if len(args) > 1 else None, out)
        elif isinstance(module, AveragePool):
            new = _sum(name, module, x, out)
        else:
            shapes = tuple(x.tensor.shape[1:]), tuple(out.tensor.shape[1:])
            info = LayerInfo(name, "maxpool", str(x.format), str(out.format), *shapes)
            new = IntegerMaxPool(info, module)
        layers.append(new.info)
        parent, _, child = name.rpartition(".")
        setattr(body.get_submodule(parent), child, new)
    network = IntegerNetwork(body, layers, image_size, OUTPUT_UNIT[module.role])
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
    kinds = (Layer, MaxPool, AveragePool)
    floats = _outputs(
        twin, lambda: twin.simulate(images.double()), lambda m: isinstance(m, kinds)
    )
    shares = {}
    for name, codes in network.codes(images.int()).items():
        other = floats[name]
        if isinstance(other, Codes):
            equal = decode(codes, (other.format,)) == other.tensor
        elif twin.get_submodule(name).role == "image":
            equal = codes == (other / network.unit + 0.5).floor().clamp(IMAGE.lo, IMAGE.hi)
        else:
            equal = (codes - other / network.unit).abs() <= 1
        shares[name] = float(equal.double().mean())
    return shares

