"""Load a trained run, forecast held-out trajectories from their first frame, compare with the truth.

    python examples/forecast.py quickstart --runs-dir quickstart/runs

Errors are sum |forecast - truth| / sum |truth| over a field's channels and the grid, and after it
VRMSE, the root mean square error over the truth's standard deviation: 1 for a field of one value.
A forecast must beat that, and persistence, the first frame held still.
"""

import argparse

import torch

from pelagos.data_pipelines.store import open_dataset
from pelagos.evaluation.measures.metrics import relative_l1, vrmse
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.records.runs import RunDirectory

METRICS = (relative_l1, vrmse)


def told(errors: list[torch.Tensor], lead: int) -> str:
    """Return relative L1 error and VRMSE at a lead in words."""
    return f"{errors[0][lead - 1]:7.2%} / {errors[1][lead - 1]:.2f}"


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run")
parser.add_argument("--runs-dir", default="runs")
parser.add_argument("--checkpoint", default="last", help="last, best or a step")
arguments = parser.parse_args()

run = RunDirectory.open(arguments.runs_dir, arguments.run)
forecaster, step = Forecaster.from_run(run, arguments.checkpoint)
print(f"{run.name} after {step} steps, fields {', '.join(forecaster.fields)}")

for record in forecaster.description["datasets"]:
    dataset = open_dataset(record["uri"])
    # the dataset in the model's channels: normalised, constants filled in, absent fields zero
    view = forecaster.view(dataset, record["offset"])
    trajectory = dataset.split("test")[0]
    leads = torch.arange(1, dataset.num_frames)
    frames = view.read(trajectory, range(dataset.num_frames))  # [frame, channel, y, x]
    start = frames[:1].expand(len(leads), -1, -1, -1)
    forecast = forecaster.predict_on(view)(start, leads * view.frame_interval)
    truth = view.to_physical(frames[1:])
    print(f"{view.name}, trajectory {trajectory}")
    for name, channels in view.groups.items():
        of_model, of_persistence = (
            [metric(view.to_physical(x)[:, channels], truth[:, channels]) for metric in METRICS]
            for x in (forecast, start)
        )
        for lead in (leads[0], leads[len(leads) // 2], leads[-1]):
            print(
                f"  {name:10s} lead time {lead * view.frame_interval:5.3f}: "
                f"model {told(of_model, lead)}, persistence {told(of_persistence, lead)}"
            )
