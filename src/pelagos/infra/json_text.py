"""JSON that others wrote: its value, or a ValueError, however it is damaged."""

import json
import re
from typing import Any

from pydantic import ValidationError

# Where half of a surrogate pair may occur.
_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_HALF_OF_BYTES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


def parse_json(content: str | bytes) -> Any:
    """Return the value of `content`.

    Raises:
        ValueError: it is no JSON, nested deeper than Python reads (about a thousand levels), or holds
            half of a character, which no file and no terminal takes.
    """
    try:
        value = json.loads(content)
        if _may_have_halves(content):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a character (a lone surrogate)") from error
    return value


def _may_have_halves(content: str | bytes) -> bool:
    if isinstance(content, str):
        return _HALF.search(content) is not None
    return _HALF_OF_BYTES.search(content) is not None


def first_problem(error: ValidationError, whole: str) -> str:
    """Return pydantic's first error as `key: problem`, without the value that was found.

    `whole` names the document if the error concerns no key but all of it.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"])) or whole
    return f"{key}: {first['msg']}"
