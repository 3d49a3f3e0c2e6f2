"""Parts by name: Pelagos's own, and those that a user's modules add.

Models, objectives, losses, metrics, optimizers, schedules, dataset openers, converters, families of
problems and callbacks each have one `Registry`. `pelagos.plugins` has the calls that add to them.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from pelagos.infra.permanent_error import PermanentError

PELAGOS = "pelagos"
_origins = [PELAGOS]  # the module whose import is under way comes last

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """A mapping of names to parts of one kind, each with the module that it came from.

    >>> waves: Registry[int] = Registry("wave", {"sine": 1, "square": 2})
    >>> waves["sine"], list(waves), waves.origin("square")
    (1, ['sine', 'square'], 'pelagos')
    >>> waves["sinus"]
    Traceback (most recent call last):
    ...
    pelagos.registry.UnknownNameError: unknown wave 'sinus'; closest: sine; all: sine, square
    """

    def __init__(self, kind: str, parts: Mapping[str, Part]) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = dict(parts)
        self._origins = dict.fromkeys(parts, PELAGOS)

    def register(self, name: str, part: Part) -> None:
        """Add a part under a name of its own; the same module may register it again.

        Raises:
            ValueError: the name is none, or another module has it.
        """
        origin = _origins[-1]
        if not isinstance(name, str) or not name or name != name.strip():
            raise ValueError(
                f"a {self.kind}'s name must be text without spaces around it, got {name!r}"
            )
        if self._origins.get(name, origin) != origin:
            raise ValueError(
                f"{self._origins[name]} already registered the {self.kind} {name!r}: give the one "
                f"of {origin} another name"
            )
        self._parts[name] = part
        self._origins[name] = origin

    def origin(self, name: str) -> str:
        """Return the module that registered a name; `pelagos` for its own."""
        return self._origins[name]

    def listed(self) -> str:
        """Return all names, those of plugins with where they came from."""
        return ", ".join(
            name if origin == PELAGOS else f"{name} (from {origin})"
            for name, origin in self._origins.items()
        )

    def __getitem__(self, name: str) -> Part:
        try:
            return self._parts[name]
        except KeyError:
            raise UnknownNameError(self._unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._parts, n=1, cutoff=0.3)
        hint = f"closest: {close[0]}; " if close else ""
        return f"unknown {self.kind} {name!r}; {hint}all: {self.listed() or 'none'}"


class UnknownNameError(PermanentError, ValueError, KeyError):
    """Raised for an unknown name of a kind of part; lists the known names."""

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def registering(module: str) -> Iterator[None]:
    """Attribute parts registered within the context to this module."""
    _origins.append(module)
    try:
        yield
    finally:
        _origins.pop()


def own_line(error: BaseException) -> str:
    """Return where an exception left a user's own code, ` (file, line: text)`; empty if it never did."""
    library = (str(Path(importlib.__file__).parent), "<frozen", str(Path(__file__).parent))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(library) and "site-packages" not in frame.filename:
            return f" ({frame.filename}, line {frame.lineno}: {frame.line})"
    return ""
