"""Label 0 of one dataset is not label 0 of another that has other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pelagos.data_pipelines.convert import ConvertOptions
from pelagos.data_pipelines.management.appending import append
from pelagos.data_pipelines.management.merging import merge
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset
from pelagos.jobs import convert
from pelagos.jobs.training.checking import checked
from pelagos.platform.config import ConfigError, TrainingJob
from pelagos.platform.config.load import parse_job

RNG = np.random.default_rng(8)


def pets(folder: Path, *classes: str, dtype: type = np.uint8) -> str:
    """A dataset of two pictures per class."""
    for name in classes:
        for number in range(2):
            file = folder / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 99, (8, 8)).astype(dtype)).save(file)
    uri = f"{folder}.zarr"
    convert.run(str(folder), uri, ConvertOptions(splits={"train": 0.5, "validation": 0.5}))
    return uri


def job(*uris: str) -> TrainingJob:
    tree: dict[str, Any] = {
        "job": "pretrain",
        "name": "pets",
        "data": {
            "mixture": [{"uri": uri} for uri in uris],
            "fields": ["intensity"],
            "global_batch_size": 2,
        },
        "model": {
            "name": "vit-nano",
            "config": {"image_size": [8, 8], "patch_size": [2, 2], "positions": "learned"},
        },
        "objective": {"name": "classification", "config": {"num_classes": 3}},
        "optimizer": {"lr": 0.001},
        "schedule": {"total_steps": 1},
        "validation": {"every_steps": 1, "num_samples": 2},
    }
    parsed = parse_job(yaml.safe_dump(tree), "pets")
    assert isinstance(parsed, TrainingJob)
    return parsed


def test_datasets_of_other_classes_are_not_mixed(tmp_path: Path) -> None:
    first, same = (pets(tmp_path / name, "cat", "dog") for name in "ab")
    other = pets(tmp_path / "c", "dog", "owl")
    more = pets(tmp_path / "d", "cat", "dog", "owl")
    checked(job(first, same))
    with pytest.raises(
        ConfigError,
        match=r"c\.zarr has 2 .* label 0 is 'dog' in the former and 'cat' in the latter",
    ):
        checked(job(first, other))
    with pytest.raises(
        ConfigError, match=r"label 2 is 'owl' in the former and no class in the latter"
    ):
        checked(job(first, more))
    with pytest.raises(ValueError, match=r"generator\.classes is \['dog', 'owl'\], expected"):
        append(open_dataset(first), open_dataset(other))
    with pytest.raises(ValueError, match=r"generator\.classes is \['dog', 'owl'\], expected"):
        merge([open_dataset(first), open_dataset(other)], tmp_path / "m.zarr")
    merge([open_dataset(first), open_dataset(same)], tmp_path / "m.zarr")
    merged = open_dataset(tmp_path / "m.zarr")
    assert merged.spec.generator["classes"] == ["cat", "dog"]
    assert len(merged.spec.generator["merged_from"]) == 2


def test_pictures_of_other_depth_are_not_joined(tmp_path: Path) -> None:
    plain = open_dataset(pets(tmp_path / "a", "cat"))
    deep = open_dataset(pets(tmp_path / "b", "cat", dtype=np.uint16))
    assert "depth" not in plain.spec.generator
    with pytest.raises(ValueError, match=r"generator\.depth is '16 bits', expected '8 bits'"):
        merge([plain, deep], tmp_path / "m.zarr")


def test_a_label_that_is_no_whole_number_is_named(tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="pets",
        equation="none",
        fields=(Field("intensity", "intensity"),),
        num_trajectories=4,
        num_frames=1,
        grid_shape=(8, 8),
        frame_interval=1.0,
        domain_extent=(1.0, 1.0),
        boundary_conditions={},
        splits={"train": (0, 2), "validation": (2, 4)},
        parameter_names=("label",),
    )
    writer = create_dataset(str(tmp_path / "a.zarr"), spec)
    values = RNG.normal(size=spec.shape)
    writer.write_shard(0, values, {"label": np.array([0, 1.5, 2, 1])})
    writer.finalize()
    with pytest.raises(ConfigError, match=r"parameter 'label' holds 1\.5; classes are whole"):
        checked(job(writer.uri))
