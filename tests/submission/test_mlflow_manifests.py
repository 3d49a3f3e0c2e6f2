"""MLflow's manifests: the container's own command answers who logs in, under its own names alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import free_ports

from pelagos.infra.clusters.schema import KubernetesConfig, RayConfig
from pelagos.infra.services.render import KINDS, render

CONFIG = KubernetesConfig(
    kind="kubernetes",
    storage="s3://science/pelagos",
    image="registry/pelagos:1",
    namespace="train",
    tracking="https://mlflow.example.org",
)
SECRET = {
    "POSTGRES_PASSWORD": "postgres-secret",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-secret-of-the-test",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "key-secret",
}
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def manifests(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["kind"], m["metadata"]["name"]): m for m in yaml.safe_load_all(text)}


def started(text: str, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment of MLflow's container, with SQLite and files in place of the others."""
    found = manifests(text)
    (container,) = found["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    program, *words = container["command"] + container["args"]
    words[words.index("--port") + 1] = str(port)
    words[words.index("--host") + 1] = "127.0.0.1"
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    for variable in container["env"]:
        source = variable.get("valueFrom", {}).get("secretKeyRef")
        value = SECRET.get(source["key"]) if source else variable["value"]
        assert value is not None or source["optional"]
        if value is not None:
            environment[variable["name"]] = value
    config = found["ConfigMap", "mlflow-login"]["data"]["basic_auth.ini"]
    database = environment["MLFLOW_BACKEND_STORE_URI"]
    assert f"database_uri = {database}\n" in config
    login = folder / Path(environment["MLFLOW_AUTH_CONFIG_PATH"]).name
    # users and runs in one database, as in the manifests
    login.write_text(config.replace(database, f"sqlite:///{folder}/mlflow.db"))
    environment |= {
        "HOME": str(folder),
        "MLFLOW_AUTH_CONFIG_PATH": str(login),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
    }
    return [str(Path(sys.executable).with_name(program)), *words], environment


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("flask_wtf")
    folder = tmp_path_factory.mktemp("mlflow")
    (port,) = free_ports(1)
    command, environment = started(render("mlflow", "k8s", CONFIG)["mlflow.yaml"], folder, port)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--workers", "1"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                # what the readiness probe asks, by the pod's address
                if requests.get(f"{address}/health", headers={"Host": "10.1.2.3:5000"}).ok:
                    break
            except requests.ConnectionError:
                pass
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, 9)
        process.wait()


OWN_NAMES = ["mlflow", "mlflow.train", "mlflow.train.svc", "mlflow.train.svc.cluster.local"]
HOSTS = [
    *OWN_NAMES,
    *(f"{name}:5000" for name in OWN_NAMES),
    *("localhost:5000", "127.0.0.1:5000", "mlflow.example.org"),
]
FOREIGN = [
    "evil.example.org",
    "mlflow.evil:5000",
    "mlflow:5001",
    "mlflow.train.svc.evil",
    "10.0.0.7",
]


