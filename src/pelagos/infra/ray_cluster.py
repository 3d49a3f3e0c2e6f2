"""Starting or joining the Ray cluster of a job.

The only file that calls `ray.init`, and the only one that knows something of Ray that is not public:
`tests/jobs/test_ray_internals.py` notices if that changes.
"""

import contextlib
import glob
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pelagos.infra.private_directory import temporary_directory
from pelagos.infra.signals import Interrupted, kept_by_children_and_libraries

logger = logging.getLogger(__name__)

# Ray's own output is for its developers; these settings apply only where unset.
QUIET_ENVIRONMENT = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # On SIGTERM Ray's own handler prints a page of C++ frames and aborts.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}


# A socket's path has 107 characters at most, and Ray puts 68 behind its directory and `/ray`.
LONGEST_DIRECTORY = 107 - 68 - 4


@contextmanager
def ray_cluster(address: str | None, num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """Join the cluster at `address`, or start one on this machine for the length of the context.

    A started cluster dies with this process, however the process ends. No other user on this machine or
    its network can join it: see `_for_this_process_alone`.

    Raises:
        ConnectionError: no cluster answers at `address`, or Ray does not start here.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # Ray says at every start that tokens are on, which is how it should be
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    already = ray.is_initialized()
    if address is None and not already:
        require_gpus(num_gpus)
        _say_if_address_is_not_used()
    with contextlib.ExitStack() as stack:
        if not already:
            if address is None:
                stack.enter_context(_for_this_process_alone())
            stack.callback(ray.shutdown)  # also of one that was interrupted while it started
            with kept_by_children_and_libraries():
                _start_or_join(address, num_cpus, num_gpus)
        yield


def node_here() -> str:
    """Return Ray's identity of this process's node; "" where it is none of Ray's."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return str(ray.get_runtime_context().get_node_id())


def require_gpus(count: int) -> None:
    """Raise unless this machine has that many GPUs, and a PyTorch that can use them.

    Raises:
        ValueError: says which is missing, and what to change.
    """
    if not count:
        return
    import torch

    found = torch.cuda.device_count()
    if found >= count:
        return
    without_cuda = torch.version.cuda is None and torch.version.hip is None
    if without_cuda and glob.glob("/dev/nvidia[0-9]*"):
        why = f"this machine has some, but PyTorch {torch.__version__} is built without CUDA"
    elif without_cuda:
        why = f"this machine has none, and PyTorch {torch.__version__} is built without CUDA"
    else:
        why = f"PyTorch sees {found} here (`nvidia-smi`, CUDA_VISIBLE_DEVICES)"
    raise ValueError(
        f"the job needs {count} GPUs (num_workers x gpus_per_worker); {why}. Set "
        f"resources.gpus_per_worker=0 to compute on the CPU, or submit the job to a cluster"
    )


def _say_if_address_is_not_used() -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        logger.warning(
            "RAY_ADDRESS=%s is not used: the job starts a Ray cluster of its own on this machine. To "
            "join the other, set resources.ray_address=%s",
            address,
            address,
        )


def _start_or_join(address: str | None, num_cpus: int, num_gpus: int) -> None:
    import ray

    options: dict[str, Any] = {
        "logging_level": logging.WARNING,
        "log_to_driver": False,
        "job_config": _without_driver_folders(),
    }
    if address is None:
        # a machine with fewer cores still runs the job, just slower: the cores are a ledger
        options |= {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
        options["_temp_dir"] = str(temporary_directory(LONGEST_DIRECTORY) / "ray")
    elif code := os.environ.get("PELAGOS_CODE_PATHS"):
        # the shipped code, for workers on every node: sent by content, so once for all runs
        own, files = code.split(os.pathsep)
        modules = [os.path.join(own, "pelagos"), *_plugins_in(files)]
        options["runtime_env"] = {"py_modules": modules}
    try:
        ray.init(address=address or "local", **options)
    except SystemExit as error:  # Ray's handler of SIGTERM while it starts
        raise Interrupted(signal.SIGTERM) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"resources.ray_address {address}: no Ray cluster answers there ({error}). Start "
            "one with `ray start --head`, or leave the key out to start one for this job."
        ) from error
    except Exception as error:  # a busy machine: Ray raises plain `Exception` then
        if address is not None:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ConnectionError(
            f"Ray did not start on this machine ({type(error).__name__}: {reason}). The machine may "
            "be too busy, or out of memory or disk. Try again later, join a running cluster "
            "(resources.ray_address), or train without Ray (resources.launcher=none)."
        ) from error


def _without_driver_folders() -> Any:
    """Return the settings of a Ray job whose workers import as this process does.

    Ray puts the driver's current directory before all else on its workers' search path, unless the job
    has a directory of its own: a user's `queue.py` there would take the place of Python's. Plugins are
    found without that (`pelagos.plugins` looks there last).
    """
    from ray.job_config import JobConfig

    class Settings(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return Settings()


def torch_trainer(is_own_cluster: bool) -> type[Any]:
    """Return Ray's `TorchTrainer`, which in a cluster of the job's own ends without a wait.

    An actor of Ray's watches a controller's life through the dashboard's address. A cluster of the job's
    own has no dashboard and ends with its controller, so that all this actor does there is to hold the
    end of every training up for 12 seconds.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import placement_group_callback

    if not is_own_cluster:
        return TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            watcher = placement_group_callback.PlacementGroupCleanerCallback
            made = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in made if not isinstance(callback, watcher)]

    return Trainer


def keep_replica_on_loopback() -> None:
    """Have a replica of Ray Serve listen on the loopback interface alone; to be called in its process.

    Each starts a server for other deployments, which unpickles requests, and by itself listens on all
    interfaces. It does so once the replica's own constructor has returned.
    """
    from ray.serve._private import replica

    module: Any = replica
    add_port = (
        module.add_port_to_grpc_server
    )  # an AttributeError if Ray changed: then none is started

    def on_loopback(server: Any, address: str) -> int:
        port: int = add_port(server, f"127.0.0.1:{address.rpartition(':')[2]}")
        return port

    module.add_port_to_grpc_server = on_loopback


def _plugins_in(files: str) -> list[str]:
    """Return the top-level files and folders of plugins that were shipped."""
    names = os.environ.get("PELAGOS_PLUGINS", "").split(",")
    tops = dict.fromkeys(name.partition(".")[0] for name in names if name)
    places = [os.path.join(files, top + ending) for top in tops for ending in ("", ".py")]
    return [place for place in places if os.path.exists(place)]


@contextmanager
def _for_this_process_alone() -> Iterator[None]:
    """Make a cluster that is started meanwhile one of this machine and this process.

    Its servers listen on the loopback interface, all its workers being here; who talks to them needs
    a token, made anew and kept in the environment of this process and its children alone.
    """
    from ray._private import ray_constants

    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray's switch for clusters of one machine, which macOS and Windows have by default
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        # messages between workers go over the same interface
        "GLOO_SOCKET_IFNAME": _loopback_interface(),
    }
    before = {name: os.environ.get(name) for name in environment}
    spans_machines = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(environment)
    ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported
    _read_settings_anew()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = spans_machines
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_settings_anew()


def _read_settings_anew() -> None:
    """Have Ray look at the token in the environment, which it does once in a process by itself."""
    from ray import _raylet

    compiled: Any = _raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def _loopback_interface() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), names[0])
