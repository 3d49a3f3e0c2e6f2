"""The names of runs in an error: the most similar ones, and how many more there are."""

import difflib
import itertools
from collections.abc import Iterable

MOST_NAMED = 10


def known_runs(wanted: str, known: Iterable[str]) -> str:
    """Return "known runs: …", the most similar names first where there are many.

    >>> known_runs("b", ["a", "b2"])
    'known runs: a, b2'
    >>> known_runs("run-7x", [f"run-{n}" for n in range(1000)])[:36]
    'known runs: run-7, run-70, run-71, r'
    """
    names = list(dict.fromkeys(known))
    if not names:
        return "known runs: none"
    if len(names) <= MOST_NAMED:
        return f"known runs: {', '.join(names)}"
    matcher = difflib.SequenceMatcher(b=wanted, autojunk=False)

    def similarity(name: str) -> tuple[float, int]:
        matcher.set_seq1(name)
        alike = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(name, wanted, strict=False)
        )
        return matcher.ratio(), sum(1 for _ in alike)

    nearest = sorted(names, key=similarity, reverse=True)[:MOST_NAMED]
    return f"known runs: {', '.join(nearest)}, and {len(names) - MOST_NAMED} more (pelagos list)"
