"""JSON that others wrote: its value, or a ValueError, however it is damaged."""

import json
from typing import Any


def parse_json(content: str | bytes) -> Any:
    """Return what `content` says.

    Raises:
        ValueError: it is no JSON, or nested deeper than Python reads (about a thousand levels).
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
