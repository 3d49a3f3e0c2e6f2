"""Seconds from submission to the first training step, against plain Ray Jobs or plain sbatch.

    python benchmarks/submission.py JOB.yaml --cluster NAME [--repeats 3] [key=value …]

Both ways run the same job on the same cluster (of kind `ray` or `slurm` in clusters.yaml), in turn. The
plain way is what one would do without `pelagos submit`: hand `pelagos pretrain` to the scheduler, with
the environment and the code already in place. The first step is the time in the run's first record.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from pelagos.infra.clusters.ray_jobs import RayJobsCluster
from pelagos.infra.clusters.schema import RayConfig, SlurmConfig
from pelagos.jobs import submit
from pelagos.jobs.submission import following
from pelagos.jobs.submission.following import SubmittedRun
from pelagos.platform.config.clusters import find_cluster
from pelagos.platform.config.load import load_job, resolve_yaml
from pelagos.platform.config.schema import PretrainJob

TIMEOUT_SECONDS = 600


def main() -> None:
    """Run both ways in turn and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job")
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    config = find_cluster(arguments.cluster)
    plain = {"ray": plain_ray, "slurm": plain_slurm}[config.kind]
    with tempfile.TemporaryDirectory() as directory:
        job = load_job(arguments.job, arguments.overrides)
        assert isinstance(job, PretrainJob)
        seconds: dict[str, list[float]] = {"plain": [], "pelagos submit": []}
        for _ in range(arguments.repeats):
            seconds["plain"].append(measure_plain(job, config, plain, Path(directory)))
            seconds["pelagos submit"].append(
                measure_submit(job, arguments.cluster, Path(directory))
            )
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    print(
        f"Ray {ray.__version__}; {job.resources.num_workers} workers, cluster of kind {config.kind}"
    )
    for name, values in seconds.items():
        shown = ", ".join(f"{v:.1f}" for v in values)
        print(f"  {name:<15} median {statistics.median(values):6.1f} s to the first step ({shown})")
    ratio = statistics.median(seconds["pelagos submit"]) / statistics.median(seconds["plain"])
    print(f"  pelagos submit / plain: {ratio:.2f}")


def measure_submit(job: PretrainJob, cluster: str, directory: Path) -> float:
    """Return the seconds from calling `submit` to the first step."""
    name = f"benchmark-{uuid.uuid4().hex[:8]}"
    path = directory / f"{name}.yaml"
    path.write_text(resolve_yaml(job.model_copy(update={"name": name})))
    begin = time.time()
    submit.submit(submit.plan([str(path)], cluster, (), submit.Options()))
    found: SubmittedRun = following.find(name, cluster)
    first = first_step(following.run_directory(found).metrics_path)
    following.wait(found, TIMEOUT_SECONDS)
    return first - begin


def measure_plain(
    job: PretrainJob, config: Any, run: Callable[[Any, list[str]], None], directory: Path
) -> float:
    """Return the seconds from handing `pelagos pretrain` to the scheduler to the first step."""
    name = f"plain-{uuid.uuid4().hex[:8]}"
    path = directory / f"{name}.yaml"
    runs = Path(config.storage) / "plain"
    path.write_text(resolve_yaml(job.model_copy(update={"name": name, "runs_dir": str(runs)})))
    begin = time.time()
    run(config, [sys.executable, "-m", "pelagos.cli.main", "pretrain", str(path)])
    first = first_step(runs / name / "metrics.jsonl")
    status = runs / name / "status.json"
    wait_until(lambda: json.loads(status.read_text())["state"] == "finished")
    return first - begin


def plain_ray(config: RayConfig, command: list[str]) -> None:
    """Hand a command to the Jobs API."""
    client = RayJobsCluster("plain", config)._client()
    client.submit_job(entrypoint=shlex.join([*command, "resources.ray_address=auto"]))


def plain_slurm(config: SlurmConfig, command: list[str]) -> None:
    """Hand a command to sbatch."""
    options = [f"--partition={config.partition}"] if config.partition else []
    cores = config.node.cpus if config.node else 1
    options += [f"--cpus-per-task={cores}", "--output=/dev/null"]
    subprocess.run(["sbatch", *options, "--wrap", shlex.join(command)], check=True)


def first_step(path: Path) -> float:
    """Return the time in a run's first record of a step, once there is one."""
    wait_until(lambda: path.exists() and path.read_text().count("\n") > 0)
    return float(json.loads(path.read_text().splitlines()[0])["time"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened in {TIMEOUT_SECONDS} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
