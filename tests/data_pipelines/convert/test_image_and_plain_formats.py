"""Pictures, volumes, microscopy and plain arrays: small files, and what must come out of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import yaml
import zarr
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.convert.missing_chunks import ChunkCount, count_chunks
from pelagos.data_pipelines.store import Dataset, open_dataset
from pelagos.jobs import convert

RNG = np.random.default_rng(11)


def converted(source: Path, uri: Path, **options: Any) -> Dataset:
    result = convert.run(str(source), str(uri), ConvertOptions(**options), verify=True)
    assert result.differences == ()
    return open_dataset(str(uri))


def everything(dataset: Dataset) -> np.ndarray:
    spec = dataset.spec
    return np.stack([dataset.window(i, 0, spec.num_frames) for i in range(spec.num_trajectories)])


# -- pictures -------------------------------------------------------------------------------------


def picture(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(values).save(file)
    return values


def test_pictures_in_a_folder_per_class_and_split(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    truth: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "validation": []}
    for split, name in (("train", "train"), ("val", "validation")):
        for label, kind in enumerate(("cat", "dog", "owl")):
            if split == "val" and kind == "cat":
                continue  # a class may be missing from a split, and keeps its number
            for i in (2, 10):
                values = picture(root / split / kind / f"{i}.png", (6, 5, 3))
                truth[name].append((values, label))
    dataset = converted(root, tmp_path / "out.zarr")
    expected = [*truth["train"], *truth["validation"]]
    assert dataset.spec.splits == {"train": (0, 6), "validation": (6, 10)}
    assert dataset.field_names == ("red", "green", "blue")
    assert (
        everything(dataset)[:, 0] == np.stack([v.transpose(2, 0, 1) for v, _ in expected])
    ).all()
    assert dataset.parameters["label"].tolist() == [label for _, label in expected]
    assert dataset.spec.generator["classes"] == ["cat", "dog", "owl"]


def test_pictures_without_splits_have_every_class_in_each(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for i in range(10):
            picture(tmp_path / "grey" / kind / f"{i}.png", (4, 4))
    dataset = converted(tmp_path / "grey", tmp_path / "out.zarr")
    assert dataset.field_names == ("intensity",)
    for start, stop in dataset.spec.splits.values():
        assert set(dataset.parameters["label"][start:stop]) == {0, 1}


def test_pictures_of_many_sizes_are_resized_if_asked(tmp_path: Path) -> None:
    picture(tmp_path / "mixed" / "a" / "1.png", (6, 5, 3))
    grey = picture(tmp_path / "mixed" / "b" / "2.png", (8, 8))
    with pytest.raises(
        SourceError, match=r"2\.png has 8 x 8 pixels, but .*1\.png has 5 x 6.*--size N"
    ):
        open_source(str(tmp_path / "mixed"), ConvertOptions())
    dataset = converted(tmp_path / "mixed", tmp_path / "out.zarr", size=4)
    assert dataset.spec.shape == (2, 1, 3, 4, 4)
    wanted = Image.fromarray(grey).convert("RGB").resize((4, 4), Image.Resampling.BILINEAR)
    assert (dataset.window(1, 0, 1)[0] == np.asarray(wanted).transpose(2, 0, 1)).all()


# -- volumes --------------------------------------------------------------------------------------


def volume(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.5, 1.0, 2.0, 1.0])), file)


def test_volumes_with_labels(tmp_path: Path) -> None:
    root = tmp_path / "Task01"
    images = RNG.normal(size=(4, 2, 6, 5, 4)).astype(np.float32)
    labels = RNG.integers(0, 3, (4, 6, 5, 4)).astype(np.uint8)
    for case in range(4):
        for modality in range(2):
            name = f"case_{case}_{modality:04d}.nii.gz"
            volume(root / "imagesTr" / name, images[case, modality])
        volume(root / "labelsTr" / f"case_{case}.nii.gz", labels[case])
    dataset = converted(root, tmp_path / "out.zarr")
    assert dataset.field_names == ("modality-0", "modality-1", "label")
    assert dataset.spec.grid_shape == (4, 5, 6)
    assert dataset.spec.domain_extent == (8.0, 5.0, 3.0)
    stored = everything(dataset)[:, 0]
    assert (stored[:, :2] == images.transpose(0, 1, 4, 3, 2)).all()
    assert (stored[:, 2] == labels.transpose(0, 3, 2, 1)).all()
    (root / "labelsTr" / "case_2.nii.gz").unlink()
    with pytest.raises(SourceError, match=r"labelsTr lacks label volumes for 1 of 4 cases: case_2"):
        open_source(str(root), ConvertOptions())


def test_scaled_volumes_of_one_size(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    (tmp_path / "v").mkdir()
    nibabel.save(image, tmp_path / "v" / "a.nii")
    wanted = np.asarray(nibabel.load(tmp_path / "v" / "a.nii").dataobj)
    dataset = converted(tmp_path / "v", tmp_path / "out.zarr")
    assert (dataset.window(0, 0, 1)[0, 0] == wanted.transpose(2, 1, 0)).all()
    volume(tmp_path / "v" / "b.nii", np.zeros((2, 3, 5), np.float32))
    with pytest.raises(
        SourceError, match=r"b\.nii: .*\(2, 3, 5\), but .* in .*a\.nii.* Resample or crop"
    ):
        open_source(str(tmp_path / "v"), ConvertOptions())


# -- microscopy -----------------------------------------------------------------------------------

AXES = [
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space", "unit": "micrometer"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]


def write_ome_zarr(place: Path, version: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Two levels of two channels, and a label image of each level."""
    full = RNG.integers(0, 4000, (2, 4, 6, 8)).astype(np.uint16)
    levels = [full, full[:, ::2, ::2, ::2]]
    labels = RNG.integers(0, 5, (4, 6, 8)).astype(np.int32)
    zarr_format: Any = 2 if version == "0.4" else 3
    root = zarr.open_group(place, mode="w", zarr_format=zarr_format)

    def scales(axes: int) -> list[dict[str, Any]]:
        return [
            {
                "path": str(i),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * (axes - 3) + [2.0 * 2**i, 0.5 * 2**i, 0.5]}
                ],
            }
            for i in range(2)
        ]

    def describe(group: Any, content: dict[str, Any]) -> None:
        if version == "0.4":
            group.attrs.update(content)
        else:
            group.attrs.update({"ome": {"version": version, **content}})

    multiscales = [{"axes": AXES, "datasets": scales(4), "version": version}]
    channels = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    describe(root, {"multiscales": multiscales, "omero": channels})
    for i, values in enumerate(levels):
        root.create_array(str(i), data=values)
    describe(root.create_group("labels"), {"labels": ["nuclei"]})
    nuclei = root.create_group("labels/nuclei")
    describe(nuclei, {"multiscales": [{"axes": AXES[1:], "datasets": scales(3)}]})
    nuclei.create_array("0", data=labels)
    nuclei.create_array("1", data=labels[::2, ::2, ::2])
    return levels, labels


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    (levels, labels), (others, _) = (
        write_ome_zarr(tmp_path / "screen" / f"{name}.ome.zarr", version) for name in ("a", "b")
    )
    dataset = converted(tmp_path / "screen", tmp_path / "out.zarr")
    assert dataset.field_names == ("DAPI", "GFP", "nuclei")
    assert dataset.spec.domain_extent == (8.0, 3.0, 4.0)
    stored = everything(dataset)
    assert (stored[0, 0, :2] == levels[0]).all()
    assert (stored[1, 0, :2] == others[0]).all()
    assert (stored[0, 0, 2] == labels).all()
    coarse = converted(tmp_path / "screen" / "a.ome.zarr", tmp_path / "coarse.zarr", level=1)
    assert (coarse.window(0, 0, 1)[0, :2] == levels[1]).all()
    with pytest.raises(SourceError, match=r"--level 2: .* has levels 0 to 1"):
        open_source(str(tmp_path / "screen"), ConvertOptions(level=2))


