"""Volumes of any orientation, against nibabel; labels and modalities that lie elsewhere."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.store import Dataset, open_dataset
from pelagos.jobs import convert

RNG = np.random.default_rng(3)
PLAIN = np.diag([0.5, 1.0, 2.0, 1.0])


def save(file: Path, values: np.ndarray, affine: np.ndarray | None = PLAIN, **header: Any) -> Any:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units(header.get("unit", "mm"))
    nibabel.save(image, file)
    return nibabel.load(file)


def mirrored(affine: np.ndarray, size: int) -> np.ndarray:
    """The affine matrix under which `values[::-1]` lie where `values` lie under `affine`."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = size - 1
    return affine @ flip


def converted(source: Path, **options: Any) -> tuple[Dataset, tuple[str, ...]]:
    uri = source.parent / f"{source.name}-out.zarr"
    result = convert.run(str(source), str(uri), ConvertOptions(**options), verify=True)
    assert result.differences == ()
    return open_dataset(uri), result.notes


def refusal(path: Path) -> str:
    with pytest.raises(SourceError) as found:
        open_source(str(path), ConvertOptions())
    return str(found.value)


def test_all_48_orientations_become_what_nibabel_makes_of_them(tmp_path: Path) -> None:
    """Every order and direction of the axes, oblique by 10 degrees, stored as a volume of its own."""
    canonical = (6, 5, 4)
    turn = np.eye(4)
    angle = np.deg2rad(10)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    wanted = []
    for number, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for stored, (axis, sign) in enumerate(zip(order, signs, strict=True)):
            affine[axis, stored] = sign * (0.5, 1.0, 2.0)[axis]
        affine[:3, 3] = RNG.normal(size=3) * 50
        shape = [canonical[axis] for axis in order]
        image = save(tmp_path / "v" / f"c{number}.nii", RNG.normal(size=shape), turn @ affine)
        wanted.append(nibabel.as_closest_canonical(image))
    dataset, notes = converted(tmp_path / "v")
    assert dataset.num_trajectories == 48
    for number, image in enumerate(wanted):
        stored = dataset.window(number, 0, 1)[0, 0]
        values = image.get_fdata(dtype=np.float32).transpose(2, 1, 0)
        assert np.array_equal(stored, values), number
        kept = dataset.spec.generator["affines"][f"c{number}"]
        np.testing.assert_allclose(kept, image.affine, atol=1e-5)
    assert dataset.spec.domain_extent == pytest.approx((8.0, 5.0, 3.0))
    assert dataset.spec.generator["orientation"] == "RAS"
    assert "47 of 48 volumes are turned to the orientation RAS" in " ".join(notes)


def test_a_mirrored_label_and_modality_lie_on_the_image(tmp_path: Path) -> None:
    image = RNG.random((10, 8, 6)).astype(np.float32)
    label = (image > 0.5).astype(np.uint8)
    for case in range(2):
        save(tmp_path / f"t/imagesTr/c{case}_0000.nii.gz", image)
        save(tmp_path / f"t/imagesTr/c{case}_0001.nii.gz", image[::-1], mirrored(PLAIN, 10))
        save(tmp_path / f"t/labelsTr/c{case}.nii.gz", label[::-1], mirrored(PLAIN, 10))
    dataset, _ = converted(tmp_path / "t")
    stored = dataset.window(1, 0, 1)[0]
    assert np.array_equal(stored[0], image.transpose(2, 1, 0))
    assert np.array_equal(stored[1], stored[0])
    assert np.array_equal(stored[2], stored[0] > 0.5)
    assert dataset.spec.fields[2].kind == "label"
    assert dataset.spec.generator["spacing"] == [0.5, 1.0, 2.0]
    np.testing.assert_allclose(dataset.spec.generator["affine"], PLAIN)


def moved(shift: float) -> np.ndarray:
    affine = PLAIN.copy()
    affine[0, 3] = shift
    return affine


@pytest.mark.parametrize(
    ("label", "what"),
    [
        ({"affine": moved(0.5)}, "put a corner 1 voxels apart"),
        ({"affine": np.diag([0.5, 1.0, 2.5, 1.0])}, "put a corner 5 voxels apart"),
        ({"affine": None}, "c0.nii does not record its orientation"),
        ({"shape": (10, 8, 5)}, "has (10, 8, 5) voxels (x, y, z)"),
    ],
)
def test_a_label_on_another_grid_is_rejected(
    tmp_path: Path, label: dict[str, Any], what: str
) -> None:
    save(tmp_path / "imagesTr" / "c0_0000.nii", np.zeros((10, 8, 6), np.float32))
    values = np.zeros(label.get("shape", (10, 8, 6)), np.uint8)
    save(tmp_path / "labelsTr" / "c0.nii", values, label.get("affine", PLAIN))
    told = refusal(tmp_path)
    assert what in told
    assert "labelsTr/c0.nii" in told
    assert "imagesTr/c0_0000.nii" in told


