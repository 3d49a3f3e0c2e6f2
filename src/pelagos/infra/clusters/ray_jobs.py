"""A running Ray cluster, through its Jobs API; runs wait in a queue of Pelagos's own.

Ray Jobs runs an entry point once, at once: no queue, priority, dependency or retry. So `start` does
not start the run: it makes sure that the queue's process is there (itself a Ray job, one for each
storage), which finds the run in its record and starts it when its turn comes.
"""

import contextlib
import hashlib
import os
import re
import shlex
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pelagos.infra.clusters.base import (
    BOOTSTRAP,
    Cluster,
    ClusterError,
    SchedulerState,
    Submission,
)
from pelagos.infra.clusters.schema import RayConfig
from pelagos.infra.doctor import Check
from pelagos.infra.json_text import parse_json
from pelagos.infra.private_directory import cache_directory
from pelagos.infra.signatures import signature_with

LEAST_RAY = "2.52"  # the first whose clusters ask for a token
TIMEOUT_SECONDS = 15
STARTING_SECONDS = 60.0
LONGEST_ANSWER_BYTES = 2**16
NO_AGENT = "No available agent"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class RayJobsCluster(Cluster):
    """Talks to the dashboard of a Ray cluster; needs no Ray of its own on this machine."""

    has_queue = True
    config: RayConfig

    def check(self) -> list[Check]:
        name = f"ray at {self.config.address}"
        try:
            version = self._version()
        except ClusterError as error:
            return [Check(name, False, str(error), "see the message")]
        return [Check(name, True, f"Ray {version}, token accepted")]

    def render(self, submission: Submission) -> dict[str, str]:
        return {
            "queue entry point": self._queue_entrypoint(submission),
            "run entry point": run_entrypoint(self.config.python, submission),
        }

    def sign(self, text: bytes) -> str:
        """Sign with the cluster's token: its queue starts only runs that holders of the token submit."""
        token = self._token()
        return signature_with(token, text) if token else ""

    def start(self, submission: Submission) -> dict[str, Any]:
        """Make sure that the queue runs; it starts the run in its turn."""
        client = self._client()
        with _explained(self):
            alive = [
                job.submission_id
                for job in client.list_jobs()
                if (job.metadata or {}).get("pelagos_queue") == self._queue_key(submission)
                and job.status not in ENDED
            ]
            if not alive:
                submit_patiently(
                    client,
                    entrypoint=self._queue_entrypoint(submission),
                    submission_id=f"pelagos-queue-{self._queue_key(submission)}-{int(time.time())}",
                    runtime_env=runtime_environment(submission.environment),
                    metadata={"pelagos_queue": self._queue_key(submission)},
                )
        return {"is_queued": True}

    def checked_handle(self, run: str, storage: str, handle: Mapping[str, Any]) -> dict[str, Any]:
        if "submission_id" not in handle:
            return {"is_queued": True}
        found = str(handle["submission_id"])
        if not is_job_of(run, found):
            raise self.not_its_handle(run, f"Ray job {found}")
        return {"submission_id": found}

    def state(self, handle: dict[str, Any]) -> SchedulerState:
        if "submission_id" not in handle:
            return SchedulerState("waiting", "in the queue")
        with _explained(self):
            try:
                info = self._client().get_job_info(handle["submission_id"])
            except RuntimeError as error:
                if "404" in str(error) or "does not exist" in str(error):
                    return SchedulerState("ended", "the cluster knows no such job (any more)")
                raise
            return scheduler_state(str(info.status), info.message or "")

    def logs(self, handle: dict[str, Any]) -> str:
        if "submission_id" not in handle:
            return ""
        with _explained(self):
            return str(self._client().get_job_logs(handle["submission_id"]))

    def cancel(self, handle: dict[str, Any]) -> None:
        if "submission_id" not in handle:
            return
        with _explained(self):
            client = self._client()
            if str(client.get_job_status(handle["submission_id"])) not in ENDED:
                client.stop_job(handle["submission_id"])

    def _client(self) -> Any:
        """Return a client that has been answered. Raises `ClusterError`."""
        from ray.job_submission import JobSubmissionClient

        # without this a missing token would be looked for, and one written, in the user's home
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._version()
        with _explained(self):
            return JobSubmissionClient(
                self.config.address, headers=self._headers(), verify=self.config.verify_tls
            )

    def _version(self) -> str:
        """Return the cluster's version of Ray. Raises `ClusterError` if that is too old."""
        import requests

        with _explained(self):
            answer = requests.get(
                f"{self.config.address.rstrip('/')}/api/version",
                headers=self._headers(),
                verify=self.config.verify_tls,
                timeout=TIMEOUT_SECONDS,
                stream=True,
            )
            answer.raise_for_status()
            found = str(parse_json(_short_body(answer))["ray_version"])
        if _numbers(found) < _numbers(LEAST_RAY):
            raise ClusterError(
                f"cluster {self.name} runs Ray {found}; Pelagos needs {LEAST_RAY} or newer there"
            )
        return found

    def _headers(self) -> dict[str, str] | None:
        token = self._token()
        if token and not self._is_confidential():
            raise ClusterError(
                f"cluster {self.name}: {self.config.address} is plain HTTP to another machine, so "
                "others on the network could read the token. Use https://, or a tunnel (ssh -L "
                "8265:localhost:8265 HEAD, address http://localhost:8265). On a network that you "
                "trust, set allow_http: true in clusters.yaml"
            )
        return {"Authorization": f"Bearer {token}"} if token else None

    def _token(self) -> str:
        if self.config.token_file:
            return read_private(self.config.token_file)
        return os.environ.get(self.config.token_env, "").strip()

    def _is_confidential(self) -> bool:
        """Whether messages stay between this process and the cluster."""
        parts = urlsplit(self.config.address)
        is_here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        return self.config.allow_http or parts.scheme == "https" or is_here

    def _queue_key(self, submission: Submission) -> str:
        """Name the queue: one for each storage, cluster and version of the code."""
        text = f"{submission.storage} {self.name} {submission.code.wheel_sha256}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _queue_entrypoint(self, submission: Submission) -> str:
        code = submission.code
        return shlex.join(
            [
                *(self.config.python, BOOTSTRAP.name),
                *("--wheel", code.wheel_uri, "--wheel-sha256", code.wheel_sha256),
                *("--files", code.files_uri, "--files-sha256", code.files_sha256),
                *("--module", "pelagos.jobs.submission.ray_queue.process"),
                *("--", submission.storage, self.name),
            ]
        )


