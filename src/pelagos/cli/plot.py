"""`pelagos plot`: learning curves in the terminal and as a picture."""

import itertools
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pelagos.cli import completion
from pelagos.cli.choices import ClusterName, SearchedDir
from pelagos.cli.common import AsJson, console, exit_on_error, print_json

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 16
SHORT = {
    "validation_loss": "validation",
    "lr": "rate",
    "gradient_norm": "gradient",
    "samples_per_second": "samples/s",
}


def plot_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Runs.", show_default=False, autocompletion=completion.runs),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file.")] = Path("curves.png"),
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    as_json: AsJson = False,
) -> None:
    """Draw the learning curves of runs: losses, rate, gradient norm, throughput, each dataset.

    Example: pelagos plot quickstart --runs-dir quickstart/runs -o curves.png
    """
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        directories = {name: find(name, runs_dir, cluster).directory() for name in runs}
        from pelagos.jobs import plot_runs

        found = plot_runs.run(directories, output)
    if as_json:
        print_json({name: {k: list(c) for k, c in found[name].items()} for name in found})
        return
    table = Table("run", "value", "first", "lowest", "last", "course")
    for column in table.columns:
        column.no_wrap = column.header != "run"  # names fold, as they must stay whole
    table.columns[0].overflow = "fold"
    for name, curves in found.items():
        for key, (_, values) in curves.items():
            numbers = [f"{n:.3g}" for n in (values[0], min(values), values[-1])]
            table.add_row(Text(name), SHORT.get(key, key), *numbers, bars(values))
    console.print(table)
    console.print(f"wrote {output}", soft_wrap=True)


def bars(values: "list[float]", width: int = WIDTH) -> str:
    """Return a curve as a line of bars, the lowest value as the lowest bar.

    >>> bars([1.0, 0.5, 0.25, 0.0])
    '█▄▂▁'
    """
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[int((mean - low) * scale)] for mean in means)
