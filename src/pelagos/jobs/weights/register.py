"""Registering a trained model in MLflow: weights, signature, and a predict in physical units."""

import contextlib
import logging
import os
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pelagos import __version__, plugins
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.locations import NEWEST
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.mlflow_records.artifacts import require_own_artifacts, tracking_client
from pelagos.platform.mlflow_records.events import SOURCE_TAG
from pelagos.platform.mlflow_records.store import RecordedRun

logger = logging.getLogger(__name__)

WEIGHTS_TAG = "pelagos.weights"  # of a version: model, or ema


def register_model(
    job: TrainingJob, recorded: RecordedRun, forecaster: Forecaster, grid_shape: tuple[int, ...]
) -> str:
    """Log the forecaster to the MLflow run and register a version of it; return the version.

    `mlflow.pyfunc.load_model("models:/NAME/VERSION").predict({"fields": …, "lead_time": …})` takes
    and gives physical units, `[batch, channel, y, x]`; several frames `[batch, frame, channel, y, x]`
    go in where the model forecasts from several. `params={"absent": […]}` names the fields that the
    data lack.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    # the closing report of the job says where to look; MLflow need not
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    channels = len(forecaster.fields)
    shape = (-1, channels, *grid_shape)
    frames = forecaster.objective.input_frames
    given = shape if frames == 1 else (-1, frames, *shape[1:])
    single = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema(
            [TensorSpec(single, given, "fields"), TensorSpec(single, (-1,), "lead_time")]
        ),
        outputs=Schema([TensorSpec(single, shape)]),
        params=ParamSchema([ParamSpec("absent", DataType.string, [], (-1,))]),
    )
    run_id = recorded.run_id
    require_own_artifacts(tracking_client(recorded.uri), run_id)
    mlflow.set_tracking_uri(recorded.uri)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "forecaster"
        forecaster.save(directory)
        with mlflow.start_run(run_id=run_id), _without_hints():
            info: Any = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("registered_forecaster.py")),
                artifacts={"forecaster": str(directory)},
                signature=signature,
                pip_requirements=[f"pelagos=={__version__}"],
                code_paths=_code_of(forecaster.description.get("plugins", ())),
            )
        known = mlflow.get_run(run_id).data.tags
    tags = {key: value for key, value in known.items() if key.startswith(SOURCE_TAG)}
    tags[WEIGHTS_TAG] = forecaster.weights
    return _create_version(job.tracking.register_as or job.name, info.model_uri, run_id, tags)


def _code_of(modules: Sequence[str]) -> list[str]:
    """Return files and folders of plugins that are no installed packages: they go with the model."""
    sources = {plugins.source_of(module) for module in modules}
    installed = sysconfig.get_path("purelib")
    return sorted(str(path) for path in sources if not path.is_relative_to(installed))


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """Hide MLflow's advice to add type hints and an example: the logged signature says it all.

    MLflow turns warnings back on inside, so they are dropped where they would be shown.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_others(message: Warning | str, *details: Any, **options: Any) -> None:
            if not any(hint in str(message) for hint in ("type hints", "input example")):
                show(message, *details, **options)

        warnings.showwarning = show_others
        yield


def _create_version(name: str, model_uri: str, run_id: str, tags: dict[str, str]) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version: Any = client.create_model_version(name, source=model_uri, run_id=run_id, tags=tags)
    client.set_registered_model_alias(name, NEWEST, version.version)
    return str(version.version)
