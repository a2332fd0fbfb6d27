"""Tables: the quantisers of one, trained side by side over seeds, resumable; what comes out as JSON, Markdown and a plot.

A table is a data file (TOML), packaged in `tables/` or a user's own:

    title = "..."
    net = "resnet20"
    dataset = "cifar-10"
    start = "cifar10-resnet20-start"      # recipe of the float nets, one for each seed, at which all rows start; without it the
                                          # low-bit ones start at the float row's
    float = "cifar10-resnet20-continued"  # of the float row
    recipe = "cifar10-resnet20-slb"       # of the low-bit nets, unless a row names its own
    seeds = [1]

    [[rows]]
    quant = "float"

    [[rows]]
    quant = "slb"
    w = 1
    a = 8
    [rows.published]                      # figures of others: written beside, never mixed with those measured
    "SLB, the paper" = 90.5

Each cell (row and seed) is a `seriatim train` of its own, in a process and a folder of its own.
"""

import json
import math
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from seriatim.algo import recipes, trained
from seriatim.algo.nets import NETS
from seriatim.errors import ConfigError, ToolError
from seriatim.sim import files

FOLDER = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Row:
    """One line of a table: quantiser and widths ("float" has none), its own recipe or None, published figures in the unit of the
    net's task."""

    quant: str
    w: int = 32
    a: int = 32
    recipe: str | None = None
    published: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.quant if self.quant == "float" else f"{self.quant}-w{self.w}a{self.a}"


class Start(Row):
    """The nets at which all rows of a table start: no row of it."""

    name = "start"


@dataclass(frozen=True)
class Table:
    """See the module. Raises ConfigError: no float row or two of them, two rows alike, unknown nets, recipes or quantisers."""

    name: str
    net: str
    dataset: str
    float: str
    recipe: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (1,)
    title: str = ""
    start: str | None = None

    def __post_init__(self):
        names = [row.name for row in self.rows]
        if names.count("float") != 1 or len(set(names)) < len(names):
            raise ConfigError(f"rows {', '.join(names)}: one float row, whose nets the others start at, and no row twice")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 1:
            raise ConfigError(f"seeds {list(self.seeds)}: at least one, all positive, none twice")
        if self.net not in NETS:
            raise ConfigError(f"net {self.net!r}: choose one of {', '.join(NETS)}")
        for row in (*self.begins, *self.rows):
            plan = recipes.load(self.recipe_of(row))
            if plan.net != self.net or plan.quantised == (row.quant == "float"):
                kind = "low-bit" if plan.quantised else "float"
                raise ConfigError(f"row {row.name}: recipe {plan.name} is for a {kind} {plan.net}; name another")
            if row.quant != "float":
                trained.check(self.net, row.quant, row.w, row.a)

    @property
    def begins(self) -> tuple[Start, ...]:
        """What is trained before the rows."""
        return (Start("float", recipe=self.start),) if self.start else ()

    def start_of(self, row: Row) -> str | None:
        """The name of the nets at which those of `row` start."""
        if self.start:
            return None if isinstance(row, Start) else Start.name
        return None if row.quant == "float" else "float"

    def recipe_of(self, row: Row) -> str:
        return row.recipe or (self.float if row.quant == "float" else self.recipe)


def packaged() -> list[Table]:
    """Every table that ships, by name."""
    return [_read(path) for path in sorted(FOLDER.glob("*.toml"))]


def load(name: str | Path) -> Table:
    """A packaged table by its name, or one of the user's by its file.

    Raises:
        ConfigError: no such table, unreadable, with unknown fields, or as `Table`.
    """
    having = ", ".join(path.stem for path in sorted(FOLDER.glob("*.toml")))
    return _read(recipes.find(FOLDER, name, "table", f"there are {having}"))


def _read(path: Path) -> Table:
    try:
        content = tomllib.loads(path.read_text())
        rows = tuple(_known(Row, row, "a row") for row in content.pop("rows"))
        if "seeds" in content:
            content["seeds"] = tuple(int(seed) for seed in content["seeds"])
        return _known(Table, {**content, "rows": rows, "name": path.stem}, "a table")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"table {path}: {error}; a table is a TOML file with net, dataset, float, recipe and [[rows]] of quant, w, a"
        ) from error


def _known(kind: type, content: dict, what: str):
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(content) - known):
        raise ValueError(f"unknown field {', '.join(unknown)} in {what}: there are {', '.join(sorted(known - {'name'}))}")
    return kind(**content)


@dataclass(frozen=True)
class Budget:
    """How the cells of a table are trained: what `seriatim train` takes.

    Args:
        epochs: of every net, or None for the recipes'.
        dataset, data: in place of the table's data set, and its folder.
        jobs: cells that run at a time. device, precision, compile, threads: of each.
    """

    epochs: int | None = None
    dataset: str | None = None
    data: Path | None = None
    jobs: int = 1
    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    threads: int | None = 1


