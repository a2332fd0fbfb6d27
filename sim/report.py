"""The report of a run: `report.json` for programs, a table for people."""

import json
import sys
from pathlib import Path

import numpy as np

from seriatim.compiler.engines import NAMES
from seriatim.compiler.program import LayerInfo
from seriatim.config import Config
from seriatim.csr import STALLS, Counter
from seriatim.errors import DataError
from seriatim.isa import Engine
from seriatim.sim import energy, files
from seriatim.sim.executor import Run
from seriatim.sim.session import cycles

SPEEDUPS = ("speedup_vs_w8a8", "speedup_vs_bit_serial")
"""What a network is compared with, as keys of a report's totals."""
EQUAL_AREA = {1: 3.6, 2: 1.8, 4: 0.9, 8: 0.45}
"""Bits of a weight -> throughput of the bit-serial array at 8-bit activations, as a multiple of that of an int8
multiply-accumulate array of equal area: estimated from both arrays synthesised in Nangate45, before layout."""

LANE_AREA = {4: (5.9, 2.1), 8: (1.5, 0.52)}
"""Bits of weights and activations -> (LUTs of an ECP5, gates) of a shift-add lane for base 2 and codes of 4 bits, as multiples of
those of the bit-serial lanes that multiply such numbers as fast, accumulators and drain registers included: `seriatim bench
lanes`."""


def liveness(codes: np.ndarray, lo: int, hi: int) -> dict:
    """How alive a layer's data is: distinct codes, and the share of codes at a limit that clips (0 is the floor of ReLU, not a
    clipped value)."""
    limits = [limit for limit in (lo, hi) if limit]
    saturated = float(np.isin(codes, limits).mean()) if codes.size else 0.0
    return {"distinct_codes": int(np.unique(codes).size), "saturated": round(saturated, 4)}


def layer_row(layer: LayerInfo, config: Config, counts: dict, live: dict, bit_exact: bool,
              equal_to_float: float) -> dict:
    """One layer of the report. Its `macs` are the PyTorch layer's multiply-accumulates, each worth w x a binary ones; bytes are
    what crossed the AXI bus while the layer ran; `predicted_cycles` are those of the compiler's model; `engine` is what ran it,
    `engine_reason` says why, `useful_cycles` are those that its useful work would take at that engine's peak; `energy_uj` is by
    event; `equal_to_float` is the share of codes that the trained float64 graph has too.
    """
    spent, useful = cycles(counts), useful_cycles(layer, config)
    return {
        "name": layer.name, "shape": list(layer.shape), "w": layer.w, "a": layer.a, "macs": layer.macs, "cycles": spent,
        "predicted_cycles": layer.cycles,
        "engine": layer.engine, "engine_reason": layer.reason, "useful_cycles": round(useful, 3),
        "utilisation": round(useful / spent, 4) if spent else 0.0,
        "stalls": {stall: counts[counter] for stall, counter in STALLS.items()},
        "bytes": (counts[Counter.READ_BEATS] + counts[Counter.WRITE_BEATS]) * config.axi_bytes,
        "energy_uj": energy.by_event(config, counts), **live, "equal_to_float": round(equal_to_float, 6), "bit_exact": bit_exact,
    }


def useful_cycles(layer: LayerInfo, config: Config) -> float:
    """Cycles for the PyTorch layer's multiply-accumulates at the peak of the engine that runs it: of the bit-serial engine w x a
    binary ones each."""
    if layer.engine == NAMES[Engine.SHIFT_ADD]:
        return layer.macs / config.shift_peak
    return layer.macs * layer.w * layer.a / config.peak


def counters(runs: list[Run]) -> dict[Counter, int]:
    """The counters of all programs that ran."""
    return {c: sum(run.counts.total[c] for run in runs) for c in Counter}


