"""A run's events as tags and metrics of MLflow."""

import json
import math
from typing import Any

from pelagos.platform.mlflow_records.groups import setting_metric
from pelagos.platform.mlflow_records.names import MAX_TAG_LENGTH, accepted_name
from pelagos.platform.records.runs import BRANCHED

SOURCE_TAG = "pelagos.source."
TAKE_OVER_TAG = "pelagos.take_over."


def source_tags(event: dict[str, Any]) -> list[Any]:
    """Return where a fine-tuning's weights come from: the parent's run, step and digests."""
    from mlflow.entities import RunTag

    told = {k: v for k, v in event.items() if k not in ("time", "kind")}
    return [
        RunTag(
            accepted_name(f"{SOURCE_TAG}{key}"),
            (value if isinstance(value, str) else json.dumps(value))[:MAX_TAG_LENGTH],
        )
        for key, value in told.items()
    ]


def take_over_tag(event: dict[str, Any]) -> Any:
    """Return the source from which a population's member continues at a step, and its settings."""
    from mlflow.entities import RunTag

    told = {key: event[key] for key in ("source", "checkpoint", "settings")}
    return RunTag(f"{TAKE_OVER_TAG}{event['step']}", json.dumps(told))


def changed_settings(event: dict[str, Any]) -> list[Any]:
    """Return the settings that a take-over changed, as metrics at its step."""
    from mlflow.entities import Metric

    return [
        Metric(setting_metric(key), float(after), int(event["time"] * 1000), event["step"])
        for key, (_, after) in event["settings"].items()
        if isinstance(after, int | float)
    ]


def not_undone(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events, empty in place of those of steps that a later branch left behind."""
    found, first_branch = [], math.inf
    for event in reversed(events):
        found.append({} if event.get("step", 0) > first_branch else event)
        if event["kind"] == BRANCHED:
            first_branch = min(first_branch, event["step"])
    return found[::-1]
