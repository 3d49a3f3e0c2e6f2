"""What a job says of its storage holds for every verb that reaches it."""

from pathlib import Path
from typing import Any

import pytest

from pelagos.jobs import generate
from pelagos.platform.checkpoint import inspection
from pelagos.platform.config.load import load_job, parse_job
from pelagos.platform.config.schema import GenerateJob, TrainingJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.storage_choice import options_for

TRAINING = Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml"
SECTION = "storage={endpoint_url: 'http://127.0.0.1:9', region: eu-1, backend: fsspec}"


def test_simulated_data_are_written_by_the_back_end_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = "{uri: 's3://b/d.zarr', family: NS-Sines, num_trajectories: 4}"
    text = f"job: generate\nname: g\ndatasets: [{dataset}]\n"
    job = parse_job(text, "job", [SECTION])
    assert isinstance(job, GenerateJob)
    asked: list[Any] = []

    def refuse(uri: str, options: Any, *_: Any) -> Any:
        asked.append(options)
        raise RuntimeError("asked")

    monkeypatch.setattr(generate, "open_dataset", refuse)
    with pytest.raises(RuntimeError, match="asked"):
        generate.run(job)
    assert asked == [options_for("s3://b/d.zarr", job.storage)]
    assert asked[0] != options_for(
        "s3://b/d.zarr", job.storage.model_copy(update={"backend": "auto"})
    )


def test_a_checkpoint_is_inspected_by_the_back_end_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"runs_dir={tmp_path}", "checkpoint.uri=s3://b/c", "tracking.uri=null", SECTION]
    job = load_job(TRAINING, overrides)
    assert isinstance(job, TrainingJob)
    RunDirectory.create(job)
    asked: list[Any] = []
    monkeypatch.setattr(inspection, "CheckpointStore", lambda uri, options: asked.append(options))
    monkeypatch.setattr(inspection, "named_step", lambda store, which: 1)
    inspection.locate(job.name, str(tmp_path))
    assert asked == [options_for(f"s3://b/c/{job.name}", job.storage)]
