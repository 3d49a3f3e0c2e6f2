"""The process group and the device of this rank."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


def rank_device(use_gpu: bool) -> torch.device:
    """Return the device of this rank: its GPU on this node, or the CPU."""
    if not use_gpu:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def ensure_process_group(use_gpu: bool, timeout_seconds: int) -> bool:
    """Make the process group unless it exists (Ray makes its own); return whether it was made.

    Under torchrun it spans all ranks; else this process alone.
    """
    if use_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if dist.is_initialized():
        return False
    backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    return True


def destroy_process_group() -> None:
    """Leave the process group that this process made itself (torchrun)."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launched_by_torchrun() -> bool:
    """Return whether this process is one rank of several started by torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ
