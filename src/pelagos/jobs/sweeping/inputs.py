"""A trial's inputs in addition to its job file: its starting weights and its datasets.

A job names them by address, and their contents may change. So each trial keeps their digests,
and a continued sweep refuses to mix its trials with trials of other weights or data.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from pelagos.infra.storage.remote import StorageError
from pelagos.jobs.sweeping.trials import FINAL_STATES, Inputs, Trial, read_result
from pelagos.jobs.training.mixtures import open_datasets
from pelagos.jobs.weights.sources import open_source
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.marks import Trait
from pelagos.platform.config.meanings import has, values_of
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.mlflow_records.store import tracking_uri
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.storage_choice import options_for

SOURCE = "source"
_SHOWN = 12  # characters of a digest
_UNREADABLE = (ConfigError, StorageError, CheckpointError, ValueError, OSError)


def inputs_of_run(trial: Trial) -> Inputs:
    """Return the digests that a trial's run recorded: `source`, and each dataset's under its uri.

    Inputs that it had not yet recorded are left out.
    """
    found: Inputs = {}
    run = RunDirectory(trial.path)
    digests = [event.get("digest") for event in run.events() if event["kind"] == "source"]
    if digests and digests[-1]:
        found[SOURCE] = str(digests[-1])
    with contextlib.suppress(*_UNREADABLE):
        store = CheckpointStore(
            run.checkpoint_uri, options_for(run.checkpoint_uri, trial.job.storage)
        )
        step = store.latest_step()
        described = {} if step is None else store.trainer_state(step).get("forecaster", {})
        found |= {d["uri"]: d["fingerprint"] for d in described.get("datasets", ())}
    return found


def inputs_now(job: TrainingJob) -> Inputs:
    """Return the digests of the present contents of a job's addresses, without missing ones."""
    found: Inputs = {}
    if job.starts_from is not None:
        with contextlib.suppress(*_UNREADABLE):
            source = open_source(
                job.starts_from, job.model, job.runs_dir, job.storage, tracking_uri(job)
            )
            found[SOURCE] = source.digest
    with contextlib.suppress(*_UNREADABLE):
        found |= {dataset.uri: dataset.fingerprint for dataset in open_datasets(job)}
    return found


def check_inputs(sweep: SweepJob, trials: Sequence[Trial]) -> None:
    """Refuse to continue a sweep whose trials began from other weights or data than the present ones.

    Inputs without a record, and inputs that no longer exist, are not compared: other code that needs
    them reports that itself.

    Raises:
        ConfigError: names the change, the trials since which it holds, and the remedy.
    """
    now = _remembering(inputs_now)
    changed: dict[tuple[str, str, str, str], list[Trial]] = {}
    for trial in trials:
        before = _recorded(trial)
        present = now(trial.job) if before else {}
        for key in sorted(before.keys() & present.keys()):
            if before[key] != present[key]:
                known = (trial.label, key, before[key], present[key])
                changed.setdefault(known, []).append(trial)
    if changed:
        raise ConfigError(f"sweep {sweep.name}", list(_problems(sweep, changed)))


def _recorded(trial: Trial) -> Inputs:
    result = read_result(trial)
    if result.state in FINAL_STATES:
        return result.inputs or {}  # records of earlier versions have none
    # its next steps would continue from the weights it began with
    return inputs_of_run(trial) if (trial.path / "job.yaml").exists() else {}


def _problems(
    sweep: SweepJob, changed: Mapping[tuple[str, str, str, str], Sequence[Trial]]
) -> Iterator[Problem]:
    for (label, key, before, after), trials in changed.items():
        what = f"the weights of {_named(trials[0].job)}" if key == SOURCE else f"dataset {key}"
        others = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
        yield Problem(
            ("jobs", label),
            f"{what} changed since {trials[0].name}{others} began: digest {before[:_SHOWN]} then, "
            f"{after[:_SHOWN]} now. The sweep would mix trials of both. Give the sweep another name "
            f"(name=OTHER), or delete these trials in {sweep.runs_dir} to run them anew",
        )


def _named(job: TrainingJob) -> str:
    source = job.starts_from
    assert source is not None, "asked of a fine-tuning"
    return f"run {source.run}" if source.run else str(source.uri)


def _remembering(compute: Callable[[TrainingJob], Inputs]) -> Callable[[TrainingJob], Inputs]:
    """Return the function, which opens an address that several jobs share only once."""
    known: dict[str, Inputs] = {}

    def remembered(job: TrainingJob) -> Inputs:
        key = json.dumps(values_of(job, has(Trait.INPUTS)), sort_keys=True)
        if key not in known:
            known[key] = compute(job)
        return known[key]

    return remembered
