"""Words that the shell completes: runs, models, datasets, clusters. A failure completes nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

DATASET_MARKS = ("zarr.json", ".zgroup", ".zarray", "manifest.json")
_RUNS_DIRS = ("runs", "quickstart/runs")


def runs(incomplete: str) -> list[str]:
    """Return the runs of this directory, and those on clusters whose storage is one."""
    from pelagos.platform.config.clusters import load_clusters
    from pelagos.platform.records.runs import list_runs

    found: dict[str, None] = {}
    places = [*_RUNS_DIRS]
    with contextlib.suppress(ValueError, OSError):
        places += [
            f"{config.storage}/runs"
            for config in load_clusters().values()
            if "://" not in config.storage
        ]
    for place in places:
        with contextlib.suppress(ValueError, OSError):
            found |= dict.fromkeys(run.name for run in list_runs(place))
    return [name for name in found if name.startswith(incomplete)]


def clusters(incomplete: str) -> list[str]:
    """Return the names of the clusters."""
    from pelagos.platform.config.clusters import load_clusters

    with contextlib.suppress(ValueError, OSError):
        return [name for name in load_clusters() if name.startswith(incomplete)]
    return []


def models(incomplete: str) -> list[str]:
    """Return the names of the models."""
    from pelagos.models.registry import list_models

    return [name for name in list_models() if name.startswith(incomplete)]


def datasets(incomplete: str) -> list[str]:
    """Return the datasets, and the folders on the way to them, that begin so."""
    return list(_datasets(incomplete))


def _datasets(incomplete: str) -> Iterator[str]:
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") or not incomplete else typed.parent
    beginning = "" if incomplete.endswith("/") else typed.name
    with contextlib.suppress(OSError):
        for path in sorted(folder.expanduser().iterdir()):
            if path.is_dir() and path.name.startswith(beginning) and not path.name.startswith("."):
                is_dataset = any((path / mark).exists() for mark in DATASET_MARKS)
                shown = str(folder / path.name)
                yield shown if is_dataset else f"{shown}/"