@dataclass(frozen=True)
class Cell:
    """One net of a table: where its files lie, and the command that trains it."""

    row: Row
    seed: int
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / (f"{self.row.name}.pt" if self.row.quant == "float" else f"{self.row.name}.ckpt")

    @property
    def result(self) -> Path:
        return self.out.with_suffix(".json")

    def start(self, table: Table) -> Path | None:
        """The net that it starts at."""
        name = table.start_of(self.row)
        return self.folder / f"{name}.pt" if name else None

    def command(self, table: Table, budget: Budget) -> list[str]:
        row = self.row
        words = ["train", "--net", table.net, "--quant", row.quant, "--recipe", table.recipe_of(row), "--seed", str(self.seed)]
        if row.quant != "float":
            words += ["--w", str(row.w), "--a", str(row.a)]
        if self.start(table):
            words += ["--start", str(self.start(table))]
        words += ["--dataset", budget.dataset or table.dataset, "--device", budget.device, "--precision", budget.precision]
        for name in ("epochs", "data", "threads"):
            if getattr(budget, name) is not None:
                words += [f"--{name}", str(getattr(budget, name))]
        return words + ["--compile"] * budget.compile + ["--quiet", "--out", str(self.out)]


def run(table: Table, out: Path, budget: Budget, log=print) -> dict:
    """Train what is missing of `table` under `out`, and write it; returns its content (`summary`).

    A cell that is finished is skipped, one that was interrupted goes on from its state; an interrupt of this process ends the
    cells that run. The float net of a seed comes before the nets that start at it.

    Raises:
        ConfigError: `out` holds a table of other recipes, data or budget.
        ToolError: a cell failed; the others have been finished.
    """
    out.mkdir(parents=True, exist_ok=True)
    _own(table, out, budget)
    begins, cells = ([Cell(row, seed, out / f"seed{seed}") for row in rows for seed in table.seeds]
                     for rows in (table.begins, table.rows))
    waiting = [cell for cell in begins + cells if not cell.result.exists()]
    log(f"{table.name}: {len(begins + cells) - len(waiting)} of {len(begins + cells)} nets are trained")
    failed = _work(waiting, table, budget, log)
    content = summary(table, cells)
    files.write(out / "table.json", json.dumps(content, indent=1) + "\n")
    files.write(out / "table.md", markdown(content))
    if any("mean" in row for row in content["rows"]):
        plot(content, out / "table.svg")
    if failed:
        raise ToolError(
            f"{', '.join(failed)}: failed, their logs say why; the rest is in {out / 'table.md'}. Repeat the command to try again"
        )
    return content


def _own(table: Table, out: Path, budget: Budget) -> None:
    """Make `out` this table's, or see that it is."""
    path = out / "settings.json"
    wanted = {"net": table.net, "dataset": budget.dataset or table.dataset}
    wanted |= {"epochs": budget.epochs, "precision": budget.precision}
    names = {table.recipe_of(row) for row in (*table.begins, *table.rows)}
    wanted |= {name: repr(recipes.load(name).stages) for name in sorted(names)}
    found = json.loads(path.read_text()) if path.exists() else {}
    differing = sorted(k for k in wanted if k in found and wanted[k] != found[k])
    if differing:
        raise ConfigError(
            f"{out} holds a table with another {', '.join(differing)}: name another folder by --out, or delete that one"
        )
    files.write(path, json.dumps(found | wanted, indent=1) + "\n")


def _work(waiting: list[Cell], table: Table, budget: Budget, log) -> list[str]:
    """Run these cells, `budget.jobs` at a time; the names of those that failed."""
    running: list[tuple[Cell, subprocess.Popen]] = []
    failed: list[Cell] = []
    try:
        while waiting or running:
            ready = [cell for cell in waiting if not cell.start(table) or cell.start(table).with_suffix(".json").exists()]
            for cell in ready[: budget.jobs - len(running)]:
                waiting = [other for other in waiting if other is not cell]
                log(f"{cell.out}: begins")
                running.append((cell, _begin(cell, table, budget)))
            if not running:
                failed += waiting  # the float nets that they were to start at have failed
                break
            time.sleep(0.05)
            for cell, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((cell, process))
                if process.returncode:
                    failed.append(cell)
                    log(f"{cell.out}: failed with status {process.returncode}, see {cell.out.with_suffix('.log')}")
                else:
                    found = json.loads(cell.result.read_text())
                    task = NETS[table.net].task
                    log(f"{cell.out}: {task.metric} {task.text(found['accuracy'])} on {found['test_images']} held-out images")
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()
    return [str(cell.out) for cell in failed]


def _begin(cell: Cell, table: Table, budget: Budget) -> subprocess.Popen:
    cell.folder.mkdir(parents=True, exist_ok=True)
    with open(cell.out.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "seriatim.cli", *cell.command(table, budget)], stdout=log, stderr=log, env=dict(os.environ)
        )


