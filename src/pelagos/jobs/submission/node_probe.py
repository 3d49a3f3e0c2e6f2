"""The checks of `pelagos doctor --cluster` on the nodes themselves: a job that examines each.

One Ray actor per node reports its versions, devices and clock and tries the storage; together they
time an all-reduce. Their findings are written to the run's `checks.json`.
"""

import json
import logging
import os
import platform
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pelagos.infra.clusters.storage_check import check_store
from pelagos.infra.doctor import PACKAGES, Check
from pelagos.infra.ray_cluster import ray_cluster
from pelagos.infra.storage.files import below, read_regular, replace_durably
from pelagos.infra.storage.local import open_store
from pelagos.infra.storage.remote import StorageError
from pelagos.platform.config.measure import ProbeJob

logger = logging.getLogger(__name__)

CHECKS_FILE = "checks.json"
_CHECKS = TypeAdapter(list[Check])
CLOCK_TOLERANCE_SECONDS = 1.0
CLOCK_READINGS = 5
ALL_REDUCE_BYTES = 32 * 2**20
ALL_REDUCE_ROUNDS = 4
ANSWER_SECONDS = 180.0
NODES_SECONDS = 300.0  # a cluster that grows on demand has its nodes by then
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class NodeReport:
    """One node's report of itself."""

    host: str
    versions: dict[str, str]
    cpus: int
    gpus: int
    storage_problem: str
    clock_offset_seconds: float = 0.0
    """Ahead of the driver's clock, to half a round trip."""
    computes: bool = True
    """False for a head that takes no work: its devices do not matter."""


class NodeProbe:
    """Runs on one node, as a Ray actor."""

    def look(self, storage: str, endpoint_url: str | None) -> dict[str, Any]:
        """Return the node's report, without its clock."""
        import torch

        versions = {"python": platform.python_version()}
        for name in ("pelagos", *PACKAGES):
            with suppress(ModuleNotFoundError):
                versions[name] = version(name)
        cpus = len(os.sched_getaffinity(0))
        problem = storage_problem(storage, endpoint_url)
        return asdict(
            NodeReport(socket.gethostname(), versions, cpus, torch.cuda.device_count(), problem)
        )

    def now(self) -> float:
        """Return this node's clock."""
        return time.time()

    def address(self) -> str:
        """Return an address of this node that others can listen for, with a free port."""
        import ray

        host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        with socket.socket() as listener:
            listener.bind(("", 0))
            return f"tcp://{host}:{listener.getsockname()[1]}"

    def all_reduce(self, address: str, rank: int, world_size: int) -> float:
        """Return the bus bandwidth in bytes per second of summing 32 MiB over all nodes."""
        import torch
        import torch.distributed as dist

        on_gpu = torch.cuda.is_available()
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world_size)
        try:
            tensor = torch.ones(ALL_REDUCE_BYTES // 4, device="cuda" if on_gpu else "cpu")
            dist.all_reduce(tensor)  # connections are made in the first
            seconds = []
            for _ in range(ALL_REDUCE_ROUNDS):
                dist.barrier()
                begin = time.perf_counter()
                dist.all_reduce(tensor)
                if on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begin)
        finally:
            dist.destroy_process_group()
        # each byte crosses a ring 2 (n - 1) / n times
        return 2 * (world_size - 1) / world_size * ALL_REDUCE_BYTES / statistics.median(seconds)


def run(job: ProbeJob, storage: str, runs_dir: Path) -> list[Check]:
    """Look at every node of the Ray cluster that this process is on; write the findings."""
    endpoint = os.environ.get("PELAGOS_STORAGE_ENDPOINT")
    address = os.environ.get("PELAGOS_RAY_ADDRESS") or None
    with ray_cluster(address, job.num_nodes * job.cpus_per_node):
        nodes = _nodes_for(job)
        probes = [_start_probe(node, job.gpus_per_node) for node in nodes]
        reports = _look(nodes, probes, storage, endpoint)
        computing = [p for p, report in zip(probes, reports, strict=True) if report.computes]
        checks = [*checks_of(reports, job), _collective(computing)]
    directory = below(runs_dir, job.name)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(check) for check in checks], indent=1)
    replace_durably(directory / CHECKS_FILE, text.encode())
    for check in checks:
        logger.info("%s: %s", check.name, check.seen)
    return checks


def read_checks(directory: Path) -> list[Check]:
    """Return a probe's findings from its run's directory.

    Raises:
        ValueError: the file there holds something else.
        OSError: there is none, or no regular file.
    """
    return _CHECKS.validate_json(read_regular(directory / CHECKS_FILE))


def _nodes_for(job: ProbeJob) -> list[dict[str, Any]]:
    """Return the cluster's nodes, after asking for as many as the job wants that compute."""
    import ray
    from ray.autoscaler.sdk import request_resources

    def alive() -> list[dict[str, Any]]:
        return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]

    deadline = time.monotonic() + NODES_SECONDS
    if sum(map(_computes, alive())) < job.num_nodes:
        request_resources(bundles=[{"CPU": job.cpus_per_node}] * job.num_nodes)
        while sum(map(_computes, alive())) < job.num_nodes and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    return alive()


def _computes(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("CPU", 0) > 0)


def _start_probe(node: dict[str, Any], gpus_per_node: int) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kind = ray.remote(NodeProbe)
    return kind.options(
        num_cpus=0,
        num_gpus=min(1, gpus_per_node, node["Resources"].get("GPU", 0)),
        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    ).remote()


