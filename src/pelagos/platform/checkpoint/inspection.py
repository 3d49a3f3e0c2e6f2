"""Looking into checkpoints: verify, list, compare. Tensor by tensor; no GPU, never a whole model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pelagos.infra.storage.remote import is_remote, storage_options
from pelagos.platform.checkpoint.manifest import damaged_files, step_of
from pelagos.platform.checkpoint.naming import named_step
from pelagos.platform.checkpoint.pieces import StoredTensors
from pelagos.platform.checkpoint.store import CheckpointStore
from pelagos.platform.records.runs import RunDirectory, RunError
from pelagos.platform.storage_choice import options_for

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckpointLocation:
    """One checkpoint of a store."""

    store: CheckpointStore
    step: int

    @property
    def uri(self) -> str:
        """Names it in messages."""
        return f"{self.store.uri} step {self.step}"


def locate(target: str, runs_dir: str) -> CheckpointLocation:
    """Return the checkpoint that RUN, RUN@STEP, RUN@best, or the address of one names.

    Args:
        target: as the user wrote it.
        runs_dir: directory that holds the runs.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    parent, _, name = target.rstrip("/").rpartition("/")
    step = step_of(name)
    if step is not None and (is_remote(target) or Path(target).is_dir()):
        return CheckpointLocation(CheckpointStore(parent or ".", storage_options(target)), step)
    run_name, _, which = target.partition("@")
    if "/" in run_name:
        raise RunError(
            f"{target} is not a checkpoint: expected a run's name, RUN@STEP, RUN@best, or the "
            "address of a directory step-XXXXXXXX"
        )
    run = RunDirectory.open(runs_dir, run_name)
    uri = run.checkpoint_uri
    store = CheckpointStore(uri, options_for(uri, run.job().storage))
    return CheckpointLocation(store, named_step(store, which or "last"))


def verify(location: CheckpointLocation, progress: Progress = lambda *_: None) -> list[str]:
    """Re-read every file and every tensor; return a sentence for each that is damaged."""
    with location.store.opened(location.step) as (directory, manifest):
        total = len(manifest.files) + len(manifest.tensors)
        damage = []
        for index, record in enumerate(manifest.files):
            damage += damaged_files(directory, [record])
            progress(index + 1, total)
        if any(sentence.startswith(".metadata:") for sentence in damage):
            return damage  # without it no tensor can be found
        stored = StoredTensors(directory, manifest)
        for index, name in enumerate(manifest.tensors):
            damage += stored.damaged(name)
            progress(len(manifest.files) + index + 1, total)
        return damage


def describe(location: CheckpointLocation, pattern: str = "") -> dict[str, Any]:
    """Return a checkpoint's contents as JSON, with the tensors whose names match `pattern`."""
    state = location.store.trainer_state(location.step)
    with location.store.opened(location.step) as (directory, manifest):
        stored = StoredTensors(directory, manifest)
        sections: dict[str, dict[str, int]] = {}
        tensors = []
        for name, shape in sorted(stored.shapes().items()):
            count = int(torch.Size(shape).numel())
            num_bytes = count * stored.dtype(name).itemsize
            section = sections.setdefault(
                name.partition(".")[0], {"tensors": 0, "elements": 0, "num_bytes": 0}
            )
            section["tensors"] += 1
            section["elements"] += count
            section["num_bytes"] += num_bytes
            if re.search(pattern, name):
                record = manifest.tensors.get(name)
                pieces = record.pieces if record else ()
                tensors.append(
                    {
                        "name": name,
                        "shape": list(shape),
                        "dtype": str(stored.dtype(name)).removeprefix("torch."),
                        "crc32c": [p.crc32c for p in pieces],
                    }
                )
        return {
            "uri": location.uri,
            "format_version": manifest.version,
            "step": manifest.step,
            "samples": state.get("samples"),
            "seed": state.get("seed"),
            "model": state.get("forecaster", {}).get("model", {}).get("name"),
            "ranks": stored.ranks(),
            "files": len(manifest.files),
            "num_bytes": sum(f.num_bytes for f in manifest.files),
            "sections": sections,
            "tensors": tensors,
        }


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs between two checkpoints."""

    name: str
    kind: str
    """`only in A`, `only in B`, `shape` or `values`."""
    detail: str
    max_absolute: float = 0.0
    max_relative: float = 0.0
    """Relative to the largest absolute value of the tensor in A."""


def compare(
    a: CheckpointLocation, b: CheckpointLocation, progress: Progress = lambda *_: None
) -> Iterator[TensorDifference]:
    """Yield the tensors that differ; one tensor of each checkpoint is in memory at a time."""
    with (
        a.store.opened(a.step) as (directory_a, manifest_a),
        b.store.opened(b.step) as (directory_b, manifest_b),
    ):
        one = StoredTensors(directory_a, manifest_a)
        two = StoredTensors(directory_b, manifest_b)
        shapes_a, shapes_b = one.shapes(), two.shapes()
        names = sorted(shapes_a.keys() | shapes_b.keys())
        for index, name in enumerate(names):
            if name not in shapes_b:
                yield TensorDifference(name, "only in A", str(list(shapes_a[name])))
            elif name not in shapes_a:
                yield TensorDifference(name, "only in B", str(list(shapes_b[name])))
            elif shapes_a[name] != shapes_b[name]:
                detail = f"{list(shapes_a[name])} and {list(shapes_b[name])}"
                yield TensorDifference(name, "shape", detail)
            elif manifest_a.tensors.get(name) is None or not _has_same_bits(
                manifest_a.tensors[name], manifest_b.tensors.get(name)
            ):
                yield from _compare_values(name, one, two)
            progress(index + 1, len(names))


def _has_same_bits(a: Any, b: Any) -> bool:
    """Whether checksums alone show it: the same pieces with the same checksums."""
    return b is not None and a.pieces == b.pieces and a.dtype == b.dtype


def _compare_values(
    name: str, one: StoredTensors, two: StoredTensors
) -> Iterator[TensorDifference]:
    a, b = one.read(name), two.read(name)
    if torch.equal(a, b):
        return
    difference = float((a.double() - b.double()).abs().max())
    scale = float(a.double().abs().max())
    yield TensorDifference(
        name,
        "values",
        f"{int((a != b).sum())} of {a.numel()} elements",
        difference,
        difference / scale if scale else float("inf"),
    )
