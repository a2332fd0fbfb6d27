"""A compiled network as plain files: what a driver of its own puts into memory, and where."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from seriatim import isa
from seriatim.compiler import artefact as artefacts
from seriatim.compiler.program import Compiled
from seriatim.errors import ArtefactError
from seriatim.sim import files

PAGE = 4096
"""The base is a multiple of it: every alignment inside the memory stays."""


def relocate(program: bytes, base: int) -> bytes:
    """`program` for a memory that begins at byte address `base`: added (mod 2^32) to each instruction's address of memory."""
    out = []
    for pc in range(0, len(program), isa.INSTR_BYTES):
        word = program[pc:pc + isa.INSTR_BYTES]
        instr, values = isa.decode(word)
        if "dram" in values:
            word = isa.encode(instr.name, **values | {"dram": values["dram"] + base & 0xFFFFFFFF})
        out.append(word)
    return b"".join(out)


def layout(compiled: Compiled, base: int) -> dict:
    """Where everything lies, as byte addresses that the machine sees, and what its registers get."""
    def place(name: str) -> dict:
        place = compiled.places[name]
        tensor = place.tensor
        return {"name": name, "address": base + place.address, "size": place.size, "shape": list(tensor.shape),
                "format": str(tensor.format or "int32"), "layout": tensor.layout}

    program = {"address": base + compiled.program_address, "size": len(compiled.program)}
    (read, read_limit), (write, write_limit) = compiled.read_range, compiled.write_range
    return {
        "isa_version": isa.VERSION,
        "config_hash": compiled.config.hash,
        "config": asdict(compiled.config),
        "memory": {"address": base, "size": compiled.memory_bytes},
        "program": program,
        "image": {"address": base, "size": len(compiled.image)},
        "inputs": [place(name) for name in compiled.inputs],
        "outputs": [place(name) for name in compiled.outputs],
        "registers": {
            "PROG_BASE": program["address"], "PROG_BYTES": program["size"], "READ_BASE": base + read,
            "READ_LIMIT": base + read_limit, "WRITE_BASE": base + write, "WRITE_LIMIT": base + write_limit,
        },
        "layers": [{"name": layer.name, "mark": layer.mark, "cycles": layer.cycles} for layer in compiled.layers],
    }


def contents(compiled: Compiled, base: int = 0) -> dict[str, bytes]:
    """The files of one region by name. Raises ArtefactError where `base` is no multiple of 4096, or memory ends past 32 bits."""
    if base % PAGE:
        raise ArtefactError(f"base {base:#x}: a multiple of {PAGE}, so that bursts stay within their pages")
    if base + compiled.memory_bytes >= 1 << 32:
        raise ArtefactError(f"base {base:#x}: {compiled.memory_bytes:,} bytes from there end beyond 32-bit addresses; lower it")
    program = relocate(compiled.program, base)
    return {
        "program.bin": program,
        "program.s": "".join(f"{line}\n" for line in isa.disassemble(program)).encode(),
        "image.bin": compiled.image,
        "layout.json": (json.dumps(layout(compiled, base), indent=1) + "\n").encode(),
    }


def main(args: argparse.Namespace) -> None:
    """`seriatim dump`: a folder `regionN` for each region, and what is left to the CPU."""
    path = Path(args.path)
    artefact = artefacts.read(path / "artefact.zip" if path.is_dir() else path)
    base = args.base
    for number, program in enumerate(artefact.programs):
        compiled = Compiled.from_bytes(program)
        folder = Path(args.out, f"region{number}")
        for name, data in contents(compiled, base).items():
            files.write(folder / name, data)
        print(f"{folder}: {len(compiled.layers)} layers, memory {base:#x}..{base + compiled.memory_bytes:#x}")
    for row in artefact.cpu_fallback:
        print(f"on the CPU: {row['name']} ({row['op']}): {row['reason']}")
