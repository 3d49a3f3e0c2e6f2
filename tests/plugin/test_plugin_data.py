"""A user's own problems, file format, family of networks and named callback, through the verbs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from pelagos.data_pipelines.store import open_dataset

sys.path.insert(0, str(Path(__file__).parent))
from test_plugin import metrics, notes, pelagos, place, write  # noqa: F401


@pytest.fixture
def simulated(place: Path) -> Path:  # noqa: F811
    """A user's directory with `data.zarr`, which the laboratory's family of problems made."""
    job = {
        "job": "generate",
        "name": "sea",
        "plugins": ["ocean_lab.making"],
        "datasets": [
            {
                "family": "lab-advection",
                "uri": "data.zarr",
                "num_trajectories": 16,
                "resolution": 16,
                "num_frames": 3,
                "final_time": 0.5,
                "splits": {"train": 8, "validation": 4, "test": 4},
                "trajectories_per_shard": 16,
            }
        ],
        "resources": {"num_workers": 1, "launcher": "none"},
    }
    (place / "generate.yaml").write_text(yaml.safe_dump(job))
    pelagos(place, "generate", "generate.yaml")
    return place


def test_a_family_of_problems_is_simulated_and_a_family_of_networks_learns_it(
    simulated: Path,
) -> None:
    dataset = open_dataset(simulated / "data.zarr")
    first, last = dataset.read_frames(3, [0, 2])[:, 0]
    # half of the unit square is half of the 16 points
    np.testing.assert_allclose(last, np.roll(first, 8, axis=-1), atol=1e-6)
    dataset.close()
    job = write(
        simulated,
        plugins=["ocean_lab.parts", "ocean_lab.making"],
        data={
            "mixture": [{"uri": "data.zarr"}],
            "fields": ["height"],
            "global_batch_size": 4,
        },
        model={"name": "swell-small", "config": {"width": 5}},
        callbacks=[{"name": "weight-norms", "config": {"file": "notes.jsonl"}}],
        resources={"num_workers": 1, "launcher": "none"},
    )
    pelagos(simulated, "pretrain", job)
    pelagos(simulated, "export", "own", "exported")
    found = metrics(simulated, "own")
    assert found[-1]["step"] == 8
    assert notes(simulated)[-1]["call"] == "end finished"
    weights = load_file(simulated / "exported" / "model.safetensors")
    assert weights["lift.weight"].shape == (5, 2, 5, 5)  # the field and the lead time to the width


def test_a_format_is_listed_and_converted(place: Path) -> None:  # noqa: F811
    values = np.random.default_rng(0).normal(size=(10, 3, 4, 6)).astype(np.float32)
    np.save(place / "tank-waves.npy", values)
    listed = pelagos(place, "convert", "--list", "--plugin", "ocean_lab.making")
    assert "lab-waves" in listed
    pelagos(place, "convert", "tank-waves.npy", "tank.zarr", "--plugin", "ocean_lab.making")
    dataset = open_dataset(place / "tank.zarr")
    assert dataset.field_names == ("height",)
    read = np.concatenate([dataset.read_frames(n, [0, 1, 2])[None, :, 0] for n in range(10)])
    np.testing.assert_array_equal(read, values)
    dataset.close()


def test_a_scheme_is_inspected_and_drawn_and_others_are_refused(place: Path) -> None:  # noqa: F811
    plugin = ("--plugin", "ocean_lab.parts")
    shown = pelagos(place, "data", "inspect", "waves://20", *plugin)
    assert "opened by ocean_lab.parts" in shown
    assert "trajectory 20, time 5, channel 1, y 16, x 16" in shown
    assert "height │ 1 │ 0 │ 0.70711" in shown
    assert "wrote waves.png" in pelagos(
        place, "data", "plot", "waves://20", "-o", "waves.png", *plugin
    )
    for verb in ("verify", "bench"):
        said = pelagos(place, "data", verb, "waves://20", *plugin, fails=True)
        assert "waves://20 is opened by ocean_lab.parts" in said
    said = pelagos(place, "data", "inspect", "wave://20", *plugin, fails=True)
    assert "nothing opens wave://; schemes of plugins: waves (from ocean_lab.parts)" in said


def test_a_sweep_names_plugins_for_all_its_jobs(place: Path) -> None:  # noqa: F811
    write(place, plugins=[], resources={"num_workers": 1, "launcher": "none"})
    sweep = {
        "job": "sweep",
        "name": "s",
        "plugins": ["ocean_lab.parts"],
        "jobs": {"a": {"file": "job.yaml"}},
        "seeds": [0, 1],
        "tracking": {"uri": None},
    }
    (place / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert "2 trials, 0 done" in pelagos(place, "sweep", "sweep.yaml", "--dry-run")
    said = pelagos(place, "sweep", write(place, "plain.yaml", plugins=[]), "--dry-run", fails=True)
    assert "momentum" in said  # without its plugin, nothing knows the job's optimizer
