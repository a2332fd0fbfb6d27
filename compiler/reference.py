"""The whole network on the CPU, through TVM and LLVM: the reference that shares no layer code with the accelerator's levels."""

import numpy as np
import tvm
from tvm import relax

from seriatim.compiler import runtime
from seriatim.compiler.importer import import_module
from seriatim.compiler.ops import op_name
from seriatim.compiler.patterns import NAMED, bindings_of

TARGET = "llvm"


def build(mod: tvm.IRModule):
    """The executable of a module."""
    return relax.build(mod, TARGET)


@relax.expr_functor.mutator
class _Rename(relax.PyExprMutator):
    """Replaces variables by others."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def visit_var_(self, var):
        return self.known.get(var, var)

    def visit_dataflow_var_(self, var):
        return self.known.get(var, var)


def with_every_layer(mod: tvm.IRModule) -> tuple[tvm.IRModule, list[str]]:
    """`mod` with a `main` that returns the output of every layer instead, and their names in that order."""
    main = mod["main"]
    builder = relax.BlockBuilder()
    params = [relax.Var(param.name, param.ty) for param in main.params]
    known = dict(zip(main.params, params))
    rename = _Rename(known)
    layers = {}
    with builder.function("main", params):
        for var, value in bindings_of(main):
            known[var] = builder.emit(rename.visit_expr(value))
            if op_name(value) in NAMED:
                layers[str(value.attrs["name"])] = known[var]
        builder.emit_func_output(relax.Tuple(list(layers.values())))
    return builder.get(), list(layers)


class Reference:
    """A network on the CPU. Takes an imported Relax module, or a torch module with example inputs."""

    def __init__(self, network, example_inputs=()):
        self.mod = network if isinstance(network, tvm.IRModule) else import_module(network, as_list(example_inputs))
        self._machines = {}

    def _machine(self, every_layer: bool):
        if every_layer not in self._machines:
            mod, names = with_every_layer(self.mod) if every_layer else (self.mod, [])
            self._machines[every_layer] = relax.VirtualMachine(build(mod), tvm.cpu()), names
        return self._machines[every_layer]

    def run(self, inputs):
        """The network's output (an array, or a tuple of them) for its inputs (codes, an array or a list of them)."""
        machine, _ = self._machine(False)
        return runtime.call(machine["main"], as_list(inputs))

    def layers(self, inputs) -> dict[str, np.ndarray]:
        """The output of every requantisation and max pool, by layer name, in order of execution."""
        machine, names = self._machine(True)
        return dict(zip(names, runtime.call(machine["main"], as_list(inputs))))


def run_cpu(network, inputs):
    """Output of a network for its inputs. `Reference` keeps what it built, for more than one call."""
    return Reference(network, inputs).run(inputs)


def run_cpu_layers(network, inputs) -> dict[str, np.ndarray]:
    """Output of every layer of a network, by name."""
    return Reference(network, inputs).layers(inputs)


def as_list(inputs) -> list:
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]
