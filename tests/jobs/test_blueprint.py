"""A launch builds each of its parts once."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from pelagos.data_pipelines.store.reader import Dataset
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.jobs import pretrain, resume
from pelagos.jobs.training.blueprint import Blueprint
from pelagos.jobs.training.checking import checked
from pelagos.models.objectives import create_objective
from pelagos.models.registry import create_model
from pelagos.platform.config import PretrainJob

MakeJob = Callable[..., PretrainJob]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often objectives, networks and mixtures were built, and datasets opened."""
    counts: Counter[str] = Counter()

    def counted(name: str, build: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return build(*arguments, **options)

        return count

    for name, function in (("objective", create_objective), ("network", create_model)):
        wrapped = counted(name, function)
        for module in [m for m in sys.modules.values() if m.__name__.startswith("pelagos.jobs")]:
            for key, value in list(vars(module).items()):
                if value is function:
                    monkeypatch.setattr(module, key, wrapped)
    for name, kind in (("mixture", Mixture), ("dataset", Dataset)):
        monkeypatch.setattr(kind, "__init__", counted(name, kind.__init__))
    return counts


def test_a_launch_in_this_process_builds_each_part_once(
    make_job: MakeJob, built: Counter[str]
) -> None:
    job = make_job("once", tracking__uri="null")
    assert job.resources.launcher == "none"
    result = pretrain.run(job, Console(file=io.StringIO()))
    assert result.outcome.kind == "finished"
    # two mixtures: what is trained on, and what is validated on
    assert built == {"objective": 1, "network": 1, "mixture": 2, "dataset": len(job.data.mixture)}


def test_a_resume_builds_each_part_once(make_job: MakeJob, built: Counter[str]) -> None:
    job = make_job("again", tracking__uri="null")
    assert pretrain.run(job, until_step=4).outcome.kind == "stopped"
    built.clear()
    assert resume.resume(job.runs_dir, "again").outcome.kind == "finished"
    assert built == {"objective": 1, "network": 1, "mixture": 2, "dataset": len(job.data.mixture)}


def test_a_check_leaves_parameters_as_trainable_as_they_were(make_job: MakeJob) -> None:
    job = make_job("frozen", optimizer__frozen="['embed']")
    model = checked(job).model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parts_hand_their_network_over(make_job: MakeJob) -> None:
    blueprint = Blueprint(make_job("handed"))
    first = blueprint.parts().model
    assert blueprint.model is not first, "a strategy has changed the first"
