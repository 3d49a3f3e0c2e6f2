"""Points without a value are left out of errors: what stands there changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from pelagos.data_pipelines.streaming.channels import Channels
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.evaluation import EvaluationData, evaluate_dataset
from pelagos.evaluation.measures.metrics import METRICS

SIDES = (9, 11)


@dataclass
class OceanSpec:
    name: str = "ocean"
    frame_interval: float = 1.0
    grid_shape: tuple[int, ...] = SIDES
    constant_fields: dict[str, float] = field(default_factory=dict)


@dataclass
class Ocean:
    """Temperature of the sea, and where the sea is; on land stands `land`."""

    land: float
    spec: OceanSpec = field(default_factory=OceanSpec)
    uri: str = "memory://ocean"
    fingerprint: str = "o"
    num_frames: int = 3
    field_names: tuple[str, ...] = ("temperature", "mask")

    @property
    def sea(self) -> npt.NDArray[np.bool_]:
        return np.random.default_rng(7).random(SIDES) < 0.6

    def values(self, trajectory: int) -> npt.NDArray[np.float64]:
        return 10.0 + np.random.default_rng(trajectory).normal(size=(self.num_frames, *SIDES))

    def read_frames(self, trajectory: int, frames: Sequence[int]) -> npt.NDArray[np.float32]:
        values = np.where(self.sea, self.values(trajectory), self.land)[list(frames)]
        mask = np.broadcast_to(self.sea, values.shape)
        return np.stack([values, mask], axis=1).astype(np.float32)


def scores(land: float) -> dict[str, npt.NDArray[np.float64]]:
    normalization = Normalization(("temperature", "mask"), (10.0, 0.0), (1.0, 1.0))
    data = EvaluationData.from_dataset(
        Ocean(land),
        Channels.of(Ocean(land), normalization),
        groups={"temperature": ("temperature",)},
        masks={"temperature": "mask"},
    )
    evaluation = evaluate_dataset(lambda x, t: x, data, range(4), (1, 2), num_examples=0)
    assert evaluation.notes() == ["temperature: all errors leave out points without a value"]
    return evaluation.scores["direct"]


def test_errors_are_those_of_the_points_with_a_value() -> None:
    found, dataset = scores(land=10.0), Ocean(10.0)
    sea = dataset.sea
    edge = np.ones(SIDES, bool)
    edge[1:-1, 1:-1] = False
    for trajectory in range(4):
        values = dataset.values(trajectory)[:, sea]
        for lead in (1, 2):
            truth, wrong = values[lead], values[0] - values[lead]
            at_edge = (dataset.values(trajectory)[0] - dataset.values(trajectory)[lead])[sea & edge]
            expected = {
                "relative_l1": np.abs(wrong).sum() / np.abs(truth).sum(),
                "relative_l2": np.sqrt((wrong**2).sum() / (truth**2).sum()),
                "vrmse": np.sqrt((wrong**2).mean() / truth.var()),
                "rmse": np.sqrt((wrong**2).mean()),
                "conserved_rmse": abs(wrong.mean()),
                "max_error": np.abs(wrong).max(),
                "boundary_rmse": np.sqrt((at_edge**2).mean()),
            }
            for metric, value in expected.items():
                got = found[metric][trajectory, lead - 1, 0]
                assert got == pytest.approx(value, rel=1e-4), metric


def test_what_stands_on_land_changes_no_error() -> None:
    found, other = scores(land=10.0), scores(land=-3.0)
    for metric in METRICS:
        if "rmse_high" not in metric:  # the grid has no such wave numbers
            np.testing.assert_allclose(found[metric], other[metric], rtol=1e-4, err_msg=metric)
