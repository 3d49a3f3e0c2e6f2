"""One picture file: its header and its values.

Values stay as they are in the file: 0 to 255 of 8 bits, 0 to 65535 of 16, and whatever floats or
32-bit integers say. A picture is turned as its EXIF orientation says. Pillow converts to grey or RGB
where a file holds neither: palettes are looked up, one bit becomes 0 and 255, CMYK, YCbCr and Lab
become RGB without a colour profile, and an alpha channel is left out.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.storage.files import CappedReader

if TYPE_CHECKING:
    from pelagos.data_pipelines.convert.stored_files import Sliceable

EIGHT_BITS = "8 bits"
RAW = "raw"  # one channel of more than 8 bits, as it is
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that exchange width and height
_PHONE_JPEG = "MPO"  # a JPEG of a phone, behind which other pictures of the same scene may follow
_GREY = ("1", "L", "LA", "La")
_PLAIN = ("1", "L", "RGB")  # stored without a remark
_DEPTHS = {"I;16": "16 bits", "I": "32-bit integers", "F": "floats"}
# Several channels of 16 bits, of which Pillow keeps the upper 8.
_DEEP_COLOUR = re.compile(r"(RGB|RGBA|RGBX|RGBa|LA|CMYK)(?:[XA]*);16[LBN]?")


@dataclass(frozen=True)
class PictureHead:
    """The contents of a file's header.

    Attributes:
        mode: how it is stored: `L`, `RGB`, or `raw` of more than 8 bits.
        depth: of a value, for people.
        size: pixels `(y, x)`, once it is turned.
        remark: any processing beyond reading its values; empty if none.
    """

    mode: str
    depth: str
    size: tuple[int, int]
    remark: str


def head(file: Path) -> PictureHead:
    """Look at a picture without reading its values.

    Raises:
        SourceError: it is no picture, has several pages, or 16 bits in several channels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with CappedReader(io.FileIO(file)) as stream, Image.open(stream) as picture:
            _refuse(file, picture)
            size = (picture.height, picture.width)
            orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
            # Pillow turns TIFF by itself, and gives the size after it
            if orientation in _QUARTER_TURNS and picture.format != "TIFF":
                size = size[::-1]
            depth = _depth(picture.mode)
            mode = RAW if depth else "L" if picture.mode in _GREY else "RGB"
            is_turned = orientation in range(2, 9)
            return PictureHead(mode, depth or EIGHT_BITS, size, _remark(picture, depth, is_turned))
    except UnidentifiedImageError as error:
        what = f"cannot be read as a picture: {error}" if file.stat().st_size else "is empty"
        raise SourceError(f"{file} {what}") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise SourceError(f"cannot read {file} as a picture: {error}") from error


def _refuse(file: Path, picture: Any) -> None:
    pages = getattr(picture, "n_frames", 1)
    if pages > 1 and picture.format != _PHONE_JPEG:
        raise SourceError(
            f"{file} has {pages} pages or frames, expected one picture per file: write each page "
            "into its own file"
        )
    arguments = picture.tile[0][3] if picture.tile else ""
    raw_mode = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    if picture.format in ("PNG", "TIFF") and _DEEP_COLOUR.fullmatch(raw_mode):
        raise SourceError(
            f"{file} has {picture.mode} of 16 bits per channel, and Pillow reads only the upper 8: "
            "convert it to 8 bits per channel, or to arrays for --mapping (docs/converting.md)"
        )


def _depth(mode: str) -> str:
    return next((text for start, text in _DEPTHS.items() if mode.startswith(start)), "")


def _remark(picture: Any, depth: str, is_turned: bool) -> str:
    remarks = []
    if picture.format == _PHONE_JPEG:
        remarks.append("read without the previews and depth maps that follow their first picture")
    if is_turned:
        remarks.append("turned by their EXIF orientation")
    if "A" in picture.getbands() or "transparency" in picture.info:
        remarks.append("stored without their alpha channel")
    if picture.mode not in (*_PLAIN, "LA", "RGBA") and not depth:
        remarks.append(f"converted from {picture.mode} to RGB")
    return " and ".join(remarks)


class Picture:
    """A picture as `[y, x, channel]`; `path?side=64&mode=RGB` says how it is to be.

    Raises:
        SourceError: its values cannot be read.
    """

    def __init__(self, file: str) -> None:
        from PIL import Image, ImageOps

        path, _, query = file.rpartition("?")
        wishes = dict(part.split("=") for part in query.split("&"))
        side, mode = int(wishes["side"]), wishes["mode"]
        try:
            with CappedReader(io.FileIO(path)) as stream, Image.open(stream) as opened:
                picture = ImageOps.exif_transpose(opened)
                if mode != RAW:
                    picture = picture.convert(mode)
                elif side:  # Pillow interpolates one deep type alone, float32
                    picture = Image.fromarray(np.asarray(picture).astype(np.float32))
        except (OSError, Image.DecompressionBombError) as error:
            raise SourceError(f"cannot read {path} as a picture: {error}") from error
        if side:
            picture = picture.resize((side, side), Image.Resampling.BILINEAR)
        values = np.asarray(picture)
        self.values: Sliceable = values if values.ndim == 3 else values[:, :, None]

    def array(self, key: str) -> Sliceable:
        return self.values

    def close(self) -> None:
        pass
