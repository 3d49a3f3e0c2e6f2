"""Weights that others shared are data: their names write nothing elsewhere, their descriptions are
checked before they are used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pelagos.jobs.weights import sources
from pelagos.jobs.weights.forecaster import DESCRIPTION_FILE, Forecaster
from pelagos.models.pretrained import WEIGHTS_FILE, read_config, read_weights
from pelagos.platform.config.finetune import SourceConfig
from pelagos.platform.config.schema import ModelConfig, StorageConfig


class _Bucket:
    """Stands in for a bucket whose keys others chose."""

    keys: tuple[str, ...] = ()

    def __init__(self, uri: str, options: Any) -> None:
        self.uri = uri

    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(self.keys, 1)

    def download(self, key: str, path: Path) -> None:
        path.write_text("written")


@pytest.mark.parametrize("key", ["../../../written", "a/../../../../written", "{}"])
def test_keys_of_a_bucket_write_nothing_outside_their_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    scratch = tmp_path / "tmp" / "deep"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(_Bucket, "keys", (key.format(tmp_path / "written"),))
    monkeypatch.setattr(sources, "RemoteStore", _Bucket)
    monkeypatch.setattr(sources, "_holds_checkpoints", lambda uri, options: False)
    config = SourceConfig(uri="s3://bucket/weights")
    with pytest.raises(ValueError, match="leads out of"):
        sources.open_source(config, ModelConfig(name="fno"), "runs", StorageConfig(), "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


GOOD: dict[str, Any] = {
    "model": {"name": "fno", "config": {}},
    "objective": {"name": "next_frame"},
    "fields": ["u"],
    "normalization": {"fields": ["u"], "mean": [0.0], "std": [1.0]},
    "datasets": [],
}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "the whole"),
        ("[" * 100_000, "nested too deep"),
        (json.dumps(GOOD | {"model": "fno"}), "model"),
        (json.dumps(GOOD | {"model": {"name": "fno", "config": []}}), "model.config"),
        (json.dumps(GOOD | {"fields": None}), "fields"),
        (json.dumps(GOOD | {"datasets": [{"name": "x"}]}), "datasets.0.fingerprint"),
        (json.dumps(GOOD | {"normalization": {"fields": ["u"]}}), "normalization.mean"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "objective"}), "objective"),
    ],
)
def test_descriptions_that_are_none_are_named_with_their_key(
    tmp_path: Path, text: str, told: str
) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / WEIGHTS_FILE)
    (tmp_path / DESCRIPTION_FILE).write_text(text)
    with pytest.raises(ValueError, match=told):
        Forecaster.load(tmp_path)
    config = SourceConfig(uri=str(tmp_path))
    with pytest.raises(ValueError, match=told):
        sources.open_source(config, ModelConfig(name="fno"), "runs", StorageConfig(), "")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_description_of_weights_is_short(tmp_path: Path, name: str) -> None:
    """A file of holes takes no disk, and took as much memory as it claims to be long."""
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match=name):
        (read_config if name == "config.json" else read_weights)(tmp_path)
