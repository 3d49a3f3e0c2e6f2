"""No text of clusters.yaml or of a job adds a line or a word to what a scheduler or a shell reads."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.submission.test_kubernetes import CONFIG

from pelagos.infra.clusters import Code, Needs, Submission, open_cluster
from pelagos.infra.clusters.ray_jobs import run_entrypoint
from pelagos.infra.clusters.slurm import SlurmCluster
from pelagos.jobs.submission.handing_over import environment_of
from pelagos.platform.config.clusters import parse_clusters
from pelagos.platform.config.load import ConfigError

MARK = "PLACEHOLDER"
# in YAML, in the shell, in sbatch, in `str.format` and in Kubernetes these mean something
_MEANT = [
    "'",
    '"',
    "\\",
    "%",
    "%%",
    "%j",
    "#",
    "$(id)",
    "`id`",
    "$HOME",
    ";",
    "&",
    "{bootstrap}",
    "}",
    "*",
    "~",
    "é",
    "$(X)",
    "--uid=0",
    "!",
    ":",
    "EOF",
    "a",
]
_SPACES = ["\n", "\r", " ", "  ", "\t", "\0", "\x85", "\u2028", "\n#SBATCH --uid=0", ": "]
PIECES = st.sampled_from(_MEANT) | st.sampled_from(_SPACES)
TEXTS = st.lists(PIECES | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).map(
    "".join
)


def clusters_yaml(text: str, **changes: Any) -> str:
    entry = {
        "kind": "slurm",
        "storage": f"/scratch/{text}",
        "endpoint_url": f"http://s3/{text}",
        "region": text,
        "environment": {"FIRST": text, "SECOND": f"x{text}x"},
        "node": {"cpus": 8, "gpus": 2},
        **changes,
    }
    return yaml.safe_dump({"clusters": {"hpc": entry}})


def script_of(text: str) -> str:
    """The script of a run on a cluster whose texts are all `text`. Raises `ConfigError`."""
    config = parse_clusters(clusters_yaml(text), "clusters.yaml")["hpc"]
    cluster = open_cluster("hpc", config)
    assert isinstance(cluster, SlurmCluster)
    return cluster.script(submission(config.storage, environment_of(config)))


def submission(storage: str, environment: dict[str, str]) -> Submission:
    code = Code(f"{storage}/w.whl", "a" * 64, f"{storage}/f.zip", "b" * 64)
    return Submission("run", storage, 1, Needs(6, 2, 1), code, environment=environment)


def read(script: str) -> tuple[int, list[list[str]], list[str], list[str]]:
    """Number of lines, words of each #SBATCH line, and words before and after bootstrap.py."""
    before, _, rest = script.partition("cat > ")
    _, _, after = rest.partition("\nPELAGOS_BOOTSTRAP\n")
    lines = [line for line in before.splitlines() if line.startswith("#SBATCH")]
    directives = [shlex.split(line.removeprefix("#SBATCH")) for line in lines]
    words = [shlex.split(part, comments=True) for part in (before, after)]
    return len(script.splitlines()), directives, words[0], words[1]


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_a_script_has_the_same_lines_and_words_whatever_the_texts(text: str) -> None:
    if not text.isprintable() or '"' in text or "\\" in text:
        with pytest.raises(ConfigError, match="clusters.hpc."):
            script_of(text)
        return
    script = script_of(text)
    num_lines, directives, before, after = read(script_of(MARK))
    in_log = text.replace("%", "%%")
    expected = [[word.replace(MARK, in_log) for word in line] for line in directives]
    found = read(script)
    assert found[0] == num_lines
    assert found[1] == expected
    assert found[2] == [word.replace(MARK, text) for word in before]
    assert found[3] == [word.replace(MARK, text) for word in after]
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


