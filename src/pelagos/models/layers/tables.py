"""Constant tables of a grid, made once and shared by all blocks that need them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["kept"]

Table = TypeVar("Table")

_MOST_KEPT = 64  # the largest, scOT's mask for 128 × 128 tokens, takes 16 MiB
_KEPT: dict[tuple[Hashable, ...], Any] = {}


def kept(make: Callable[..., Table], *arguments: Hashable, like: Tensor) -> Table:
    """`make(*arguments, device)` on the device of `like`, from memory if it was made before.

    While a graph is traced, it makes them anew, as part of the graph; likewise next to tensors
    without values (meta, fake), whose tables no other call could use.
    """
    if torch.compiler.is_compiling() or type(like) is not Tensor or like.is_meta:
        return make(*arguments, like.device)
    key = (make, arguments, like.device)
    if key not in _KEPT:
        if len(_KEPT) >= _MOST_KEPT:
            _KEPT.pop(next(iter(_KEPT)))  # the oldest
        with torch.inference_mode(False):  # a later training step may need it
            _KEPT[key] = make(*arguments, like.device)
    table: Table = _KEPT[key]
    return table
