"""Errors that are found when a job's parts are built, reported as those of its file."""

import contextlib
from collections.abc import Iterator, Sequence

from pelagos.platform.config.load import ConfigError, located


@contextlib.contextmanager
def errors_of(path: str, overrides: Sequence[str] | None) -> Iterator[None]:
    """Report errors in the parts of a file's job with the file and its lines."""
    try:
        yield
    except ConfigError as error:
        if not error.source.startswith("job "):
            raise  # the file's own, which has them
        raise located(error, path, overrides or ()) from error
