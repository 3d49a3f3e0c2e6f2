"""`run: RUN@WHICH` in a job file, which names a run and its checkpoint as the command line does."""

from typing import Any

from pelagos.infra.yaml_text import KeyPath

SECTIONS: tuple[KeyPath, ...] = ((), ("source",))
"""Sections of jobs that have `run` and `checkpoint`."""


def split_checkpoints(tree: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    """Write `run: RUN@WHICH` as `run` and `checkpoint`, in place; return what is wrong, by key.

    >>> tree = {"job": "evaluate", "run": "quickstart@best"}
    >>> split_checkpoints(tree), tree
    ([], {'job': 'evaluate', 'run': 'quickstart', 'checkpoint': 'best'})
    """
    problems: list[tuple[KeyPath, str]] = []
    for place in SECTIONS:
        section = tree.get(str(place[0])) if place else tree
        named = section.get("run") if isinstance(section, dict) else None
        if not isinstance(section, dict) or not isinstance(named, str) or "@" not in named:
            continue
        run, _, which = named.partition("@")
        other = section.get("checkpoint")
        section["run"] = run
        if not which:
            problems.append(
                ((*place, "run"), f"{named}: expected last, best or a step after the @")
            )
        elif other is not None and str(other) != which:
            message = f"{named} and checkpoint: {other} name two checkpoints; keep one"
            problems.append(((*place, "run"), message))
        else:
            section["checkpoint"] = which
    return problems
