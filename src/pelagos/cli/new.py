"""`pelagos new`: job files from a few questions, or from options alone."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelagos.cli import completion
from pelagos.cli.common import console, exit_on_error
from pelagos.infra.yaml_text import parse_yaml_value

if TYPE_CHECKING:
    from pelagos.jobs.new import Draft

app = typer.Typer(
    help="Write a commented job file that fits your data and this machine.", no_args_is_help=True
)

Name = Annotated[str | None, typer.Option("--name", help="Name of the run.", show_default=False)]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="A dataset; once for each.",
        show_default=False,
        autocompletion=completion.datasets,
    ),
]
Job = Annotated[
    list[str] | None,
    typer.Option("--job", help="A job file; once for each.", show_default=False),
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Optimizer steps.", show_default=False)
]
Output = Annotated[
    str | None, typer.Option("--output", "-o", help="Default: NAME.yaml.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace that file.")]


@app.command()
def pretrain(
    data: Data = None,
    name: Name = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Network; default: by the grid.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    steps: Steps = None,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a job that trains a network on datasets, from random weights.

    Example: pelagos new pretrain --data quickstart/data/ns-gauss.zarr --name first
    """
    with exit_on_error():
        data = (
            data or _asked("Datasets (paths or addresses, with spaces between)", "--data").split()
        )
        name = name or _asked("Name of the run", "--name", "first")
        from pelagos.jobs import new

        with _naming_convert(data):
            draft = new.pretrain(name, data, model, steps)
        _write(draft, name, output, overwrite, "pretrain")


@app.command()
def finetune(
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Weights: a run (RUN, DIR/RUN, RUN@best), a model directory or a file.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    name: Name = None,
    runs_dir: Annotated[
        str, typer.Option("--runs-dir", help="Directory of the run in --from.")
    ] = "runs",
    steps: Steps = None,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a job that trains existing weights further on your task.

    Example: pelagos new finetune --from first@best --data mine.zarr --name tuned
    """
    with exit_on_error():
        source = source or _asked("Weights (a run, a model directory or a file)", "--from")
        data = (
            data or _asked("Datasets (paths or addresses, with spaces between)", "--data").split()
        )
        name = name or _asked("Name of the run", "--name", "tuned")
        from pelagos.jobs import new

        with _naming_convert(data):
            draft = new.fine_tune(name, source, data, runs_dir, steps)
        _write(draft, name, output, overwrite, "finetune")


@app.command()
def sweep(
    job: Job = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", help="KEY=[VALUE, …]; default: three learning rates."),
    ] = None,
    name: Name = None,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a sweep that compares variants of training jobs.

    Example: pelagos new sweep --job first.yaml --grid "optimizer.lr=[1e-3, 3e-3]" --name rates
    """
    with exit_on_error():
        job = job or _asked("Job files (with spaces between)", "--job").split()
        name = name or _asked("Name of the sweep", "--name", "sweep")
        from pelagos.jobs import new

        draft = new.sweep(name, job, dict(_values(text) for text in grid or ()) or None)
        _write(draft, name, output, overwrite, "sweep")


@app.command()
def submit(
    job: Job = None,
    name: Name = None,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a file of runs for a cluster, in which each job comes after the one before.

    Example: pelagos new submit --job generate.yaml --job first.yaml --name chain
    """
    with exit_on_error():
        job = job or _asked("Job files in order (with spaces between)", "--job").split()
        name = name or _asked("Name of the file", "--name", "runs")
        from pelagos.jobs import new

        _write(new.submission(job), name, output, overwrite, "submit")


def _asked(question: str, option: str, default: str | None = None) -> str:
    """Ask on a terminal. Raises ValueError where there is none: it names the option instead."""
    if not _is_terminal():
        raise ValueError(f"{option} is missing, and there is no terminal to ask on")
    return str(typer.prompt(question, default=default))


@contextlib.contextmanager
def _naming_convert(uris: Sequence[str]) -> Iterator[None]:
    """Name `pelagos convert` where the data are files that are no dataset yet."""
    from pelagos.cli.data_to_convert import as_no_dataset_yet
    from pelagos.data_pipelines.store import DatasetError

    try:
        yield
    except DatasetError as error:
        for uri in uris:
            better = as_no_dataset_yet(uri, error)
            if better is not error:
                raise better from error
        raise


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _values(text: str) -> tuple[str, list[Any]]:
    key, separator, raw = text.partition("=")
    values = parse_yaml_value(raw) if separator else None
    if not key or not isinstance(values, list) or not values:
        raise ValueError(f"--grid {text}: expected KEY=[VALUE, …], e.g. optimizer.lr=[1e-3, 3e-3]")
    return key, values


def _write(draft: "Draft", name: str, output: str | None, overwrite: bool, verb: str) -> None:
    from pelagos.cli.schema import schemas
    from pelagos.jobs.new import write

    path = Path(output or f"{name}.yaml")
    write(draft, path, schemas()["job"], overwrite=overwrite)
    for finding in draft.findings:
        console.print(finding, highlight=False, soft_wrap=True)
    follow = f"pelagos {verb} {path}"
    more = "--cluster NAME; `pelagos clusters` lists them" if verb == "submit" else ""
    console.print(f"wrote {path}; run it with: {follow} {more}".rstrip(), soft_wrap=True)
