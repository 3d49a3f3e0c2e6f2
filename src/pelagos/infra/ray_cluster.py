"""Starting or joining the Ray cluster of a job. The only file that calls `ray.init`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What Ray prints by itself is for its developers; these settings apply only where unset.
QUIET_ENVIRONMENT = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def ray_cluster(address: str | None, num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """Join the cluster at `address`, or start one on this machine for the length of the context.

    A started cluster dies with this process, however the process ends.

    Raises:
        ConnectionError: no cluster answers at `address`, or Ray does not start here.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # Ray says at every start that tokens are on, which is how it should be
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    already = ray.is_initialized()
    if not already:
        options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        if address is None:
            # a machine with fewer cores still runs the job, just slower: the cores are a ledger
            options |= {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
        elif code := os.environ.get("PELAGOS_CODE_PATHS"):
            # the shipped code, for workers on every node: sent by content, so once for all runs
            package = os.path.join(code.split(os.pathsep)[0], "pelagos")
            options["runtime_env"] = {"py_modules": [package]}
        try:
            ray.init(address=address or "local", **options)
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
                f"Ray did not start on this machine ({type(error).__name__}: {reason}). The machine "
                "may be too busy, or out of memory or disk: try again when it is not, join a "
                "running cluster (resources.ray_address), or train without Ray "
                "(resources.launcher=none)."
            ) from error
    try:
        yield
    finally:
        if not already:
            ray.shutdown()
