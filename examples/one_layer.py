"""One convolution from PyTorch to the accelerator, in a screenful.

    .venv/bin/python examples/one_layer.py          # the ISA simulator: seconds
    .venv/bin/python examples/one_layer.py rtl      # the Verilated RTL: builds it the first time

A quantised layer is an integer convolution and a requantisation, as torch custom operators; everything else follows from them.
"""

import sys

import torch
from torch import nn

import seriatim.algo.ops  # noqa: F401  registers torch.ops.seriatim
from seriatim.compiler.codegen import generate
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.sim.driver import opener
from seriatim.sim.executor import Executor


class Layer(nn.Module):
    """3x3 convolution of 8-bit activations with 1-bit weights (-1 and +1), back to 8 bits."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.register_buffer("w", torch.randint(0, 2, (channels_out, channels_in, 3, 3), dtype=torch.int32) * 2 - 1)
        self.register_buffer("m", torch.full((channels_out,), 3, dtype=torch.int32))  # q = (3 acc + 2^14) >> 7
        self.register_buffer("b", torch.full((channels_out,), 1 << 14, dtype=torch.int64))

    def forward(self, x):
        acc = torch.ops.seriatim.qconv2d(x, self.w, [1, 1], [1, 1, 1, 1], [1, 1], 1, "uint8:uint8", "bipolar1")
        return torch.ops.seriatim.requant(acc, self.m, self.b, 7, 0, 255, "conv")


def main(level: str = "isa") -> None:
    torch.manual_seed(0)
    layer, config = Layer(3, 32), Config()
    image = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.int32)

    artefact = compile_network(layer, image, config, generate)
    executor = Executor(config, opener(level))
    found = artefact.run(image.numpy(), executor=executor)

    equal = (torch.from_numpy(found) == layer(image)).all().item()
    print(f"{level}: output {tuple(found.shape)}, equal to PyTorch: {equal}, on the CPU: {artefact.cpu_fallback or 'nothing'}")
    if level == "rtl":
        print(f"{executor.runs[0].counts.cycles:,} cycles on the {config} machine")
    if not equal:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
