"""The meaning of botocore, aiohttp and obstore exceptions: whether to retry, and how to report it."""

from __future__ import annotations

import re

# Exceptions of botocore and obstore, by name: neither package need be there.
REFUSALS = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
    *("PermissionDeniedError", "UnauthenticatedError"),
)
EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken")  # S3's codes; status 400
STATUS_IN_TEXT = re.compile(r"status code: (\d{3})\b")  # obstore states it in words alone


def is_missing(error: BaseException) -> bool:
    """Return whether the object or file is absent."""
    return isinstance(error, FileNotFoundError) or http_status(error) == 404


def is_malformed(error: BaseException) -> bool:
    """Whether the key has a form that the client rejects (an empty part, `..`): for good."""
    return type(error).__name__ == "InvalidPathError" or "Could not parse path" in str(error)


def is_refused(error: BaseException) -> bool:
    """Whether the credentials are at fault, so that trying again cannot help."""
    if isinstance(error, PermissionError) or http_status(error) in (401, 403):
        return True
    return type(error).__name__ in REFUSALS or any(word in str(error) for word in EXPIRED)


def http_status(error: BaseException) -> int | None:
    """The status code that botocore or obstore recorded in an exception or in its cause."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return None if code is None else int(code)
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int):
        return status
    stated = STATUS_IN_TEXT.search(str(error))
    if stated:
        return int(stated[1])
    return None if error.__cause__ is None else http_status(error.__cause__)


def summary(error: BaseException) -> str:
    """One line of an error, without the body of the answer: it may repeat a key id in full."""
    text = str(error)
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    stated = STATUS_IN_TEXT.search(line)
    if stated:
        code = re.search(r"<Code>(\w+)</Code>", text)
        words = line[: stated.end()] + (f" {code[1]}" if code else "")
    else:
        kind = re.search(r"kind: (\w+)", text)  # obstore names a time-out or a reset only there
        words = line + (f" ({kind[1]})" if kind else "")
    return f"{type(error).__name__}: {words}"[:300]
