"""The verbs. Each imports its job when called, so that `--help` is quick."""

import sys
from typing import Annotated

import typer
from rich.text import Text

from pelagos import __version__, plugins
from pelagos.cli import completion, following, runs, submission, weights
from pelagos.cli.checkpoint import app as checkpoint_app
from pelagos.cli.choices import JobRunsDir, Workers, with_choices
from pelagos.cli.common import (
    EXIT_INTERRUPTED,
    NOTHING_SAVED,
    AsJson,
    CheckedGroup,
    RunsDir,
    console,
    error_console,
    exit_on_error,
    finish,
    print_json,
    set_up_logging,
)
from pelagos.cli.compare import compare_strategies_command
from pelagos.cli.convert import convert_command
from pelagos.cli.data import app as data_app
from pelagos.cli.data_management import app as data_management_app
from pelagos.cli.evaluation import compare_command, evaluate_command
from pelagos.cli.first_day import show_first_day
from pelagos.cli.infra import app as infra_app
from pelagos.cli.new import app as new_app
from pelagos.cli.plot import plot_command
from pelagos.cli.prediction import predict_command, rollout_command
from pelagos.cli.problem_families import show_problem_families
from pelagos.cli.schema import schema_command
from pelagos.cli.serve import serve_command
from pelagos.cli.sweep import sweep_command
from pelagos.cli.tune_lr import tune_lr_command
from pelagos.infra.signals import interrupt_on_signals

