"""Slurm: an sbatch script built from the submission, and squeue, sacct, scancel behind the verbs."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pelagos.infra.clusters.base import (
    BOOTSTRAP,
    Cluster,
    ClusterError,
    SchedulerState,
    Submission,
)
from pelagos.infra.clusters.schema import SlurmConfig
from pelagos.infra.doctor import Check
from pelagos.infra.storage.files import read_regular
from pelagos.infra.storage.remote import is_remote

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "sinfo", "scontrol")
TIMEOUT_SECONDS = 60
WAITING = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "CONFIGURING",
    "RESIZING",
    "SUSPENDED",
)
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT")
EXIT_PREEMPTED = 75
JOB_ID = re.compile(r"[0-9]{1,10}(_[0-9]{1,7})?")

SCRIPT = """\
#!/bin/bash
{directives}
set -uo pipefail
{environment}
# Slurm sends this before the time limit and on preemption: the run saves, and is requeued.
export PELAGOS_NOTICE_FILE=$(mktemp --dry-run -t "pelagos-$SLURM_JOB_ID-XXXXXX.notice")
trap 'touch "$PELAGOS_NOTICE_FILE"' TERM USR1

bootstrap=$(mktemp -t pelagos-bootstrap-XXXXXX.py)
cat > "$bootstrap" <<'PELAGOS_BOOTSTRAP'
{bootstrap}
PELAGOS_BOOTSTRAP
{arguments}

{launch} python "$bootstrap" "$@" &
step=$!
# a trapped signal ends `wait`; the step goes on until it has saved
while wait "$step"; status=$?; [ "$status" -gt 128 ] && kill -0 "$step" 2>/dev/null; do :; done
if [ "$status" -gt 128 ]; then
  wait "$step" 2>/dev/null
  late=$?
  [ "$late" -eq 127 ] || status=$late  # 127: there is nothing left to wait for
