"""The verbs `checkpoint verify|inspect|diff`."""

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from pelagos.cli.choices import ClusterName, SearchedDir, run_and_checkpoint
from pelagos.cli.common import AsJson, console, exit_on_error, finish, print_json

app = typer.Typer(help="Look into checkpoints: verify, inspect, diff.", no_args_is_help=True)

Target = Annotated[
    str,
    typer.Argument(
        help="A run, RUN@STEP, RUN@best, or the address of a directory step-XXXXXXXX.",
        show_default=False,
    ),
]
SHOWN_TENSORS = 40


def _locate(target: str, runs_dir: str | None, cluster: str | None) -> Any:
    from pelagos.jobs.run_access.finding import find

    if "://" in target or re.search(r"(^|/)step-\d+/?$", target):
        from pelagos.platform.checkpoint.inspection import locate

        return locate(target, runs_dir or "runs")
    address, which = run_and_checkpoint(target)
    found = find(address, runs_dir, cluster)
    found.directory()
    from pelagos.platform.checkpoint.inspection import locate

    return locate(f"{found.name}@{which}", found.runs_dir)


@app.command()
def verify(
    target: Target,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a checkpoint again and check it; list the damaged parts.

    Example: pelagos checkpoint verify quickstart@best
    """
    with exit_on_error():
        location = _locate(target, runs_dir, cluster)
        from pelagos.platform.checkpoint.inspection import verify as verify_checkpoint

        with Progress(console=console, transient=True, disable=as_json) as bar:
            task = bar.add_task("reading", total=None)
            damage = verify_checkpoint(
                location, lambda done, total: bar.update(task, completed=done, total=total)
            )
    if as_json:
        print_json({"uri": location.uri, "damage": damage})
    elif damage:
        console.print(Text(f"{location.uri} is damaged", style="red"), soft_wrap=True)
        for sentence in damage:
            console.print(f"  {sentence}", soft_wrap=True)
    else:
        console.print(Text("whole", style="green"), location.uri, soft_wrap=True)
    finish(not damage)


@app.command()
def inspect(
    target: Target,
    pattern: Annotated[
        str | None, typer.Option(help="List the tensors whose names match this expression.")
    ] = None,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    as_json: AsJson = False,
) -> None:
    """Show the contents of a checkpoint: step, model, sizes, tensors with shapes and checksums.

    Example: pelagos checkpoint inspect quickstart --pattern 'model.*logit_scale'
    """
    with exit_on_error():
        location = _locate(target, runs_dir, cluster)
        from pelagos.platform.checkpoint.inspection import describe

        content = describe(location, pattern or "")
    if as_json:
        print_json(content)
        return
    facts = Table(show_header=False, title=content["uri"])
    for key in ("step", "samples", "seed", "model", "ranks", "files", "format_version"):
        facts.add_row(key.replace("_", " "), str(content[key]))
    for name, section in content["sections"].items():
        size = f"{section['num_bytes'] / 1e6:.1f} MB"
        facts.add_row(
            name, f"{section['tensors']} tensors, {section['elements']:,} elements, {size}"
        )
    console.print(facts)
    if pattern is not None:
        tensors = Table("tensor", "shape", "type", "pieces", "crc32c")
        for row in content["tensors"][:SHOWN_TENSORS]:
            sums = row["crc32c"]
            shown = ", ".join(sums[:2]) + (", …" if len(sums) > 2 else "")
            tensors.add_row(row["name"], str(row["shape"]), row["dtype"], str(len(sums)), shown)
        console.print(tensors)
        if len(content["tensors"]) > SHOWN_TENSORS:
            console.print(f"… {len(content['tensors']) - SHOWN_TENSORS} more (--json has all)")


@app.command()
def diff(
    a: Target,
    b: Target,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="Largest relative difference at which tensors count as equal."),
    ] = 0.0,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints tensor by tensor; exit status 1 if they differ.

    Example: pelagos checkpoint diff run-a@500 run-b@500 --tolerance 1e-6
    """
    with exit_on_error():
        one, two = _locate(a, runs_dir, cluster), _locate(b, runs_dir, cluster)
        from pelagos.platform.checkpoint.inspection import compare

        with Progress(console=console, transient=True, disable=as_json) as bar:
            task = bar.add_task("comparing", total=None)
            found = list(
                compare(one, two, lambda done, n: bar.update(task, completed=done, total=n))
            )
    beyond = [d for d in found if d.kind != "values" or not d.max_relative <= tolerance]
    if as_json:
        print_json({"a": one.uri, "b": two.uri, "differences": [asdict(d) for d in found]})
    elif not found:
        console.print(Text("the same bits", style="green"))
    else:
        table = Table("tensor", "differs in", "", "max. absolute", "max. relative")
        for d in sorted(found, key=lambda d: -d.max_relative)[:SHOWN_TENSORS]:
            table.add_row(
                d.name, d.kind, d.detail, f"{d.max_absolute:.2g}", f"{d.max_relative:.2g}"
            )
        console.print(table)
        console.print(f"{len(found)} tensors differ, {len(beyond)} beyond the tolerance")
    finish(not beyond)
