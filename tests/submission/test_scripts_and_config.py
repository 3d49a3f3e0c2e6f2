"""What is read from clusters.yaml and written into scripts: mistakes named, hostile text inert."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.clusters import ClusterError, Code, Needs, Submission, open_cluster
from pelagos.infra.clusters.schema import RayConfig, SlurmConfig
from pelagos.infra.clusters.slurm import SlurmCluster
from pelagos.infra.doctor import Check
from pelagos.jobs import submit
from pelagos.platform.config.clusters import parse_clusters
from pelagos.platform.config.load import ConfigError

Clusters = Callable[..., None]
CODE = Code("/s/code/w.whl", "a" * 64, "/s/code/f.zip", "b" * 64)
# what a command line and an environment can hold at all: no NUL, no surrogates
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
# what clusters.yaml lets through in a Slurm cluster's storage
PATH = TEXT.filter(lambda text: text.isprintable() and not set(text) & set('"\\'))


def slurm(**changes: Any) -> SlurmCluster:
    config = {"kind": "slurm", "storage": "/scratch/pelagos", "node": {"cpus": 8, "gpus": 2}}
    return SlurmCluster("hpc", SlurmConfig.model_validate({**config, **changes}))


def submission(storage: str = "/scratch/pelagos", **environment: str) -> Submission:
    return Submission(
        run="run",
        storage=storage,
        attempt=1,
        needs=Needs(6, 2, 1),
        code=CODE,
        environment=environment,
    )


def test_the_script_asks_for_what_the_job_needs() -> None:
    script = slurm(partition="gpu", time_limit="1-00:00:00", notice_seconds=120).script(
        submission()
    )
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    for wanted in (
        "--nodes=3",  # 6 workers, 2 GPUs on a node
        "--gpus-per-node=2",
        "--cpus-per-task=8",
        "--partition=gpu",
        "--time=1-00:00:00",
        "--signal=B:USR1@120",
        "--requeue",
        "--exclusive",
    ):
        assert f"#SBATCH {wanted}" in directives
    assert "--min-nodes" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


@settings(max_examples=30)
@given(TEXT, PATH)
def test_hostile_values_stay_values_in_the_script(value: str, prefix: str) -> None:
    """The part of the script that Pelagos fills in, run by bash: nothing in it is executed."""
    script = slurm().script(submission(f"/scratch/{prefix}", HOSTILE=value))
    body = script[script.index("export HOSTILE=") : script.index("# Slurm sends this")]
    arguments = script[script.rindex("\nset -- ") : script.index("\n\nhead=$(scontrol")]
    program = f'{body}{arguments}\nprintf \'%s\\0\' "$HOSTILE" "$@"'
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode().split("\0")
    assert printed[0] == value
    assert printed[-5:-2] == [f"/scratch/{prefix}", "run", "1"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition", "gpu\n#SBATCH --uid=0"),
        ("account", "a; rm -rf /"),
        ("venv", "/opt/$(id)"),
        ("time_limit", "1:00\nid"),
        ("modules", ["cuda; id"]),
        ("secrets_file", "/etc/`id`"),
    ],
)
def test_hostile_words_in_clusters_yaml_are_refused(key: str, value: Any) -> None:
    text = yaml.safe_dump({"clusters": {"hpc": {"kind": "slurm", "storage": "/s", key: value}}})
    with pytest.raises(ConfigError, match=f"clusters.hpc.{key}"):
        parse_clusters(text, "clusters.yaml")


def test_every_mistake_of_the_file_is_listed_with_its_line() -> None:
    text = """clusters:
  lab:
    kind: ray
    adress: http://head:8265
    storage: s3://b/p
  hpc: {kind: slrm, storage: /s}
  here: {kind: local}
