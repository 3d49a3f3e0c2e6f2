"""The job file of a look at a cluster's nodes."""

from typing import Literal

from pydantic import Field

from pelagos.platform.config.schema import NonNegativeInt, PositiveInt, RunName, Section


class ProbeJob(Section):
    """Look at the nodes of a cluster: what `pelagos doctor --cluster NAME` submits."""

    job: Literal["probe"] = "probe"
    name: RunName = Field(description="Name of the run.")
    num_nodes: PositiveInt = Field(1, description="Nodes to look at, at least.")
    cpus_per_node: PositiveInt = Field(1, description="CPU cores that each should have.")
    gpus_per_node: NonNegativeInt = Field(0, description="GPUs that each should have.")
