"""Filters of HDF5 arrays: those that need a plugin are named before anything is read."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from pelagos.data_pipelines.convert.source import SourceError

# Registered numbers of filters (https://github.com/HDFGroup/hdf5_plugins), for messages.
NAMES = {
    1: "deflate",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "n-bit",
    6: "scale-offset",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32019: "JPEG",
    32022: "granular BitRound",
    32023: "BitGroom",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}
PLUGIN_PACKAGE = "hdf5plugin"  # of the extra `convert`
FIRST_REGISTERED = 256  # smaller numbers are those of the HDF5 library itself


def filters_of(dataset: Any) -> list[int]:
    """Numbers of the filters that a dataset's chunks went through."""
    plist = dataset.id.get_create_plist()
    return [int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters())]


def described(numbers: list[int]) -> str:
    """`32015 (Zstandard)` for each."""
    return ", ".join(f"{number} ({NAMES.get(number, 'unknown')})" for number in numbers)


def require_filters(dataset: Any, where: str) -> None:
    """Load the plugins that a dataset needs.

    Raises:
        SourceError: a filter is not available: its number and name, and the package to install.
    """
    import h5py

    lacking = [n for n in filters_of(dataset) if not h5py.h5z.filter_avail(n)]
    if lacking:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(PLUGIN_PACKAGE)  # registers its filters with the library
            lacking = [n for n in lacking if not h5py.h5z.filter_avail(n)]
    if lacking:
        raise SourceError(
            f"{where} is compressed by the HDF5 filter {described(lacking)}, which is not available "
            f"here. `pip install {PLUGIN_PACKAGE}` provides the common filters; for others see "
            "HDF5_PLUGIN_PATH"
        )


def plugin_hint(dataset: Any) -> str:
    """For a chunk that cannot be decoded: the plugin filters that it went through."""
    plugins = [n for n in filters_of(dataset) if n >= FIRST_REGISTERED]
    if not plugins:
        return ""
    return f" (HDF5 filter {described(plugins)}, by {PLUGIN_PACKAGE})"