"""
    with pytest.raises(ConfigError) as raised:
        parse_clusters(text, "clusters.yaml")
    message = str(raised.value)
    assert "line 4: clusters.lab.adress: unknown key; did you mean 'address'?" in message
    assert "line 6: clusters.hpc.kind: got 'slrm'" in message
    assert "did you mean 'slurm'?" in message
    assert "clusters.here.storage: missing" in message


def test_an_unknown_cluster_is_answered_with_those_there_are(clusters: Clusters) -> None:
    clusters(laboratory={"kind": "local", "storage": "/s"})
    done = CliRunner().invoke(app, ["submit", "job.yaml", "--cluster", "laboratry"])
    assert done.exit_code == 2
    assert "did you mean 'laboratory'?" in done.output


@pytest.fixture
def job_file(datasets: tuple[str, str], tiny_job_text: Callable[..., str], tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(tiny_job_text(datasets, tmp_path, "run"))
    return path


def test_a_dry_run_shows_everything_and_sends_nothing(
    clusters: Clusters, tmp_path: Path, job_file: Path
) -> None:
    clusters(
        hpc={
            "kind": "slurm",
            "storage": str(tmp_path / "storage"),
            "node": {"cpus": 4},
            "price_per_device_hour": 0.5,
        }
    )
    command = ["submit", str(job_file), "--cluster", "hpc", "resources.num_workers=2"]
    done = CliRunner().invoke(app, [*command, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    (run,) = shown["runs"]
    assert run["resources"] == {"workers": 2, "cpus": 2, "gpus": 0, "nodes": 1}
    assert run["cost_per_hour"] == "1.00 USD"
    assert "#SBATCH --job-name=pelagos-run" in run["sent"]["job.sbatch"]
    assert "num_workers: 2" in run["job"]
    assert not (tmp_path / "storage").exists()
    assert "dry run: nothing was sent" in CliRunner().invoke(app, [*command, "--dry-run"]).output


def test_what_can_never_run_is_refused_before_anything_is_sent(
    clusters: Clusters, tmp_path: Path, job_file: Path
) -> None:
    storage = tmp_path / "storage"
    lab = {
        "kind": "ray",
        "address": "http://127.0.0.1:9",
        "storage": str(storage),
        "node": {"cpus": 2},
        "max_nodes": 1,
    }
    clusters(lab=lab, seen={**lab, "shared_paths": ["/"]})
    cases: list[tuple[str, list[str], str, type[Exception]]] = [
        ("lab", [], "and the cluster's nodes do not see it", ConfigError),
        ("seen", ["resources.num_workers=4"], "4 workers .* take 2 nodes", ClusterError),
        ("seen", ["tracking.uri=http://me:secret@mlflow:5000"], "holds a password", ConfigError),
        ("seen", ["model.name=poseidn-nano"], "poseidn-nano", ConfigError),
    ]
    for cluster, overrides, message, error in cases:
        with pytest.raises(error, match=message):
            submit.plan([str(job_file)], cluster, overrides, submit.Options())
    with pytest.raises(ConfigError, match="no submitted run of that name"):
        submit.plan([str(job_file)], "seen", (), submit.Options(after=("ghost",)))
    assert not storage.exists()


def test_storage_that_cannot_be_written_is_named(
    clusters: Clusters, tmp_path: Path, job_file: Path
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    clusters(here={"kind": "local", "storage": str(blocker / "storage")})
    done = CliRunner().invoke(app, ["submit", str(job_file), "--cluster", "here"])
    assert done.exit_code == 2
    assert "Check that the directory exists and is writable" in done.output
    done = CliRunner().invoke(app, ["clusters", "--json"])
    assert done.exit_code == 1
    (row,) = json.loads(done.stdout)
    assert "storage" in [c["name"] for c in row["checks"] if not c["ok"]]


def test_a_graph_of_runs_is_read_with_its_settings(
    clusters: Clusters, tmp_path: Path, job_file: Path
) -> None:
    clusters(here={"kind": "local", "storage": str(tmp_path / "storage")})
    graph = tmp_path / "graph.yaml"
    (tmp_path / "evaluate.yaml").write_text("{job: evaluate, run: second}")
    runs = [
        {"job": "job.yaml"},
        {"job": "job.yaml", "after": ["run"], "set": {"name": "second", "seed": 3}},
        {"job": "evaluate.yaml", "after": ["second"]},
    ]
    graph.write_text(yaml.safe_dump({"runs": runs}))
    planned = submit.plan([str(graph)], "here", (), submit.Options())
    assert [(r.name, r.submission.after) for r in planned.runs] == [
        ("run", ()),
        ("second", ("run",)),
        ("second-evaluation", ("second",)),
    ]
    assert "seed: 3" in planned.describe()["runs"][1]["job"]
    graph.write_text(yaml.safe_dump({"runs": [{"jobb": "job.yaml"}]}))
    with pytest.raises(ConfigError, match=r"line 2: runs.0: expected \{job: FILE"):
        submit.plan([str(graph)], "here", (), submit.Options())


@contextlib.contextmanager
def answering(version: str, certificate: Path | None = None) -> Iterator[str]:
    """What answers like a Ray dashboard of a version, by HTTPS if there is a certificate."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": version}).encode())

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def checked(address: str, storage: Path, verify_tls: bool | str = True) -> Check:
    keys = {"kind": "ray", "address": address, "storage": str(storage), "verify_tls": verify_tls}
    (check,) = open_cluster("lab", RayConfig.model_validate(keys)).check()
    return check


def test_an_older_ray_on_the_cluster_is_refused(tmp_path: Path) -> None:
    with answering("2.40.0") as address:
        check = checked(address, tmp_path)
    assert not check.ok
    assert "runs Ray 2.40.0; Pelagos needs 2.52 or newer" in check.seen


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_cluster_behind_tls_is_trusted_by_its_authority_alone(tmp_path: Path) -> None:
    certificate = tmp_path / "cluster.pem"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(certificate), "-out", str(tmp_path / "alone.pem")]
    subprocess.run([*new, *names, *files], check=True, capture_output=True)
    authority = tmp_path / "alone.pem"
    certificate.write_text(certificate.read_text() + authority.read_text())
    with answering("2.60.0", certificate) as address:
        assert checked(address, tmp_path, str(authority)).ok
        stranger = checked(address, tmp_path)
    assert not stranger.ok
    assert f"cannot be reached at {address}: TLS failed" in stranger.seen
