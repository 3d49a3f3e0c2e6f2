"""Images through the whole platform: masked pretraining, then classification and segmentation."""

import io
import itertools
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.jobs import evaluate, finetune, pretrain
from pelagos.jobs.training.blueprint import Blueprint
from pelagos.jobs.training.checking import checked
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import ConfigError, EvaluateJob, TrainingJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.measure import EvaluateResources
from pelagos.platform.records.runs import RunDirectory

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Handwritten digits, 8 x 8, with their class and a map of what is bright."""
    uri = str(tmp_path_factory.mktemp("digits") / "digits.zarr")
    runpy.run_path(str(EXAMPLE))["write_digits"](uri)
    return uri


@pytest.fixture
def make(digits: str, tmp_path: Path) -> Callable[..., TrainingJob]:
    def job(name: str, kind: str, **sections: Any) -> TrainingJob:
        tree = {
            "job": kind,
            "name": name,
            "runs_dir": str(tmp_path / "runs"),
            "data": {
                "mixture": [{"uri": digits}],
                "fields": sections.pop("fields", ["grey"]),
                "global_batch_size": 32,
            },
            "optimizer": {"lr": 0.003, "weight_decay": 0.05},
            "schedule": {"total_steps": sections.pop("steps", 60), "warmup_steps": 10},
            "validation": {"every_steps": 30, "num_samples": 100},
            "tracking": {"uri": None},
            "resources": {"launcher": "none"},
            **sections,
        }
        parsed = parse_job(yaml.safe_dump(tree), name)
        assert isinstance(parsed, TrainingJob)
        return parsed

    return job


def quiet() -> Console:
    return Console(file=io.StringIO())


def validation_losses(result: Any, runs_dir: str) -> list[float]:
    events = RunDirectory.open(runs_dir, result.run_name).events()
    return [e["validation_loss"] for e in events if e["kind"] == "validation"]


def measured(job: TrainingJob) -> Any:
    """Evaluate a run on held-out images; return the numbers of its dataset."""
    wanted = {"run": job.name, "runs_dir": job.runs_dir, "split": "validation"}
    result = evaluate.run(EvaluateJob(**wanted, max_trajectories=50), quiet())
    assert result.report.read_text().count("<img src=") == 2
    return result.metrics["datasets"][0]


SMALL = {"image_size": [8, 8], "patch_size": [2, 2], "positions": "learned"}


def test_masked_pretraining_hands_its_encoder_over_to_classification(
    make: Callable[..., TrainingJob],
) -> None:
    first = make(
        "mae",
        "pretrain",
        model={"name": "mae-nano", "config": SMALL},
        objective={"name": "masked", "config": {"patch_size": 2, "mask_ratio": 0.5}},
    )
    result = pretrain.run(first, quiet())  # type: ignore[arg-type]
    losses = validation_losses(result, first.runs_dir)
    # targets have variance 1 in every patch: 1 is what the mean alone would give
    assert losses[-1] < 0.95
    second = make(
        "classes",
        "finetune",
        source={"run": "mae"},
        model={"name": "vit-nano", "config": SMALL},
        objective={"name": "classification", "config": {"num_classes": 10}},
        steps=90,
    )
    prepared = finetune.prepare(second)  # type: ignore[arg-type]
    matched = prepared.adaptation.names("matched")
    assert all(name.startswith("encoder.") for name in matched)
    fresh = prepared.adaptation.names("re-initialised")
    assert fresh
    assert not any(name.startswith("encoder.blocks") for name in fresh)
    tuned = finetune.run(second, quiet())  # type: ignore[arg-type]
    # guessing among ten classes costs log 10 = 2.3
    assert validation_losses(tuned, second.runs_dir)[-1] < 1.5
    told = measured(second)
    assert told["summary"]["accuracy"] > 0.5 > 3 * told["summary"]["majority_accuracy"]
    assert len(told["classes"]) == 10
    assert sum(map(sum, told["confusion"])) == 50


def test_datasets_of_one_name_keep_their_own_scores(
    make: Callable[..., TrainingJob],
    digits: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost one of two accuracies would be told as the other dataset's."""
    shutil.copytree(digits, tmp_path / "digits.zarr")
    job = make(
        "twins",
        "pretrain",
        data={
            "mixture": [{"uri": digits}, {"uri": str(tmp_path / "digits.zarr")}],
            "fields": ["grey"],
            "global_batch_size": 8,
        },
        model={"name": "vit-nano", "config": SMALL},
        objective={"name": "classification", "config": {"num_classes": 10}},
        schedule={"total_steps": 1},
        validation={"every_steps": 1, "num_samples": 8},
    )
    pretrain.run(job, quiet())  # type: ignore[arg-type]
    logged: list[str] = []
    monkeypatch.setattr(
        evaluate,
        "log_evaluation",
        lambda job, run, out, values: logged.extend(v[0] for v in values),
    )
    console = Console(file=io.StringIO(), width=80)
    wanted = EvaluateJob(run="twins", runs_dir=job.runs_dir, split="validation", max_trajectories=9)
    told = evaluate.run(wanted, console).metrics["datasets"]
    name = RunDirectory.open(job.runs_dir, "twins").events()  # as training called them
    (event,) = [e for e in name if e["kind"] == "validation"]
    names = [d["name"] for d in told]
    assert names == ["digits-1", "digits-2"]
    assert all(f"validation_loss/{name}" in event for name in names)
    assert len(set(logged)) == len(logged)
    assert {n.split("/")[1] for n in logged} == set(names)