def is_job_of(run: str, submission_id: object) -> bool:
    """Whether the queue gives Ray jobs of a run such names."""
    pattern = rf"pelagos-{re.escape(run)}-[0-9]{{1,9}}"
    return isinstance(submission_id, str) and re.fullmatch(pattern, submission_id) is not None


def run_entrypoint(python: str, submission: Submission) -> str:
    """Return the entry point of a run's Ray job."""
    return shlex.join([python, BOOTSTRAP.name, *submission.arguments()])


def runtime_environment(environment: dict[str, str]) -> dict[str, Any]:
    """Return Ray's runtime environment: bootstrap.py alone, by content, so once for all jobs."""
    directory = cache_directory() / "bootstrap"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / BOOTSTRAP.name
    content = BOOTSTRAP.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        target.write_bytes(content)
    return {
        "working_dir": str(directory),
        "env_vars": {**environment, "PELAGOS_RAY_ADDRESS": "auto"},
    }


def scheduler_state(status: str, message: str) -> SchedulerState:
    """Translate a state of the Jobs API."""
    name = status.rpartition(".")[2]
    if name in ENDED:
        return SchedulerState("ended", message or name.lower(), name == "SUCCEEDED")
    return SchedulerState("running" if name == "RUNNING" else "waiting", message)


def token_here() -> str:
    """Return the token of the Ray cluster that this process is part of, as Ray finds it.

    Empty where the cluster asks for none.

    Raises:
        ClusterError: it is in a file that cannot be read, or that others can read.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return ""
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    default = Path.home() / ".ray" / "auth_token"
    if named is None and not default.exists():
        return ""
    return read_private(named or str(default))


def read_private(path: str) -> str:
    """Return the content of a file that only this user may read. Raises `ClusterError`."""
    file = Path(path).expanduser()
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise ClusterError(
                f"token file {file} has mode {mode:04o}: others can read it. chmod 600 {file}"
            )
        return file.read_text().strip()
    except OSError as error:
        raise ClusterError(f"token file {file}: {error.strerror}") from error


@contextlib.contextmanager
def _explained(cluster: RayJobsCluster) -> Iterator[None]:
    """Turn the client's exceptions into `ClusterError`s that give the remedy."""
    import requests

    address = cluster.config.address
    try:
        yield
    except (ConnectionError, requests.exceptions.ConnectionError, requests.Timeout) as error:
        reason = "TLS failed" if isinstance(error, requests.exceptions.SSLError) else "no answer"
        raise ClusterError(
            f"cluster {cluster.name} cannot be reached at {address}: {reason}. Check that it is up, "
            "the address in clusters.yaml, and the network (a tunnel: ssh -L 8265:localhost:8265)"
        ) from error
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            raise ClusterError(_refused(cluster)) from error
        raise ClusterError(
            f"cluster {cluster.name}: {address} answers {code}, so it is not a Ray dashboard"
        ) from error
    except ValueError as error:
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(
            f"cluster {cluster.name}: the server at {address} is not a Ray dashboard ({error})"
        ) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ClusterError(
            f"cluster {cluster.name}: the server at {address} is not a Ray dashboard ({error!r})"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if any(word in text for word in ("401", "403", "nauthenticat", "uthentication")):
            raise ClusterError(_refused(cluster)) from error
        if "404" in text and "does not exist" in text:
            raise
        raise ClusterError(f"cluster {cluster.name} at {address}: {text[:300]}") from error


def submit_patiently(client: Any, **job: Any) -> str:
    """Submit a job to a cluster whose nodes may still be starting; return its id."""
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:  # a head that answers before its agents do
            if NO_AGENT not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(1.0)


def _refused(cluster: RayJobsCluster) -> str:
    source = cluster.config.token_file or f"the environment's {cluster.config.token_env}"
    return (
        f"cluster {cluster.name} at {cluster.config.address} refused the token from {source}. Put the "
        "cluster's token there (on its head: ray get-auth-token)"
    )


def _short_body(answer: Any) -> bytes:
    """Return a server's answer to a small question. Raises ValueError: it is long, or slow."""
    deadline, body = time.monotonic() + TIMEOUT_SECONDS, b""
    with answer:
        for part in answer.iter_content(LONGEST_ANSWER_BYTES):
            body += part
            if len(body) > LONGEST_ANSWER_BYTES or time.monotonic() > deadline:
                raise ValueError(f"more than {len(body):,} bytes in {TIMEOUT_SECONDS} s")
    return body


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
