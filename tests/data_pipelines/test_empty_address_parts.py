"""Addresses with `//` in a key are refused by every verb before the first request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.foreign import open_readable
from pelagos.data_pipelines.store import DatasetError
from pelagos.infra.storage.obstore_remote import open_remote
from pelagos.infra.storage.remote import StorageError
from pelagos.platform.config.load import ConfigError, load_job

BAD = "s3://bucket//a"


class Listener:
    """A port that counts who connects to it, and hangs up."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    found = Listener()
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, found.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield found
    found.server.close()


def arguments(folder: Path) -> dict[str, list[str]]:
    source, mapping = str(folder / "a.h5"), str(folder / "m.yaml")
    described = ["--mapping", mapping]
    out = str(folder / "out.zarr")
    good = "s3://bucket/good.zarr"
    return {
        "source": ["convert", f"{BAD}.zarr", out],
        "HDF5": ["convert", f"{BAD}.nc", out],
        "inner part": ["convert", "s3://bucket/a//b.h5", out, *described],
        "dry run": ["convert", f"{BAD}.zarr", "--dry-run"],
        "draft": ["convert", f"{BAD}.zarr", "--draft-mapping"],
        "draft of HDF5": ["convert", f"{BAD}.h5", "--draft-mapping"],
        "file of a mapping": ["convert", source, out, "--mapping", str(folder / "far.yaml")],
        "destination": ["convert", source, f"{BAD}.zarr", *described],
        "destination of a far source": ["convert", good, f"{BAD}.zarr"],
        "inspect": ["data", "inspect", f"{BAD}.zarr"],
        "verify": ["data", "verify", f"{BAD}.zarr"],
        "plot": ["data", "plot", f"{BAD}.zarr", "-o", str(folder / "a.png")],
        "bench": ["data", "bench", f"{BAD}.zarr"],
        "stats": ["data", "stats", f"{BAD}.zarr"],
        "split": ["data", "split", f"{BAD}.zarr", "train=0:1"],
        "copy from": ["data", "copy", f"{BAD}.zarr", out],
        "copy to": ["data", "copy", good, f"{BAD}.zarr"],
        "merge from": ["data", "merge", out, good, f"{BAD}.zarr"],
        "merge to": ["data", "merge", f"{BAD}.zarr", good],
        "append to": ["data", "append", f"{BAD}.zarr", good],
        "append from": ["data", "append", good, f"{BAD}.zarr"],
    }


@pytest.mark.parametrize("verb", list(arguments(Path())))
def test_every_verb_refuses_it_before_a_request(
    tmp_path: Path, listener: Listener, verb: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = np.ones((3, 2, 4, 5), np.float32)
    fields = "fields: [{%skey: u, axes: [n, t, y, x], names: [u]}]"
    (tmp_path / "m.yaml").write_text(fields % "")
    (tmp_path / "far.yaml").write_text(fields % "file: 's3://bucket//far.h5', ")
    result = CliRunner().invoke(app, arguments(tmp_path)[verb])
    told = " ".join(result.output.split())
    assert "has an empty part between two slashes" in told, told
    assert (result.exit_code, listener.connections) == (2, 0)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("kind", ["pretrain", "generate"])
def test_a_job_file_names_the_line(tmp_path: Path, listener: Listener, kind: str) -> None:
    tree = yaml.safe_load(Path(f"configs/quickstart/{kind}.yaml").read_text())
    entries = tree["data"]["mixture"] if kind == "pretrain" else tree["datasets"]
    entries[1]["uri"] = f"{BAD}.zarr"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    key = r"data\.mixture\.1\.uri" if kind == "pretrain" else r"datasets\.1\.uri"
    with pytest.raises(ConfigError, match=rf"line \d+.*{key}.*has an empty part"):
        load_job(tmp_path / "job.yaml")
    tree["storage"] = {"backend": "fsspec"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    load_job(tmp_path / "job.yaml")
    assert listener.connections == 0


def test_fsspec_by_choice_asks_for_the_key_as_it_is_named(listener: Listener) -> None:
    """The check must not be one that nothing passes: here requests are made."""
    options = {"pelagos": {"backend": "fsspec", "first_answer_deadline_seconds": 0.5}}
    store = open_remote(f"{BAD}.zarr", options)
    with pytest.raises(StorageError, match="bucket"):
        store.read("zarr.json")
    assert listener.connections > 0
    for uri in ("s3://bucket/a/", f"{listener.url}//a.zarr", "file:///nowhere//a"):
        with pytest.raises(DatasetError) as caught:
            open_readable(uri, {"pelagos": {"first_answer_deadline_seconds": 0.5}})
        assert "empty part" not in str(caught.value)
