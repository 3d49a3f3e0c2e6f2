"""Where a model directory is: on this machine, on the Hugging Face hub, or registered in MLflow.

Only data files are fetched: weights (safetensors) and JSON. No code in them is run.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pelagos.jobs.weights.model_directory import DESCRIPTION_FILE
from pelagos.models.pretrained import CONFIG_FILE
from pelagos.platform.config.finetune import REGISTRY_SCHEME
from pelagos.platform.config.schema import TrackingConfig
from pelagos.platform.mlflow_records.artifacts import resolved_artifacts

NEWEST = "newest"  # the alias of the version that a training registered last
FILES_OF_A_MODEL = ["*.json", "*.safetensors"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_SCHEME = "hf://"


@contextlib.contextmanager
def model_directory(
    source: str | os.PathLike[str], revision: str | None = None, tracking_uri: str | None = None
) -> Iterator[Path]:
    """Give the directory of a model, fetched if it is elsewhere, for as long as it is read.

    Args:
        source: a directory; `models:/NAME`, `models:/NAME/VERSION` or `models:/NAME@ALIAS` of MLflow;
            or `OWNER/NAME` of the Hugging Face hub, where no such directory is here.
        revision: branch, tag or commit on the hub.
        tracking_uri: of MLflow; default: `MLFLOW_TRACKING_URI`, else the default of job files.

    Raises:
        ValueError: there is none, or it is no trained network with its fields.
    """
    text = os.fspath(source)
    if text.startswith(REGISTRY_SCHEME):
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _default_tracking()
        with tempfile.TemporaryDirectory(prefix="pelagos-model-") as scratch:
            yield registered_directory(text, uri, Path(scratch))
        return
    path = Path(text).expanduser()
    if path.is_dir():
        yield _described(path)
    elif isinstance(source, str) and is_hub_id(text):
        yield _described(_from_hub(text.removeprefix(_HUB_SCHEME), revision))
    else:
        raise ValueError(
            f"there is no model {text}: expected a directory that `pelagos export` wrote, "
            "OWNER/NAME on the Hugging Face hub, or models:/NAME in MLflow"
        )


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a model's name on the hub: `OWNER/NAME`, or `hf://OWNER/NAME`."""
    return _HUB_ID.fullmatch(text.removeprefix(_HUB_SCHEME)) is not None


def registered_directory(uri: str, tracking_uri: str, scratch: Path) -> Path:
    """Download a version of a model that Pelagos registered in MLflow into `scratch`; return where.

    `models:/NAME` is the newest version.

    Raises:
        ValueError: there is none, or something else registered it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    name = uri.removeprefix(REGISTRY_SCHEME)
    wanted = uri if "/" in name or "@" in name else f"{uri}@{NEWEST}"
    mlflow.set_tracking_uri(tracking_uri)
    try:
        address = resolved_artifacts(wanted, tracking_uri)
        place = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(scratch))
    except MlflowException as error:
        raise ValueError(f"{uri} in {tracking_uri}: {error.message}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{tracking_uri} did not answer like MLflow for {uri}: {error!r}"
        ) from error
    found = next(Path(place).rglob(DESCRIPTION_FILE), None)
    if found is None:
        raise ValueError(
            f"{uri} has no {DESCRIPTION_FILE}, so Pelagos did not register it; export its weights "
            "and give the file"
        )
    return found.parent


def _default_tracking() -> str:
    return str(TrackingConfig().uri)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(FILES_OF_A_MODEL))
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"there is no directory {name} here, and the Hugging Face hub gave no model of that "
            f"name: {reason}"
        ) from error


def _described(path: Path) -> Path:
    """Return the directory. Raises ValueError: it lacks the description of a trained network."""
    if (path / DESCRIPTION_FILE).is_file():
        return path
    if (path / "job.yaml").is_file():
        raise ValueError(
            f"{path} is the directory of a run: `pelagos export {path.name} DIR` makes a model of it, "
            f"or Forecaster.from_run(RunDirectory.open({str(path.parent)!r}, {path.name!r}))"
        )
    if (path / CONFIG_FILE).is_file():
        raise ValueError(
            f"{path} holds a network without its fields and normalisation (no {DESCRIPTION_FILE}), "
            "such as published weights. pelagos.models.registry.load_pretrained reads the network; "
            "`pelagos finetune` with source.uri makes a model of it"
        )
    raise ValueError(
        f"{path} is not a model directory: it has no {DESCRIPTION_FILE}. `pelagos export RUN DIR` "
        "writes one"
    )