def test_a_tenth_of_a_voxel_is_rounding(tmp_path: Path) -> None:
    save(tmp_path / "imagesTr" / "c0_0000.nii", np.zeros((4, 4, 4), np.float32))
    save(tmp_path / "labelsTr" / "c0.nii", np.zeros((4, 4, 4), np.uint8), moved(0.04))
    open_source(str(tmp_path), ConvertOptions())


def test_modalities_of_a_case_are_those_of_the_others(tmp_path: Path) -> None:
    for case, numbers in (("a", (0, 1)), ("b", (1, 2))):
        for number in numbers:
            save(tmp_path / f"{case}_{number:04d}.nii", np.zeros((4, 4, 4), np.float32))
    told = refusal(tmp_path)
    assert "case b has 2 modalities (b_0001.nii, b_0002.nii), but a has 2 (a_0000.nii" in told


def test_four_digits_are_a_name_where_none_is_0000(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / f"scan_{number:04d}.nii", np.full((4, 4, 4), number, np.float32))
        save(tmp_path / "labels" / f"scan_{number:04d}.nii", np.full((4, 4, 4), number, np.uint8))
    (tmp_path / "._scan_0001.nii").write_bytes(b"resource fork")
    options = ConvertOptions(labels=str(tmp_path / "labels"))
    source = open_source(str(tmp_path), options)
    assert source.num_trajectories == 2
    assert [Path(part.arrays[1].file).name for part in source.parts] == [
        "scan_0001.nii",
        "scan_0002.nii",
    ]
    save(tmp_path / "scan_0002.nii.gz", np.zeros((4, 4, 4), np.float32))
    assert "scan_0002.nii.gz are both the volume scan_0002" in refusal(tmp_path)


def test_cases_of_other_spacing_keep_their_own(tmp_path: Path) -> None:
    for case in range(3):
        affine = np.diag([1.0, 1.0, 2.5 * (case + 1), 1.0])
        save(tmp_path / "v" / f"c{case}.nii", np.zeros((4, 4, 4), np.float32), affine)
    dataset, notes = converted(tmp_path / "v")
    assert dataset.parameters["spacing-z"].tolist() == [2.5, 5.0, 7.5]
    assert dataset.parameters["spacing-x"].tolist() == [1.0] * 3
    assert "the voxels' spacing (x, y, z) differs: (1, 1, 2.5) in" in " ".join(notes)
    save(tmp_path / "v" / "c3.nii", np.zeros((4, 4, 4), np.float32), unit="micron")
    assert "the unit of positions is micron, but" in refusal(tmp_path / "v")


def test_a_header_without_orientation_stays_as_it_is_stored(tmp_path: Path) -> None:
    values = RNG.normal(size=(5, 4, 3)).astype(np.float32)
    for name in "ab":
        save(tmp_path / "v" / f"{name}.nii", values, None)
    dataset, notes = converted(tmp_path / "v")
    assert np.array_equal(dataset.window(0, 0, 1)[0, 0], values.transpose(2, 1, 0))
    assert dataset.spec.generator["orientation"] == "not stored"
    assert "do not record their orientation" in " ".join(notes)
    save(tmp_path / "v" / "c.nii", values)
    assert "c.nii: the presence of an orientation is True" in refusal(tmp_path / "v")


def test_two_forms_that_lie_apart_are_pointed_out(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), PLAIN)
    image.set_qform(moved(9.0), code=1)
    image.set_sform(PLAIN, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    notes = open_source(str(tmp_path / "a.nii"), ConvertOptions()).notes
    assert "s-form and q-form disagree in 1 volumes" in " ".join(notes)


@pytest.mark.parametrize(
    ("values", "dtype", "what"),
    [
        (
            np.float32([0, 1, 1.5, 2]),
            "float32",
            r"c0\.nii holds 1\.5, but labels are whole numbers",
        ),
        (np.int32([0, 1, 2**24 + 1, 2]), "float32", "holds the whole number 16777217"),
        (np.int32([0, 1, 2049, 2]), "float16", "label 2049 becomes 2048 in float16"),
        (np.int32([0, 1, 257, 2]), "bfloat16", "label 257 becomes 256 in bfloat16"),
    ],
)
def test_labels_are_whole_and_exact(
    tmp_path: Path, values: np.ndarray, dtype: Any, what: str
) -> None:
    save(tmp_path / "t/imagesTr" / "c0_0000.nii", np.ones((4, 1, 1), np.float32))
    save(tmp_path / "t/labelsTr" / "c0.nii", values.reshape(4, 1, 1))
    with pytest.raises(SourceError, match=what):
        convert.run(str(tmp_path / "t"), str(tmp_path / "out.zarr"), ConvertOptions(dtype=dtype))
