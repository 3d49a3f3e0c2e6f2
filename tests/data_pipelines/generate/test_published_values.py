"""What generated and converted data of one published problem say of it is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pelagos.data_pipelines.convert.pdegym_problems import PROBLEMS
from pelagos.data_pipelines.generate import FAMILIES, find_family

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SHARED = sorted(FAMILIES.keys() & PROBLEMS.keys())


def generated(config: str) -> list[dict[str, object]]:
    datasets: list[dict[str, object]] = yaml.safe_load((CONFIGS / config).read_text())["datasets"]
    return datasets


def test_all_but_the_airfoils_are_simulated() -> None:
    assert PROBLEMS.keys() - set(SHARED) == {"SE-AF"}


@pytest.mark.parametrize("name", SHARED)
def test_both_count_the_same_steps_to_a_unit_of_time(name: str) -> None:
    published = FAMILIES[name].published_normalization
    assert published.get("lead_steps_per_unit") == PROBLEMS[name].lead_steps


@pytest.mark.parametrize("config", ["poseidon/generate.yaml", "downstream/generate.yaml"])
def test_shipped_datasets_have_the_frames_that_the_loader_counts(config: str) -> None:
    """Its last lead is 1: as many steps as there are to a unit, and the frame that they start from."""
    checked = 0
    for entry in generated(config):
        family = find_family(str(entry["family"]))
        steps = family.published_normalization.get("lead_steps_per_unit")
        if steps is None:
            continue
        checked += 1
        assert entry["num_frames"] == steps + 1, family.name
    assert checked >= 6


@pytest.mark.parametrize("name", SHARED)
def test_both_are_held_against_one_equation(name: str) -> None:
    """With the same coefficients, where the loader's unit of time and the domain are known."""
    family, physics = FAMILIES[name], PROBLEMS[name].physics
    if name in ("Wave-Gauss", "Wave-Layer", "CE-RM", "GCE-RT"):
        assert not physics  # times, or the size of the domain, are not in the files
        return
    if name == "FNS-KF":
        assert physics["equation"] == "divergence-free"  # nor is the force's direction
        return
    assert physics["equation"] == family.physics
    numbers = {**family.parameters(128), **family.coefficients(128)}
    assert physics["coefficients"] == pytest.approx(numbers)
