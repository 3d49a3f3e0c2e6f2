"""Zarr arrays from other tools that describe their own axes, as Pelagos reads them in place.

Version 2 or 3, one array with all fields or one for each. Others need a mapping.
"""

from __future__ import annotations

from pelagos.data_pipelines.convert.formats import Format
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.foreign import ForeignDataset
from pelagos.data_pipelines.foreign.opening import is_foreign
from pelagos.data_pipelines.foreign.zarr_numbers import ZarrNumbers
from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.object_store import open_store
from pelagos.infra.storage.remote import storage_options

LETTERS = {"trajectory": "n", "time": "t", "channel": "c", "z": "z", "y": "y", "x": "x"}


class ForeignFile:
    """The arrays of a Zarr hierarchy, scaled as their attributes say.

    A missing chunk is an error, and one inside a shard is NaN or an error: nothing becomes zero.
    """

    def __init__(self, file: str) -> None:
        self.dataset = open_source(file)

    def array(self, key: str) -> ZarrNumbers:
        return {a.path: a for a in self.dataset.arrays}[key].numbers

    def close(self) -> None:
        self.dataset.close()


def open_source(path: str) -> ForeignDataset:
    """Raises SourceError where the roles of the arrays cannot be determined."""
    try:
        return ForeignDataset(path, storage_options(path) or None, gives_hint=False)
    except DatasetError as error:
        raise SourceError(
            f"{error}\nor describe the arrays in a file for --mapping (docs/converting.md)"
        ) from error


def _matches(path: str, options: ConvertOptions) -> bool:
    try:
        return is_foreign(open_store(path, storage_options(path) or None))
    except (DatasetError, OSError):
        return False


def _read(path: str, options: ConvertOptions) -> Source:
    dataset = open_source(path)
    spec = dataset.spec
    arrays: list[StoredArray] = []
    channel = 0
    for source in dataset.arrays:
        letters = "".join(LETTERS[role] for role in source.roles)
        count = source.size_of("channel")
        arrays.append(StoredArray("foreign", path, source.path, letters, channel, count))
        channel += count
    parameters = _parameters(dataset)
    part = Part(tuple(arrays), spec.num_trajectories, parameters=parameters)
    assumed = [sentence for sentence in dataset.assumed if not sentence.startswith("splits")]
    notes = (
        [f"the source does not record everything; assumed: {'; '.join(assumed)}"] if assumed else []
    )
    notes += dataset.notes
    return Source(
        format="zarr",
        name=spec.name,
        equation=spec.equation,
        fields=spec.fields,
        splits={"all": (part,)},
        num_frames=spec.num_frames,
        grid_shape=spec.grid_shape,
        frame_interval=spec.frame_interval,
        domain_extent=spec.domain_extent,
        grid_location=spec.grid_location,
        notes=tuple(notes),
        details={"source_fingerprint": dataset.fingerprint, **spec.generator},
    )


def _parameters(dataset: ForeignDataset) -> dict[str, tuple[float, ...]]:
    try:
        return {name: tuple(map(float, v)) for name, v in dataset.parameters.items()}
    except DatasetError as error:
        raise SourceError(str(error)) from error


FORMAT = Format(
    "zarr",
    "Zarr arrays, version 2 or 3, that name their axes",
    "an array, or a group with `data` or an array per field",
    _matches,
    _read,
)