def test_segmentation_learns_and_its_labels_stay_whole_numbers(
    make: Callable[..., TrainingJob],
) -> None:
    job = make(
        "ink",
        "pretrain",
        fields=["grey", "ink"],
        model={"name": "nnunet-nano", "config": {"num_dimensions": 2}},
        objective={"name": "segmentation", "config": {"label_field": "ink", "num_classes": 2}},
        steps=90,
    )
    validation = [batch for batch, _ in Blueprint(job).streams.validation(0, 1)]
    batch = validation[0]
    assert set(batch.frames[:, 0, 1].unique().tolist()) == {0.0, 1.0}
    assert batch.frames[:, 0, 0].std() == pytest.approx(1.0, abs=0.1)
    assert {label for b in validation for label in b.label.tolist()} == set(range(10))
    result = pretrain.run(job, quiet())  # type: ignore[arg-type]
    # without a look at the image: log 2 and a Dice of a half
    assert validation_losses(result, job.runs_dir)[-1] < 0.6
    told = measured(job)
    assert told["summary"]["mean_dice"] > 0.8
    # a point is an eighth of the picture wide: surfaces are off by less than that
    assert told["summary"]["mean_surface_distance"] < 1 / 8
    assert len(told["per_image"]["dice"]) == 50


@pytest.mark.ray
@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (
            {"name": "nnunet-nano", "config": {"num_dimensions": 2}},
            {"name": "segmentation", "label_field": "ink", "num_classes": 2},
        ),
        (
            {"name": "vit-nano", "config": SMALL},
            {"name": "classification", "num_classes": 10},
        ),
    ],
)
def test_two_workers_measure_images_as_one_process_does(
    make: Callable[..., TrainingJob],
    tmp_path: Path,
    model: dict[str, Any],
    objective: dict[str, Any],
) -> None:
    fields = {"fields": ["grey", "ink"]} if objective["name"] == "segmentation" else {}
    job = make("two", "pretrain", model=model, objective=objective, steps=12, **fields)
    pretrain.run(job, quiet())  # type: ignore[arg-type]
    wanted = {"run": "two", "runs_dir": job.runs_dir, "split": "validation", "batch_size": 7}
    found = [
        evaluate.run(
            EvaluateJob(
                **wanted,
                max_trajectories=30,
                tracking=False,
                output_dir=str(tmp_path / str(count)),
                resources=EvaluateResources(num_workers=count),
            )
        ).metrics
        for count in (1, 2)
    ]
    assert found[0] == found[1]
    assert len(found[0]["datasets"][0]["images"]) == 30


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (
            "vit-nano",
            {"name": "masked"},
            "takes one image, .* its hidden patches: use .*classification",
        ),
        (
            "mae-nano",
            {"name": "all2all"},
            "takes an image and .* one frame and a lead time: use .*masked",
        ),
        ("dpot-nano", {"name": "all2all"}, "use objective.name autoregressive"),
        ("poseidon-nano", {"name": "autoregressive"}, "use objective.name all2all or next_step"),
    ],
)
def test_an_objective_that_does_not_fit_the_model_is_refused(
    make: Callable[..., TrainingJob], model: str, objective: dict[str, Any], message: str
) -> None:
    job = make("no", "pretrain", model={"name": model}, objective=objective)
    with pytest.raises(ConfigError, match=message):
        pretrain.run(job, quiet())  # type: ignore[arg-type]


