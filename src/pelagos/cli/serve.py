"""`pelagos serve`: a trained model behind HTTP."""

from typing import Annotated

import typer
from rich.text import Text

from pelagos.cli.choices import ClusterName, SearchedDir
from pelagos.cli.common import console, exit_on_error, expanded_option
from pelagos.cli.prediction import Model, TrackingUri, Weights


def serve_command(
    model: Model,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; beyond this machine with a token only."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            help="File with the token that requests carry; default: PELAGOS_SERVE_TOKEN.",
            callback=expanded_option,
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="Processes with the model.")
    ] = 1,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, or auto: a GPU if there is one.")
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Samples of one pass through the network.")
    ] = 16,
    batch_wait: Annotated[
        float,
        typer.Option(
            "--batch-wait",
            min=0.0,
            help="Seconds that a first request waits for others to join it.",
        ),
    ] = 0.005,
    max_request: Annotated[
        int, typer.Option("--max-request-mib", min=1, help="Size of a request.")
    ] = 32,
    max_answer: Annotated[
        int, typer.Option("--max-answer-mib", min=1, help="Size of the forecasts of a request.")
    ] = 256,
    max_samples: Annotated[
        int, typer.Option("--max-samples", min=1, help="Samples of a request.")
    ] = 64,
    max_points: Annotated[
        int, typer.Option("--max-points", min=1, help="Points of the grid of a request.")
    ] = 2**20,
    max_leads: Annotated[
        int, typer.Option("--max-leads", min=1, help="Lead times or steps of a request.")
    ] = 64,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, help="Requests in work at the same time.")
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0.001, help="Seconds for a request, and for its answer."),
    ] = 60.0,
    weights: Weights = "auto",
    tracking_uri: TrackingUri = None,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
) -> None:
    """Answer forecasts over HTTP (JSON and numpy) until Ctrl-C, with Ray Serve on this machine.

    It listens on 127.0.0.1. Other addresses need a token, from --token-file or PELAGOS_SERVE_TOKEN.

    Example: pelagos serve quickstart@best --port 8000
    """
    from pelagos.jobs import serve
    from pelagos.jobs.serving.limits import Limits

    limits = Limits(
        max_request, max_answer, max_samples, max_points, max_leads, max_waiting, timeout
    )
    options = serve.Options(
        host,
        port,
        token_file,
        replicas,
        device,
        batch_size,
        batch_wait,
        limits,
        runs_dir,
        cluster,
        weights,
        tracking_uri,
    )

    def show(serving: serve.Serving) -> None:
        told = "with the token" if serving.needs_token else "from this machine, without a token"
        console.print(
            Text("ready", style="green"),
            f"{model} on {serving.device}: {serving.address}/predict, {told}; "
            f"how to ask: {serving.address}/docs; Ctrl-C ends it",
            soft_wrap=True,
        )

    with exit_on_error("before the model was ready"):
        console.print(f"loading {model}", soft_wrap=True)
        signal = serve.run(model, options, show)
        console.print(f"ended by {signal}", soft_wrap=True)
