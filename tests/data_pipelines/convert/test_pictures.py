"""Pictures of every depth, orientation and colour model, and the folders they come in."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.store import Dataset, open_dataset
from pelagos.jobs import convert

RNG = np.random.default_rng(2)
Array = np.ndarray


def save(file: Path, values: Array, **options: Any) -> Array:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file, **options)
    return values


def colours(*shape: int) -> Array:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def converted(source: Path, **options: Any) -> tuple[Dataset, tuple[str, ...]]:
    uri = source.parent / f"{source.name}-out.zarr"
    result = convert.run(str(source), str(uri), ConvertOptions(**options), verify=True)
    assert result.differences == ()
    return open_dataset(uri), result.notes


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(SourceError) as found:
        open_source(str(path), ConvertOptions(**options))
    return str(found.value)


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def deep_colour_png(values: Array) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write; `values` `[y, x, 3]`."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


# -- depth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("png", np.array([[0, 255, 256], [4095, 60000, 65535]], np.uint16)),
        ("tif", np.array([[0, 255, 256], [4095, 60000, 65535]], np.uint16)),
        ("tif", np.array([[0, 0.25, 1e-6], [1, -3.5, 1e30]], np.float32)),
        ("tif", np.array([[0, -5, 70000], [2**24, 1, 2]], np.int32)),
        ("png", np.array([[0, 255, 1], [128, 60, 65]], np.uint8)),
    ],
)
def test_values_of_any_depth_stay_as_they_are(tmp_path: Path, suffix: str, values: Array) -> None:
    save(tmp_path / "p" / "a" / f"1.{suffix}", values)
    dataset, notes = converted(tmp_path / "p")
    assert dataset.field_names == ("intensity",)
    assert np.array_equal(dataset.window(0, 0, 1)[0, 0], values.astype(np.float32))
    assert notes == ()


def test_depths_do_not_mix_and_deep_colour_is_rejected(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a" / "1.png", colours(4, 5))
    save(tmp_path / "p" / "a" / "2.png", colours(4, 5).astype(np.uint16))
    told = refusal(tmp_path / "p")
    assert "2.png: the depth of a value is 16 bits, but" in told
    assert "but 8 bits in" in told
    deep = tmp_path / "p" / "a" / "2.png"
    deep.write_bytes(deep_colour_png(RNG.integers(0, 65536, (4, 5, 3))))
    assert "2.png has RGB of 16 bits per channel" in refusal(tmp_path / "p")


def test_integers_that_float32_rounds_are_rejected(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a" / "1.tif", np.full((2, 2), 2**24 + 1, np.int32))
    with pytest.raises(SourceError, match=r"1\.tif.* holds the whole number 16777217"):
        convert.run(str(tmp_path / "p"), str(tmp_path / "out.zarr"))


def test_deep_pictures_are_resized_in_float(tmp_path: Path) -> None:
    values = save(tmp_path / "p" / "a" / "1.png", np.array([[0, 60000], [20, 40]], np.uint16))
    dataset, _ = converted(tmp_path / "p", size=1)
    assert dataset.window(0, 0, 1)[0, 0, 0, 0] == pytest.approx(values.mean(), rel=1e-6)


# -- colour and orientation -----------------------------------------------------------------------


def test_colour_models_become_rgb_with_a_note(tmp_path: Path) -> None:
    rgb = colours(3, 4, 3)
    alpha = np.dstack([rgb, np.full((3, 4), 9, np.uint8)])
    palette = np.array([[255, 0, 0], [1, 2, 3]], np.uint8)
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    indexed.putpalette(palette.ravel().tolist())
    for name, picture in {
        "alpha": Image.fromarray(alpha),
        "palette": indexed,
        "bits": Image.fromarray(np.array([[True, False]])),
        "cmyk": Image.fromarray(np.array([[[0, 255, 0, 0], [0, 0, 0, 255]]], np.uint8), "CMYK"),
    }.items():
        folder = tmp_path / name / "a"
        folder.mkdir(parents=True)
        picture.save(folder / ("1.tif" if name == "cmyk" else "1.png"))
    expected = {
        "alpha": (rgb, "stored without their alpha channel"),
        "palette": (palette[[[0, 1], [1, 0]]], "converted from P to RGB"),
        "bits": (np.array([[[255], [0]]]), ""),
        "cmyk": (np.array([[[255, 0, 255], [0, 0, 0]]]), "converted from CMYK to RGB"),
    }
    for name, (values, remark) in expected.items():
        dataset, notes = converted(tmp_path / name)
        assert np.array_equal(dataset.window(0, 0, 1)[0], values.transpose(2, 0, 1)), name
        assert remark in " ".join(notes)
        assert bool(notes) == bool(remark)


# How a picture that is stored under an orientation of EXIF is meant to be seen.
SEEN: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_pictures_are_turned_as_exif_says(tmp_path: Path, suffix: str) -> None:
    for turned in ((1, 2, 3, 4), (5, 6, 7, 8)):
        root = tmp_path / f"p{turned[0]}"
        truth = []
        for orientation in turned:
            exif = Image.Exif()
            exif[0x0112] = orientation
            values = colours(4, 6, 3)
            options = {"lossless": True} if suffix == "webp" else {}
            save(root / "a" / f"{orientation}.{suffix}", values, exif=exif, **options)
            truth.append(SEEN[orientation](values))
        dataset, notes = converted(root, splits={"train": 1.0})
        for number, values in enumerate(truth):
            stored = dataset.window(number, 0, 1)[0]
            assert np.array_equal(stored, values.transpose(2, 0, 1)), turned[number]
        assert f"{3 if 1 in turned else 4} pictures are turned by their EXIF" in " ".join(notes)


def test_pages_empty_and_broken_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "p" / "a" / "1.tif"
    pages = [Image.fromarray(colours(4, 4)) for _ in range(3)]
    file.parent.mkdir(parents=True)
    pages[0].save(file, save_all=True, append_images=pages[1:])
    assert "1.tif has 3 pages or frames" in refusal(tmp_path / "p")
    file.unlink()
    pages[0].save(file.with_suffix(".gif"), save_all=True, append_images=pages[1:])
    assert "1.gif has 3 pages or frames" in refusal(tmp_path / "p")
    file.with_suffix(".gif").unlink()
    file.with_suffix(".PNG").write_bytes(b"")
    assert "1.PNG is empty" in refusal(tmp_path / "p")
    file.with_suffix(".PNG").write_bytes(b"no picture at all")
    assert "1.PNG cannot be read as a picture" in refusal(tmp_path / "p")
    file.with_suffix(".PNG").unlink()
    save(file.with_suffix(".png"), colours(64, 64))
    content = file.with_suffix(".png").read_bytes()
    file.with_suffix(".png").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"cannot read .*1\.png as a picture: .*truncated"):
        convert.run(str(tmp_path / "p"), str(tmp_path / "out.zarr"))


def test_of_a_phones_picture_with_previews_the_picture_is_read(tmp_path: Path) -> None:
    file = tmp_path / "p" / "a" / "1.jpg"
    file.parent.mkdir(parents=True)
    main, preview = Image.fromarray(colours(8, 8, 3)), Image.fromarray(colours(4, 4, 3))
    main.save(file, format="MPO", save_all=True, append_images=[preview])
    main.save(tmp_path / "alone.jpg")
    with Image.open(tmp_path / "alone.jpg") as alone:
        wanted = np.asarray(alone)
    dataset, notes = converted(tmp_path / "p")
    assert np.array_equal(dataset.window(0, 0, 1)[0], wanted.transpose(2, 0, 1))
    assert "read without the previews and depth maps" in " ".join(notes)


# -- folders --------------------------------------------------------------------------------------


def test_linked_folders_and_files_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    store = [save(tmp_path / "store" / f"{i}.png", colours(4, 4, 3)) for i in range(2)]
    own = save(tmp_path / "p" / "b" / "0.png", colours(4, 4, 3))
    (tmp_path / "p" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "p" / "b" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "p" / "b" / "up").symlink_to(tmp_path / "p")
    save(tmp_path / "p" / "b" / ".hidden" / "9.png", colours(4, 4, 3))
    save(tmp_path / "p" / "b" / "._0.png", colours(4, 4, 3), format="PNG")
    (tmp_path / "p" / "b" / "read.txt").write_text("x")
    save(tmp_path / "p" / "stray.png", colours(4, 4, 3))
    dataset, notes = converted(tmp_path / "p", splits={"train": 1.0})
    stored = [dataset.window(i, 0, 1)[0].transpose(1, 2, 0) for i in range(5)]
    labels = dataset.parameters["label"].tolist()
    for label, truth in ((0, store), (1, [own, *store])):
        found = [values for values, number in zip(stored, labels, strict=True) if number == label]
        assert len(found) == len(truth)
        assert all(any(np.array_equal(v, t) for v in found) for t in truth)
    told = " ".join(notes)
    assert "b/up links to a folder above it" in told
    assert "1 files are not pictures and are left out" in told
    assert "1 pictures belong to no class" in told
    (tmp_path / "p" / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "gone.png is a link to" in refusal(tmp_path / "p")


def test_two_folders_of_one_split_are_rejected(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        save(tmp_path / "p" / split / "a" / "1.png", colours(4, 4, 3))
    told = refusal(tmp_path / "p")
    assert "p/val and" in told
    assert "p/valid are both the split validation" in told
    assert "both the split validation" in refusal(tmp_path / "p", format="images")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for kind in ("bus", "train", "tram"):
        save(tmp_path / "p" / kind / "1.png", colours(4, 4, 3))
    dataset, notes = converted(tmp_path / "p", splits={"train": 1.0})
    assert dataset.spec.generator["classes"] == ["bus", "train", "tram"]
    assert dataset.num_trajectories == 3
    assert "train hold pictures next to folders of other classes (e.g. bus" in " ".join(notes)
    # the same as a split: then other folders beside it are pointed out
    for kind in ("train", "test"):
        save(tmp_path / "q" / kind / "train" / "1.png", colours(4, 4, 3))
    save(tmp_path / "q" / "unlabelled" / "1.png", colours(4, 4, 3))
    dataset, notes = converted(tmp_path / "q")
    assert dataset.spec.splits == {"train": (0, 1), "test": (1, 2)}
    assert dataset.spec.generator["classes"] == ["train"]
    assert notes == ("folders next to test, train that are not splits are left out: unlabelled",)
    for kind in ("train", "test"):
        save(tmp_path / "r" / kind / "1.png", colours(4, 4, 3))
    assert "is named like a split but holds pictures itself" in refusal(tmp_path / "r")


def test_an_archive_is_answered_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pictures.tar.gz").write_bytes(b"x")
    assert "pictures.tar.gz is an archive: unpack it" in refusal(tmp_path / "pictures.tar.gz")
    (tmp_path / "a.hdf5").write_bytes(b"")
    assert "a.hdf5 is empty (0 bytes)" in refusal(tmp_path / "a.hdf5")
