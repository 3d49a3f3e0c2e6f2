"""Random crops in space: where each sample's crop lies, as a function of the sample's seed alone."""

from __future__ import annotations

from pelagos.data_pipelines.store.readable import Region
from pelagos.data_pipelines.streaming.permutation import derive_key

_CROP = 0x63726F70  # sets these draws apart from others of the same sample


def crop_region(sample_seed: int, grid_shape: tuple[int, ...], crop: tuple[int, ...]) -> Region:
    """A box of `crop` points inside the grid, every place equally likely.

    It does not wrap round periodic boundaries. The modulus favours small positions by less than
    one part in 2^40 for any grid.

    >>> crop_region(7, (128, 128), (128, 128))
    ((0, 128), (0, 128))
    """
    starts = [
        derive_key(sample_seed, _CROP, axis) % (points - size + 1)
        for axis, (points, size) in enumerate(zip(grid_shape, crop, strict=True))
    ]
    return tuple((start, start + size) for start, size in zip(starts, crop, strict=True))
