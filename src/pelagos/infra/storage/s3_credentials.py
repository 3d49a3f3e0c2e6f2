"""S3 credentials, region and addressing as botocore resolves them, for a client that is not botocore.

obstore ships a provider on boto3, which Pelagos does not need otherwise; botocore alone (s3fs
brings it) resolves the same chain: options, environment, profile, web identity, container, instance.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

# botocore renews expiring credentials when asked within a quarter of an hour of their end; asking
# costs microseconds, so the client asks often instead of trusting them for long.
TRUSTED_SECONDS = 60

Frozen = tuple[str, str, str | None]  # access key, secret key, session token


class NoCredentialsError(Exception):
    """The chain of credentials is empty; the name is botocore's own, for the same reaction."""


class CredentialProvider:
    """Credentials for obstore: called by it whenever those it has are about to expire.

    Args:
        options: fsspec options of an S3 file system (`key`, `secret`, `token`, `profile`).
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._found = None if options.get("key") else _session(options).get_credentials()
        self.last = self.frozen()

    def frozen(self) -> Frozen:
        """The credentials now, renewed if they expire. Raises `NoCredentialsError`."""
        if self._options.get("key"):
            token = self._options.get("token")
            return str(self._options["key"]), str(self._options.get("secret")), token
        if self._found is None:
            raise NoCredentialsError("no credentials in options, environment, profile or role")
        now = self._found.get_frozen_credentials()
        return now.access_key, now.secret_key, now.token

    def __call__(self) -> dict[str, Any]:
        self.last = self.frozen()
        access_key, secret_key, token = self.last
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=TRUSTED_SECONDS)
        return {
            "access_key_id": access_key,
            "secret_access_key": secret_key,
            "token": token,
            "expires_at": ends,
        }


def current_credentials(options: dict[str, Any]) -> Frozen | None:
    """The credentials of the chain, resolved anew (files and environment read again)."""
    try:
        return CredentialProvider(options).frozen()
    except Exception:  # whatever stops the chain here stopped it before, and was reported then
        return None


def s3_region(options: dict[str, Any]) -> str | None:
    """The region given by options, environment or profile; None if nothing gives one."""
    given = options.get("client_kwargs", {}).get("region_name")
    environment = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return given or environment or _session(options).get_config_variable("region")


def is_virtual_hosted(options: dict[str, Any]) -> bool:
    """Whether the bucket belongs in the host name rather than in the path."""
    config = options.get("config_kwargs", {}).get("s3") or {}
    return config.get("addressing_style") == "virtual"


def _session(options: dict[str, Any]) -> Any:
    import botocore.session

    return botocore.session.Session(profile=options.get("profile"))
