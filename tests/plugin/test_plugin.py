"""A user's own network, objective, optimizer, metric, dataset and callback, through every verb.

`ocean_lab` is a small package outside `pelagos`; nothing of it is installed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pelagos import plugins

HERE = Path(__file__).parent
JOB = {
    "job": "pretrain",
    "name": "own",
    "plugins": ["ocean_lab.parts"],
    "data": {
        "mixture": [{"uri": "waves://20"}],
        "fields": ["height"],
        "global_batch_size": 4,
    },
    "model": {"name": "ocean_lab.networks:WaveNet", "config": {"width": 6}},
    "objective": {"name": "smooth_step", "config": {"loss": "lab_l2", "sharpness": 0.5}},
    "optimizer": {"name": "momentum", "lr": 0.01, "config": {"momentum": 0.8}},
    "schedule": {"name": "halving", "total_steps": 8},
    "callbacks": [{"name": "ocean_lab.watch:WeightNorms", "config": {"file": "notes.jsonl"}}],
    "parallel": {"strategy": "ddp"},
    "resources": {"num_workers": 2},
    "checkpoint": {"every_steps": 4},
    "validation": {"every_steps": 4, "num_samples": 4},
    "tracking": {"uri": None},
}


def pelagos(place: Path, *arguments: str, fails: bool = False) -> str:
    """Run a verb as a user in a directory of their own does; return what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PELAGOS_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-m", "pelagos.cli.main", *arguments],
        cwd=place,
        env=environment | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert bool(done.returncode) is fails, said
    assert "Traceback" not in said, said
    return " ".join(said.split())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's directory, with the package beside the job files."""
    (tmp_path / "ocean_lab").symlink_to(HERE / "ocean_lab")
    return tmp_path


def write(place: Path, file: str = "job.yaml", **changes: Any) -> str:
    (place / file).write_text(yaml.safe_dump({**JOB, **changes}))
    return file


def metrics(place: Path, run: str) -> list[dict[str, Any]]:
    lines = (place / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def notes(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "notes.jsonl").read_text().splitlines()]


def test_one_process_trains_and_the_callback_sees_all(place: Path) -> None:
    pelagos(place, "pretrain", write(place), "resources.num_workers=1", "resources.launcher=none")
    found = metrics(place, "own")
    assert [m["step"] for m in found] == list(range(1, 9))
    assert [m["lr"] for m in found] == pytest.approx([0.01 * 0.5 ** (4 * k / 8) for k in range(8)])
    assert all(m["weight_norm"] > 0 for m in found)
    calls = [note["call"] for note in notes(place)]
    assert calls[0] == "start"
    assert calls.count("step") == 8
    assert calls.count("validation") == 2
    assert calls.count("checkpoint") == 2
    assert {"event validation", "event checkpoint"} < set(calls)
    assert calls[-1] == "end finished"


def test_the_initial_weights_are_those_of_the_constructor(place: Path) -> None:
    """The projection starts at 0, so that in the first step only it and its gain have a gradient."""
    pelagos(
        place, "pretrain", write(place), "resources.num_workers=1", "resources.launcher=none",
        "schedule.total_steps=1", "optimizer.weight_decay=0",
    )  # fmt: skip
    pelagos(place, "export", "own", "exported")
    sys.path.insert(0, str(HERE))
    try:
        from ocean_lab.networks import WaveNet
    finally:
        sys.path.remove(str(HERE))
    from safetensors.torch import load_file

    trained = load_file(place / "exported" / "model.safetensors")
    torch.manual_seed(0)
    plain = WaveNet(1, 1, width=6)
    moved = {k.removeprefix("network."): v for k, v in trained.items()}
    assert moved.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        is_moved = name.startswith(("project", "gain"))
        assert torch.equal(moved[name], tensor) is not is_moved, name