def totals(config: Config, runs: list[Run], layers: list[dict], images: int, clock_mhz: float,
           speedups: dict[str, dict], complete: bool = True) -> dict:
    """Sums over the programs that ran. `host_bytes`: what the host handed over for the images (weights and programs stay in
    memory). `latency_ms`: of all images together, on the accelerator at `clock_mhz`; `energy_uj`, `complete`: see
    `energy.table`; `speedups`: see `baseline`."""
    counts = counters(runs)
    macs, spent = sum(layer["macs"] * layer["w"] * layer["a"] for layer in layers), cycles(counts)
    seconds = spent / (clock_mhz * 1e6)
    return {
        "cycles": spent, "predicted_cycles": sum(run.compiled.cycles for run in runs),
        "binary_macs": macs, "peak_binary_macs_per_cycle": config.peak,
        "utilisation": round(sum(layer["useful_cycles"] for layer in layers) / spent, 4) if spent else 0.0,
        "clock_mhz": clock_mhz, "latency_ms": round(1e3 * seconds, 4),
        "images_per_second": round(images / seconds, 2) if spent else None,
        "stalls": {stall: counts[counter] for stall, counter in STALLS.items()},
        "dram_bytes": (counts[Counter.READ_BEATS] + counts[Counter.WRITE_BEATS]) * config.axi_bytes,
        "host_bytes": sum(run.host_bytes for run in runs),
        "energy_uj": energy.table(config, counts, complete), **{name: speedups.get(name) for name in SPEEDUPS},
    }


def write(report: dict, folder: Path) -> Path:
    """Writes `report.json` into `folder`, whole or not at all."""
    return files.write(folder / "report.json", json.dumps(report, indent=1) + "\n")


def load(path: str | Path) -> dict:
    """The report at `path`, a file or the folder of a run. Raises DataError where there is none."""
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a report ({error}); `make sim` writes one") from None


