"""Jobs of other authors: where they would send this user's secrets, and the files they would read.

A run goes to the cluster with its submitter's credentials. MLflow's are sent to the job's
tracking.uri, those of the object store to its storage.endpoint_url; and files of this machine that a
job names become part of the submission. So a job of another author may set none of these by itself.
"""

import os
from collections.abc import Sequence
from typing import Any

from pelagos.infra.clusters import ClusterConfig
from pelagos.jobs.submission.kinds import kind_of
from pelagos.platform.config.kinds import Job
from pelagos.platform.records.others_runs import ENDPOINT, LOCAL_TRACKING, TRACKING, is_given
from pelagos.platform.records.runs import RunError


def require_own_places(
    job: Job, run: str, overrides: Sequence[str], config: ClusterConfig, trusted: Job | None = None
) -> None:
    """Raise unless this user, or the cluster's own configuration, names where secrets are sent.

    Args:
        job: to be run, with overrides applied.
        run: where it comes from, for the message.
        overrides: given by this user.
        config: the cluster of this user's own clusters.yaml.
        trusted: a job that is this user's, whose addresses are too.

    Raises:
        RunError: names each key, its value and the remedy.
    """
    tree, own = job.model_dump(mode="json"), trusted.model_dump(mode="json") if trusted else {}
    given = tuple(text.partition("=")[0].strip() for text in overrides)
    known = {
        TRACKING: {config.tracking, os.environ.get("MLFLOW_TRACKING_URI"), _value(own, TRACKING)},
        ENDPOINT: {config.endpoint_url, _value(own, ENDPOINT)},
    }
    problems = [
        f"{key}={found}, where your credentials would be sent"
        for key in (TRACKING, ENDPOINT)
        if (found := _value(tree, key)) is not None
        and found not in known[key]
        and not (key == TRACKING and str(found).startswith(LOCAL_TRACKING))
        and not is_given(key, given)
    ]
    problems += [
        f"{key}={found}, a file that would be read here and sent"
        for key, found in _files(tree)
        if not is_given(key, given)
    ]
    problems += [
        f"{key}={found}, which would be read or replaced with your rights"
        for key, found in kind_of(job).replaced(job).items()
        if not is_given(key, given) and found != _value(own, key)
    ]
    if problems:
        raise RunError(
            f"the job of run {run!r} may come from somebody else, and it sets "
            f"{'; '.join(problems)}. Give each of these yourself if you trust it (KEY=VALUE), or "
            "give your own value"
        )


def _files(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys that name a file of this machine, which submitted jobs hold the content of."""
    found = [("parallel.zero.config", _value(tree, "parallel.zero.config"))]
    mixture = _value(tree, "data.mixture") or []
    found += [
        (f"data.mixture.{i}.description", e.get("description")) for i, e in enumerate(mixture)
    ]
    return [(key, value) for key, value in found if isinstance(value, str)]


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
