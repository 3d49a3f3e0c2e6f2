"""The verb `sweep`."""

from typing import Annotated

import typer

from pelagos import plugins
from pelagos.cli.choices import JobRunsDir, with_choices
from pelagos.cli.common import AsJson, console, exit_on_error, finish, print_json


def sweep_command(
    job_file: Annotated[str, typer.Argument(help="A sweep job (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: dotted.key=value", show_default=False)
    ] = None,
    runs_dir: JobRunsDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials, and which have ended, then stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train many variants of jobs and compare them; run it again to continue.

    Example: pelagos sweep configs/transfer/sweep.yaml seeds=[0] --dry-run
    """
    from pelagos.cli.job_files import load_as
    from pelagos.platform.config import SweepJob

    with exit_on_error():
        job = load_as(SweepJob, job_file, with_choices(overrides, runs_dir=runs_dir))
        # after mistakes were shown: these import torch
        from pelagos.jobs import sweep as job_module
        from pelagos.jobs.sweeping.checks import check_labels
        from pelagos.jobs.sweeping.inputs import check_inputs
        from pelagos.jobs.sweeping.report_text import show_report
        from pelagos.jobs.sweeping.trials import FINAL_STATES, trials_of

        if dry_run:
            trials = trials_of(job)
            for trial in trials:
                plugins.load_for(trial.job)
            check_labels(job, set(job.jobs))
            check_inputs(job, trials)
            report = job_module.report_of(job, trials)
            by_name = {row.name: row for row in report.rows}
            rows = [(t.name, by_name[t.name].state) for t in trials]
            num_done = sum(state in FINAL_STATES for _, state in rows)
            _show_plan(rows, num_done, as_json)
            return
        result = job_module.run(job, None if as_json else console)
    if as_json:
        print_json({**result.report.to_dict(), "report": str(result.path)})
    else:
        show_report(result.report, result.path)
    finish(result.ok)


def _show_plan(rows: list[tuple[str, str]], num_done: int, as_json: bool) -> None:
    if as_json:
        trials = [{"name": name, "state": state} for name, state in rows]
        print_json({"num_trials": len(rows), "num_done": num_done, "trials": trials})
        return
    for name, state in rows:
        console.print(f"  {state:13} {name}", soft_wrap=True)
    console.print(f"{len(rows)} trials, {num_done} done, {len(rows) - num_done} to run")
