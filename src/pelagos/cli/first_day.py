"""The page of `pelagos` alone: the verbs of a first day, and where the rest is."""

from rich.table import Table
from rich.text import Text

from pelagos import __version__
from pelagos.cli.common import console

VERBS = {
    "convert FILES DATASET": "make a dataset of your files; `generate` simulates one",
    "new pretrain": "write a job file that fits your data",
    "pretrain JOB.yaml": "train a model on datasets",
    "status RUN": "see how far a run is; `pelagos list` shows all",
    "evaluate RUN": "measure it on held-out data, with a report",
    "finetune JOB.yaml": "train it further on your task",
}


def show_first_day() -> None:
    """Print six verbs, an example of each kind, and how to see everything."""
    console.print(f"Pelagos {__version__} trains foundation models for PDEs and images.\n")
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for verb, purpose in VERBS.items():
        table.add_row(f"  pelagos {verb}", Text(purpose))
    console.print(table)
    console.print("\nTry them in ten minutes: docs/quickstart.md. All verbs: pelagos --help.")
