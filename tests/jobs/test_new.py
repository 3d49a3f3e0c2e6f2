"""`pelagos new`: drafts fit the data, obey the schema, run as they are, and replace nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.jobs import new
from pelagos.jobs.training.checking import checked
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.schema import PretrainJob


def write(
    uri: str, fields: dict[str, str], grid: tuple[int, ...], frames: int, classes: int = 0
) -> str:
    """A dataset of noise, or of classes where a field's kind is `label`."""
    spec = DatasetSpec(
        name="d",
        equation="none",
        fields=tuple(Field(name, kind) for name, kind in fields.items()),
        num_trajectories=12,
        num_frames=frames,
        grid_shape=grid,
        frame_interval=0.5,
        domain_extent=(1.0,) * len(grid),
        boundary_conditions=dict.fromkeys(("x", "y", "z")[: len(grid)], "periodic"),
        parameter_names=("label",) if classes else (),
        splits={"train": (0, 8), "validation": (8, 10), "test": (10, 12)},
        trajectories_per_shard=12,
    )
    rng = np.random.default_rng(0)
    data = rng.normal(size=(12, frames, len(fields), *grid)).astype(np.float32)
    for channel, kind in enumerate(fields.values()):
        if kind == "label":
            data[:, :, channel] = rng.integers(0, 3, size=(12, frames, *grid))
            data[0, 0, channel].flat[0] = 2
    writer = create_dataset(uri, spec)
    writer.write_shard(0, data, {"label": np.arange(12) % classes} if classes else {})
    writer.finalize()
    return uri


FLOW = {"velocity-x": "velocity-x", "velocity-y": "velocity-y"}