fi
rm -f "$bootstrap"
# the step's own last status: {preempted} means saved, to be continued
if [ "$status" -eq {preempted} ]; then
  rm -f "$PELAGOS_NOTICE_FILE"
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$status"
"""

RAY_LAUNCH = """\
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$(getent ahostsv4 "$head" | awk '{{print $1; exit}}'):$((20000 + SLURM_JOB_ID % 20000))"
export PELAGOS_RAY_ADDRESS="$address"
# this allocation's own token, in the environment alone: other users of a node cannot join
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \\n')
export RAY_AUTH_TOKEN
srun --export=ALL --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \\
  {container}ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \\
  {ray_options} --"""

PLAIN_LAUNCH = "srun --export=ALL --ntasks=1 --cpus-per-task={cpus} {container}"


class SlurmCluster(Cluster):
    """Drives the Slurm commands of this machine."""

    config: SlurmConfig
    trains_through_ray = False

    def check(self) -> list[Check]:
        missing = [command for command in COMMANDS if shutil.which(command) is None]
        if missing:
            remedy = "use a login node of the cluster, or install Slurm's client commands"
            return [Check("slurm commands", False, f"no {', '.join(missing)}", remedy)]
        checks = [Check("slurm commands", True, self._run("sinfo", "--version").strip())]
        try:
            shown = self._run("sinfo", "--noheader", "--format=%R|%a|%D|%c|%G|%l")
        except ClusterError as error:
            return [*checks, Check("slurm controller", False, str(error), "see the message")]
        rows = [line.split("|") for line in shown.splitlines()]
        partitions = sorted({row[0] for row in rows})
        checks.append(Check("slurm controller", True, f"partitions {', '.join(partitions)}"))
        wanted = self.config.partition
        if wanted is not None:
            known = wanted in partitions
            remedy = f"use one of {', '.join(partitions)} in clusters.yaml"
            checks.append(Check("partition", known, wanted, remedy))
        return checks

    def render(self, submission: Submission) -> dict[str, str]:
        return {"job.sbatch": self.script(submission)}

    def render_array(self, submissions: Sequence[Submission]) -> dict[str, str]:
        return {"array.sbatch": self.script(*submissions)}

    def start(self, submission: Submission) -> dict[str, Any]:
        self._check_partition()
        Path(self._log(submission, "")).parent.mkdir(parents=True, exist_ok=True)
        printed = self._run(
            "sbatch", "--parsable", *self._dependency(submission), stdin=self.script(submission)
        )
        job_id = printed.strip().split(";")[0]
        return {"job_id": job_id}

    def start_array(self, submissions: Sequence[Submission], at_once: int) -> list[dict[str, Any]]:
        """Hand them over as one job array, `at_once` of its tasks at a time."""
        if len(submissions) == 1:
            return [self.start(submissions[0])]
        self._check_partition()
        first = submissions[0]
        Path(self._log(first, "")).parent.mkdir(parents=True, exist_ok=True)
        tasks = f"--array=0-{len(submissions) - 1}%{at_once}"
        script = self.script(*submissions)
        command = ("sbatch", "--parsable", tasks, *self._dependency(first))
        job_id = self._run(*command, stdin=script).strip().split(";")[0]
        return [{"job_id": f"{job_id}_{n}", "array_id": job_id} for n in range(len(submissions))]

    def checked_handle(self, run: str, storage: str, handle: Mapping[str, Any]) -> dict[str, Any]:
        job_id = str(handle.get("job_id", ""))
        if not JOB_ID.fullmatch(job_id):
            raise self.not_its_handle(run, f"job {job_id}")
        array_id = str(handle.get("array_id", ""))
        if array_id and not job_id.startswith(f"{array_id}_"):
            raise self.not_its_handle(run, f"array {array_id}")
        # of an array the log bears the name of the first trial
        folder = Path(self._log_folder(storage))
        logs = [folder / f"{run}-{job_id}.log", *sorted(folder.glob(f"*-{job_id}.log"))]
        log = next((path for path in logs if path.is_file()), logs[0])
        return {
            "job_id": job_id,
            "array_id": array_id or job_id,
            "run": run,
            "storage": storage,
            "log": str(log),
        }

    def state(self, handle: dict[str, Any]) -> SchedulerState:
        job_id = handle["job_id"]
        name, reason = self._queued(job_id) or self._accounted(job_id)
        if name in WAITING:
            return SchedulerState("waiting", f"job {job_id}: {name.lower()}, {reason}")
        if name in RUNNING:
            return SchedulerState("running", f"job {job_id} on {reason}")
        if not name:
            return SchedulerState("ended", f"Slurm has no job {job_id} (any more)")
        return SchedulerState("ended", f"job {job_id}: {name}", name == "COMPLETED")

    def logs(self, handle: dict[str, Any]) -> str:
        with contextlib.suppress(OSError):
            return read_regular(Path(handle["log"])).decode(errors="replace")
        return ""

    def cancel(self, handle: dict[str, Any]) -> None:
        job_id, run = handle["job_id"], handle["run"]
        number = job_id.partition("_")[0]
        try:
            script = self._run("scontrol", "write", "batch_script", number, "-")
        except ClusterError as error:
            if "Invalid job" in str(error) or "does not exist" in str(error):
                return  # it has ended, and been forgotten
            raise
        # a number alone could be that of another job
        if f"{shlex.join(['--', handle['storage'], run])} " not in script:
            raise self.not_its_handle(run, f"job {job_id}")
        self._run("scancel", job_id)

    def script(self, *submissions: Submission) -> str:
        """Return the sbatch script of a run, or of an array of like runs.

        Every value from a job or from clusters.yaml is quoted.
        """
        submission = submissions[0]
        nodes, cpus, gpus = self._size(submission)
        quoted = shlex.quote
        lines = [f"export {k}={quoted(v)}" for k, v in sorted(submission.environment.items())]
        lines += [f"module load {quoted(module)}" for module in self.config.modules]
        if self.config.venv:
            lines.append(f"export PATH={quoted(self.config.venv + '/bin')}:$PATH")
        container = ""
        if self.config.apptainer_image:
            container = (
                f"apptainer exec {'--nv ' if gpus else ''}{quoted(self.config.apptainer_image)} "
            )
        launch = RAY_LAUNCH if submission.uses_ray else PLAIN_LAUNCH
        is_array = len(submissions) > 1
        return SCRIPT.format(
            directives="\n".join(
                f"#SBATCH {d}" for d in self._directives(submission, nodes, cpus, gpus, is_array)
            ),
            environment="\n".join(lines),
            bootstrap=BOOTSTRAP.read_text().rstrip(),
            launch=launch.format(
                container=container,
                cpus=cpus,
                ray_options=f"--num-cpus={cpus} --num-gpus={gpus} --disable-usage-stats",
            ),
            arguments=_arguments(submissions),
            preempted=EXIT_PREEMPTED,
        )

    def _size(self, submission: Submission) -> tuple[int, int, int]:
        """Return nodes, and CPU cores and GPUs of each."""
        needs, node = submission.needs, self.config.node
        nodes = self.num_nodes(needs)
        per_node = -(-needs.num_workers // nodes)
        cpus = per_node * needs.cpus_per_worker
        if node is not None and self.config.exclusive and submission.uses_ray:
            cpus = max(cpus, node.cpus)
        return nodes, cpus, per_node * needs.gpus_per_worker

    def _directives(
        self, submission: Submission, nodes: int, cpus: int, gpus: int, is_array: bool
    ) -> list[str]:
        config = self.config
        # only a Ray of one's own needs nodes of one's own
        alone = config.exclusive and submission.uses_ray
        chosen = {
            "job-name": f"pelagos-{submission.run}",
            "nodes": nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": cpus,
            "gpus-per-node": gpus or None,
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
            "constraint": config.constraint,
            "time": config.time_limit,
            "signal": f"B:USR1@{config.notice_seconds}",
            "output": self._log_pattern(submission, is_array),
            "open-mode": "append",
            "export": "HOME,USER,LANG,PATH",
            "nice": -submission.priority if submission.priority < 0 else None,
        }
        flags = ["--requeue", *(["--exclusive"] if alone else [])]
        return [*(f"--{k}={_quoted(str(v))}" for k, v in chosen.items() if v is not None), *flags]

    def _dependency(self, submission: Submission) -> list[str]:
        finished = [h["job_id"] for h in submission.after_handles]
        ended = [h["array_id"] for h in submission.ended_handles]
        conditions = {"afterok": finished, "afterany": list(dict.fromkeys(ended))}
        told = [f"{kind}:{':'.join(ids)}" for kind, ids in conditions.items() if ids]
        return [f"--dependency={','.join(told)}", "--kill-on-invalid-dep=yes"] if told else []

    def _check_partition(self) -> None:
        wanted = self.config.partition
        if wanted is None:
            return
        known = sorted(set(self._run("sinfo", "--noheader", "--format=%R").split()))
        if wanted not in known:
            raise ClusterError(
                f"cluster {self.name}: Slurm has no partition {wanted!r}; it has "
                f"{', '.join(known)}. Correct `partition` in clusters.yaml"
            )

    def _log(self, submission: Submission, job_id: str) -> str:
        return os.path.join(self._log_folder(submission.storage), f"{submission.run}-{job_id}.log")

    def _log_pattern(self, submission: Submission, is_array: bool) -> str:
        """Return the name of the log as sbatch takes it: `%` of the path's own is doubled."""
        folder = self._log_folder(submission.storage).replace("%", "%%")
        job_id = "%A_%a" if is_array else "%j"
        return os.path.join(folder, f"{submission.run}-{job_id}.log")

    def _log_folder(self, storage: str) -> str:
        home = os.path.join(Path.home(), ".cache", "pelagos")
        return os.path.join(home if is_remote(storage) else storage, "scheduler")

    def _queued(self, job_id: str) -> tuple[str, str] | None:
        """Return state and reason (or nodes) of a job that the controller holds."""
        try:
            shown = self._run("squeue", "--noheader", f"--jobs={job_id}", "--format=%T|%R")
        except ClusterError as error:
            if "Invalid job id" in str(error):
                return None
            raise
        line = shown.strip().splitlines()
        if not line:
            return None
        name, _, reason = line[0].partition("|")
        return name, reason

    def _accounted(self, job_id: str) -> tuple[str, str]:
        """Return the final state of a job: from accounting, or from the controller's memory."""
        with contextlib.suppress(ClusterError):
            shown = self._run(
                "sacct",
                "--noheader",
                "--parsable2",
                "--allocations",
                f"--jobs={job_id}",
                "--format=State",
            ).split()
            if shown:
                return shown[0].rstrip("+"), ""
        with contextlib.suppress(ClusterError):
            shown_job = self._run("scontrol", "show", "job", job_id)
            for word in shown_job.split():
                if word.startswith("JobState="):
                    return word.removeprefix("JobState="), ""
        return "", ""

    def _run(self, *command: str, stdin: str | None = None) -> str:
        """Run a Slurm command; return its output. Raises `ClusterError` with its own words."""
        try:
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
            )
        except FileNotFoundError as error:
            raise ClusterError(
                f"cluster {self.name}: {command[0]} is not installed on this machine; submit from a "
                "login node"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ClusterError(
                f"cluster {self.name}: {command[0]} did not answer in {TIMEOUT_SECONDS} s"
            ) from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise ClusterError(f"cluster {self.name}: {command[0]}: {said}")
        return done.stdout


def _quoted(value: str) -> str:
    """Return the value of a `#SBATCH` option as one word.

    sbatch splits these lines by rules of its own: quotes keep spaces and `#`, and within double
    quotes all but a double quote and a backslash is literal.

    Raises:
        ClusterError: no quotes can hold it.
    """
    found = next((c for c in value if c in '"\\' or not c.isprintable()), None)
    if found is not None:
        raise ClusterError(
            f"{value!r} holds {found!r}, which is not allowed in a line of an sbatch script; use "
            "another name"
        )
    return value if shlex.quote(value) == value else f'"{value}"'


def _arguments(submissions: Sequence[Submission]) -> str:
    """Return the lines that set the arguments of bootstrap.py; of an array, by the task's number."""
    lines = [f"set -- {shlex.join(submission.arguments())}" for submission in submissions]
    if len(lines) == 1:
        return lines[0]
    cases = [f"  {number}) {line} ;;" for number, line in enumerate(lines)]
    return "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"])
