"""What a fine-tuning says of a source that it cannot start from."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pelagos.jobs.weights.sources import open_source
from pelagos.platform.config.finetune import SourceConfig
from pelagos.platform.config.schema import ModelConfig, StorageConfig


def refusal(uri: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(uri))) as caught:
        open_source(
            SourceConfig(uri=str(uri)), ModelConfig(name="source"), "runs", StorageConfig(), ""
        )
    return str(caught.value)


def test_the_directory_of_a_run_is_named_as_a_run(tmp_path: Path) -> None:
    run = tmp_path / "runs/parent"
    run.mkdir(parents=True)
    for name in ("job.yaml", "status.json"):
        (run / name).write_text("{}")
    assert f"`source: {{run: parent, runs_dir: {tmp_path}/runs}}`" in refusal(run)


def test_advice_is_in_keys_of_the_job(tmp_path: Path) -> None:
    strange = tmp_path / "strange.safetensors"
    save_file({"odd.weight": torch.zeros(2)}, strange)
    told = refusal(strange)
    assert "model.name" in told
    assert "source.prefix" in told
    assert "--" not in told


@pytest.mark.parametrize(
    "content", [b"this is text", b"<html>", b"", bytes(range(200)), pickle.dumps({"a": 1})[:-3]]
)
def test_a_file_that_is_no_weights_is_refused_without_unsafe_advice(
    tmp_path: Path, content: bytes
) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(content)
    told = refusal(bad)
    assert "bad.pth is damaged or not a PyTorch file: " in told
    assert "weights_only" not in told
    assert "likely succeed" not in told
