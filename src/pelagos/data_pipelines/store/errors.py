"""The one error a reader of datasets has to know."""

from __future__ import annotations

from pelagos.infra.permanent_error import PermanentError


class DatasetError(PermanentError, ValueError):
    """A dataset is missing, unfinished, damaged or out of reach.

    The message names the dataset, the object or shard, and the trajectory and frame where that is
    known, and gives the remedy.
    """


class ObjectMissingError(DatasetError):
    """An object (a file, or an S3 key) that should exist does not."""
