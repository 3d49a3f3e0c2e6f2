"""Where a model insists on full precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A region in which operations on `tensor`'s device keep their own precision.

    Does nothing on the meta device, which has no autocast.
    """
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
