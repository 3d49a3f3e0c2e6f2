"""Where MLflow keeps files: the address of a run's or a model's artifacts is data of others.

Anyone who may create an experiment or a model version on a tracking server chooses where its
artifacts are. MLflow's client sends MLFLOW_TRACKING_TOKEN, or user and password, to any HTTP address
there. So only the tracking server's own host is asked, and hosts that the user names.
"""

import contextlib
import functools
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pelagos.infra.storage.files import files_below, read_regular

VARIABLE = "PELAGOS_MLFLOW_ARTIFACTS"
# Schemes to which MLflow's credentials are sent. Others have their own credentials.
_SCHEMES = ("http", "https", "mlflow-artifacts")
_MOST_STEPS = 5


class StrangeArtifactsError(ValueError):
    """Artifacts are at an address that no user named and that would receive credentials."""


def reject_strange_host(address: str, tracking_uri: str) -> str:
    """Return an address of artifacts.

    Raises:
        StrangeArtifactsError: it is of another host than the tracking server, and not in
            PELAGOS_MLFLOW_ARTIFACTS.
    """
    parts, own = urlsplit(address), urlsplit(tracking_uri)
    is_own = parts.netloc == own.netloc and not (parts.scheme == "http" and own.scheme == "https")
    if parts.scheme not in _SCHEMES or not parts.netloc or is_own:
        return address
    named = [urlsplit(uri.strip()).netloc for uri in os.environ.get(VARIABLE, "").split(",")]
    if parts.netloc in named:
        return address
    raise StrangeArtifactsError(
        f"MLflow at {tracking_uri} says that the files are at {address}. Pelagos sent nothing, "
        f"because your MLflow credentials would go to {parts.netloc}. If that is your artifact "
        f"server, set {VARIABLE}={parts.scheme}://{parts.netloc}"
    )


def tracking_client(uri: str) -> Any:
    """Return MLflow's client; it raises `StrangeArtifactsError` before it sends files elsewhere."""
    return _client_class()(tracking_uri=uri)


@functools.cache
def _client_class() -> Any:
    from mlflow import MlflowClient

    class CheckedClient(MlflowClient):
        """All that logs files ends in one of these two."""

        def log_artifact(self, run_id: str, local_path: str, artifact_path: Any = None) -> None:
            require_own_artifacts(self, run_id)
            super().log_artifact(run_id, local_path, artifact_path)

        def log_artifacts(self, run_id: str, local_dir: str, artifact_path: Any = None) -> None:
            require_own_artifacts(self, run_id)
            super().log_artifacts(run_id, local_dir, artifact_path)

    return CheckedClient


def require_own_artifacts(client: Any, run_id: str) -> None:
    """Raise `StrangeArtifactsError` unless a run's files go to the tracking server's own host."""
    reject_strange_host(str(client.get_run(run_id).info.artifact_uri), client.tracking_uri)


def log_own_files(client: Any, run_id: str, directory: Path, place: str, names: Any = None) -> None:
    """Send the files of a directory, or those of these names that are there, to a run of MLflow.

    Links are left out: in a shared place they may lead to private files of the sending user.
    """
    if names is None:
        found = list(files_below(directory, lambda path: not path.is_symlink()))
    else:
        found = [path for name in names if (path := directory / name).exists()]
    with tempfile.TemporaryDirectory(prefix="pelagos-artifacts-") as scratch:
        for path in found:
            copy = Path(scratch) / path.relative_to(directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # a link, a pipe, or gone meanwhile
                copy.write_bytes(read_regular(path))
        client.log_artifacts(run_id, scratch, place)


def resolved_artifacts(uri: str, tracking_uri: str) -> str:
    """Return where the files of `models:/…` or `runs:/…` are, which may be downloaded from there.

    Raises:
        StrangeArtifactsError: as `reject_strange_host`; or it leads in a circle.
        MlflowException: there is no such model or run.
    """
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
    from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

    address = uri
    for _ in range(_MOST_STEPS):
        kind = urlsplit(address).scheme
        if kind == "models":
            address = str(ModelsArtifactRepository.get_underlying_uri(address))
        elif kind == "runs":
            address = str(RunsArtifactRepository.get_underlying_uri(address))
        else:
            return reject_strange_host(address, tracking_uri)
    raise StrangeArtifactsError(f"{uri} in {tracking_uri} leads through too many names: {address}")
