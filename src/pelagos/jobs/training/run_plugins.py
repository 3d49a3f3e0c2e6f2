"""Importing the plugins of a run, where the reader's own files say so."""

from pelagos import plugins
from pelagos.platform.records.others_runs import is_own_file
from pelagos.platform.records.runs import RunDirectory


def import_plugins_of(run: RunDirectory) -> None:
    """Import the plugins that a run's job names, if its file is this user's; else require them imported.

    Raises:
        PluginError: it cannot be imported; or the file is another user's, and the reader has not said
            that it may be.
    """
    path = run.path / "job.yaml"
    wanted = plugins.wanted_by(run.job_as_written())
    if is_own_file(path):
        plugins.load(wanted)
    else:
        plugins.require_loaded(wanted, str(path))
