"""Submitting the job that looks at a cluster's nodes, and bringing back its findings."""

import tempfile
import time
from pathlib import Path

from pelagos.infra.clusters import ClusterConfig
from pelagos.infra.doctor import Check
from pelagos.jobs import submit
from pelagos.jobs.submission import following
from pelagos.jobs.submission.node_probe import read_checks
from pelagos.platform.config.load import resolve_yaml
from pelagos.platform.config.measure import ProbeJob
from pelagos.platform.records.states import State

WAIT_SECONDS = 600.0


def probe_cluster(name: str, config: ClusterConfig, num_nodes: int) -> list[Check]:
    """Return the findings of a job on `num_nodes` nodes.

    Raises:
        TimeoutError: the job had not ended in time; it has been cancelled.
    """
    node = config.node
    job = ProbeJob(
        name=time.strftime("doctor-%Y%m%d-%H%M%S"),
        num_nodes=num_nodes,
        cpus_per_node=node.cpus if node else 1,
        gpus_per_node=node.gpus if node else 0,
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "probe.yaml"
        path.write_text(resolve_yaml(job))
        submit.submit(submit.plan([str(path)], name, (), submit.Options(retries=0)))
    found = following.find(job.name, name)
    try:
        state = following.wait(found, WAIT_SECONDS)
    except TimeoutError:
        following.stop(found, now=True)
        raise
    if state.state != State.FINISHED:
        remedy = f"pelagos logs {job.name} shows its output"
        return [Check("nodes", False, f"{state.state}: {state.cause or state.reason}", remedy)]
    return read_checks(following.run_directory(found).path)
