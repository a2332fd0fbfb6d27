"""Seriatim: hardware-in-the-loop co-design of low-bit neural networks.

This package is the *contract* (configuration, ISA, CSRs, number formats, errors) and uses the standard library only. The parts
live beside it as `seriatim.algo`, `seriatim.compiler`, `seriatim.hw`, `seriatim.sim` and `seriatim.boards`.
"""

__version__ = "0.1.0"
