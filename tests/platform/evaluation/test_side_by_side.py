"""Known forecasters side by side: ranked, on what they have in common, refused where nothing is."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.platform.evaluation.test_evaluate import DecayingWaves, Spec, exact, view
from torch import Tensor

from pelagos.platform.evaluation import DatasetEvaluation, evaluate_dataset
from pelagos.platform.evaluation.side_by_side import (
    animation,
    best_sentence,
    shared_datasets,
    write_side_by_side,
)


def off(frames: Tensor, lead_time: Tensor) -> Tensor:
    """Decays by half too much."""
    return exact(frames, 1.5 * lead_time)


def scored(predict: Any, leads: tuple[int, ...] = (1, 2, 4), **options: Any) -> DatasetEvaluation:
    return evaluate_dataset(predict, view(**options), range(4), leads, batch_size=4)


def test_the_better_run_comes_first_and_wins_everywhere(tmp_path: Path) -> None:
    (data,) = shared_datasets({"off": [scored(off)], "exact": [scored(exact)]})
    assert [c.run for c in data.contenders] == ["exact", "off"]
    assert [data.wins(c) for c in data.contenders] == [1.0, 0.0]
    assert data.error(data.contenders[0]).max() < 1e-5
    # e^-1.5t where e^-t is true, whatever the amplitude
    expected = 1 - 2.718281828 ** (-0.5 * 0.4)
    assert data.error(data.contenders[1])[-1] == pytest.approx(expected, rel=1e-4)
    assert "exact is best at lead time 0.4" in best_sentence(data)
    told = {name: {"model": "m", "step": 3} for name in ("off", "exact")}
    page = write_side_by_side([data], told, tmp_path).read_text()
    assert page.count("<img src=") == 2
    assert 'src="data:image/gif' in page
    assert "http" not in page
    numbers = json.loads((tmp_path / "metrics.json").read_text())["datasets"][0]
    assert [row["run"] for row in numbers["runs"]] == ["exact", "off"]
    assert numbers["runs"][1]["errors"]["relative_l1"][-1] == pytest.approx(expected, rel=1e-4)
    moving = Image.open(BytesIO(animation(data)))
    assert moving.n_frames == 3  # type: ignore[attr-defined]


def test_fields_that_only_one_run_scores_are_left_out() -> None:
    one = scored(exact, groups={"velocity-x": ("velocity-x",)})
    (data,) = shared_datasets({"one": [one], "both": [scored(off)]})
    assert data.groups == ("velocity-x",)
    both = scored(exact, groups={"velocity": ("velocity-x", "velocity-y")})
    with pytest.raises(ValueError, match=r"no field in common \(one: velocity-x; both: velocity\)"):
        shared_datasets({"one": [one], "both": [both]})


def test_runs_without_common_data_or_leads_are_refused() -> None:
    other = scored(exact, dataset=DecayingWaves(Spec("other waves"), fingerprint="beef"))
    with pytest.raises(ValueError, match=r"no dataset in common \(a: decaying-waves; b: other"):
        shared_datasets({"a": [scored(exact)], "b": [other]})
    with pytest.raises(ValueError, match=r"other leads .*a \[1, 2, 4\].* lead_steps"):
        shared_datasets({"a": [scored(exact)], "b": [scored(exact, leads=(1, 2))]})
