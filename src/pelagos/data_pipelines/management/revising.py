"""Giving a finished dataset another manifest; the old one holds until the new one is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pelagos.data_pipelines.management.exclusive import revising
from pelagos.data_pipelines.management.trajectory_table import SumsOfFields, trajectory_sums_of
from pelagos.data_pipelines.store import Dataset, DatasetSpec
from pelagos.data_pipelines.store.field_statistics import dataset_statistics, default_split
from pelagos.data_pipelines.store.layout import (
    GROUP_KEY,
    MANIFEST_KEY,
    SPEC_KEY,
    array_documents,
    dumps,
    root_document,
)
from pelagos.data_pipelines.store.manifest import Manifest, ShardRecord
from pelagos.data_pipelines.store.object_store import ObjectStore
from pelagos.data_pipelines.store.writer import write_coordinates


def change_splits(dataset: Dataset, splits: Mapping[str, tuple[int, int]]) -> Manifest:
    """Give a dataset other splits: `{"train": (0, 80), …}`; no data is read or written.

    The fingerprint changes: a run that was begun with the old splits is not resumed.

    Raises:
        ValueError: the splits overlap or reach beyond the trajectories.
        DatasetError: another process revises the dataset.
    """
    spec = replace(dataset.spec, splits=dict(splits))
    with revising(dataset):
        return write_manifest(
            dataset.store,
            spec,
            dataset.manifest.shards,
            trajectory_sums_of(dataset),
            dataset.manifest.parameters_crc32c,
        )


def write_manifest(
    store: ObjectStore,
    spec: DatasetSpec,
    shards: tuple[ShardRecord, ...],
    sums: SumsOfFields,
    parameters_crc32c: dict[str, int],
) -> Manifest:
    """Write the metadata of a dataset whose shards and vectors are there, the manifest last."""
    manifest = Manifest(spec, shards, dataset_statistics(sums, spec.splits), parameters_crc32c)
    split = default_split(manifest.statistics)
    extra = {
        "statistics": manifest.statistics[split],
        "statistics_split": split,
        "fingerprint": manifest.fingerprint,
    }
    write_coordinates(store, spec)  # more trajectories; datasets of before had fewer coordinates
    for path, document in array_documents(spec).items():
        store.write(f"{path}/zarr.json", dumps(document))
    store.write(GROUP_KEY, dumps(root_document(spec, extra)))
    store.write(MANIFEST_KEY, manifest.to_bytes())
    store.write(SPEC_KEY, dumps({"spec": spec.to_json()}))
    return manifest
