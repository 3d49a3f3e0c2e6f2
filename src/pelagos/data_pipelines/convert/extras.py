"""Packages of the extra `convert`, imported when a file that needs them is opened."""

from __future__ import annotations

import importlib
from typing import Any

from pelagos.data_pipelines.convert.source import SourceError

INSTALL_HINT = "pip install 'pelagos[convert]'"


def require(module: str, purpose: str) -> Any:
    """Import a package of the extra `convert`.

    Raises:
        SourceError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise SourceError(f"{purpose} needs the package {module}: {INSTALL_HINT}") from error