SCHEDULER = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=1
AuthType=auth/none
NodeName=localhost CPUs=1
PartitionName=debug Nodes=ALL Default=YES
"""


@pytest.mark.skipif(
    shutil.which("sbatch") is None, reason="needs sbatch: apt-get install slurm-wlm"
)
@pytest.mark.parametrize("text", ["two words", "it's # 100% {x}", "$(id);`id`", "é %j 'q' a=b"])
def test_sbatch_itself_reads_one_word_for_each_option(text: str, tmp_path: Path) -> None:
    """It says what it found before it looks for a controller, which there is none."""
    (tmp_path / "slurm.conf").write_text(SCHEDULER)
    (tmp_path / "job").write_text(script_of(text))
    process = subprocess.Popen(
        ["sbatch", "--test-only", "-vvv", str(tmp_path / "job")],
        env={**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "end of defined options" in line:
            break
    process.kill()
    process.wait()
    found = [line.split('argument "', 1)[1].rstrip()[:-1] for line in said if "argument" in line]
    wanted = [word for words in read(script_of(text))[1] for word in words]
    assert found == wanted, said
    log = "/scratch/" + text.replace("%", "%%") + "/scheduler/run-%j.log"
    assert f"--output={log}" in found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_slurm_writes_the_log_where_it_is_read(real_slurm: None, tmp_path: Path) -> None:
    storage = str(tmp_path / "a b # 100%j's")
    entry = {"storage": storage, "venv": str(Path(sys.executable).parent.parent)}
    config = parse_clusters(clusters_yaml("x", **entry), "clusters.yaml")["hpc"]
    cluster = open_cluster("hpc", config)
    needs = replace(submission(storage, {}), needs=Needs(1, 1, 0), uses_ray=False)
    handle = cluster.checked_handle("run", storage, cluster.start(needs))
    deadline = time.monotonic() + 120
    # The script writes its traceback in several writes: the first one read may be its first line.
    while "w.whl" not in (log := cluster.logs(handle)):
        assert time.monotonic() < deadline, (cluster.state(handle), log)
        time.sleep(0.5)
    assert "No such file or directory" in log


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_the_entry_points_of_ray_hold_the_same_words(text: str) -> None:
    entry = {"kind": "ray", "address": "http://head:8265", "storage": f"s3://b/{text}"}
    clusters = yaml.safe_dump({"clusters": {"lab": entry}})
    if not text.isprintable():
        with pytest.raises(ConfigError, match="clusters.lab.storage"):
            parse_clusters(clusters, "clusters.yaml")
        return
    config = parse_clusters(clusters, "clusters.yaml")["lab"]
    cluster = open_cluster("lab", config)
    handed = submission(config.storage, {})
    texts = cluster.render(handed)
    texts["again"] = run_entrypoint("python", handed)
    marked = cluster.render(submission(f"s3://b/{MARK}", {}))
    marked["again"] = marked["run entry point"]
    for name, shown in texts.items():
        assert len(shown.splitlines()) == 1
        words = [word.replace(MARK, text) for word in shlex.split(marked[name])]
        assert shlex.split(shown) == words


BASE = {"storage": "/s"}
KINDS: dict[str, dict[str, Any]] = {
    "local": {**BASE},
    "ray": {**BASE, "address": "http://head:8265"},
    "slurm": {**BASE},
    "kubernetes": {k: v for k, v in CONFIG.items() if k != "kind"},
}
HIDDEN = ["x\nid", "x\ry", "x\x1b[2J", "x\u2028y", "x\u202ey", "x\x7f", "x\x85"]


KEYS = [
    "storage",
    "endpoint_url",
    "region",
    "tracking",
    "shared_paths",
    "environment",
    "defaults",
    "context",
    "verify_tls",
    "token_file",
    "node_selector",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", KEYS)
def test_characters_that_cannot_be_seen_are_rejected_with_their_line(kind: str, key: str) -> None:
    only = {"context": "kubernetes", "node_selector": "kubernetes"}
    only |= {"verify_tls": "ray", "token_file": "ray"}
    if only.get(key, kind) != kind:
        return
    for hidden in HIDDEN:
        value: Any = hidden
        if key == "shared_paths":
            value = ["/a", hidden]
        elif key in ("environment", "defaults", "node_selector"):
            value = {"A": "1", "B": hidden}
        entry = {"kind": kind, **KINDS[kind], key: value}
        text = yaml.safe_dump({"clusters": {"c": entry}}, sort_keys=False)
        lines = text.splitlines()
        begin = next(i for i, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:"))
        place = f"U+{ord(next(c for c in hidden if not c.isprintable())):04X}"
        with pytest.raises(ConfigError) as raised:
            parse_clusters(text, "clusters.yaml")
        told = str(raised.value)
        assert place in told
        assert any(f"line {begin + n}: clusters.c.{key}" in told for n in range(3)), told


def test_a_variable_of_the_environment_adds_no_line_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "x\n#SBATCH --uid=0")
    with pytest.raises(ConfigError, match=r"clusters.hpc.storage: .*U\+000A"):
        parse_clusters(clusters_yaml("${PLACE}"), "clusters.yaml")
