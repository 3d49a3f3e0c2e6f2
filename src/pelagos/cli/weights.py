"""`pelagos export` and `pelagos import`: from runs or other weights to model directories."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from pelagos.cli.choices import ClusterName, RunAtCheckpoint, SearchedDir, run_and_checkpoint
from pelagos.cli.common import AsJson, console, exit_on_error, print_json

CARD = "README.md"
Directory = Annotated[str, typer.Argument(help="The model directory to write.", show_default=False)]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="Largest weights file.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model directory.")]


def export_command(
    run: RunAtCheckpoint,
    directory: Directory,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", hidden=True)] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="model, ema (averaged), auto: ema if the run keeps it; base: without low-rank updates.",
        ),
    ] = "auto",
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="PROGRAM",
            help="Also write the forecast as a program that runs without Pelagos: torch-export or onnx.",
        ),
    ] = None,
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Write the low-rank updates alone, in the layout of PEFT."),
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            help="Licence of the weights, for the model card, such as apache-2.0.",
            show_default=False,
        ),
    ] = None,
    max_shard_size: ShardSize = "5GB",
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's model as a Hugging Face directory: safetensors, config, normalisation, model card.

    Example: pelagos export quickstart@best models/quickstart
    """
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        address, which = run_and_checkpoint(run, checkpoint)
        found = find(address, runs_dir, cluster)
        found.directory()
        from pelagos.jobs import export

        written = export.run(
            found.name,
            directory,
            checkpoint=which,
            weights=weights,
            max_shard_size=max_shard_size,
            runs_dir=found.runs_dir,
            overwrite=overwrite,
            also=also or (),
            licence=licence,
            adapter=adapter,
        )
    _report(written, as_json)


def import_command(
    source: Annotated[
        str, typer.Argument(help="Weights: a file, or a directory of them.", show_default=False)
    ],
    directory: Directory,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            help="Options of the model: key=value, e.g. image_size=64", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Name in the registry; default: found from the shapes."),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Prefix of the parameter names to remove, e.g. module."),
    ] = None,
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import published or foreign weights into a model directory; runs no code from them.

    Example: pelagos import model_Ti.pth models/dpot-ti
    """
    from pelagos.jobs import import_weights

    with exit_on_error():
        written = import_weights.run(
            source,
            directory,
            model=model,
            options=options or (),
            prefix=prefix,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
        )
    _report(written, as_json)


def _report(written: Any, as_json: bool) -> None:
    if as_json:
        print_json(asdict(written))
        return
    name = written.model or "a model of no registered size"
    if written.weights == "ema":
        console.print("averaged weights (ema_decay); for the weights themselves: --weights model")
    console.print(
        Text("wrote", style="green"),
        f"{written.directory}: {name}, {written.parameters:,} parameters, "
        f"{written.num_bytes / 1e6:,.1f} MB in {len(written.files)} files",
        soft_wrap=True,
    )
    if CARD in written.files:
        console.print(f"  how to use it: {written.directory}/{CARD}", soft_wrap=True)
        return
    console.print(
        f'  load it: pelagos.models.registry.load_pretrained("{written.directory}")', soft_wrap=True
    )
