"""Reads a float module into the steps of a net, for `seriatim.algo.convert`.

`torch.export` turns the module into ATen operators on one image batch, whatever mixture of modules, functions, methods and
in-place operations it is written in. They are read in order: a convolution or linear layer opens a `Layer`, which takes in the
batch norm, the residual and the ReLU that follow; what cannot join the layer before it (a batch norm behind a ReLU, a sum of two
finished tensors) becomes a 1x1 convolution of each channel by itself, with weights of 1.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from seriatim.algo.graph import IMAGE_NODE, GraphNet
from seriatim.algo.tracing import base_name, constants, export, refuse
from seriatim.errors import ConvertError

BATCH = 2
"""Images that a module is read with."""
aten = torch.ops.aten
CONVOLUTIONS = aten.conv2d.default, aten.conv2d.padding


@dataclass(eq=False)
class Step:
    """One node of the net while it grows, or the image.

    Attributes:
        tip: the operation whose value this is, when it is clipped to `clip`.
        shape: (C, H, W), also where the module holds it flat.
        norm: gamma, beta, mean, variance and eps of its batch norm, or None.
        relu: it ends in one. nonnegative: no value is below 0.
        border: zeros around what a layer reads: top, left, bottom, right.
        scale, shift: of the image alone, (C,): what the module sees is scale * pixel / 255 + shift.
    """

    kind: str
    tip: fx.Node
    shape: tuple[int, int, int]
    name: str = IMAGE_NODE
    inputs: list["Step"] = field(default_factory=list)
    options: dict = field(default_factory=dict)
    weight: Tensor | None = None
    bias: Tensor | None = None
    norm: tuple | None = None
    relu: bool = False
    nonnegative: bool = False
    clip: tuple[float, float | None] | None = None
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def open(self) -> bool:
        """A layer that can take in a residual or a ReLU still."""
        return self.kind == "layer" and not self.relu


def _pair(value) -> tuple[int, int]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return (value[0], value[0]) if len(value) == 1 else value


def _plain(pair: tuple[int, int]) -> int | list[int]:
    """One number for both sides where they agree, as layers' options have it."""
    return pair[0] if pair[0] == pair[1] else list(pair)


