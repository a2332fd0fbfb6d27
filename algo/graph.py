"""Nets as data: a graph of this project's layers that can be written into a checkpoint and built again from it.

`seriatim.algo.convert` makes such a graph of a user's own module; it trains, exports, compiles and runs like the other nets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from seriatim.algo.layers import AveragePool, Layer, MaxPool
from seriatim.algo.nets import Net
from seriatim.errors import ConfigError

IMAGE_NODE = "image"
"""Name by which nodes refer to the net's input."""

KINDS = {"layer": Layer, "maxpool": MaxPool, "averagepool": AveragePool}
"""Kinds of nodes: the class, whose constructor takes the node's options."""


@dataclass(frozen=True)
class Node:
    """One layer of a graph.

    Attributes:
        name: dotted, as reports give it.
        kind: of `KINDS`.
        inputs: the names of the nodes that it reads, or `IMAGE_NODE`; a layer's second one is its residual.
        options: arguments of the kind's constructor, JSON values.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    options: Mapping = field(default_factory=dict)


class GraphNet(Net):
    """The net of a list of nodes in order of execution; the last one gives the logits.

    Raises:
        ConfigError: a node of an unknown kind, that reads one which is not before it, of a name that is taken, or with options
            that its kind does not take.
    """

    nodes: tuple[Node, ...] = ()

    def __init__(self, name: str, channels: int, image_size: int, nodes: Iterable[Node]):
        super().__init__()
        self.name, self.channels, self.image_size = name, channels, image_size
        self.nodes = tuple(nodes)
        known = {IMAGE_NODE}
        for node in self.nodes:
            if not known.issuperset(node.inputs) or node.name in known:
                raise ConfigError(f"net {name}: node {node.name} reads {', '.join(node.inputs)}: each must be one of the nodes "
                                  "before it, whose names differ from its own")
            try:
                _attach(self, node.name, KINDS[node.kind](**node.options))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ConfigError(f"net {name}: node {node.name} of kind {node.kind} with {dict(node.options)}: "
                                  f"{type(error).__name__}: {error}; kinds are {', '.join(KINDS)}") from error
            known.add(node.name)

    def graph(self, x):
        values = {IMAGE_NODE: x}
        for node in self.nodes:
            values[node.name] = self.get_submodule(node.name)(*(values[i] for i in node.inputs))
        return values[self.nodes[-1].name]

    def spec(self) -> dict:
        """The architecture as JSON values; `from_spec` makes a float net of it."""
        nodes = [[node.name, node.kind, list(node.inputs), dict(node.options)] for node in self.nodes]
        return {"name": self.name, "channels": self.channels, "image_size": self.image_size, "nodes": nodes}

    @classmethod
    def from_spec(cls, spec: Mapping) -> "GraphNet":
        """Raises ConfigError where `spec` is not one that `spec()` gave."""
        try:
            nodes = [Node(name, kind, tuple(inputs), options) for name, kind, inputs, options in spec["nodes"]]
            return cls(spec["name"], spec["channels"], spec["image_size"], nodes)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the architecture of a net is malformed ({type(error).__name__}: {error})") from error


def _attach(net: nn.Module, name: str, layer: nn.Module) -> None:
    """Makes `layer` the submodule of a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in net._modules:
            net.add_module(part, nn.Module())
        net = net._modules[part]
    net.add_module(last, layer)
