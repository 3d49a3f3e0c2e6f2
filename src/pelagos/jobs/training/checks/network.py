"""Whether a checkpoint's network computes what the job's does, as far as options show."""

import json
from typing import Any

from pelagos.models.registry import explicit_config, stored_config
from pelagos.platform.config.schema import TrainingJob


def check_network(job: TrainingJob, state: dict[str, Any]) -> None:
    """Raise ValueError if the network of a checkpoint's `state` has other options than the job's.

    Names and shapes of tensors distinguish most networks; an option whose default has changed since
    the run began need not change either.
    """
    stored = state.get("forecaster", {}).get("model")
    if stored is None or stored["name"] != job.model.name:
        return
    then = stored_config(job.model.name, stored["config"])
    now = json.loads(json.dumps(explicit_config(job.model.name, job.model.config)))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if changed:
        wanted = " ".join(f"model.config.{key}={json.dumps(then.get(key))}" for key in changed)
        raise ValueError(
            f"the run began with other options of the network; continue it with {wanted}, or start "
            "a new run"
        )
