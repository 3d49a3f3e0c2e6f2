"""Why a run failed, and whether trying again can help: at once, within a launch, and as a new attempt.

Within a launch `pelagos.platform.recovery` decides. A submitted run that has failed is started again as
`decide_retry` says; its cause crosses processes as text, so that it is told by its words.
"""

import re
from dataclasses import dataclass
from typing import Literal

CauseKind = Literal[
    "user error", "data", "out of memory", "node lost", "hang", "preempted", "infrastructure"
]

# The first match decides. A library's error is matched by its text, because a cause crosses
# processes as text: the exception's type and message.
PATTERNS: tuple[tuple[CauseKind, str], ...] = (
    (
        "out of memory",
        r"out[ _]of[ _]memory|OutOfMemory|can't allocate memory|MemoryError|oom-kill|OOM[- ]?killed"
        r"|running low on memory",
    ),
    ("preempted", r"preempt|spot (instance )?(interruption|reclaim)"),
    ("hang", r"timed? ?out (waiting|after)|Watchdog|collective .*(timeout|timed out)|TimeoutError"),
    (
        "node lost",
        r"WorkerCrashed|ActorDied|ActorUnavailable|ActorUnschedulable|NodeDied|node .*(died|lost)"
        r"|WorkerGroupError|WorkerHealthCheck|[Cc]onnection (reset|closed|refused) by peer"
        r"|NODE_FAIL|without a word|RayletDied|process group has not been initialized"
        r"|DistBackendError|DistNetworkError|DistStoreError",
    ),
    (
        "infrastructure",
        r"no success in \d+ attempts|No space left|ENOSPC|Disk quota|ConnectionError|BOOT_FAIL"
        r"|Read-only file system|cluster (cannot|could not) be reached",
    ),
    (
        "data",
        r"DatasetError|DatasetMissing|Storage\w*Error|checksum|cut short|non-finite .*dataset",
    ),
    (
        "user error",
        r"ConfigError|RunError|CheckpointError|ValueError|TypeError|KeyError|AttributeError"
        r"|ImportError|ModuleNotFoundError|FloatingPointError|TrainingDiverged|FileNotFoundError"
        r"|PermissionError|AssertionError|NotImplementedError|IndexError|CallbackError|PluginError"
        r"|\b(Unknown)?NameError|SyntaxError|ZeroDivisionError|SystemExit",
    ),
)

# Another attempt may go well: on another node, or after a while.
RETRIED = ("node lost", "hang", "preempted", "infrastructure")


@dataclass(frozen=True)
class Retry:
    """The action after a failure."""

    again: bool
    why: str
    smaller_micro_batch: bool = False


def classify(cause: str) -> CauseKind:
    """Return the kind of failure that a cause (exception type and message) is."""
    for kind, pattern in PATTERNS:
        if re.search(pattern, cause, re.IGNORECASE):
            return kind
    return "infrastructure"


def decide_retry(
    kind: str, restarts: int, retries: int, may_shrink: bool, has_shrunk: bool
) -> Retry:
    """Return whether a failed run is started again.

    Args:
        kind: the result of `classify`.
        restarts: how often it was started again already.
        retries: how often it may be.
        may_shrink: the job allows a smaller micro-batch after running out of memory.
        has_shrunk: that was done already.
    """
    if kind == "out of memory":
        if not may_shrink:
            return Retry(False, "out of memory; health.shrink_micro_batch is off")
        if has_shrunk:
            return Retry(False, "out of memory again at half the micro-batch")
        return Retry(True, "once more at half the micro-batch", smaller_micro_batch=True)
    if kind not in RETRIED:
        return Retry(False, f"a failure of kind {kind!r} would only repeat")
    if restarts >= retries:
        return Retry(False, f"all {retries} retries are used")
    return Retry(True, f"retry {restarts + 1} of {retries}")
