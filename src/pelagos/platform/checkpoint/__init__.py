"""One checkpoint format for every strategy: complete or absent, verified when read."""

from pelagos.platform.checkpoint.copying import copy_checkpoint, empty_place
from pelagos.platform.checkpoint.manifest import CheckpointError, CheckpointInfo
from pelagos.platform.checkpoint.naming import named_step
from pelagos.platform.checkpoint.newest import load_newest, newest_state
from pelagos.platform.checkpoint.store import CheckpointStore, LoadReport, SaveReport

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointStore",
    "LoadReport",
    "SaveReport",
    "copy_checkpoint",
    "empty_place",
    "load_newest",
    "named_step",
    "newest_state",
]
