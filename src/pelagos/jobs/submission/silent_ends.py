"""Runs whose process ended silently: a killed node reports nothing."""

from pelagos.jobs.submission.records.record import RunRecord
from pelagos.platform.records.causes import classify, decide_retry
from pelagos.platform.records.states import State

STOPPED_AT_ONCE = "stopped at once"


def record_silent_end(record: RunRecord, detail: str, output: str, num_events: int) -> bool:
    """Record how the run ended; return whether it is to be started again, by the caller.

    Args:
        record: the run's.
        detail: the cluster's report of the process.
        output: the end of its output.
        num_events: events that the record had when the process was seen to be gone. Only the first
            of several watchers gets to act on that.
    """
    state = record.state()
    if state.stop:
        record.append_if(num_events, State.STOPPED, reason=STOPPED_AT_ONCE)
        return False
    lines = output.strip().splitlines()
    last_line = f"; its last line: {lines[-1]}" if lines else ""
    told = f"{detail} {lines[-1]}" if lines else detail
    # a process that was killed leaves whatever it printed last: only words for a failure count
    kind = classify(told) if _speaks_of_failure(told) else "node lost"
    retry = decide_retry(kind, state.restarts, state.retries, may_shrink=False, has_shrunk=False)
    details = {
        "cause": f"the run's process ended without a word: {detail}{last_line}",
        "cause_kind": kind,
        "reason": retry.why,
    }
    if not retry.again:
        record.append_if(num_events, State.FAILED, **details)
        return False
    return record.append_if(num_events, "retried", **details)


def _speaks_of_failure(text: str) -> bool:
    return any(word in text for word in ("Error", "error:", "Exception", "exit code 3"))
