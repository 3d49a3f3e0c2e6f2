"""A clusters.yaml that came with a project gets none of the user's secrets until it is trusted."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.clusters import ClusterError, open_cluster
from pelagos.infra.clusters.schema import RayConfig
from pelagos.platform.config import clusters as module
from pelagos.platform.config.clusters import find_cluster, load_clusters, user_file
from pelagos.platform.config.load import ConfigError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PELAGOS_CLUSTERS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(module, "_warned", set())
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    return project


def write(path: Path, **clusters: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"clusters": clusters}))


@pytest.fixture
def thief() -> Iterator[tuple[str, list[str]]]:
    """A server that keeps the tokens that it is sent."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", "no token"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()


def test_a_project_does_not_redirect_a_token(
    place: Path, thief: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project's `lab` replaced the user's, and was sent the user's token."""
    address, seen = thief
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")
    own = {"kind": "ray", "address": "http://127.0.0.1:9", "storage": "s3://own/place"}
    write(user_file(), lab=own)
    theirs = {"kind": "ray", "address": address, "storage": "s3://project/place"}
    write(place / "clusters.yaml", lab=theirs, other=theirs)
    shown = CliRunner().invoke(app, ["clusters"])
    assert seen == []
    assert "other" not in load_clusters()
    found = find_cluster("lab")
    # where the project keeps its runs it may say
    assert (found.address, found.storage) == ("http://127.0.0.1:9", "s3://project/place")
    with pytest.raises(
        ConfigError, match=r"other: .*sets address.*have not trusted.*pelagos clusters --trust"
    ):
        find_cluster("other")
    # trusted once, until it changes
    shown = CliRunner().invoke(app, ["clusters", "--trust", "--no-check"])
    assert "is trusted until it changes" in " ".join(shown.output.split())
    assert find_cluster("other").address == address
    CliRunner().invoke(app, ["clusters", "other"])
    assert "Bearer planted" in seen
    write(
        place / "clusters.yaml", lab=theirs, other={**theirs, "token_env": "AWS_SECRET_ACCESS_KEY"}
    )
    assert "other" not in load_clusters()


def test_what_a_project_may_say_of_its_own_clusters(place: Path) -> None:
    harmless = {"kind": "slurm", "storage": "/shared", "partition": "gpu", "defaults": {"seed": 3}}
    write(place / "clusters.yaml", hpc=harmless, here={"kind": "local", "storage": "runs"})
    assert set(load_clusters()) == {"hpc", "here"}
    for key, value in {
        "endpoint_url": "http://thief",
        "tracking": "http://thief",
        "secrets_file": "/home/me/secrets",
        "environment": {"LD_PRELOAD": "x.so"},
        "venv": "/opt/venv",
        "apptainer_image": "/opt/x.sif",
    }.items():
        write(place / "clusters.yaml", hpc={**harmless, key: value})
        assert load_clusters() == {}
        with pytest.raises(ConfigError, match=key):
            find_cluster("hpc")


def test_tokens_are_not_sent_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")

    def headers(**changes: Any) -> Any:
        config = RayConfig(kind="ray", storage="s3://a/b", **changes)
        return open_cluster("lab", config)._headers()  # type: ignore[attr-defined]

    with pytest.raises(ClusterError, match="plain HTTP to another machine"):
        headers(address="http://head:8265")
    sent = {"Authorization": "Bearer planted"}
    assert headers(address="http://head:8265", allow_http=True) == sent
    assert headers(address="https://head:8265") == sent
    assert headers(address="http://localhost:8265") == sent
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert headers(address="http://head:8265") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.uri", "https://thief"),
        ("tracking", {"uri": "https://thief"}),
        ("storage.endpoint_url", "https://thief"),
        ("parallel.zero.config", "/home/me/.docker/config.json"),
        ("parallel", {"zero": {"config": "/home/me/.docker/config.json"}}),
    ],
)
def test_defaults_of_a_project_say_not_where_secrets_go(place: Path, key: str, value: Any) -> None:
    """Before, they reached every job submitted from there, and so did this user's MLflow token."""
    write(user_file(), lab={"kind": "local", "storage": "/own"})
    theirs = {"kind": "local", "storage": "/theirs", "defaults": {key: value, "seed": 3}}
    write(place / "clusters.yaml", lab=theirs, other=theirs)
    assert find_cluster("lab").defaults == {"seed": 3}
    with pytest.raises(ConfigError, match=f"other: .*sets defaults.{key}"):
        find_cluster("other")
    CliRunner().invoke(app, ["clusters", "--trust", "--no-check"])
    assert find_cluster("lab").defaults == {key: value, "seed": 3}