def show(report: dict) -> None:
    """Prints the report as a table."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    config, total = report["config"], report["totals"]
    console = Console(width=None if sys.stdout.isatty() else 240)  # a pipe or file gets whole columns
    stalls = [stall for stall in STALLS if total["stalls"][stall]]
    title = (f"{report['net']} W{report['w']}A{report['a']} ({report['quant']}), {report['images']} image(s) on the "
             f"{config['m']}x{config['n']}x{config['k']} array ({report['level']})")
    table = Table(box=SIMPLE, title=title, title_justify="left")
    for column in ("layer", "output", "W", "A", "MMAC", "cycles", "predicted", "util."):
        table.add_column(column, justify="left" if column in ("layer", "output") else "right")
    for stall in stalls:
        table.add_column(stall, justify="right")
    for column in ("KiB", "µJ", "codes", "sat.", "= float", "exact"):
        table.add_column(column, justify="right")
    for layer in report["layers"]:
        table.add_row(
            layer["name"], "x".join(map(str, layer["shape"])), str(layer["w"]), str(layer["a"]), f"{layer['macs'] / 1e6:.1f}",
            f"{layer['cycles']:,}", f"{layer['predicted_cycles']:,}", f"{layer['utilisation']:.1%}",
            *(f"{layer['stalls'][s]:,}" for s in stalls),
            f"{layer['bytes'] / 1024:.0f}", f"{sum(layer['energy_uj'].values()):.1f}",
            str(layer["distinct_codes"]), f"{layer['saturated']:.1%}", f"{layer['equal_to_float']:.2%}",
            "yes" if layer["bit_exact"] else "NO", style=None if layer["bit_exact"] else "bold red")
    table.add_section()
    table.add_row("total", "", "", "", f"{sum(layer['macs'] for layer in report['layers']) / 1e6:.1f}", f"{total['cycles']:,}",
                  f"{total['predicted_cycles']:,}", f"{total['utilisation']:.1%}",
                  *(f"{total['stalls'][s]:,}" for s in stalls),
                  f"{total['dram_bytes'] / 1024:.0f}", f"{total['energy_uj']['total']:.1f}",
                  "", "", "", "yes" if report["bit_exact"] else "NO")
    console.print(table)
    accuracy = report["accuracy"]
    print(f"bit-exact: {'every element of every layer equals PyTorch' if report['bit_exact'] else 'NO'}")
    if accuracy["rtl_images"]:
        print(f"{accuracy['metric']}: {here(accuracy)} here; held out {measured(accuracy, 'held_out')} of "
              f"{accuracy['held_out_images']:,} images (float net {measured(accuracy, 'float_held_out')})")
    for row in report["cpu_fallback"]:
        print(f"on the CPU: {row['name']} ({row['op']}): {row['reason']}")
    if not report["cpu_fallback"]:
        print("on the CPU: nothing")
    for layer in report["layers"]:
        if layer["engine"] == NAMES[Engine.SHIFT_ADD]:
            print(f"on the shift-add engine: {layer['name']}: {layer['engine_reason']}")
    _figures(report)
    print(f"memory on chip {config['on_chip_bytes'] / 1024:.0f} KiB; AXI {config['axi_bits']} bits, "
          f"{config['latency']} cycles to the first data; "
          f"{report['sim']['cycles_per_second']:,.0f} cycles/s simulated, {report['sim']['wall_s']:.1f} s")


def _figures(report: dict) -> None:
    """Prints latency, energy and speed-up."""
    total = report["totals"]
    if total["cycles"]:
        print(f"at {total['clock_mhz']} MHz: {total['latency_ms']:.2f} ms for {report['images']} image(s), "
              f"{total['images_per_second']:,.1f} images/s")
    energy_uj = total["energy_uj"]
    parts = ", ".join(f"{name} {row['uj']:.1f}" for name, row in energy_uj["events"].items() if round(row["uj"], 1))
    low, high = energy_uj["error"]
    print(f"energy: {energy_uj['total']:.0f} µJ ({low:.0f} to {high:.0f}) by published figures at 45 nm: {parts}")
    if not energy_uj["complete"]:
        print("  too low: this machine does not count all events")
    print(f"  counted by the simulation build alone: {', '.join(energy_uj['simulation_only'])}; power of an FPGA: not estimated")
    for speedup in (total[name] for name in SPEEDUPS if total[name]):
        print(f"against the same network at {speedup['twin']}, bit-serial, on this machine ({speedup['twin_cycles']:,} cycles, "
              f"{speedup['twin_energy_uj']:.0f} µJ; its weights: {speedup['twin_checkpoint']}): "
              f"{speedup['cycles']:.2f}x fewer cycles, {speedup['energy']:.2f}x less energy")
    print("against an int8 multiply-accumulate array of equal area, estimated before layout, bit-serial has "
          + ", ".join(f"{share}x the throughput at W{bits}" for bits, share in EQUAL_AREA.items())
          + ": it gains at 1 and 2 weight bits and loses at 8")
    if any(layer["engine"] == NAMES[Engine.SHIFT_ADD] for layer in report["layers"]):
        print("a shift-add lane for base 2 takes, after synthesis, "
              + ", ".join(f"{luts}x the LUTs and {gates}x the gates of bit-serial lanes that do {bits} by {bits} bits as fast"
                          for bits, (luts, gates) in LANE_AREA.items())
              + ": log codes save passes and reads, not area")


def measured(accuracy: dict, name: str) -> str:
    """A figure of a report's `accuracy` as text: a share of right answers in per cent, another metric in dB."""
    value = accuracy[name]
    if value is None:
        return "unknown"
    return f"{value:.2%}" if accuracy["metric"] == "accuracy" else f"{value:.2f} dB"


def here(accuracy: dict) -> str:
    """What the images of this run gave, as text."""
    number = accuracy["rtl_images"]
    if accuracy["metric"] == "accuracy":
        return f"{round(accuracy['rtl'] * number)} of {number} images"
    return f"{measured(accuracy, 'rtl')} over {number} images"


def main(args) -> None:
    """`seriatim report PATH [--html FILE]`."""
    report = load(args.path)
    show(report)
    if args.html:
        from seriatim.sim import html

        print(f"page: {html.write(report, Path(args.html))}")
