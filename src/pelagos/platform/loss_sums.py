"""Errors and magnitudes of samples, summed by dataset, and the losses they amount to."""

import torch
from torch import Tensor

from pelagos.platform.protocols import Objective


def sums_by_dataset(
    dataset: Tensor, errors: Tensor, magnitudes: Tensor, num_datasets: int
) -> Tensor:
    """Return `[2, dataset, group]`: errors and magnitudes summed over each dataset's samples."""
    sums = torch.zeros(2, num_datasets, errors.shape[1], dtype=torch.double, device=errors.device)
    sums[0].index_add_(0, dataset, errors.detach().double())
    sums[1].index_add_(0, dataset, magnitudes.detach().double())
    return sums


def dataset_losses(
    objective: Objective, sums: Tensor, names: tuple[str, ...], prefix: str = "loss"
) -> dict[str, float]:
    """Return the loss of each dataset that had samples, over the groups it has."""
    return {
        f"{prefix}/{name}": float(objective.mean_over_groups(*sums[:, index]))
        for index, name in enumerate(names)
        if (sums[1, index] > 0).any()
    }
