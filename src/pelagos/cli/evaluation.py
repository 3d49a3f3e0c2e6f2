"""The verbs `evaluate`, of one run, and `compare`, of several side by side."""

from typing import Annotated

import typer

from pelagos.cli import completion
from pelagos.cli.choices import ClusterName, JobRunsDir, Workers, with_choices
from pelagos.cli.common import AsJson, console, exit_on_error, expanded_option, print_json

ReportPlace = Annotated[
    str | None,
    typer.Option(
        "--output",
        help="Directory of the report; default: the run's own.",
        callback=expanded_option,
        show_default=False,
    ),
]
GpusPerWorker = Annotated[
    int | None,
    typer.Option("--gpus-per-worker", help="0 or 1; the same as resources.gpus_per_worker=."),
]


def evaluate_command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="A run, RUN@best or RUN@STEP, or a job file; with --compare several runs; then "
            "overrides dotted.key=value.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Put several runs side by side in one report.")
    ] = False,
    runs_dir: JobRunsDir = None,
    cluster: ClusterName = None,
    output: ReportPlace = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run on held-out trajectories, next to persistence and the mean; write a report.

    Example: pelagos evaluate quickstart@best split=test --workers 4
    """
    names, overrides = _split(arguments, runs_dir, workers, output, gpus_per_worker)
    if compare:
        _compare(names, overrides, runs_dir, cluster, as_json)
        return
    with exit_on_error():
        if len(names) != 1:
            raise ValueError(
                f"evaluate takes one run, got {len(names)}: pelagos evaluate RUN [key=value …]; "
                "`pelagos compare RUN RUN` puts several side by side"
            )
        from pelagos.cli.job_files import evaluate_job

        job, run = evaluate_job(names[0], overrides, cluster)
        from pelagos.jobs import evaluate

        result = evaluate.run(job, None if as_json else console)
        run.send_back("evaluation")
        if as_json:
            names_of = {"run_name": result.run_name, "report": result.report}
            print_json({**names_of, **result.metrics})


def compare_command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="Runs, RUN@best or RUN@STEP, or evaluate job files; then overrides "
            "dotted.key=value.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    runs_dir: JobRunsDir = None,
    cluster: ClusterName = None,
    output: ReportPlace = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    as_json: AsJson = False,
) -> None:
    """Measure several runs on the same held-out trajectories; write one report.

    Example: pelagos compare finetuned scratch max_trajectories=64
    """
    names, overrides = _split(arguments, runs_dir, workers, output, gpus_per_worker)
    _compare(names, overrides, runs_dir, cluster, as_json)


def _split(
    arguments: list[str],
    runs_dir: str | None,
    workers: int | None,
    output: str | None,
    gpus_per_worker: int | None,
) -> tuple[list[str], list[str]]:
    """Return the runs, and the overrides with those that options stand for."""
    given = [a for a in arguments if "=" in a]
    overrides = with_choices(given, runs_dir=runs_dir, workers=workers, output=output)
    if gpus_per_worker is not None:
        overrides.append(f"resources.gpus_per_worker={gpus_per_worker}")
    return [a for a in arguments if "=" not in a], overrides


def _compare(
    names: list[str], overrides: list[str], runs_dir: str | None, cluster: str | None, as_json: bool
) -> None:
    from pelagos.cli.job_files import evaluate_job
    from pelagos.jobs.run_access.finding import RUNS_DIR
    from pelagos.jobs.run_access.local_run import LocalRun

    with exit_on_error():
        jobs = [evaluate_job(name, overrides, cluster) for name in names]
        from pelagos.jobs import compare_runs

        here = next((run for _, run in jobs if isinstance(run, LocalRun)), None)
        place = runs_dir or (RUNS_DIR if here is None else here.runs_dir)
        shown = None if as_json else console
        compared = compare_runs.run([job for job, _ in jobs], shown, place)
        if as_json:
            print_json({"report": compared.report, **compared.metrics})
