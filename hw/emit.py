"""The accelerator for somebody else's system on chip: SystemVerilog, lint waivers, a C header, the manuals, how to integrate it.

Everything follows from the Config and the tables of `seriatim.csr` and `seriatim.isa`; the same Config gives the same bytes.
"""

import argparse
import re
import sys
from dataclasses import asdict, fields
from pathlib import Path

from seriatim import __version__, csr, isa
from seriatim.config import Config
from seriatim.errors import ConfigError
from seriatim.sim import files

from .convert import to_verilog

TOP = "seriatim_top"
PORT_GROUPS = "clk", "rst", "irq", *(f"{bus}_{channel}" for bus in ("s_axil", "m_axi") for channel in ("aw", "w", "b", "ar", "r"))
"""Order of the top module's ports, by what their names start with."""

WAIVERS = {
    "CASEINCOMPLETE": "each case follows a default assignment of what it assigns",
    "CMPCONST": "a comparison with a bound that this geometry always keeps; synthesis removes it",
    "DECLFILENAME": "one file holds all modules",
    "PROCASSINIT": "registers have initial values, for an FPGA that configures them, and a synchronous reset to the same values",
    "UNSIGNED": "an index is compared with a first row or address that is 0 in this geometry; synthesis removes it",
    "UNUSEDSIGNAL": "carries of sums that are cut, and fields of structs that a unit passes on and does not read",
    "WIDTHEXPAND": "operands are extended where they meet wider ones, with the sign that the generator gave them",
    "WIDTHTRUNC": "a shifted word is assigned to the bits that are read of it",
}
"""Rules of Verilator's -Wall that generated code breaks, each with the reason why nothing is wrong there."""


def verilog(config: Config, name: str = TOP) -> str:
    """The accelerator for synthesis as SystemVerilog (IEEE 1800-2012), top module `name`; the other modules are `name_...`."""
    from seriatim.hw.top import machine

    return banner(config, "// ") + "\n" + portable(to_verilog(machine(config), name), name)


def banner(config: Config, mark: str) -> str:
    """The first lines of every generated file, each after `mark`."""
    sizes = ", ".join(f"{key}={value}" for key, value in asdict(config).items())
    cut = sizes.index(", act_words") + 2
    lines = (
        f"Seriatim {__version__}, a bit-serial accelerator for low-bit neural networks. Generated: do not edit.",
        "SPDX-License-Identifier: Apache-2.0",
        f"Instruction set version {isa.VERSION}; configuration {config.hash:#010x}:",
        f"  {sizes[:cut - 2]}",
        f"  {sizes[cut:]}",
    )
    return "".join(f"{mark}{line}\n" for line in lines)


def portable(text: str, name: str) -> str:
    """What yosys wrote, for any tool that reads SystemVerilog: `always_comb`, which simulators run at time 0 (`always @*` waits
    for a change there, and a signal whose inputs never change stays unknown) that assigns each signal once, no attributes, no
    wires of no bits, and module names that need no escape."""
    text = re.sub(r"^ *\(\*.*?\*\)\n", "", text, flags=re.M)
    trigger = r"\\\$auto\$verilog_backend\.cc:\d+:dump_module\$\d+ "
    text = re.sub(rf"^ *(reg {trigger} = 0;|if \({trigger}\) begin end)\n", "", text, flags=re.M)
    text = re.sub(r"^ *(wire|reg) \[-1:0\] .*;\n", "", text, flags=re.M)
    text = "".join(map(_assigned_once, re.split(r"^(?=module )", text, flags=re.M)))
    text = re.sub(rf"\\{name}((?:\.\w+)+) ", lambda match: name + match[1].replace(".", "_") + " ", text)
    return re.sub(rf"^module {name}\((.*?)\);", lambda match: _ports(name, match[1]), text, count=1, flags=re.M | re.S).lstrip()


_NAME = r"(?:\\\S+ |[A-Za-z_$][\w$]*)"


