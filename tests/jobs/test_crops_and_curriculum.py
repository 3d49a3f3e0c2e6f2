"""Crops and weights by step as a job asks for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pelagos.jobs.training.blueprint import Blueprint
from pelagos.jobs.training.checking import checked
from pelagos.platform.config import ConfigError, PretrainJob
from pelagos.platform.config.load import parse_job, resolve_yaml

MakeJob = Callable[..., PretrainJob]


def test_training_and_validation_take_crops(make_job: MakeJob) -> None:
    job = make_job(data__crop="[8, 12]", data__mixture__1__crop="[8, 8]")
    streams = Blueprint(job).streams
    assert streams.mixture.grid_shapes == ((8, 12), (8, 8))
    stream = streams.open(0, 0, 1)
    found = {tuple(next(stream).frames.shape[3:]) for _ in range(6)}
    stream.close()
    assert found == {(8, 12), (8, 8)}
    assert {tuple(b.frames.shape[3:]) for b, _ in streams.validation(0, 1)} == found
    checked(make_job("square", data__crop="[8, 8]", model__config__image_size=8))
    with pytest.raises(ConfigError, match=r"crop of \(32, 8\) points does not fit its grid"):
        checked(make_job("large", data__crop="[32, 8]"))


def test_weights_by_step(make_job: MakeJob) -> None:
    weights = {"data__mixture__0__weight": "{0: 1.0, 2: 0.0}", "data__mixture__1__weight": 1.0}
    job = make_job(**weights)
    assert parse_job(resolve_yaml(job), "resolved") == job
    streams = Blueprint(job).streams
    stream = streams.open(0, 0, 1)
    found = [next(stream).dataset.tolist() for _ in range(8)]
    stream.close()
    assert sorted(found[0] + found[1]) == [0] * 4 + [1] * 4
    assert found[2:] == [[1] * 4] * 6
    # validation keeps what training leaves out
    drawn = [d for b, _ in streams.validation(0, 1) for d in b.dataset.tolist()]
    assert set(drawn) == {0, 1}
    wrong = {**weights, "data__mixture__0__weight": "{10: 1.0}"}
    with pytest.raises(ConfigError, match="must begin with step 0"):
        checked(make_job("wrong", **wrong))
