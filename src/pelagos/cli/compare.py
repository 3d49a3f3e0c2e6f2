"""The verb `compare-strategies`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pelagos.cli.choices import note_old_spelling
from pelagos.cli.common import AsJson, console, exit_on_error, expanded_option, finish, print_json


def compare_strategies_command(
    job_file: Annotated[str, typer.Argument(help="A pretrain job (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: dotted.key=value", show_default=False)
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Comma-separated; the first is the reference.")
    ] = "ddp,fsdp,zero1,zero2,zero3",
    workers: Annotated[
        str, typer.Option("--workers", help="Numbers of workers, comma-separated.")
    ] = "2",
    num_workers: Annotated[str | None, typer.Option("--num-workers", hidden=True)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 30,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest relative difference of a step's loss.")
    ] = 1e-6,
    output: Annotated[
        str, typer.Option(help="Directory for table, plots, runs.", callback=expanded_option)
    ] = "comparison",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that directory.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run one job under several strategies; show that they agree, and the cost of each.

    Example: pelagos compare-strategies job.yaml --strategies ddp,fsdp,zero3 --workers 2,4
    """
    from pelagos.cli.job_files import load_as
    from pelagos.jobs import compare_strategies as job_module
    from pelagos.platform.config import PretrainJob
    from pelagos.platform.config.locating import errors_of

    with exit_on_error(), errors_of(job_file, overrides):
        job = load_as(PretrainJob, job_file, overrides)
        if num_workers is not None:
            note_old_spelling(f"--num-workers {num_workers}", f"--workers {num_workers}")
            workers = num_workers
        counts = [_count(text) for text in workers.split(",")]
        layouts = job_module.layouts_of([s.strip() for s in strategies.split(",")], counts)
        with console.status("comparing") as status:
            comparison = job_module.run(
                job,
                layouts,
                Path(output),
                steps=steps,
                tolerance=tolerance,
                overwrite=overwrite,
                progress=lambda text: status.update(Text(text)),
            )
    if as_json:
        print_json(comparison.to_dict())
    else:
        _show(comparison, output)
    finish(not comparison.disagreements)


def _count(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"--workers: got {text!r}, expected numbers such as 2 or 2,4")
    return int(text)


def _show(comparison: object, output: str) -> None:
    from pelagos.jobs.measuring.strategy_table import Comparison, comparison_rows

    assert isinstance(comparison, Comparison)
    table = Table(
        "layout",
        "loss",
        "loss ±",
        "norm ±",
        "weight ±",
        "bits",
        "step s",
        "ratio",
        "GiB",
        title=f"±: relative difference to {comparison.results[0].name}, largest over all steps",
    )
    for row in comparison_rows(comparison):
        table.add_row(*row)
    console.print(table)
    for sentence in comparison.disagreements:
        console.print(Text(sentence, style="red"), soft_wrap=True)
    console.print(f"table, plots and runs: {output}", soft_wrap=True)
