"""Names in messages: the known ones, and the nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 12


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'velocity'?` if a known name is close, else nothing.

    >>> nearest("velocty", ["pressure", "velocity"])
    "; did you mean 'velocity'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """The first names, and the number of further ones.

    >>> listed(["a", "b"])
    'a, b'
    """
    found = list(names)
    more = len(found) - MOST_LISTED
    shown = ", ".join(found[:MOST_LISTED]) or "nothing"
    return f"{shown} and {more} more" if more > 0 else shown
