"""Options of objectives as job files had them before `objective.config`, read under their new keys.

`objective: {name: all2all, frame_stride: 2}` is `objective: {name: all2all, config: {frame_stride: 2}}`.
The old spelling goes with the next release, and this file with it.
"""

import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pelagos.infra.yaml_text import KeyPath

logger = logging.getLogger(__name__)
SECTION = "objective"
# The meaning of each absent option; None: the objective's own default.
OLD_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(
        ("max_lead_steps", "num_input_frames", "field_groups", "loss", "field_weights")
    ),
    **dict.fromkeys(("normalize_samples", "noise_scale", "num_unrolled_steps", "backpropagate")),
    **dict.fromkeys(("mask_ratio", "patch_size", "normalize_patches", "num_classes")),
    **dict.fromkeys(("label_smoothing", "label_field")),
    **{"frame_stride": 1, "time_scale": 1.0, "loss_scope": "global"},
}


def is_old(path: KeyPath) -> bool:
    """Whether the path of a key is an option of the objective, or below one, in the old spelling."""
    return len(path) > 1 and path[0] == SECTION and path[1] in OLD_OPTIONS


def new_path(path: KeyPath) -> KeyPath:
    """Return the path of a key as it is spelt now."""
    return (SECTION, "config", *path[1:]) if is_old(path) else path


def new_key(key: str) -> str:
    """Return a dotted key as it is spelt now.

    >>> new_key("objective.field_weights.density"), new_key("objective.name")
    ('objective.config.field_weights.density', 'objective.name')
    """
    return ".".join(map(str, new_path(tuple(key.split(".")))))


def is_default(path: KeyPath, value: Any) -> bool:
    """Whether an option in the old spelling has the value that it had if nothing was said."""
    return len(path) == 2 and (value is None or value == OLD_OPTIONS[str(path[1])])


def move_options(tree: Mapping[str, Any], lines: dict[KeyPath, int]) -> list[str]:
    """Spell the options of a job's objective anew, in place; return those that were spelt the old way.

    Values that only repeat a default are left out, as in a resolved job of an earlier version.
    Such a job yields nothing, because no user wrote it. An option given both ways stays and is rejected.
    """
    section = tree.get(SECTION)
    if not isinstance(section, dict) or not isinstance(section.get("config", {}), dict):
        return []
    config = section.get("config", {})
    found = [name for name in section if name in OLD_OPTIONS and name not in config]
    for name in found:
        value = section.pop(name)
        if not is_default((SECTION, name), value):
            section.setdefault("config", {})[name] = value
    for path in [path for path in lines if is_old(path) and path[1] in found]:
        lines[new_path(path)] = lines.pop(path)
    return [] if len(found) == len(OLD_OPTIONS) else found


def move_keys(tree: Mapping[str, Any], lines: dict[KeyPath, int]) -> list[str]:
    """Spell the dotted keys anew that a sweep gives values to, in place; return the old ones."""
    jobs = tree.get("jobs")
    places: dict[KeyPath, Any] = {(name,): tree.get(name) for name in ("grid", "random")}
    for label, entry in (jobs if isinstance(jobs, dict) else {}).items():
        places["jobs", label, "set"] = entry.get("set") if isinstance(entry, dict) else None
    found: list[str] = []
    for place, values in places.items():
        for key in [*values] if isinstance(values, dict) else ():
            new = new_key(key) if isinstance(key, str) else key
            if new != key and new not in values:
                found.append(key)
                kept = [(new if k == key else k, v) for k, v in values.items()]
                values.clear()
                values.update(kept)  # in their order, which names of trials have
                for path in [p for p in lines if p[: len(place) + 1] == (*place, key)]:
                    lines[(*place, new, *path[len(place) + 1 :])] = lines.pop(path)
    return [key.removeprefix(f"{SECTION}.") for key in found]


def warn(source: str, names: Iterable[str]) -> None:
    """Say once for each job which of its options to spell anew."""
    if told := tuple(dict.fromkeys(names)):
        _warn(source, told)


@functools.cache
def _warn(source: str, names: tuple[str, ...]) -> None:
    logger.warning(
        "%s: options of the objective belong in objective.config: write %s. The old spelling works "
        "for one more release",
        source,
        ", ".join(f"objective.config.{name}" for name in names),
    )
