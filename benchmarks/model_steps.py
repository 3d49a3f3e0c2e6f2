"""One training step of a network, timed: for `models.py` and `official_models.py`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pelagos.models.registry import create_model


def new_model(name: str) -> tuple[nn.Module, torch.device]:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return create_model(name).to(device), device


def stepper(model: nn.Module, compute_loss: Callable[[], Tensor]) -> Callable[[], float]:
    """A function that takes one training step and returns its wall seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        start = time.perf_counter()
        compute_loss().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step