def status(server: str, host: str, password: str | None, path: str = SEARCH) -> int:
    headers = {"Host": host}
    if password is not None:
        token = base64.b64encode(f"admin:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    return requests.get(server + path, headers=headers, timeout=30).status_code


@pytest.mark.slow
def test_who_logs_in_is_answered_under_the_services_own_names(server: str) -> None:
    password = SECRET["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert {host: status(server, host, password) for host in HOSTS} == dict.fromkeys(HOSTS, 200)
    assert {host: status(server, host, None) for host in HOSTS} == dict.fromkeys(HOSTS, 401)
    for wrong in ("", "password1234", "password", password.upper()):
        assert status(server, "mlflow:5000", wrong) == 401
    found = {host: status(server, host, password) for host in FOREIGN}
    assert found == dict.fromkeys(FOREIGN, 403)
    artifacts = "/api/2.0/mlflow-artifacts/artifacts?path="
    assert status(server, "mlflow:5000", None, artifacts) == 401


def test_no_secret_is_in_the_manifests_and_each_comes_from_the_secret() -> None:
    text = render("mlflow", "k8s", CONFIG)["mlflow.yaml"]
    named = set()
    for (kind, _), manifest in manifests(text).items():
        assert kind != "Secret"
        if kind not in ("Deployment", "StatefulSet"):
            continue
        pod = manifest["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == security
            for variable in container["env"]:
                if "valueFrom" in variable:
                    named.add(variable["valueFrom"]["secretKeyRef"]["key"])
                else:
                    assert "PASSWORD" not in variable["name"]
    assert named == {*SECRET, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_the_database_answers_mlflow_alone() -> None:
    found = manifests(render("mlflow", "k8s", CONFIG)["mlflow.yaml"])
    labels = found["StatefulSet", "mlflow-postgres"]["spec"]["template"]["metadata"]["labels"]
    spec = found["NetworkPolicy", "mlflow-postgres"]["spec"]
    assert spec["podSelector"]["matchLabels"] == labels
    (rule,) = spec["ingress"]
    mlflow = found["Deployment", "mlflow"]["spec"]["template"]["metadata"]["labels"]
    assert rule["from"] == [{"podSelector": {"matchLabels": mlflow}}]
    spec = found["NetworkPolicy", "mlflow"]["spec"]
    assert spec["podSelector"]["matchLabels"] == mlflow
    assert spec["ingress"][0]["from"] == [{"podSelector": {}}]  # of this namespace


_YAML = ["'", '"', "\\", "#", ": ", "- ", "&a", "*", "!!x", "|", ">", "%", "@", ",", "~", "null"]
_OTHERS = [
    "{{",
    "}}",
    "{%",
    "$(POSTGRES_PASSWORD)",
    "$$",
    "`id`",
    "[",
    "]",
    "{",
    "}",
    "é",
    " ",
    "a",
]
PIECES = st.sampled_from(_YAML) | st.sampled_from(_OTHERS)
TEXTS = st.lists(PIECES, min_size=1, max_size=8).map("".join)
MARK = "PLACEHOLDER"


def expanded(value: Any) -> Any:
    """A manifest's texts as a container sees them that has no variable of these names."""
    if isinstance(value, str):
        return value.replace("$$", "\0").replace("\0", "$")
    if isinstance(value, list):
        return [expanded(item) for item in value]
    return {k: expanded(v) for k, v in value.items()} if isinstance(value, dict) else value


def marked(value: Any, text: str) -> Any:
    return json.loads(json.dumps(value).replace(MARK, json.dumps(text)[1:-1]))


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_a_text_stays_one_value_of_every_file(text: str) -> None:
    def config(value: str) -> RayConfig:
        return RayConfig(
            kind="ray",
            address="https://head:8265",
            storage=f"s3://b/{value}",
            endpoint_url=f"http://s3/{value}",
            region=value,
        )

    for kind in set(KINDS) - {"bucket-policy"}:
        files, plain = render(kind, "lab", config(text)), render(kind, "lab", config(MARK))
        for name, content in files.items():
            if name == "Dockerfile":
                assert content == plain[name]
                continue
            wanted = [marked(m, text) for m in yaml.safe_load_all(plain[name])]
            found = list(yaml.safe_load_all(content))
            assert expanded(found) == wanted if name == "mlflow.yaml" else found == wanted
    arguments = manifests(render("mlflow", "lab", config(text))["mlflow.yaml"])
    (container,) = arguments["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    # nothing is left that Kubernetes would replace by a secret
    assert "$(" not in json.dumps(container["args"]).replace("$$", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_break_is_rejected_by_every_kind(kind: str) -> None:
    """Also from code that makes a configuration without the checks of clusters.yaml."""
    keys = ("storage", "image", "namespace", "region")
    config = CONFIG.model_copy(update=dict.fromkeys(keys, "s3://b/x\nRUN id"))
    with pytest.raises(ValueError, match=r"U\+000A"):
        render(kind, "lab", config)


def test_ubuntus_own_user_of_that_number_makes_way(tmp_path: Path) -> None:
    """The script of the image's step, with stand-ins for the programs that change users."""
    text = render("image", "lab", CONFIG)["Dockerfile"].replace("\\\n", " ")
    (step,) = [line for line in text.splitlines() if "useradd" in line]
    for program, prints in (("getent", "ubuntu:x:1000:"), ("userdel", ""), ("useradd", "")):
        path = tmp_path / program
        path.write_text(f'#!/bin/sh\necho {program} "$@" >> {tmp_path}/calls\necho {prints}\n')
        path.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shell = shutil.which("sh") or "sh"
    subprocess.run([shell, "-c", step.removeprefix("RUN ")], env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1] == "userdel --remove ubuntu"
    assert calls[2].startswith("useradd --create-home --uid 1000")
