"""Plugins on their way to a cluster: those of this directory have to be shipped."""

from collections.abc import Collection, Sequence
from pathlib import Path

from pelagos import plugins
from pelagos.platform.config.load import ConfigError, Problem


def require_shipped(modules: Sequence[str], shipped: Collection[str]) -> None:
    """Raise unless each module of the current directory is among the files that are shipped.

    Modules of installed packages are expected where the job runs.

    Raises:
        ConfigError: names the module and the file to include.
    """
    here = Path.cwd()
    problems = []
    for module in modules:
        source = plugins.source_of(module)
        if not source.is_relative_to(here) or "site-packages" in source.parts:
            continue
        name = source.relative_to(here).as_posix()
        if not any(file == name or file.startswith(f"{name}/") for file in shipped):
            message = f"the job imports {module}, which would not be shipped: add --include {name}"
            problems.append(Problem((module,), message))
    if problems:
        raise ConfigError("plugins", problems)
