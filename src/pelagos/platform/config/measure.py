"""Job files that measure and train nothing: `pelagos evaluate`, and a look at a cluster."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from pelagos.platform.config.schema import (
    PLUGINS,
    CheckpointName,
    NonNegativeInt,
    PathText,
    Plugins,
    PositiveInt,
    ResourcesConfig,
    RunName,
    Section,
)
from pelagos.platform.config.section import WEIGHTS_DESCRIPTION, RunOfFile, WeightsChoice


class EvaluateResources(Section):
    """Workers of an evaluation. Its numbers are the same for any number of workers."""

    launcher: Literal["ray", "none"] | None = Field(
        None,
        description="ray: Ray workers; none: this process; default: ray for several workers.",
    )
    num_workers: PositiveInt = Field(
        1, description="Workers that the trajectories are spread over, batch by batch."
    )
    cpus_per_worker: PositiveInt | None = Field(
        None,
        description="CPU cores (and torch threads) per worker; default: those of the run's training. "
        "With another number, sums on a CPU may round differently.",
    )
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = Field(
        None,
        description="GPUs per worker: 0 or 1; default: 1 where this machine has one for each.",
    )
    ray_address: str | None = Field(
        None, description="Address of a running Ray cluster; default: start one for the job."
    )


def _given_of_training(value: Any) -> Any:
    """Return the keys set in a training's resources, as a mapping; anything else unchanged."""
    is_other = isinstance(value, ResourcesConfig)
    return value.model_dump(exclude_unset=True) if is_other else value


class EvaluateJob(Section):
    """Measure a trained run on held-out trajectories: `pelagos evaluate RUN`."""

    job: Literal["evaluate"] = "evaluate"
    run: RunOfFile = Field(description="The run to evaluate, or RUN@WHICH.")
    runs_dir: PathText = Field("runs", description="Directory that holds the runs.")
    checkpoint: CheckpointName = Field("last", description="last, best, or a step number.")
    weights: WeightsChoice = Field("auto", description=WEIGHTS_DESCRIPTION)
    split: str = Field("test", description="Split of each dataset.")
    max_trajectories: PositiveInt = Field(64, description="Trajectories per dataset at most.")
    lead_steps: tuple[PositiveInt, ...] | None = Field(
        None,
        description="Leads evaluated, in used frames; default: every one up to max_lead_steps.",
    )
    batch_size: PositiveInt = Field(16, description="Trajectories forecast at once.")
    ensemble_size: NonNegativeInt = Field(
        0,
        description="Also forecast by the mean over this many partitions of each lead into steps.",
    )
    rollout_windows: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        ((6, 12), (13, 30)),
        description="First and last steps of rollouts that VRMSE is averaged over (The Well's).",
    )
    stability_steps: NonNegativeInt = Field(
        0,
        description="Also roll out this many steps, beyond the data's end too, to check stability.",
    )
    physics: bool = Field(
        True, description="Also check forecasts against the equation that a dataset records."
    )
    resources: Annotated[EvaluateResources, BeforeValidator(_given_of_training)] = (
        EvaluateResources()
    )
    output_dir: PathText | None = Field(
        None, description="Default: the run's evaluation directory."
    )
    plugins: Plugins = PLUGINS
    tracking: bool = Field(True, description="Log the results to the run's MLflow store.")

    @field_validator("rollout_windows")
    @classmethod
    def _in_order(cls, windows: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        for first, last in windows:
            if first > last:
                raise ValueError(f"a window ends before it begins: [{first}, {last}]")
        return windows


class ProbeJob(Section):
    """Check the nodes of a cluster; `pelagos doctor --cluster NAME` submits it."""

    job: Literal["probe"] = "probe"
    name: RunName = Field(description="Name of the run.")
    num_nodes: PositiveInt = Field(1, description="Nodes to look at, at least.")
    cpus_per_node: PositiveInt = Field(1, description="CPU cores that each should have.")
    gpus_per_node: NonNegativeInt = Field(0, description="GPUs that each should have.")
