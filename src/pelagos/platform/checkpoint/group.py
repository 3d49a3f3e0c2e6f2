"""The ranks that save and load a checkpoint together, or one process alone.

Saving runs in a thread alongside training, so it has its own process group: collectives of two
threads in one group would meet in any order.
"""

from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class CheckpointGroup:
    """All ranks, on a gloo group that nothing else uses; created collectively."""

    def __init__(self, timeout_seconds: int) -> None:
        self.timeout_seconds = timeout_seconds
        self.is_distributed = dist.is_available() and dist.is_initialized()
        self.process_group: dist.ProcessGroup | None = None
        if self.is_distributed:
            timeout = timedelta(seconds=timeout_seconds)
            self.process_group = dist.new_group(backend="gloo", timeout=timeout)
        self.rank = dist.get_rank() if self.is_distributed else 0
        self.world_size = dist.get_world_size() if self.is_distributed else 1

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.is_distributed:
            dist.barrier(group=self.process_group)

    def gather(self, item: T) -> list[T]:
        """Return every rank's item, on every rank."""
        if not self.is_distributed:
            return [item]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, item, group=self.process_group)
        return gathered

    def from_rank_0(self, item: T) -> T:
        """Return rank 0's item."""
        if not self.is_distributed:
            return item
        box: list[Any] = [item]
        dist.broadcast_object_list(box, src=0, group=self.process_group)
        result: T = box[0]
        return result
