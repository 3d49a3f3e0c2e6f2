"""Known forecasters side by side: ranked, on what they have in common, refused where nothing is."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.test_evaluate import DecayingWaves, Spec, exact, view
from torch import Tensor

from pelagos.evaluation import DatasetEvaluation, evaluate_dataset
from pelagos.evaluation.pages.side_by_side import (
    animation,
    best_sentence,
    shared_datasets,
    write_side_by_side,
)


def off(frames: Tensor, lead_time: Tensor) -> Tensor:
    """Decays by half too much."""
    return exact(frames, 1.5 * lead_time)


def scored(
    predict: Any, leads: tuple[int, ...] = (1, 2, 4), count: int = 8, **options: Any
) -> DatasetEvaluation:
    return evaluate_dataset(predict, view(**options), range(count), leads, batch_size=4)


def test_the_better_run_comes_first_and_wins_everywhere(tmp_path: Path) -> None:
    (data,) = shared_datasets({"off": [scored(off)], "exact": [scored(exact)]})
    assert [c.run for c in data.contenders] == ["exact", "off"]
    assert [c.rank for c in data.contenders] == [1.0, 2.0]
    assert [data.wins(c).share for c in data.contenders] == [1.0, 0.0]
    assert data.best() == ["exact"] * 3
    assert data.error(data.contenders[0]).max() < 1e-5
    # e^-1.5t where e^-t is true, whatever the amplitude
    expected = 1 - 2.718281828 ** (-0.5 * 0.4)
    assert data.error(data.contenders[1])[-1] == pytest.approx(expected, rel=1e-4)
    assert best_sentence(data).endswith(
        "has the best mean rank, 1 over 6 pairs of lead and field; it is better than off at 3 of 3 leads"
    )
    told = {name: {"model": "m", "step": 3, "weights": "ema"} for name in ("off", "exact")}
    page = write_side_by_side([data], told, tmp_path)[0].read_text()
    assert page.count("<img src=") == 2
    assert 'src="data:image/gif' in page
    assert "http" not in page
    assert page.count("<td>averaged (ema)</td>") == 2
    numbers = json.loads((tmp_path / "metrics.json").read_text())["datasets"][0]
    assert [row["run"] for row in numbers["runs"]] == ["exact", "off"]
    assert numbers["runs"][1]["errors"]["relative_l1"][-1] == pytest.approx(expected, rel=1e-4)
    assert numbers["best"] == ["exact"] * 3
    moving = Image.open(BytesIO(animation(data)))
    assert moving.n_frames == 3  # type: ignore[attr-defined]


def before_and_after(is_better_early: bool) -> Any:
    """Exact up to lead time 0.25, or after it; 20 % off elsewhere."""

    def predict(frames: Tensor, lead_time: Tensor) -> Tensor:
        is_early = (lead_time < 0.25)[:, None, None, None]
        right = is_early if is_better_early else ~is_early
        return torch.where(right, exact(frames, lead_time), 1.2 * exact(frames, lead_time))

    return predict


def test_the_best_of_each_row_is_marked_and_ranks_are_over_all_leads(tmp_path: Path) -> None:
    runs = {"late": scored(before_and_after(False)), "early": scored(before_and_after(True))}
    for evaluation in runs.values():  # the two methods differ, and only one is of interest here
        evaluation.scores = {k: v for k, v in evaluation.scores.items() if k != "autoregressive"}
        evaluation.examples.clear()
    (data,) = shared_datasets({name: [evaluation] for name, evaluation in runs.items()})
    # two of three leads are early, although the last one is late's
    assert [c.run for c in data.contenders] == ["early", "late"]
    assert [c.rank for c in data.contenders] == pytest.approx([4 / 3, 5 / 3])
    assert data.best() == ["early", "early", "late"]
    told = {name: {"model": "m", "step": 3, "weights": "model"} for name in runs}
    page = write_side_by_side([data], told, tmp_path)[0].read_text()
    rows = re.findall(r"<tr>(<td class=\"n\">0\..*?)</tr>", page)
    marks = [["good" in cell for cell in row.split("<td")[2:6]] for row in rows[:3]]
    assert marks == [[True, True, False, False]] * 2 + [[False, False, True, True]]
    assert "better than late at 2 of 3 leads, worse at 1" in best_sentence(data)


def test_no_run_is_marked_where_trajectories_cannot_tell(tmp_path: Path) -> None:
    few = {"off": [scored(off, count=4)], "exact": [scored(exact, count=4)]}
    (data,) = shared_datasets(few)
    assert data.best() == [None] * 3
    assert "not distinguishable from off with 4 trajectories" in best_sentence(data)
    # another run's forecasts are better of half of the trajectories, worse of the others
    one, other = scored(off), scored(off)
    draw = np.random.default_rng(0)
    for scores in other.scores.values():
        scores["vrmse"] *= np.where(np.arange(8) % 2, 1.1, 1 / 1.1)[:, None, None]
        scores["vrmse"] *= np.exp(1e-3 * draw.normal(size=scores["vrmse"].shape))
    (data,) = shared_datasets({"one": [one], "other": [other]})
    assert data.best() == [None] * 3
    told = {name: {"model": "m", "step": 3, "weights": "model"} for name in ("one", "other")}
    assert 'class="n good"' not in write_side_by_side([data], told, tmp_path)[0].read_text()


def test_trajectories_in_which_nothing_varies_are_lost_by_nobody(tmp_path: Path) -> None:
    runs = {"off": scored(off), "exact": scored(exact)}
    for evaluation in runs.values():
        evaluation.undefined["vrmse"] = np.zeros_like(evaluation.undefined["vrmse"])
        evaluation.undefined["vrmse"][2:5] = True
    (data,) = shared_datasets({name: [evaluation] for name, evaluation in runs.items()})
    assert [str(data.wins(c)) for c in data.contenders] == [
        "5 of 5 (3 left out)",
        "0 of 5 (3 left out)",
    ]
    told = {name: {"model": "m", "step": 3, "weights": "model"} for name in runs}
    page = write_side_by_side([data], told, tmp_path)[0].read_text()
    assert "5 of 5 (3 left out)" in page
    numbers = json.loads((tmp_path / "metrics.json").read_text())["datasets"][0]
    assert [row["share_won"] for row in numbers["runs"]] == [1.0, 0.0]
    assert numbers["runs"][0]["trajectories_won"]["num_left_out"] == 3


def test_equal_runs_share_their_rank() -> None:
    (data,) = shared_datasets({"a": [scored(off)], "b": [scored(off)]})
    assert [c.rank for c in data.contenders] == [1.5, 1.5]
    assert (
        best_sentence(data) == "a and b have the same mean rank 1.5 over 6 pairs of lead and field"
    )


def test_fields_that_only_one_run_scores_are_left_out() -> None:
    one = scored(exact, groups={"velocity-x": ("velocity-x",)})
    (data,) = shared_datasets({"one": [one], "both": [scored(off)]})
    assert data.groups == ("velocity-x",)
    both = scored(exact, groups={"velocity": ("velocity-x", "velocity-y")})
    with pytest.raises(
        ValueError, match=r"\(one: velocity-x; both: velocity of velocity-x\+velocity"
    ):
        shared_datasets({"one": [one], "both": [both]})
    # one component is not the vector, whatever both are called
    half = scored(exact, groups={"velocity": ("velocity-x",)})
    with pytest.raises(ValueError, match=r"half: velocity of velocity-x; both: velocity of"):
        shared_datasets({"half": [half], "both": [both]})


def test_forecasts_of_other_frames_are_no_comparison() -> None:
    later = evaluate_dataset(exact, view(), range(8), (1, 2), start_frame=1)
    with pytest.raises(ValueError, match=r"from different frames \{'a': 0, 'b': 1\}"):
        shared_datasets({"a": [scored(exact, leads=(1, 2))], "b": [later]})


def test_runs_without_common_data_or_leads_are_refused() -> None:
    other = scored(exact, dataset=DecayingWaves(Spec("other waves"), fingerprint="beef"))
    with pytest.raises(ValueError, match=r"no common dataset \(a: decaying-waves; b: other"):
        shared_datasets({"a": [scored(exact)], "b": [other]})
    with pytest.raises(ValueError, match=r"different leads .*a \[1, 2, 4\].* lead_steps"):
        shared_datasets({"a": [scored(exact)], "b": [scored(exact, leads=(1, 2))]})
