"""`pelagos submit`: check everything, ship the code, claim the names, hand the runs over."""

from collections.abc import Callable
from dataclasses import replace

from pelagos.infra.clusters import (
    Submission,
)
from pelagos.infra.signatures import digest_of
from pelagos.jobs.submission.handing_over import (
    details_of,
    hand_over,
    hand_over_array,
)
from pelagos.jobs.submission.planning import Options as Options
from pelagos.jobs.submission.planning import PlannedRun, SubmissionPlan
from pelagos.jobs.submission.planning import plan as plan
from pelagos.jobs.submission.records import own_runs
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.jobs.submission.shipping.package import upload
from pelagos.platform.config.load import (
    resolve_yaml,
)


def submit(planned: SubmissionPlan, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Ship the code, claim the names and hand the runs over; return the runs' names.

    Raises:
        RecordError: a name was taken meanwhile; runs before it in the submission stay submitted.
        ClusterError: the cluster cannot be reached or refuses; the record says so.
    """
    sent = upload(planned.store, planned.archives)
    say(f"code: {sent:,} bytes sent" if sent else "code: unchanged, nothing sent")
    if planned.files:
        say(f"your files, {len(planned.files)}: {', '.join(planned.files)}")
    for group in planned.groups():
        claimed = [_claimed(planned, run) for run in group]
        records = [record for record, _ in claimed]
        submissions = [submission for _, submission in claimed]
        if group[0].array is None:
            hand_over(planned.cluster, records[0], submissions[0])
            say(f"submitted {group[0].name} to {planned.cluster.name}")
        else:
            hand_over_array(planned.cluster, records, submissions, group[0].array.at_once)
            say(f"submitted {len(group)} trials of {group[0].array.name} to {planned.cluster.name}")
    return [run.name for run in planned.runs]


def _claimed(planned: SubmissionPlan, run: PlannedRun) -> tuple[RunRecord, Submission]:
    """Claim a run's name, with everything that starting it again needs."""
    record, cluster = RunRecord(planned.store, run.name), planned.cluster
    details = details_of(run.submission, cluster, planned.options.retries)
    first = record.claim(resolve_yaml(run.job), cluster.sign, **details)
    own_runs.remember(record, first)
    return record, replace(run.submission, event=digest_of(first))
