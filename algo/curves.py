"""What a training leaves for people to look at: its records as CSV, as curves, as TensorBoard events."""

import csv
import io
from pathlib import Path

from seriatim.errors import ConfigError
from seriatim.sim import files

PANELS = (
    ("loss", ("loss",), False),
    ("metric", ("train", "test"), False),
    ("temperature", ("tau",), True),
    ("not decided", ("undecided", "gap"), False),
)
"""Title, fields of the records, logarithmic."""


def table(history: list[dict]) -> str:
    """The records as CSV, a column for each field."""
    names = list(dict.fromkeys(name for record in history for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def draw(history: list[dict], path: Path, title: str = "") -> Path:
    """The records as curves over the epochs, in the format of `path`'s suffix (.svg, .png); atomic. A panel for each of PANELS
    that the records have something of."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(name in record for record in history for name in panel[1])]
    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axes, (name, fields, logarithmic) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for field in fields:
            points = [(record["epoch"], record[field]) for record in history if field in record]
            if points:
                axes.plot(*zip(*points), label=field, marker="." if len(points) < 30 else None)
        axes.set(title=name, xlabel="epoch", yscale="log" if logarithmic else "linear")
        axes.grid(alpha=0.3)
        if len(fields) > 1:
            axes.legend()
    figure.suptitle(title)
    with files.replacing(path) as temporary:
        dated = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(temporary, format=path.suffix.removeprefix("."), **dated)
    return path


class Board:
    """TensorBoard events of one training, in `folder`; records of epochs from `first` on replace earlier ones.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first: int = 1):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--tensorboard: the package tensorboard is not installed; pip install 'seriatim[tensorboard]', or leave the "
                "option out: the same values are in the CSV file"
            ) from error
        self.writer = SummaryWriter(str(folder), purge_step=first)

    def add(self, record: dict) -> None:
        for name, value in record.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, record["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