class Reader:
    """Reads the operations of an exported module into `Step`s.

    Attributes:
        graph: the operations. constants: value of each parameter and buffer among its placeholders.
        example: what the module was exported with.
    """

    def __init__(self, module: nn.Module, example: Tensor, scale: Tensor, shift: Tensor):
        self.example = example
        program = export(module, example)
        self.graph = program.graph
        self.constants, inputs = constants(program)
        if len(inputs) != 1:
            raise ConvertError(f"{type(module).__name__} takes {len(inputs)} inputs: a net takes one batch of images")
        (image,) = inputs
        shape = tuple(example.shape[1:])
        self.image = Step("image", image, shape, nonnegative=bool((shift >= 0).all()), scale=scale, shift=shift)
        self.steps: dict[fx.Node, Step] = {image: self.image}
        self.padded: dict[fx.Node, tuple[Step, tuple[int, int, int, int]]] = {}
        self.names: set[str] = {IMAGE_NODE}
        self.owners: dict[fx.Node, fx.Node] = {}

    def read(self) -> list[Step]:
        """The steps in order of execution, the classifier last."""
        result = None
        for node in self.graph.nodes:
            if node.op == "call_function":
                self._operation(node)
            elif node.op == "output":
                result = node
        return self._ordered(self._classifier(result))

    # Values

    def _step(self, node: fx.Node, index: int = 0) -> Step:
        """The step of an operation's operand."""
        operand = node.args[index]
        if operand not in self.steps:
            raise refuse(node, f"operand {operand} is a parameter or a number; a net is made of layers on maps")
        return self.steps[operand]

    def _constant(self, value) -> Tensor | None:
        """A number, parameter or buffer, or what is computed from these alone; None for a map."""
        if isinstance(value, fx.Node):
            return self.constants.get(value)
        return torch.tensor(float(value)) if isinstance(value, int | float) else None

    def _ends(self, node: fx.Node, operand: fx.Node) -> bool:
        """Whether `node` alone reads `operand`, and that is its step's last operation: the step can grow by `node`."""
        return len(operand.users) == 1 and self.steps[operand].tip is operand and self.steps[operand].clip is None

    def _grow(self, node: fx.Node, step: Step) -> None:
        step.tip = node
        self.steps[node] = step

    def _alias(self, node: fx.Node, step: Step) -> None:
        """`node` has the value of its operand, perhaps in another shape."""
        if self._ends(node, node.args[0]):
            step.tip = node
        self.steps[node] = step

    def _name(self, node: fx.Node) -> str:
        """Dotted name of a step: that of the module of PyTorch that makes it, or of the operation in its module."""
        path, found = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", ""))
        path = re.sub(r"@\d+", "", path)  # a second call
        leaf = path and str(found).startswith("torch.nn.modules")
        name = path if leaf else ".".join(filter(None, (path, node.name)))
        head, _, rest = name.partition(".")
        if hasattr(GraphNet, head):  # an attribute of every net
            name = f"{head}_.{rest}" if rest else f"{head}_"
        base, number = name, 1
        while name in self.names or any(other.startswith(name + ".") for other in self.names):
            name, number = f"{base}_{number}", number + 1
        self.names.add(name)
        return name

    # Operations

    def _operation(self, node: fx.Node) -> None:
        if all(a in self.constants for a in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.constants.__getitem__)
            self.constants[node] = node.target(*args, **kwargs)
            return
        read, value = READERS.get(node.target), node.meta.get("val")
        if read is None:
            raise refuse(node, f"a net has no such operation; it has {SUPPORTED}. {REMEDIES.get(base_name(node), REPLACE)}")
        if isinstance(value, Tensor) and value.shape[0] != BATCH:
            raise refuse(node, "it mixes the images of a batch; keep the first axis as it is")
        read(self, node)

    def _map(self, node: fx.Node) -> Step:
        """The first operand, which must be a map (N, C, H, W)."""
        step = self._step(node)
        found = tuple(node.args[0].meta["val"].shape)
        if found != (BATCH, *step.shape):
            raise refuse(node, f"it reads shape {found}, where the map is {(BATCH, *step.shape)}; keep maps as (N, C, H, W)")
        return step

    def conv(self, node: fx.Node) -> None:
        step, border = self.padded.get(node.args[0], (None, (0, 0, 0, 0)))
        x = step or self._map(node)
        names = "input", "weight", "bias", "stride", "padding", "dilation", "groups"
        given = dict(zip(names, node.args))
        weight, bias = self.constants[given["weight"]], given.get("bias")
        dilation, padding = _pair(given.get("dilation", 1)), given.get("padding", 0)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
            padding = [t // 2 for t in total] + [t - t // 2 for t in total]
        else:
            padding = _pair(0 if padding == "valid" else padding) * 2
        padding = tuple(a + b for a, b in zip(padding, border))
        options = {"stride": _pair(given.get("stride", 1)), "padding": padding, "dilation": dilation}
        self._owns(node)
        self._layer(node, x, weight, None if bias is None else self.constants[bias], options, given.get("groups", 1))

    def pad(self, node: fx.Node) -> None:
        """Zeros around a map, for the convolution that reads it."""
        x, border = self._map(node), node.args[1]
        mode, value = (*node.args[2:], *("constant", None)[len(node.args) - 2:])
        if mode != "constant" or value or len(border) > 4 or min(border) < 0:
            raise refuse(node, f"it pads {border}, {mode} {value or 0}; a convolution pads height and width with zeros")
        left, right, top, bottom = (*border, 0, 0)[:4]
        self.padded[node] = x, (top, left, bottom, right)

    def linear(self, node: fx.Node) -> None:
        x = self._step(node)
        weight, bias = (self.constants.get(a) for a in (*node.args[1:], *(None,) * (3 - len(node.args))))
        features = int(np.prod(x.shape))
        found = tuple(node.args[0].meta["val"].shape)
        if weight is None or found != (BATCH, features):
            raise refuse(node, f"it reads shape {found}; a linear layer reads a flattened map, {(BATCH, features)} here")
        options = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
        self._owns(node)
        self._layer(node, x, weight.reshape(len(weight), *x.shape), bias, options, 1)

    def _owns(self, node: fx.Node) -> None:
        """A low-bit layer has weights of its own."""
        owner = self.owners.setdefault(node.args[1], node)
        if owner is not node:
            raise refuse(node, f"its weights are also those of {self.steps[owner].name}, and quantising would untie them; give "
                               "each call a module of its own")

    def _layer(self, node: fx.Node, x: Step, weight: Tensor, bias: Tensor | None, options: dict, groups: int) -> None:
        kernel, border = tuple(weight.shape[2:]), options["padding"]
        top, left, bottom, right = border
        out = [(size + more - d * (k - 1) - 1) // s + 1 for size, more, k, s, d in
               zip(x.shape[1:], (top + bottom, left + right), kernel, options["stride"], options["dilation"])]
        padding = _plain((top, left)) if (top, left) == (bottom, right) else list(border)
        options = {"cin": x.shape[0], "cout": len(weight), "kernel": _plain(kernel), "stride": _plain(options["stride"]),
                   "padding": padding, "dilation": _plain(options["dilation"]), "groups": groups}
        for key in ("dilation", "groups"):
            if options[key] == 1:
                del options[key]
        weight, bias = weight.detach().clone(), torch.zeros(len(weight)) if bias is None else bias.detach().clone()
        if x is self.image:
            by_input = weight.flatten(2).sum(2)  # (O, C / groups): what a map of ones gives, without a border
            channel = torch.arange(x.shape[0]).view(groups, -1).repeat_interleave(len(weight) // groups, 0)
            bias += (by_input * x.shift[channel]).sum(1)
            weight = weight * x.scale[channel][:, :, None, None]
        self.steps[node] = Step("layer", node, (len(weight), *out), self._name(node), [x], options, weight, bias, border=border)

    def _channelwise(self, node: fx.Node, x: Step, operand: fx.Node) -> Step:
        """A 1x1 convolution of each channel by itself with weights of 1."""
        self._pixels(node, x)
        channels = x.shape[0]
        options = {"cin": channels, "cout": channels, "kernel": 1, "stride": 1, "padding": 0, "groups": channels}
        if channels == 1:
            del options["groups"]
        return Step("layer", operand, x.shape, self._name(node), [x], options,
                    torch.ones(channels, 1, 1, 1), torch.zeros(channels))

    def batch_norm(self, node: fx.Node) -> None:
        x = self._step(node)
        found = tuple(node.args[0].meta["val"].shape)
        gamma, beta, mean, variance = (None if a is None else self.constants[a] for a in node.args[1:5])
        if found[1] != x.shape[0]:
            raise refuse(node, f"it normalises {found[1]} features of a map of {x.shape[0]} channels; use nn.BatchNorm2d before "
                                "flattening")
        gamma = torch.ones_like(mean) if gamma is None else gamma
        beta = torch.zeros_like(mean) if beta is None else beta
        eps = float(node.args[-1])
        if x is self.image:
            slope = gamma / (variance + eps).sqrt()
            self._renormalise(node, slope, beta - slope * mean)
            return
        if not (x.open and x.norm is None and len(x.inputs) == 1 and self._ends(node, node.args[0])):
            x = self._channelwise(node, x, node.args[0])
        x.norm = tuple(t.detach().clone() for t in (gamma, beta, mean - x.bias, variance)) + (eps,)
        self._grow(node, x)

    def item(self, node: fx.Node) -> None:
        if node.args[1] != 0:
            raise refuse(node, "only the first result of an operation is a map")
        self._alias(node, self._step(node))

    def relu(self, node: fx.Node) -> None:
        low, high = (*node.args[1:], None)[:2] if len(node.args) > 1 else {aten.relu6.default: (0, 6)}.get(node.target, (0, None))
        if low is None or float(low) != 0:
            raise refuse(node, f"it clips at {low}; an activation's codes start at 0: use ReLU or ReLU6")
        x, operand = self._step(node), node.args[0]
        if x.nonnegative and high is None:
            self._alias(node, x)
            return
        chain = [x]
        while chain[-1].kind == "maxpool":  # clipping commutes with the maximum
            chain.append(chain[-1].inputs[0])
        last = chain[-1]
        alone = self._ends(node, operand) and all(len(step.tip.users) == 1 for step in chain)
        if not (alone and last.kind == "layer" and (last.open or high is not None)):
            chain = [last := self._channelwise(node, x, operand)]
        last.relu = True
        if high is not None:
            last.options["ceiling"] = min(float(high), last.options.get("ceiling", float(high)))
        for step in chain:
            step.nonnegative, step.clip = True, (0.0, high)
        chain[0].clip = None
        self._grow(node, chain[0])

    def add(self, node: fx.Node) -> None:
        if node.kwargs.get("alpha", 1) != 1:
            raise refuse(node, f"it adds {node.kwargs['alpha']} times a map; a residual is added as it is")
        constants = [self._constant(a) for a in node.args[:2]]
        if any(c is not None for c in constants):
            side = 0 if constants[1] is not None else 1
            self._affine(node, side, torch.tensor(1.0), constants[1 - side])
            return
        a, b = (self._step(node, i) for i in (0, 1))
        for x in (a, b):
            self._pixels(node, x)
        shapes = [tuple(operand.meta["val"].shape) for operand in node.args[:2]]
        if a is b or shapes[0] != shapes[1] or a.shape != b.shape:
            raise refuse(node, f"it adds maps of {shapes[0]} and {shapes[1]}; a residual is another map of the same shape")
        sides = [(x, other) for x, other, operand in ((a, b, node.args[0]), (b, a, node.args[1]))
                 if x.open and len(x.inputs) == 1 and self._ends(node, operand)]
        if sides:  # of two, the larger kernel: a shortcut of 1x1 is the residual
            main, residual = max(sides, key=lambda side: side[0].weight[0].numel())
        else:
            main, residual = self._channelwise(node, a, node.args[0]), b
        main.inputs.append(residual)
        self._grow(node, main)

    def subtract(self, node: fx.Node) -> None:
        constant = self._constant(node.args[1])
        if constant is None or node.kwargs.get("alpha", 1) != 1:
            raise refuse(node, "a difference of maps is no operation of a net; add a map, or subtract a constant of the image")
        self._affine(node, 0, torch.tensor(1.0), -constant)

    def multiply(self, node: fx.Node) -> None:
        constants = [self._constant(a) for a in node.args[:2]]
        if all(c is None for c in constants):
            raise refuse(node, "a product of maps is no operation of a net; leave the gate out, or add the maps")
        side = 0 if constants[1] is not None else 1
        self._affine(node, side, constants[1 - side], torch.tensor(0.0))

    def divide(self, node: fx.Node) -> None:
        constant = self._constant(node.args[1])
        if constant is None or node.kwargs:
            raise refuse(node, "a quotient of maps is no operation of a net; only a constant divides")
        self._affine(node, 0, 1 / constant, torch.tensor(0.0))

    def _affine(self, node: fx.Node, side: int, slope: Tensor, offset: Tensor) -> None:
        """scale * x + offset by constants: of the image, or of a layer's output before its ReLU."""
        x, operand = self._step(node, side), node.args[side]
        channels = x.shape[0]
        try:
            slope, offset = (_by_channel(t, channels, operand.meta["val"].dim()) for t in (slope, offset))
        except ValueError as error:
            raise refuse(node, f"a constant of shape {error}: one number for each channel at most") from None
        if x is self.image:
            self._renormalise(node, slope, offset)
            return
        if not (x.open and len(x.inputs) == 1 and self._ends(node, operand)):
            raise refuse(node, "a constant scales or shifts the image, or a layer's output before its residual and ReLU; put it "
                                "there or leave it out")
        if x.norm is None:
            x.weight, x.bias = x.weight * slope.view(-1, 1, 1, 1), x.bias * slope + offset
        else:
            gamma, beta, *rest = x.norm
            x.norm = (gamma * slope, beta * slope + offset, *rest)
        self._grow(node, x)

    def _renormalise(self, node: fx.Node, slope: Tensor, offset: Tensor) -> None:
        if not self._ends(node, node.args[0]) and not self._ends(node, node.args[1]):
            raise refuse(node, "the image is read both normalised and not; normalise it once, for all that read it")
        x = self.image
        x.scale, x.shift = x.scale * slope, x.shift * slope + offset
        x.nonnegative = bool(((x.scale >= 0) & (x.shift >= 0)).all())
        self._grow(node, x)

    def max_pool(self, node: fx.Node) -> None:
        x = self._pooled(node)
        names = "input", "kernel", "stride", "padding", "dilation", "ceil_mode"
        given = dict(zip(names, node.args))
        kernel = _pair(given["kernel"])
        stride, padding = _pair(given.get("stride") or kernel), _pair(given.get("padding", 0))
        if _pair(given.get("dilation", 1)) != (1, 1):
            raise refuse(node, "a maximum pool has no dilation here; leave it out")
        out = self._floored(node, x, kernel, stride, padding)
        self._maximum(node, x, out, kernel=_plain(kernel), stride=_plain(stride), padding=_plain(padding))

    def global_maximum(self, node: fx.Node) -> None:
        x = self._pooled(node)
        if node.target is aten.amax.default and sorted(axis % 4 for axis in node.args[1]) != [2, 3]:
            raise refuse(node, f"the maximum over the axes {node.args[1]}: a pool's is over height and width")
        if node.target is not aten.amax.default and _pair(node.args[1]) != (1, 1):
            raise refuse(node, f"an adaptive maximum pool to {node.args[1]}: to 1x1, or use windows of a fixed size")
        self._maximum(node, x, (1, 1), kernel=_plain(x.shape[1:]))

    def _maximum(self, node: fx.Node, x: Step, out, **options) -> None:
        self.steps[node] = Step("maxpool", node, (x.shape[0], *out), self._name(node), [x], options, nonnegative=x.nonnegative)

    def _pixels(self, node: fx.Node, x: Step) -> None:
        """Raises where `x` is the image, normalised: only a convolution's weights can take that in."""
        if x is self.image and not (bool((x.scale == 1).all()) and bool((x.shift == 0).all())):
            raise refuse(node, "it reads the normalised image, but only a convolution or linear layer takes a normalisation into "
                               "its weights; begin with one")

    def _pooled(self, node: fx.Node) -> Step:
        """The map that a pool reads."""
        x = self._map(node)
        self._pixels(node, x)
        return x

    def _floored(self, node, x: Step, kernel, stride, padding) -> tuple[int, ...]:
        """Height and width that windows which fit give. Raises where the module has others (ceil_mode)."""
        out = tuple((size + 2 * p - k) // s + 1 for size, k, s, p in zip(x.shape[1:], kernel, stride, padding))
        found = tuple(node.meta["val"].shape[2:])
        if found != out:
            raise refuse(node, f"with ceil_mode it gives {found}, windows that fit give {out}; leave ceil_mode out, or choose "
                                "an image size where the two agree")
        return out

    def _average(self, node: fx.Node, x: Step, **options) -> None:
        if not x.nonnegative:
            raise refuse(node, "it averages values below 0, but a pool's codes begin at 0; put a ReLU before it")
        shape = (x.shape[0], *(node.meta["val"].shape[2:] if options else (1, 1)))
        self.steps[node] = Step("averagepool", node, shape, self._name(node), [x], options, nonnegative=True)

    def adaptive_pool(self, node: fx.Node) -> None:
        x, size = self._pooled(node), _pair(node.args[1])
        if size == x.shape[1:]:
            self._alias(node, x)
        elif size == (1, 1):
            self._average(node, x)
        elif all(have % want == 0 for have, want in zip(x.shape[1:], size)):
            self._average(node, x, kernel=_plain(tuple(have // want for have, want in zip(x.shape[1:], size))))
        else:
            raise refuse(node, f"it averages {x.shape[1:]} to {size} by unequal windows; choose a size that divides it")

    def average_pool(self, node: fx.Node) -> None:
        x = self._pooled(node)
        names = "input", "kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
        given = dict(zip(names, node.args))
        kernel, padding = _pair(given["kernel"]), _pair(given.get("padding", 0))
        stride = _pair(given.get("stride") or kernel)
        self._floored(node, x, kernel, stride, padding)
        if given.get("divisor_override") or padding != (0, 0) and not given.get("count_include_pad", True):
            raise refuse(node, "an average divides by the size of its window, the border counted too; leave divisor_override "
                                "and count_include_pad out")
        if kernel == stride == (1, 1):
            self._alias(node, x)
        elif kernel == x.shape[1:] and padding == (0, 0):
            self._average(node, x)
        else:
            self._average(node, x, kernel=_plain(kernel), stride=_plain(stride), padding=_plain(padding))

    def mean(self, node: fx.Node) -> None:
        x = self._step(node)
        shape = node.args[0].meta["val"].shape
        axes = sorted(axis % len(shape) for axis in node.args[1] or range(len(shape)))
        if axes != list(range(2, len(shape))) or shape[1] != x.shape[0] or not axes:
            raise refuse(node, f"it averages the axes {axes} of {tuple(shape)}; the mean over height and width is a global "
                                "pool: use that")
        self._average(node, x)

    def reshape(self, node: fx.Node) -> None:
        x = self._step(node)
        shape = tuple(node.meta["val"].shape)
        bare = [n for n in shape[1:] if n != 1]
        c, h, w = x.shape
        wanted = ([n for n in x.shape if n != 1], [n for n in (c, h * w) if n != 1], [n for n in (c * h * w,) if n != 1])
        if shape[0] != BATCH or bare not in wanted:
            raise refuse(node, f"it makes {shape} of a map of {(BATCH, *x.shape)}; a map is flattened to {(BATCH, c * h * w)}")
        self._alias(node, x)

    def same(self, node: fx.Node) -> None:
        self._alias(node, self._step(node))

    def softmax(self, node: fx.Node) -> None:
        if [user.op for user in node.users] != ["output"] or node.args[1] not in (1, -1):
            raise refuse(node, "a softmax is left out behind the logits alone, over their classes; do without this one")
        self.steps[node] = self._step(node)

    # The end

    def _classifier(self, output: fx.Node) -> Step:
        values = [v for v in fx.node.map_arg(output.args[0], lambda n: n) if isinstance(v, fx.Node)]
        if len(values) != 1:
            raise ConvertError(f"the module returns {len(values)} tensors: a net gives logits (N, classes) alone")
        last = self.steps.get(values[0])
        if last is None or last.kind != "layer" or last.relu or len(last.inputs) > 1 or last.shape[1:] != (1, 1) or any(
                last in step.inputs for step in self.steps.values()):
            found = "a constant" if last is None else f"{last.name} ({last.kind}{', with ReLU' * last.relu}), {last.shape}"
            raise ConvertError(f"the module ends in {found}: logits come from a linear layer or a 1x1 convolution on a 1x1 map, "
                               "without ReLU or residual; end it in one")
        if last.norm is not None:
            gamma, beta, mean, variance, eps = last.norm
            slope = gamma / (variance + eps).sqrt()  # mean has taken the bias in
            last.weight, last.bias, last.norm = last.weight * slope.view(-1, 1, 1, 1), beta - slope * mean, None
        last.options["role"] = "classifier"
        return last

    def _ordered(self, last: Step) -> list[Step]:
        """The steps that the last one needs, each behind what it reads."""
        order: list[Step] = []
        stack = [(last, False)]
        while stack:
            step, ready = stack.pop()
            if step in order or step is self.image:
                continue
            if ready:
                order.append(step)
            else:
                stack += [(step, True), *((x, False) for x in step.inputs)]
        return order

    def values(self) -> dict[fx.Node, Tensor]:
        """What each operation gives for the example, in float64. Layers at the image have a border of black pixels."""
        found = {}
        for node, value in self.constants.items():
            if node.op == "placeholder":
                found[node] = value.double() if value.is_floating_point() else value
        for node in self.graph.nodes:
            if node.op == "placeholder" and node not in found:
                found[node] = self.example.double()
            if node.op != "call_function":
                continue
            if node.target in CONVOLUTIONS and self.steps[node].inputs[0] is self.image:
                found[node] = self._at_image(node, found)
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), found.__getitem__)
                found[node] = node.target(*args, **kwargs)
        return found

    def _at_image(self, node: fx.Node, found: dict[fx.Node, Tensor]) -> Tensor:
        """A convolution of the image, whose border is what black pixels are normalised to."""
        source, options = node.args[0], self.steps[node].options
        source = source.args[0] if source in self.padded else source
        top, left, bottom, right = self.steps[node].border
        black = self.image.shift.double().view(-1, 1, 1)
        x = F.pad(found[source] - black, (left, right, top, bottom)) + black
        weight, bias = found[node.args[1]], found.get(node.args[2]) if len(node.args) > 2 else None
        return F.conv2d(x, weight, bias, options["stride"], 0, options.get("dilation", 1), options.get("groups", 1))


READERS: dict[Callable, Callable[[Reader, fx.Node], None]] = {
    **dict.fromkeys(CONVOLUTIONS, Reader.conv),
    aten.pad.default: Reader.pad,
    aten.linear.default: Reader.linear,
    aten._native_batch_norm_legit_no_training.default: Reader.batch_norm,
    operator.getitem: Reader.item,
    aten.relu.default: Reader.relu,
    aten.relu6.default: Reader.relu,
    aten.clamp.default: Reader.relu,
    aten.clip.default: Reader.relu,
    aten.clamp_min.default: Reader.relu,
    aten.hardtanh.default: Reader.relu,
    aten.add.Tensor: Reader.add,
    aten.sub.Tensor: Reader.subtract,
    aten.mul.Tensor: Reader.multiply,
    aten.div.Tensor: Reader.divide,
    aten.max_pool2d.default: Reader.max_pool,
    aten.amax.default: Reader.global_maximum,
    aten.adaptive_max_pool2d.default: Reader.global_maximum,
    aten.avg_pool2d.default: Reader.average_pool,
    aten.adaptive_avg_pool2d.default: Reader.adaptive_pool,
    aten.mean.dim: Reader.mean,
    aten.view.default: Reader.reshape,
    aten.reshape.default: Reader.reshape,
    aten._unsafe_view.default: Reader.reshape,
    aten.squeeze.dim: Reader.reshape,
    aten.squeeze.dims: Reader.reshape,
    aten.squeeze.default: Reader.reshape,
    aten.unsqueeze.default: Reader.reshape,
    aten.clone.default: Reader.same,
    aten.alias.default: Reader.same,
    aten.detach.default: Reader.same,
    aten.contiguous.default: Reader.same,
    aten.dropout.default: Reader.same,
    aten.log_softmax.int: Reader.softmax,
    aten.softmax.int: Reader.softmax,
}
"""The operations that are read, and how."""

SUPPORTED = ("convolution, linear, batch norm, ReLU, a sum of two maps, maximum and average pools, flattening, dropout and a "
             "softmax at the end")

REPLACE = "Express it by these, or leave it to the host before or after the net"

REMEDIES = {
    **dict.fromkeys(("sigmoid", "tanh", "gelu", "silu", "leaky_relu", "prelu", "elu", "celu", "selu", "hardswish", "hardsigmoid",
                     "softplus", "mish", "_prelu_kernel"), "Use ReLU"),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "_native_batch_norm_legit", "native_layer_norm",
                     "native_group_norm"), "Use batch norm with running statistics"),
    **dict.fromkeys(("permute", "transpose", "t"), "Keep maps as (N, C, H, W)"),
    "sum": "Use the mean",
    "cat": "Add maps of the same shape instead of joining them",
}
"""What to do instead, by the operation's name."""


def _by_channel(constant: Tensor, channels: int, axes: int) -> Tensor:
    """(C,) of a constant that is broadcast to a tensor of so many axes. Raises ValueError where it differs within a channel."""
    shape = (1,) * (axes - constant.dim()) + tuple(constant.shape)
    if constant.dim() > axes or any(n != 1 for i, n in enumerate(shape) if i != 1) or shape[1] not in (1, channels):
        raise ValueError(tuple(constant.shape))
    return constant.detach().float().reshape(-1).expand(channels)
