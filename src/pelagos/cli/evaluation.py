"""The verb `evaluate`, for one run or several side by side."""

from typing import Annotated

import typer

from pelagos.cli import completion
from pelagos.cli.choices import ClusterName, JobRunsDir, Workers, with_choices
from pelagos.cli.common import AsJson, console, exit_on_error, expanded_option, print_json


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
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="Directory of the report; default: the run's own.",
            callback=expanded_option,
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    gpus_per_worker: Annotated[
        int | None,
        typer.Option("--gpus-per-worker", help="0 or 1; the same as resources.gpus_per_worker=."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run on held-out trajectories, next to persistence and the mean; write a report.

    Example: pelagos evaluate quickstart@best split=test --workers 4
    """
    from pelagos.cli.job_files import evaluate_job
    from pelagos.jobs.run_access.finding import RUNS_DIR
    from pelagos.jobs.run_access.local_run import LocalRun

    names = [a for a in arguments if "=" not in a]
    given = [a for a in arguments if "=" in a]
    overrides = with_choices(given, runs_dir=runs_dir, workers=workers, output=output)
    if gpus_per_worker is not None:
        overrides.append(f"resources.gpus_per_worker={gpus_per_worker}")
    shown = None if as_json else console
    with exit_on_error():
        if compare:
            jobs = [evaluate_job(name, overrides, cluster) for name in names]
            from pelagos.jobs import compare_runs

            here = next((run for _, run in jobs if isinstance(run, LocalRun)), None)
            place = runs_dir or (RUNS_DIR if here is None else here.runs_dir)
            compared = compare_runs.run([job for job, _ in jobs], shown, place)
            found = {"report": compared.report, **compared.metrics}
        elif len(names) == 1:
            job, run = evaluate_job(names[0], overrides, cluster)
            from pelagos.jobs import evaluate

            result = evaluate.run(job, shown)
            run.send_back("evaluation")
            found = {"run_name": result.run_name, "report": result.report, **result.metrics}
        else:
            raise ValueError(
                f"evaluate takes one run, got {len(names)}: pelagos evaluate RUN [key=value …]; "
                "with --compare it puts several side by side"
            )
        if as_json:
            print_json(found)
