"""The report of a run as one HTML page: no network, no other file, light and dark. The template is `report.html.j2`."""

from dataclasses import dataclass
from pathlib import Path

import jinja2

from seriatim.sim import files
from seriatim.sim import report as reports

COLOURS = 6
"""Events of energy with a colour of their own."""
STALL_TEXT = {
    "act": "waiting for activations", "wgt": "waiting for weights", "param": "waiting for params",
    "res": "waiting for the residual", "drain": "accumulators draining", "store": "no room in the out buffer, last stores",
    "fetch": "no instruction, or starting one",
}


@dataclass(frozen=True)
class Step:
    """One step of the waterfall: `cycles` between `before` and `after`, which are shares of all cycles."""

    label: str
    kind: str
    cycles: float
    before: float
    after: float


def waterfall(report: dict) -> list[Step]:
    """From every cycle of the run down to those that a full array would need: each stall, pooling, padding; the useful rest.

    `pool`: busy cycles of layers without multiplications. `padding`: busy cycles beyond the useful ones, in which lanes, columns
    or rows work on padding. Empty where the level knows no cycles.
    """
    total = report["totals"]
    cycles = total["cycles"]
    if not cycles:
        return []
    useful = sum(layer["useful_cycles"] for layer in report["layers"])
    busy = cycles - sum(total["stalls"].values())
    pool = sum(_busy(layer) for layer in report["layers"] if not layer["macs"])
    losses = [(f"{name}: {STALL_TEXT[name]}", "stall", lost) for name, lost in total["stalls"].items()]
    losses += [("pooling: no multiplications", "pool", pool), ("padding: lanes, columns, rows without data", "pad",
                                                               busy - pool - useful)]
    steps, left = [Step("every cycle", "all", cycles, 1.0, 0.0)], cycles
    for label, kind, lost in losses:
        if not lost:
            continue
        steps.append(Step(label, kind, lost, left / cycles, (left - lost) / cycles))
        left -= lost
    return [*steps, Step("useful multiply-accumulates", "useful", left, left / cycles, 0.0)]


def _busy(layer: dict) -> int:
    return layer["cycles"] - sum(layer["stalls"].values())


def parts(layer: dict) -> dict[str, float]:
    """A layer's cycles by kind, as in the waterfall."""
    useful = layer["useful_cycles"]
    idle = _busy(layer) - useful
    return {"useful": useful, "pad": idle if layer["macs"] else 0, "pool": 0 if layer["macs"] else idle,
            "stall": sum(layer["stalls"].values())}


def energy_shares(report: dict) -> list[tuple[str, float]]:
    """(event, microjoules) from the greatest down; those below 1 % of the whole together as "other"."""
    table = report["totals"]["energy_uj"]
    rows = sorted(((name, row["uj"]) for name, row in table["events"].items()), key=lambda row: -row[1])
    shown = [(name, uj) for name, uj in rows if uj >= table["total"] / 100 and uj][:COLOURS]
    other = table["total"] - sum(uj for _, uj in shown)
    return [*shown, ("other", other)]


def si(value: float, unit: str = "") -> str:
    """`value` to three digits with a prefix: 3669338 is "3.67 M", 2e-05 J "20 µJ"."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"0 {unit}".rstrip()


def percent(share: float | None, digits: int = 1) -> str:
    return "unknown" if share is None else f"{share:.{digits}%}"


def render(report: dict) -> str:
    """The page of a report, as `sim.driver` builds them. Every string in it is escaped."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"si": si, "percent": percent, "here": reports.here, "measured": reports.measured}
    return environment.get_template("report.html.j2").render(
        report=report, total=report["totals"], layers=report["layers"], config=report["config"], accuracy=report["accuracy"],
        wrong=[layer["name"] for layer in report["layers"] if not layer["bit_exact"]],
        steps=waterfall(report), parts=[parts(layer) for layer in report["layers"]],
        most_cycles=max((layer["cycles"] for layer in report["layers"]), default=0),
        scale_cycles=max((max(layer["cycles"], layer["predicted_cycles"]) for layer in report["layers"]), default=0),
        energy=report["totals"]["energy_uj"], shares=energy_shares(report),
        most_energy=max((sum(layer["energy_uj"].values()) for layer in report["layers"]), default=0),
        most_bytes=max((layer["bytes"] for layer in report["layers"]), default=0),
        longest_name=max((len(layer["name"]) for layer in report["layers"]), default=0),
        stalls=[name for name, cycles in report["totals"]["stalls"].items() if cycles],
    )


def write(report: dict, path: Path) -> Path:
    """Writes the page to `path`, whole or not at all."""
    return files.write(path, render(report))
