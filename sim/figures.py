"""Measured figures as they are kept: a history of runs, a recorded reference to compare with, tables.

`Measured` is {measurement: {figure: number}}. The history has a line of JSON for each run; the reference, which is committed, has
for each measurement its figures and where they come from.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from seriatim.errors import DataError
from seriatim.sim import files

Measured = dict[str, dict[str, int | float]]


@dataclass(frozen=True)
class Row:
    """A figure beside the recorded one (None: there is none)."""

    measurement: str
    figure: str
    now: int | float
    before: int | float | None

    @property
    def change(self) -> float | None:
        """Relative change since the record; None where there is nothing to relate it to."""
        if self.before is None or (self.before == 0 and self.now):
            return None
        return (self.now - self.before) / self.before if self.before else 0.0


def origin() -> dict:
    """Where and when figures are measured: date (UTC), commit, cores that this process may use, CPU."""
    return {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "commit": _commit(),
            "cores": len(os.sched_getaffinity(0)), "cpu": _cpu(), "python": platform.python_version()}


def _commit() -> str:
    def git(*args) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-modified" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def append(path: Path, measured: Measured, where: dict, interrupted: bool = False) -> None:
    """Adds a run to the history: the whole line, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(where | {"interrupted": interrupted, "measured": measured}) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path) -> dict[str, dict]:
    """The reference: {measurement: origin and figures}; empty where there is none. Raises DataError where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; restore it, or delete it and record anew") from error


def record(path: Path, measured: Measured, where: dict) -> None:
    """Makes what was measured the reference; other measurements stay. Raises DataError where the folder is not there."""
    known = load(path) | {name: where | {"figures": figures} for name, figures in measured.items()}
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such folder; run `seriatim bench --record` in the root of the source tree")
    files.write(path, json.dumps(known, indent=1, sort_keys=True) + "\n")


def compare(measured: Measured, reference: dict[str, dict]) -> list[Row]:
    return [Row(name, figure, now, reference.get(name, {}).get("figures", {}).get(figure))
            for name, figures in measured.items() for figure, now in figures.items()]


def number(value: int | float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(change: float | None) -> str:
    return "" if change is None else "=" if change == 0 else f"{change:+.1%}"


def show(rows: list[Row], reference: dict[str, dict], console: Console | None = None) -> None:
    """Prints the figures beside the recorded ones."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("measurement", "figure"):
        table.add_column(column)
    for column in ("now", "recorded", "change"):
        table.add_column(column, justify="right")
    last = None
    for row in rows:
        table.add_row(row.measurement if row.measurement != last else "", row.figure, number(row.now), number(row.before),
                      percent(row.change))
        last = row.measurement
    console = console or Console(width=None if sys.stdout.isatty() else 160)  # a pipe or file gets whole columns
    console.print(table)
    for name in dict.fromkeys(row.measurement for row in rows):
        if name in reference:
            console.print(f"{name}: recorded {describe(reference[name])}", highlight=False)


def describe(where: dict) -> str:
    return f"{where['date'][:10]} at {where['commit']} on {where['cores']} cores of {where['cpu']}"


def markdown(rows: list[Row], where: dict) -> str:
    """The figures as a table in Markdown."""
    lines = [f"Measured {describe(where)}.", "", "| measurement | figure | now | recorded | change |", "|---|---|---:|---:|---:|"]
    lines += [f"| {row.measurement} | {row.figure} | {number(row.now)} | {number(row.before)} | {percent(row.change)} |"
              for row in rows]
    return "\n".join(lines) + "\n"
