"""The compact machine's firmware: `firmware.c`, compiled for its RISC-V core by the C compiler of PyPI's `ziglang`."""

import hashlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from seriatim import csr, isa
from seriatim.config import Config
from seriatim.errors import ToolError
from seriatim.formats import Kind
from seriatim.sim import build

SOURCE = Path(__file__).with_name("firmware.c")
FLAGS = ("-target", "riscv32-freestanding-none", "-mcpu=generic_rv32+relax", "-Oz", "-ffreestanding", "-nostdlib", "-std=c11",
         "-Wall", "-Wextra", "-Werror", "-ffunction-sections", "-Wl,--gc-sections")
SCRIPT = """\
ENTRY(_start)
SECTIONS {{
  . = 0;
  .text : {{ KEEP(*(.text.start)) *(.text*) *(.rodata*) *(.srodata*) }}
  .data {data:#x} (NOLOAD) : {{ *(.bss*) *(.sbss*) *(COMMON) }}
  stack = {stack:#x};
  /DISCARD/ : {{ *(.comment) *(.riscv.attributes) *(.eh_frame*) }}
}}
ASSERT(SIZEOF(.data) + {least} <= {size}, "no room for the stack")
"""
LEAST_STACK = 512
"""Bytes."""


def header(config: Config) -> str:
    """`contract.h`: everything that the firmware shares with the hardware and the ISA, from their tables."""
    from .compact import Fault, Own, Region, scratch_map
    from .tile import registers

    places = scratch_map(config)
    constants = {f"OP_{i.name}": i.opcode for i in isa.INSTRS}
    for i in isa.INSTRS:
        constants |= {f"{i.name}_{f.name.upper()}": at for at, f in enumerate(i.all_fields[1:])}
    for kind in (isa.Buffer, isa.Output, isa.Engine, isa.Queue, Kind, csr.Cause, csr.Counter, csr.Status, Fault, Region):
        constants |= {f"{kind.__name__.upper()}_{member.name}": int(member) for member in kind}
    constants |= {f"CSR_{name}": address // 4 for name, address in csr.ADDR.items()}
    constants |= {f"TILE_{name.upper()}": len(Own) + at for at, name in enumerate(registers(config))}
    constants |= {f"OWN_{own.name}": int(own) for own in Own}
    for name, (at, words) in places.items():
        constants |= {f"{name.upper()}_AT": at, f"{name.upper()}_SIZE": words}
    constants |= {
        "ACT_BASE": 0, "RES_BASE": config.act_words, "OUT_BASE": config.act_words + config.res_words,
        **{name.upper(): getattr(config, name) for name in (
            "act_words", "res_words", "out_words", "wgt_words", "prm_words", "psum_words", "line_bytes", "max_planes", "marks",
            "tiles_per_word", "k")},
        "INSTR_BYTES": isa.INSTR_BYTES, "INSTR_WORDS": isa.INSTR_BYTES // 4, "SEM_COUNT": isa.SEM_COUNT,
        "SEM_MOST": (1 << isa.SEM_BITS) - 1, "PROFILE_KEPT": csr.PROFILE_KEPT, "COUNTERS": csr.COUNTERS_AT // 4,
        "COUNTER_COUNT": len(csr.Counter), "FIELDS_MOST": max(len(i.all_fields) for i in isa.INSTRS) - 1,
    }
    identity = {csr.ADDR["ID"]: csr.ID_VALUE, csr.ADDR["ISA_VERSION"]: isa.VERSION, csr.ADDR["CONFIG_HASH"]: config.hash,
                csr.ADDR["GEOMETRY"]: config.geometry}
    lines = [f"#define {name} {value:#x}u" for name, value in constants.items()]
    lines.append("static const u32 IDENTITY[] = {" + ", ".join(f"{identity[a]:#x}u" for a in sorted(identity)) + "};")
    fields, instrs = [], []
    by_opcode = {i.opcode: i for i in isa.INSTRS}
    for opcode in range(max(by_opcode) + 1):
        i = by_opcode.get(opcode)
        instrs.append(f"{{{len(fields)}, {len(i.all_fields) - 1 if i else 0}, {int(i.queue) if i else 0}, 0}}")
        fields += [_field(f) for f in i.all_fields[1:]] if i else []
    lines.append("static const u32 MASK[] = {" + ", ".join(f"{(1 << bits) - 1:#x}u" for bits in range(33)) + "};")
    lines.append(f"static const struct field FIELDS[] = {{{', '.join(fields)}}};")
    lines.append(f"static const struct instr INSTRS[] = {{{', '.join(instrs)}}};")
    return "\n".join(lines) + "\n"


def _field(f: isa.Field) -> str:
    lo, hi = f.range
    limited = hi != ((1 << f.bits - f.signed) - 1)
    return f"{{{f.bits | f.signed << 7}, {max(lo, 0)}, {hi if limited else 0}}}"


def words(config: Config) -> list[int]:
    """The firmware's words for the machine of `config`, from address 0 on, as many as fill whole block RAMs of 256. Raises
    ToolError where the compiler is missing or fails."""
    from .compact import Region, scratch_map

    at, size = scratch_map(config)["data"]
    data = (Region.SCRATCH << 28) + 4 * at
    script = SCRIPT.format(data=data, stack=data + 4 * size, size=4 * size, least=LEAST_STACK)
    contract = header(config)
    try:
        compiler = version("ziglang")
    except PackageNotFoundError as e:
        raise ToolError("ziglang, which compiles the compact machine's firmware, is not installed: run 'make env'") from e
    key = hashlib.sha256("\0".join([SOURCE.read_text(), contract, script, compiler, *FLAGS]).encode()).hexdigest()[:24]

    def make(folder: Path) -> None:
        (folder / "contract.h").write_text(contract)
        (folder / "link.ld").write_text(script)
        program, link = str(folder / "firmware.elf"), str(folder / "link.ld")
        for command in (["cc", *FLAGS, f"-I{folder}", "-T", link, "-o", program, str(SOURCE)],
                        ["objcopy", "-O", "binary", program, str(folder / "firmware.bin")]):
            result = subprocess.run([sys.executable, "-m", "ziglang", *command], capture_output=True, text=True)
            if result.returncode:
                raise ToolError(f"the firmware does not compile: {result.stderr.strip()[-2000:]}")

    image = (build.cached("firmware", key, make, "the compact machine's firmware") / "firmware.bin").read_bytes()
    image += bytes(-len(image) % 1024)
    return [int.from_bytes(image[i:i + 4], "little") for i in range(0, len(image), 4)]