def _look(
    nodes: Sequence[dict[str, Any]], probes: Sequence[Any], storage: str, endpoint: str | None
) -> list[NodeReport]:
    import ray

    said = ray.get([p.look.remote(storage, endpoint) for p in probes], timeout=ANSWER_SECONDS)
    return [
        replace(
            NodeReport(**report),
            clock_offset_seconds=_clock_offset(probe),
            computes=_computes(node),
        )
        for node, probe, report in zip(nodes, probes, said, strict=True)
    ]


def _clock_offset(probe: Any) -> float:
    """Return how far a node's clock is ahead, from the reading with the shortest round trip."""
    import ray

    readings = []
    for _ in range(CLOCK_READINGS):
        before = time.time()
        there = ray.get(probe.now.remote(), timeout=ANSWER_SECONDS)
        after = time.time()
        readings.append((after - before, there - (before + after) / 2))
    return float(min(readings)[1])


def _collective(probes: Sequence[Any]) -> Check:
    import ray

    size = len(probes)
    if size < 2:
        return Check("collective", True, "one node: nothing to measure")
    try:
        address = ray.get(probes[0].address.remote(), timeout=ANSWER_SECONDS)
        calls = [p.all_reduce.remote(address, rank, size) for rank, p in enumerate(probes)]
        rate = min(ray.get(calls, timeout=ANSWER_SECONDS))
    except Exception as error:  # whatever broke between the nodes is the finding
        seen = str(error).strip().splitlines()[-1]
        remedy = "open the ports between nodes; set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
        return Check("collective", False, f"no all-reduce over {size} nodes: {seen}", remedy)
    return Check(
        "collective", True, f"all-reduce of 32 MiB over {size} nodes: {rate / 1e9:.2f} GB/s"
    )


def checks_of(reports: Sequence[NodeReport], job: ProbeJob) -> list[Check]:
    """Return the findings about nodes that have reported, each with the nodes that differ.

    >>> job = ProbeJob(name="probe", num_nodes=2)
    >>> reports = [NodeReport("a", {"torch": "2.13"}, 8, 0, ""),
    ...            NodeReport("b", {"torch": "2.12"}, 8, 0, "", 7.0)]
    >>> [check.name for check in checks_of(reports, job) if not check.ok]
    ['versions', 'clocks']
    """
    return [
        _nodes(reports, job),
        _versions(reports),
        _storage(reports),
        _clocks(reports),
        _devices(reports, job),
    ]


def _nodes(reports: Sequence[NodeReport], job: ProbeJob) -> Check:
    computing = sorted(report.host for report in reports if report.computes)
    seen = f"{len(computing)}: {', '.join(computing)}"
    if heads := sorted(report.host for report in reports if not report.computes):
        seen += f"; besides them {', '.join(heads)}, which takes no work"
    enough = len(computing) >= job.num_nodes
    return Check("nodes", enough, seen, f"{job.num_nodes} were asked for: start the others")


def _versions(reports: Sequence[NodeReport]) -> Check:
    first = reports[0]
    differing = [
        f"{name} {report.versions.get(name, 'missing')} on {report.host}, "
        f"{first.versions.get(name, 'missing')} on {first.host}"
        for report in reports[1:]
        for name in sorted(first.versions.keys() | report.versions.keys())
        if report.versions.get(name) != first.versions.get(name)
    ]
    if differing:
        return Check("versions", False, "; ".join(differing), "install the same on every node")
    return Check("versions", True, ", ".join(f"{n} {v}" for n, v in first.versions.items()))


def _storage(reports: Sequence[NodeReport]) -> Check:
    bad = [f"{r.host}: {r.storage_problem}" for r in reports if r.storage_problem]
    remedy = "credentials, endpoint and shared disks must be the same on every node"
    seen = "; ".join(bad) or f"written and read from {len(reports)} node(s)"
    return Check("storage on nodes", not bad, seen, remedy)


def _clocks(reports: Sequence[NodeReport]) -> Check:
    offsets = [report.clock_offset_seconds for report in reports]
    spread = max(offsets) - min(offsets)
    latest = max(reports, key=lambda report: abs(report.clock_offset_seconds))
    seen = f"{spread:.3f} s apart at most"
    if spread > CLOCK_TOLERANCE_SECONDS:
        seen += f" ({latest.host} by {latest.clock_offset_seconds:+.1f} s)"
    within = spread <= CLOCK_TOLERANCE_SECONDS
    return Check("clocks", within, seen, "run chrony or another NTP service on every node")


def _devices(reports: Sequence[NodeReport], job: ProbeJob) -> Check:
    computing = [report for report in reports if report.computes]
    short = [
        f"{r.host} has {r.cpus} CPU and {r.gpus} GPU"
        for r in computing
        if r.cpus < job.cpus_per_node or r.gpus < job.gpus_per_node
    ]
    remedy = (
        f"clusters.yaml says {job.cpus_per_node} CPU and {job.gpus_per_node} GPU per node: correct "
        "it, or look for a missing driver (nvidia-smi)"
    )
    seen = "; ".join(short) or ", ".join(f"{r.cpus} CPU and {r.gpus} GPU" for r in computing)
    return Check("devices on nodes", not short, seen, remedy)


def storage_problem(storage: str, endpoint_url: str | None) -> str:
    """Return the obstacle to this node's use of the storage, or nothing."""
    try:
        check = check_store(open_store(storage, endpoint_url))
    except (StorageError, OSError) as error:
        return str(error)
    return "" if check.ok else check.seen
