"""OME-Zarr images (NGFF 0.4 and 0.5): one, or a folder of images.

Facts of the format: https://ngff.openmicroscopy.org. `multiscales` is in the group's attributes
(0.4, Zarr v2) or under its attribute `ome` (0.5, Zarr v3) and lists `axes` and, per level of the
pyramid, a `path` and its `coordinateTransformations`. Channel names are those of `omero`, where
given; label images under `labels` become one field each.

Writers may leave out a chunk that holds the fill value alone. A chunk that was lost looks the same,
so absent chunks are counted, and rejected unless the options allow them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pelagos.data_pipelines.convert.agreement import Agreement
from pelagos.data_pipelines.convert.formats import Format, named, natural
from pelagos.data_pipelines.convert.missing_chunks import ChunkCount, count_chunks
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field
from pelagos.data_pipelines.store.schema import AXIS_NAMES, LABEL_KIND
from pelagos.infra.storage.remote import is_remote, storage_options

_AXES_BEFORE_0_4 = ("t", "c", "z", "y", "x")


def _images(path: str) -> list[str]:
    """The image at `path`, or those in the folder there."""
    if _attributes(path) is not None:
        return [path]
    if is_remote(path) or not Path(path).is_dir():
        return []
    found = [p for p in Path(path).iterdir() if p.is_dir() and _attributes(str(p)) is not None]
    return [str(p) for p in sorted(found, key=lambda p: natural(p.name))]


def _attributes(path: str) -> dict[str, Any] | None:
    """The attributes of NGFF of a group that is an image; else None."""
    if not is_remote(path) and not any(
        (Path(path) / name).is_file() for name in (".zattrs", "zarr.json")
    ):
        return None
    try:
        found: dict[str, Any] = dict(_group(path).attrs)
    except (OSError, ValueError, KeyError):
        return None
    inner: dict[str, Any] = found.get("ome", found)
    return inner if "multiscales" in inner else None


def _group(path: str) -> Any:
    import zarr

    return zarr.open_group(path, mode="r", storage_options=storage_options(path) or None)


def _matches(path: str, options: ConvertOptions) -> bool:
    return bool(_images(path))


def _read(path: str, options: ConvertOptions) -> Source:
    images = _images(path)
    if not images:
        raise SourceError(
            f"{path}: expected an OME-Zarr image (a Zarr group with the attribute multiscales), or "
            "a folder of such images"
        )
    looks = [_look(image, options) for image in images]
    first = looks[0]
    agreement = Agreement()
    for image, look in zip(images, looks, strict=True):
        agreement.require("the list of channels and labels", image, look["fields"])
        agreement.require("the size", image, look["sizes"])
        agreement.require("the unit", image, look["units"])
        agreement.require("the size of a pixel (scale)", image, look["scale"])
    order = AXIS_NAMES[len(set(first["sizes"]) & {"x", "y", "z"})]
    sizes, scale = first["sizes"], first["scale"]
    num_images = len(first["fields"]) - first["num_labels"]
    num_missing, notes = _missing(path, [c for look in looks for c in look["chunks"]], options)
    return Source(
        format="ome-zarr",
        name=named(path),
        equation="microscopy images",
        fields=tuple(
            Field(name, LABEL_KIND if i >= num_images else name)
            for i, name in enumerate(first["fields"])
        ),
        splits={"all": tuple(look["part"] for look in looks)},
        num_frames=sizes.get("t", 1),
        grid_shape=tuple(sizes[letter] for letter in order),
        frame_interval=scale.get("t", 1.0),
        domain_extent=tuple(sizes[letter] * scale.get(letter, 1.0) for letter in order),
        notes=notes,
        details={
            "level": options.level,
            "units": first["units"],
            "num_images": len(images),
            **({"missing_chunks": num_missing} if num_missing else {}),
        },
    )


def _missing(
    path: str, counts: list[ChunkCount], options: ConvertOptions
) -> tuple[int, tuple[str, ...]]:
    """The number of absent chunks, and the note about them.

    Raises:
        SourceError: some are not, and that is not allowed.
    """
    total, missing = sum(c.total for c in counts), sum(c.missing for c in counts)
    if not missing:
        return 0, ()
    found = f"{missing} of {total} chunks of {path} are missing"
    if options.allow_missing_chunks:
        return missing, (f"{found}; they read as the fill value of their array",)
    first = next(c.first_missing for c in counts if c.missing)
    raise SourceError(
        f"{found}, the first in {first}. A writer may leave out chunks that hold only the fill "
        "value (background), but lost chunks look the same. Restore them from a copy. If the "
        "writer left them out, allow it with --allow-missing-chunks: they become the fill value"
    )


def _look(image: str, options: ConvertOptions) -> dict[str, Any]:
    """Fields, sizes, scale, arrays and numbers of chunks of one image."""
    level = options.level
    reader = "zarr" if options.allow_missing_chunks else "strict-zarr"
    attributes = _attributes(image)
    assert attributes is not None
    array, letters, scale, units, origin = _level(image, "", attributes, level)
    sizes = dict(zip(letters, array.shape, strict=True))
    channels = int(sizes.pop("c", 1))
    fields = _channel_names(attributes, channels)
    key = _dataset(image, attributes, level)["path"]
    arrays = [StoredArray(reader, image, key, "".join(letters), 0, channels)]
    chunks = [count_chunks(image, key, array)]
    label_names: list[str] = []
    for name in _label_images(image):
        inner = _attributes(f"{image}/labels/{name}") or {}
        place = f"{image}/labels/{name}"
        labels, label_letters, *geometry = _level(image, f"labels/{name}/", inner, level)
        _require_same_grid(image, (scale, units, origin), place, geometry)
        axes = "".join("1" if letter == "c" else letter for letter in label_letters)
        found = {k: v for k, v in zip(axes, labels.shape, strict=True) if k in sizes and k != "1"}
        if any(sizes[k] != v for k, v in found.items()):
            raise SourceError(
                f"{image}/labels/{name}: level {level} has {found}, but the image has {sizes}"
            )
        label_key = f"labels/{name}/{_dataset(image, inner, level)['path']}"
        number = len(fields) + len(label_names)
        arrays.append(StoredArray(reader, image, label_key, axes, number, is_label=True))
        chunks.append(count_chunks(image, label_key, labels))
        label_names.append(name)
    return {
        "fields": (*fields, *label_names),
        "num_labels": len(label_names),
        "sizes": {k: int(v) for k, v in sizes.items()},
        "scale": {letter: scale[letter] for letter in letters if letter != "c"},
        "units": units,
        "part": Part(tuple(arrays)),
        "chunks": chunks,
    }


def _require_same_grid(image: str, of_image: Any, labels: str, of_labels: Any) -> None:
    """Raises SourceError where a label image lies elsewhere than its image.

    Another scale, unit or translation of an axis that both have.
    """
    agreement = Agreement("A label must match its image: write both on one grid")
    for what, mine, theirs in zip(
        ("the scale", "the unit", "the translation"), of_image, of_labels, strict=True
    ):
        for letter in set(mine) & set(theirs) - {"c"}:
            agreement.require(f"{what} along {letter}", image, mine[letter])
            agreement.require(f"{what} along {letter}", labels, theirs[letter])


def _dataset(image: str, attributes: dict[str, Any], level: int) -> dict[str, Any]:
    levels: list[dict[str, Any]] = attributes["multiscales"][0]["datasets"]
    if not 0 <= level < len(levels):
        raise SourceError(f"--level {level}: {image} has levels 0 to {len(levels) - 1}")
    return levels[level]


def _level(
    image: str, prefix: str, attributes: dict[str, Any], level: int
) -> tuple[Any, tuple[str, ...], dict[str, float], dict[str, str], dict[str, float]]:
    """The array of a level, the letters of its axes, their scale, units and translation."""
    dataset = _dataset(image, attributes, level)
    array: Any = _group(image)[prefix + dataset["path"]]
    axes = attributes["multiscales"][0].get("axes") or _AXES_BEFORE_0_4[-len(array.shape) :]
    named_axes = [{"name": a} if isinstance(a, str) else a for a in axes]
    letters = tuple(str(axis["name"]).lower() for axis in named_axes)
    if not {"y", "x"} <= set(letters) <= set(_AXES_BEFORE_0_4) or len(letters) != len(array.shape):
        raise SourceError(
            f"{image}: axes {letters} of an array of shape {array.shape}; expected y and x, with at "
            "most t, c, z before them"
        )
    scale = dict.fromkeys(letters, 1.0)
    transformations = [
        *dataset.get("coordinateTransformations", []),
        *attributes["multiscales"][0].get("coordinateTransformations", []),
    ]
    origin = dict.fromkeys(letters, 0.0)
    for transformation in transformations:  # in this order: a later scale moves the origin too
        for letter, factor in zip(letters, transformation.get("scale", []), strict=False):
            scale[letter] *= float(factor)
            origin[letter] *= float(factor)
        for letter, shift in zip(letters, transformation.get("translation", []), strict=False):
            origin[letter] += float(shift)
    units = {str(axis["name"]).lower(): axis["unit"] for axis in named_axes if "unit" in axis}
    return array, letters, scale, units, origin


def _channel_names(attributes: dict[str, Any], channels: int) -> tuple[str, ...]:
    listed = [str(c.get("label", "")) for c in attributes.get("omero", {}).get("channels", [])]
    if len(listed) == channels and all(listed) and len(set(listed)) == channels:
        return tuple(listed)
    return ("intensity",) if channels == 1 else tuple(f"channel-{i}" for i in range(channels))


def _label_images(image: str) -> list[str]:
    """Names of the label images of an image."""
    try:
        attributes: dict[str, Any] = dict(_group(f"{image}/labels").attrs)
    except (OSError, ValueError, KeyError):
        return []
    listed = attributes.get("ome", attributes).get("labels", [])
    return [str(name) for name in listed]


FORMAT = Format(
    "ome-zarr",
    "OME-Zarr images, NGFF 0.4 and 0.5",
    "an image or a folder of images (--level N of the pyramid; --allow-missing-chunks)",
    _matches,
    _read,
)