def _assigned_once(module: str) -> str:
    """`module` with a variable of its own in each combinational block, from which the block's signal is assigned at the end.

    yosys writes a default and then what overrides it. An event-driven simulator shows both to whoever reads the signal; where
    signals of several modules follow each other's other bits, that wakes them in turns for ever, and time stands still.
    """
    def once(match: re.Match) -> str:
        body = match[1]
        signal = re.search(rf"^ +({_NAME}) *(?:\[[^\]]*\] *)?= ", body, re.M)[1]
        if len(re.findall(rf"^ +{re.escape(signal)}(?![\w$])", body, re.M)) == 1:
            return f"  always_comb begin\n{body}  end\n"
        own = f"{signal.rstrip()}$comb" + " " * signal.endswith(" ")
        parts = sorted(set(re.findall(rf"^ +{re.escape(signal)} *((?:\[[^\]]*\])?) *= ", body, re.M)))
        parts = [""] if "" in parts else parts  # bits that the block leaves alone are another's
        body = re.sub(rf"(?<![\w$\\]){re.escape(signal)}(?![\w$])", lambda _: own, body)
        kind = re.search(rf"^  reg ((?:signed )?(?:\[\d+:0\] )?){re.escape(signal)}(?![\w$])", module, re.M)[1]
        ends = "".join(f"    {signal}{part} = {own}{part};\n" for part in parts)
        return f"  reg {kind}{own};\n  always_comb begin\n{body}{ends}  end\n"

    return re.sub(r"^  always @\* begin\n(.*?)^  end\n", once, module, flags=re.M | re.S)


def _ports(name: str, listed: str) -> str:
    """The head of the top module, one port a line, in the order of `PORT_GROUPS`."""
    ports = (port.strip() for port in listed.split(","))
    ranked = sorted(ports, key=lambda port: next(i for i, group in enumerate(PORT_GROUPS) if port.startswith(group)))
    return f"module {name}(\n  " + ",\n  ".join(ranked) + "\n);"


def waivers(config: Config, name: str = TOP) -> str:
    """Verilator's configuration file: what of -Wall the generated file breaks, and why."""
    lines = [banner(config, "// "), f"// What {name}.sv breaks of Verilator's -Wall, and why it may.", "`verilator_config"]
    for rule, reason in WAIVERS.items():
        lines += [f"// {reason}", f'lint_off -rule {rule} -file "*{name}.sv"']
    return "\n".join(lines) + "\n"