@pytest.mark.ray
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_two_ray_workers_agree_and_go_on(place: Path, strategy: str) -> None:
    entry = {"name": "ocean_lab.watch:WeightNorms", "config": {"file": "notes.jsonl", "fail_at": 6}}
    job = write(place, parallel={"strategy": strategy}, callbacks=[entry])
    pelagos(place, "pretrain", job, fails=True)
    assert len(metrics(place, "own")) == 5
    pelagos(place, "resume", "own", "callbacks.0.on_error=log")  # from step 4
    ranks = {note["rank"] for note in notes(place) if note["call"] == "start"}
    assert ranks == {0, 1}
    alone = write(place, "alone.yaml", name="alone")
    pelagos(place, "pretrain", alone, "resources.num_workers=1", "resources.launcher=none")
    losses = [m["loss"] for m in metrics(place, "own")]
    assert len(losses) == 8
    assert losses == pytest.approx([m["loss"] for m in metrics(place, "alone")], rel=1e-5)
    if strategy == "ddp":  # the laboratory's metric, measured by workers
        report = place / "runs/alone/evaluation/test/metrics.json"
        pelagos(place, "evaluate", "alone", "tracking=false")
        expected = json.loads(report.read_text())
        assert "mean_bias" in json.dumps(expected)
        pelagos(place, "evaluate", "alone", "tracking=false", "--workers", "2")
        assert json.loads(report.read_text()) == expected


def test_it_is_evaluated_fine_tuned_exported_and_loaded(place: Path) -> None:
    alone = ("resources.num_workers=1", "resources.launcher=none")
    pelagos(place, "pretrain", write(place), *alone)
    said = pelagos(place, "evaluate", "own", "tracking=false")
    assert "waves" in said
    report = json.loads((place / "runs/own/evaluation/test/metrics.json").read_text())
    assert "mean_bias" in json.dumps(report)
    finetune = {
        **{k: v for k, v in JOB.items() if k != "model"},
        "job": "finetune",
        "name": "tuned",
        "source": {"run": "own"},
    }
    (place / "finetune.yaml").write_text(yaml.safe_dump(finetune))
    pelagos(place, "finetune", "finetune.yaml", *alone)
    assert len(metrics(place, "tuned")) == 8
    pelagos(place, "export", "tuned", "exported")
    code = (
        "import sys; sys.path.append('.'); import ocean_lab.parts, ocean_lab.networks\n"
        "from pelagos.models.registry import load_pretrained\n"
        "print(type(load_pretrained('exported').network).__name__)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "WaveNet"


def test_a_plugin_of_the_command_line_stays_with_the_run(place: Path) -> None:
    alone = ("resources.num_workers=1", "resources.launcher=none")
    file = write(place, plugins=[])
    pelagos(place, "pretrain", file, *alone, "--plugin", "ocean_lab.parts")
    assert yaml.safe_load((place / "runs/own/job.yaml").read_text())["plugins"] == [
        "ocean_lab.parts"
    ]
    assert "finished" in pelagos(place, "resume", "own")  # names it no more
    pelagos(place, "export", "own", "exported")


def test_a_file_of_others_imports_nothing(place: Path) -> None:
    alone = ("resources.num_workers=1", "resources.launcher=none")
    pelagos(place, "pretrain", write(place), *alone)
    pelagos(place, "export", "own", "exported")
    code = (
        "from pelagos.models.registry import load_pretrained\n"
        "try: load_pretrained('exported')\n"
        "except ValueError as error: print(error)\n"
        "import sys; print('ocean_lab' in str(list(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True
    )
    assert "--plugin ocean_lab.networks" in shown.stdout
    assert shown.stdout.strip().endswith("False")


def test_mistakes_are_told_before_a_worker_starts(place: Path) -> None:
    said = pelagos(place, "pretrain", write(place, optimizer={"name": "momentun"}), fails=True)
    assert "unknown optimizer 'momentun'; closest: momentum" in said
    assert "momentum (from ocean_lab.parts)" in said
    (place / "broken.py").write_text("import math\n\nvalue = math.sqrt(-1)\n")
    said = pelagos(place, "pretrain", write(place, plugins=["broken"]), fails=True)
    assert "broken.py, line 3: value = math.sqrt(-1)" in said
    said = pelagos(place, "pretrain", write(place, plugins=["not_there"]), fails=True)
    assert "module not_there does not exist" in said
    model = {"name": "ocean_lab.networks:WaveNet", "config": {"widht": 6}}
    said = pelagos(place, "pretrain", write(place, model=model), fails=True)
    assert "has no option widht; it takes width, depth" in said
    model = {"name": "ocean_lab.networks:Wavenet"}
    said = pelagos(place, "pretrain", write(place, model=model), fails=True)
    assert "ocean_lab.networks has no network Wavenet" in said
    assert not (place / "runs").exists()


@pytest.mark.parametrize("on_error", ["stop", "log"])
def test_an_exception_in_a_callback_is_named(place: Path, on_error: str) -> None:
    config = {"file": "notes.jsonl", "fail_at": 3}
    entry = {"name": "ocean_lab.watch:WeightNorms", "config": config, "on_error": on_error}
    said = pelagos(
        place, "pretrain", write(place, callbacks=[entry]), "resources.num_workers=1",
        "resources.launcher=none", fails=on_error == "stop",
    )  # fmt: skip
    assert "callback ocean_lab.watch:WeightNorms, on_step at step 3: ZeroDivisionError" in said
    assert len(metrics(place, "own")) == (2 if on_error == "stop" else 8)


def test_a_registered_model_carries_its_code(place: Path, tmp_path: Path) -> None:
    """Loaded by MLflow in a directory and a process that know nothing of the plugin."""
    store = f"sqlite:///{place}/mlflow.db"
    pelagos(
        place, "pretrain", write(place), "resources.num_workers=1", "resources.launcher=none",
        f"tracking={{uri: '{store}', register_as: waves}}",
    )  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import mlflow, numpy as np\n"
        f"mlflow.set_tracking_uri({store!r})\n"
        "model = mlflow.pyfunc.load_model('models:/waves@newest')\n"
        "frame = np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype('float32')\n"
        "lead = np.full(1, 0.1, 'float32')\n"
        "answer = model.predict({'fields': frame, 'lead_time': lead})\n"
        "print(answer.shape, float(abs(answer).sum()) > 0)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True
    )
    assert shown.stdout.strip().endswith("(1, 1, 16, 16) True"), shown.stderr


