"""Volumes in NIfTI files (.nii, .nii.gz), with label volumes where they exist.

Layouts: a folder of volumes; that of the Medical Segmentation Decathlon and of nnU-Net,
`imagesTr/CASE_0000.nii.gz` (one file per modality, or one file with an axis of modalities) next to
`labelsTr/CASE.nii.gz` and optionally `imagesTs`. Volumes are read in one canonical orientation
(`nifti_geometry`), nothing is resampled, and the affine matrices are kept in the dataset's
`generator` attribute.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.convert.agreement import Agreement
from pelagos.data_pipelines.convert.extras import require
from pelagos.data_pipelines.convert.formats import Format, named, natural, stored_bytes
from pelagos.data_pipelines.convert.nifti_geometry import (
    SAME_GRID_VOXELS,
    Volume,
    displacement,
    look,
    require_same_grid,
)
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field
from pelagos.data_pipelines.store.schema import LABEL_KIND
from pelagos.infra.storage.remote import is_remote

SUFFIXES = (".nii", ".nii.gz")
LABEL_FIELD = "label"  # as the objective `segmentation` looks for it
_MODALITY = re.compile(r"_(\d{4})$")

Numbered = dict[int | None, Path]  # the files of a case by the number of their modality


@dataclass(frozen=True)
class _Case:
    """The headers of one case: its images in the order of their modalities, and its label."""

    name: str
    images: tuple[Volume, ...]
    label: Volume | None

    @property
    def volumes(self) -> tuple[Volume, ...]:
        return self.images if self.label is None else (*self.images, self.label)


def _files(folder: Path) -> dict[str, Path]:
    """Files by name without suffix. Hidden files, which some archives hold, are left out.

    Raises:
        SourceError: two files have one name.
    """
    found: dict[str, Path] = {}
    files = [p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and p.name[0] != "."]
    for path in sorted(files, key=lambda p: natural(p.name)):
        name = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        if name in found:
            raise SourceError(f"{found[name]} and {path} are both the volume {name}: keep one")
        found[name] = path
    return found


def _volumes(folder: Path) -> dict[str, Numbered]:
    """Files by case and modality.

    `_0000` at a name's end is a modality's number where some file has it; where none does, four
    digits are a part of the case's name.
    """
    files = _files(folder)
    is_numbered = any(name.endswith("_0000") for name in files)
    found: dict[str, Numbered] = {}
    for name, path in files.items():
        match = _MODALITY.search(name) if is_numbered else None
        case = name[: match.start()] if match else name
        found.setdefault(case, {})[int(match[1]) if match else None] = path
    return found


def _labels(folder: Path, cases: dict[str, Numbered]) -> dict[str, Path]:
    """Label volumes by case, whose names may have a modality's number too.

    Raises:
        SourceError: a case has none.
    """
    files = _files(folder)
    shortened = {_MODALITY.sub("", name): path for name, path in files.items()}
    if len(shortened) < len(files):
        shortened = {}
    found = {case: files.get(case, shortened.get(case)) for case in cases}
    if missing := [case for case, path in found.items() if path is None]:
        raise SourceError(
            f"{folder} lacks label volumes for {len(missing)} of {len(cases)} cases: "
            f"{', '.join(missing[:5])}"
        )
    return {case: path for case, path in found.items() if path is not None}


def _folders(path: str) -> tuple[Path, Path | None]:
    """The folders of images and of labels."""
    place = Path(path)
    images = place / "imagesTr" if (place / "imagesTr").is_dir() else place
    sibling = images.with_name(images.name.replace("images", "labels"))
    has_labels = sibling != images and sibling.is_dir()
    return images, sibling if has_labels else None


def _matches(path: str, options: ConvertOptions) -> bool:
    if is_remote(path):
        return False
    if Path(path).is_file():
        return path.lower().endswith(SUFFIXES)
    return Path(path).is_dir() and bool(_volumes(_folders(path)[0]))


def _read(path: str, options: ConvertOptions) -> Source:
    nibabel = require("nibabel", f"reading {path}")
    if Path(path).is_file():
        by_case: dict[str, Numbered] = {named(path): {None: Path(path)}}
        label_folder = None
    else:
        images, label_folder = _folders(path)
        by_case = _volumes(images) if images.is_dir() else {}
    if not by_case:
        raise SourceError(f"{path} holds no volume ending in {' or '.join(SUFFIXES)}")
    numbers = _modalities(by_case)
    label_folder = Path(options.labels) if options.labels else label_folder
    labels = _labels(label_folder, by_case) if label_folder else {}
    cases = [
        _Case(
            name,
            tuple(look(nibabel, files[number]) for number in numbers),
            look(nibabel, labels[name]) if labels else None,
        )
        for name, files in by_case.items()
    ]
    notes = _agreement(cases)
    if len(cases) == 1 and len(numbers) > 1:
        notes.append(
            f"{cases[0].name} is read as one case of {len(numbers)} modalities, following its "
            "files' numbers"
        )
    first = cases[0].images[0]
    if first.num_channels > 1:
        notes.append(f"the fourth axis of {first.num_channels} is read as modalities, not as time")
    names = _names(numbers, first.num_channels)
    fields = [Field(name, name) for name in names]
    spacings = {case.images[0].spacing for case in cases}
    return Source(
        format="nifti",
        name=named(path),
        equation="volumes",
        fields=(*fields, *([Field(LABEL_FIELD, LABEL_KIND)] if labels else [])),
        splits={"all": tuple(_part(case, len(spacings) > 1) for case in cases)},
        num_frames=1,
        grid_shape=first.shape[::-1],
        domain_extent=tuple(n * d for n, d in zip(first.shape, first.spacing, strict=True))[::-1],
        notes=tuple(notes),
        details={
            "orientation": "RAS" if first.has_orientation else "not stored",
            "unit": first.unit,
            "spacing": list(first.spacing),
            "affine": first.affine.tolist(),
            **_other_affines(cases),
            "source_bytes": stored_bytes(str(v.file) for case in cases for v in case.volumes),
        },
    )


def _modalities(cases: dict[str, Numbered]) -> list[int | None]:
    """The numbers of the modalities, in order, which all cases have.

    Raises:
        SourceError: a case has others.
    """
    first_case, first = next(iter(cases.items()))
    for case, files in cases.items():
        if set(files) != set(first):
            raise SourceError(
                f"case {case} has {len(files)} modalities ({_listed(files)}), but {first_case} has "
                f"{len(first)} ({_listed(first)}). All cases of a dataset must have the same "
                "modalities, or a channel would change its meaning from case to case"
            )
    return sorted(first, key=lambda number: -1 if number is None else number)


def _listed(files: Numbered) -> str:
    return ", ".join(files[key].name for key in sorted(files, key=lambda k: -1 if k is None else k))


def _names(numbers: list[int | None], num_channels: int) -> list[str]:
    total = len(numbers) * num_channels
    if total == 1:
        return ["intensity"]
    if num_channels == 1:
        return [f"modality-{number or 0}" for number in numbers]
    return [f"modality-{i}" for i in range(total)]


def _agreement(cases: list[_Case]) -> list[str]:
    """Notes on permitted differences between volumes.

    Raises:
        SourceError: the volumes of a case lie apart, or something differs of which a dataset has
            one.
    """
    agreement = Agreement("Resample or crop the volumes to one size first")
    for case in cases:
        for volume in case.volumes:
            require_same_grid(case.images[0], volume)
        for volume in case.images:
            place = str(volume.file)
            agreement.require("the number of voxels (x, y, z)", place, volume.shape)
            agreement.require("the number of modalities", place, volume.num_channels)
        if case.label is not None and case.label.num_channels != 1:
            raise SourceError(f"{case.label.file} has a fourth axis, expected a label [x, y, z]")
    headers = Agreement("Write the voxels' positions into the headers, in one unit")
    for case in cases:
        place = str(case.images[0].file)
        headers.require("the presence of an orientation", place, case.images[0].has_orientation)
        headers.require("the unit of positions", place, case.images[0].unit)
        headers.remark(
            "the voxels' spacing (x, y, z)",
            place,
            case.images[0].spacing,
            "each case keeps its own as the parameters spacing-x, spacing-y, spacing-z; resample "
            "the volumes if a voxel must have one size",
        )
    volumes = [volume for case in cases for volume in case.volumes]
    return [
        "the domain comes from the first volume, in its header's units",
        *headers.notes,
        *_orientation_notes(volumes),
    ]


def _orientation_notes(volumes: list[Volume]) -> list[str]:
    notes = []
    if turned := sum(volume.is_turned for volume in volumes):
        notes.append(
            f"{turned} of {len(volumes)} volumes are turned to the orientation RAS (x to the right, "
            "y to the front, z up) by their affine matrices; nothing is resampled"
        )
    if not volumes[0].has_orientation:
        notes.append(
            f"{volumes[0].file} and the others do not record their orientation (sform_code and "
            "qform_code are 0), so they stay as stored"
        )
    if ambiguous := [volume for volume in volumes if volume.is_ambiguous]:
        notes.append(
            f"s-form and q-form disagree in {len(ambiguous)} volumes, e.g. {ambiguous[0].file}: the "
            "affine matrix of the s-form is used"
        )
    return notes


def _other_affines(cases: list[_Case]) -> dict[str, Any]:
    """The affine matrix of every case, where they differ."""
    first = cases[0].images[0]
    apart = [displacement(first.affine, c.images[0].affine, first.shape) for c in cases]
    if max(apart) <= SAME_GRID_VOXELS:
        return {}
    return {"affines": {case.name: case.images[0].affine.tolist() for case in cases}}


def _part(case: _Case, has_own_spacing: bool) -> Part:
    arrays: list[StoredArray] = []
    channel = 0
    for volume in case.volumes:
        arrays.append(
            StoredArray(
                "nifti",
                str(volume.file),
                "",
                volume.axes.replace("c", "1") if volume is case.label else volume.axes,
                channel,
                volume.num_channels,
                is_label=volume is case.label,
                flipped=volume.flipped,
            )
        )
        channel += volume.num_channels
    spacing = zip("xyz", case.images[0].spacing, strict=True)
    own = {f"spacing-{letter}": length for letter, length in spacing} if has_own_spacing else {}
    return Part(tuple(arrays), parameters=own)


FORMAT = Format(
    "nifti",
    "NIfTI volumes, with label volumes",
    "a volume, a folder of volumes, or one with imagesTr and labelsTr (--labels DIR)",
    _matches,
    _read,
)
