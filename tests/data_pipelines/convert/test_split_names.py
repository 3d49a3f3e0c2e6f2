"""A misspelt split is an error with the nearest name, never a split of that name or data left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.jobs import convert

FIELDS = "fields: [{axes: [n, t, y, x], names: [u]}]\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.zeros((10, 2, 4, 5), np.float32))
    return tmp_path / "a.npy"


def options(folder: Path, text: str) -> ConvertOptions:
    (folder / "m.yaml").write_text(text)
    return ConvertOptions(mapping=str(folder / "m.yaml"))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("{train: 6, vaild: 4}", r"line 2: splits\.vaild: got 'vaild', .*train.*test.*'valid'\?"),
        ("\n  train: 6\n  tset: 4", r"line 4: splits\.tset: got 'tset', .*did you mean 'test'\?"),
        ("{train: 6, all: 4}", r"line 2: splits\.all: got 'all', allowed: train"),
        (
            "{train: 6, val: 2, valid: 2}",
            r"line 2: splits: .*'val' and 'valid' both name the split",
        ),
    ],
)
def test_a_mapping_names_the_line(source: Path, splits: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(str(source), options(source.parent, f"{FIELDS}splits: {splits}"))


@pytest.mark.parametrize("name", ["vaild", "a", "trainn", "all", "test-"])
def test_the_option_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    arguments = ["convert", str(tmp_path / "absent"), str(tmp_path / "out.zarr")]
    result = CliRunner().invoke(app, [*arguments, "--splits", f"train=0.5,{name}=0.5"])
    told = " ".join(result.output.split())
    assert result.exit_code == 2
    assert f"unknown split '{name}'" in told
    assert "validation" in told
    assert "absent" not in told
    assert ("did you mean 'valid'" in told) == (name == "vaild")


def test_synonyms_have_the_names_that_training_looks_for(source: Path) -> None:
    text = f"{FIELDS}splits: {{training: 5, dev: 3, test-ood: 1, test_2: 1}}"
    chosen = options(source.parent, text)
    wanted = {"train": (0, 5), "validation": (5, 8), "test-ood": (8, 9), "test_2": (9, 10)}
    assert open_source(str(source), chosen).spec(chosen).splits == wanted
    chosen = ConvertOptions(
        splits={"train": 0.8, "val": 0.2}, mapping=options(source.parent, FIELDS).mapping
    )
    assert open_source(str(source), chosen).spec(chosen).splits == {
        "train": (0, 8),
        "validation": (8, 10),
    }


def write_nc(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    there = xr.Dataset({"u": (("sample", "time", "y", "x"), np.zeros((2, 3, 4, 5), "f4"))})
    there.to_netcdf(place, engine="h5netcdf")


@pytest.mark.parametrize("mapping", [None, "{split}/*.nc"])
def test_a_folder_with_nearly_a_name_is_an_error(tmp_path: Path, mapping: str | None) -> None:
    source = tmp_path / "source"
    for folder in ("train", "vaild"):
        write_nc(source / folder / "a.nc")
    chosen = ConvertOptions()
    if mapping:
        text = f"fields: [{{file: '{mapping}', key: u, axes: [n, t, y, x], names: [u]}}]"
        chosen = options(tmp_path, text)
    with pytest.raises(
        SourceError, match=r"source/vaild is not a known split.*did you mean 'valid'"
    ):
        convert.plan(str(source), chosen)
    (source / "vaild").rename(source / "valid")
    _, spec = convert.plan(str(source), chosen)
    assert spec.splits == {"train": (0, 2), "validation": (2, 4)}


@pytest.mark.parametrize("mapping", [None, "{split}/*.nc"])
def test_folders_with_an_ending_are_splits(tmp_path: Path, mapping: str | None) -> None:
    source = tmp_path / "source"
    for folder in ("training", "testing", "test-ood", "test_2"):
        write_nc(source / folder / "a.nc")
    (source / "test-scripts").mkdir()
    (source / "test-scripts/readme.md").write_text("no data")
    chosen = ConvertOptions()
    if mapping:
        text = f"fields: [{{file: '{mapping}', key: u, axes: [n, t, y, x], names: [u]}}]"
        chosen = options(tmp_path, text)
    _, spec = convert.plan(str(source), chosen)
    assert spec.splits == {"train": (0, 2), "test": (2, 4), "test-ood": (4, 6), "test_2": (6, 8)}
    found = convert.run(str(source), str(tmp_path / "out.zarr"), chosen, verify=True)
    assert found.differences == ()


def test_folders_of_pictures_with_an_ending_are_splits(tmp_path: Path) -> None:
    for place in ("train/a", "testing/a", "test-ood/a", "brain/a"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / place / "0.png")
    source, spec = convert.plan(str(tmp_path), ConvertOptions())
    assert spec.splits == {"train": (0, 1), "test": (1, 2), "test-ood": (2, 3)}
    assert any("not splits are left out: brain" in note for note in source.notes)


def test_other_folders_may_have_any_name(tmp_path: Path) -> None:
    for folder in ("train", "brain", "notes"):  # `train` is there, so `brain` is no slip of it
        write_nc(tmp_path / folder / "a.nc")
    (tmp_path / "text").mkdir()  # nearly `test`, but without such files
    (tmp_path / "text/readme.md").write_text("no data")
    _, spec = convert.plan(str(tmp_path), ConvertOptions())
    assert spec.splits == {"train": (0, 2)}


def test_a_folder_of_pictures_too(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "validaton/a"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / place / "0.png")
    with pytest.raises(SourceError, match=r"validaton is not a known split.*'validation'"):
        convert.plan(str(tmp_path), ConvertOptions())
