"""`pelagos tune-lr`: the peak learning rate of a job, from a short range test."""

from dataclasses import asdict
from typing import Annotated

import typer

from pelagos.cli.choices import JobRunsDir, with_choices
from pelagos.cli.common import AsJson, console, error_console, exit_on_error, print_json


def tune_lr_command(
    job_file: Annotated[str, typer.Argument(help="A pretrain job (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: dotted.key=value", show_default=False)
    ] = None,
    low: Annotated[float, typer.Option("--low", help="First rate.")] = 1e-6,
    high: Annotated[float, typer.Option("--high", help="Last rate.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", help="Steps from one to the other.")] = 100,
    runs_dir: JobRunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate: train for a moment while the rate rises, and see where the loss falls.

    Example: pelagos tune-lr configs/quickstart/pretrain.yaml --steps 200
    """
    from pelagos.cli.job_files import load_as
    from pelagos.platform.config import PretrainJob
    from pelagos.platform.config.locating import errors_of

    chosen = with_choices(overrides, runs_dir=runs_dir)
    with exit_on_error(), errors_of(job_file, chosen):
        job = load_as(PretrainJob, job_file, chosen)
        from pelagos.jobs import tune_lr

        result = tune_lr.run(job, low, high, steps, error_console if as_json else console)
    found = result.found
    if as_json:
        print_json({**asdict(found), "record": str(result.record), "picture": str(result.picture)})
        return
    exploded = f", explodes at {found.exploded:.2g}" if found.exploded else ""
    console.print(
        f"the loss falls fastest at {found.suggested:.2g}, is lowest at {found.lowest:.2g}{exploded}"
    )
    console.print(
        f"try optimizer.lr={found.suggested:.2g}; picture: {result.picture}", soft_wrap=True
    )
