"""PyVerilator on today's Verilator: any signal of the generated Verilog by name, interactively (docs/pyverilator.md).

The installed package was written for Verilator 3 and 4. `Signals` changes what it passes to Verilator, and what it reads and
writes between Verilator and make; nothing of the package is copied. Public signals cost a factor of six in speed: for running
whole networks there is `sim.verilated`.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path
from unittest import mock

from seriatim.sim.build import cached, compiler, run, verilator_root

try:
    import tclwrapper  # noqa: F401  (PyVerilator imports it for GTKWave; it does not load on Python 3.11)
except (ImportError, AttributeError):
    sys.modules["tclwrapper"] = types.ModuleType("tclwrapper")

from pyverilator import PyVerilator, pyverilator  # noqa: E402  (after the stub)

_PORT = re.compile(r"^(\s*(VL_(?:IN|OUT)\w*)\()&(\w+)(,\d+,\d+(?:,\d+)?\));", re.M)
_SIGNAL = re.compile(r"^\s*(?:[CSIQ]Data|VlWide<\d+>)/\*(\d+):0\*/ (\w+__DOT__\w+);", re.M)


class Signals(PyVerilator):
    """A Verilated module whose every scalar signal can be read: `io.NAME`, `internals.SUBMODULE.NAME`, `find(TEXT)`."""

    @classmethod
    def of(cls, verilog: str, top: str = "seriatim_top") -> "Signals":
        """Module `top` of `verilog`, Verilated with all signals public (cached as sim.build does) and loaded."""
        key = [verilog, top, version("verilator"), version("pyverilator"), compiler(), Path(__file__).read_text()]
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:24]

        def make(folder: Path) -> None:
            (folder / f"{top}.v").write_text(verilog)
            environment = {"PATH": f"{verilator_root() / 'bin'}{os.pathsep}{os.environ['PATH']}", "CXX": compiler(),
                           "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include"}
            def verilate(arguments: list[str], quiet: bool = False) -> None:
                flags = {"-fPIC -shared --std=c++11 -DVL_USER_FINISH": "-fPIC -fno-gnu-unique -std=c++20 -DVL_USER_FINISH -w"}
                run([*(flags.get(a, a) for a in arguments), "--public-flat-rw", "--flatten", "--output-split", "0", "--no-timing",
                      "--top-module", top, "-Wno-lint", "-Wno-style"], "Verilator")
                _mend_header(folder, top)

            with mock.patch.dict(os.environ, environment), mock.patch.object(pyverilator, "call_process", verilate):
                os.environ.pop("VERILATOR_ROOT", None)
                cls.build(str(folder / f"{top}.v"), build_dir=str(folder), gen_only=True)
                _mend_wrapper(folder / "pyverilator_wrapper.cpp", top)
                run(["make", "-C", str(folder), "-f", f"V{top}.mk", "LDFLAGS=-fPIC -shared", f"CXX={compiler()}",
                      f"LINK={compiler()}", f"PYTHON3={sys.executable}"], "make")
            for path in folder.iterdir():
                if path.name not in (f"V{top}", f"{top}.v"):
                    path.unlink()

        folder = cached("pyverilator", name, make, f"the signals of {top} for PyVerilator")
        # PyVerilator keeps its models in the library's statics, where a deleted one would still be traced: a library for each.
        with tempfile.TemporaryDirectory() as private:
            return cls(shutil.copy(folder / f"V{top}", private))

    def tick(self, cycles: int = 1) -> None:
        """Clock cycles: falling edge, rising edge."""
        for _ in range(cycles):
            self.clock.tick()

    def find(self, text: str) -> dict[str, int]:
        """Dotted name -> present value of each signal whose name contains `text`."""
        return {name: int(signal.value) for path, signal in self.all_signals.items() if text in (name := ".".join(path))}


def _mend_header(folder: Path, top: str) -> None:
    """Ports are references and internals live in another class now: spells both the way PyVerilator's parser reads them."""
    header = folder / f"V{top}.h"
    root = (folder / f"V{top}___024root.h").read_text()
    text = header.read_text()
    lines = [f"// {macro}({name}{rest};" for _, macro, name, rest in _PORT.findall(text)]
    lines += [f"// VL_SIG({name},{high},0);" for high, name in _SIGNAL.findall(root)
              if name.startswith(f"{top}__DOT__") and "____V" not in name and "__BRA__" not in name]
    header.write_text(_PORT.sub(r"\1&\3\4 ;", text) + "\n".join(lines) + "\n")


def _mend_wrapper(path: Path, top: str) -> None:
    """What the generated wrapper calls has other names now."""
    text = path.read_text().replace("Verilated::flushCall()", "Verilated::runFlushCallbacks()")
    text = text.replace(f'#include "V{top}.h"', f'#include "V{top}.h"\n#include "V{top}___024root.h"')
    path.write_text(text.replace(f"top->{top}__DOT__", f"top->rootp->{top}__DOT__"))
