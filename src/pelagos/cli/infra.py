"""`pelagos infra render`: files for the services around a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from pelagos.cli.common import console, exit_on_error, expanded_option

app = typer.Typer(
    name="infra", help="Files for the services around a cluster.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Keep `render` a verb of its own, even while it is the only one."""


@app.command()
def render(
    kind: Annotated[
        str, typer.Argument(help="image, ray-up, mlflow, monitoring or bucket-policy.")
    ],
    cluster: Annotated[str, typer.Option("--cluster", help="Name in clusters.yaml.")],
    output: Annotated[
        str, typer.Option("--output", help="Directory to write into.", callback=expanded_option)
    ] = "infra-files",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files there.")] = False,
) -> None:
    """Write files of one kind for a cluster: container image, MLflow, monitoring, policies.

    Example: pelagos infra render monitoring --cluster lab --output deploy
    """
    from pelagos.infra.services import render as job_module
    from pelagos.platform.config.clusters import find_cluster

    with exit_on_error():
        files = job_module.render(kind, cluster, find_cluster(cluster))
        for path in job_module.write(files, Path(output), overwrite):
            console.print(f"wrote {path}", soft_wrap=True)
