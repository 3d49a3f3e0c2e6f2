"""Values of a job by dotted key: as the command line gives them, and as a job has them."""

import math
from typing import Any

from pelagos.infra.yaml_text import yaml_text
from pelagos.platform.config.section import Section


def override(key: str, value: Any) -> str:
    """Return `key=value` as it would be given on the command line.

    >>> override("optimizer.betas", [0.9, 0.95])
    'optimizer.betas=[0.9, 0.95]'
    """
    return f"{key}={override_text(value)}"


def override_text(value: Any) -> str:
    """Return a value as it would be given on the command line.

    >>> override_text(None), override_text("cosine"), override_text(0.001)
    ('null', 'cosine', '0.001')
    """
    if isinstance(value, str):
        return value
    text = yaml_text(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def value_at(job: Section, key: str) -> Any:
    """Return the value of a dotted key as plain JSON; None where an optional part is absent."""
    value: Any = job.model_dump(mode="json")
    for part in key.split("."):
        if value is None:
            return None
        value = value[int(part)] if isinstance(value, list) else value.get(part)
    return value
