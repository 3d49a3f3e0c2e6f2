"""The option `--description` of verbs that read Zarr arrays from other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pelagos.data_pipelines.foreign import Description

DescriptionFile = Annotated[
    str | None, typer.Option("--description", help="YAML description of a foreign Zarr array.")
]


def description_at(path: str | None) -> Description | None:
    """The description in a file, if one is named. Raises `DatasetError`."""
    from pelagos.jobs.training.datasets import load_description

    return None if path is None else load_description(path)
