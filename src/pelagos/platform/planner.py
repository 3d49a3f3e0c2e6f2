"""The cost of a job, computed before anything starts: steps, samples, bytes, FLOPs."""

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from pelagos.platform.config.checks import local_batch_size, micro_batch_size
from pelagos.platform.config.load import resolve_yaml
from pelagos.platform.config.schema import GenerateJob, TrainingJob

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Plan:
    """The resolved job and its cost."""

    resolved: str
    rows: dict[str, Any] = field(default_factory=dict)

    def show(self, console: Console, as_json: bool) -> None:
        """Print the plan."""
        if as_json:
            sys.stdout.write(json.dumps(asdict(self), indent=1) + "\n")
            return
        console.print(self.resolved)
        table = Table(title="this job would take", show_header=False)
        for name, value in self.rows.items():
            table.add_row(name.replace("_", " "), _readable(name, value))
        console.print(table)
        console.print("dry run: nothing was started or written")


class Mixture(Protocol):
    """The properties of a mixture that the planner reads."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""


def plan_pretrain(job: TrainingJob, mixture: Mixture, flops_per_sample: float) -> Plan:
    """Return steps, samples, epochs, bytes and FLOPs of a training."""
    samples = job.schedule.total_steps * job.data.global_batch_size
    sample_bytes = FLOAT_BYTES
    for length in mixture.sample_shape:
        sample_bytes *= length
    return Plan(
        resolve_yaml(job),
        {
            "steps": job.schedule.total_steps,
            "samples": samples,
            "samples_per_epoch": mixture.num_samples,
            "epochs": round(samples / mixture.num_samples, 3),
            "samples_per_worker_and_step": local_batch_size(job),
            "micro_batches_per_step": local_batch_size(job) // micro_batch_size(job),
            "sample_bytes": sample_bytes,
            "bytes_read_uncompressed": samples * sample_bytes,
            "flops": samples * flops_per_sample,
        },
    )


def plan_generate(job: GenerateJob) -> Plan:
    """Return trajectories, frames and bytes of a simulation."""
    frames = sum(d.num_trajectories * d.num_frames for d in job.datasets)
    # 4 fields is the most any family stores; the true size is known once it is written
    data_bytes = sum(
        d.num_trajectories * d.num_frames * 4 * d.resolution**2 * FLOAT_BYTES for d in job.datasets
    )
    return Plan(
        resolve_yaml(job),
        {
            "datasets": len(job.datasets),
            "trajectories": sum(d.num_trajectories for d in job.datasets),
            "frames": frames,
            "bytes_written_at_most": data_bytes,
        },
    )


def _readable(name: str, value: Any) -> str:
    if "bytes" in name:
        for unit in ("B", "KB", "MB", "GB", "TB"):
            if value < 1000 or unit == "TB":
                return f"{value:.3g} {unit}"
            value /= 1000
    if name == "flops":
        return f"{value:.3g}"
    return f"{value:,}"
