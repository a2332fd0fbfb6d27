"""What an artefact calls at run time: the global function `seriatim.run`, and the executor that stands behind it.

An executor is anything that runs a program: `executor(program, inputs) -> outputs`, int32 codes in NumPy arrays. The ISA
simulator, the Verilated accelerator and a board are all handed over through `use`.
"""

from collections.abc import Callable

import numpy as np

from seriatim.errors import ToolError

Executor = Callable[[bytes, list[np.ndarray]], list[np.ndarray]]

_executor: Executor | None = None
_failure: BaseException | None = None
_registered = False


class use:
    """Let `executor` run every program from now on; as a context manager, only inside the block."""

    def __init__(self, executor: Executor | None):
        global _executor
        self.before, _executor = _executor, executor

    def __enter__(self):
        return self

    def __exit__(self, *_):
        global _executor
        _executor = self.before


def run(program: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Run one program on the executor in use. Raises ToolError where there is none."""
    if _executor is None:
        raise ToolError("no machine to run the program on: call seriatim.compiler.runtime.use(executor) first")
    return _executor(program, inputs)


def register() -> None:
    """Register `seriatim.run` with TVM: (program, number of inputs, inputs..., outputs...). Before a VM is created."""
    global _registered
    if _registered:
        return
    import tvm_ffi  # imports torch as well, so only where a program is about to run

    def packed(program, count, *tensors):
        global _failure
        inputs = [tensor.numpy() for tensor in tensors[:count]]
        try:
            outputs = run(program.numpy().tobytes(), inputs)
            for index, (wanted, codes) in enumerate(zip(tensors[count:], outputs, strict=True)):
                codes = np.ascontiguousarray(codes, np.int32)
                if codes.shape != tuple(wanted.shape):
                    raise ToolError(f"output {index} of shape {codes.shape}: the program's is {tuple(wanted.shape)}")
                wanted.copyfrom(codes)
        except BaseException as error:  # TVM would lose what is no Exception, such as Ctrl-C
            _failure = error
            raise RuntimeError("the executor raised") from error

    tvm_ffi.register_global_func("seriatim.run", packed, override=True)
    _registered = True


def call(function, inputs: list[np.ndarray]) -> np.ndarray | tuple[np.ndarray, ...]:
    """Call a function of TVM's VM with int32 arrays; what an executor raised comes out as itself, with its members."""
    global _failure
    _failure = None
    import tvm

    try:
        return unpack(function(*(tvm.runtime.tensor(np.ascontiguousarray(array, np.int32)) for array in inputs)))
    except Exception as error:
        if _failure is not None:
            raise _failure from error
        raise


def unpack(result) -> np.ndarray | tuple[np.ndarray, ...]:
    """NumPy arrays of what a VM function returned: a tensor, or a tuple."""
    return result.numpy() if hasattr(result, "numpy") else tuple(unpack(item) for item in result)
