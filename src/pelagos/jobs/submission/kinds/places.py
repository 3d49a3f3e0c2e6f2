"""Where paths of a job are, here and on a cluster."""

import os
from typing import Any, TypeVar

from pelagos.jobs.submission.kinds.base import Place
from pelagos.platform.config.measure import EvaluateResources
from pelagos.platform.config.schema import ResourcesConfig

Resources = TypeVar("Resources", ResourcesConfig, EvaluateResources)


def place_tracking(tracking: dict[str, Any], place: Place) -> None:
    """Make the path of an MLflow database absolute, in the plain values of a `tracking` section."""
    uri = tracking["uri"]
    if uri and uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///")
        tracking["uri"] = f"sqlite:///{place(('tracking', 'uri'), path)}"


def on_this_ray(resources: Resources) -> Resources:
    """Return resources on the Ray cluster that this process was started for."""
    address = os.environ.get("PELAGOS_RAY_ADDRESS") or None
    return resources.model_copy(update={"ray_address": address})