def summary(table: Table, cells: list[Cell]) -> dict:
    """What has been measured so far: for each row the accuracies (or another metric of the net's task) by seed, mean, sample
    deviation, the mean gap to the float nets of the same seeds and the mean quantisation gap of the last epoch; published figures
    apart."""
    found: dict[str, dict[int, dict]] = {row.name: {} for row in table.rows}
    for cell in cells:
        if cell.result.exists():
            found[cell.row.name][cell.seed] = json.loads(cell.result.read_text())
    rows = []
    for row in table.rows:
        own = found[row.name]
        entry = {"name": row.name, "quant": row.quant, "w": row.w, "a": row.a, "recipe": table.recipe_of(row), "n": len(own)}
        entry["accuracy"] = {str(seed): result["accuracy"] for seed, result in own.items()}
        if own:
            entry["mean"], entry["deviation"] = _mean_deviation([result["accuracy"] for result in own.values()])
            entry["test_images"] = next(iter(own.values()))["test_images"]
            shared = [own[seed]["accuracy"] - found["float"][seed]["accuracy"] for seed in own if seed in found["float"]]
            if row.quant != "float" and shared:
                entry["to_float"] = _mean_deviation(shared)[0]
            gaps = [result["last"]["gap"] for result in own.values() if "gap" in result["last"]]
            if gaps:
                entry["gap"], entry["gaps"] = _mean_deviation(gaps)[0], gaps
        rows.append(entry | {"published": row.published})
    task = NETS[table.net].task
    return {"table": table.name, "title": table.title, "net": table.net, "metric": task.metric, "unit": task.unit,
            "units": task.units, "seeds": list(table.seeds), "rows": rows}  # fmt: skip


def _mean_deviation(values: list[float]) -> tuple[float, float | None]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def markdown(content: dict) -> str:
    """The table as text: what was measured, and apart from it what others published."""

    def shown(row, name, form="{:.2f}"):
        return form.format(content["units"] * row[name]) if row.get(name) is not None else "-"

    metric = f"{content['metric']} {content['unit']}"
    lines = [f"# {content['title'] or content['table']}", ""]
    lines += ["Measured here on held-out images, low-bit nets as integer networks:", ""]
    lines += [f"| quantiser | W/A | {metric} | deviation | nets | to float | quantisation gap, last epoch |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in content["rows"]:
        widths = "float" if row["quant"] == "float" else f"{row['w']}/{row['a']}"
        lines.append(
            f"| {row['quant']} | {widths} | {shown(row, 'mean')} | {shown(row, 'deviation')} | {row['n']} | "
            f"{shown(row, 'to_float', '{:+.2f}')} | {shown(row, 'gap', '{:+.2f}')} |"
        )
    published = [(row, source, value) for row in content["rows"] for source, value in row["published"].items()]
    if published:
        lines += ["", "Published by others, on other data, budgets or nets where their source says so:", ""]
        lines += [f"| quantiser | W/A | source | {metric} |", "|---|---|---|---|"]
        lines += [f"| {row['quant']} | {row['w']}/{row['a']} | {source} | {value} |" for row, source, value in published]
    return "\n".join(lines) + "\n"


def plot(content: dict, path: Path) -> Path:
    """Every net as a point, the mean of each row as a bar, in the format of `path`'s suffix."""
    from matplotlib.figure import Figure

    rows = [row for row in content["rows"] if "mean" in row]
    figure = Figure(figsize=(1.2 + 0.9 * len(rows), 3.5), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        values = [content["units"] * value for value in row["accuracy"].values()]
        axes.plot([place] * len(values), values, "o", alpha=0.5, color="C0")
        axes.plot([place - 0.3, place + 0.3], [content["units"] * row["mean"]] * 2, color="C1")
    axes.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=30, ha="right")
    axes.set(ylabel=f"held-out {content['metric']}, {content['unit']}", title=content["title"] or content["table"])
    axes.grid(alpha=0.3, axis="y")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))
    return path


def main(args) -> int:
    """`seriatim compare`: a whole table, resumable."""
    if args.list:
        for table in packaged():
            print(f"{table.name}: {table.title} ({len(table.rows)} rows, seeds {', '.join(map(str, table.seeds))})")
        return 0
    table = load(args.table)
    if args.seeds:
        table = replace(table, seeds=tuple(range(1, args.seeds + 1)))
    budget = Budget(
        args.epochs, args.dataset, args.data and Path(args.data), args.jobs, args.device, args.precision, args.compile,
        args.threads or max(1, (os.cpu_count() or 1) // args.jobs),
    )  # fmt: skip
    out = Path(args.out or f"build/compare/{table.name}")
    content = run(table, out, budget)
    print((out / "table.md").read_text())
    print(f"{out / 'table.json'}, {out / 'table.md'}, {out / 'table.svg'}: {sum(row['n'] for row in content['rows'])} nets")
    return 0