def c_header(config: Config) -> str:
    """`seriatim.h`: registers, causes, counters, instructions and the machine's sizes for C99 and C++."""
    out = [banner(config, "// ").replace("// ", "/* ", 1).replace("\n// ", "\n * ").rstrip() + " */",
           "#ifndef SERIATIM_H", "#define SERIATIM_H"]

    def define(comment: str, rows: dict[str, int], form: str = "{}"):
        out.extend(["", f"/* {comment} */"])
        width = max(map(len, rows)) + 1
        out.extend(f"#define SERIATIM_{key:{width}}{form.format(value)}" for key, value in rows.items())

    def enum(comment: str, kind, docs: dict | None = None):
        tag = kind.__name__.lower()
        out.extend(["", f"/* {comment} */", f"enum seriatim_{tag} {{"])
        for i, member in enumerate(kind):
            end = "," if i < len(kind) - 1 else ""
            doc = f" /* {docs[member]} */" if docs else ""
            out.append(f"    SERIATIM_{tag.upper()}_{member.name} = {int(member)}{end}{doc}")
        out.append("};")

    define("The machine that this header belongs to. A driver compares the first two with registers ID and CONFIG_HASH.", {
        "ID": csr.ID_VALUE, "CONFIG_HASH": config.hash}, "{:#010x}u")
    define("Sizes, as seriatim.config.Config has them, and the version that register ISA_VERSION shows.", {
        "ISA_VERSION": isa.VERSION, **{field.name.upper(): getattr(config, field.name) for field in fields(config)}}, "{}u")
    define("Bytes of a beat of the AXI4 port, of an activation word, of a wgt word, of a param word.", {
        "AXI_BYTES": config.axi_bytes, "WORD_BYTES": config.word_bytes, "WGT_WORD_BYTES": config.wgt_word_bytes,
        "PRM_WORD_BYTES": config.prm_word_bytes}, "{}u")
    plain = [r for r in csr.REGISTERS if r.addr < csr.COUNTERS_AT]
    out += ["", "/* Byte offsets of the 32-bit registers. */"]
    out += [f"#define SERIATIM_REG_{r.name:13} {r.addr:#05x}u /* {r.access}: {r.doc} */" for r in plain]
    out += [f"#define SERIATIM_REG_COUNTER_LO(counter) ({csr.COUNTERS_AT:#x}u + 8u * (unsigned)(counter))",
            f"#define SERIATIM_REG_COUNTER_HI(counter) ({csr.COUNTERS_AT + 4:#x}u + 8u * (unsigned)(counter))",
            f"#define SERIATIM_PROFILE_ENTRY(layer, counter) ((unsigned)(layer) * {csr.PROFILE_ROW}u + (unsigned)(counter))"]
    define("Bits of CTRL.", {f"CTRL_{bit.name}": int(bit) for bit in csr.Ctrl}, "{}u")
    define("Bits of STATUS.", {f"STATUS_{bit.name}": int(bit) for bit in csr.Status}, "{}u")
    enum("Why the machine stopped: register CAUSE.", csr.Cause, csr.CAUSE_DOC)
    enum("64-bit counters.", csr.Counter, csr.COUNTER_DOC)
    define("Instructions: bytes, opcodes, semaphores as bits of wait and signal.", {
        "INSTR_BYTES": isa.INSTR_BYTES, **{f"OPCODE_{instr.name}": instr.opcode for instr in isa.INSTRS},
        **{f"SEM_{sem.name}": int(sem) for sem in isa.Sem}}, "{}u")
    for instr in isa.INSTRS:
        rows = {}
        for field, at in instr.offsets():
            rows |= {f"{instr.name}_{field.name.upper()}_LSB": at, f"{instr.name}_{field.name.upper()}_BITS": field.bits}
        define(f"Fields of {instr.name}: lowest bit and width in the {isa.INSTR_BITS}-bit little-endian word.", rows, "{}u")
    out += ["", "#endif", ""]
    return "\n".join(out)


def integration(config: Config, name: str = TOP) -> str:
    """How to put the emitted accelerator into a system on chip, in Markdown."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .axi import BURST

    page = Environment(loader=PackageLoader("seriatim.hw", "."), undefined=StrictUndefined, keep_trailing_newline=True)
    return page.get_template("integration.md.j2").render(config=config, name=name, burst=BURST, id=csr.ID_VALUE, isa=isa, csr=csr)


def contents(config: Config, name: str = TOP) -> dict[str, str]:
    """The files of an emitted folder by name."""
    return {
        f"{name}.sv": verilog(config, name),
        f"{name}.vlt": waivers(config, name),
        "seriatim.h": c_header(config),
        "registers.md": csr.manual(),
        "isa.md": isa.manual(),
        "integration.md": integration(config, name),
    }


def main(args: argparse.Namespace) -> None:
    """`seriatim emit`: a folder of everything; the Verilog alone where `--out` ends in .v or .sv, or on standard output."""
    if not re.fullmatch(r"[A-Za-z_]\w*", args.name):
        raise ConfigError(f"--name {args.name!r}: a Verilog identifier (letters, digits, underscores; no digit first)")
    from seriatim.boards import catalogue

    config = catalogue.machine(args)
    if not args.out:
        sys.stdout.write(verilog(config, args.name))
    elif Path(args.out).suffix in (".v", ".sv"):
        print(files.write(args.out, verilog(config, args.name)))
    else:
        for file, text in contents(config, args.name).items():
            print(files.write(Path(args.out, file), text))
