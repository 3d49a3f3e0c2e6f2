"""What leaves: the model card and its code, programs without Pelagos, the hub's own loader."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import nn
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import evaluate, export
from pelagos.jobs.weights import programs
from pelagos.jobs.weights.card import Training, model_card
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.hub import HubForecaster
from pelagos.jobs.weights.trained_description import read_trained_description
from pelagos.models.registry import create_model
from pelagos.platform.config import EvaluateJob
from pelagos.platform.records.runs import RunDirectory

ByHand = Callable[[np.ndarray, float], np.ndarray]
FIELDS = ("density", "velocity-x", "velocity-y", "pressure")
# a program is another order of sums: errors of 6e-8, grown over the network's layers
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def evaluated(trained: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose last checkpoint was evaluated, with a program of PyTorch."""
    evaluate.run(EvaluateJob(run=trained.name, runs_dir=str(trained.path.parent)))
    directory = tmp_path_factory.mktemp("evaluated") / "model"
    options = ["--also", "torch-export", "--licence", "apache-2.0"]
    verb = ["export", trained.name, str(directory), "--runs-dir", str(trained.path.parent)]
    result = CliRunner().invoke(app, [*verb, *options])
    assert result.exit_code == 0, result.output
    assert f"{directory}/README.md" in result.output.replace("\n", "")
    return directory


def without_pelagos(code: str, directory: Path) -> str:
    """Run code in a process that cannot import Pelagos."""
    return run_code(f"import sys; sys.modules['pelagos'] = None\n{code}", directory)


def run_code(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pelagos", "-c", code],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_card_has_the_hub_s_front_matter_and_what_one_must_know(
    evaluated: Path, trained: RunDirectory, datasets: tuple[str, str]
) -> None:
    text = (evaluated / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "pelagos"
    assert "poseidon-nano" in front["tags"]
    card = ModelCard.load(evaluated / "README.md")
    results = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    found = json.loads((trained.path / "evaluation/test/metrics.json").read_text())
    for data in found["datasets"]:
        last = data["summary"][-1]
        error = results[data["name"], f"relative L1 error at lead time {last['lead_time']:g}"]
        assert error == pytest.approx(last[data["verdict"]["method"]], abs=1e-6)
        assert f"{last['lead_time']:g} | {last[data['verdict']['method']]:.2%}" in text
        assert data["fingerprint"][:16] in text
    assert "| pressure | 1 |" in text
    assert "| ns | u\\_t + c u\\_x = 0 | 8 | 16 × 16 | 0.05 |" in text
    assert text.count("not stated |") == 2  # licence of the two datasets
    for words in ("arXiv:2405.19101", "adamw", "8 of 8"):
        assert words in text
    # errors of other weights are not this model's
    description = read_trained_description(evaluated / "forecaster.json")
    bare = model_card(description, Training("waves", 7), parameters=1)
    assert "No errors were measured" in bare
    assert "Of these weights: not stated" in bare


def test_errors_of_another_checkpoint_are_not_claimed(
    evaluated: Path, trained: RunDirectory, tmp_path: Path
) -> None:
    assert "Medians over held-out trajectories" in (evaluated / "README.md").read_text()
    export.run(
        trained.name, tmp_path / "earlier", checkpoint="6", runs_dir=str(trained.path.parent)
    )
    assert "No errors were measured" in (tmp_path / "earlier/README.md").read_text()


def test_text_of_others_is_no_markup_and_no_front_matter(evaluated: Path) -> None:
    description = read_trained_description(evaluated / "forecaster.json")
    evil = "x\n---\nlicense: mit\n# <script>|[a](http://b)"
    description["datasets"][0].update(name=evil, equation=evil, licence=evil)
    text = model_card(description, Training("r", 1), parameters=1)
    assert "\nlicense: mit" not in text
    assert "\n# \\<script" not in text.replace("\n# r", "")
    assert "<script>" not in text
    assert "[a](" not in text
    assert ModelCard(text).data.to_dict().get("license") is None


def test_the_code_on_the_card_runs_with_and_without_pelagos(
    evaluated: Path, exported: Path
) -> None:
    pelagos, plain = PYTHON.findall((evaluated / "README.md").read_text())
    assert "(4, 16, 16) (3, 4, 16, 16)" in run_code(pelagos, evaluated)
    assert "torch.Size([1, 4, 16, 16])" in without_pelagos(plain, evaluated)
    pelagos, plain = PYTHON.findall((exported / "README.md").read_text())
    assert "(4, 16, 16)" in run_code(pelagos, exported)
    assert "scot" in without_pelagos(plain, exported)


def test_the_program_gives_the_model_s_forecasts_without_pelagos(
    evaluated: Path, by_hand: ByHand, tmp_path: Path
) -> None:
    fields = np.random.default_rng(1).uniform(1, 2, (1, 4, 16, 16)).astype(np.float32)
    np.save(tmp_path / "in.npy", fields)
    code = (
        "import numpy, torch\n"
        f"program = torch.export.load({str(evaluated / 'forecast.pt2')!r}).module()\n"
        "answer = program(torch.tensor(numpy.load('in.npy')), torch.tensor([0.1]))\n"
        "numpy.save('out.npy', answer.numpy())"
    )
    without_pelagos(code, tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), by_hand(fields, 0.1), **CLOSE)


