"""`submit`, and the verbs for submitted runs alone: recover, clusters."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pelagos.cli import completion
from pelagos.cli.choices import ClusterName, Workers, with_choices
from pelagos.cli.common import (
    AsJson,
    console,
    error_console,
    exit_on_error,
    finish,
    print_json,
)


def submit_command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="Job files (several: a chain), or a file that lists `runs`; then overrides "
            "dotted.key=value.",
            show_default=False,
        ),
    ],
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster", help="Name in clusters.yaml.", autocompletion=completion.clusters
        ),
    ],
    after: Annotated[
        list[str] | None, typer.Option("--after", help="Run to wait for; may be repeated.")
    ] = None,
    priority: Annotated[
        int, typer.Option("--priority", min=-1000, max=1000, help="Higher starts first.")
    ] = 0,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, help="Retries after a lost node, a hang or a preemption."),
    ] = 3,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include", help="A file or directory of yours to send along; may be repeated."
        ),
    ] = None,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show exactly what would be sent, then stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job, a chain or a graph of jobs to a cluster; returns at once with the run's name.

    Example: pelagos submit pretrain.yaml --cluster lab --priority 10 optimizer.lr=1e-4
    """
    from pelagos.jobs import submit as job_module

    files = [a for a in arguments if "=" not in a]
    overrides = with_choices([a for a in arguments if "=" in a], workers=workers)
    with exit_on_error():
        if not files:
            raise ValueError("no job file given: pelagos submit JOB.yaml --cluster NAME")
        options = job_module.Options(
            after=tuple(after or ()),
            priority=priority,
            retries=retries,
            include=tuple(include or ()),
        )
        planned = job_module.plan(files, cluster, overrides, options)
        if dry_run:
            _show_plan(planned.describe(), as_json)
            return
        for run in planned.runs:
            for note in run.notes:
                console.print(Text("note", style="yellow"), f"{run.name}: {note}", soft_wrap=True)
        names = job_module.submit(planned, say=_quiet if as_json else _say)
    if as_json:
        print_json({"runs": names, "cluster": cluster, "storage": planned.store.uri})
    else:
        # of a sweep, the report, which waits for the trials
        first = next(run.name for run in planned.runs if run.array is None)
        console.print(f"  follow it: pelagos logs -f {first}   pelagos status {first}")


def recover_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Names of runs; default: all of yours.", show_default=False),
    ] = None,
    cluster: ClusterName = None,
    as_json: AsJson = False,
) -> None:
    """Recover submitted runs of yours whose process ended silently, e.g. on a lost node.

    Records how they ended, and restarts those that have retries left. Other verbs show these runs as
    lost and start nothing.

    Example: pelagos recover ns-pretrain
    """
    from pelagos.jobs.submission import following, start_again
    from pelagos.jobs.submission.records import own_runs

    with exit_on_error():
        if runs:
            found = [following.find(run, cluster) for run in runs]
        else:
            everyones, problems = following.find_all(cluster)
            found = [f for f in everyones if own_runs.is_own(f.record)]
            for problem in problems:
                error_console.print(f"not checked: {problem}", soft_wrap=True)
        states = [start_again.recover(f) for f in found]
    if as_json:
        print_json([{"run": s.run, "state": s.state, "attempt": s.attempt} for s in states])
        return
    for state in states:
        console.print(f"{state.run} is {state.state}; attempt {state.attempt}")


def clusters_command(
    name: Annotated[str | None, typer.Argument(help="One cluster only.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Contact the clusters, or only list them.")
    ] = True,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Trust the present ./clusters.yaml to say where tokens go; read it first.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the clusters of clusters.yaml and check that each can be reached and used.

    Example: pelagos clusters lab
    """
    from pelagos.platform.config.clusters import PROJECT_FILE, find_cluster, load_clusters
    from pelagos.platform.config.trusted_files import trust as trust_file

    with exit_on_error():
        if trust:
            trust_file(Path(PROJECT_FILE))
            console.print(f"{Path(PROJECT_FILE).absolute()} is trusted until it changes")
        configs = {name: find_cluster(name)} if name else load_clusters()
        rows: list[dict[str, Any]] = []
        for key, config in configs.items():
            checks = check_cluster(key, 0) if check else []
            rows.append(
                {
                    "cluster": key,
                    "kind": config.kind,
                    "storage": config.storage,
                    "ok": all(c.ok for c in checks) if check else None,
                    "checks": [vars(c) for c in checks],
                }
            )
    if as_json:
        print_json(rows)
    elif not rows:
        console.print("no clusters: write clusters.yaml (docs/clusters/README.md)")
    else:
        _show_clusters(rows)
    finish(all(row["ok"] is not False for row in rows))


def check_cluster(name: str, num_nodes: int) -> list[Any]:
    """Return findings about a cluster, its storage and, where those are fine, `num_nodes` nodes.

    Raises:
        ConfigError: no such cluster.
        TimeoutError: the nodes were not free, or did not answer.
    """
    from pelagos.infra.clusters import open_cluster
    from pelagos.infra.clusters.storage_check import check_storage
    from pelagos.jobs.probe_cluster import probe_cluster
    from pelagos.platform.config.clusters import find_cluster

    config = find_cluster(name)
    checks = [*open_cluster(name, config).check(), check_storage(config)]
    if num_nodes == 0 or not all(check.ok for check in checks):
        return checks
    return [*checks, *probe_cluster(name, config, num_nodes)]


def _show_clusters(rows: list[dict[str, Any]]) -> None:
    table = Table("cluster", "kind", "storage", "", "seen")
    for row in rows:
        marks = {
            True: Text("ok", style="green"),
            False: Text("fix", style="red"),
            None: Text(""),
        }
        bad = [f"{c['name']}: {c['seen']} - {c['remedy']}" for c in row["checks"] if not c["ok"]]
        good = [c["seen"] for c in row["checks"] if c["ok"]]
        shown = "\n".join(bad) if bad else "; ".join(good[-2:])
        table.add_row(row["cluster"], row["kind"], row["storage"], marks[row["ok"]], shown)
    console.print(table)


def _show_plan(described: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(described)
        return
    for run in described["runs"]:
        console.rule(run["run"])
        for name, text in run["sent"].items():
            console.print(Text(name, style="bold"))
            console.print(text, soft_wrap=True)
        console.print(Text("job", style="bold"))
        console.print(run["job"], soft_wrap=True)
        table = Table(title=run["run"], show_header=False)
        rows = {
            "cluster": f"{described['cluster']} ({described['kind']})",
            "storage": described["storage"],
            **run["resources"],
            "after": ", ".join(run["after"]) or "-",
            "priority": run["priority"],
            "environment": run["environment"] or "-",
            "cost per hour": run["cost_per_hour"] or "no price in clusters.yaml",
            "your files": ", ".join(described["files"]) or "-",
            "notes": "; ".join(run["notes"]) or "-",
        }
        for key, value in rows.items():
            table.add_row(key, str(value))
        console.print(table)
    console.print("dry run: nothing was sent or written")


def _say(text: str) -> None:
    console.print(text, soft_wrap=True)


def _quiet(_: str) -> None:
    pass
