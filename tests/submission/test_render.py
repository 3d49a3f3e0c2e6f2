"""Files for the services around a cluster, each read by the tool it is for, or its published models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from pelagos.infra.clusters.schema import KubernetesConfig, RayConfig
from pelagos.infra.services.render import KINDS, PANELS, render, write

ROOT = Path(__file__).parents[2]
RAY = RayConfig(
    kind="ray", address="https://head:8265", storage="s3://science/teams/pelagos", max_nodes=4
)
KUBERNETES = KubernetesConfig(
    kind="kubernetes", storage="s3://science/pelagos", image="registry/pelagos:1", namespace="train"
)


def test_the_image_copies_what_there_is_and_code_last() -> None:
    text = render("image", "k8s", KUBERNETES)["Dockerfile"]
    logical = re.sub(r"\\\n\s*", " ", text)
    steps = [line.split(" ", 1) for line in logical.splitlines() if line and line[0] != "#"]
    known = {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR"}
    assert {step[0] for step in steps} <= known
    copies = [step[1].split()[:-1] for step in steps if step[0] == "COPY"]
    for source in (s for sources in copies for s in sources):
        assert (ROOT / source).exists(), source
    assert copies[-1] == ["src"]
    installs = [i for i, s in enumerate(steps) if s[0] == "RUN" and "pip install" in s[1]]
    code = next(i for i, s in enumerate(steps) if s == ["COPY", "src /opt/build/src"])
    assert [i for i in installs if i > code] == [code + 1]
    assert "--no-deps --no-build-isolation" in steps[code + 1][1]
    # all else by its sha256: an index cannot choose what is installed
    others = [steps[i][1] for i in installs if i < code]
    locks = [re.findall(r"requirements/(\S+)", step) for step in others]
    assert locks == [["${TORCH_LOCK}"], ["wheels.lock"], ["sources.lock"]]
    assert all("--no-deps --require-hashes" in step for step in others)
    assert [("--only-binary :all:" in s, "--no-build-isolation" in s) for s in others] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    (lock,) = (s[1].partition("=")[2] for s in steps if s[1].startswith("TORCH_LOCK="))
    for name in (lock, "torch-cpu.lock", "wheels.lock", "sources.lock"):
        assert (ROOT / "requirements" / name).exists()
    users = [step[1] for step in steps if step[0] == "USER"]
    uid = KUBERNETES.run_as_user
    assert users == [f"{uid}:{uid}"]
    assert f"--uid {uid} " in next(step[1] for step in steps if "useradd" in step[1])
    # nothing is installed or copied as that user, so it cannot change the code that it runs
    assert [s[0] for s in steps if s[0] == "USER" or "install" in s[1]][-1] == "USER"


@pytest.mark.parametrize("config", [RAY, KUBERNETES], ids=["ray", "kubernetes"])
def test_mlflow_is_what_kubernetes_knows(config: Any, tmp_path: Path) -> None:
    """Read into the models of Kubernetes's own client: a key that they do not have would be lost."""
    client = pytest.importorskip("kubernetes").client
    files = render("mlflow", "lab", config)
    write(files, tmp_path, overwrite=False)
    api = client.ApiClient()
    kinds = []
    for manifest in yaml.safe_load_all(files["mlflow.yaml"]):
        kind = manifest["kind"]
        kinds.append(kind)
        answer = SimpleNamespace(data=json.dumps(manifest))
        model = api.deserialize(answer, f"V1{kind}")
        assert api.sanitize_for_serialization(model) == manifest
    services = ["ConfigMap", "Deployment", "Service", "NetworkPolicy", "NetworkPolicy"]
    assert kinds == ["PersistentVolumeClaim", "StatefulSet", "Service", *services]
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: kustomization not built")
    built = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert len(list(yaml.safe_load_all(built.stdout))) == 8


def promtool(tmp_path: Path) -> str:
    """Prometheus's own checker, taken out of Debian's package if it is not installed."""
    found = shutil.which("promtool")
    if found:
        return found
    if shutil.which("apt-get") is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    done = subprocess.run(
        ["apt-get", "download", "prometheus"], cwd=tmp_path, capture_output=True, text=True
    )
    packages = list(tmp_path.glob("prometheus_*.deb"))
    if not packages:
        pytest.skip(f"needs promtool: apt-get download failed: {done.stderr.strip()[-200:]}")
    subprocess.run(["dpkg", "-x", str(packages[0]), str(tmp_path / "root")], check=True)
    return str(tmp_path / "root/usr/bin/promtool")


@pytest.mark.parametrize("config", [RAY, KUBERNETES], ids=["ray", "kubernetes"])
def test_prometheus_accepts_its_configuration_and_rules(config: Any, tmp_path: Path) -> None:
    program = promtool(tmp_path)
    files = render("monitoring", "lab", config)
    discovery = "    kubernetes_sd_configs:"
    if discovery in files["prometheus.yml"]:
        # Debian's build knows no Kubernetes: the rest is checked with another discovery in its place
        head, _, tail = files["prometheus.yml"].partition(discovery)
        _, _, rest = tail.partition("    relabel_configs:")
        static = "    static_configs: [{targets: [localhost:8080]}]\n    relabel_configs:"
        files["prometheus.yml"] = head + static + rest
    write(files, tmp_path / "files", overwrite=False)
    for command, name in (("config", "prometheus.yml"), ("rules", "pelagos.rules.yml")):
        done = subprocess.run(
            [program, "check", command, str(tmp_path / "files" / name)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "files/pelagos.rules.yml"
    broken.write_text(broken.read_text().replace("max by (run)", "max of (run)", 1))
    done = subprocess.run([program, "check", "rules", str(broken)], capture_output=True)
    assert done.returncode != 0


def test_the_dashboard_shows_what_the_rules_record_and_the_code_exports() -> None:
    from pelagos.platform.records.ray_metrics import RANK_VALUES, RUN_VALUES

    files = render("monitoring", "lab", RAY)
    rules = yaml.safe_load(files["pelagos.rules.yml"])["groups"][0]["rules"]
    recorded = {r["record"] for r in rules if "record" in r}
    dashboard = json.loads(files["grafana-dashboard.json"])
    shown = {t["expr"].partition("{")[0] for p in dashboard["panels"] for t in p["targets"]}
    assert shown == recorded
    exported = {*RUN_VALUES, *RANK_VALUES, "goodput"}
    assert {p.metric for p in PANELS} <= exported
    assert len({p["id"] for p in dashboard["panels"]}) == len(PANELS)


def test_the_ray_cluster_file_is_valid_under_rays_own_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    config = yaml.safe_load(render("ray-up", "lab", RAY)["ray-up.yaml"])
    jsonschema.validate(config, schema)
    assert config["max_workers"] == 4
    config["head_node_typ"] = config.pop("head_node_type")
    with pytest.raises(jsonschema.ValidationError, match="head_node_typ"):
        jsonschema.validate(config, schema)


def test_nothing_is_replaced_unless_asked(tmp_path: Path) -> None:
    files = render("image", "lab", RAY)
    write(files, tmp_path, overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite replaces"):
        write(files, tmp_path, overwrite=False)
    assert write(files, tmp_path, overwrite=True) == [tmp_path / "Dockerfile"]
    with pytest.raises(ValueError, match=f"known kinds: {', '.join(KINDS)}"):
        render("helm", "lab", RAY)