@pytest.mark.parametrize("kind", ["v2", "v3", "shard", "float"])
def test_missing_chunks_of_ome_zarr_are_counted_and_refused_unless_allowed(
    tmp_path: Path, kind: str
) -> None:
    image = tmp_path / "a.ome.zarr"
    (full, *_), _ = write_ome_zarr(image, "0.4" if kind == "v2" else "0.5")
    values = full.astype(np.float32 if kind == "float" else np.uint16)
    values[1, 2:] = 0
    root = zarr.open_group(image)
    # 2 x 2 x 2 x 2 chunks, of which the four of [1, 2:] hold the fill value and are left out
    shards = {"shards": (1, 4, 8, 8)} if kind == "shard" else {}
    del root["0"]
    array = root.create_array("0", shape=(2, 4, 6, 8), dtype=values.dtype, fill_value=0,
                              chunks=(1, 2, 4, 4), **shards)  # fmt: skip
    array[...] = values
    arguments = ["convert", str(image), str(tmp_path / "out.zarr")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2, refused.output
    told = " ".join(refused.output.split())
    assert "4 of 17 chunks of" in told  # 16 of the image, 1 of the labels
    assert "--allow-missing-chunks" in told
    assert not (tmp_path / "out.zarr").exists()
    allowed = CliRunner().invoke(app, [*arguments, "--allow-missing-chunks", "--verify"])
    assert allowed.exit_code == 0, allowed.output
    assert "4 of 17 chunks of" in " ".join(allowed.output.split())
    dataset = open_dataset(tmp_path / "out.zarr")
    assert (everything(dataset)[0, 0, :2] == values).all()
    assert dataset.spec.generator["missing_chunks"] == 4


def test_chunks_of_a_shard_past_the_end_are_no_gaps(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(5, 3), dtype="u2", chunks=(1, 2),
                              shards=(2, 4), fill_value=0)  # fmt: skip
    array[...] = 7
    assert count_chunks(str(tmp_path), "a.zarr", array) == ChunkCount(10, 0)
    array[4] = 0
    shutil.rmtree(tmp_path / "a.zarr/c/0")
    found = count_chunks(str(tmp_path), "a.zarr", array)
    assert (found.total, found.missing) == (10, 4 + 2)
    assert found.first_missing.endswith("a.zarr/c/0/0")


# -- plain arrays ---------------------------------------------------------------------------------


def write_mapping(file: Path, **changes: Any) -> str:
    mapping: dict[str, Any] = {
        "equation": "u_t + u u_x = 0",
        "fields": [
            {"file": "v.npy", "axes": list("nyxtc"), "names": ["velocity-x", "velocity-y"]},
            {"file": "rest.npz", "key": "p", "axes": list("ntyx"), "names": ["pressure"]},
            {"file": "more.h5", "key": "g/c", "axes": ["y", "x"], "names": ["coefficient"]},
            {"file": "z.zarr", "key": "s", "axes": ["n", "1", "y", "x"], "names": ["source"]},
        ],
        "parameters": {"gamma": 1.4, "nu": {"file": "more.h5", "key": "nu"}},
        "frame_interval": 0.1,
        "domain_extent": {"x": 2.0},
        "boundary_conditions": {"x": "periodic"},
        "splits": {"train": 3, "test": 2},
    }
    file.write_text(yaml.safe_dump({**mapping, **changes}, sort_keys=False))
    return str(file)


def test_plain_arrays_by_a_mapping(tmp_path: Path) -> None:
    velocity = RNG.normal(size=(5, 6, 4, 3, 2))  # [n, y, x, t, c], float64
    pressure = RNG.normal(size=(5, 3, 6, 4)).astype(np.float32)
    coefficient, source = RNG.normal(size=(6, 4)), RNG.normal(size=(5, 1, 6, 4))
    np.save(tmp_path / "v.npy", velocity)
    np.savez(tmp_path / "rest.npz", p=pressure, other=np.zeros(3))
    with h5py.File(tmp_path / "more.h5", "w") as f:
        f["g/c"], f["nu"] = coefficient, np.arange(5) / 7
    zarr.open_group(tmp_path / "z.zarr", mode="w").create_array("s", data=source)
    mapping = write_mapping(tmp_path / "map.yaml")
    dataset = converted(tmp_path, tmp_path / "out.zarr", mapping=mapping)
    stored = everything(dataset)
    assert (stored[:, :, :2] == velocity.astype(np.float32).transpose(0, 3, 4, 1, 2)).all()
    assert (stored[:, :, 2] == pressure).all()
    assert (stored[:, :, 3] == coefficient.astype(np.float32)).all()
    assert (stored[:, :, 4] == source.astype(np.float32)).all()
    assert dataset.spec.splits == {"train": (0, 3), "test": (3, 5)}
    assert dataset.spec.domain_extent == (1.0, 2.0)
    assert dataset.parameters["nu"].tolist() == (np.arange(5) / 7).tolist()
    assert dataset.parameters["gamma"].tolist() == [1.4] * 5
    # compressed archives are read too
    np.savez_compressed(tmp_path / "rest.npz", p=pressure)
    again = converted(tmp_path, tmp_path / "again.zarr", mapping=mapping, dtype="float16")
    assert (everything(again)[:, :, 2] == pressure.astype(np.float16)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feilds": []}, r"1 problem\n  line \d+: feilds: unknown key; did you mean 'fields'\?"),
        ({"splits": {"train": 9}}, r"map\.yaml: splits .* whole numbers that add up to at most 5"),
        (
            {"fields": [{"file": "v.npy", "axes": list("nyxt"), "names": ["u"]}]},
            r"v\.npy has shape \(5, 6, 4, 3, 2\), but the mapping names the axes \['n', 'y', 'x', 't'\]",
        ),
        (
            {"fields": [{"file": "v.npy", "axes": list("nyxtc"), "names": ["u"]}]},
            r"axis c has 2, expected 1",
        ),
        (
            {"fields": [{"file": "w.npy", "axes": list("nyx"), "names": ["u"]}]},
            r"w\.npy does not exist",
        ),
        (
            {"fields": [{"file": "m.h5", "key": "no", "axes": list("nyx"), "names": ["u"]}]},
            r"m\.h5 has no array 'no'",
        ),
    ],
)
def test_a_wrong_mapping_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "v.npy", np.zeros((5, 6, 4, 3, 2), np.float32))
    with h5py.File(tmp_path / "m.h5", "w") as f:
        f["yes"] = np.zeros((5, 6, 4))
    defaults: dict[str, Any] = {
        "fields": [{"file": "v.npy", "axes": list("nyxtc"), "names": ["u", "v"]}],
        "parameters": {},
    }
    mapping = write_mapping(tmp_path / "map.yaml", **{**defaults, **changes})
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path), ConvertOptions(mapping=mapping))
