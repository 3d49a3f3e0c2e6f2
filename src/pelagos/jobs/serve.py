"""`pelagos serve`: a trained model behind HTTP, with Ray Serve on this machine, until a signal."""

import asyncio
import contextlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelagos.infra.private_directory import temporary_directory
from pelagos.infra.signals import Interrupted
from pelagos.jobs.serving.access_token import is_loopback, read_token
from pelagos.jobs.serving.limits import Limits

if TYPE_CHECKING:
    from pelagos.jobs.serving.replicas import Replicas

logger = logging.getLogger(__name__)
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """How a model is served.

    Attributes:
        host, port: to listen on; others than loopback addresses need a token. Port 0: any free one.
        token_file: holds the token; None: PELAGOS_SERVE_TOKEN, if it is set.
        replicas: processes with the model.
        device: `auto` is a GPU if there is one.
        batch_size: samples of one pass through the network, at most.
        batch_wait_seconds: how long the first request of a batch waits for others.
        runs_dir, cluster, weights, tracking_uri: to find the model, as of `predict`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    replicas: int = 1
    device: str = "auto"
    batch_size: int = 16
    batch_wait_seconds: float = 0.005
    limits: Limits = field(default_factory=Limits)
    runs_dir: str | None = None
    cluster: str | None = None
    weights: str = "auto"
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Serving:
    """A server that is ready.

    Attributes:
        address: such as `http://127.0.0.1:8000`.
        needs_token: whether requests must carry one.
        device: of the replicas.
    """

    address: str
    needs_token: bool
    device: str


def run(model: str, options: Options, on_ready: Callable[[Serving], None]) -> str:
    """Serve a model until a signal asks to end; return its name. No process is left then.

    Args:
        model: a run (RUN@best, RUN@STEP), a model directory, a model of the hub, or `models:/NAME`.
        on_ready: called once the model has answered.

    Raises:
        ValueError: there is no such model, it makes no forecasts, or an option is wrong.
        OSError: the port is taken.
        Interrupted: a signal came before the model was ready.
    """
    if options.device not in DEVICES:
        raise ValueError(f"--device {options.device}: expected {', '.join(DEVICES)}")
    token = read_token(options.token_file, options.host)
    if importlib.util.find_spec("grpc_reflection") is None or not _has("fastapi"):
        raise ValueError("pelagos serve needs Ray Serve: pip install 'pelagos[serve]'")
    is_ready = False

    def ready(serving: Serving) -> None:
        nonlocal is_ready
        is_ready = True
        on_ready(serving)

    try:
        _serve(model, options, token, ready)
    except Interrupted as signal:
        if not is_ready:
            raise
        return str(signal)
    raise RuntimeError("the thread that answers requests ended by itself")


def _serve(
    model: str, options: Options, token: str | None, on_ready: Callable[[Serving], None]
) -> None:
    from pelagos.jobs.serving.listening import address_of, answering, listen

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(options.host, options.port))
        address = address_of(listener)
        if not is_loopback(options.host):
            logger.warning(
                "%s: the token and all data go over the network as plain text. Put a server with TLS "
                "before this one",
                address,
            )
        front = _front(model, options, token)
        server = stack.enter_context(answering(front.app, listener))
        place = Path(stack.enter_context(_scratch()))
        device = _save_model(model, options, place / "model")
        backend = stack.enter_context(_deployed(place / "model", options, device))
        asyncio.run(front.open(backend))
        on_ready(Serving(address, token is not None, device))
        try:
            server.wait()
        finally:
            server.stop()  # before the replicas, which still answer what is in work


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _front(model: str, options: Options, token: str | None) -> Any:
    from pelagos.jobs.serving.front import Front

    return Front(model, options.limits, token)


def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="serve-", dir=temporary_directory())


def _save_model(model: str, options: Options, directory: Path) -> str:
    """Write the model for the replicas, so that all have the same, also later; return their device.

    Raises:
        ValueError: there is no such model, or it makes no forecasts.
    """
    import torch

    from pelagos.jobs.forecasting.finding import find_forecaster

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device cuda: PyTorch {torch.__version__} sees no GPU here")
    places = (options.runs_dir, options.weights, options.tracking_uri, options.cluster)
    forecaster = find_forecaster(model, *places, device="cpu")
    objective = forecaster.objective
    if objective.call not in ("frame", "window"):
        name = forecaster.description["objective"]["name"]
        raise ValueError(f"{model} was trained for {name}: only models that forecast are served")
    forecaster.save(directory)
    has_gpu = options.device != "cpu" and torch.cuda.is_available()
    return "cuda" if has_gpu else "cpu"


@contextlib.contextmanager
def _deployed(directory: Path, options: Options, device: str) -> Any:
    from pelagos.infra.ray_cluster import ray_cluster
    from pelagos.jobs.serving.replicas import Batching, deploy

    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # Ray's own is 15: after all else of the machine
    replicas, gpus = _resources(options.replicas, device)
    batching = Batching(options.batch_size, options.batch_wait_seconds)
    cpus = max(1, round(replicas.count * replicas.cpus))
    with ray_cluster(None, cpus, gpus):
        yield deploy(directory, replicas, options.limits, batching, device)


def _resources(count: int, device: str) -> "tuple[Replicas, int]":
    """Return what each replica has, and the GPUs of this machine that are used."""
    import torch

    from pelagos.jobs.serving.replicas import Replicas

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cpus = float(max(1, cores // count))
    gpus = min(count, torch.cuda.device_count()) if device == "cuda" else 0
    return Replicas(count, cpus, gpus / count), gpus