app = typer.Typer(
    name="pelagos",
    cls=CheckedGroup,
    help="Train foundation models for PDEs and images on a cluster, from one YAML file.",
    invoke_without_command=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
data_app.add_typer(data_management_app)
app.add_typer(new_app, name="new")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(infra_app, name="infra")

JobFile = Annotated[str, typer.Argument(help="The job file (YAML).", show_default=False)]
OptionalJobFile = Annotated[
    str | None, typer.Argument(help="The job file (YAML).", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides: dotted.key=value, e.g. optimizer.lr=1e-4", show_default=False),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved job and its cost, then stop."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pelagos {__version__}")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debug records.")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="MODULE",
            help="Import a module of your own first; works with every verb (docs/extending.md).",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Set up logging, and the user's own parts, for every verb."""
    if context.invoked_subcommand is None:
        show_first_day()
        return
    set_up_logging(verbose)
    with exit_on_error():
        plugins.load_installed()
        plugins.load(plugin or ())


@app.command()
def generate(
    job_file: OptionalJobFile = None,
    overrides: Overrides = None,
    list_families: Annotated[
        bool, typer.Option("--list", help="List the families of problems that can be simulated.")
    ] = False,
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Simulate datasets of PDE solutions; run it again to continue an interrupted one.

    Example: pelagos generate configs/quickstart/generate.yaml seed=1
    """
    from pelagos.cli.job_files import load_as
    from pelagos.platform.config import GenerateJob

    if list_families:
        show_problem_families(as_json)
        return
    with exit_on_error():
        if job_file is None:
            raise ValueError("generate needs a job file, or --list")
        job = load_as(GenerateJob, job_file, with_choices(overrides, workers=workers))
        from pelagos.jobs import generate as job_module
        from pelagos.platform.planner import plan_generate

        if dry_run:
            plan_generate(job).show(console, as_json)
            return
        result = job_module.run(job, None if as_json else console)
        if as_json:
            print_json({"run_name": result.run_name, "uris": result.uris, **result.metrics})


@app.command()
def pretrain(
    job_file: JobFile,
    overrides: Overrides = None,
    runs_dir: JobRunsDir = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on a mixture of datasets.

    Example: pelagos pretrain configs/quickstart/pretrain.yaml schedule.total_steps=100
    """
    from pelagos.cli.job_files import load_as, report_training, say_begun
    from pelagos.platform.config import PretrainJob
    from pelagos.platform.config.locating import errors_of

    chosen = with_choices(overrides, runs_dir=runs_dir, workers=workers)
    with exit_on_error(NOTHING_SAVED), errors_of(job_file, chosen):
        job = load_as(PretrainJob, job_file, chosen)  # mistakes show before torch is imported
        say_begun(job_file, job.name, quiet=as_json or dry_run)
        from pelagos.jobs import pretrain as job_module
        from pelagos.jobs.training.checking import checked
        from pelagos.platform.planner import plan_pretrain

        if dry_run:
            blueprint = checked(job)
            plan = plan_pretrain(job, blueprint.mixture, blueprint.flops_per_sample)
            plan.show(console, as_json)
            return
        result = job_module.run(job, error_console if as_json else console)
        report_training(result, job.runs_dir, as_json)


@app.command()
def finetune(
    job_file: JobFile,
    overrides: Overrides = None,
    runs_dir: JobRunsDir = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train from existing weights (a run, files, an official checkpoint) on a downstream task.

    Example: pelagos finetune configs/quickstart/finetune.yaml source.run=quickstart
    """
    from pelagos.cli.job_files import load_as, report_training, say_begun
    from pelagos.jobs.run_access.finding import with_source_found
    from pelagos.platform.config import FinetuneJob
    from pelagos.platform.config.locating import errors_of

    chosen = with_choices(overrides, runs_dir=runs_dir, workers=workers)
    with exit_on_error(NOTHING_SAVED), errors_of(job_file, chosen):
        job = load_as(FinetuneJob, job_file, chosen)
        say_begun(job_file, job.name, quiet=as_json or dry_run)
        job = with_source_found(job)
        from pelagos.jobs import finetune as job_module
        from pelagos.platform.planner import plan_pretrain

        if dry_run:
            prepared = job_module.prepare(job)
            if not as_json:
                job_module.show_adaptation(prepared, console)
            blueprint = prepared.blueprint
            plan = plan_pretrain(prepared.job, blueprint.mixture, blueprint.flops_per_sample)
            plan.show(console, as_json)
            return
        result = job_module.run(job, error_console if as_json else console)
        report_training(result, job.runs_dir, as_json)


app.command(name="evaluate")(evaluate_command)
app.command(name="compare")(compare_command)
app.command(name="convert")(convert_command)
app.command(name="sweep")(sweep_command)
app.command(name="tune-lr")(tune_lr_command)
app.command(name="compare-strategies")(compare_strategies_command)
app.command(name="list")(runs.list_command)
app.command(name="status")(runs.status_command)
app.command(name="plot")(plot_command)
app.command(name="resume")(runs.resume_command)
app.command(name="submit")(submission.submit_command)
app.command(name="logs")(following.logs_command)
app.command(name="stop")(following.stop_command)
app.command(name="wait")(following.wait_command)
app.command(name="watch")(following.watch_command)
app.command(name="recover")(submission.recover_command)
app.command(name="clone")(following.clone_command)
app.command(name="diff")(following.diff_command)
app.command(name="clusters")(submission.clusters_command)
app.command(name="predict")(predict_command)
app.command(name="rollout")(rollout_command)
app.command(name="serve")(serve_command)
app.command(name="export")(weights.export_command)
app.command(name="import")(weights.import_command)
app.command(name="schema")(schema_command)


@app.command()
def models(
    name: Annotated[
        str | None,
        typer.Argument(help="One model, in detail.", autocompletion=completion.models),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models: family, size, parameters, inputs, paper, licence of published weights.

    Example: pelagos models poseidon-t
    """
    from pelagos.cli.models import show_model, show_models

    with exit_on_error():
        if name is None:
            show_models(as_json)
        else:
            show_model(name, as_json)


@app.command()
def doctor(
    as_json: AsJson = False,
    runs_dir: RunsDir = "runs",
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Also check that this cluster can be reached and used."),
    ] = None,
    nodes: Annotated[
        int,
        typer.Option(min=0, help="Nodes of the cluster to check with a short job; 0: none."),
    ] = 1,
) -> None:
    """Check this machine: packages, devices, compiler, disk, object store; say what to fix.

    With --cluster it also checks that cluster, its storage, and on its nodes versions, storage,
    clocks, devices and the bandwidth between them.

    Example: pelagos doctor --cluster lab --json
    """
    from dataclasses import asdict

    from rich.table import Table

    from pelagos.cli.submission import check_cluster
    from pelagos.infra.doctor import examine

    with exit_on_error(), console.status("examining this machine"):
        checks = examine(runs_dir)
        if cluster is not None:
            checks += check_cluster(cluster, nodes)
    if as_json:
        print_json([asdict(c) for c in checks])
    else:
        table = Table("check", "", "seen", "remedy")
        for check in checks:
            mark = Text("ok", style="green") if check.ok else Text("fix", style="red")
            table.add_row(check.name, mark, check.seen, "" if check.ok else check.remedy)
        console.print(table)
    finish(all(c.ok for c in checks))


def main() -> None:
    """Run the command line."""
    interrupt_on_signals()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
