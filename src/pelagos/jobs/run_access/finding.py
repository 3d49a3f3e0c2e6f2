"""Finding a run by name: the one place that decides which run a name means, for every verb.

    NAME            in the runs directory (./runs), or on any cluster of clusters.yaml
    CLUSTER/NAME    on that cluster
    DIR/NAME        in that directory; ./DIR/NAME where a cluster has the name DIR

The options `--cluster` and `--runs-dir` say the same as a place before the name. A name that several
places have is rejected, with each of them as it can be given.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from pelagos.infra.storage.files import expanded_path
from pelagos.infra.storage.local import DirectoryStore
from pelagos.infra.storage.remote import StorageError, is_remote
from pelagos.jobs.run_access.any_run import AnyRun
from pelagos.jobs.run_access.local_run import LocalRun, address_of
from pelagos.jobs.run_access.submitted_run import SubmittedAnyRun
from pelagos.jobs.submission import following
from pelagos.jobs.submission.records.record import NAME_PATTERN, RunRecord
from pelagos.platform.config.clusters import load_clusters
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.load import ConfigError
from pelagos.platform.records.runs import RunDirectory, RunError

logger = logging.getLogger(__name__)
RUNS_DIR = following.SEARCHED_FIRST
# For clusters to say whether they have a run of a name that was found here. Others must answer.
ANSWER_SECONDS = 5.0


def find(
    run: str, runs_dir: str | None = None, cluster: str | None = None, default: str = RUNS_DIR
) -> AnyRun:
    """Return the run that NAME, CLUSTER/NAME or DIR/NAME means.

    Args:
        runs_dir, cluster: look only there.
        default: the directory that is searched together with all clusters where nothing is said.

    Raises:
        RunError, RecordError: there is no such run; names the most similar ones. Or several places
            have one; names each.
        ConfigError: there is no such cluster.
    """
    place, slash, name = run.rpartition("/")
    if slash:
        given = [f"--runs-dir {runs_dir}"] * bool(runs_dir) + [f"--cluster {cluster}"] * bool(
            cluster
        )
        if given:
            raise RunError(f"{run} and {given[0]} both say where the run is: keep one")
        is_cluster = place in load_clusters()  # no cluster's name has a slash or begins with a dot
        runs_dir, cluster = (None, place) if is_cluster else (expanded_path(place or "/"), None)
    if runs_dir is not None and cluster is not None:
        raise RunError(f"--runs-dir {runs_dir} and --cluster {cluster} name two places: keep one")
    if cluster is not None:
        return SubmittedAnyRun(cluster, following.find(name, cluster))
    if runs_dir is not None:
        return _in_directory(runs_dir, name)
    return _anywhere(name, default)


def _in_directory(runs_dir: str, name: str) -> AnyRun:
    """Return the run of a directory, which may be the one that a cluster keeps its runs in."""
    run = RunDirectory.open(runs_dir, name)
    with contextlib.suppress(ConfigError):  # of clusters.yaml, which this run does not need
        for cluster, config in load_clusters().items():
            if is_runs_dir_of(config.storage, runs_dir) and NAME_PATTERN.fullmatch(name):
                with contextlib.suppress(StorageError):
                    if RunRecord(following.storage_of(config), name).exists():
                        return SubmittedAnyRun(cluster, following.find(name, cluster))
    return LocalRun(runs_dir, run)


def _anywhere(name: str, default: str) -> AnyRun:
    is_here = bool(name) and (Path(default) / name / "job.yaml").exists()
    found: dict[str, following.Claimed] = {}
    unread: list[str] = []
    if NAME_PATTERN.fullmatch(name):
        try:
            found, unread = following.search(name, ANSWER_SECONDS if is_here else None)
        except ConfigError as error:
            if not is_here:
                raise
            unread = [str(error)]
    elif not is_here:
        RunRecord(DirectoryStore("."), name)  # raises: no run has such a name
    places: dict[str, tuple[str, Callable[[], AnyRun]]] = {
        f"{cluster}/{name}": (uri, _opener(cluster, claimed))
        for cluster, (uri, claimed) in found.items()
    }
    if is_here:
        local = _in_directory(default, name)
        if isinstance(local, SubmittedAnyRun):  # the directory is that of a cluster found above
            places.setdefault(local.address, (local.found.store.uri, lambda: local))
        else:
            places = {address_of(default, name): ("started here", lambda: local), **places}
    if not places:
        raise following.not_submitted(name, unread, default)
    if len(places) > 1:
        raise following.several(name, [(address, where) for address, (where, _) in places.items()])
    for problem in unread:
        address = next(iter(places))
        logger.warning("%s; the run of this name in %s is taken", problem, address)
    ((_, open_run),) = places.values()
    return open_run()


def _opener(cluster: str, claimed: Callable[[], following.SubmittedRun]) -> Callable[[], AnyRun]:
    return lambda: SubmittedAnyRun(cluster, claimed())


def is_runs_dir_of(storage: str, runs_dir: str) -> bool:
    """Whether a storage is a directory of this machine whose runs are in this one."""
    if is_remote(storage):
        return False
    with contextlib.suppress(OSError):
        return os.path.samefile(Path(DirectoryStore(storage).uri) / "runs", runs_dir)
    return False


def with_source_found(job: FinetuneJob) -> FinetuneJob:
    """Return a fine-tuning that says where the run is that it starts from, if it starts from a run.

    Raises:
        RunError, RecordError: as `find`.
    """
    source = job.source
    if source.run is None or source.uri is not None:
        return job
    try:
        found = find(source.run, source.runs_dir, source.cluster, default=job.runs_dir)
        found.directory()
    except ValueError as error:
        raise RunError(f"source.run: {error} (source.cluster=NAME, source.runs_dir=DIR)") from error
    if found.runs_dir == job.runs_dir:
        return job
    changed = source.model_copy(update={"runs_dir": found.runs_dir, "cluster": None})
    return job.model_copy(update={"source": changed})
