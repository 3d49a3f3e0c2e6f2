"""The token of a server: from a file or the environment; others can see the command line."""

import hmac
import ipaddress
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)
VARIABLE = "PELAGOS_SERVE_TOKEN"
SHORTEST = 16
_OTHERS = 0o077
_HINT = "such as made by: python -c 'import secrets; print(secrets.token_urlsafe())'"


def read_token(file: str | None, host: str) -> str | None:
    """Return the token that requests must carry; None: none is needed.

    The variable is removed from the environment, which child processes would inherit.

    Raises:
        ValueError: there is none and others can reach the host; or it is shorter than 16 characters, or
            holds characters that no header can.
        OSError: the file cannot be read.
    """
    from_environment = os.environ.pop(VARIABLE, None)
    if file is not None:
        told, token = f"--token-file {file}", Path(file).expanduser().read_text().strip()
        if Path(file).expanduser().stat().st_mode & _OTHERS:
            logger.warning("%s can be read by other users of this machine: chmod 600", file)
    elif from_environment is not None:
        told, token = VARIABLE, from_environment.strip()
    elif is_loopback(host):
        return None
    else:
        raise ValueError(
            f"--host {host} can be reached from other machines, so requests must carry a token: name a "
            f"file of it (--token-file FILE) or set {VARIABLE}, {_HINT}"
        )
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{told}: expected a token of at least {SHORTEST} characters of ASCII without blanks, "
            f"got {len(token)} characters; {_HINT}"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def carries(header: str | None, token: str) -> bool:
    """Whether a header `Authorization: Bearer TOKEN` has the token; takes as long for any wrong one."""
    scheme, _, given = (header or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"