VIT = {"name": "vit-nano", "config": SMALL}
MAE = {"name": "mae-nano", "config": SMALL}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": VIT, "objective": {"name": "classification", "config": {"num_classes": 4}}},
            r"'label' has classes up to 9, but objective.config.num_classes\(4\) allows 0 to 3; set it "
            "to 10",
        ),
        (
            {
                "fields": ["grey", "ink"],
                "model": {"name": "nnunet-nano", "config": {"num_dimensions": 2}},
                "objective": {
                    "name": "segmentation",
                    "config": {"label_field": "grey", "num_classes": 2},
                },
            },
            r"field 'grey' has classes up to 16, but objective.config.num_classes\(2\)",
        ),
        (
            {
                "model": {"name": "vit-nano", "config": {**SMALL, "head": "segmentation"}},
                "objective": {"name": "classification", "config": {"num_classes": 10}},
            },
            r"returns shape \(1, 10, 8, 8\), expected logits \[batch, 10\]\. .* head: classif",
        ),
        (
            {
                "fields": ["grey", "ink"],
                "model": VIT,
                "objective": {
                    "name": "segmentation",
                    "config": {"label_field": "ink", "num_classes": 2},
                },
            },
            r"returns shape \(1, 2\), expected maps .* head: segmentation",
        ),
        (
            {"model": MAE, "objective": {"name": "masked", "config": {"patch_size": [2, 2, 2]}}},
            "has 3 sides, but the grid has 2 axes",
        ),
        (
            {
                "model": MAE,
                "objective": {"name": "masked", "config": {"patch_size": 2, "mask_ratio": 0.01}},
            },
            "hides none of 16 patches",
        ),
    ],
)
def test_what_would_fail_in_a_step_is_refused_before(
    sections: dict[str, Any], message: str, make: Callable[..., TrainingJob]
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(make("refused", "pretrain", **sections))


def test_a_class_that_only_validation_images_hold_is_refused(tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="organs",
        equation="none",
        fields=(Field("image", "image"), Field("organ", "organ")),
        num_trajectories=6,
        num_frames=1,
        grid_shape=(16, 16),
        frame_interval=1.0,
        domain_extent=(1.0, 1.0),
        boundary_conditions={"x": "open", "y": "open"},
        splits={"train": (0, 4), "validation": (4, 6)},
    )
    maps = np.zeros((6, 1, 2, 16, 16), np.float32)
    maps[:, :, :, :8] = 1
    maps[5, 0, 1, 3, 3] = 2
    writer = create_dataset(str(tmp_path / "organs.zarr"), spec)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, maps[rows.start : rows.stop], {})
    writer.finalize()
    objective = {"name": "segmentation", "config": {"label_field": "organ", "num_classes": 2}}
    tree = {
        "job": "pretrain",
        "name": "organs",
        "data": {
            "mixture": [{"uri": writer.uri}],
            "fields": ["image", "organ"],
            "global_batch_size": 2,
        },
        "model": {"name": "nnunet-nano", "config": {"num_dimensions": 2}},
        "objective": objective,
        "optimizer": {"lr": 0.001},
        "schedule": {"total_steps": 1},
        "validation": {"every_steps": 1, "num_samples": 8},
    }
    job = parse_job(yaml.safe_dump(tree), "organs")
    assert isinstance(job, TrainingJob)
    wrong = r"split 'validation': field 'organ' has classes up to 2, but .* 0 to 1; set it to 3"
    with pytest.raises(ConfigError, match=wrong):
        checked(job)
    job = parse_job(yaml.safe_dump(tree), "organs", ["objective.config.num_classes=3"])
    assert isinstance(job, TrainingJob)
    checked(job)


def test_large_images_are_segmented_in_patches_of_the_crops_size(
    make: Callable[..., TrainingJob], digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on crops of 4 x 4, the network never sees an 8 x 8 image whole, and every point's
    answer is the average of the patches that hold it."""
    job = make(
        "patches",
        "pretrain",
        data={
            "mixture": [{"uri": digits}],
            "fields": ["grey", "ink"],
            "global_batch_size": 16,
            "crop": [4, 4],
        },
        model={
            "name": "vit-nano",
            "config": {**SMALL, "image_size": [4, 4], "head": "segmentation"},
        },
        objective={"name": "segmentation", "label_field": "ink", "num_classes": 2},
        steps=12,
    )
    pretrain.run(job, quiet())  # type: ignore[arg-type]
    forecaster, _ = Forecaster.from_run(RunDirectory.open(job.runs_dir, "patches"))
    seen: list[tuple[int, ...]] = []
    forecaster.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    answer = forecaster.logits(image).numpy()
    assert {shape[2:] for shape in seen} == {(4, 4)}
    # the definition, point by point: overlapping corners 0, 2, 4, weights of a Gaussian of side / 8
    offset = np.exp(-0.5 * ((np.arange(4) - 1.5) / 0.5) ** 2)
    weight = np.maximum(np.outer(offset, offset) / np.outer(offset, offset).max(), 1e-3)
    total, summed = np.zeros((8, 8)), np.zeros((2, 2, 8, 8))
    for y, x in itertools.product((0, 2, 4), repeat=2):
        with torch.no_grad():
            own = forecaster.model(image[:, :, y : y + 4, x : x + 4]).numpy()
        summed[:, :, y : y + 4, x : x + 4] += weight * own
        total[y : y + 4, x : x + 4] += weight
    np.testing.assert_allclose(answer, summed / total, rtol=2e-5, atol=1e-6)
    told = measured(job)
    assert sum(map(sum, told["confusion"])) == 50 * 8 * 8
