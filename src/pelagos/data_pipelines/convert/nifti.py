"""Volumes in NIfTI files (.nii, .nii.gz), with label volumes where there are some.

Layouts: a folder of volumes; that of the Medical Segmentation Decathlon and of nnU-Net,
`imagesTr/CASE_0000.nii.gz` (one file per modality, or one file with an axis of modalities) beside
`labelsTr/CASE.nii.gz` and optionally `imagesTs`. Stored axes are `[x, y, z(, modality)]` in the
order of the file; nothing is resampled or turned, and the affine matrix of the first volume is kept
in the dataset's `generator` attribute.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.convert.extras import require
from pelagos.data_pipelines.convert.formats import Format, named, natural, stored_bytes
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field
from pelagos.infra.object_store import is_remote

SUFFIXES = (".nii", ".nii.gz")
LABEL_FIELD = "label"  # as the objective `segmentation` looks for it
_MODALITY = re.compile(r"_(\d{4})$")


def _volumes(folder: Path) -> dict[str, list[Path]]:
    """Files by case, modalities in order. Hidden files, which some archives hold, are left out."""
    found: dict[str, list[Path]] = {}
    files = [p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and p.name[0] != "."]
    for path in sorted(files, key=lambda p: natural(p.name)):
        found.setdefault(_MODALITY.sub("", named(path.name)), []).append(path)
    return found


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
        return path.endswith(SUFFIXES)
    return Path(path).is_dir() and bool(_volumes(_folders(path)[0]))


def _read(path: str, options: ConvertOptions) -> Source:
    nibabel = require("nibabel", f"reading {path}")
    if Path(path).is_file():
        cases, label_folder = {named(path): [Path(path)]}, None
    else:
        images, label_folder = _folders(path)
        cases = _volumes(images) if images.is_dir() else {}
    if not cases:
        raise SourceError(f"{path} holds no volume ending in {' or '.join(SUFFIXES)}")
    label_folder = Path(options.labels) if options.labels else label_folder
    labels = _volumes(label_folder) if label_folder else {}
    if label_folder and (missing := sorted(set(cases) - set(labels), key=natural)):
        raise SourceError(
            f"{label_folder} has no label volume for {len(missing)} of {len(cases)} cases: "
            f"{', '.join(missing[:5])}"
        )
    first_case = next(iter(cases))
    shape, channels = _shape(nibabel, cases[first_case][0])
    num_files = len(cases[first_case])
    parts = []
    for case, files in cases.items():
        if len(files) != num_files:
            raise SourceError(
                f"{files[0]}: case {case} has {len(files)} modalities, {first_case} has {num_files}"
            )
        arrays = [
            _array(nibabel, file, i * channels, channels, shape, first_case)
            for i, file in enumerate(files)
        ]
        if labels:
            arrays.append(
                _array(nibabel, labels[case][0], num_files * channels, 1, shape, first_case)
            )
        parts.append(Part(tuple(arrays)))
    names = [f"modality-{i}" for i in range(num_files * channels)]
    names = ["intensity"] if len(names) == 1 else names
    header: Any = nibabel.load(cases[first_case][0])
    spacing = [float(f"{size:.6g}") for size in header.header.get_zooms()[:3]]
    return Source(
        format="nifti",
        name=named(path),
        equation="volumes",
        fields=tuple(Field(n, n) for n in [*names, *([LABEL_FIELD] if labels else [])]),
        splits={"all": tuple(parts)},
        num_frames=1,
        grid_shape=shape[::-1],
        domain_extent=tuple(n * d for n, d in zip(shape, spacing, strict=True))[::-1],
        notes=("the domain is that of the first volume, in its header's units",),
        details={
            "affine": header.affine.tolist(),
            "source_bytes": stored_bytes(str(f) for files in cases.values() for f in files),
        },
    )


def _shape(nibabel: Any, file: Path) -> tuple[tuple[int, int, int], int]:
    """`(x, y, z)` and the number of modalities of a volume.

    Raises:
        SourceError: it is no volume.
    """
    try:
        shape = tuple(map(int, nibabel.load(file).shape))
    except (nibabel.filebasedimages.ImageFileError, OSError) as error:
        raise SourceError(f"{file} cannot be read as NIfTI: {error}") from error
    if len(shape) not in (3, 4):
        raise SourceError(f"{file} has shape {shape}, expected is [x, y, z] or [x, y, z, modality]")
    return (shape[0], shape[1], shape[2]), shape[3] if len(shape) == 4 else 1


def _array(
    nibabel: Any,
    file: Path,
    channel: int,
    channels: int,
    wanted: tuple[int, int, int],
    first_case: str,
) -> StoredArray:
    shape, found = _shape(nibabel, file)
    if shape != wanted or found != channels:
        raise SourceError(
            f"{file} has {shape} voxels and {found} modalities, expected as of {first_case} are "
            f"{wanted} and {channels}: resample or crop the volumes to one size first"
        )
    axes = "xyzc" if len(nibabel.load(file).shape) == 4 else "xyz"
    return StoredArray("nifti", str(file), "", axes, channel, channels)


FORMAT = Format(
    "nifti",
    "NIfTI volumes, with label volumes",
    "a volume, a folder of volumes, or one with imagesTr and labelsTr (--labels DIR)",
    _matches,
    _read,
)