def test_it_is_submitted_with_include_and_not_without(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"clusters": {"here": {"kind": "local", "storage": str(tmp_path / "storage")}}}
    (place / "mine.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("PELAGOS_CLUSTERS", str(place / "mine.yaml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (place / "ocean_lab").unlink()
    shutil.copytree(HERE / "ocean_lab", place / "ocean_lab")
    notes_file = str(place / "notes.jsonl")
    callback = {"name": "ocean_lab.watch:WeightNorms", "config": {"file": notes_file}}
    job = write(place, callbacks=[callback], resources={"num_workers": 1, "launcher": "none"})
    said = pelagos(place, "submit", job, "--cluster", "here", fails=True)
    assert "imports ocean_lab.parts, which would not be shipped: add --include ocean_lab" in said
    pelagos(place, "submit", job, "--cluster", "here", "--include", "ocean_lab")
    pelagos(place, "wait", "own", "--timeout", "240")
    assert [note["call"] for note in notes(place)][-1] == "end finished"


def test_a_plugin_that_exits_or_lacks_a_module_is_an_error_of_its_own(place: Path) -> None:
    (place / "exits.py").write_text("import sys\nsys.exit(0)\n")
    said = pelagos(place, "pretrain", write(place, plugins=["exits"]), fails=True)
    assert "plugin exits cannot be imported: SystemExit: 0" in said
    assert "exits.py, line 2: sys.exit(0)" in said
    (place / "my_lab.py").write_text("import my_la\n")  # another module, whose name begins alike
    said = pelagos(place, "pretrain", write(place, plugins=["my_lab"]), fails=True)
    assert "my_lab.py, line 1: import my_la" in said


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "register_objective('mine', int)",
            "objective 'mine': expected a class that is a dataclass",
        ),
        ("register_optimizer('mine', dict)", "optimizer 'mine': expected an optimizer_kinds."),
        ("register_schedule('mine', 0.5)", "schedule 'mine': expected a function, got 0.5"),
        ("register_metric('mine', 3)", "metric 'mine': expected a function, got 3"),
        ("register_loss('mine', print)", "loss 'mine': expected an object with the methods"),
        ("register_callback('mine', None)", "callback 'mine': expected a class or function"),
        ("register_opener('mine', {})", "opener of 'mine': expected a function or class"),
        ("register_format('mine')", "a file format: expected a convert.formats.Format"),
        ("register_problem_family('mine')", "a family of problems: expected a generate.family"),
        ("register_model_family('mine')", "a model family: expected a models.family.Family"),
        ("register_loss('relative_l1', print)", "loss 'relative_l1': expected an object"),
        ("register_schedule('cosine', print)", "pelagos already registered the schedule 'cosine'"),
    ],
)
def test_a_part_that_is_none_is_an_error_with_the_plugins_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, told: str
) -> None:
    (tmp_path / "wrong_part.py").write_text(f"from pelagos import plugins\nplugins.{line}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(plugins.PluginError) as error:
        plugins.load(["wrong_part"])
    assert told in str(error.value)
    assert str(error.value).endswith(f"wrong_part.py, line 2: plugins.{line})")


def test_a_callback_that_exits_stops_the_run_as_any_error_does(place: Path) -> None:
    (place / "leaving.py").write_text(
        "import sys\n"
        "from pelagos.platform.callbacks import Callback\n"
        "class Leaving(Callback):\n"
        "    def on_step(self, step, values):\n"
        "        sys.exit(0)\n"
    )
    job = write(place, callbacks=[{"name": "leaving:Leaving"}])
    alone = ("resources.num_workers=1", "resources.launcher=none")
    said = pelagos(place, "pretrain", job, *alone, fails=True)
    assert "callback leaving:Leaving, on_step at step 1: SystemExit: 0" in said
    assert "leaving.py, line 5: sys.exit(0)" in said


def test_a_failed_run_goes_on_with_the_state_of_its_own_optimizer(place: Path) -> None:
    """After a resume the velocities of `momentum` are those of the checkpoint, to the last bit."""
    alone = ("resources.num_workers=1", "resources.launcher=none")
    pelagos(place, "pretrain", write(place, "whole.yaml", name="whole"), *alone)
    entry = {"name": "ocean_lab.watch:WeightNorms", "config": {"file": "n.jsonl", "fail_at": 6}}
    pelagos(place, "pretrain", write(place, callbacks=[entry]), *alone, fails=True)
    assert len(metrics(place, "own")) == 5
    pelagos(place, "resume", "own", "callbacks.0.on_error=log")
    found = [[m["loss"] for m in metrics(place, run)] for run in ("own", "whole")]
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_a_dry_run_of_a_sweep_knows_own_networks(place: Path) -> None:
    alone = {"num_workers": 1, "launcher": "none"}
    write(place, resources=alone)
    sweep = {"job": "sweep", "name": "s", "jobs": {"a": {"file": "job.yaml"}}, "seeds": [0, 1]}
    (place / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "tracking": {"uri": None}}))
    assert "2 trials, 0 done" in pelagos(place, "sweep", "sweep.yaml", "--dry-run")


def test_a_sealed_process_imports_nothing_more(tmp_path: Path) -> None:
    """So the process of a submitted run reads checkpoints of others after it was sealed."""
    (tmp_path / "early.py").write_text("")
    (tmp_path / "late.py").write_text("open('imported', 'w')\n")
    code = (
        "from pelagos import plugins\n"
        "plugins.load(['early'])\n"
        "plugins.seal()\n"
        "plugins.load(['early'])\n"
        "try: plugins.load(['late'])\n"
        "except plugins.PluginError as error: print(error)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "needs late, which was not imported" in shown.stdout
    assert not (tmp_path / "imported").exists()
