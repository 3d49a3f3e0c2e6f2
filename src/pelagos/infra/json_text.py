"""JSON that others wrote: its value, or a ValueError, however it is damaged."""

import json
from typing import Any

from pydantic import ValidationError


def parse_json(content: str | bytes) -> Any:
    """Return what `content` says.

    Raises:
        ValueError: it is no JSON, or nested deeper than Python reads (about a thousand levels).
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def first_problem(error: ValidationError, whole: str) -> str:
    """Return the first thing that pydantic says, `key: what is wrong`, without the value that was
    found; `whole` is what the document is called where no key is wrong but all of it."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"])) or whole
    return f"{key}: {first['msg']}"
