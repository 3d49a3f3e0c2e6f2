"""Archives whose bytes changed are rejected, and a picture in two places is noted."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pelagos.data_pipelines.convert import ConvertOptions, SourceError
from pelagos.data_pipelines.convert import npz as npz_module
from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import convert

VALUES = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)


def options(folder: Path) -> ConvertOptions:
    (folder / "m.yaml").write_text("fields: [{key: u, axes: [n, t, y, x], names: [u]}]")
    return ConvertOptions(mapping=str(folder / "m.yaml"), trajectories_per_shard=1)


def damaged(file: Path) -> None:
    """One bit of the array's numbers differs, which zipfile itself notices."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with zipfile.ZipFile(file) as archive:
        try:
            assert archive.testzip() == "u.npy"
        except Exception:  # of a compressed one, zlib or zipfile may raise
            return


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("most_bytes", [0, 2**30])
def test_a_changed_bit_of_an_archive_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: object, most_bytes: int
) -> None:
    monkeypatch.setattr(npz_module, "MOST_BYTES_IN_MEMORY", most_bytes)
    save(tmp_path / "a.npz", u=VALUES)  # type: ignore[operator]
    convert.run(str(tmp_path / "a.npz"), str(tmp_path / "whole.zarr"), options(tmp_path))
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "whole.zarr").window(4, 0, 3)[:, 0], VALUES[4]
    )
    damaged(tmp_path / "a.npz")
    os.utime(tmp_path / "a.npz", ns=(1, 1))  # as a later copy of it has another time
    with pytest.raises(SourceError, match=r"a\.npz: (u is damaged|cannot read u).*again"):
        convert.run(str(tmp_path / "a.npz"), str(tmp_path / "out.zarr"), options(tmp_path))
    assert not (tmp_path / "out.zarr").exists()


def test_the_checksum_of_an_archive_is_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", u=VALUES)
    pieces: list[int] = []
    real = npz_module.zlib.crc32

    def counted(piece: bytes, start: int = 0) -> int:
        pieces.append(len(piece))
        return real(piece, start)

    monkeypatch.setattr(npz_module.zlib, "crc32", counted)
    convert.plan(str(tmp_path / "a.npz"), options(tmp_path))
    assert pieces == []
    convert.run(str(tmp_path / "a.npz"), str(tmp_path / "out.zarr"), options(tmp_path))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert sum(pieces) == archive.getinfo("u.npy").file_size


def test_a_picture_in_two_splits_or_classes_is_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for place in ("train/cat/0", "train/cat/1", "train/dog/0", "val/cat/0"):
        file = tmp_path / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4, 4), np.uint8)).save(file)
    source, _ = convert.plan(str(tmp_path), ConvertOptions())
    assert not [note for note in source.notes if "same file" in note]
    (tmp_path / "val/dog").symlink_to(tmp_path / "train/dog")
    os.link(tmp_path / "train/cat/1.png", tmp_path / "train/dog/1.png")
    source, _ = convert.plan(str(tmp_path), ConvertOptions())
    notes = sorted(note for note in source.notes if "same file" in note)
    assert len(notes) == 3
    classes = "with the classes cat and dog, e.g. "
    assert notes[0].startswith("1 pictures are in train and validation, e.g. ")
    assert notes[1].startswith(f"1 pictures are in train and validation, {classes}")
    assert notes[2].startswith(f"1 pictures are twice in a split, {classes}")


def test_a_changed_bit_of_a_packed_volume_is_found(tmp_path: Path) -> None:
    """nibabel reads what it needs, and the checksum stands at the end of the file."""
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(2).normal(size=(5, 6, 7)).astype(np.float32)
    file = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)
    convert.run(str(file), str(tmp_path / "whole.zarr"), verify=True)
    whole = open_dataset(tmp_path / "whole.zarr").window(0, 0, 1)[0, 0]
    np.testing.assert_array_equal(whole, volume.transpose(2, 1, 0))
    content = gzip.decompress(file.read_bytes())
    packed = bytearray(gzip.compress(content, 0))  # stored as it is: a bit changes one number alone
    packed[len(packed) // 2] ^= 1
    file.write_bytes(packed)
    os.utime(file, ns=(1, 1))
    assert np.isfinite(np.asarray(nibabel.load(file).dataobj[:4])).all()
    with pytest.raises(SourceError, match=r"a\.nii\.gz is damaged or cut short: CRC check failed"):
        convert.run(str(file), str(tmp_path / "out.zarr"))
    assert not (tmp_path / "out.zarr").exists()
