"""An open file of arrays of any format: the interface of every reader of files."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Sliceable(Protocol):
    """An array that is read in pieces."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: Any, /) -> Any: ...


class StoredFile(Protocol):
    """An open file of arrays."""

    def array(self, key: str) -> Sliceable: ...

    def close(self) -> None: ...