def test_a_program_that_gives_other_numbers_is_not_kept(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = programs._traced

    def changed(forecast: programs.Forecast, model: Forecaster) -> object:
        exported, batch = traced(forecast, model)
        # the model, after the program was made
        forecast.register_buffer("mean", forecast.get_buffer("mean") + 0.01)
        return exported, batch

    monkeypatch.setattr(programs, "_traced", changed)
    with pytest.raises(ValueError, match=r"differ from the model's by 0\.0.*so it is not kept"):
        export.run(
            trained.name,
            tmp_path / "no",
            runs_dir=str(trained.path.parent),
            also=["torch-export"],
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="--also onnxx: expected torch-export or onnx"):
        export.run(trained.name, tmp_path / "no", runs_dir=str(trained.path.parent), also=["onnxx"])


def small(name: str, **options: object) -> Forecaster:
    """A forecaster of a network with drawn weights."""
    description = {
        "model": {"name": name, "config": options},
        "objective": {"name": "next_step"},
        "fields": ["a", "b"],
        "normalization": {"fields": ["a", "b"], "mean": [0.5, -1.0], "std": [2.0, 3.0]},
        "datasets": [
            {"name": "d", "fingerprint": "f", "grid_shape": [16, 16], "lead_times": [0.25]}
        ],
    }
    torch.manual_seed(0)
    network = create_model(name, in_channels=2, out_channels=2, **options)
    return Forecaster(description, network.state_dict())


def test_onnx_where_a_network_allows_it(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    forecaster = small("unet-nano")
    programs.write_programs(forecaster, ["onnx"], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "forecast.onnx")
    fields = np.random.default_rng(0).normal(size=(3, 2, 16, 16)).astype(np.float32)
    feeds = dict(
        zip((n.name for n in session.get_inputs()), (fields, np.full(3, 0.25, "f4")), strict=False)
    )
    expected = forecaster.predict(fields, 0.25)
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        ValueError, match="FNO cannot be written as ONNX .*--also torch-export works"
    ):
        programs.write_programs(small("fno-nano", modes=4), ["onnx"], tmp_path)
    programs.write_programs(small("fno-nano", modes=4), ["torch-export"], tmp_path)


def test_without_the_packages_onnx_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'pelagos\[onnx\]'"):
        programs.write_programs(small("unet-nano"), ["onnx"], tmp_path)


def test_the_hub_s_mixin_loads_and_saves_the_directory_offline(
    exported: Path, by_hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = HubForecaster.from_pretrained(exported)
    assert isinstance(model, PyTorchModelHubMixin)
    assert isinstance(model, nn.Module)
    assert not model.training
    fields = torch.rand(2, 4, 16, 16) + 1
    np.testing.assert_allclose(model(fields, 0.1), by_hand(fields.numpy(), 0.1), **CLOSE)
    model.save_pretrained(tmp_path / "again")
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {"config.json", "forecaster.json", "model.safetensors", "README.md"} <= names
    again = HubForecaster.from_pretrained(str(tmp_path / "again"))
    assert torch.equal(again(fields, 0.1), model(fields, 0.1))
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == "scot"