@pytest.mark.parametrize(
    ("fields", "grid", "frames", "classes", "expected"),
    [
        (FLOW, (32, 32), 4, 0, ("all2all", {"time_scale": 1.5}, "poseidon-nano")),
        (FLOW, (16, 24), 4, 0, ("all2all", {"time_scale": 1.5}, "fno-nano")),
        (FLOW, (8, 8), 2, 0, ("all2all", {"time_scale": 0.5}, "fno-nano")),
        ({"u": "u"}, (24,), 3, 0, ("all2all", {"time_scale": 1.0}, "fno-nano")),
        ({"u": "u"}, (12, 12, 12), 3, 0, ("all2all", {"time_scale": 1.0}, "fno-nano")),
        # 40 frames: leads up to 20 frames, which are 10 units of time
        (
            {"u": "u"},
            (16, 16),
            40,
            0,
            ("all2all", {"max_lead_steps": 20, "time_scale": 10.0}, "fno-nano"),
        ),
        ({"grey": "grey"}, (16, 16), 1, 5, ("classification", {"num_classes": 5}, "vit-nano")),
        (
            {"grey": "grey", "organ": "label"},
            (16, 16),
            1,
            0,
            ("segmentation", {"label_field": "organ", "num_classes": 3}, "nnunet-nano"),
        ),
        (
            {"grey": "grey"},
            (16, 16),
            1,
            0,
            ("masked", {"patch_size": 4, "mask_ratio": 0.5}, "mae-nano"),
        ),
    ],
)
def test_a_draft_fits_its_data(
    tmp_path: Path,
    fields: dict[str, str],
    grid: tuple[int, ...],
    frames: int,
    classes: int,
    expected: tuple[str, dict[str, Any], str],
) -> None:
    uri = write(str(tmp_path / "d.zarr"), fields, grid, frames, classes)
    draft = new.pretrain("first", [uri])
    tree = yaml.safe_load(draft.text)
    objective = (tree["objective"]["name"], tree["objective"].get("config", {}))
    assert (*objective, tree["model"]["name"]) == expected
    assert tree["data"]["fields"] == list(fields)
    assert " x ".join(map(str, grid)) in draft.findings[0]
    assert "8 to train on" in draft.findings[0]
    # as it is, it passes every check that a training makes
    checked(as_kind(PretrainJob, parse_job(draft.text, "draft")))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_from_data_to_a_fine_tuned_run_without_an_editor(
    datasets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    both = ("--data", datasets[0], "--data", datasets[1])
    here = ("resources.launcher=none", "resources.num_workers=1", "tracking.uri=null")
    done = run("new", "pretrain", *both, "--name", "first", "--steps", "4", "--model", "fno-nano")
    assert done.exit_code == 0, done.output
    assert "run it with: pelagos pretrain first.yaml" in done.output
    obeys_its_schema(tmp_path / "first.yaml")
    done = run("pretrain", "first.yaml", *here)
    assert done.exit_code == 0, done.output

    done = run(
        "new", "finetune", "--from", "first@last", *both[2:], "--name", "tuned", "--steps", "2"
    )
    assert done.exit_code == 0, done.output
    tree = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    first = yaml.safe_load((tmp_path / "first.yaml").read_text())
    assert tree["source"] == {"run": "first@last"}
    assert tree["objective"] == first["objective"]
    assert tree["data"]["fields"] == first["data"]["fields"]
    obeys_its_schema(tmp_path / "tuned.yaml")
    done = run("finetune", "tuned.yaml", *here)
    assert done.exit_code == 0, done.output

    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for name, source in {
        "there": ("first@last", "--runs-dir", "../runs"),
        "whole": ("../runs/first@last",),
    }.items():
        done = run("new", "finetune", "--from", *source, *both[2:], "--name", name, "--steps", "2")
        assert done.exit_code == 0, done.output
        done = run("finetune", f"{name}.yaml", "--dry-run")
        assert done.exit_code == 0, done.output
    monkeypatch.chdir(tmp_path)

    assert run("new", "sweep", "--job", "first.yaml", "--name", "rates").exit_code == 0
    tree = yaml.safe_load((tmp_path / "rates.yaml").read_text())
    assert tree["grid"] == {"optimizer.lr": [0.0015, 0.005, 0.015]}  # fno-nano's 5e-3 x 0.3, 1, 3
    obeys_its_schema(tmp_path / "rates.yaml")
    assert "6 trials, 0 done" in run("sweep", "rates.yaml", "--dry-run").output

    chain = ("--job", "first.yaml", "--job", "tuned.yaml", "--name", "chain")
    assert run("new", "submit", *chain).exit_code == 0
    tree = yaml.safe_load((tmp_path / "chain.yaml").read_text())
    assert tree == {"runs": [{"job": "first.yaml"}, {"job": "tuned.yaml", "after": ["first"]}]}
    obeys_its_schema(tmp_path / "chain.yaml")


def obeys_its_schema(file: Path) -> None:
    text = file.read_text()
    named = text.partition("$schema=")[2].splitlines()[0]
    schema = json.loads((file.parent / named).read_text())
    Draft202012Validator(schema).validate(yaml.safe_load(text))


def test_a_file_of_the_user_is_not_replaced(
    datasets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("kept")
    order = ("new", "pretrain", "--data", datasets[1], "--name", "mine", "--model", "fno-nano")
    refused = run(*order)
    assert refused.exit_code == 2
    assert "mine.yaml exists already" in " ".join(refused.output.split())
    assert (tmp_path / "mine.yaml").read_text() == "kept"
    assert run(*order, "--overwrite").exit_code == 0
    assert "job: pretrain" in (tmp_path / "mine.yaml").read_text()


def test_what_no_draft_fits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = write(str(tmp_path / "flow.zarr"), FLOW, (16, 16), 3)
    line = write(str(tmp_path / "line.zarr"), {"u": "u"}, (16,), 3)
    still = write(str(tmp_path / "still.zarr"), {"u": "u"}, (16, 16), 1)
    for uris, expected in {
        (flow, line): "one job trains on one number of them",
        (flow, still): "changes in time and the other does not",
        ("absent.zarr",): "no dataset at absent.zarr",
    }.items():
        options = [word for uri in uris for word in ("--data", uri)]
        refused = run("new", "pretrain", *options, "--name", "x")
        assert refused.exit_code == 2
        assert expected in " ".join(refused.output.split())
    refused = run("new", "finetune", "--from", "nothing", "--data", flow, "--name", "x")
    assert "there is no such run in runs (known runs: none)" in " ".join(refused.output.split())
    np.save(tmp_path / "mine.npy", np.zeros((2, 3, 8, 8), np.float32))
    for verb in (("pretrain",), ("finetune", "--from", "nothing")):
        refused = run("new", *verb, "--data", "mine.npy", "--name", "x")
        assert refused.exit_code == 2
        assert "mine.npy is not a dataset yet" in " ".join(refused.output.split())
        assert "pelagos convert" in refused.output
    refused = run("new", "pretrain", "--name", "x")
    assert "--data is missing, and there is no terminal to ask on" in refused.output
    assert not list(tmp_path.glob("*.yaml"))


def test_questions_are_asked_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = write(str(tmp_path / "flow.zarr"), FLOW, (16, 16), 3)
    monkeypatch.setattr("pelagos.cli.new._is_terminal", lambda: True)
    asked = CliRunner().invoke(app, ["new", "pretrain"], input=f"{flow}\n\n")
    assert asked.exit_code == 0, asked.output
    assert "Name of the run [first]" in asked.output
    assert yaml.safe_load((tmp_path / "first.yaml").read_text())["name"] == "first"


def test_the_machine_decides_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flow = write(str(tmp_path / "flow.zarr"), FLOW, (16, 16), 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert yaml.safe_load(new.pretrain("x", [flow]).text)["resources"] == {"num_workers": 2}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    tree = yaml.safe_load(new.pretrain("x", [flow]).text)
    assert tree["resources"] == {"num_workers": 4, "gpus_per_worker": 1}
