"""Libraries' errors at damaged files, as one kind of error that names the file."""

from __future__ import annotations

import contextlib
import tokenize
from collections.abc import Iterator

from pelagos.data_pipelines.convert.source import SourceError

# Our own errors for people; the system's, which name the cause; and missing packages.
_SAID = (ValueError, OSError, ImportError)


@contextlib.contextmanager
def named_if_damaged(where: str) -> Iterator[None]:
    """Raise SourceError for whatever a library raises at bytes that it did not expect.

    Readers of files stumble over damage in many ways: h5py by RuntimeError, scipy by KeyError, numpy
    by an error of its own parser. None of these errors names the file.
    """
    try:
        yield
    except _SAID:
        raise
    except MemoryError as error:
        raise SourceError(
            f"{where} asks for more memory than this machine has ({error}): it is damaged, or must "
            "be written in smaller pieces"
        ) from error
    except Exception as error:
        told = (
            error.args[0]
            if isinstance(error, tokenize.TokenError | KeyError) and error.args
            else error
        )
        raise SourceError(
            f"{where} is damaged, or not in its format ({type(error).__name__}: {told}). Copy or "
            "download it again. If other programs can read it, `pelagos --verbose` shows the "
            "failure"
        ) from error
